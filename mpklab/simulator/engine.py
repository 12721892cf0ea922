"""The discrete-event engine: every mode of a schedule, on given durations or on the cost model.

A worker's time runs ahead of the engine's only through what nobody else can change: reading a task's descriptor, waits
for events that have happened, durations that are given. Whatever depends on others happens in the order of time.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpklab.abi import Handoff
from mpklab.errors import ScheduleError
from mpklab.schedule import ITERATION, Drain
from mpklab.simulator.bandwidth import NEVER, STOPPED, Bandwidth
from mpklab.simulator.costs import Costs, Work
from mpklab.simulator.pools import Pool
from mpklab.simulator.program import Program

F64 = npt.NDArray[np.float64]
_PUBLISH, _START, _POP, _ARRIVE, _SEEK, _TOOK, _ENDED, _BIND = range(8)  # what an entry of the engine's heap stands for
DESCRIPTORS = 8  # tasks that a loader lays out ahead at most
_OWN = int(Handoff.worker)


@dataclass(frozen=True, eq=False)
class Timeline:
    """What happened, in ns since the launch; NaN where something did not.

    [iterations, tasks]: worker i64 · order i64: grows along each worker · issue: the worker took the task up · fetched ·
    waited f64[iterations, waits]: when each wait was over · gathered = begin, end: the operator itself · signalled:
    its signals were out · pushed: and what became ready was handed out.
    [iterations, workers]: entered, stepped (StepControl acquired), left; enter_order, leave_order.
    pops: rows (worker, order), pop_ns: rows (begin, end), pop_iteration.
    crowding: by how much longer bytes took than those of one stream alone, on average when tasks of the cost model began
    and when events happened.
    """

    program: Program
    worker: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]
    issue: F64
    fetched: F64
    waited: F64
    begin: F64
    end: F64
    signalled: F64
    pushed: F64
    entered: F64
    stepped: F64
    left: F64
    enter_order: npt.NDArray[np.int64]
    leave_order: npt.NDArray[np.int64]
    pops: npt.NDArray[np.int64]
    pop_iteration: npt.NDArray[np.int64]
    pop_ns: F64
    crowding: tuple[float, float]

    @property
    def iterations(self) -> int:
        return len(self.issue)

    @property
    def makespan_ns(self) -> float:
        """From the launch until the last worker is done."""
        return float(np.nanmax(self.left, initial=0.0))

    @property
    def iteration_ns(self) -> float:
        """The time an iteration adds once the pipeline is full; the makespan for a single one."""
        ends = np.nanmax(self.left, axis=1)
        return float(ends[0]) if len(ends) == 1 else float(ends[-1] - ends[0]) / (len(ends) - 1)


def run(program: Program, work: Work, costs: Costs, iterations: int = 1) -> Timeline:
    """Walk the program; ScheduleError when no worker can go on."""
    if iterations < 1:
        raise ScheduleError(f"iterations must be at least 1, not {iterations}")
    engine = _Engine(program, work, costs, iterations)
    engine.go()
    return engine.timeline()


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))


class _Engine:
    def __init__(self, program: Program, work: Work, costs: Costs, iterations: int):
        p = self.p = program
        self.costs, self.iterations = costs, iterations
        n, workers, events = p.n_tasks, p.n_workers, len(p.need)
        self.n, self.n_events, self.n_waits, self.n_workers = n, events, len(p.wait_event), workers
        # Plain lists: an element of one costs a tenth of an array's.
        self.wait_first, self.wait_event = p.wait_first.tolist(), p.wait_event.tolist()
        self.wait_lag, self.handoff = p.wait_lag.tolist(), p.handoff.tolist()
        self.signals = [
            p.signal_event[a:b].tolist() for a, b in zip(p.signal_first[:-1], p.signal_first[1:], strict=True)
        ]
        self.need = p.need.tolist()
        self.latency = [costs.handoff_ns.get(k.name, 0.0) for k in Handoff]
        execute = np.broadcast_to(np.atleast_2d(work.execute), (iterations, n))
        self.given: list[float] = execute.ravel().tolist()
        self.fetch, self.gather, self.signal, self.overhead, self.compute, self.load = (
            np.broadcast_to(np.atleast_2d(x), (iterations, n)).ravel().tolist()
            for x in (work.fetch, work.gather, work.signal, work.overhead, work.compute, work.load)
        )
        modelled = np.isnan(execute).any(0)
        # What a task of a given time loads is in that time: nobody would take it from a ring.
        self.ahead, self.behind = (np.where(modelled, x, 0.0).tolist() for x in (work.ahead, work.behind))
        self.shared = bool(modelled.any()) and math.isfinite(min(costs.bandwidth, costs.worker_bandwidth))
        self.ring = self.shared and costs.ring_bytes > 0
        self.memory = Bandwidth(workers, costs)
        self.crowding: tuple[list[float], list[float]] = ([], [])
        self.loaded: list[float] = [0.0] * (n * iterations) if self.ring else []

        size = n * iterations
        self.worker, self.order = [-1] * size, [-1] * size
        self.issue, self.fetched, self.begin = [math.nan] * size, [math.nan] * size, [math.nan] * size
        self.end, self.pushed = [math.nan] * size, [math.nan] * size
        self.waited = [math.nan] * (self.n_waits * iterations)
        places = workers * iterations
        self.entered, self.stepped, self.left = [math.nan] * places, [math.nan] * places, [math.nan] * places
        self.enter_order, self.leave_order = [-1] * places, [-1] * places
        self.pops: list[tuple[int, int]] = []
        self.pop_ns: list[tuple[float, float]] = []
        self.pop_iteration: list[int] = []
        self.clock = 0  # numbers what workers do, in order

        self.now = 0.0
        self.heap: list[tuple[float, int, int, int]] = []  # time, number, what, whose
        self.number = 0
        self.count, self.happened = [0] * (events * iterations), [-1.0] * (events * iterations)
        # worker, task, wait, since when it waits for this event, and since when it looks at any of the task's
        self.waiting: dict[int, list[tuple[int, int, int, float, float]]] = {}
        self.at, self.iteration = [0] * workers, [0] * workers
        self.running, self.parts, self.least = [-1] * workers, [0] * workers, [0.0] * workers

        self.steps = p.step_task >= 0
        self.opened = [0.0] + [-1.0] * iterations  # when each iteration's StepControl was published
        self.asleep: list[list[tuple[int, float]]] = [[] for _ in range(iterations + 1)]  # waiting for it
        self.done_tasks = [0] * iterations
        self._set_up_pool()

    def _set_up_pool(self) -> None:
        p = self.p
        pooled = self.pooled = p.pooled.tolist()
        self.dynamic = any(isinstance(e, Drain) for q in p.queues for e in q)
        self.pool = Pool(self.n_workers, p.handout, p.home.tolist(), p.priority.tolist())
        self.early = self.dynamic and p.handout.early_push
        self.pop_ahead = p.handout.pop_ahead
        # With a loader it is this that walks the queue: it takes tasks, says so, hands out what that lets go early, lays
        # them out and issues their loads, one after the other, while its worker computes.
        self.lanes = self.dynamic and self.costs.ring_bytes > 0
        # Loaders that stay in one pool take turns by addition; those that come and go compete.
        stays = all(len(q) == 1 for q in p.queues if q) and p.handout.classes == 1
        self.serial = 0.0 if self.lanes and stays else self.costs.serial_ns
        workers = self.n_workers
        self.lane_at, self.lane_iteration = [0] * workers, [0] * workers  # of static queues' loaders too
        self.taking = [-1] * workers  # the task that a loader has just popped
        self.laid, self.ended = [0] * workers, [0] * workers
        self.full = [False] * workers  # the loader waits for a task of its worker's to end
        self.outran = [-1] * workers  # the task that began before its loader came to it
        self.streamed = [-1] * workers  # the task in whose stream a loader is held up
        self.lane_asleep: list[list[int]] = [[] for _ in range(self.iterations + 1)]  # loaders, waiting for StepControl
        self.known: list[deque[tuple[int, float]]] = [deque() for _ in range(workers)]  # laid out, since when
        self.unknowing: dict[int, float] = {}  # workers that wait for a task to be laid out, since when
        self.held: list[deque[int]] = [deque() for _ in range(self.n_workers)]
        self.watched = {e.event for q in p.queues for e in q if isinstance(e, Drain)}
        self.triggers: list[list[int]] = [[] for _ in self.need]
        first: list[int] = [0] * self.n
        for task in range(self.n):
            if pooled[task]:
                for k in range(self.wait_first[task], self.wait_first[task + 1]):
                    if self.wait_lag[k] == 0:
                        self.triggers[self.wait_event[k]].append(task)
                        first[task] += 1
        self.at_once = [t for t in range(self.n) if pooled[t] and not first[t]]
        self.missing = first * self.iterations if self.dynamic else []
        self.promised = [0] * len(self.count) if self.early else []

    # --- the loop ---

    def go(self) -> None:
        for task in self.at_once:  # the host fills the queues before it launches
            self.pool.push(self.pool.place(task), task)
        for w in range(self.n_workers):
            if self.p.queues[w]:
                if self.lanes:
                    self._later(0.0, _SEEK, w)
                self._enter(w, 0.0)
        heap, memory, shared = self.heap, self.memory, self.shared
        handlers = {_START: self._begin_shared, _POP: self._drain, _ARRIVE: self._arrive}
        handlers |= {_SEEK: self._seek, _TOOK: self._took, _ENDED: self._task_ended, _BIND: self._bind_next}
        while True:
            other = memory.next_time() if shared else NEVER
            if not heap and other == NEVER:
                break
            if heap and heap[0][0] <= other:
                self.now, _, what, whose = heapq.heappop(heap)
                if shared:
                    memory.advance(self.now)
                if what == _PUBLISH:
                    self._publish(whose)
                else:
                    handlers[what](whose)
            else:
                self.now = other
                memory.advance(other)
                what, whose = memory.pop()
                if what != STOPPED:
                    self._part_done(whose)
                elif not self.lanes and memory.rests(whose):
                    self._later(other + self.costs.layout_ns, _BIND, whose)
        stuck = [w for w in range(self.n_workers) if self.p.queues[w] and self.iteration[w] < self.iterations]
        if stuck:
            raise self._hang(stuck)

    def _later(self, time: float, what: int, whose: int) -> None:
        self.number += 1
        heapq.heappush(self.heap, (time, self.number, what, whose))

    # --- a worker's way ---

    def _enter(self, w: int, t: float) -> None:
        it = self.iteration[w]
        if it == self.iterations:
            return
        at = it * self.n_workers + w
        self.entered[at] = t
        self.clock += 1
        self.enter_order[at] = self.clock
        if self.steps and it > 0:
            if self.opened[it] < 0:
                self.asleep[it].append((w, t))
                return
            t = max(t + self.costs.wait_ns, self.opened[it] + self.costs.step_ns)
        self._stepped(w, t)

    def _stepped(self, w: int, t: float) -> None:
        """The worker has this iteration's StepControl."""
        self.stepped[self.iteration[w] * self.n_workers + w] = t
        self.at[w] = 0
        if self.ring and not self.lanes and self.iteration[w] == 0:
            self._bind_next(w)
        self._next(w, t)

    def _next(self, w: int, t: float) -> None:
        """Take up the worker's next queue entry at its time t."""
        if self.lanes:
            if self.known[w]:
                self._fetch(w, t, *self.known[w].popleft())
            else:
                self.unknowing[w] = t
            return
        queue, at = self.p.queues[w], self.at[w]
        if at < len(queue):
            entry = queue[at]
            if isinstance(entry, Drain):
                self._later(t, _POP, w)  # also when t is now: what was pushed at this moment comes first
            else:
                self.at[w] = at + 1
                self._take(w, entry, t)
            return
        self._leave(w, t)

    def _leave(self, w: int, t: float) -> None:
        """The worker's queue is done for this iteration."""
        place = self.iteration[w] * self.n_workers + w
        self.left[place] = t
        self.clock += 1
        self.leave_order[place] = self.clock
        self.iteration[w] += 1
        self._enter(w, t)

    def _take(self, w: int, task: int, t: float) -> None:
        it = self.iteration[w]
        inst = it * self.n + task
        self.worker[inst] = w
        self.clock += 1
        self.order[inst] = self.clock
        self.issue[inst] = t
        t += self.fetch[inst]
        self.fetched[inst] = t
        self._wait(w, task, self.wait_first[task], t, t)

    def _wait(self, w: int, task: int, k: int, t: float, since: float) -> None:
        """Pass the task's waits from the k-th on; where one has not happened, its event comes back here.

        A worker looks at its events again and again since it took the task up. A look takes `wait_ns`, so that much of
        `handoff_ns` depends on where in a look an event falls; on average half of it.
        """
        it = self.iteration[w]
        look = self.costs.wait_ns
        # What a pop handed over after its events is seen with the pop.
        seen = self.pooled[task] and not self.early
        while k < self.wait_first[task + 1]:
            epoch, kind = it - self.wait_lag[k], self.handoff[k]
            if epoch >= 0 and kind != _OWN:
                key = epoch * self.n_events + self.wait_event[k]
                happened = self.happened[key]
                if happened < 0:
                    self.waiting.setdefault(key, []).append((w, task, k, t, since))
                    return
                t += look if t == since else self.costs.more_wait_ns
                visible = happened + max(0.0, self.latency[kind] - look / 2)
                if not seen and visible > t:
                    t = since + look * math.ceil((visible - since) / look) if look > 0 else visible
            self.waited[it * self.n_waits + k] = t
            k += 1
        if self.early and not self.pooled[task]:
            t = self._promise(task, it, t)
        inst = it * self.n + task
        t += self.gather[inst]
        self.begin[inst] = t
        self.running[w] = task
        given = self.given[inst]
        if given == given:
            self._finish(w, inst, t + given)
        elif self.shared and t > self.now:
            self._later(t, _START, w)
        else:
            self._begin_shared(w)

    def _begin_shared(self, w: int) -> None:
        """The operator starts, on the cost model, at its begin, which is now."""
        task = self.running[w]
        inst = self.iteration[w] * self.n + task
        begin = self.begin[inst]
        self.crowding[0].append(self.memory.crowding)
        self.least[w] = begin + self.compute[inst]
        self.parts[w] = 1
        if self.shared:
            demand = self.behind[task]
            if not self.ring:
                demand += self.ahead[task]
            elif self.ahead[task] > 0:
                late = not self.loaded[inst]  # the loader has not come so far
                if late:
                    self.outran[w] = inst
                self.parts[w] += late or self.memory.take(w, self.loaded[inst])
            if demand > 0:
                self.memory.load(w, demand)
                self.parts[w] += 1
        self._part_done(w, begin)

    def _part_done(self, w: int, t: float | None = None) -> None:
        """One of the things the running task needs is there; when all are, its end is known."""
        self.parts[w] -= 1
        if self.parts[w] == 0:
            inst = self.iteration[w] * self.n + self.running[w]
            self._finish(w, inst, max(self.least[w], self.now if t is None else t) + self.overhead[inst])

    def _finish(self, w: int, inst: int, end: float) -> None:
        self.end[inst] = end
        if self.streamed[w] == inst:
            self.streamed[w] = -1
            self._later(end, _SEEK, w)
        self._later(end + self.signal[inst], _PUBLISH, w)

    def _publish(self, w: int) -> None:
        """The running task's signals are out, now."""
        task, it, now = self.running[w], self.iteration[w], self.now
        first = it * self.n_events
        ready: list[list[int]] = []
        for event in self.signals[task]:
            key = first + event
            self.count[key] += 1
            if self.count[key] == self.need[event]:
                self.happened[key] = now
                if self.shared:
                    self.crowding[1].append(self.memory.crowding)
                for other, its_task, k, t, since in self.waiting.pop(key, ()):
                    self._wait(other, its_task, k, t, since)
                if self.dynamic:
                    if self.triggers[event] and not self.early:
                        ready.append(self._ready(event, it))
                    if event in self.watched:
                        self._end_drains(event, now)
        inst = it * self.n + task
        t = now
        for tasks in ready:
            t = self._push(tasks, t)
        if task == self.p.step_task:
            t = self._open(it + 1, t)
        if self.dynamic:
            self.done_tasks[it] += 1
            if not self.steps and self.done_tasks[it] == self.n:
                t = self._open(it + 1, t)
        self.pushed[inst] = t
        if self.lanes:
            self._later(t, _ENDED, w)
        self._next(w, t)

    def _open(self, it: int, t: float) -> float:
        """StepControl of the next iteration stands, or, where there is none, the last task of this one is done."""
        self.opened[it] = t
        if it < self.iterations and self.at_once:
            t = self._push(self.at_once, t)
        for w, since in self.asleep[it]:
            self._stepped(w, max(since + self.costs.wait_ns, self.opened[it] + self.costs.step_ns))
        self.asleep[it] = []
        for w in self.lane_asleep[it]:
            self._later(max(self.now, self.opened[it] + self.costs.step_ns), _SEEK, w)
        self.lane_asleep[it] = []
        if ITERATION in self.watched:
            self._end_drains(ITERATION, self.opened[it])
        return t

    # --- pools ---

    def _ready(self, event: int, it: int) -> list[int]:
        """Tasks of which this was the last event they waited for."""
        out = []
        first = it * self.n
        for task in self.triggers[event]:
            self.missing[first + task] -= 1
            if self.missing[first + task] == 0:
                out.append(task)
        return out

    def _push(self, tasks: list[int], t: float) -> float:
        """Hand out one after the other what an event made ready, which may be nothing yet; when the last is."""
        t += self.costs.handout_ns
        for task in tasks:
            t += self.costs.push_ns
            self._later(t + self.costs.queue_ns, _ARRIVE, task)
        return t

    def _promise(self, task: int, it: int, t: float) -> float:
        """Early push: a task was popped; what now has all its producers popped may go out."""
        for event in self.signals[task]:
            key = it * self.n_events + event
            self.promised[key] += 1
            if self.promised[key] == self.need[event] and self.triggers[event]:
                t = self._push(self._ready(event, it), t)
        return t

    def _drain(self, w: int) -> None:
        """A worker in a drain is free, now: it runs what it holds, else what it can pop, else it idles."""
        t, drain, pool = self.now, self._drain_of(w), self.pool
        happened = self._drain_ended(drain, self.iteration[w])
        if happened >= 0:
            self._leave_drain(w, t, happened + self._drain_latency(drain))
        elif self.held[w]:
            self._run_held(w, t)
        else:
            task = pool.pop(pool.queue_of(w))
            if task < 0:
                pool.idle[w] = t
            else:
                self._popped(w, task, t, t)

    def _drain_of(self, w: int) -> Drain:
        entry = self.p.queues[w][self.lane_at[w] if self.lanes else self.at[w]]
        assert isinstance(entry, Drain)
        return entry

    def _pop(self, w: int, t: float) -> float:
        """A worker takes a task off its queue at t, or when those before it have; when it has it."""
        queue = self.pool.queue_of(w)
        t = max(t, self.pool.free_at[queue])
        self.pool.free_at[queue] = t + self.serial
        return t + self.costs.pop_ns

    def _popped(self, w: int, task: int, since: float, t: float) -> None:
        """The worker, idle since some time, takes a task off its queue at t."""
        t = self._bound(w, task, self._pop(w, t))
        self._note_pop(w, since, t)
        self.held[w].append(task)
        self._run_held(w, t)

    def _run_held(self, w: int, t: float) -> None:
        """Run the oldest task that the worker holds, after taking more ahead of their turn."""
        pool, held = self.pool, self.held[w]
        task = held.popleft()
        while len(held) < self.pop_ahead:
            another = pool.pop(pool.queue_of(w))
            if another < 0:
                break
            held.append(another)
            t = self._bound(w, another, t + self.costs.pop_ns)
        self._take(w, task, t)

    def _bound(self, w: int, task: int, t: float) -> float:
        """A task belongs to a worker from now on: what depends on it may be handed out."""
        return self._promise(task, self.iteration[w], t + self.costs.promise_ns) if self.early else t

    def _note_pop(self, w: int, begin: float, end: float) -> None:
        self.clock += 1
        self.pops.append((w, self.clock))
        self.pop_ns.append((begin, end))
        self.pop_iteration.append(self.iteration[w])

    def _arrive(self, task: int) -> None:
        """A pushed task can be popped from now on."""
        pool = self.pool
        queue = pool.place(task)
        w = pool.taker(queue)
        if w < 0:
            pool.push(queue, task)
        elif self.lanes:
            since, look = pool.idle.pop(w), self.costs.round_ns
            looks = math.ceil((self.now - since) / look) if look > 0 else 0
            self._lane_pop(w, task, max(self.now, since + looks * look))
        else:
            self._popped(w, task, pool.idle.pop(w), self.now)

    # --- loaders ---

    def _seek(self, w: int) -> None:
        """A loader is free, now: on to its queue's next entry."""
        it, now, queue = self.lane_iteration[w], self.now, self.p.queues[w]
        if it == self.iterations:
            return
        if self.steps and it > 0 and self.opened[it] < 0:
            self.lane_asleep[it].append(w)
            return
        at = self.lane_at[w]
        if at == len(queue):
            self.lane_at[w], self.lane_iteration[w] = 0, it + 1
            self._lay_out(w, -1, now)
            self._later(max(now, self.opened[it + 1] + self.costs.step_ns), _SEEK, w)
            return
        entry = queue[at]
        bound = self.pop_ahead if isinstance(entry, Drain) else DESCRIPTORS - 1
        if self.laid[w] - self.ended[w] > bound:
            self.full[w] = True
        elif isinstance(entry, Drain):
            happened = self._drain_ended(entry, it)
            if happened >= 0:
                self.lane_at[w] += 1
                self._later(max(now, happened + self._drain_latency(entry)), _SEEK, w)
                return
            task = self.pool.pop(self.pool.queue_of(w))
            if task < 0:
                self.pool.idle[w] = now
            else:
                self._lane_pop(w, task, now + self.costs.seek_ns)
        else:
            self.lane_at[w] += 1
            self._lay_out(w, entry, now)

    def _lane_pop(self, w: int, task: int, t: float) -> None:
        self.taking[w] = task
        self._later(self._pop(w, t) + (self.costs.promise_ns if self.early else 0.0), _TOOK, w)

    def _took(self, w: int) -> None:
        """A loader has a task, and all have been told: what that lets go is handed out first."""
        task, t = self.taking[w], self.now
        self._lay_out(w, task, self._promise(task, self.lane_iteration[w], t) if self.early else t)

    def _lay_out(self, w: int, task: int, t: float) -> None:
        """Lay a task out (-1: the iteration holds no more) for its worker and issue its loads, from t on."""
        if task >= 0:
            t += self.costs.layout_ns
            self.laid[w] += 1
            inst = self.lane_iteration[w] * self.n + task
            if self.ring:
                self.loaded[inst] = self.memory.bind(w, self.ahead[task])
                self.memory.refill(w)
            load = self.load[inst]
            if load == load:
                self._later(t + load, _SEEK, w)
            else:  # more than the ring holds: as long as the task runs
                self.streamed[w] = inst
        since = self.unknowing.pop(w, None)
        if since is None:
            self.known[w].append((task, t))
        else:
            self._fetch(w, since, task, t)

    def _fetch(self, w: int, since: float, task: int, known: float) -> None:
        """The worker, free since some time, finds what was laid out."""
        t = max(since, known)
        self._note_pop(w, since, t)
        if task < 0:
            self._leave(w, t)
        else:
            self._take(w, task, t)

    def _task_ended(self, w: int) -> None:
        self.ended[w] += 1
        if self.full[w]:
            self.full[w] = False
            self._seek(w)

    def _drain_ended(self, drain: Drain, it: int) -> float:
        return self.opened[it + 1] if drain.event == ITERATION else self.happened[it * self.n_events + drain.event]

    def _drain_latency(self, drain: Drain) -> float:
        return self.costs.step_ns if drain.event == ITERATION else self.latency[int(Handoff.counter)]

    def _end_drains(self, event: int, t: float) -> None:
        """Workers that idle in a drain until this event go on."""
        for w in list(self.pool.idle):
            drain = self._drain_of(w)
            it = (self.lane_iteration if self.lanes else self.iteration)[w]
            if drain.event == event and self._drain_ended(drain, it) >= 0:
                since = self.pool.idle.pop(w)
                if self.lanes:
                    self._later(self.now, _SEEK, w)
                else:
                    self._leave_drain(w, since, t + self._drain_latency(drain))

    def _leave_drain(self, w: int, since: float, until: float) -> None:
        """A worker that found nothing since some time hears that the drain is over."""
        t = max(since, until)
        if t > since:
            self._note_pop(w, since, t)
        self.at[w] += 1
        self._next(w, t)

    def _bind_next(self, w: int) -> None:
        """The loader of a static queue comes to the next task that streams, of this iteration or of a later one."""
        queue = self.p.queues[w]
        while self.lane_iteration[w] < self.iterations:
            if self.lane_at[w] == len(queue):
                self.lane_at[w], self.lane_iteration[w] = 0, self.lane_iteration[w] + 1
                continue
            task = queue[self.lane_at[w]]
            assert not isinstance(task, Drain)
            self.lane_at[w] += 1
            if self.ahead[task] > 0:
                inst = self.lane_iteration[w] * self.n + task
                self.loaded[inst] = self.memory.bind(w, self.ahead[task])
                self.memory.refill(w)
                if self.outran[w] == inst and not self.memory.take(w, self.loaded[inst]):
                    self._part_done(w)
                return

    # --- afterwards ---

    def timeline(self) -> Timeline:
        n, its, workers = self.n, self.iterations, self.n_workers

        def grid(values: list[float] | list[int], columns: int) -> npt.NDArray[np.float64]:
            return np.array(values).reshape(its, columns)

        end = grid(self.end, n)
        return Timeline(
            program=self.p,
            worker=grid(self.worker, n).astype(np.int64),
            order=grid(self.order, n).astype(np.int64),
            issue=grid(self.issue, n),
            fetched=grid(self.fetched, n),
            waited=grid(self.waited, self.n_waits),
            begin=grid(self.begin, n),
            end=end,
            signalled=end + grid(self.signal, n),
            pushed=grid(self.pushed, n),
            entered=grid(self.entered, workers),
            stepped=grid(self.stepped, workers),
            left=grid(self.left, workers),
            enter_order=grid(self.enter_order, workers).astype(np.int64),
            leave_order=grid(self.leave_order, workers).astype(np.int64),
            pops=np.array(self.pops, np.int64).reshape(-1, 2),
            pop_iteration=np.array(self.pop_iteration, np.int64),
            pop_ns=np.array(self.pop_ns, np.float64).reshape(-1, 2),
            crowding=(_mean(self.crowding[0]), _mean(self.crowding[1])),
        )

    def _hang(self, stuck: list[int]) -> ScheduleError:
        lines = []
        awaited = {row[0]: (row[1], key) for key, rows in self.waiting.items() for row in rows}
        for w in stuck[:4]:
            if w in awaited:
                task, key = awaited[w]
                epoch, event = divmod(key, self.n_events)
                lines.append(
                    f"worker {w} at task {task} waits for event {event} of iteration {epoch}, "
                    f"{self.count[key]} of {self.need[event]} signals"
                )
            else:
                lines.append(f"worker {w} finds nothing to do in iteration {self.iteration[w]}")
        more = f" and {len(stuck) - 4} more workers" if len(stuck) > 4 else ""
        return ScheduleError("the simulated schedule hangs: " + "; ".join(lines) + more)
