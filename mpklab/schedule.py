"""Who runs what, in which order: static queues made by a policy, as plain arrays."""

from __future__ import annotations

import hashlib
import heapq
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpklab.abi import Handoff
from mpklab.errors import ScheduleError, suggest
from mpklab.presented import Presented
from mpklab.tasks import TaskGraph

IntArray = npt.NDArray[np.int64]
Policy = Callable[[TaskGraph, int], Any]
POLICIES: dict[str, Policy] = {}
MODES = ("static",)


@dataclass(frozen=True)
class Schedule(Presented):
    """A worker and a queue position for every task. `handoff` says, per wait, how the consumer learns of the event.

    Only `verify` sets `verified`; a schedule made from a verified one by `dataclasses.replace` has to be proved again.
    """

    tasks: TaskGraph
    mode: str
    policy: str
    workers: int
    worker: IntArray
    position: IntArray
    verified: bool = field(default=False, init=False, compare=False)

    @cached_property
    def queues(self) -> tuple[IntArray, ...]:
        """Task ids of each worker, in order."""
        order = np.lexsort((self.position, self.worker))
        cuts = np.cumsum(np.bincount(self.worker, minlength=self.workers))[:-1]
        return tuple(np.split(order, cuts))

    @cached_property
    def handoff(self) -> npt.NDArray[np.uint8]:
        """abi.Handoff of every wait: `worker` where all producers run earlier on the consumer's own worker."""
        t = self.tasks
        lowest, highest, last = self._event_places
        consumer = np.repeat(np.arange(len(t)), np.diff(t.wait_first))
        e = t.wait_event
        own = (lowest[e] == highest[e]) & (lowest[e] == self.worker[consumer])
        own &= (t.wait_lag == 1) | (last[e] < self.position[consumer])
        return np.where(own, int(Handoff.worker), int(Handoff.counter)).astype(np.uint8)

    @cached_property
    def _event_places(self) -> tuple[IntArray, IntArray, IntArray]:
        """Per event: lowest and highest worker among its signallers, and their last position."""
        t = self.tasks
        n = len(t.need)
        signaller = np.repeat(np.arange(len(t)), np.diff(t.signal_first))
        lowest, highest, last = np.full(n, self.workers, np.int64), np.full(n, -1, np.int64), np.full(n, -1, np.int64)
        np.minimum.at(lowest, t.signal_event, self.worker[signaller])
        np.maximum.at(highest, t.signal_event, self.worker[signaller])
        np.maximum.at(last, t.signal_event, self.position[signaller])
        return lowest, highest, last

    @cached_property
    def hash(self) -> str:
        digest = hashlib.sha256(f"{self.tasks.graph.hash} {self.tasks.plan.hash} {self.mode} {self.workers}".encode())
        digest.update(self.worker.tobytes())
        digest.update(self.position.tobytes())
        return digest.hexdigest()[:16]

    def to_pandas(self) -> Any:
        """The queues as a table: worker, position, task, operator. Edit it and give it to `from_pandas`."""
        import pandas as pd

        order = np.lexsort((self.position, self.worker))
        names = np.array([o.name for o in self.tasks.operators], object)
        return pd.DataFrame(
            {
                "worker": self.worker[order],
                "position": self.position[order],
                "task": order,
                "operator": names[self.tasks.operator_of[order]],
            }
        )

    @staticmethod
    def from_pandas(tasks: TaskGraph, table: Any, workers: int | None = None) -> Schedule:
        """A schedule from columns worker, position, task; positions only need to be in order within a worker."""
        missing = {"worker", "position", "task"} - set(table.columns)
        if missing:
            raise ScheduleError(f"the table lacks the columns {sorted(missing)}; it needs worker, position and task")
        count = workers or int(table["worker"].max()) + 1
        queues: list[list[int]] = [[] for _ in range(count)]
        for row in table.sort_values(["worker", "position"]).itertuples():
            if not 0 <= int(row.worker) < count:
                raise ScheduleError(f"task {row.task} is put on worker {row.worker}; there are {count}")
            queues[int(row.worker)].append(int(row.task))
        return from_queues(tasks, queues, policy="table")

    def save(self, path: str | Path) -> None:
        """Queues as npy beside what they were made of, in one zip."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
            z.writestr("schedule.json", json.dumps({"mode": self.mode, "policy": self.policy, "workers": self.workers}))
            for name in ("worker", "position"):
                with z.open(f"{name}.npy", "w") as f:
                    np.save(f, getattr(self, name))

    @staticmethod
    def load(path: str | Path, tasks: TaskGraph) -> Schedule:
        """The saved queues over a task graph."""
        try:
            with zipfile.ZipFile(path) as z:
                head = json.loads(z.read("schedule.json"))
                arrays = {}
                for name in ("worker", "position"):
                    with z.open(f"{name}.npy") as f:
                        arrays[name] = np.lib.format.read_array(f, allow_pickle=False)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ScheduleError(f"{path} is not a saved schedule: {error}") from error
        return checked(
            Schedule(tasks, head["mode"], head["policy"], head["workers"], arrays["worker"], arrays["position"])
        )

    def __str__(self) -> str:
        load = np.bincount(self.worker, weights=self.tasks.bytes, minlength=self.workers)
        spread = load.max() / load.mean() if load.mean() else 1.0
        return (
            f"Schedule {self.mode}/{self.policy}: {len(self.tasks)} tasks on {self.workers} workers, "
            f"most loaded worker {spread:.3f} × the mean in bytes{', verified' if self.verified else ''}"
        )


def assign(
    tasks: TaskGraph, mode: str = "static", policy: str | Policy = "locality", workers: int | None = None
) -> Schedule:
    """Give every task a worker and a place in its queue.

    `policy` is a name in POLICIES or a function (tasks, workers) → a worker per task (order: task id), or a sequence of
    task ids per worker.
    """
    if mode not in MODES:
        raise ScheduleError(f"unknown mode {mode!r}: {suggest(mode, MODES)}")
    count = tasks.machine.workers if workers is None else workers
    if not isinstance(count, int) or count < 1:
        raise ScheduleError(f"workers must be a positive number, not {count!r}")
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise ScheduleError(f"unknown policy {policy!r}: {suggest(policy, POLICIES)}")
        name, function = policy, POLICIES[policy]
    else:
        name, function = getattr(policy, "__name__", "custom"), policy
    made = function(tasks, count)
    if len(made) == len(tasks) and (len(tasks) == 0 or np.ndim(made[0]) == 0):
        worker = np.asarray(made, np.int64)
        if len(worker) and not (0 <= worker.min() and worker.max() < count):
            raise ScheduleError(f"policy {name!r} used workers {worker.min()} to {worker.max()}; there are {count}")
        order = np.argsort(worker, kind="stable")
        begin = np.concatenate([[0], np.cumsum(np.bincount(worker, minlength=count))])
        position = np.empty(len(tasks), np.int64)
        position[order] = np.arange(len(tasks)) - begin[worker[order]]
        return Schedule(tasks, mode, name, count, worker, position)
    return from_queues(tasks, made, name)


def from_queues(tasks: TaskGraph, queues: Sequence[Sequence[int]], policy: str = "custom") -> Schedule:
    """A static schedule from a sequence of task ids per worker; every task must appear exactly once."""
    worker, position = np.full(len(tasks), -1, np.int64), np.full(len(tasks), -1, np.int64)
    for w, queue in enumerate(queues):
        for i, task in enumerate(queue):
            if not 0 <= task < len(tasks):
                raise ScheduleError(f"worker {w} is given task {task}; there are {len(tasks)} tasks")
            if worker[task] >= 0:
                raise ScheduleError(f"{tasks.task_name(task)} is queued twice, on workers {worker[task]} and {w}")
            worker[task], position[task] = w, i
    return checked(Schedule(tasks, "static", policy, len(queues), worker, position))


def checked(schedule: Schedule) -> Schedule:
    """The schedule, if its arrays are queues: every task once, every position in order; else ScheduleError."""
    tasks = schedule.tasks
    if len(schedule.worker) != len(tasks):
        raise ScheduleError(f"the schedule has {len(schedule.worker)} tasks, the task graph {len(tasks)}")
    missing = np.flatnonzero(schedule.worker < 0)
    if len(missing):
        raise ScheduleError(f"{len(missing)} tasks are on no queue, the first is {tasks.task_name(int(missing[0]))}")
    if len(tasks) and schedule.worker.max() >= schedule.workers:
        task = int(schedule.worker.argmax())
        raise ScheduleError(
            f"{tasks.task_name(task)} is put on worker {schedule.worker[task]}; there are {schedule.workers}, from 0"
        )
    for w, queue in enumerate(schedule.queues):
        wrong = np.flatnonzero(schedule.position[queue] != np.arange(len(queue)))
        if len(wrong):
            task = int(queue[wrong[0]])
            raise ScheduleError(
                f"{tasks.task_name(task)} is entry {wrong[0]} of worker {w}'s queue, but its position says "
                f"{schedule.position[task]}; positions count 0, 1, 2 … without gaps or repeats"
            )
    return schedule


def _policy(function: Policy) -> Policy:
    POLICIES[function.__name__] = function
    return function


@_policy
def round_robin(tasks: TaskGraph, workers: int) -> IntArray:
    """Task after task, worker after worker."""
    return np.arange(len(tasks), dtype=np.int64) % workers


@_policy
def zigzag(tasks: TaskGraph, workers: int) -> IntArray:
    """Worker 0 to the last and back again, so that neighbours in time share neighbours in place."""
    around = np.arange(len(tasks), dtype=np.int64) % (2 * workers)
    return np.where(around < workers, around, 2 * workers - 1 - around)


@_policy
def locality(tasks: TaskGraph, workers: int) -> IntArray:
    """Tile i of n on worker i · workers / n: equal splits of different operators keep a slice on one worker."""
    tile = np.arange(len(tasks)) - tasks.first[tasks.operator_of]
    count = np.diff(tasks.first)[tasks.operator_of]
    return tile * workers // count


def task_seconds(tasks: TaskGraph) -> npt.NDArray[np.float64]:
    """A first estimate of each task's duration: its bytes or flops at one worker's share of the machine's rates."""
    m = tasks.machine
    moved = tasks.bytes / (m.bandwidth / m.workers)
    computed = tasks.flops / (m.peak_f32 / m.workers)
    return np.maximum(moved, computed) + m.task_overhead_s


