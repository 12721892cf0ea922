"""Who runs what, in which order: queues made by a policy beforehand, pools from which idle workers take, or both."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpklab.abi import MAX_HELD, Handoff
from mpklab.errors import ScheduleError, answers_slips, suggest
from mpklab.ops import REGISTRY
from mpklab.presented import Presented
from mpklab.tasks import TaskGraph

IntArray = npt.NDArray[np.int64]
Policy = Callable[[TaskGraph, int], Any]
POLICIES: dict[str, Policy] = {}
MODES = ("static", "dynamic", "hybrid")
POOLS = ("central", "per_worker")
PRIORITIES = ("fifo", "critical_path")
CLASSES = 4  # of priority; a ring each
ITERATION = -1  # as a drain's event: until the iteration is over


@dataclass(frozen=True, slots=True)
class Handout:
    """How tasks of the pool reach workers at run time.

    pool: one `central` queue, or one `per_worker`, which then takes the tasks that have their home there. early_push: a
    task is handed out when all it waits for were popped, not when they are done, and waits itself. pop_ahead: tasks
    that a worker takes beyond the one it runs. priority: `fifo`, or `critical_path`: tasks with less slack first.
    """

    pool: str = "central"
    early_push: bool = False
    pop_ahead: int = 0
    priority: str = "fifo"

    def __post_init__(self) -> None:
        for what, value, known in (("pool", self.pool, POOLS), ("priority", self.priority, PRIORITIES)):
            if value not in known:
                raise ScheduleError(f"unknown {what} {value!r}: {suggest(value, known)}")
        if not isinstance(self.pop_ahead, int) or not 0 <= self.pop_ahead < MAX_HELD:
            raise ScheduleError(f"pop_ahead must be a count from 0 to {MAX_HELD - 1}, not {self.pop_ahead!r}")

    @property
    def classes(self) -> int:
        """Rings of one queue."""
        return CLASSES if self.priority == "critical_path" else 1


@dataclass(frozen=True, slots=True)
class Drain:
    """Before the static task of its position a worker runs tasks of the pool until an event has happened."""

    position: int
    event: int = ITERATION


@dataclass(frozen=True, repr=False)
class Schedule(Presented):
    """A worker and a queue position for every task, or -1 and -1 for a task of the pool, which any worker may take.

    `handoff` says, per wait, how the consumer learns of the event. Where there is a pool: `handout` says how its tasks
    reach workers, `home` (per task, -1 for those in queues) whose ring a task is pushed to, `drains` where each
    worker's queue turns to the pool; the last is always until the iteration is over. Iterations then follow one another
    as a whole. Only `verify` sets `verified`; a schedule made from a verified one by `dataclasses.replace` has to be
    proved again.
    """

    tasks: TaskGraph
    mode: str
    policy: str
    workers: int
    worker: IntArray
    position: IntArray
    handout: Handout | None = None
    home: IntArray | None = None
    drains: tuple[tuple[Drain, ...], ...] = ()
    verified: bool = field(default=False, init=False, compare=False)

    @cached_property
    def pool(self) -> IntArray:
        """Task ids of the pool, in order."""
        return np.flatnonzero(self.worker < 0)

    @cached_property
    def ring(self) -> IntArray:
        """The ring of every task of the pool: queues by worker, each with its classes by falling priority; else -1."""
        if self.handout is None or self.home is None:
            return np.full(len(self.tasks), -1, np.int64)
        queue = self.home if self.handout.pool == "per_worker" else np.zeros_like(self.home)
        urgency = _classes(self.tasks) if self.handout.priority == "critical_path" else 0
        return np.where(self.worker < 0, queue * self.handout.classes + urgency, -1)

    @property
    def n_rings(self) -> int:
        """How many rings hold the tasks that are handed out at run time: 0 in a static schedule."""
        if self.handout is None:
            return 0
        return self.handout.classes * (self.workers if self.handout.pool == "per_worker" else 1)

    def place(self, task: int) -> str:
        """Where a task stands, in words."""
        worker = self.worker[task]
        return f"worker {worker}, position {self.position[task]}" if worker >= 0 else "of the pool"

    def first_ring(self, worker: int) -> int:
        """The first of the rings that a worker pops from."""
        assert self.handout is not None
        return worker * self.handout.classes if self.handout.pool == "per_worker" else 0

    @cached_property
    def queues(self) -> tuple[IntArray, ...]:
        """Task ids of each worker's queue, in order."""
        order = np.lexsort((self.position, self.worker))[len(self.pool) :]
        cuts = np.cumsum(np.bincount(self.worker[order], minlength=self.workers))[:-1]
        return tuple(np.split(order, cuts))

    @cached_property
    def by_words(self) -> npt.NDArray[np.bool_]:
        """Per operator, whether its outputs are handed over by their own words.

        As the plan says, in a static schedule for a GPU. A word orders nothing but itself, and its place is used again
        two iterations later; so every worker's last task must lead to the step by counters. Where it does not, all is
        handed over by counters.
        """
        t = self.tasks
        chosen = np.array([t.plan.handoffs.get(o.name) == "data" for o in t.operators], bool)
        impossible = self.handout is not None or t.machine.backend == "cpu" or t.step_task < 0 or t.plan.barriers
        if impossible or not chosen.any():
            return np.zeros_like(chosen)
        consumer = np.repeat(np.arange(len(t)), np.diff(t.wait_first))
        signaller = np.repeat(np.arange(len(t)), np.diff(t.signal_first))
        leads = np.zeros(len(t), bool)
        leads[t.step_task] = True
        counted = np.zeros(len(t.need), bool)  # by a task that leads to the step
        for o in reversed(range(len(t.operators))):
            first, last = int(t.first[o]), int(t.first[o + 1])
            signals = slice(int(t.signal_first[first]), int(t.signal_first[last]))
            waits = slice(int(t.wait_first[first]), int(t.wait_first[last]))
            leads[signaller[signals][counted[t.signal_event[signals]]]] = True
            events = t.wait_event[waits][leads[consumer[waits]]]
            counted[events[~chosen[t.event_producer[events]]]] = True
        ends = [int(queue[-1]) for queue in self.queues if len(queue)]
        return chosen if leads[ends].all() else np.zeros_like(chosen)

    @cached_property
    def handed(self) -> tuple[str, ...]:
        """The tensors that are handed over by their own words."""
        return tuple(
            o.operands[name]
            for o, chosen in zip(self.tasks.operators, self.by_words, strict=True)
            for name in REGISTRY.ops[o.op].outputs()
            if chosen and name in o.operands
        )

    @cached_property
    def handoff(self) -> npt.NDArray[np.uint8]:
        """abi.Handoff of every wait: `worker` where all producers run earlier on the consumer's own worker, `data` where
        words say themselves when they are there."""
        t = self.tasks
        lowest, highest, last = self._event_places
        consumer = np.repeat(np.arange(len(t)), np.diff(t.wait_first))
        e = t.wait_event
        own = (lowest[e] == highest[e]) & (lowest[e] == self.worker[consumer]) & (lowest[e] >= 0)
        own &= (t.wait_lag == 1) | (last[e] < self.position[consumer])
        kind = np.where(self.by_words[t.event_producer[e]], int(Handoff.data), int(Handoff.counter))
        return np.where(own, int(Handoff.worker), kind).astype(np.uint8)

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
        """16 hexadecimal digits of graph, plan, mode, workers and every place in a queue."""
        digest = hashlib.sha256(f"{self.tasks.graph.hash} {self.tasks.plan.hash} {self.mode} {self.workers}".encode())
        digest.update(self.worker.tobytes())
        digest.update(self.position.tobytes())
        if self.handout is not None and self.home is not None:
            digest.update(self.home.tobytes())
            digest.update(repr((self.handout, self.drains)).encode())
        return digest.hexdigest()[:16]

    def to_pandas(self) -> Any:
        """The queues as a table: worker, position, task, operator; tasks of a pool have worker and position -1.

        Edit it and give it to `from_pandas`.
        """
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
        if (table["worker"] < 0).any():
            raise ScheduleError("the table has tasks of a pool (worker -1): assign(…, mode=…) makes such schedules")
        count = workers or int(table["worker"].max()) + 1
        queues: list[list[int]] = [[] for _ in range(count)]
        for row in table.sort_values(["worker", "position"]).itertuples():
            if not 0 <= int(row.worker) < count:
                raise ScheduleError(f"task {row.task} is put on worker {row.worker}; there are {count}")
            queues[int(row.worker)].append(int(row.task))
        return from_queues(tasks, queues, policy="table")

    def save(self, path: str | Path) -> None:
        """Queues as npy beside what they were made of, in one zip."""
        head: dict[str, Any] = {"mode": self.mode, "policy": self.policy, "workers": self.workers}
        arrays = {"worker": self.worker, "position": self.position}
        if self.handout is not None and self.home is not None:
            head["handout"] = asdict(self.handout)
            head["drains"] = [[[d.position, d.event] for d in row] for row in self.drains]
            arrays["home"] = self.home
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
            z.writestr("schedule.json", json.dumps(head))
            for name, array in arrays.items():
                with z.open(f"{name}.npy", "w") as f:
                    np.save(f, array)

    @staticmethod
    def load(path: str | Path, tasks: TaskGraph) -> Schedule:
        """The saved queues over a task graph."""
        try:
            with zipfile.ZipFile(path) as z:
                head = json.loads(z.read("schedule.json"))
                arrays = {}
                for name in ("worker", "position", *(["home"] if "handout" in head else [])):
                    with z.open(f"{name}.npy") as f:
                        arrays[name] = np.lib.format.read_array(f, allow_pickle=False)
            handout = Handout(**head["handout"]) if "handout" in head else None
            drains = tuple(tuple(Drain(*d) for d in row) for row in head.get("drains", ()))
            mode, policy, workers = str(head["mode"]), str(head["policy"]), int(head["workers"])
        except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise ScheduleError(f"{path} is not a saved schedule: {error}") from error
        return checked(
            Schedule(
                tasks,
                mode,
                policy,
                workers,
                arrays["worker"],
                arrays["position"],
                handout,
                arrays.get("home"),
                drains,
            )
        )

    def __str__(self) -> str:
        if self.handout is not None:
            how = ", ".join(
                [self.handout.pool]
                + ["early push"] * self.handout.early_push
                + [f"{self.handout.pop_ahead} popped ahead"] * bool(self.handout.pop_ahead)
                + ["by critical path"] * (self.handout.priority != "fifo")
            )
            return (
                f"Schedule {self.mode}/{self.policy}: {len(self.tasks)} tasks on {self.workers} workers, "
                f"{len(self.pool)} handed out at run time ({how}){', verified' if self.verified else ''}"
            )
        load = np.bincount(self.worker, weights=self.tasks.bytes, minlength=self.workers)
        spread = load.max() / load.mean() if load.mean() else 1.0
        return (
            f"Schedule {self.mode}/{self.policy}: {len(self.tasks)} tasks on {self.workers} workers, "
            f"most loaded worker {spread:.3f} × the mean in bytes{', verified' if self.verified else ''}"
        )


