"""Proves, before anything is compiled, that a schedule neither races nor hangs.

A static schedule is executed once on vector clocks for two iterations: a task's clock says, for each worker, how many
entries of its queue surely ended before the task starts (Mattern 1989, Fidge 1988). Then every edge that the boxes
imply is looked up in the clocks. The boxes, not the events, say what must be ordered, so a wrong event cannot hide.

Where tasks are handed out at run time, no order of the pool is known, so only events count: a task comes after another
if the events it waits for lead back to it. Iterations follow one another as a whole there, so one is enough.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mpklab.abi import Handoff
from mpklab.errors import ScheduleError
from mpklab.ops import REGISTRY
from mpklab.schedule import Schedule, checked, in_order
from mpklab.tasks import EdgeSet, TaskGraph
from mpklab.tasks.handoffs import CONSUMER_WARPS
from mpklab.tasks.why import box_text

IntArray = npt.NDArray[np.int64]
EPOCHS = 2


@dataclass(frozen=True)
class Finding:
    """A fault, for drawing: two tasks, what lies between them, and why it is one (race, hang, pool, count, step)."""

    kind: str
    consumer: int
    producer: int = -1
    tensor: str = ""
    lag: int = 0
    event: int = -1


@dataclass(frozen=True)
class Clocks:
    """`start[epoch, task, worker]`: entries of each worker's queue (counted over epochs) ended before the task starts."""

    start: npt.NDArray[np.int32]
    done: IntArray  # [epoch, task]: the count that stands for the task itself having ended


def verify(schedule: Schedule) -> Schedule:
    """The schedule, marked verified; or ScheduleError naming the two tasks, the tensor and the missing path."""
    if schedule.verified:
        return schedule
    checked(schedule)
    _check_counts(schedule)
    if schedule.handout is not None:
        _check_pool(schedule)
    else:
        _check_queues(schedule)
    proved = replace(schedule)
    object.__setattr__(proved, "verified", True)
    return proved


def _check_queues(schedule: Schedule) -> None:
    clocks = arrived = vector_clocks(schedule)
    if schedule.handed:  # a word that has come says nothing of what else its task wrote
        clocks = vector_clocks(schedule, words_order=False)
    step = schedule.tasks.step_task
    if step >= 0:
        _check_step(schedule, clocks, step)
    else:
        _check_aliasing(schedule, clocks)
    for edges in schedule.tasks.edges:
        if edges.lag == 1 and step >= 0:
            continue  # everything of an iteration ends before the step, everything of the next starts after it
        if edges.kind == "raw" and edges.tensor in schedule.handed:
            _check_awaited(schedule, edges)
            _check_edges(schedule, arrived, edges)
            continue
        _check_edges(schedule, clocks, edges)


def _check_counts(schedule: Schedule) -> None:
    tasks = schedule.tasks
    given = np.bincount(tasks.signal_event, minlength=len(tasks.need))
    wrong = np.flatnonzero(given != tasks.need)
    if len(wrong):
        event = int(wrong[0])
        producer = tasks.operators[int(tasks.event_producer[event])].name
        raise ScheduleError(
            f"event {event} (of {producer}) needs {tasks.need[event]} signals an iteration but gets {given[event]}; "
            "need must equal the signals, or counts of different iterations mix",
            Finding("count", -1, event=event),
        )


