"""A simulated timeline as what a device would have recorded: the spans table, and lanes of records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mpklab import abi
from mpklab.abi import Handoff
from mpklab.simulator.engine import Timeline
from mpklab.simulator.program import Program

I64 = npt.NDArray[np.int64]
PHASES = tuple(p.name for p in abi.Phase if p not in (abi.Phase.none, abi.Phase.global_time))
ROLES = tuple(r.name for r in abi.Role)
GLOBAL_ZERO_NS = 1_700_000_000_000_000_000  # the global timer at the launch, as encoded lanes state it
_GATHER_SLOT = abi.MAX_WAITS + 2  # fetch is 0, waits follow; gather, execute, signal and push stand here and after it
_SLOTS = 16


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Spans as columns, ordered by worker and time. `first`, `last`: where a chain of phases begins and ends."""

    worker: I64
    phase: I64  # abi.Phase
    iteration: I64
    task: I64
    event: I64
    begin_ns: I64
    end_ns: I64
    first: npt.NDArray[np.bool_]
    last: npt.NDArray[np.bool_]
    place: I64  # order along all workers × slots
    leave: I64  # for an iteration the place of its end


def collect(timeline: Timeline) -> Spans:
    """Every phase of every task, pops, steps and iterations."""
    t, p = timeline, timeline.program
    iteration, task = np.nonzero(~np.isnan(t.end))
    worker, base = t.worker[iteration, task], t.order[iteration, task] * _SLOTS
    rows: list[tuple[Any, ...]] = []  # worker, phase, iteration, task, event, begin, end, first, last, place, leave

    def add(
        phase: abi.Phase, who: Any, it: Any, of: Any, event: Any, begin: Any, end: Any, first: Any, last: Any, place: Any,
        leave: Any = 0,
    ) -> None:  # fmt: skip
        columns = (who, int(phase), it, of, event, begin, end, first, last, place, leave)
        rows.append(tuple(np.broadcast_to(np.asarray(c), np.shape(begin)) for c in columns))

    begin, end = t.begin[iteration, task], t.end[iteration, task]
    fetched = t.fetched[iteration, task]
    add(abi.Phase.fetch, worker, iteration, task, -1, t.issue[iteration, task], fetched, True, False, base)
    # Waits: of an instance those of its task, each from the end of the one before.
    counts = np.diff(p.wait_first)[task]
    row = np.repeat(np.arange(len(task)), counts)
    rank = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    wait = p.wait_first[task][row] + rank
    until = t.waited[iteration[row], wait]
    told, over = _told(p, task, row, wait, rank, fetched, until)
    since = np.where(rank == 0, fetched[row], np.r_[0.0, over[:-1]])
    add(abi.Phase.wait, worker[row[told]], iteration[row[told]], task[row[told]], p.wait_event[wait[told]], since[told],
        over[told], False, False, base[row[told]] + 1 + np.minimum(rank[told], _GATHER_SLOT - 2))  # fmt: skip
    ready = fetched.copy()
    ready[row] = until  # of equal rows the last stays, which is the last wait
    some = begin > ready
    add(abi.Phase.gather, worker[some], iteration[some], task[some], -1, ready[some], begin[some], False, False,
        base[some] + _GATHER_SLOT)  # fmt: skip
    add(abi.Phase.execute, worker, iteration, task, -1, begin, end, False, False, base + _GATHER_SLOT + 1)
    signalled, pushed = t.signalled[iteration, task], t.pushed[iteration, task]
    pushes = pushed > signalled
    add(abi.Phase.signal, worker, iteration, task, -1, end, signalled, False, ~pushes, base + _GATHER_SLOT + 2)
    event = np.append(p.signal_event, -1)[p.signal_first[task + 1] - 1]
    add(abi.Phase.push, worker[pushes], iteration[pushes], task[pushes], event[pushes], signalled[pushes],
        pushed[pushes], False, True, base[pushes] + _GATHER_SLOT + 3)  # fmt: skip
    add(abi.Phase.pop, t.pops[:, 0], t.pop_iteration, -1, -1, t.pop_ns[:, 0], t.pop_ns[:, 1], True, True,
        t.pops[:, 1] * _SLOTS)  # fmt: skip
    it, who = np.nonzero(~np.isnan(t.left))
    entered, stepped, enter = t.entered[it, who], t.stepped[it, who], t.enter_order[it, who] * _SLOTS
    add(
        abi.Phase.iteration,
        who,
        it,
        -1,
        -1,
        entered,
        t.left[it, who],
        True,
        False,
        enter,
        t.leave_order[it, who] * _SLOTS,
    )
    if p.step_task >= 0:
        add(abi.Phase.step, who, it, -1, -1, entered, stepped, True, True, enter + 1)
    columns = [np.concatenate([r[i] for r in rows]) for i in range(11)]
    order = np.argsort(columns[0].astype(np.int64) << 44 | columns[9].astype(np.int64), kind="stable")
    made: list[Any] = [np.rint(c[order]).astype(np.int64) for c in columns]
    made[7], made[8] = made[7] != 0, made[8] != 0
    return Spans(*made)