@answers_slips(ScheduleError)
def assign(
    tasks: TaskGraph,
    mode: str = "static",
    policy: str | Policy | None = None,
    workers: int | None = None,
    *,
    dynamic: Sequence[str] = (),
    pool: str | None = None,
    early_push: bool = False,
    pop_ahead: int | None = None,
    priority: str = "fifo",
) -> Schedule:
    """Decide for every task who runs it when, or that this is decided at run time.

    static: `policy` (default locality) is a name in POLICIES or a function (tasks, workers) → a worker per task (order:
    task id), or a sequence of task ids per worker. dynamic: every task is handed out once it is ready; `policy` is
    central (the default: one queue for all), per_worker, or a static policy, which says whose queue each task is pushed
    to (per_worker: by locality). hybrid: operators named in `dynamic`, by name or kind, are handed out from a `pool`
    (central or per_worker), the others stand in queues by a static policy. `early_push`, `pop_ahead` (default 1 on a
    GPU, whose loader works ahead, else 0) and `priority` are those of `Handout`. ScheduleError for what does not fit.
    """
    if mode not in MODES:
        raise ScheduleError(f"unknown mode {mode!r}: {suggest(mode, MODES)}")
    count = tasks.machine.workers if workers is None else workers
    if not isinstance(count, int) or count < 1:
        raise ScheduleError(f"workers must be a positive number, not {count!r}")
    if mode == "static":
        asked = {"dynamic": dynamic, "pool": pool, "early_push": early_push, "pop_ahead": pop_ahead}
        for name, given in {**asked, "priority": priority != "fifo"}.items():
            if given:
                raise ScheduleError(f"{name} is for mode='dynamic' or 'hybrid': a static schedule hands out nothing")
        return _static(tasks, policy or "locality", count)
    ahead = int(tasks.machine.backend != "cpu") if pop_ahead is None else pop_ahead
    if mode == "dynamic":
        if dynamic or pool:
            raise ScheduleError(
                f"{'dynamic' if dynamic else 'pool'} is for mode='hybrid'; in mode='dynamic' every task is of the pool, "
                "and policy says which queues there are"
            )
        policy = policy or "central"
        if isinstance(policy, str) and policy not in (*POOLS, *POLICIES):
            raise ScheduleError(f"unknown policy {policy!r}: {suggest(policy, [*POOLS, *POLICIES])}")
        handout = Handout("central" if policy == "central" else "per_worker", early_push, ahead, priority)
        homes = _static(tasks, "locality" if policy in POOLS else policy, count)
        nowhere = np.full(len(tasks), -1, np.int64)
        name = policy if isinstance(policy, str) else homes.policy
        drains = ((Drain(0),),) * count
        return Schedule(tasks, mode, name, count, nowhere, nowhere, handout, homes.worker, drains)
    handout = Handout(pool or "central", early_push, ahead, priority)
    base = _static(tasks, policy or "locality", count)
    return hand_out(base, dynamic, handout)