def vector_clocks(schedule: Schedule, words_order: bool = True) -> Clocks:
    """Execute the queues for two iterations, waits and all; ScheduleError when no worker can go on.

    Without `words_order` a task that waited for words comes after nothing but what its queue and its counters say.
    """
    tasks, workers = schedule.tasks, schedule.workers
    queues = [q.tolist() for q in schedule.queues]
    lengths = np.array([len(q) for q in queues], np.int64)
    n, n_events, step = len(tasks), len(tasks.need), tasks.step_task
    start = np.zeros((EPOCHS, n, workers), np.int32)
    done = np.zeros((EPOCHS, n), np.int64)
    for epoch in range(EPOCHS):
        done[epoch] = epoch * lengths[schedule.worker] + schedule.position + 1
    event_clock = np.zeros((EPOCHS, n_events, workers), np.int32)
    count = np.zeros((EPOCHS, n_events), np.int64)
    sleeping: dict[tuple[int, int], list[int]] = {}
    known = np.zeros((workers, workers), np.int32)
    next_entry = [(0, 0, 0)] * workers  # epoch, position, wait
    step_clock: list[npt.NDArray[np.int32] | None] = [np.zeros(workers, np.int32), *[None] * EPOCHS]
    wait_first, wait_event, wait_lag = tasks.wait_first.tolist(), tasks.wait_event.tolist(), tasks.wait_lag.tolist()
    signal_first, signal_event = tasks.signal_first.tolist(), tasks.signal_event.tolist()
    handoff = schedule.handoff.tolist()
    need = tasks.need.tolist()
    awake = [w for w in range(workers) if queues[w]]
    while awake:
        w = awake.pop()
        epoch, position, wait = next_entry[w]
        mine, queue = known[w], queues[w]
        while epoch < EPOCHS:
            if position == 0 and wait == 0 and step >= 0:
                opened = step_clock[epoch]
                if opened is None:
                    sleeping.setdefault((epoch, -1), []).append(w)
                    break
                np.maximum(mine, opened, out=mine)
            task = queue[position]
            begin, end = wait_first[task], wait_first[task + 1]
            blocked = False
            while begin + wait < end:
                i = begin + wait
                event, from_epoch = wait_event[i], epoch - wait_lag[i]
                if from_epoch >= 0 and handoff[i] != Handoff.worker:
                    if count[from_epoch, event] < need[event]:
                        sleeping.setdefault((from_epoch, event), []).append(w)
                        blocked = True
                        break
                    if words_order or handoff[i] != Handoff.data:
                        np.maximum(mine, event_clock[from_epoch, event], out=mine)
                wait += 1
            if blocked:
                break
            start[epoch, task] = mine
            ended = epoch * len(queue) + position + 1
            mine[w] = ended
            for event in signal_event[signal_first[task] : signal_first[task + 1]]:
                clock = event_clock[epoch, event]
                np.maximum(clock, mine, out=clock)
                count[epoch, event] += 1
                if count[epoch, event] == need[event]:
                    awake += sleeping.pop((epoch, event), [])
            if task == step:
                step_clock[epoch + 1] = mine.copy()
                awake += sleeping.pop((epoch + 1, -1), [])
            wait = 0
            position += 1
            if position == len(queue):
                epoch, position = epoch + 1, 0
        next_entry[w] = (epoch, position, wait)
    stuck = [w for w in range(workers) if queues[w] and next_entry[w][0] < EPOCHS]
    if stuck:
        raise _hang(schedule, stuck, next_entry, count)
    return Clocks(start, done)


def _hang(schedule: Schedule, stuck: list[int], at: list[tuple[int, int, int]], count: IntArray) -> ScheduleError:
    tasks = schedule.tasks
    signaller = np.repeat(np.arange(len(tasks)), np.diff(tasks.signal_first))
    lines = []
    finding = None
    for w in stuck[:4]:
        epoch, position, wait = at[w]
        task = int(schedule.queues[w][position])
        i = int(tasks.wait_first[task]) + wait
        if i >= tasks.wait_first[task + 1]:
            lines.append(f"worker {w} waits for the step of iteration {epoch} before {tasks.task_name(task)}")
            finding = finding or Finding("hang", task)
            continue
        event, from_epoch = int(tasks.wait_event[i]), epoch - int(tasks.wait_lag[i])
        producer = int(tasks.event_producer[event])
        missing = signaller[tasks.signal_event == event].tolist()
        first = next(p for p in missing if (from_epoch, schedule.position[p]) >= at[schedule.worker[p]][:2])
        lines.append(
            f"worker {w} at {tasks.task_name(task)} (position {position}) waits for event {event} of "
            f"{tasks.operators[producer].name}, {count[from_epoch, event]} of {tasks.need[event]} signals; "
            f"{tasks.task_name(first)} stands on worker {schedule.worker[first]} at position {schedule.position[first]}"
        )
        finding = finding or Finding("hang", task, first, event=event)
    more = f" and {len(stuck) - 4} more workers" if len(stuck) > 4 else ""
    return ScheduleError("the schedule would hang: " + "; ".join(lines) + more, finding)


def _check_step(schedule: Schedule, clocks: Clocks, step: int) -> None:
    """Every task of an iteration must end before the next StepControl is published."""
    before = clocks.start[0, step][schedule.worker] >= clocks.done[0]
    before[step] = True
    late = np.flatnonzero(~before)
    if len(late):
        task = int(late[0])
        raise ScheduleError(
            f"{schedule.tasks.task_name(step)} publishes the next step, but {schedule.tasks.task_name(task)} on worker "
            f"{schedule.worker[task]} may still be running: no path of events leads from it to the step",
            Finding("step", step, task),
        )