def _told(
    p: Program,
    task: I64,
    row: I64,
    wait: I64,
    rank: I64,
    fetched: npt.NDArray[np.float64],
    until: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Which waits a device records, and when each record is over: a task reads its words after all else that it waits
    for, and in no order. So its last record lasts until all are there, an earlier one of words no time at all, and a task
    that waits for words alone has but the first record."""
    words, counters = np.zeros((2, p.n_tasks), bool)
    waiter = np.repeat(np.arange(p.n_tasks), np.diff(p.wait_first))
    words[waiter[p.handoff == int(Handoff.data)]] = True
    counters[waiter[p.handoff == int(Handoff.counter)]] = True
    last = np.r_[row[1:] != row[:-1], True] if len(row) else np.zeros(0, bool)
    alone = (words & ~counters)[task[row]]
    ends = np.zeros(len(task))
    ends[row[last]] = until[last]
    counted = np.where((p.handoff[wait] == int(Handoff.data)) & ~last, fetched[row], until)
    # Along each task's waits no record is over before the one ahead of it: a wait's own time grows with its rank.
    for k in range(1, int(rank.max(initial=0)) + 1):
        some = np.nonzero(rank == k)[0]
        counted[some] = np.maximum(counted[some], counted[some - 1])
    return ~alone | (rank == 0), np.where(alone, ends[row], counted)


def frame(spans: Spans, operators: Sequence[tuple[str, str, int]], operator_of: I64) -> pd.DataFrame:
    """The table that `frames.spans` gives for a recording; `operators` are (name, kind, layer)."""
    n = len(spans.worker)
    zero = int(spans.begin_ns.min(initial=0)) if n else 0
    tick = max(1, int(np.gcd.reduce(np.r_[spans.begin_ns, spans.end_ns], initial=0)))
    which = np.append(operator_of, -1)[spans.task]  # the last entry answers for -1
    columns: dict[str, Any] = {
        "rank": np.zeros(n, np.uint16),
        "worker": spans.worker.astype(np.uint16),
        "sm": spans.worker.astype(np.int32),
        "role": _category(np.zeros(n, np.int8), ROLES),
        "phase": _category((spans.phase - 1).astype(np.int8), PHASES),
        "iteration": spans.iteration.astype(np.int32),
        "task": spans.task.astype(np.int32),
    }
    for column, i in (("op", 0), ("kind", 1)):
        place: dict[str, int] = {}
        codes = np.array([*(place.setdefault(str(o[i]), len(place)) for o in operators), -1], np.int64)
        small = np.int8 if len(place) < 127 else np.int16 if len(place) < 32767 else np.int32
        columns[column] = _category(codes.astype(small)[which], tuple(place))
    columns |= {
        "layer": np.array([o[2] for o in operators] + [-1], np.int16)[which],
        "event": spans.event.astype(np.int32),
        "begin_ns": spans.begin_ns - zero,
        "end_ns": spans.end_ns - zero,
        "dur_ns": spans.end_ns - spans.begin_ns,
        "error_ns": np.full(n, tick / np.sqrt(6), np.float32),  # both ends are in whole ticks, `frames.accuracy.error`
        "truncated": np.zeros(n, bool),
    }
    return pd.DataFrame(columns, copy=False)


def _category(codes: npt.NDArray[Any], names: tuple[str, ...]) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, categories=pd.Index(names, dtype=object))


def lanes(spans: Spans, workers: int) -> npt.NDArray[np.uint8]:
    """The lanes that a device would have left: one per worker, level 2, its clock in nanoseconds."""
    is_iteration = spans.phase == int(abi.Phase.iteration)
    argument = np.where(
        np.isin(spans.phase, [int(abi.Phase.wait), int(abi.Phase.push)]),
        spans.event,
        np.where(np.isin(spans.phase, [int(abi.Phase.iteration), int(abi.Phase.step)]), spans.iteration, spans.task),
    )
    argument = np.where(spans.phase == int(abi.Phase.pop), 0, argument) & ((1 << abi.ARG_BITS) - 1)
    tag = spans.phase << 2 | argument << 8
    opening = np.where(spans.first, int(abi.Kind.begin), int(abi.Kind.next)) | tag
    now = spans.begin_ns + GLOBAL_ZERO_NS
    anchor = int(abi.Kind.value) | int(abi.Phase.global_time) << 2 | (now >> 32 & 0xFFFFFF) << 8
    chained, whole = spans.last, is_iteration
    parts = (
        (spans.worker, spans.place * 4, opening, spans.begin_ns),
        (spans.worker[whole], spans.place[whole] * 4 + 1, anchor[whole], now[whole]),
        (spans.worker[chained], spans.place[chained] * 4 + 2, int(abi.Kind.end) | tag[chained], spans.end_ns[chained]),
        (spans.worker[whole], spans.leave[whole] * 4, int(abi.Kind.end) | tag[whole], spans.end_ns[whole]),
    )
    worker, place, tags, clock = (np.concatenate([p[i] for p in parts]) for i in range(4))
    order = np.argsort(worker << 46 | place, kind="stable")
    written = np.bincount(worker, minlength=workers)
    capacity = int(written.max(initial=0))
    lane = np.dtype([("head", abi.LANE), ("records", abi.RECORD, (capacity,))])
    out = np.zeros(workers, lane)
    column = np.arange(len(order)) - np.repeat(np.cumsum(written) - written, written)
    records = np.zeros(len(order), abi.RECORD)
    records["tag"], records["clock"] = tags[order], clock[order] & 0xFFFFFFFF
    out["records"][worker[order], column] = records
    last = np.zeros(workers, np.int64)
    np.maximum.at(last, spans.worker, spans.end_ns)
    head = out["head"]
    head["magic"], head["version"], head["level"] = abi.LANE_MAGIC, abi.VERSION, 2
    head["worker"], head["sm"], head["clock_unit"] = np.arange(workers), np.arange(workers), int(abi.Clock.nanoseconds)
    head["capacity"], head["written"] = capacity, written
    head["begin_global_ns"], head["end_global_ns"], head["end_clock"] = GLOBAL_ZERO_NS, GLOBAL_ZERO_NS + last, last
    out["head"] = head
    return out.view(np.uint8).reshape(-1)
