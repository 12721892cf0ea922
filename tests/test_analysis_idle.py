"""Every class of idle time, on timelines where the answer is known."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lanes import LaneClock
from schedules import Op, Run, make

from mpklab.analysis import blame, bubbles, waits
from mpklab.analysis.idle import CLASSES, NAMES, pieces
from mpklab.errors import ProfileError


def rows(profile, by="worker", **options):
    table = bubbles(profile, by, **options)
    assert (table[list(NAMES)].sum(axis=1) == table["makespan_ns"]).all()
    if by == "worker":
        assert table["makespan_ns"].nunique() == 1
    return table


def nonzero(row) -> dict[str, int]:
    return {name: int(row[name]) for name in NAMES if row[name]}


A, B = Op("a"), Op("b", after=("a",))


def test_a_wait_is_split_at_the_producers_end():
    profile = make([A, B], [[[Run("a", 0, 100, fetch=4)], [Run("b", 0, 50, fetch=3, gather=2, signal=6)]]], latency=9)
    table = rows(profile)
    assert nonzero(table.loc[0]) == {"execute": 100, "fetch": 4, "tail": 67}
    # worker 1 begins to wait at 3; a runs from 4 to 104, and that is seen at 113
    want = {"fetch": 3, "starved": 1, "producer": 100, "latency": 9, "gather": 2, "execute": 50, "signal": 6}
    assert nonzero(table.loc[1]) == want


def test_a_ready_task_behind_the_head_is_blocked():
    ops = [A, Op("b", after=("a",)), Op("c")]
    profile = make(ops, [[[Run("a", 0, 100)], [Run("b", 0, 10), Run("c", 0, 10)]]])
    row = rows(profile).loc[1]
    assert nonzero(row) == {"blocked": 100, "execute": 20}  # c waits for nothing
    swapped = make(ops, [[[Run("a", 0, 100)], [Run("c", 0, 10), Run("b", 0, 10)]]])
    assert nonzero(rows(swapped).loc[1]) == {"producer": 90, "execute": 20}


def test_a_later_task_blocks_only_once_it_is_ready():
    ops = [A, Op("d"), Op("b", after=("a",)), Op("c", after=("d",))]
    queues = [[[Run("a", 0, 100)], [Run("d", 0, 30)], [Run("b", 0, 10), Run("c", 0, 10)]]]
    row = rows(make(ops, queues)).loc[2]
    assert nonzero(row) == {"producer": 30, "blocked": 70, "execute": 20}


def test_ready_tasks_in_other_queues_are_told_from_none():
    # x waits for b, which starts when a is done; until 40, e lies ready behind n
    ops = [A, Op("b", after=("a",)), Op("x", after=("b",)), Op("n"), Op("e")]
    queues = [[[Run("a", 0, 100), Run("b", 0, 20)], [Run("x", 0, 10)], [Run("n", 0, 40), Run("e", 0, 5)]]]
    row = rows(make(ops, queues)).loc[1]
    assert nonzero(row) == {"ready_elsewhere": 40, "starved": 60, "producer": 20, "execute": 10}
    assert CLASSES["ready_elsewhere"] == "a ready task lies elsewhere: in another queue, or not handed out yet"


def test_who_ends_after_a_wait_by_words_was_not_waited_for():
    # b has all it reads at 109, 9 ns after a's first tile; the third stored its words long before, and goes on
    ops = [Op("a", tiles=3, words=True), B]
    queues = [[[Run("a", 0, 100)], [Run("a", 1, 60)], [Run("a", 2, 5000)], [Run("b", 0, 6000, fetch=3, until=109)]]]
    profile = make(ops, queues)
    assert nonzero(rows(profile).loc[3]) == {"fetch": 3, "producer": 97, "latency": 9, "execute": 6000}
    p, wait, path = pieces(profile), waits(profile), blame(profile)
    assert p.cause[p.cause >= 0].tolist() == [0, 0]
    assert wait[["producer", "happened_ns", "latency_ns"]].values.tolist() == [[0, wait["end_ns"][0] - 9, 9]]
    assert path[["segment", "task"]].values.tolist() == [["execute", 0], ["latency", 3], ["execute", 3]]


def test_of_two_events_by_words_the_one_that_was_read_is_the_cause():
    # as one piece of the context reads the newest key, and the others the query alone
    ops = [Op("q", words=True), Op("k", words=True), Op("c", after=("q", "k"))]
    queues = [[[Run("q", 0, 100)], [Run("k", 0, 5000)], [Run("c", 0, 50, until=109)]]]
    row = rows(make(ops, queues), by="cause").set_index("cause").loc["q"]
    assert nonzero(row) == {"producer": 100, "latency": 9}


def test_words_read_while_they_are_made_are_their_last_producers():
    queues = [[[Run("a", 0, 100)], [Run("a", 1, 200)], [Run("b", 0, 50, until=80)]]]
    profile = make([Op("a", tiles=2, words=True), B], queues)
    assert nonzero(rows(profile).loc[2]) == {"producer": 80, "execute": 50, "tail": 70}
    p = pieces(profile)
    assert p.cause[p.cause >= 0].tolist() == [1]


def test_ramp_and_tail():
    profile = make([A, Op("b")], [[[Run("a", 0, 100)], [Run("b", 0, 20)]]], start=[0, 30])
    assert nonzero(rows(profile).loc[1]) == {"ramp": 30, "execute": 20, "tail": 50}


def test_turning_to_the_next_task_is_fetching_and_a_long_gap_is_unexplained():
    ops, queues = [Op("a", tiles=3)], [[[Run("a", t, 100, fetch=20) for t in range(3)]]]
    assert nonzero(rows(make(ops, queues, gap=10)).loc[0]) == {"execute": 300, "fetch": 80}
    assert nonzero(rows(make(ops, queues, gap=3000)).loc[0]) == {"execute": 300, "fetch": 60, "unexplained": 6000}


def test_recording_is_taken_from_where_it_happens():
    profile = make([Op("a", tiles=3)], [[[Run("a", t, 100, fetch=20) for t in range(3)]]], gap=10)
    row = rows(profile, record_ns=6.0).loc[0]
    # per task: one record at the begin of fetch, execute; the signal has no length; one in each gap
    assert row["recording"] == 3 * 12 + 2 * 6 and row["execute"] == 3 * 94 and row["fetch"] == 3 * 14 + 2 * 4


def test_level_one_guesses_waits_from_the_graph():
    profile = make([A, B], [[[Run("a", 0, 100)], [Run("b", 0, 50)]]], latency=7, level=1)
    assert nonzero(rows(profile).loc[1]) == {"producer": 100, "unexplained": 7, "execute": 50}


def test_lag_one_waits_look_one_iteration_back():
    ops = [Op("a", before=("b",)), Op("b", after=("a",))]
    queue = [[Run("a", 0, 10)], [Run("b", 0, 30)]]
    table = rows(make(ops, [queue, queue, queue]))
    assert nonzero(table.loc[0]) == {"execute": 30, "producer": 60, "tail": 30}
    by_iteration = bubbles(make(ops, [queue, queue, queue]), "iteration")
    assert by_iteration["execute"].tolist()[-3:] == [40, 40, 40]


def test_by_operator_and_by_cause():
    profile = make([A, B], [[[Run("a", 0, 100)], [Run("b", 0, 50)]]], latency=9)
    by_op = bubbles(profile, "op").set_index("op")
    assert by_op.loc["b", "producer"] == 100 and by_op.loc["a", "execute"] == 100
    by_cause = bubbles(profile, "cause").set_index("cause")
    assert by_cause.loc["a", "producer"] == 100 and by_cause.loc["a", "latency"] == 9
    by_family = bubbles(profile, "cause_family").set_index("cause_family")
    assert by_family.loc["a", "producer"] == 100
    assert bubbles(profile, "all")["makespan_ns"].tolist() == [2 * 159]
    with pytest.raises(ProfileError, match="did you mean 'cause'"):
        bubbles(profile, "causes")


def test_dropped_records_are_not_called_tail():
    profile = make([Op("a", tiles=4)], [[[Run("a", t, 100) for t in range(4)], []]], capacity=8)
    row = rows(profile).loc[0]
    assert row["tail"] == 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_classes_always_sum_to_the_makespan(data):
    n_workers = data.draw(st.integers(1, 4))
    ops, queues = random_schedule(data, n_workers)
    clocks = {w: LaneClock(w * 10**9, 1.0 + w / 1000) for w in range(n_workers)}
    capacity = data.draw(st.sampled_from([None, 5, 17, 40]))
    ring = data.draw(st.booleans())
    profile = make(
        ops, queues, latency=data.draw(st.integers(0, 9)), gap=3, clocks=clocks, capacity=capacity, ring=ring
    )
    for cost in (0.0, 2.5):
        table = rows(profile, record_ns=cost)
        assert (table[list(NAMES)] >= 0).all(axis=None)
    execute = sum(run.execute for q in queues for w in q for run in w)
    if capacity is None:
        got = int(bubbles(profile)["execute"].sum())
        assert abs(got - execute) <= 2 * sum(op.tiles for op in ops) * len(queues)


def random_schedule(data, n_workers):
    """A random graph in topological order and random queues that cannot hang (they follow that order)."""
    n_ops = data.draw(st.integers(1, 5))
    ops = []
    for i in range(n_ops):
        after = data.draw(st.lists(st.sampled_from([o.name for o in ops]), unique=True, max_size=3)) if ops else []
        ops.append(Op(f"op{i}", data.draw(st.integers(1, 4)), tuple(after)))
    queues = []
    for _ in range(data.draw(st.integers(1, 3))):
        queue = [[] for _ in range(n_workers)]
        for op in ops:
            for t in range(op.tiles):
                dur = st.integers(0, 60)
                run = Run(op.name, t, data.draw(dur), fetch=data.draw(dur) // 9, signal=data.draw(dur) // 9)
                queue[data.draw(st.integers(0, n_workers - 1))].append(run)
        queues.append(queue)
    return ops, queues