def _check_aliasing(schedule: Schedule, clocks: Clocks) -> None:
    """A signal of the next iteration must come after every signal of this one, or the counter cannot tell them apart."""
    tasks = schedule.tasks
    signaller = np.repeat(np.arange(len(tasks)), np.diff(tasks.signal_first))
    required = np.zeros((len(tasks.need), schedule.workers), np.int64)
    np.maximum.at(required, (tasks.signal_event, schedule.worker[signaller]), clocks.done[0, signaller])
    start = clocks.start[1, signaller].astype(np.int64)
    own = np.arange(schedule.workers) == schedule.worker[signaller][:, None]
    late = (start < required[tasks.signal_event]) & ~own
    if late.any():
        row, w = (int(x[0]) for x in np.nonzero(late))
        event, task = int(tasks.signal_event[row]), int(signaller[row])
        rivals = signaller[(tasks.signal_event == event) & (schedule.worker[signaller] == w)]
        raise ScheduleError(
            f"event {event}: {tasks.task_name(task)} may signal for the next iteration before "
            f"{tasks.task_name(int(rivals[-1]))} on worker {w} has signalled for this one, so the count would be wrong",
            Finding("count", task, int(rivals[-1]), lag=1, event=event),
        )


def _check_awaited(schedule: Schedule, edges: EdgeSet) -> None:
    """Who reads what is handed over by its own words must be able to wait for each of them."""
    tasks = schedule.tasks
    reader = tasks.operators[edges.consumer]
    warps = tasks.plan.settings.get("consumer_warps", CONSUMER_WARPS)
    if edges.operand in REGISTRY.ops[reader.op].awaits(tasks.graph.node(reader), warps):
        return
    tile = int((edges.end > edges.begin).argmax())
    consumer = int(tasks.first[edges.consumer]) + tile
    producer = int(tasks.first[edges.producer]) + int(edges.begin[tile])
    raise ScheduleError(
        f"race: {tasks.task_name(consumer)} reads {edges.tensor}, which {tasks.operators[edges.producer].name} hands over "
        f"by its own words, but {reader.op} cannot wait for the words of its {edges.operand}: hand it over by a counter",
        Finding("race", consumer, producer, edges.tensor),
    )


def _check_edges(schedule: Schedule, clocks: Clocks, edges: EdgeSet) -> None:
    tasks = schedule.tasks
    p0, c0 = int(tasks.first[edges.producer]), int(tasks.first[edges.consumer])
    epoch = edges.lag
    lengths = edges.end - edges.begin
    ranges = np.stack([edges.begin, edges.end], 1)
    if lengths.sum() <= 4 * len(lengths) + 1024:
        tile = np.repeat(np.arange(len(lengths)), lengths)
        ahead = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        producer = p0 + edges.begin[tile] + ahead
        late = clocks.start[epoch, c0 + tile, schedule.worker[producer]] < clocks.done[0, producer]
        if edges.lag == 1 and edges.producer == edges.consumer:
            late &= producer != c0 + tile  # a task follows itself on its own worker
        if late.any():
            i = int(late.argmax())
            raise _race(tasks, schedule, edges, int(producer[i]), int(c0 + tile[i]))
        return
    for begin, end in np.unique(ranges[lengths > 0], axis=0):
        producers = np.arange(p0 + begin, p0 + end)
        required = np.zeros(schedule.workers, np.int64)
        np.maximum.at(required, schedule.worker[producers], clocks.done[0, producers])
        consumers = c0 + np.flatnonzero((ranges[:, 0] == begin) & (ranges[:, 1] == end))
        late = clocks.start[epoch, consumers] < required
        if late.any():
            c, w = (int(x[0]) for x in np.nonzero(late))
            at = producers[schedule.worker[producers] == w]
            missed = at[clocks.done[0, at] > clocks.start[epoch, consumers[c], w]]
            raise _race(tasks, schedule, edges, int(missed[0]), int(consumers[c]))


@dataclass(frozen=True)
class Reach:
    """What surely ended before each task starts: tasks of the pool, as bits (by their place in `Schedule.pool`), and
    how many entries of each worker's queue, as clocks of one epoch."""

    pool: list[int]
    clocks: Clocks


