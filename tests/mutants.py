"""Schedules as plain lists that can be damaged, and the many ways to damage them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from mpklab.abi import Handoff
from mpklab.schedule import Schedule, from_queues
from mpklab.tasks import TaskGraph


@dataclass
class Draft:
    """A schedule's tables. `own` lists (task, index of its wait) whose hand-off is left to the worker's own order."""

    queues: list[list[int]]
    waits: list[list[tuple[int, int]]]  # of each task: (event, lag)
    signals: list[list[int]]
    need: list[int]
    own: list[tuple[int, int]] | None = None  # None: what the schedule works out itself
    touched: list[int] = field(default_factory=list)  # tasks near the damage

    def copy(self) -> Draft:
        return Draft(
            [list(q) for q in self.queues],
            [list(w) for w in self.waits],
            [list(s) for s in self.signals],
            list(self.need),
            None if self.own is None else list(self.own),
        )

    def signallers(self, event: int) -> list[int]:
        return [t for t, events in enumerate(self.signals) if event in events]

    def waiters(self, event: int) -> list[int]:
        return [t for t, waits in enumerate(self.waits) if any(e == event for e, _ in waits)]


def _rows(first: np.ndarray, *columns: np.ndarray) -> list[list]:
    rows = list(zip(*(c.tolist() for c in columns), strict=True)) if len(columns) > 1 else columns[0].tolist()
    return [rows[a:b] for a, b in zip(first[:-1].tolist(), first[1:].tolist(), strict=True)]


def draft_of(schedule: Schedule) -> Draft:
    """The schedule's tables as lists."""
    t = schedule.tasks
    return Draft(
        [q.tolist() for q in schedule.queues],
        _rows(t.wait_first, t.wait_event, t.wait_lag),
        _rows(t.signal_first, t.signal_event),
        t.need.tolist(),
    )


def schedule_of(tasks: TaskGraph, draft: Draft) -> Schedule:
    """The lists as a schedule over a task graph that has their waits, signals and needs."""

    def first(rows: list[list]) -> np.ndarray:
        return np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)

    def flat(values: list) -> np.ndarray:
        return np.array(values, np.int64)

    changed = replace(
        tasks,
        event_end=tasks.event_begin + flat(draft.need),
        wait_first=first(draft.waits),
        wait_event=flat([e for row in draft.waits for e, _ in row]),
        wait_lag=flat([lag for row in draft.waits for _, lag in row]),
        signal_first=first(draft.signals),
        signal_event=flat([e for row in draft.signals for e in row]),
    )
    made = from_queues(changed, draft.queues)
    if draft.own is not None:
        handoff = np.full(len(changed.wait_event), int(Handoff.counter), np.uint8)
        for task, index in draft.own:
            handoff[changed.wait_first[task] + index] = int(Handoff.worker)
        made.__dict__["handoff"] = handoff
    return made


# --- damage: each changes a draft in place, or returns False where there is nothing to change -------------------------

Mutation = Callable[[random.Random, Draft], bool]
MUTATIONS: dict[str, Mutation] = {}


def _mutation(function: Mutation) -> Mutation:
    MUTATIONS[function.__name__] = function
    return function


def _a_wait(rng: random.Random, d: Draft) -> tuple[int, int] | None:
    places = [(t, i) for t, waits in enumerate(d.waits) for i in range(len(waits))]
    return rng.choice(places) if places else None


def _a_signal(rng: random.Random, d: Draft) -> tuple[int, int] | None:
    places = [(t, i) for t, events in enumerate(d.signals) for i in range(len(events))]
    return rng.choice(places) if places else None


@_mutation
def drop_wait(rng: random.Random, d: Draft) -> bool:
    place = _a_wait(rng, d)
    if place:
        event, _ = d.waits[place[0]].pop(place[1])
        d.touched = [place[0], *d.signallers(event)]
    return bool(place)


@_mutation
def drop_lagged(rng: random.Random, d: Draft) -> bool:
    """A wait for the iteration before goes, where there is one."""
    places = [(t, i) for t, waits in enumerate(d.waits) for i, (_, lag) in enumerate(waits) if lag]
    if places:
        task, i = rng.choice(places)
        event, _ = d.waits[task].pop(i)
        d.touched = [task, *d.signallers(event)]
    return bool(places)


@_mutation
def drop_event(rng: random.Random, d: Draft) -> bool:
    """Nobody waits for it any more."""
    if not d.need:
        return False
    event = rng.randrange(len(d.need))
    d.touched = d.waiters(event) + d.signallers(event)
    d.waits = [[w for w in waits if w[0] != event] for waits in d.waits]
    return True


