"""Schedules whose timeline is known by construction: a few lines say what happens, the profile is made from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from lanes import Span, encode

from mpklab.profile import Profile


@dataclass(frozen=True)
class Op:
    """An operator: name, the operators its tiles wait for (each tile for all of their tiles), and its tiles."""

    name: str
    tiles: int = 1
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()  # those of the iteration before: lag 1
    kind: str = "linear"
    layer: int = -1
    words: bool = False  # handed over by them: a task's waits for such operators are one record


@dataclass(frozen=True)
class Run:
    """One task of one worker's queue: when it is taken up and how long its phases take; waits end at `until`."""

    op: str
    tile: int
    execute: int
    fetch: int = 0
    gather: int = 0
    signal: int = 0
    until: int | None = None


def make(
    ops: Sequence[Op],
    queues: Sequence[Sequence[Sequence[Run]]],
    *,
    latency: int = 0,
    level: int = 2,
    gap: int = 0,
    start: Sequence[int] = (),
    dynamic: bool = False,
    meta: dict | None = None,
    bytes_per_task: float = 0.0,
    flops_per_task: float = 0.0,
    **encoding,
) -> Profile:
    """The profile of queues[iteration][worker] = tasks in order.

    The run is worked out event by event: a task's waits end `latency` ns after its last producer has executed (its
    event is its producer operator's), or at once. Each worker starts at `start[worker]` (0).
    """
    index = {op.name: i for i, op in enumerate(ops)}
    first = np.cumsum([0, *(op.tiles for op in ops)])
    n_workers = len(queues[0])
    now = [start[w] if w < len(start) else 0 for w in range(n_workers)]
    executed: dict[tuple[int, int], int] = {}
    spans: dict[int, list[Span]] = {w: [] for w in range(n_workers)}
    for it, queue in enumerate(queues):
        begun = list(now)
        made: dict[int, list[Span]] = {w: [] for w in range(n_workers)}
        left = [list(q) for q in queue]
        while any(left):
            moved = False
            for w, q in enumerate(left):
                while q:
                    run = q[0]
                    op = ops[index[run.op]]
                    needs = [(p, it) for p in op.after] + [(p, it - 1) for p in op.before if it > 0]
                    producers = [(int(t), i) for p, i in needs for t in range(first[index[p]], first[index[p] + 1])]
                    if any(p not in executed for p in producers):
                        break
                    q.pop(0)
                    moved = True
                    task = int(first[index[run.op]]) + run.tile
                    t = now[w] + (gap if made[w] else 0)
                    phases = [("fetch", task, run.fetch)] if level > 1 else []
                    at = t + run.fetch
                    by_words = [p for p, _ in needs if ops[index[p]].words]
                    for p, i in needs:
                        seen = max(executed[int(x), i] for x in range(first[index[p]], first[index[p] + 1]))
                        done = max(at, seen + latency if run.until is None else run.until)
                        if level > 1 and p in by_words[1:]:
                            phases[-1] = ("wait", phases[-1][1], phases[-1][2] + done - at)
                        elif level > 1:
                            phases.append(("wait", index[p], done - at))
                        at = done
                    for name, dur in (("gather", run.gather), ("execute", run.execute), ("signal", run.signal)):
                        if level > 1 or name == "execute":
                            phases.append((name, task, dur))
                    begin = t if level > 1 else at + run.gather
                    for name, arg, dur in phases:
                        made[w].append(Span(w, 0, name, arg, begin, begin + dur))
                        if name == "execute":
                            executed[task, it] = begin + dur
                        begin += dur
                    now[w] = begin if level > 1 else begin + run.signal
            assert moved, "the queues hang"
        for w in range(n_workers):
            spans[w] += [Span(w, 0, "iteration", it, begun[w], now[w]), *made[w]]
    worker, position = np.full((2, int(first[-1])), -1)
    if not dynamic:
        for w, q in enumerate(queues[0]):
            for i, run in enumerate(q):
                worker[first[index[run.op]] + run.tile], position[first[index[run.op]] + run.tile] = w, i
    waits = [
        (t, index[p], lag)
        for op in ops
        for t in range(first[index[op.name]], first[index[op.name] + 1])
        for lag, names in enumerate((op.after, op.before))
        for p in names
    ]
    n = int(first[-1])
    operator = np.repeat(np.arange(len(ops)), [op.tiles for op in ops])
    return Profile.from_parts(
        encode([s for w in range(n_workers) for s in spans[w]], n_workers, level=level, **encoding),
        n_workers,
        level=level,
        operators=[
            {"name": op.name, "op": op.kind, "layer": op.layer, **({"handoff": "data"} if op.words else {})}
            for op in ops
        ],
        tasks={
            "operator": operator,
            "worker": worker,
            "position": position,
            "bytes": np.full(n, bytes_per_task),
            "flops": np.full(n, flops_per_task),
        },
        waits={
            "wait_begin": np.searchsorted([w[0] for w in waits], np.arange(n + 1)),
            "wait_event": [w[1] for w in waits],
            "wait_lag": [w[2] for w in waits],
        },
        signals={"signal_begin": np.arange(n + 1), "signal_event": operator},
        events={"need": [op.tiles for op in ops], "producer_operator": np.arange(len(ops))},
        edges=[
            {
                "producer": index[p],
                "consumer": index[op.name],
                "tensor": p,
                "kind": "raw",
                "lag": lag,
                "begin": np.zeros(op.tiles, int),
                "end": np.full(op.tiles, ops[index[p]].tiles),
            }
            for op in ops
            for lag, names in enumerate((op.after, op.before))
            for p in names
        ],
        meta=meta or {},
    )
