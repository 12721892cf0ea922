"""What the engine runs: tasks with their waits and signals, and who decides where each of them runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mpklab import recipe
from mpklab.abi import Handoff
from mpklab.errors import ProfileError, ScheduleError, suggest
from mpklab.ops import REGISTRY
from mpklab.profile import Profile
from mpklab.schedule import Drain, Handout, Schedule

IntArray = npt.NDArray[np.int64]
MODES = ("static", "dynamic")  # that a schedule of another mode can be played in


@dataclass(frozen=True)
class Program:
    """Tasks, events and workers as plain arrays, from a schedule, a profile, or by hand.

    wait_first i64[n + 1] into wait_event, wait_lag, handoff (abi.Handoff) · signal_first, signal_event likewise ·
    need i64[events] · queues: per worker a sequence of task ids and `Drain`s, walked once per iteration · pooled
    bool[n]: tasks that are handed out at run time, as `handout` says · home i64[n]: the worker whose queue such a task is
    pushed to where there is one per worker, -1 for each in turn · priority f64[n]: the ready task of the highest goes
    first, the oldest of equals · step_task: publishes the next iteration's StepControl, -1 for none · words: the events
    that nobody counts, since what they stand for is handed over by its own words.
    """

    queues: tuple[tuple[int | Drain, ...], ...]
    wait_first: IntArray
    wait_event: IntArray
    wait_lag: IntArray
    handoff: npt.NDArray[np.uint8]
    signal_first: IntArray
    signal_event: IntArray
    need: IntArray
    pooled: npt.NDArray[np.bool_]
    home: IntArray
    priority: npt.NDArray[np.float64]
    handout: Handout
    step_task: int = -1
    words: frozenset[int] = frozenset()

    @property
    def n_tasks(self) -> int:
        return len(self.wait_first) - 1

    @property
    def n_workers(self) -> int:
        return len(self.queues)

    @staticmethod
    def of_schedule(schedule: Schedule, mode: str | None = None, handout: Handout | None = None) -> Program:
        """The program of a schedule, as it is or in another mode (its placement then says where tasks are at home)."""
        t = schedule.tasks
        program = Program(
            queues=entries(schedule.queues, schedule.drains),
            wait_first=t.wait_first,
            wait_event=t.wait_event,
            wait_lag=t.wait_lag,
            handoff=schedule.handoff,
            signal_first=t.signal_first,
            signal_event=t.signal_event,
            need=t.need,
            pooled=schedule.worker < 0,
            home=schedule.worker if schedule.home is None else schedule.home,
            priority=-(schedule.ring % schedule.handout.classes).astype(float)
            if schedule.handout
            else np.zeros(len(t)),
            handout=schedule.handout or Handout(),
            step_task=t.step_task,
            words=frozenset(np.flatnonzero(schedule.by_words[t.event_producer]).tolist()),
        )
        if mode is None or mode == schedule.mode:
            return program if handout is None else replace(program, handout=handout)
        if mode == "static":
            raise ScheduleError("a schedule that leaves tasks to be handed out has no place for them in static queues")
        return program.as_dynamic(schedule.workers, handout, mode)

    @staticmethod
    def of_profile(profile: Profile) -> Program:
        """The program that a profile recorded; how tasks of a pool are handed out is in its recipe."""
        tasks, waits, signals = profile.tasks, profile.waits, profile.signals
        n = profile.n_tasks
        worker, position = tasks["worker"].astype(np.int64), tasks["position"].astype(np.int64)
        order = np.lexsort((position, worker))
        order = order[worker[order] >= 0]
        cuts = np.searchsorted(worker[order], np.arange(1, profile.n_workers))
        steps = [i for i, o in enumerate(profile.operators) if o["op"] in REGISTRY.ops and REGISTRY.ops[o["op"]].step]
        handout, home, drains = recipe.handed_out(profile)
        if handout is not None and (home is None or len(home) != n or len(drains) != profile.n_workers):
            raise ProfileError("the profile's recipe of what was handed out does not fit its tasks and workers")
        program = Program(
            queues=entries(np.split(order, cuts), drains),
            wait_first=waits["wait_begin"].astype(np.int64),
            wait_event=waits["wait_event"].astype(np.int64),
            wait_lag=waits["wait_lag"].astype(np.int64),
            handoff=np.full(len(waits["wait_event"]), Handoff.counter, np.uint8),
            signal_first=signals["signal_begin"].astype(np.int64),
            signal_event=signals["signal_event"].astype(np.int64),
            need=np.bincount(signals["signal_event"], minlength=profile.n_events).astype(np.int64),
            pooled=worker < 0,
            home=worker if home is None else home,
            priority=np.zeros(n),
            handout=handout or Handout(),
            step_task=int(profile.task_first[steps[0]]) if steps else -1,
            words=frozenset(np.flatnonzero(recipe.events_by_words(profile)).tolist()),
        )
        if (worker < 0).any() and handout is None:
            return program.as_dynamic(profile.n_workers)
        return replace(program, handoff=program.place_handoffs(worker, position))

    def place_handoffs(self, worker: IntArray, position: IntArray) -> npt.NDArray[np.uint8]:
        """abi.Handoff of every wait under a placement: `worker` where all producers ran before on the same worker, else
        `data` for events that words stand for."""
        signaller = np.repeat(np.arange(self.n_tasks), np.diff(self.signal_first))
        consumer = np.repeat(np.arange(self.n_tasks), np.diff(self.wait_first))
        n = len(self.need)
        low, high, last = np.full(n, self.n_workers), np.full(n, -1), np.full(n, -1)
        np.minimum.at(low, self.signal_event, worker[signaller])
        np.maximum.at(high, self.signal_event, worker[signaller])
        np.maximum.at(last, self.signal_event, position[signaller])
        e = self.wait_event
        own = (low[e] == high[e]) & (low[e] == worker[consumer]) & (low[e] >= 0)
        own &= (self.wait_lag == 1) | (last[e] < position[consumer])
        by_words = np.zeros(n, bool)
        by_words[list(self.words)] = True
        kind = np.where(by_words[e], int(Handoff.data), int(Handoff.counter))
        return np.where(own, int(Handoff.worker), kind).astype(np.uint8)

    def as_static(self, queues: Sequence[Sequence[int]]) -> Program:
        """The same tasks in static queues."""
        worker, position = np.full(self.n_tasks, -1, np.int64), np.full(self.n_tasks, -1, np.int64)
        for w, queue in enumerate(queues):
            worker[list(queue)], position[list(queue)] = w, np.arange(len(queue))
        if (worker < 0).any() or sum(map(len, queues)) != self.n_tasks:
            raise ScheduleError(f"static queues must hold each of {self.n_tasks} tasks once")
        made = replace(
            self,
            queues=tuple(tuple(int(t) for t in q) for q in queues),
            pooled=np.zeros(self.n_tasks, bool),
            home=worker,
        )
        return replace(made, handoff=made.place_handoffs(worker, position))

    def as_dynamic(self, workers: int, handout: Handout | None = None, mode: str = "dynamic") -> Program:
        """The same tasks, all handed out at run time, for which events must be counted."""
        if mode not in MODES:
            raise ScheduleError(f"unknown mode {mode!r}: {suggest(mode, MODES)}")
        return replace(
            self,
            queues=((Drain(0),),) * workers,
            pooled=np.ones(self.n_tasks, bool),
            home=np.where(self.home < workers, self.home, -1),
            handoff=np.full(len(self.wait_event), Handoff.counter, np.uint8),
            handout=handout or self.handout,
            words=frozenset(),
        )

    def with_priorities(self, seconds: Any) -> Program:
        """Priority = the longest path of durations still ahead of a task, through this iteration's events."""
        ahead = np.zeros(self.n_tasks)
        event_ahead = np.zeros(len(self.need))
        for task in reversed(self._order()):
            after = self.signal_event[self.signal_first[task] : self.signal_first[task + 1]]
            ahead[task] = seconds[task] + (event_ahead[after].max() if len(after) else 0.0)
            row = slice(self.wait_first[task], self.wait_first[task + 1])
            for event in self.wait_event[row][self.wait_lag[row] == 0]:
                event_ahead[event] = max(event_ahead[event], ahead[task])
        return replace(self, priority=ahead)

    def _order(self) -> list[int]:
        """Tasks so that each comes after those it waits for in its own iteration; ScheduleError on a cycle."""
        waiting: list[list[int]] = [[] for _ in self.need]
        left = [0] * self.n_tasks
        for task in range(self.n_tasks):
            for i in range(int(self.wait_first[task]), int(self.wait_first[task + 1])):
                if self.wait_lag[i] == 0:
                    waiting[self.wait_event[i]].append(task)
                    left[task] += 1
        missing = self.need.tolist()
        order = [task for task in range(self.n_tasks) if not left[task]]
        for task in order:  # grows while it is walked
            for event in self.signal_event[self.signal_first[task] : self.signal_first[task + 1]].tolist():
                missing[event] -= 1
                if missing[event] == 0:
                    for after in waiting[event]:
                        left[after] -= 1
                        if left[after] == 0:
                            order.append(after)
        if len(order) < self.n_tasks:
            raise ScheduleError(f"{self.n_tasks - len(order)} tasks wait for each other in a circle")
        return order


def entries(queues: Sequence[IntArray], drains: Sequence[Sequence[Drain]]) -> tuple[tuple[int | Drain, ...], ...]:
    """Each worker's queue with its drains in their places."""
    rows: list[tuple[int | Drain, ...]] = []
    for w, queue in enumerate(queues):
        row: list[int | Drain] = []
        left = list(drains[w]) if drains else []
        for position, task in enumerate(queue.tolist()):
            while left and left[0].position <= position:
                row.append(left.pop(0))
            row.append(task)
        rows.append((*row, *left))
    return tuple(rows)
