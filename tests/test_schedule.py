"""Static schedules: what each policy promises, users' own policies, tables, files, hand-offs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpklab.abi import Handoff
from mpklab.errors import ScheduleError
from mpklab.machine import Machine
from mpklab.models.config import Config
from mpklab.models.decoder import decode_graph
from mpklab.schedule import POLICIES, Schedule, assign, from_queues, task_seconds
from mpklab.tasks import TaskGraph, lower
from mpklab.verifier import verify

TINY = Config("tiny", vocab=96, hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=64, max_position=64)


@cache
def tiny(workers: int = 3) -> TaskGraph:
    return lower(decode_graph(TINY, context=64), Machine.cpu(workers))


# --- policies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("workers", [1, 2, 5, 200])
def test_every_task_stands_in_one_place(policy: str, workers: int) -> None:
    tasks = tiny()
    schedule = verify(assign(tasks, policy=policy, workers=workers))
    assert sorted(t for q in schedule.queues for t in q.tolist()) == list(range(len(tasks)))
    assert len(schedule.queues) == schedule.workers == workers
    for w, queue in enumerate(schedule.queues):
        assert (schedule.worker[queue] == w).all() and schedule.position[queue].tolist() == list(range(len(queue)))
    assert f"static/{policy}" in str(schedule) and "verified" in str(schedule)
    assert assign(tasks, policy=policy, workers=workers).hash == schedule.hash


def test_what_each_policy_is_for() -> None:
    tasks = tiny()
    n = len(tasks)
    around = [0, 1, 2, 2, 1, 0]
    assert assign(tasks, policy="round_robin").worker.tolist() == [i % 3 for i in range(n)]
    assert assign(tasks, policy="zigzag").worker.tolist() == [around[i % 6] for i in range(n)]
    local = assign(tasks, policy="locality")
    for name in ("embed", "layer0.o_proj", "layer1.down_proj"):
        assert local.worker[tasks.tasks_of(name)].tolist() == [0, 1, 2]
    assert len({assign(tasks, policy=p).hash for p in POLICIES}) == len(POLICIES)


def finish(schedule: Schedule) -> float:
    """Seconds until the last task ends when each takes as long as the estimate says."""
    tasks = schedule.tasks
    seconds = task_seconds(tasks)
    free, happened, left = [0.0] * schedule.workers, np.zeros(len(tasks.need)), tasks.need.copy()
    at, end = [0] * schedule.workers, 0.0
    moved = True
    while moved:
        moved = False
        for w, queue in enumerate(schedule.queues):
            while at[w] < len(queue):
                task = int(queue[at[w]])
                events = tasks.wait_event[tasks.wait_first[task] : tasks.wait_first[task + 1]]
                if (left[events] > 0).any():
                    break
                free[w] = max([free[w], *happened[events]]) + seconds[task]
                end = max(end, free[w])
                for event in tasks.signal_event[tasks.signal_first[task] : tasks.signal_first[task + 1]]:
                    left[event] -= 1
                    happened[event] = max(happened[event], free[w])
                at[w] += 1
                moved = True
    return end


def test_list_scheduling_is_no_slower_by_its_own_estimate() -> None:
    tasks = lower(
        decode_graph(TINY.with_(hidden=256, intermediate=640), context=64), Machine.cpu(4), tiles={"linear": 48}
    )
    listed = finish(assign(tasks, policy="list_scheduling"))
    bound = max(task_seconds(tasks).sum() / 4, task_seconds(tasks).max())
    assert bound <= listed <= 1.001 * min(finish(assign(tasks, policy=p)) for p in POLICIES)


def test_a_policy_of_ones_own() -> None:
    tasks = tiny()

    def all_on_the_last(tasks: TaskGraph, workers: int) -> list[int]:
        return [workers - 1] * len(tasks)

    def queues(tasks: TaskGraph, workers: int) -> list[list[int]]:
        return [list(range(len(tasks))), *([] for _ in range(workers - 1))]

    schedule = verify(assign(tasks, policy=all_on_the_last))
    assert schedule.policy == "all_on_the_last" and set(schedule.worker) == {2}
    assert verify(assign(tasks, policy=queues, workers=2)).queues[0].tolist() == list(range(len(tasks)))


@pytest.mark.parametrize(
    "keywords, says",
    [
        ({"policy": "localty"}, "unknown policy 'localty': did you mean 'locality'"),
        ({"mode": "statick"}, "unknown mode 'statick': did you mean 'static'"),
        ({"workers": 0}, "workers must be a positive number, not 0"),
        ({"workers": 2.0}, "workers must be a positive number, not 2.0"),
        ({"policy": lambda tasks, workers: [workers] * len(tasks)}, "used workers 3 to 3; there are 3"),
        ({"policy": lambda tasks, workers: [[0, 0], [1]]}, r"embed\[0\] is queued twice, on workers 0 and 0"),
        ({"policy": lambda tasks, workers: [[0, 999]]}, "is given task 999"),
        ({"policy": lambda tasks, workers: [[0], [1]]}, "tasks are on no queue, the first is"),
    ],
)
def test_mistakes_get_one_clear_error(keywords: dict[str, Any], says: str) -> None:
    with pytest.raises(ScheduleError, match=says):
        assign(tiny(), **keywords)


# --- tables and files ------------------------------------------------------------------------------------------------


def test_a_table_makes_the_schedule_again() -> None:
    tasks = tiny()
    schedule = assign(tasks, policy="zigzag")
    table = schedule.to_pandas()
    assert list(table.columns[:3]) == ["worker", "position", "task"] and len(table) == len(tasks)
    again = Schedule.from_pandas(tasks, table.sample(frac=1, random_state=1))
    assert again.worker.tolist() == schedule.worker.tolist() and again.position.tolist() == schedule.position.tolist()
    assert again.policy == "table"


def test_an_edited_table_is_proved_again() -> None:
    tasks = tiny()
    table = verify(assign(tasks)).to_pandas()
    last = table.task == tasks.step_task
    table.loc[last, "position"] = -1  # to the front of its queue
    with pytest.raises(ScheduleError, match="would hang"):
        verify(Schedule.from_pandas(tasks, table))
    table.loc[last, ["worker", "position"]] = [2, 10_000]  # positions need only be in order
    verify(Schedule.from_pandas(tasks, table))
    assert Schedule.from_pandas(tasks, table, workers=5).workers == 5
    for broken, says in ((table.drop(columns="task"), r"lacks the columns \['task'\]"), (table[1:], "on no queue")):
        with pytest.raises(ScheduleError, match=says):
            Schedule.from_pandas(tasks, broken)
    with pytest.raises(ScheduleError, match="is put on worker 2; there are 2"):
        Schedule.from_pandas(tasks, table, workers=2)


def test_files(tmp_path: Path) -> None:
    tasks = tiny()
    schedule = assign(tasks, policy="list_scheduling")
    schedule.save(tmp_path / "schedule.npz")
    again = Schedule.load(tmp_path / "schedule.npz", tasks)
    assert again.hash == schedule.hash and again.policy == "list_scheduling" and not again.verified
    (tmp_path / "other").write_bytes(b"nothing")
    for file, graph, says in (
        ("other", tasks, "is not a saved schedule"),
        ("schedule.npz", tiny(2), "has 40 tasks, the task graph"),
    ):
        with pytest.raises(ScheduleError, match=says):
            Schedule.load(tmp_path / file, graph)


# --- hand-offs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_a_wait_on_ones_own_worker_costs_nothing(workers: int) -> None:
    """`worker` exactly where every signaller stands earlier on the consumer's own queue."""
    tasks = tiny(workers)
    schedule = assign(tasks)
    place = {int(t): (w, i) for w, q in enumerate(schedule.queues) for i, t in enumerate(q)}
    for task in range(len(tasks)):
        for i in range(tasks.wait_first[task], tasks.wait_first[task + 1]):
            at = np.flatnonzero(tasks.signal_event == tasks.wait_event[i])
            signallers = np.searchsorted(tasks.signal_first, at, "right") - 1
            own = all(place[int(s)][0] == place[task][0] and place[int(s)] < place[task] for s in signallers)
            assert (schedule.handoff[i] == Handoff.worker) == own
    if workers == 1:
        assert (schedule.handoff == Handoff.worker).all()


def test_hashes_tell_schedules_apart() -> None:
    tasks = tiny()
    queues = [q.tolist() for q in assign(tasks).queues]
    same = from_queues(tasks, queues)
    assert same.hash == assign(tasks).hash
    queues[0][0], queues[1][0] = queues[1][0], queues[0][0]
    assert from_queues(tasks, queues).hash != same.hash
    assert replace(same, workers=4).hash != same.hash


@pytest.mark.parametrize("call", [lambda s: s.queues, lambda s: s.handoff, lambda s: s.hash])
def test_derived_values_are_kept(call: Callable[[Schedule], object]) -> None:
    schedule = assign(tiny())
    assert call(schedule) is call(schedule)
