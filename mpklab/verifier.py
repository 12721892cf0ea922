"""Proves, before anything is compiled, that a schedule neither races nor hangs.

A static schedule is executed once on vector clocks for two iterations: a task's clock says, for each worker, how many
entries of its queue surely ended before the task starts (Mattern 1989, Fidge 1988). Then every edge that the boxes
imply is looked up in the clocks. The boxes, not the events, say what must be ordered, so a wrong event cannot hide.

Where tasks are handed out at run time nothing is assumed about the order of pops: mpklab/reach.py says what is known
all the same, and why that decides what can hang. Iterations follow one another as a whole there, so one is enough.

Every refusal names the tasks, where they stand, and what to change; its `finding` holds them for drawing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mpklab.abi import Handoff
from mpklab.errors import ScheduleError
from mpklab.ops import REGISTRY, Box
from mpklab.reach import Floors, Reach, Stand, counted, reach, sharpened, standstill
from mpklab.schedule import Schedule, checked, in_order
from mpklab.tasks import EdgeSet, TaskGraph, overlap_ranges
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
        operator = int(tasks.event_producer[event])
        signaller = np.repeat(np.arange(len(tasks)), np.diff(tasks.signal_first))[tasks.signal_event == event].tolist()
        tiles = tasks.tasks_of(tasks.operators[operator].name)
        expected = tiles[int(tasks.event_begin[event]) : int(tasks.event_end[event])]
        odd = [f"{tasks.task_name(t)} does not signal it" for t in expected if t not in signaller]
        odd += [f"{tasks.task_name(t)} signals it too" for t in signaller if t not in expected]
        odd += [
            f"{tasks.task_name(t)} signals it twice" for t in sorted({t for t in signaller if signaller.count(t) > 1})
        ]
        raise ScheduleError(
            f"event {event} (of {tasks.operators[operator].name}) needs {tasks.need[event]} signals an iteration but gets "
            f"{given[event]}{''.join(f', {x}' for x in odd[:3])}; need must equal the signals, or counts of different "
            f"iterations mix: mend the signals, or set need[{event}] = {given[event]}",
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
    if finding and finding.producer >= 0:
        w = int(schedule.worker[finding.producer])
        head = int(schedule.queues[w][at[w][1]])
        more += f"; queue {tasks.task_name(finding.producer)} before {tasks.task_name(head)} on worker {w}"
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
            f"{schedule.worker[task]} may still be running: no path of events leads from it to the step; "
            f"{_remedy(schedule, task, step)}",
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
            f"{tasks.task_name(int(rivals[-1]))} on worker {w} has signalled for this one, so the count would be wrong; "
            f"{_remedy(schedule, int(rivals[-1]), task, 1)}",
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
    _race_among(schedule, edges, _late(schedule, clocks, edges))


def _late(schedule: Schedule, clocks: Clocks, edges: EdgeSet) -> Iterator[tuple[int, int]]:
    """Pairs (producer, consumer) of an edge set whose producer stands in a queue and may still run."""
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
        for i in np.flatnonzero(late):
            yield int(producer[i]), int(c0 + tile[i])
        return
    for begin, end in np.unique(ranges[lengths > 0], axis=0):
        producers = np.arange(p0 + begin, p0 + end)
        required = np.zeros(schedule.workers, np.int64)
        np.maximum.at(required, schedule.worker[producers], clocks.done[0, producers])
        consumers = c0 + np.flatnonzero((ranges[:, 0] == begin) & (ranges[:, 1] == end))
        late = clocks.start[epoch, consumers] < required
        for c, w in zip(*np.nonzero(late), strict=True):
            at = producers[schedule.worker[producers] == w]
            for missed in at[clocks.done[0, at] > clocks.start[epoch, consumers[c], w]]:
                yield int(missed), int(consumers[c])


def _race_among(schedule: Schedule, edges: EdgeSet, pairs: Iterable[tuple[int, int]]) -> None:
    """ScheduleError for the first pair whose own boxes meet: edges are ranges of tiles, some of which share nothing."""
    tasks = schedule.tasks
    moves = int(tasks.step_task >= 0) * edges.lag
    for i, (producer, consumer) in enumerate(pairs):
        if i == 0:
            earlier = _boxes(tasks, edges.producer, edges.tensor, edges.kind != "war")
            later = _boxes(tasks, edges.consumer, edges.tensor, edges.kind != "raw")
        p, c = producer - int(tasks.first[edges.producer]), consumer - int(tasks.first[edges.consumer])
        if any(overlap_ranges(_of_tile(a, p), 1, _of_tile(b, c), 1, moves)[1][0] for a in earlier for b in later):
            raise _race(tasks, schedule, edges, producer, consumer)


def _boxes(tasks: TaskGraph, operator: int, tensor: str, writes: bool) -> list[Box]:
    """What an operator's tiles touch of a tensor."""
    o = tasks.operators[operator]
    tiles = REGISTRY.ops[o.op].tiles(tasks.graph.node(o), tasks.plan.tilings[o.name])
    return [b for b in (tiles.writes if writes else tiles.reads) if o.operands[b.operand] == tensor]


