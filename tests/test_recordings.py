"""The project's own recordings: each can be trusted, and what is said of its time adds up."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import mpklab as mk
from mpklab import analysis, frames
from mpklab.analysis.idle import CLASSES
from mpklab.frames import records
from mpklab.profile import Profile, recordings

MOST_BYTES = 5 << 20


@cache
def opened(name: str) -> Profile:
    return mk.recording(name)


def makespan(profile: Profile) -> int:
    d = frames.decode(profile)
    compute = d.lanes.role[d.lane] == records.COMPUTE
    return int(d.end_ns[compute].max() - d.begin_ns[compute].min())


def test_recordings_are_listed_by_name():
    assert mk.recordings() == recordings() == sorted(set(recordings()))


@pytest.mark.parametrize("name", recordings())
class TestRecording:
    def test_nothing_is_lost_and_clocks_explain_every_edge(self, name):
        profile = opened(name)
        health = frames.health(profile)
        assert health["valid"].all() and not health[["unmatched_begins", "unmatched_ends", "unknown"]].to_numpy().any()
        assert not health["dropped"].any()
        worst = int(frames.causality(profile)["worst_ns"].max())
        assert worst <= frames.residual(profile), frames.verdict(profile)
        moved = frames.alignment(profile)["offset_ns"].abs().max()
        assert moved <= 40, f"clocks had to be moved by {moved:.0f} ns"

    def test_every_nanosecond_of_every_worker_has_its_class(self, name):
        profile = opened(name)
        table = analysis.bubbles(profile)
        assert len(table) == profile.n_ranks * profile.n_workers
        assert (table["makespan_ns"] == makespan(profile)).all()
        assert (table[list(CLASSES)].sum(axis=1) == table["makespan_ns"]).all()
        assert table["unexplained"].sum() <= 0.005 * table["makespan_ns"].sum()

    def test_the_blame_tiles_the_makespan(self, name):
        path = analysis.blame(opened(name))
        begin, end = path["begin_ns"].to_numpy(), path["end_ns"].to_numpy()
        order = np.argsort(begin, kind="stable")
        assert (begin[order][1:] == end[order][:-1]).all()
        assert end.max() - begin.min() == path["dur_ns"].sum() == makespan(opened(name))

    def test_it_knows_what_it_ran_on(self, name):
        profile = opened(name)
        assert profile.stamp["device"]["name"] and profile.stamp["versions"]["python"]
        assert analysis.efficiency(profile) <= 1.0

    def test_it_is_replayed_as_it_ran(self, name):
        off = float(analysis.what_if(opened(name), handoff_ns=0)["gain"].iloc[1])
        handed_out = opened(name).meta["mode"] != "static"  # the order in which workers pop is not the recorded one
        assert abs(off) <= (0.06 if handed_out else 0.02), f"{100 * off:.1f} %"
