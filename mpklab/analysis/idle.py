"""Where every nanosecond of every worker went: the classes of each worker add up to the makespan, to the nanosecond."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mpklab import abi
from mpklab.analysis.intervals import Union
from mpklab.analysis.observed import ALWAYS, Observed, awaited, observe
from mpklab.errors import ProfileError, suggest
from mpklab.frames import NEVER, decode, records
from mpklab.frames.tables import family, operator_columns
from mpklab.profile import Profile

CLASSES = {
    "execute": "the operator runs",
    "gather": "activations and pages are fetched, after the waits",
    "producer": "a wait while the last producer still runs",
    "latency": "the last producer is done; its signal is not seen yet",
    "blocked": "a wait at the queue's head though a later task of the same queue is ready",
    "ready_elsewhere": "a ready task lies elsewhere: in another queue, or not handed out yet",
    "starved": "nothing to do here, no ready task anywhere, the awaited producer not started",
    "remote": "a wait for another device",
    "fetch": "on to the next task: its descriptor is read and decoded",
    "signal": "stores are made visible, events signalled, tasks handed out",
    "ramp": "before the worker's first record",
    "tail": "the worker's queue is done, for this iteration or for good",
    "recording": "writing the records themselves (records × calibrated cost)",
    "unexplained": "between records, or records lost",
}
TURN_NS = 2000  # the longest time between two tasks of a worker that counts as turning from one to the next
NO_TASK = "(none)"
BY_TASK = ("op", "cause", "family", "cause_family", "layer")
NAMES = tuple(CLASSES)
_CODE = {name: i for i, name in enumerate(NAMES)}
_PLAIN = np.full(64, -1, np.int8)
for _phase, _name in (
    ("execute", "execute"),
    ("gather", "gather"),
    ("operand", "gather"),
    ("load", "gather"),
    ("ring", "gather"),
    ("load_wait", "gather"),
    ("fetch", "fetch"),
    ("signal", "signal"),
    ("push", "signal"),
):
    _PLAIN[int(abi.Phase[_phase])] = _CODE[_name]


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Time of workers cut by class: arrays of equal length; `worker` counts over ranks, task and cause are -1 for none.

    cause: the task waited for. begin_ns is when the record that the piece is part of begins.
    """

    worker: np.ndarray
    iteration: np.ndarray
    task: np.ndarray
    cause: np.ndarray
    kind: np.ndarray
    begin_ns: np.ndarray
    ns: np.ndarray
    n_workers: int
    makespan_ns: int


def bubbles(profile: Profile, by: str = "worker", record_ns: float | None = None) -> pd.DataFrame:
    """Nanoseconds of worker time in each class, one row per `by`; every worker's row sums to the makespan exactly.

    `by` is "worker", "op" (the operator whose task the worker held), "cause" (the operator waited for), "family" and
    "cause_family" (the same with layers together), "layer", "iteration" or "all". Classes, in columns: execute,
    gather, producer, latency, blocked, ready_elsewhere, starved, remote, fetch, signal, ramp, tail, recording,
    unexplained (`mpklab.analysis.idle.CLASSES` says what each means);
    makespan_ns is their sum. A wait counts as `blocked` before it counts as `producer`, and what is neither is
    `ready_elsewhere` or `starved`; where one class of a wait ends and the next begins is known to ±
    `frames.residual(profile)`, the sum is exact. Time of no task stands under "(none)", layer -1. `record_ns` is the cost of one
    record (default: what the run calibrated, else 0).
    """
    return placed(profile, by, record_ns)[0]