def _of_tile(box: Box, tile: int) -> Box:
    def one(x: int | IntArray) -> int | IntArray:
        return x[tile : tile + 1] if isinstance(x, np.ndarray) else x

    def of_split(split: tuple[int, IntArray] | None) -> tuple[int, IntArray] | None:
        return split and (split[0], split[1][tile : tile + 1])

    return Box(box.operand, tuple(replace(r, lo=one(r.lo), hi=one(r.hi), split=of_split(r.split)) for r in box.ranges))


def _check_pool(schedule: Schedule) -> None:
    order = in_order(schedule.tasks, schedule.queues, schedule.drains, counted(schedule))
    if len(order) < len(schedule.tasks):
        raise _circle(schedule, order)
    floors: Floors = {}
    known = reach(schedule, order, floors)
    while True:
        try:
            if stands := standstill(schedule, known):
                raise _standstill(schedule, stands)
            _check_order(schedule, known)
            return
        except ScheduleError:
            if floors == (floors := sharpened(floors, schedule, known)):
                raise
            known = reach(schedule, order, floors)


def _check_order(schedule: Schedule, known: Reach) -> None:
    tasks, pool = schedule.tasks, schedule.pool
    clocks = Clocks(known.clock[None], (schedule.position + 1)[None])
    step = tasks.step_task
    if step >= 0:
        if len(pool) < len(tasks):
            _check_step(schedule, clocks, step)
        late = (int(pool[i]) for i in _bits(~known.ended[step] & ((1 << len(pool)) - 1)))
        task = next((t for t in late if t != step), -1)
        if task >= 0:
            raise ScheduleError(
                f"{tasks.task_name(step)} publishes the next step, but {tasks.task_name(task)} of the pool may still be "
                f"running: no path of events leads from it to the step; {_remedy(schedule, task, step)}",
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
            ended = known.ended[c0 + tile]
            key = (id(ended), first, last)
            if end <= begin or first == last or key in proved:
                continue
            missing = ~(ended >> first) & ((1 << (last - first)) - 1)
            if missing:
                _race_among(schedule, edges, ((int(pool[first + i]), c0 + tile) for i in _bits(missing)))
            else:
                proved.add(key)
        if len(pool) < len(tasks):
            _check_edges(schedule, clocks, edges)


def _bits(number: int) -> Iterator[int]:
    """Places of the ones in a number that is not negative, from the lowest."""
    while number:
        yield (number & -number).bit_length() - 1
        number &= number - 1


def _circle(schedule: Schedule, order: list[int]) -> ScheduleError:
    """Tasks that wait for each other, from one of them round to itself, or to an event that nobody signals."""
    tasks = schedule.tasks
    left = np.ones(len(tasks), bool)
    left[order] = False
    matters = counted(schedule)
    signaller = np.repeat(np.arange(len(tasks)), np.diff(tasks.signal_first))

    def behind(task: int) -> tuple[int, int, str]:
        """An unfinished task that this one comes after, the event or -1, and how."""
        w, position = int(schedule.worker[task]), int(schedule.position[task])
        if w >= 0 and position and left[earlier := int(schedule.queues[w][position - 1])]:
            return earlier, -1, f"stands behind {tasks.task_name(earlier)}"
        at = slice(int(tasks.wait_first[task]), int(tasks.wait_first[task + 1]))
        drains = [d.event for d in schedule.drains[w][:-1] if d.position == position] if w >= 0 else []
        for event in drains + tasks.wait_event[at][matters[at]].tolist():
            late = signaller[(tasks.signal_event == event) & left[signaller]]
            how = "comes after the drain until" if event in drains else "waits for"
            if len(late):
                return int(late[0]), event, f"{how} event {event} of {tasks.task_name(int(late[0]))}"
            if tasks.need[event] == 0:
                return -1, event, f"{how} event {event}, which no task signals"
        raise AssertionError("a task left out comes after nothing that was")

    path = [int(left.argmax())]
    links: list[tuple[int, int, str]] = []
    while not links or (links[-1][0] >= 0 and links[-1][0] not in path):
        path += [links[-1][0]] if links else []
        links.append(behind(path[-1]))
    begin = path.index(links[-1][0]) if links[-1][0] >= 0 else 0
    path, links = path[begin:], links[begin:]
    told = [f"{tasks.task_name(t)} ({schedule.place(t)}) {how}" for t, (_, _, how) in zip(path, links, strict=True)]
    more = [f"… {len(told) - 6} more …"] if len(told) > 6 else []
    told = told[:5] + more + told[-1:] if more else told
    i = min(range(len(path)), key=lambda i: (links[i][0] >= 0, "drain" not in links[i][2], links[i][1] >= 0))
    later, (earlier, event, _) = tasks.task_name(path[i]), links[i]
    if earlier < 0:
        remedy = f"let a task signal event {event}, or drop it before {later}"
    elif event < 0:
        remedy = f"queue {later} before {tasks.task_name(earlier)}"
    elif "drain" in links[i][2]:
        remedy = (
            f"before {later} let worker {schedule.worker[path[i]]} drain until an event that does not come after it"
        )
    else:
        remedy = f"drop the wait of {later} for event {event}"
    return ScheduleError(
        f"the schedule would hang: {left.sum()} tasks can never start; {'; '.join(told)}; {remedy}",
        Finding("hang", path[i], earlier, event=event),
    )


def _standstill(schedule: Schedule, stands: list[Stand]) -> ScheduleError:
    """Everybody waits where nobody can pop."""
    assert schedule.handout is not None
    tasks, central = schedule.tasks, schedule.handout.pool == "central"
    lines = []
    for stand in stands:
        late = int(schedule.pool[next(_bits(stand.missing))])
        ring = "" if central or schedule.home is None else f" (worker {schedule.home[late]}'s)"
        lines.append(
            f"{tasks.task_name(stand.task)} ({schedule.place(stand.task)}) waits for {tasks.task_name(late)}{ring}"
        )
    more = f" and {len(lines) - 4} more" if len(lines) > 4 else ""
    first = stands[0]
    at = slice(int(tasks.wait_first[first.task]), int(tasks.wait_first[first.task + 1]))
    events = tasks.wait_event[at][counted(schedule)[at]].tolist()
    drains = ", ".join(f"Drain({first.position}, {event})" for event in events)
    unproven = "" if central else ", and that they never stand there together cannot be proven"
    return ScheduleError(
        f"the schedule may hang where nobody pops early: {'; '.join(lines[:4])}{more}, tasks of the pool, outside a drain, "
        f"where none of these workers can run what is pushed{unproven}; give worker {schedule.worker[first.task]} a drain "
        f"before {tasks.task_name(first.task)}: {drains}",
        Finding("pool", first.task, int(schedule.pool[next(_bits(first.missing))])),
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
        f"race: {tasks.task_name(consumer)} ({schedule.place(consumer)}) {why} "
        f"({edges.kind}, {when}, {schedule.place(producer)}): no path of events and queue order leads from the one to the "
        f"other; {tasks.task_name(consumer)} waits for {_waits(tasks, consumer)}; "
        f"{_remedy(schedule, producer, consumer, edges.lag)}",
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


def _remedy(schedule: Schedule, producer: int, consumer: int, lag: int = 0) -> str:
    """What would put the consumer behind the producer."""
    tasks = schedule.tasks
    name, first = tasks.task_name(consumer), tasks.task_name(producer)
    before = " of the iteration before (lag 1)" if lag else ""
    events = tasks.signal_event[tasks.signal_first[producer] : tasks.signal_first[producer + 1]]
    wait = f"let {name} wait for event {events[0]}{before}, which {first} signals" if len(events) else (
        f"let {first} signal an event, and {name} wait for it{before}"
    )  # fmt: skip
    queued = not lag and schedule.worker[producer] >= 0 and schedule.worker[consumer] >= 0
    return wait + (f", or queue it behind {first} on worker {schedule.worker[producer]}" if queued else "")
