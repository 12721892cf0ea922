"""Replays: the measured schedule gives the measured time, and changes give the times that can be worked out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lanes import Span, encode
from schedules import Op, Run, make
from test_analysis_findings import chain, run
from test_analysis_idle import random_schedule

import mpklab as mk
from mpklab.analysis import explain, what_if
from mpklab.analysis.replay import FEW_LOOKS, OFF, STATIC, _moved, _past, _quickest, flat, measured, program
from mpklab.errors import ProfileError
from mpklab.profile import Profile
from mpklab.simulator import predict

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
        ({"mode": "hybrid"}, "static"),
        ({"handoff_ns": -1}, "handoff_ns: expected a time in ns from 0, found -1"),
        ({"handoff_ns": "fast"}, "found 'fast'"),
        ({"handoff_ns": float("nan")}, "found nan"),
        ({"handoff_ns": True}, "found True"),
        ({"faster": ["a"]}, "faster: expected factors by operator"),
        ({"faster": "a"}, "faster: expected factors by operator"),
    ],
)
def test_what_cannot_be_asked_is_said(options, words):
    with pytest.raises(ProfileError, match=words):
        what_if(make(OPS, QUEUES), **options)


@pytest.fixture(scope="module")
def tasks():
    model = mk.models.random("qwen3-0.6b", weights=False)
    return mk.lower(model.decode_graph(batch=1, context=256, layers=2), mk.Machine.named("h200"))


@pytest.fixture(scope="module")
def pooled(tasks):
    return predict(mk.assign(tasks, mode="dynamic"), iterations=3).to_profile()


def test_queues_are_predicted_from_a_pool(tasks, pooled):
    queues = predict(mk.assign(tasks), iterations=3)
    table = what_if(pooled, mode="static")
    assert table["change"].iloc[2] == "static mode" and table["error"].iloc[2] == OFF["static"]
    assert table["makespan_ns"].iloc[2] == pytest.approx(queues.makespan_ns, rel=0.02)  # `assign`'s own choice
    table = what_if(pooled, policy="zigzag")
    assert table["change"].iloc[2] == "policy zigzag, static mode" and table["error"].iloc[2] == OFF["static"]
    assert last(table) == pytest.approx(last(what_if(queues.to_profile(), policy="zigzag")), rel=0.02)
    single = what_if(pooled, top=0).set_index("change")
    assert single.loc[STATIC, "gain_ns"] > 0 and single.loc[STATIC, "error"] == OFF["static"]


def test_a_pool_stays_one_with_fewer_workers(pooled):
    table = what_if(pooled, workers=66)
    assert table["change"].iloc[2] == "66 workers" and table["gain_ns"].iloc[2] < 0 and np.isnan(table["error"].iloc[2])
    m = measured(pooled)
    made = program(m, None, 66, None, None)
    assert made.pooled.all() and made.n_workers == 66 and made.handout == m.program.handout
    assert not program(m, None, 66, "static", None).pooled.any()
    assert not program(m, "zigzag", 66, None, None).pooled.any()


def test_hand_offs_to_queues_are_the_machines_where_a_pool_shows_none(tasks, pooled):
    m = measured(pooled)
    m = replace(m, costs=flat(m.costs, 0.0))  # whoever is handed a task finds its events there
    work, costs = _moved(m, program(m, None, None, "static", None))
    assert costs.handoff_ns["counter"] == tasks.machine.handoff_s * 1e9 > 0
    assert np.median(work.signal) == pytest.approx(np.median(m.work.signal) - m.costs.pool_signal_ns, abs=2)
    assert _moved(m, program(m, None, 66, None, None)) == (m.work, m.costs)


def test_a_pool_beside_queues_is_not_guessed_at(tasks):
    schedule = mk.assign(tasks, mode="hybrid", dynamic=("attention",))
    m = measured(predict(schedule, iterations=2).to_profile())
    with pytest.raises(ProfileError, match="part of the tasks"):
        program(m, None, 66, None, None)
    assert not program(m, None, None, "static", None).pooled.any()


def test_a_pool_without_a_recipe_says_so():
    profile = make(OPS, QUEUES, dynamic=True)
    with pytest.raises(ProfileError, match="no recipe"):
        what_if(profile, mode="static")
    assert STATIC not in what_if(profile)["change"].tolist()


def test_a_gpus_pool_foretells_its_queues_as_far_as_it_says():
    """0.6B's dynamic step was 3.012 times the static one on an H200 (profiles/LOG.md)."""
    table = what_if(mk.recording("h200-qwen3-0.6b-dynamic"), mode="static")
    ratio = table["makespan_ns"].iloc[1] / table["makespan_ns"].iloc[2]
    assert abs(3.012 / ratio - 1) <= table["error"].iloc[2]


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