def _static(tasks: TaskGraph, policy: str | Policy, count: int) -> Schedule:
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
        return Schedule(tasks, "static", name, count, worker, position)
    return from_queues(tasks, made, name)


def hand_out(base: Schedule, dynamic: Sequence[str], handout: Handout) -> Schedule:
    """A hybrid schedule: the static one without the operators named, which idle workers take from a pool."""
    tasks = base.tasks
    if isinstance(dynamic, str):
        dynamic = (dynamic,)
    known = list(dict.fromkeys([o.op for o in tasks.operators] + [o.name for o in tasks.operators]))
    for name in dynamic:
        if name not in known:
            raise ScheduleError(f"dynamic: no operator or kind {name!r}: {suggest(name, known)}")
    if not dynamic:
        raise ScheduleError("mode='hybrid' needs dynamic=(…), the operators to hand out, by name or kind")
    chosen = np.array([o.op in dynamic or o.name in dynamic for o in tasks.operators], bool)
    pooled = chosen[tasks.operator_of] if len(tasks) else np.zeros(0, bool)
    queues = [q[~pooled[q]] for q in base.queues]
    worker, position = np.where(pooled, -1, base.worker), np.full(len(tasks), -1, np.int64)
    for queue in queues:
        position[queue] = np.arange(len(queue))
    home = np.where(pooled, base.worker, -1)
    drains = _drains(tasks, queues, pooled)
    return Schedule(tasks, "hybrid", base.policy, base.workers, worker, position, handout, home, drains)


