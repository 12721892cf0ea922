"""Two critical paths: what the graph allows with the measured durations, and what the run was in fact waiting for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mpklab.analysis.idle import publication
from mpklab.analysis.observed import Observed, Protocol, graph_protocol, observe
from mpklab.errors import ProfileError
from mpklab.frames import NEVER, decode, ranks, records, residual
from mpklab.frames.tables import category, operator_columns, ranges
from mpklab.profile import Profile

SEGMENTS = ("execute", "gather", "latency", "fetch", "signal", "loop", "ramp", "tail")
REASONS = ("data", "worker", "step", "end")


def blame(profile: Profile, rank: int | None = None) -> pd.DataFrame:
    """The observed path of blame, in order of time: its segments tile the makespan without gap or overlap.

    From the last task backwards: what ran just before, and whose fault was it that this could not begin earlier? The
    producer's, if the worker was waiting for it; else the worker's own, busy with the task before.

    segment: execute, gather, latency (signal given until noticed), fetch, signal, loop (between two tasks of a worker),
    ramp (before the first task), tail (after the last) · iteration, task, op, kind, layer, rank, worker: whose time it
    is · because: how the path got here: data, worker, step (the next iteration was announced), end · begin_ns, end_ns,
    dur_ns · error_ns: the error bar of one segment, whose ends two workers may have stamped. `rank`: the one whose last
    task is looked at (default: the one that ended last).
    """
    _known_rank(profile, "blame", rank)
    d = decode(profile)
    compute = d.lanes.role[d.lane] == records.COMPUTE
    t0 = int(d.begin_ns[compute].min()) if compute.any() else 0
    t1 = int(d.end_ns[compute].max()) if compute.any() else 0
    candidates = [seen for seen in observe(profile) if rank is None or seen.rank == rank]
    candidates = [seen for seen in candidates if seen.done.size and (seen.done != NEVER).any()]
    rows: list[tuple[int, int, int, int, int, int]] = []  # segment, begin, end, row, task, reason
    seen = max(candidates, key=lambda s: int(s.done.max()), default=None)
    if seen is not None:
        rows = _walk(profile, seen, t0, t1)
    elif t1 > t0:
        rows = [(SEGMENTS.index("ramp"), t0, t1, -1, -1, REASONS.index("end"))]
    rows.reverse()
    table = np.array(rows, np.int64).reshape(-1, 6)
    row, task = table[:, 3], table[:, 4]
    known = (task >= 0) & (row >= 0)
    low = int(seen.iterations[0]) if seen is not None else 0
    where = np.where(known, task, 0), np.where(known, row, 0)
    worker = seen.worker[where[1], where[0]] if seen is not None else row
    columns: dict[str, Any] = {
        "segment": category(table[:, 0].astype(np.int8), SEGMENTS),
        "iteration": np.where(known, row + low, -1).astype(np.int32),
        "task": task.astype(np.int32),
        **operator_columns(profile, task.astype(np.int32)),
        "rank": np.full(len(table), seen.rank if seen is not None else 0, np.uint16),
        "worker": np.where(known, worker, -1).astype(np.int32),
        "because": category(table[:, 5].astype(np.int8), REASONS),
        "begin_ns": table[:, 1],
        "end_ns": table[:, 2],
        "dur_ns": table[:, 2] - table[:, 1],
        "error_ns": residual(profile),
    }
    return pd.DataFrame(columns)


def _known_rank(profile: Profile, asked: str, rank: int | None) -> None:
    known = ranks(profile)
    if rank is not None and rank not in known:
        raise ProfileError(f"{asked}(rank=…): expected one of {', '.join(map(str, known))}, found {rank}")


def _walk(profile: Profile, seen: Observed, t0: int, t1: int) -> list[tuple[int, int, int, int, int, int]]:
    """Segments from the end to the beginning; every one ends where the one before it in this list begins."""
    n = profile.n_tasks
    out: list[tuple[int, int, int, int, int, int]] = []
    previous = _previous(seen)
    published, publisher = publication(profile, seen)
    handed_out = profile.tasks["worker"] < 0
    waits_seen = profile.level >= 2
    now = t1

    def add(segment: str, to: int, row: int, task: int, because: str) -> None:
        nonlocal now
        to = max(t0, min(to, now))
        if to < now:
            out.append((SEGMENTS.index(segment), to, now, row, task, REASONS.index(because)))
            now = to

    at = int(seen.done.argmax())
    add("tail", int(seen.done.reshape(-1)[at]), -1, -1, "end")
    because, visited = "end", set()
    while at not in visited:
        visited.add(at)
        row, task = divmod(at, n)
        if because != "data":
            add("signal", int(seen.end[row, task]), row, task, because)
        add("execute", int(seen.begin[row, task]), row, task, because)
        add("gather", int(seen.start[row, task]), row, task, because)
        before = int(previous[at])
        free = int(seen.done.reshape(-1)[before]) if before >= 0 else t0
        p, p_row = int(seen.binding[row, task]), int(seen.binding_row[row, task])
        given = int(seen.end[p_row, p]) if p >= 0 else NEVER
        taken, looked = int(seen.issue[row, task]), int(seen.issue[row, task] + seen.fetch[row, task])
        if given != NEVER and given > (looked if waits_seen and not handed_out[task] else free):
            add("latency", given, row, task, because)
            at, because = p_row * n + p, "data"
            continue
        add("latency", looked, row, task, because)
        add("fetch", taken, row, task, because)
        new_row = before < 0 or before // n < row
        if new_row and row > 0 and published.size and published[row - 1] != NEVER and free < published[row - 1]:
            add("latency", int(published[row - 1]), row, task, because)
            at, because = int((row - 1) * n + publisher[row - 1]), "step"
            continue
        if before < 0:
            break
        add("loop", free, row, task, because)
        at, because = before, "worker"
    if now > t0:
        out.append((SEGMENTS.index("ramp"), t0, now, -1, -1, REASONS.index(because)))
    return out


def _previous(seen: Observed) -> np.ndarray:
    """For every cell of the grid, flat, the cell that ran before it on the same worker; -1 for none."""
    issue, worker = seen.issue.reshape(-1), seen.worker.reshape(-1)
    out = np.full(issue.size, -1, np.int64)
    cells = np.nonzero((issue != NEVER) & (seen.done.reshape(-1) != NEVER))[0]
    cells = cells[np.lexsort((cells, seen.begin.reshape(-1)[cells], issue[cells], worker[cells]))]
    same = worker[cells[1:]] == worker[cells[:-1]]
    out[cells[1:][same]] = cells[:-1][same]
    return out


def critical_path(profile: Profile, handoff_ns: float = 0.0, rank: int | None = None) -> pd.DataFrame:
    """The longest path through the graph with the measured durations (from the end of a task's waits to the end of its
    execution), over all recorded iterations: what infinitely many workers and hand-offs of `handoff_ns` would take.

    One row per task on the path: iteration, task, op, kind, layer, dur_ns, and begin_ns, end_ns on the path's own clock.
    """
    if not 0 <= handoff_ns < np.inf:
        raise ProfileError(f"critical_path(handoff_ns=…): expected a time of 0 ns or more, found {handoff_ns}")
    _known_rank(profile, "critical_path", rank)
    seen = next((s for s in observe(profile) if rank is None or s.rank == rank), None)
    rows: list[tuple[int, int, int, int]] = []
    if seen is not None and seen.iterations.size and profile.n_tasks:
        rules = graph_protocol(profile)
        dur = durations(seen)
        finish, happened = earliest(rules, dur, round(handoff_ns))
        rows = _backwards(rules, dur, finish, happened, round(handoff_ns))
    table = np.array(rows, np.int64).reshape(-1, 4)
    low = int(seen.iterations[0]) if seen is not None and seen.iterations.size else 0
    return pd.DataFrame(
        {
            "iteration": (table[:, 0] + low).astype(np.int32),
            "task": table[:, 1].astype(np.int32),
            **operator_columns(profile, table[:, 1].astype(np.int32)),
            "dur_ns": table[:, 3] - table[:, 2],
            "begin_ns": table[:, 2],
            "end_ns": table[:, 3],
        }
    )


def durations(seen: Observed) -> np.ndarray:
    """[iteration, task]: from the end of the waits to the end of the execution; 0 for what did not run."""
    known = (seen.end != NEVER) & (seen.start != NEVER)
    return np.where(known, np.maximum(0, seen.end - np.where(known, seen.start, 0)), 0)


def earliest(rules: Protocol, dur: np.ndarray, handoff_ns: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """When every task [iteration, task] could have ended and every event happened, without limits on workers."""
    n, n_tasks = dur.shape
    finish = np.zeros((n, n_tasks), np.int64)
    happened = np.zeros((n, rules.n_events), np.int64)
    levels = _levels(rules, n_tasks)
    for i in range(n):
        for tasks, waiters, starts, events, lags, senders, sent in levels:
            begin = np.zeros(tasks.size, np.int64)
            if waiters.size:
                row = i - lags
                times = np.where(row >= 0, happened[np.maximum(row, 0), events] + handoff_ns, 0)
                begin[waiters] = np.maximum.reduceat(times, starts)
            finish[i, tasks] = begin + dur[i, tasks]
            np.maximum.at(happened[i], sent, finish[i, senders])
    return finish, happened


def _levels(rules: Protocol, n_tasks: int) -> list[tuple[np.ndarray, ...]]:
    """Tasks by depth in the graph of one iteration: (tasks; places of those that wait, where their waits begin, the
    events and lags of these; tasks that signal and the events signalled). What lies on a cycle comes last."""
    within = rules.wait_lag == 0
    open_waits = np.bincount(rules.wait_task[within], minlength=n_tasks)
    missing = np.bincount(rules.signal_event, minlength=rules.n_events)
    by_event = np.argsort(rules.wait_event, kind="stable")
    by_event = by_event[within[by_event]]
    waiter_first = np.searchsorted(rules.wait_event[by_event], np.arange(rules.n_events + 1))
    by_task = np.argsort(rules.signal_task, kind="stable")
    signal_first = np.searchsorted(rules.signal_task[by_task], np.arange(n_tasks + 1))
    wait_first = np.searchsorted(rules.wait_task, np.arange(n_tasks + 1))
    # An event that nobody signals in this graph holds nobody up.
    silent = np.isin(rules.wait_event, np.nonzero(missing == 0)[0]) & within
    open_waits -= np.bincount(rules.wait_task[silent], minlength=n_tasks)
    done = np.zeros(n_tasks, bool)
    out: list[tuple[np.ndarray, ...]] = []
    tasks = np.nonzero(open_waits == 0)[0]
    while tasks.size:
        done[tasks] = True
        counts = wait_first[tasks + 1] - wait_first[tasks]
        waits = ranges(wait_first[tasks], counts)
        some = np.nonzero(counts)[0]
        starts = np.r_[0, np.cumsum(counts[some])[:-1]] if some.size else some
        sends = by_task[ranges(signal_first[tasks], signal_first[tasks + 1] - signal_first[tasks])]
        sent = rules.signal_event[sends]
        out.append(
            (
                tasks,
                some,
                starts,
                rules.wait_event[waits],
                rules.wait_lag[waits].astype(np.int64),
                rules.signal_task[sends],
                sent,
            )
        )
        events, times = np.unique(sent, return_counts=True)
        missing[events] -= times
        full = events[missing[events] == 0]
        woken = rules.wait_task[by_event[ranges(waiter_first[full], waiter_first[full + 1] - waiter_first[full])]]
        waiters, times = np.unique(woken, return_counts=True)
        open_waits[waiters] -= times
        tasks = waiters[(open_waits[waiters] == 0) & ~done[waiters]]
        if not tasks.size and not done.all():
            tasks = np.nonzero(~done & (open_waits == 0))[0]
            if not tasks.size:
                tasks = np.nonzero(~done)[0]
                open_waits[:] = 0
    return out


def _backwards(
    rules: Protocol, dur: np.ndarray, finish: np.ndarray, happened: np.ndarray, handoff_ns: int
) -> list[tuple[int, int, int, int]]:
    """The path itself: (row, task, begin, end), first to last."""
    n_tasks = dur.shape[1]
    wait_first = np.searchsorted(rules.wait_task, np.arange(n_tasks + 1))
    signal_first = np.searchsorted(rules.signal_event, np.arange(rules.n_events + 1))
    row, task = (int(x) for x in np.unravel_index(int(finish.argmax()), finish.shape))
    out: list[tuple[int, int, int, int]] = []
    for _ in range(finish.size):
        end = int(finish[row, task])
        begin = end - int(dur[row, task])
        out.append((row, task, begin, end))
        waits = np.arange(wait_first[task], wait_first[task + 1])
        rows = row - rules.wait_lag[waits].astype(np.int64)
        waits, rows = waits[rows >= 0], rows[rows >= 0]
        if begin <= 0 or not waits.size:
            break
        times = happened[rows, rules.wait_event[waits]]
        best = int(times.argmax())
        event, row = int(rules.wait_event[waits[best]]), int(rows[best])
        senders = rules.signal_task[signal_first[event] : signal_first[event + 1]]
        if not senders.size:
            break
        task = int(senders[finish[row, senders].argmax()])
    return out[::-1]