def placed(profile: Profile, by: str, record_ns: float | None = None) -> tuple[pd.DataFrame, np.ndarray]:
    """`bubbles`, and the row of it in which each of the `pieces` is."""
    p = pieces(profile, record_ns)
    keys: dict[str, Any]
    if by == "worker":
        index = np.arange(p.n_workers)
        code, n = p.worker, p.n_workers
        keys = {"rank": (index // profile.n_workers).astype(np.uint16), "worker": index % profile.n_workers}
        if profile.n_ranks == 1 and index.size:
            keys["rank"] = np.full(n, decode(profile).lanes.rank[0], np.uint16)
    elif by == "all":
        code, n, keys = np.zeros(p.ns.size, np.int64), 1, {"workers": [p.n_workers]}
    elif by in BY_TASK:
        columns = operator_columns(profile, p.cause if by.startswith("cause") else p.task)
        found: Any = columns["layer" if by == "layer" else "op"]
        if by.endswith("family"):
            found = pd.Series(found).map(family, na_action="ignore").astype(object)
        if by != "layer":  # time that is no task's: before the first, between pops
            found = pd.Series(found).astype(object).where(pd.Series(found).notna(), NO_TASK)
        code, names = pd.factorize(found, sort=True)
        n, keys = len(names), {by: pd.Series(list(names), dtype=object if by != "layer" else "int64")}
    elif by == "iteration":
        code, names = pd.factorize(p.iteration, sort=True)
        n, keys = len(names), {"iteration": names}
    else:
        raise ProfileError(f"bubbles(by={by!r}): {suggest(by, ('worker', *BY_TASK, 'iteration', 'all'))}")
    table = np.zeros((n, len(NAMES)), np.int64)
    np.add.at(table, (code, p.kind), p.ns)
    out = pd.DataFrame(keys)
    for i, name in enumerate(NAMES):
        out[name] = table[:, i]
    out["makespan_ns"] = table.sum(1)
    if by not in BY_TASK or by == "layer":
        return out, code
    order = np.argsort(-table.sum(1), kind="stable")
    return out.iloc[order].reset_index(drop=True), np.argsort(order)[code]


_cache: weakref.WeakKeyDictionary[Profile, dict[float, Pieces]] = weakref.WeakKeyDictionary()


def pieces(profile: Profile, record_ns: float | None = None) -> Pieces:
    """All worker time, cut; see `bubbles`."""
    cost = _record_cost(profile) if record_ns is None else float(record_ns)
    known = _cache.setdefault(profile, {})
    if cost not in known:
        known[cost] = _pieces(profile, cost)
    return known[cost]


def _record_cost(profile: Profile) -> float:
    stated = profile.meta.get("record_ns", 0.0)
    fine = isinstance(stated, int | float) and 0 <= stated < 1e6
    return float(stated) if fine else 0.0


def _pieces(profile: Profile, cost: float) -> Pieces:
    d = decode(profile)
    lanes, lpw = d.lanes, profile.lanes_per_worker
    compute = lanes.role[d.lane] == records.COMPUTE
    top = np.nonzero(compute & (d.depth == 0) & (d.chain >= 0))[0]
    n_workers = profile.n_lanes // lpw
    any_compute = d.begin_ns[compute]
    t0 = int(any_compute.min()) if any_compute.size else 0
    t1 = int(d.end_ns[compute].max()) if any_compute.size else 0
    worker = d.lane[top] // lpw
    begin = d.begin_ns[top]
    end = d.end_ns[top].copy()
    same = worker[1:] == worker[:-1]
    if end.size:  # what was cut off mid-way must not reach into its neighbour
        end[:-1] = np.where(same, np.minimum(end[:-1], begin[1:]), end[:-1])
    parts: list[tuple[np.ndarray, ...]] = []

    def add(kind: str | np.ndarray, who: np.ndarray, at: np.ndarray, ns: np.ndarray, of: Any, cause: Any = -1) -> None:
        """Pieces of workers `who`; `of` is (iteration, task)."""
        some = np.nonzero(ns)[0]
        if not some.size:
            return
        code = np.full(who.size, _CODE[kind], np.int8) if isinstance(kind, str) else kind
        columns = (who, of[0], of[1], cause, code, at, ns)
        parts.append(tuple(np.broadcast_to(np.asarray(c), who.shape)[some] for c in columns))

    # Before the first record of a worker and after its last one.
    workers = np.arange(n_workers)
    first = np.full(n_workers, t1)
    np.minimum.at(first, d.lane[compute] // lpw, d.begin_ns[compute])
    last = np.full(n_workers, t0)
    np.maximum.at(last, worker, end)
    lost = (lanes.dropped > 0) & ~lanes.wrapped
    lost_of_worker = lost.reshape(n_workers, lpw)[:, records.COMPUTE]
    ran = np.zeros(n_workers, bool)
    ran[worker] = True
    nothing = (-1, -1)
    add("ramp", workers, np.full(n_workers, t0), np.where(ran, first - t0, 0), nothing)
    rest = t1 - np.where(ran, last, t0)
    after = np.where(lost_of_worker, _CODE["unexplained"], _CODE["tail"]).astype(np.int8)
    add(after, workers, last, rest, nothing)
    # Gaps between neighbours; each holds what its `end` record cost.
    gap_from = np.where(np.r_[False, same], np.r_[0, end[:-1]], first[worker]) if end.size else end
    gap = begin - gap_from
    of_top = (d.iteration[top], d.task[top])
    with_wait = bool((d.phase[top] == records.WAIT).any()) or profile.level >= 2
    spent = np.minimum(gap, round(cost))
    add("recording", worker, gap_from, spent, of_top)
    is_execute = d.phase[top] == records.EXECUTE
    guess = is_execute & (d.task[top] >= 0) if not with_wait else np.zeros(top.size, bool)
    # From the end of a task's signals, of the step or of a pop, to the next pop or fetch, the worker turns to its next
    # task; a gap that takes longer than this can, or where records are lost, says nothing.
    before = (records.SIGNAL, records.PUSH, records.STEP, records.POP)
    turns = np.r_[False, same & np.isin(d.phase[top][:-1], before)] if top.size else is_execute
    turns &= np.isin(d.phase[top], (records.FETCH, records.POP)) & (gap <= TURN_NS)
    turns &= ~np.r_[False, d.truncated[top][:-1]][: top.size]
    between = np.where(turns, _CODE["fetch"], _CODE["unexplained"]).astype(np.int8)
    add(between, worker, gap_from, np.where(guess, 0, gap - spent), of_top)
    # Recording inside a record's own interval: its own, and two for each interval within it.
    inner = np.nonzero(compute & (d.depth > 0))[0]
    inside = np.bincount(np.maximum(np.searchsorted(top, inner) - 1, 0), minlength=max(1, top.size))[: top.size]
    dur = end - begin
    spent = np.minimum(dur, np.rint(cost * (1 + 2 * inside)).astype(np.int64))
    add("recording", worker, begin, spent, of_top)
    body_from = begin + spent
    phase = d.phase[top]
    plain = _PLAIN[phase] >= 0
    add(_PLAIN[phase][plain], worker[plain], begin[plain], (end - body_from)[plain], _pick(of_top, plain))
    for seen in observe(profile):
        mine = lanes.rank[d.lane[top]] == seen.rank
        idle = _Idle(profile, seen)
        for some, low, high, recorded in (
            (mine & (phase == records.WAIT), body_from, end, True),
            (mine & guess, gap_from + np.minimum(gap, round(cost)), begin, False),
        ):
            at = np.nonzero(some)[0]
            spans = top[at] if recorded else None
            for kind, ns, cause in idle.waits(low[at], high[at], d.iteration[top][at], d.task[top][at], spans):
                add(kind, worker[at], low[at], ns, _pick(of_top, at), cause)
        at = np.nonzero(mine & (phase == records.STEP))[0]
        for kind, ns, cause in idle.steps(body_from[at], end[at], d.iteration[top][at]):
            add(kind, worker[at], body_from[at], ns, _pick(of_top, at), cause)
        at = np.nonzero(mine & (phase == records.POP))[0]
        for kind, ns in idle.free(body_from[at], end[at]):
            add(kind, worker[at], body_from[at], ns, _pick(of_top, at))
    columns = [np.concatenate([p[i] for p in parts]) if parts else np.zeros(0, np.int64) for i in range(7)]
    who, iteration, task, cause, code, at, ns = columns
    return Pieces(who, iteration, task, cause, code, at, ns, n_workers, t1 - t0)


def _pick(columns: tuple[np.ndarray, ...], at: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(c[at] for c in columns)


class _Idle:
    """Splits waiting time of one rank. Every class is decided by its own condition; they exclude each other in order."""

    def __init__(self, profile: Profile, seen: Observed):
        self.profile, self.seen = profile, seen
        self.low = int(seen.iterations[0]) if seen.iterations.size else 0
        self.next_ready = _next_ready(profile, seen)
        # When some task was ready but nobody had taken it up yet.
        some = (seen.issue != NEVER) & (seen.ready != ALWAYS) & (seen.ready < seen.issue)
        self.untaken = Union(seen.ready[some], seen.issue[some])

    def free(self, low: np.ndarray, high: np.ndarray) -> list[tuple[str, np.ndarray]]:
        ready = self.untaken.within(low, high)
        return [("ready_elsewhere", ready), ("starved", high - low - ready)]

    def row(self, iteration: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        row = iteration.astype(np.int64) - self.low
        fine = (row >= 0) & (row < self.seen.iterations.size)
        return np.where(fine, row, 0), fine

    def waits(
        self, low: np.ndarray, high: np.ndarray, iteration: np.ndarray, task: np.ndarray, spans: np.ndarray | None
    ) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """(class, ns, cause) of waits over [low, high): as recorded in spans, or for all of the task's where None."""
        if not low.size:
            return []
        seen, rules = self.seen, self.seen.protocol
        row, fine = self.row(iteration)
        known_task = (task >= 0) & (task < self.profile.n_tasks) & fine
        safe = np.where(known_task, task, 0)
        remote = np.zeros(low.size, bool)
        if not seen.iterations.size:
            return [("unexplained", high - low, np.full(low.size, -1, np.int32))]
        if spans is None:
            happened = np.where(known_task, seen.ready[row, safe], ALWAYS)
            cause, cause_row = seen.binding[row, safe], seen.binding_row[row, safe]
            known = known_task & (cause >= 0)
        else:
            happened, cause, cause_row, wait = awaited(self.profile, seen, spans)
            remote = (wait >= 0) & rules.wait_remote[wait] if rules.wait_remote.size else remote
            known = fine & (cause >= 0)
        cause = np.where(known, cause, -1)
        safe_cause, safe_row = np.where(known, cause, 0), np.where(known, cause_row, 0)
        stop = np.where(known, np.clip(happened, low, high), low)
        later = np.where(known_task, self.next_ready[row, safe], ALWAYS)
        free_until = np.clip(later, low, stop)
        running = np.where(known, np.clip(seen.start[safe_row, safe_cause], low, free_until), low)
        ready = self.untaken.within(low, running)
        local = ~remote
        lone = np.where(known, 0, high - low)  # no record of what was waited for
        return [
            ("remote", np.where(remote, stop - low, 0), cause),
            ("blocked", np.where(local, stop - free_until, 0), cause),
            ("producer", np.where(local, free_until - running, 0), cause),
            ("ready_elsewhere", np.where(local, ready, 0), cause),
            ("starved", np.where(local, running - low - ready, 0), cause),
            ("latency" if spans is not None else "unexplained", np.where(known, high - stop, 0), cause),
            ("unexplained", lone, cause),
        ]

    def steps(
        self, low: np.ndarray, high: np.ndarray, iteration: np.ndarray
    ) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """Waits for the next iteration: its publisher's work is this worker's tail."""
        if not low.size:
            return []
        published, by = publication(self.profile, self.seen)
        row, fine = self.row(iteration)
        before = np.where(fine & (row > 0), row - 1, 0)
        known = fine & (row > 0)
        if not published.size:
            return [("unexplained", high - low, np.full(low.size, -1))]
        known &= published[before] != NEVER
        cause = np.where(known, by[before], -1)
        stop = np.where(known, np.clip(published[before], low, high), low)
        first = fine & (row == 0)  # the host published it
        return [
            ("tail", stop - low, cause),
            ("latency", np.where(known, high - stop, 0), cause),
            ("ramp", np.where(first, high - low, 0), cause),
            ("unexplained", np.where(known | first, 0, high - low), cause),
        ]


def publication(profile: Profile, seen: Observed) -> tuple[np.ndarray, np.ndarray]:
    """Per row of the grid: when the next iteration was announced (NEVER: unknown), and by which task.

    The announcing task is the `advance` operator's, or, in a graph without one, whichever ended last.
    """
    n = seen.iterations.size
    if not n or not profile.n_tasks:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    is_step = np.array([o["op"] == "advance" for o in profile.operators], bool)
    steps = np.nonzero(is_step[profile.tasks["operator"]])[0]
    tasks = steps if steps.size else np.arange(profile.n_tasks)
    last = seen.end[:, tasks].argmax(1)
    return seen.end[np.arange(n), tasks[last]], tasks[last]


def _next_ready(profile: Profile, seen: Observed) -> np.ndarray:
    """[iteration, task]: when the first of the later tasks in the same worker's queue was ready; ALWAYS if none was.

    Only for queues that stood before the run: a task that is handed out at run time has none behind it.
    """
    out = np.full(seen.issue.shape, ALWAYS, np.int64)
    fixed = profile.tasks["worker"] >= 0
    for i in range(len(seen.issue)):
        tasks = np.nonzero((seen.issue[i] != NEVER) & fixed)[0]
        if not tasks.size:
            continue
        order = tasks[np.lexsort((seen.issue[i, tasks], seen.worker[i, tasks]))][::-1]
        worker, ready = seen.worker[i, order], seen.ready[i, order]
        new = np.r_[True, worker[1:] != worker[:-1]]
        # Running minimum per worker over the tasks behind: workers are made to lie apart, latest first.
        group = np.cumsum(new) - 1
        rank_of = np.argsort(np.argsort(ready, kind="stable"), kind="stable").astype(np.int64)
        shifted = rank_of - group * (order.size + 1)
        running = np.minimum.accumulate(shifted) + group * (order.size + 1)
        sorted_ready = np.sort(ready, kind="stable")
        behind = np.r_[ALWAYS, sorted_ready[running[:-1]]]
        out[i, order] = np.where(new, ALWAYS, behind)
    return out