@_policy
def list_scheduling(tasks: TaskGraph, workers: int) -> list[list[int]]:
    """Graham's list scheduling: by decreasing length of the path still ahead, each task to the first free worker."""
    seconds = task_seconds(tasks)
    ahead = np.zeros(len(tasks))
    event_ahead = np.zeros(len(tasks.need))
    for task in range(len(tasks) - 1, -1, -1):  # operators stand in order, so successors have higher ids
        after = tasks.signal_event[tasks.signal_first[task] : tasks.signal_first[task + 1]]
        ahead[task] = seconds[task] + (event_ahead[after].max() if len(after) else 0.0)
        row = slice(tasks.wait_first[task], tasks.wait_first[task + 1])
        for event in tasks.wait_event[row][tasks.wait_lag[row] == 0]:
            event_ahead[event] = max(event_ahead[event], ahead[task])
    same = tasks.wait_lag == 0
    consumer = np.repeat(np.arange(len(tasks)), np.diff(tasks.wait_first))
    open_waits = np.bincount(consumer[same], minlength=len(tasks))
    order = np.argsort(tasks.wait_event[same], kind="stable")
    waiting = np.split(
        consumer[same][order], np.cumsum(np.bincount(tasks.wait_event[same], minlength=len(tasks.need)))[:-1]
    )
    missing = tasks.need.copy()
    free = [(0.0, w) for w in range(workers)]
    ready: list[tuple[float, int]] = [(-ahead[t], int(t)) for t in np.flatnonzero(open_waits == 0)]
    heapq.heapify(ready)
    running: list[tuple[float, int, int]] = []
    queues: list[list[int]] = [[] for _ in range(workers)]
    now = 0.0
    while ready or running:
        while ready and free and free[0][0] <= now:
            _, task = heapq.heappop(ready)
            _, w = heapq.heappop(free)
            queues[w].append(task)
            heapq.heappush(running, (now + seconds[task], w, task))
        now, w, task = heapq.heappop(running)
        heapq.heappush(free, (now, w))
        for event in tasks.signal_event[tasks.signal_first[task] : tasks.signal_first[task + 1]]:
            missing[event] -= 1
            if missing[event] == 0:
                for t in waiting[event]:
                    open_waits[t] -= 1
                    if open_waits[t] == 0:
                        heapq.heappush(ready, (-ahead[t], int(t)))
    return queues
