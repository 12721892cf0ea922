"""The path of blame and the critical path, on schedules where both are known."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lanes import LaneClock
from schedules import Op, Run, make
from test_analysis_idle import random_schedule

from mpklab.analysis import blame, critical_path

A, B = Op("a"), Op("b", after=("a",))


def steps(table):
    return [(r.segment, r.op if isinstance(r.op, str) else "", r.dur_ns) for r in table.itertuples()]


def tiles(table, low, high):
    assert table["begin_ns"].iloc[0] == low and table["end_ns"].iloc[-1] == high
    assert (table["begin_ns"].to_numpy()[1:] == table["end_ns"].to_numpy()[:-1]).all()
    assert (table["dur_ns"] > 0).all() and table["dur_ns"].sum() == high - low


def test_blame_follows_the_producer_when_the_worker_waited():
    profile = make([A, B], [[[Run("a", 0, 100, fetch=4)], [Run("b", 0, 50, fetch=3, gather=2, signal=6)]]], latency=9)
    table = blame(profile)
    want = [("fetch", "a", 4), ("execute", "a", 100), ("latency", "b", 9), ("gather", "b", 2), ("execute", "b", 50)]
    assert steps(table) == [*want, ("signal", "b", 6)]
    assert table["because"].tolist() == ["data", "data", "end", "end", "end", "end"]
    tiles(table, 0, 171)


def test_blame_stays_on_the_worker_when_it_was_busy():
    ops = [A, Op("n"), B]
    profile = make(ops, [[[Run("a", 0, 10)], [Run("n", 0, 200, signal=5), Run("b", 0, 50, fetch=3)]]], gap=2)
    table = blame(profile)
    assert steps(table) == [
        ("execute", "n", 200),
        ("signal", "n", 5),
        ("loop", "b", 2),
        ("fetch", "b", 3),
        ("execute", "b", 50),
    ]
    assert table["because"].tolist() == ["worker", "worker", "end", "end", "end"]


def test_blame_crosses_iterations():
    ops = [Op("a", before=("b",)), Op("b", after=("a",))]
    queue = [[Run("a", 0, 10)], [Run("b", 0, 30)]]
    table = blame(make(ops, [queue, queue], latency=1))
    assert steps(table) == [
        ("execute", "a", 10),
        ("latency", "b", 1),
        ("execute", "b", 30),
        ("latency", "a", 1),
        ("execute", "a", 10),
        ("latency", "b", 1),
        ("execute", "b", 30),
    ]
    assert table["iteration"].tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_blame_at_level_one():
    profile = make([A, B], [[[Run("a", 0, 100)], [Run("b", 0, 50)]]], latency=7, level=1)
    assert steps(blame(profile)) == [("execute", "a", 100), ("latency", "b", 7), ("execute", "b", 50)]


def test_the_critical_path_ignores_workers():
    ops = [A, Op("n"), Op("b", after=("a",)), Op("c", after=("b", "n"))]
    queues = [[[Run("a", 0, 100), Run("n", 0, 30), Run("b", 0, 50), Run("c", 0, 20)]]]
    table = critical_path(make(ops, queues))
    assert table["op"].tolist() == ["a", "b", "c"] and table["end_ns"].iloc[-1] == 170
    assert critical_path(make(ops, queues), handoff_ns=10)["end_ns"].iloc[-1] == 190


def test_the_critical_path_takes_the_longest_tile_and_crosses_iterations():
    ops = [Op("a", tiles=3, before=("b",)), Op("b", after=("a",))]
    queues = [[[Run("a", 0, 10), Run("a", 1, 40 + i), Run("b", 0, 5)], [Run("a", 2, 20)]] for i in range(3)]
    table = critical_path(make(ops, queues))
    assert table["task"].tolist() == [1, 3] * 3 and table["iteration"].tolist() == [0, 0, 1, 1, 2, 2]
    assert table["end_ns"].iloc[-1] == 40 + 41 + 42 + 15


def test_an_empty_recording_has_empty_paths():
    profile = make([A], [[[]]])
    assert len(critical_path(profile)) == 0 and blame(profile)["dur_ns"].sum() == 0


@pytest.mark.parametrize("level", [1, 2])
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_blame_tiles_the_makespan_and_is_no_shorter_than_the_critical_path(level, data):
    n_workers = data.draw(st.integers(1, 4))
    ops, queues = random_schedule(data, n_workers)
    clocks = {w: LaneClock(w * 10**9, 1.0) for w in range(n_workers)}
    capacity = data.draw(st.sampled_from([None, 5, 17]))
    profile = make(
        ops, queues, latency=2, gap=data.draw(st.integers(0, 3)), clocks=clocks, capacity=capacity, level=level
    )
    table = blame(profile)
    path = critical_path(profile)
    if len(table):
        tiles(table, int(table["begin_ns"].min()), int(table["end_ns"].max()))
        assert table["begin_ns"].iloc[0] == 0
    if len(path):
        assert path["end_ns"].iloc[-1] <= table["dur_ns"].sum()
        assert (path["begin_ns"].to_numpy()[1:] == path["end_ns"].to_numpy()[:-1]).all()
