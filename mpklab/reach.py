"""What surely ended before a task starts where tasks are handed out at run time, and who can block whom for ever.

Nothing is assumed about who stands at the pool when, nor about the order of pops. Why that is enough:

1. Holding is harmless. Of all tasks popped and not ended the one popped first has nothing before it on its worker, and
   what it waits for was popped before it and has ended. So where nobody can go on, nobody holds a task; and whatever
   early push and popping ahead can do, popping later from the same drain can do. A state is what has ended and where
   each worker stands.
2. Waits, queues and drains put tasks in an order (`reach`). A circle in it hangs. Without one, say nobody can go on. The
   first unfinished task is not of a queue, or its worker could come to it and run it: it is of the pool, and all who
   serve its ring stand outside drains. So there is a set of workers each of which waits, in its queue, for a task that
   has not ended, of a ring that only workers of the set serve (`Stand`).
3. One ring for all: the set is everyone. If the stands p hang and the stands q hang, then so does the earlier stand of
   each worker, where less has ended. So walking on whoever misses nothing finds the first such state or shows that
   there is none. It is reached by running just what must end before; if that stops early, all stand outside drains, and
   it hangs there. The verdict is exact.
4. A ring for each: the set can be thinned to a circle of workers, each missing a task of the next one's ring. The same
   walk looks at one circle after another. To find a circle whose stands go together is NP-hard: let each clause of a
   formula be a worker that waits for tasks of the rings of its literals' workers, each of those wait for the next
   clause's ring, after a drain that runs the tasks of all literals that contradict it; it hangs if and only if the
   formula can be satisfied. So a circle whose stands no run reaches together, or more than TRIALS paths, is refused too.
5. A task of the pool runs in some drain. So it comes after all that ended before each drain where it can still run
   (`sharpened`), which sharpens the order, which sharpens that. Orders that only several drains together enforce stay
   unseen.

How often 4 and 5 refuse what no order of pops can harm is measured in tests/test_dynamic.py; profiles/LOG.md has it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mpklab.abi import Handoff
from mpklab.schedule import Schedule

Clock = npt.NDArray[np.int32]  # entries of each worker's queue
TRIALS = 10_000  # paths of workers that are looked at for a circle


@dataclass(frozen=True, slots=True)
class Stand:
    """A place where a worker may wait outside a drain for tasks of the pool, none of which it can run meanwhile."""

    task: int  # of its queue
    position: int
    ended: int  # tasks of the pool that ended before the worker comes to it, as bits
    clock: Clock  # entries of queues that did
    missing: int  # tasks of the pool that it waits for besides, as bits


@dataclass(frozen=True, slots=True)
class Opening:
    """The first drain at a position of a queue, and what ended before the worker comes to it."""

    position: int
    ended: int
    clock: Clock


@dataclass(frozen=True)
class Reach:
    """What surely ended before each task starts.

    ended: tasks of the pool, as bits (by their place in `Schedule.pool`) · clock: entries of each worker's queue, int32
    [task, worker] (one column if all tasks are of the pool) · stands, openings: of each worker, in queue order.
    """

    ended: list[int]
    clock: Clock
    stands: list[list[Stand]]
    openings: list[list[Opening]]


Floors = dict[int, tuple[int, tuple[int, ...]]]  # of tasks of the pool: what ended before, bits and clock


def counted(schedule: Schedule) -> npt.NDArray[np.bool_]:
    """The waits of the same iteration that somebody must signal; nobody hands out what waits for no signal at all."""
    tasks = schedule.tasks
    consumer = np.repeat(np.arange(len(tasks)), np.diff(tasks.wait_first))
    signalled = (tasks.need[tasks.wait_event] > 0) | (schedule.worker[consumer] < 0)
    return (tasks.wait_lag == 0) & (schedule.handoff != Handoff.worker) & signalled


def reach(schedule: Schedule, order: list[int], floors: Floors) -> Reach:
    """Follow the events, drains and queues of one iteration, task after task in `order`."""
    tasks, queues, workers = schedule.tasks, schedule.queues, schedule.workers
    n = len(tasks)
    bit = {int(task): 1 << i for i, task in enumerate(schedule.pool)}
    mixed = len(bit) < n
    width = workers if mixed else 1
    before, start = [0] * n, np.zeros((n, width), np.int32)
    same: dict[tuple[int, ...], int] = {}  # one integer for all tasks with equal waits: they are compared by identity
    event_pool, event_clock = [0] * len(tasks.need), np.zeros((len(tasks.need), width), np.int32)
    known_pool, known = [0] * workers, np.zeros((workers, width), np.int32)
    wait_first, signal_first = tasks.wait_first.tolist(), tasks.signal_first.tolist()
    wait_event = np.where(counted(schedule), tasks.wait_event, -1).tolist()
    signal_event, worker, position = tasks.signal_event.tolist(), schedule.worker.tolist(), schedule.position.tolist()
    stands: list[list[Stand]] = [[] for _ in range(workers)]
    openings: list[list[Opening]] = [[] for _ in range(workers)]
    drains: dict[int, list[int]] = {}
    for queue, row in zip(queues, schedule.drains, strict=True):
        for drain in row[:-1]:
            if drain.position < len(queue):
                drains.setdefault(int(queue[drain.position]), []).append(drain.event)
    for task in order:
        w = worker[task]
        waits = [e for e in wait_event[wait_first[task] : wait_first[task + 1]] if e >= 0]
        if w >= 0:
            ended, clock = known_pool[w], known[w]
            if task in drains:
                openings[w].append(Opening(position[task], ended, clock.copy()))
            for event in drains.get(task, ()):
                ended |= event_pool[event]
                np.maximum(clock, event_clock[event], out=clock)
            awaited = ended
            for event in waits:
                awaited |= event_pool[event]
            if awaited != ended:
                stands[w].append(Stand(task, position[task], ended, clock.copy(), awaited & ~ended))
                ended = awaited
            for event in waits:
                np.maximum(clock, event_clock[event], out=clock)
            start[task], known_pool[w] = clock, ended
            clock[w] = position[task] + 1
        else:
            floor, floor_clock = floors.get(task, (0, ()))
            key = (floor, *waits)
            if key not in same:
                ended = floor
                for event in waits:
                    ended |= event_pool[event]
                same[key] = ended
            ended, clock = same[key], start[task]
            if floor_clock:
                clock[:] = floor_clock
            for event in waits if mixed else ():
                np.maximum(clock, event_clock[event], out=clock)
        before[task] = ended
        ended |= bit.get(task, 0)
        for event in signal_event[signal_first[task] : signal_first[task + 1]]:
            event_pool[event] |= ended
            if mixed:
                np.maximum(event_clock[event], clock, out=event_clock[event])
    for w, queue in enumerate(queues):
        openings[w].append(Opening(len(queue), known_pool[w], known[w]))
    return Reach(before, start, stands, openings)


def sharpened(floors: Floors, schedule: Schedule, known: Reach) -> Floors:
    """What ended before a task of the pool starts, whoever runs it in whichever drain; tasks without any are left out.

    Only ever more than `floors`, from which `known` was worked out: a task that no drain can run any more keeps its own.
    """
    if not any(o.ended or o.clock.any() for row in known.openings for o in row):
        return floors
    positions = [[o.position for o in row] for row in known.openings]
    found = dict(floors)
    for i, task in enumerate(schedule.pool.tolist()):
        ended, clock = -1, None
        for w in _servers(schedule, task):
            opening = known.openings[w][bisect_left(positions[w], known.clock[task, w])]
            if opening.ended >> i & 1:
                continue  # the worker does not come here before the task has ended
            ended &= opening.ended
            clock = opening.clock if clock is None else np.minimum(clock, opening.clock)
            if not ended and not clock.any():
                break
        if clock is not None and (ended or clock.any()):
            found[task] = ended, tuple(clock.tolist())
    return found


def _servers(schedule: Schedule, task: int) -> Sequence[int]:
    """The workers that can take a task of the pool."""
    assert schedule.handout is not None and schedule.home is not None
    return range(schedule.workers) if schedule.handout.pool == "central" else (int(schedule.home[task]),)


def standstill(schedule: Schedule, known: Reach) -> list[Stand]:
    """Stands of workers that wait there for each other's rings for ever; none where that is impossible.

    With one ring somebody who pops late does come to hang there; with more that is likely, not proven.
    """
    assert schedule.handout is not None and schedule.home is not None
    stands, workers = known.stands, range(schedule.workers)
    if schedule.handout.pool == "central":
        return _walk_on(stands, dict.fromkeys(workers, -1)) if all(stands) else []
    rings = [0] * schedule.workers
    for i, home in enumerate(schedule.home[schedule.pool].tolist()):
        rings[home] |= 1 << i
    after = {w: [h for h in workers if any(s.missing & rings[h] for s in stands[w])] for w in workers}
    while ends := [w for w, to in after.items() if not to]:
        after = {w: [h for h in to if h not in ends] for w, to in after.items() if to}
    paths: list[tuple[int, ...]] = [(w,) for w in after]  # a circle is looked for from its lowest worker
    for _ in range(TRIALS):
        if not paths:
            return []
        path = paths.pop()
        if path[0] in after[path[-1]]:
            following = (*path[1:], path[0])
            if found := _walk_on(stands, {w: rings[h] for w, h in zip(path, following, strict=True)}):
                return found
        paths += [(*path, h) for h in after[path[-1]] if h > path[0] and h not in path]
    return [stands[w][0] for w in after]


def _walk_on(stands: list[list[Stand]], rings: dict[int, int]) -> list[Stand]:
    """The first stands where each of these workers misses a task of its ring (bits); none: one of them gets through."""
    at = dict.fromkeys(rings, 0)
    while True:
        here = {w: stands[w][i] for w, i in at.items()}
        ended, clock = 0, np.zeros(len(stands), np.int32)
        for stand in here.values():
            ended |= stand.ended
            np.maximum(clock, stand.clock, out=clock)
        missing = {w: 0 if s.position < clock[w] else s.missing & rings[w] & ~ended for w, s in here.items()}
        passing = [w for w, tasks in missing.items() if not tasks]
        if not passing:
            return [replace(s, missing=missing[w]) for w, s in here.items()]
        for w in passing:
            at[w] += 1
            if at[w] == len(stands[w]):
                return []