@_mutation
def flip_lag(rng: random.Random, d: Draft) -> bool:
    place = _a_wait(rng, d)
    if place:
        task, i = place
        event, lag = d.waits[task][i]
        d.waits[task][i] = (event, 1 - lag)
        d.touched = [task, *d.signallers(event)]
    return bool(place)


@_mutation
def other_event(rng: random.Random, d: Draft) -> bool:
    place = _a_wait(rng, d)
    if not place or len(d.need) < 2:
        return False
    task, i = place
    event, lag = d.waits[task][i]
    other = rng.choice([e for e in range(len(d.need)) if e != event])
    d.waits[task][i] = (other, lag)
    d.touched = [task, *d.signallers(event)]
    return True


@_mutation
def extra_wait(rng: random.Random, d: Draft) -> bool:
    """Harmless, or a cycle."""
    if not d.need:
        return False
    task, event = rng.randrange(len(d.waits)), rng.randrange(len(d.need))
    d.waits[task].append((event, rng.choice((0, 0, 1))))
    d.touched = [task, *d.signallers(event)]
    return True


@_mutation
def drop_signal(rng: random.Random, d: Draft) -> bool:
    place = _a_signal(rng, d)
    if place:
        event = d.signals[place[0]].pop(place[1])
        d.touched = [place[0], *d.waiters(event)]
    return bool(place)


@_mutation
def forget_producer(rng: random.Random, d: Draft) -> bool:
    """A signal less, and a need less: the counts agree, the event says too little."""
    place = _a_signal(rng, d)
    if not place:
        return False
    event = d.signals[place[0]].pop(place[1])
    d.need[event] -= 1
    d.touched = [place[0], *d.waiters(event)]
    return True


@_mutation
def swap_producer(rng: random.Random, d: Draft) -> bool:
    """Another task signals instead."""
    place = _a_signal(rng, d)
    if not place:
        return False
    event = d.signals[place[0]].pop(place[1])
    other = rng.choice([t for t in range(len(d.signals)) if t != place[0]])
    d.signals[other].append(event)
    d.touched = [place[0], other, *d.waiters(event)]
    return True


@_mutation
def change_need(rng: random.Random, d: Draft) -> bool:
    if not d.need:
        return False
    event = rng.randrange(len(d.need))
    d.need[event] += rng.choice((-1, 1))
    d.touched = d.signallers(event) + d.waiters(event)
    return True


def _a_queue(rng: random.Random, d: Draft, least: int) -> int | None:
    known = [w for w, q in enumerate(d.queues) if len(q) >= least]
    return rng.choice(known) if known else None


@_mutation
def swap_neighbours(rng: random.Random, d: Draft) -> bool:
    w = _a_queue(rng, d, 2)
    if w is None:
        return False
    i = rng.randrange(len(d.queues[w]) - 1)
    d.queues[w][i : i + 2] = d.queues[w][i : i + 2][::-1]
    d.touched = d.queues[w][i : i + 2]
    return True


@_mutation
def swap_tasks(rng: random.Random, d: Draft) -> bool:
    """Two tasks trade places."""
    places = [(w, i) for w, q in enumerate(d.queues) for i in range(len(q))]
    (a, i), (b, j) = rng.sample(places, 2)
    d.queues[a][i], d.queues[b][j] = d.queues[b][j], d.queues[a][i]
    d.touched = [d.queues[a][i], d.queues[b][j]]
    return True


@_mutation
def move_task(rng: random.Random, d: Draft) -> bool:
    w = _a_queue(rng, d, 1)
    if w is None:
        return False
    task = d.queues[w].pop(rng.randrange(len(d.queues[w])))
    target = d.queues[rng.randrange(len(d.queues))]
    target.insert(rng.randint(0, len(target)), task)
    d.touched = [task]
    return True


def _both(rng: random.Random, d: Draft, first: Mutation, second: Mutation) -> bool:
    if not first(rng, d):
        return False
    touched = d.touched
    done = second(rng, d)
    d.touched = [x for pair in zip(touched, d.touched, strict=False) for x in pair] + touched + d.touched
    return done


@_mutation
def drop_and_move(rng: random.Random, d: Draft) -> bool:
    """A wait less, where the old place of the task might have hidden it."""
    return _both(rng, d, drop_wait, move_task)


@_mutation
def drop_two(rng: random.Random, d: Draft) -> bool:
    return _both(rng, d, drop_wait, drop_wait)


@_mutation
def trust_own_worker(rng: random.Random, d: Draft) -> bool:
    """A wait on a counter is taken for one that the worker's own order answers."""
    place = _a_wait(rng, d)
    if not place:
        return False
    d.own = [*(d.own or []), place]
    d.touched = [place[0], *d.signallers(d.waits[place[0]][place[1]][0])]
    return True