def _drains(
    tasks: TaskGraph, queues: Sequence[IntArray], pooled: npt.NDArray[np.bool_]
) -> tuple[tuple[Drain, ...], ...]:
    """Where each worker turns to the pool: before the first task that an event of pool tasks leads to, however far.

    So whoever waits outside a drain waits for tasks of queues alone, and nobody is missing at the pool.
    """
    n_events = len(tasks.need)
    first_of = np.zeros(n_events, bool)
    first_of[tasks.signal_event] = pooled[np.repeat(np.arange(len(tasks)), np.diff(tasks.signal_first))]
    number = (np.cumsum(first_of) - 1).tolist()  # of the events that pool tasks signal
    events = np.flatnonzero(first_of).tolist()
    behind = [1 << number[e] if of_pool else 0 for e, of_pool in enumerate(first_of.tolist())]
    met = [0] * len(queues)
    found: list[list[Drain]] = [[] for _ in queues]
    place = {int(task): (w, i) for w, queue in enumerate(queues) for i, task in enumerate(queue)}
    for task in in_order(tasks, queues):
        at = slice(int(tasks.wait_first[task]), int(tasks.wait_first[task + 1]))
        need = 0
        for event in tasks.wait_event[at][tasks.wait_lag[at] == 0].tolist():
            need |= behind[event]
        if task in place:
            w, position = place[task]
            new = need & ~met[w]
            met[w] |= need
            need = met[w]
            while new:
                found[w].append(Drain(position, events[(new & -new).bit_length() - 1]))
                new &= new - 1
        for event in tasks.signal_event[tasks.signal_first[task] : tasks.signal_first[task + 1]].tolist():
            behind[event] |= need
    return tuple((*row, Drain(len(queue))) for row, queue in zip(found, queues, strict=True))


