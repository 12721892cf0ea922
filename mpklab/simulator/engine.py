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
_PUBLISH, _START, _POP, _ARRIVE = range(4)  # what an entry of the engine's heap stands for
_OWN = int(Handoff.worker)


@dataclass(frozen=True, eq=False)
class Timeline:
    """What happened, in ns since the launch; NaN where something did not.

    [iterations, tasks]: worker i64 · order i64: grows along each worker · issue: the worker took the task up · fetched ·
    waited f64[iterations, waits]: when each wait was over · gathered = begin, end: the operator itself · signalled:
    its signals were out · pushed: and what became ready was handed out.
    [iterations, workers]: entered, stepped (StepControl acquired), left; enter_order, leave_order.
    pops: rows (worker, order), pop_ns: rows (begin, end), pop_iteration.
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
        self.fetch, self.gather, self.signal, self.overhead, self.compute = (
            np.broadcast_to(np.atleast_2d(x), (iterations, n)).ravel().tolist()
            for x in (work.fetch, work.gather, work.signal, work.overhead, work.compute)
        )
        self.ahead, self.behind = work.ahead.tolist(), work.behind.tolist()

        modelled = bool(np.isnan(execute).any())
        self.shared = modelled and math.isfinite(min(costs.bandwidth, costs.worker_bandwidth))
        self.ring = self.shared and costs.ring_bytes > 0
        self.memory = Bandwidth(workers, costs.bandwidth, costs.worker_bandwidth, costs.ring_bytes)
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
        self.loads = self.costs.ring_bytes > 0  # a loader also pops ahead, while its worker computes
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
                self._enter(w, 0.0)
        heap, memory, shared = self.heap, self.memory, self.shared
        handlers = {_START: self._begin_shared, _POP: self._drain, _ARRIVE: self._arrive}
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
        self.stepped[at] = t
        self.at[w] = 0
        if self.ring:
            self._bind_run(w)
        self._next(w, t)

    def _next(self, w: int, t: float) -> None:
        """Take up the worker's next queue entry at its time t."""
        queue, at = self.p.queues[w], self.at[w]
        if at < len(queue):
            entry = queue[at]
            if isinstance(entry, Drain):
                self._later(t, _POP, w)  # also when t is now: what was pushed at this moment comes first
            else:
                self.at[w] = at + 1
                self._take(w, entry, t)
            return
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
        self.least[w] = begin + self.compute[inst]
        self.parts[w] = 1
        if self.shared:
            demand = self.behind[task]
            if not self.ring:
                demand += self.ahead[task]
            elif self.memory.take(w, self.loaded[inst]):
                self.parts[w] += 1
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
        self._later(end + self.signal[inst], _PUBLISH, w)

    def _publish(self, w: int) -> None:
        """The running task's signals are out, now."""
        task, it, now = self.running[w], self.iteration[w], self.now
        first = it * self.n_events
        ready: list[int] = []
        for event in self.signals[task]:
            key = first + event
            self.count[key] += 1
            if self.count[key] == self.need[event]:
                self.happened[key] = now
                for other, its_task, k, t, since in self.waiting.pop(key, ()):
                    self._wait(other, its_task, k, t, since)
                if self.dynamic:
                    if not self.early:
                        ready += self._ready(event, it)
                    if event in self.watched:
                        self._end_drains(event, now)
        inst = it * self.n + task
        t = self._push(ready, it, now) if ready else now
        if task == self.p.step_task:
            t = self._open(it + 1, t)
        if self.dynamic:
            self.done_tasks[it] += 1
            if not self.steps and self.done_tasks[it] == self.n:
                t = self._open(it + 1, t)
        self.pushed[inst] = t
        self._next(w, t)

    def _open(self, it: int, t: float) -> float:
        """StepControl of the next iteration stands, or, where there is none, the last task of this one is done."""
        self.opened[it] = t
        self.pool.hungry.clear()  # nobody runs a task any more: what comes now is the next iteration's
        if it < self.iterations and self.at_once:
            t = self._push(self.at_once, it, t)
        for w, since in self.asleep[it]:
            begin = max(since + self.costs.wait_ns, self.opened[it] + self.costs.step_ns)
            self.stepped[it * self.n_workers + w] = begin
            self.at[w] = 0
            if self.ring:
                self._bind_run(w)
            self._next(w, begin)
        self.asleep[it] = []
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

    def _push(self, tasks: list[int], it: int, t: float) -> float:
        """Hand tasks out one after the other; when the last is."""
        t += self.costs.handout_ns
        for task in tasks:
            t += self.costs.push_ns
            self._later(t + self.costs.queue_ns, _ARRIVE, task)
        return t

    def _promise(self, task: int, it: int, t: float) -> float:
        """Early push: a task was popped; what now has all its producers popped may go out."""
        ready: list[int] = []
        for event in self.signals[task]:
            key = it * self.n_events + event
            self.promised[key] += 1
            if self.promised[key] == self.need[event]:
                ready += self._ready(event, it)
        return self._push(ready, it, t) if ready else t

    def _drain(self, w: int) -> None:
        """A worker in a drain is free, now: it runs what it holds, else what it can pop, else it idles."""
        t, drain, pool = self.now, self._drain_of(w), self.pool
        happened = self._drain_ended(drain, self.iteration[w])
        if happened >= 0:
            self._leave_drain(w, t, happened + self._drain_latency(drain))
        elif self.held[w]:
            self._run_held(w, t)
        else:
            pool.hungry.pop(w, None)
            task = pool.pop(pool.queue_of(w))
            if task < 0:
                pool.idle[w] = t
            else:
                self._popped(w, task, t, t)

    def _drain_of(self, w: int) -> Drain:
        entry = self.p.queues[w][self.at[w]]
        assert isinstance(entry, Drain)
        return entry

    def _popped(self, w: int, task: int, since: float, t: float) -> None:
        """The worker, idle since some time, takes a task off its queue at t."""
        queue = self.pool.queue_of(w)
        t = max(t, self.pool.free_at[queue])
        self.pool.free_at[queue] = t + self.costs.serial_ns
        t = self._bound(w, task, t + self.costs.pop_ns)
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
                if self.loads:
                    pool.hungry[w] = None
                break
            held.append(another)
            if self.loads:
                self._bound(w, another, self.now)
            else:
                t = self._bound(w, another, t + self.costs.pop_ns)
        self._take(w, task, t)

    def _bound(self, w: int, task: int, t: float) -> float:
        """A task belongs to a worker from now on: its loader may begin, and what depends on it may be handed out."""
        if self.ring:
            inst = self.iteration[w] * self.n + task
            self.loaded[inst] = self.memory.bind(w, self.ahead[task])
            self.memory.refill(w)
        return self._promise(task, self.iteration[w], t) if self.early else t

    def _note_pop(self, w: int, begin: float, end: float) -> None:
        self.clock += 1
        self.pops.append((w, self.clock))
        self.pop_ns.append((begin, end))
        self.pop_iteration.append(self.iteration[w])

    def _arrive(self, task: int) -> None:
        """A pushed task can be popped from now on."""
        pool = self.pool
        queue = pool.place(task)
        w = pool.taker(queue, pool.idle)
        if w >= 0:
            self._popped(w, task, pool.idle.pop(w), self.now)
            return
        w = pool.taker(queue, pool.hungry)
        if w < 0:
            pool.push(queue, task)
            return
        self.held[w].append(task)
        self._bound(w, task, self.now)
        if len(self.held[w]) >= self.pop_ahead:
            pool.hungry.pop(w, None)

    def _drain_ended(self, drain: Drain, it: int) -> float:
        return self.opened[it + 1] if drain.event == ITERATION else self.happened[it * self.n_events + drain.event]

    def _drain_latency(self, drain: Drain) -> float:
        return self.costs.step_ns if drain.event == ITERATION else self.latency[int(Handoff.counter)]

    def _end_drains(self, event: int, t: float) -> None:
        """Workers that idle in a drain until this event go on."""
        for w in list(self.pool.idle):
            drain = self._drain_of(w)
            if drain.event == event and self._drain_ended(drain, self.iteration[w]) >= 0:
                self._leave_drain(w, self.pool.idle.pop(w), t + self._drain_latency(drain))

    def _leave_drain(self, w: int, since: float, until: float) -> None:
        """A worker that found nothing since some time hears that the drain is over."""
        t = max(since, until)
        if t > since:
            self._note_pop(w, since, t)
        self.pool.hungry.pop(w, None)
        self.at[w] += 1
        if self.ring:
            self._bind_run(w)
        self._next(w, t)

    def _bind_run(self, w: int) -> None:
        """Tell the loader of the queue's tasks up to the next drain; without drains, of the next iteration's too."""
        it, queue = self.iteration[w], self.p.queues[w]
        runs = [(it, self.at[w])]
        if not any(isinstance(e, Drain) for e in queue):
            if it > 0:
                return  # all were bound at the first
            runs = [(i, 0) for i in range(self.iterations)]
        for i, begin in runs:
            for entry in queue[begin:]:
                if isinstance(entry, Drain):
                    break
                self.loaded[i * self.n + entry] = self.memory.bind(w, self.ahead[entry])
        self.memory.refill(w)

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
