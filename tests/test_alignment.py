"""Clocks that are off by a little are brought to where the edges allow them; what is off by more stays a violation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lanes import LaneClock
from schedules import Op, Run, make

from mpklab import frames
from mpklab.profile import Profile


class Off(LaneClock):
    """A clock whose anchors are late, so that its lane comes out early by as much."""

    def timer(self, ns):
        return ns - SHIFT[self.offset]


SHIFT: dict[int, int] = {}


def ring(n_workers, rounds, shifts, latency=5):
    """Each operator has one tile, on the next worker, and waits for the one before."""
    ops, queue = [], [[] for _ in range(n_workers)]
    for i in range(n_workers * rounds):
        ops.append(Op(f"op{i}", after=(f"op{i - 1}",) if i else ()))
        queue[i % n_workers].append(Run(f"op{i}", 0, 100))
    SHIFT.update(enumerate(shifts))
    clocks = {w: Off(offset=w) for w in range(n_workers)}
    return make(ops, [queue], latency=latency, clocks=clocks)


def test_a_small_skew_is_found_and_taken_out(tmp_path):
    profile = ring(4, 4, [0, 0, 12, 0])
    before = frames.causality(profile)
    assert before["violations"].sum() == 4 and before["worst_ns"].max() == 7
    assert frames.align(profile, limit_ns=3) is profile
    aligned = frames.align(profile, limit_ns=20)
    after = frames.causality(aligned)
    assert after["violations"].sum() == 0
    moved = frames.health(aligned)["aligned_ns"]
    assert 0 < np.abs(moved).max() <= 7
    assert frames.align(aligned, limit_ns=20) is aligned
    loaded = Profile.load(aligned.save(tmp_path / "x"))
    assert frames.causality(loaded)["violations"].sum() == 0
    table = frames.alignment(profile, 20).set_index("worker")
    assert table.loc[2, "low_ns"] == 7 and table.loc[2, "high_ns"] == 17


def test_a_large_skew_stands():
    profile = ring(4, 4, [0, 0, 500, 0])
    assert frames.align(profile, limit_ns=20) is profile
    assert frames.causality(profile)["violations"].sum() == 4


def test_nothing_to_do_is_nothing_done():
    profile = ring(3, 2, [0, 0, 0])
    assert frames.align(profile, 20) is profile
    assert "more than the clocks explain" not in frames.verdict(profile)


@pytest.mark.parametrize("junk", [[1], "x", [None] * 4, [1e300] * 4, {"a": 1}])
def test_offsets_that_do_not_fit_are_not_used(junk):
    profile = ring(4, 2, [0, 0, 0, 0])
    odd = profile.with_meta(clock_offsets_ns=junk)
    assert frames.spans(odd)["begin_ns"].tolist() == frames.spans(profile)["begin_ns"].tolist()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=3, max_size=6), st.integers(0, 3))
def test_any_small_skews_can_be_taken_out(shifts, latency):
    profile = ring(len(shifts), 3, shifts, latency)
    aligned = frames.align(profile, limit_ns=40)
    assert frames.causality(aligned)["violations"].sum() == 0