def in_order(
    tasks: TaskGraph,
    queues: Sequence[IntArray],
    drains: Sequence[Sequence[Drain]] = (),
    counted: npt.NDArray[np.bool_] | None = None,
) -> list[int]:
    """Task ids so that each comes after all that it waits for in its iteration, drains and its queue's earlier tasks
    among them. Those that wait for each other in a circle are left out. `counted`: the waits that matter (default all).
    """
    n = len(tasks)
    same = (tasks.wait_lag == 0) & (True if counted is None else counted)
    consumer = np.repeat(np.arange(n), np.diff(tasks.wait_first))
    missing = np.bincount(consumer[same], minlength=n).tolist()
    waiting: list[list[int]] = [[] for _ in tasks.need]
    for event, task in zip(tasks.wait_event[same].tolist(), consumer[same].tolist(), strict=True):
        waiting[event].append(task)
    after = [-1] * n
    for w, queue in enumerate(queues):
        ids = queue.tolist()
        for a, b in itertools.pairwise(ids):
            after[a] = b
            missing[b] += 1
        for drain in drains[w] if drains else ():
            if drain.position < len(ids) and drain.event != ITERATION and tasks.need[drain.event] > 0:
                waiting[drain.event].append(ids[drain.position])
                missing[ids[drain.position]] += 1
    left = tasks.need.tolist()
    signal_first, signal_event = tasks.signal_first.tolist(), tasks.signal_event.tolist()
    order = [task for task in range(n) if missing[task] == 0]
    for task in order:  # grows as it is walked
        ready = [after[task]] if after[task] >= 0 else []
        for event in signal_event[signal_first[task] : signal_first[task + 1]]:
            left[event] -= 1
            if left[event] == 0:
                ready += waiting[event]
        for other in ready:
            missing[other] -= 1
            if missing[other] == 0:
                order.append(other)
    return order


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
    """The schedule, if its arrays are queues and a pool: every task once, positions in order; else ScheduleError."""
    tasks = schedule.tasks
    if len(schedule.worker) != len(tasks):
        raise ScheduleError(f"the schedule has {len(schedule.worker)} tasks, the task graph {len(tasks)}")
    if schedule.handout is None:
        missing = np.flatnonzero(schedule.worker < 0)
        if len(missing):
            raise ScheduleError(
                f"{len(missing)} tasks are on no queue, the first is {tasks.task_name(int(missing[0]))}"
            )
    else:
        _check_pool(schedule)
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