def reach(schedule: Schedule) -> Reach:
    """Follow the events, drains and queues of one iteration; ScheduleError where they form a circle, or where a worker
    may wait outside a drain for tasks of the pool.

    That is what makes hanging impossible, however tasks are popped. Suppose nobody can go on, and take any unfinished
    task and all that must end before it. If none of that is of the pool, the first of it in order stands at the head of
    its worker's queue and can run. So there is a first task of the pool whose events have all happened; it was pushed,
    and its ring's workers are all outside drains. But a worker outside a drain waits only for tasks of queues, of which
    again the first can run. Early push adds tasks that were popped before their events happened; of those and the
    tasks of queues that passed their waits, the one that did so first has nothing before it on its worker, which
    computes in the order it pops, and all it waits for did so earlier and has ended, so it can run.
    """
    tasks, queues, workers = schedule.tasks, schedule.queues, schedule.workers
    n = len(tasks)
    counted = schedule.handoff != Handoff.worker
    consumer = np.repeat(np.arange(n), np.diff(tasks.wait_first))
    counted &= (tasks.need[tasks.wait_event] > 0) | (schedule.worker[consumer] < 0)  # no signal, nothing handed out
    order = in_order(tasks, queues, schedule.drains, counted)
    if len(order) < n:
        raise _circle(schedule, order)
    bit = {int(task): 1 << i for i, task in enumerate(schedule.pool)}
    before = [0] * n
    mixed = len(bit) < n
    width = workers if mixed else 1
    same: dict[tuple[int, ...], int] = {}  # one integer for all tasks with equal waits: they are compared by identity
    start, done = np.zeros((1, n, width), np.int32), (schedule.position + 1)[None]
    event_pool, event_clock = [0] * len(tasks.need), np.zeros((len(tasks.need), width), np.int32)
    known_pool, known = [0] * workers, np.zeros((workers, width), np.int32)
    wait_first, signal_first = tasks.wait_first.tolist(), tasks.signal_first.tolist()
    wait_event = np.where((tasks.wait_lag == 0) & counted, tasks.wait_event, -1).tolist()
    signal_event, worker = tasks.signal_event.tolist(), schedule.worker.tolist()
    drains: dict[int, list[int]] = {}
    for queue, row in zip(queues, schedule.drains, strict=True):
        for drain in row[:-1]:
            if drain.position < len(queue):
                drains.setdefault(int(queue[drain.position]), []).append(drain.event)
    for task in order:
        w = worker[task]
        waits = [e for e in wait_event[wait_first[task] : wait_first[task + 1]] if e >= 0]
        ended = known_pool[w] if w >= 0 else 0
        if w >= 0:
            for event in drains.get(task, ()):
                ended |= event_pool[event]
                np.maximum(known[w], event_clock[event], out=known[w])
            awaited = ended
            for event in waits:
                awaited |= event_pool[event]
            if awaited != ended:
                raise _outside(schedule, task, awaited & ~ended)
            for event in waits:
                np.maximum(known[w], event_clock[event], out=known[w])
            start[0, task], known_pool[w] = known[w], ended
            known[w, w] = schedule.position[task] + 1
            clock = known[w]
        else:
            key = tuple(waits)
            if key not in same:
                for event in waits:
                    ended |= event_pool[event]
                same[key] = ended
            ended = same[key]
            clock = start[0, task]
            for event in waits if mixed else ():
                np.maximum(clock, event_clock[event], out=clock)
        before[task] = ended
        ended |= bit.get(task, 0)
        for event in signal_event[signal_first[task] : signal_first[task + 1]]:
            event_pool[event] |= ended
            if mixed:
                np.maximum(event_clock[event], clock, out=event_clock[event])
    return Reach(before, Clocks(start, done))


