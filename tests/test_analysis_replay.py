"""Replays: the measured schedule gives the measured time, and changes give the times that can be worked out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lanes import Span, encode
from schedules import Op, Run, make
from test_analysis_findings import chain, run
from test_analysis_idle import random_schedule

from mpklab.analysis import explain, what_if
from mpklab.analysis.replay import FEW_LOOKS, _past, _quickest, measured
from mpklab.errors import ProfileError
from mpklab.profile import Profile

OPS = [Op("layer0.a"), Op("n"), Op("layer0.b", after=("layer0.a",))]
QUEUES = [[[Run("layer0.a", 0, 100)], [Run("n", 0, 30), Run("layer0.b", 0, 50)]]]


def last(table):
    return table.iloc[-1]["makespan_ns"]


def test_the_recorded_schedule_is_replayed_first():
    table = what_if(make(OPS, QUEUES, latency=9), handoff_ns=0)
    assert table["change"].tolist() == ["measured", "replayed as recorded", "hand-offs of 0 ns"]
    assert table["makespan_ns"].tolist() == [159, 159, 150]
    assert table["gain_ns"].tolist() == [0, 0, 9]


def test_changes_apply_together_or_are_ranked_one_by_one():
    profile = make(OPS, QUEUES, latency=9)
    assert last(what_if(profile, faster={"layer0.b": 5.0})) == 119
    assert last(what_if(profile, faster={"a": 2.0}, handoff_ns=0)) == 100
    assert last(what_if(profile, queues=[[0, 2], [1]])) == 150
    table = pd.DataFrame({"worker": [0, 0, 0], "position": [2, 0, 1], "task": [2, 1, 0]})
    assert last(what_if(profile, queues=table)) == 180
    single = what_if(profile).set_index("change")
    assert single["gain_ns"].iloc[2:].is_monotonic_decreasing
    assert single.loc["a 2× faster", "gain_ns"] == 50 and single.loc["b 2× faster", "gain_ns"] == 25
    assert single.loc["hand-offs for free", "gain_ns"] == 9


def test_pages_always_there_takes_what_level_three_saw():
    spans = [Span(0, 0, "execute", t, 1000 * t, 1000 * t + 1000) for t in range(3)]
    spans += [Span(0, 0, "operand", t, 1000 * t, 1000 * t + 600) for t in range(3)]
    spans = [Span(0, 0, "iteration", 0, 0, 3000), *sorted(spans, key=lambda s: (s.begin_ns, -s.end_ns))]
    profile = Profile.from_parts(
        encode(spans, 1, level=3), 1, level=3, tasks={"operator": [0] * 3, "worker": [0] * 3, "position": [0, 1, 2]}
    )
    assert last(what_if(profile, prefetch=True)) == 1200
    with pytest.raises(ProfileError, match="level 3"):
        what_if(make(OPS, QUEUES), prefetch=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"faster": {"layer0.c": 2}}, "did you mean"),
        ({"faster": {"a": 0}}, "positive factor"),
        ({"mode": "dynamc"}, "did you mean 'dynamic'"),
        ({"workers": 0}, "count from 1"),
        ({"policy": "zigzag"}, "recipe"),
        ({"queues": [[0], [1]]}, "cannot be replayed"),
    ],
)
def test_what_cannot_be_asked_is_said(options, words):
    with pytest.raises(ProfileError, match=words):
        what_if(make(OPS, QUEUES), **options)


def test_a_look_takes_what_it_takes_when_nothing_holds_it_up():
    rng = np.random.default_rng(0)
    looks, held_up = rng.normal(450, 20, 14), rng.uniform(1370, 1900, 18)
    assert abs(_quickest(np.r_[looks, held_up]) - 450) < 20 < np.median(np.r_[looks, held_up]) - 470
    # Whoever comes 0.8 hand-offs late sees its event at once; if hardly anybody does, those who come last tell.
    behind = np.arange(-2000.0, 2000.0)
    assert _past(behind, 1000.0).sum() == 2000 - 801
    assert _past(behind, 2450.0).sum() == FEW_LOOKS - 1 and _past(behind, 2450.0)[-1]
    assert not _past(behind, 9000.0).any()


def test_an_incomplete_recording_is_not_replayed():
    with pytest.raises(ProfileError, match="nothing to replay"):
        what_if(make(OPS, [[[], []]]))
    assert explain(make(OPS, [[[], []]]))["gain_ns"].isna().all()


def test_explain_says_what_a_remedy_gains():
    row = explain(run(chain(), lambda op, w: 1000 if w != 5 else 1500)).iloc[0]
    assert row["kind"] == "slow_worker" and row["gain_ns"] == 8 * 500
    assert "is predicted to save 4 µs" in row["finding"]
    row = explain(run(chain(down=1), lambda op, w: 1000)).iloc[0]
    assert row["kind"] == "few_tiles" and row["gain_ns"] == 4 * 875
    assert "predicted" not in explain(run(chain(down=1), lambda op, w: 1000), gains=False)["finding"].iloc[0]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_schedule_is_replayed_to_the_nanosecond(data):
    ops, queues = random_schedule(data, data.draw(st.integers(1, 4)))
    queues = queues[:1]
    queues = [[[Run(r.op, r.tile, r.execute, fetch=r.fetch) for r in q] for q in it] for it in queues]
    profile = make(ops, queues)
    m = measured(profile)
    assert m.run() == m.makespan_ns
    halves = m.run(work=type(m.work).given(m.work.execute / 2, fetch=m.work.fetch))
    assert halves <= m.makespan_ns + 1e-6
    assert np.isfinite(halves)