def _check_pool(schedule: Schedule) -> None:
    """Every pool task has a ring that somebody empties, and every worker stays until the iteration is over."""
    tasks, home = schedule.tasks, schedule.home
    if home is None or len(home) != len(tasks) or len(schedule.drains) != schedule.workers:
        raise ScheduleError("a schedule with a pool needs a home for every task and drains for every worker")
    lost = schedule.pool[(home[schedule.pool] < 0) | (home[schedule.pool] >= schedule.workers)]
    if len(lost):
        raise ScheduleError(
            f"{tasks.task_name(int(lost[0]))} has its home at worker {home[lost[0]]}; there are {schedule.workers}, from 0"
        )
    for w, (queue, drains) in enumerate(zip(schedule.queues, schedule.drains, strict=True)):
        positions = [d.position for d in drains]
        if not drains or drains[-1] != Drain(len(queue)):
            raise ScheduleError(
                f"worker {w} leaves the pool before the iteration is over: its last drain must stand behind its "
                f"{len(queue)} tasks and last until the iteration is over"
            )
        if positions != sorted(positions) or positions[0] < 0:
            raise ScheduleError(f"worker {w}'s drains stand at positions {positions}; they must not go back")
        for d in drains[:-1]:
            if not 0 <= d.event < len(tasks.need):
                raise ScheduleError(f"worker {w} drains until event {d.event}; there are {len(tasks.need)}, from 0")


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


def _paths(tasks: TaskGraph) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Per task, in seconds: the longest path of events up to its start, and from its start to the end."""
    seconds = task_seconds(tasks)
    before, ahead = np.zeros(len(tasks)), np.zeros(len(tasks))
    event_before, event_ahead = np.zeros(len(tasks.need)), np.zeros(len(tasks.need))
    waits = [tasks.wait_event[a:b] for a, b in zip(tasks.wait_first[:-1], tasks.wait_first[1:], strict=True)]
    lags = [tasks.wait_lag[a:b] for a, b in zip(tasks.wait_first[:-1], tasks.wait_first[1:], strict=True)]
    for task in range(len(tasks)):  # operators stand in order, so successors have higher ids
        now = waits[task][lags[task] == 0]
        before[task] = event_before[now].max(initial=0.0)
        after = tasks.signal_event[tasks.signal_first[task] : tasks.signal_first[task + 1]]
        np.maximum.at(event_before, after, before[task] + seconds[task])
    for task in range(len(tasks) - 1, -1, -1):
        after = tasks.signal_event[tasks.signal_first[task] : tasks.signal_first[task + 1]]
        ahead[task] = seconds[task] + event_ahead[after].max(initial=0.0)
        np.maximum.at(event_ahead, waits[task][lags[task] == 0], ahead[task])
    return before, ahead


def _classes(tasks: TaskGraph) -> IntArray:
    """The class of priority of every task, 0 first: by slack, the time a task may be late without delaying the end.

    Slack compares tasks at any depth, where the length of the path ahead would put everything early before everything
    late. The limits are the quartiles of what is not critical.
    """
    before, ahead = _paths(tasks)
    slack = (before + ahead).max(initial=0.0) - (before + ahead)
    late = np.sort(slack[slack > 1e-12])
    limits = late[[len(late) * i // (CLASSES - 1) for i in range(CLASSES - 1)]] if len(late) else np.zeros(0)
    return np.searchsorted(limits, slack, "right").astype(np.int64)


@_policy
def list_scheduling(tasks: TaskGraph, workers: int) -> list[list[int]]:
    """Graham's list scheduling: by decreasing length of the path still ahead, each task to the first free worker."""
    seconds, (_, ahead) = task_seconds(tasks), _paths(tasks)
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