def _check_pool(schedule: Schedule) -> None:
    tasks = schedule.tasks
    known = reach(schedule)
    step = tasks.step_task
    if step >= 0:
        if len(schedule.pool) < len(tasks):
            _check_step(schedule, known.clocks, step)
        late = ~known.pool[step] & ((1 << len(schedule.pool)) - 1)
        own = np.searchsorted(schedule.pool, step)
        late &= ~(1 << int(own)) if schedule.worker[step] < 0 else -1
        if late:
            task = int(schedule.pool[_lowest(late)])
            raise ScheduleError(
                f"{tasks.task_name(step)} publishes the next step, but {tasks.task_name(task)} of the pool may still be "
                "running: no path of events leads from it to the step",
                Finding("step", step, task),
            )
    place = np.concatenate([[0], np.cumsum(schedule.worker < 0)]).tolist()  # of each task id in the pool
    proved: set[tuple[int, int, int]] = set()
    for edges in tasks.edges:
        if edges.lag == 1:
            continue  # iterations follow one another as a whole
        p0, c0 = int(tasks.first[edges.producer]), int(tasks.first[edges.consumer])
        for tile, (begin, end) in enumerate(zip(edges.begin.tolist(), edges.end.tolist(), strict=True)):
            first, last = place[p0 + begin], place[p0 + end]
            ended = known.pool[c0 + tile]
            key = (id(ended), first, last)
            if end <= begin or first == last or key in proved:
                continue
            late = ~(ended >> first) & ((1 << (last - first)) - 1)
            if late:
                raise _race(tasks, schedule, edges, int(schedule.pool[first + _lowest(late)]), c0 + tile)
            proved.add(key)
        if len(schedule.pool) < len(tasks):
            _check_edges(schedule, known.clocks, edges)


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def _circle(schedule: Schedule, order: list[int]) -> ScheduleError:
    tasks = schedule.tasks
    left = np.ones(len(tasks), bool)
    left[order] = False
    task = int(left.argmax())
    signaller = np.repeat(np.arange(len(tasks)), np.diff(tasks.signal_first))
    at = slice(int(tasks.wait_first[task]), int(tasks.wait_first[task + 1]))
    events = tasks.wait_event[at][tasks.wait_lag[at] == 0]
    late = signaller[np.isin(tasks.signal_event, events) & left[signaller]]
    after = f", among others for {tasks.task_name(int(late[0]))}" if len(late) else ""
    return ScheduleError(
        f"the schedule would hang: {left.sum()} tasks wait for each other in a circle; {tasks.task_name(task)} "
        f"({schedule.place(task)}) waits{after}",
        Finding("hang", task, int(late[0]) if len(late) else -1),
    )


def _outside(schedule: Schedule, task: int, missing: int) -> ScheduleError:
    tasks, late = schedule.tasks, int(schedule.pool[_lowest(missing)])
    return ScheduleError(
        f"the schedule may hang: {tasks.task_name(task)} ({schedule.place(task)}) waits for {tasks.task_name(late)} of the "
        "pool outside a drain, where its worker cannot run what is pushed; a drain until an event behind that task must "
        "stand before it",
        Finding("pool", task, late),
    )


_WHY = {
    "raw": "reads {tensor} while {producer} may not have written [{box}]",
    "war": "overwrites {tensor} while {producer} may still read [{box}]",
    "waw": "overwrites {tensor} while {producer} may still write [{box}]",
}


def _race(tasks: TaskGraph, schedule: Schedule, edges: EdgeSet, producer: int, consumer: int) -> ScheduleError:
    why = _WHY[edges.kind].format(
        tensor=f"{edges.tensor}[{box_text(tasks, consumer, edges.tensor, edges.kind != 'raw')}]",
        producer=f"{tasks.task_name(producer)}",
        box=box_text(tasks, producer, edges.tensor, edges.kind != "war"),
    )
    when = "of the iteration before" if edges.lag else "of the same iteration"
    return ScheduleError(
        f"race: {tasks.task_name(consumer)} (worker {schedule.worker[consumer]}, position {schedule.position[consumer]}) {why} "
        f"({edges.kind}, {when}, worker {schedule.worker[producer]}, position {schedule.position[producer]}): no path of "
        f"events and queue order leads from the one to the other; {tasks.task_name(consumer)} waits for "
        f"{_waits(tasks, consumer)}",
        Finding("race", consumer, producer, edges.tensor, edges.lag),
    )


def _waits(tasks: TaskGraph, task: int) -> str:
    """The events that a task waits for, as operators and tiles."""
    found = []
    for i in range(int(tasks.wait_first[task]), int(tasks.wait_first[task + 1])):
        event = int(tasks.wait_event[i])
        name = tasks.operators[int(tasks.event_producer[event])].name
        before = " of the iteration before" if tasks.wait_lag[i] else ""
        found.append(f"{name}[{tasks.event_begin[event]}:{tasks.event_end[event]}]{before}")
    return ", ".join(found) or "nothing"
