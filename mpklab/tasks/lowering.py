"""Lowering: operators become tiles (tasks), overlapping boxes become edges, edges become events."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mpklab import passes as graph_passes
from mpklab.abi import MAX_WAITS
from mpklab.dims import upper
from mpklab.errors import LowerError
from mpklab.graph import Graph
from mpklab.machine import Machine
from mpklab.ops import REGISTRY, Variant
from mpklab.tasks.dependences import (
    Dependence,
    coarsened,
    counts_apart,
    dependences,
    fewer_waits,
    one_after_the_other,
    prune,
    prune_between,
    ranges_of,
)
from mpklab.tasks.edges import Tiler, derive_edges
from mpklab.tasks.plan import Plan, choose_plan
from mpklab.tasks.task_graph import TaskGraph

IntArray = npt.NDArray[np.int64]


def _csr(owner: IntArray, values: tuple[IntArray, ...], n: int) -> tuple[IntArray, tuple[IntArray, ...]]:
    """Rows (owner, values) sorted by owner, with where each owner's rows begin."""
    order = np.argsort(owner, kind="stable")
    first = np.zeros(n + 1, np.int64)
    np.cumsum(np.bincount(owner, minlength=n), out=first[1:])
    return first, tuple(v[order] for v in values)


def _no_ints() -> IntArray:
    return np.zeros(0, np.int64)


def lower(
    graph: Graph,
    machine: Machine | None = None,
    plan: Plan | None = None,
    *,
    tiles: Mapping[str, int] | None = None,
    passes: tuple[str, ...] | None = None,
    barriers: bool = False,
    handoff: str | Mapping[str, str] | None = None,
    **settings: int,
) -> TaskGraph:
    """Cut a graph into tasks for a machine and work out what must wait for what.

    `plan` replays choices made before; otherwise `tiles` (tile sizes by operator name or kind) and `passes` override
    what the machine suggests. The tasks' own `graph` is the rewritten one; its ancestors are its `parent`s.
    `handoff` says how outputs reach those who wait for them: "counter", "data" (words that say themselves when they are
    there) wherever that is possible, or either by operator name or kind. `barriers` puts one between operators, to see
    what finer events are worth. Further keywords are kernel settings kept in the plan. LowerError says which operator cannot
    be cut so; GraphError where a pass does not fit.
    """
    machine = machine or Machine.detect()
    if plan is not None and (tiles or passes is not None or handoff is not None):
        raise LowerError("give either a plan, or tiles and passes and hand-offs to make one from")
    plan = plan or choose_plan(graph, machine, tiles, passes, handoff, **settings)
    if settings or barriers:
        plan = replace(plan, settings={**plan.settings, **settings}, barriers=barriers or plan.barriers)
    return _lower_rewritten(graph_passes.apply(graph, plan.passes), machine, plan)


def _lower_rewritten(graph: Graph, machine: Machine, plan: Plan) -> TaskGraph:
    tiler = Tiler(graph, plan)
    counts = np.array([len(t) for t in tiler.tiles], np.int64)
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    steps = [i for i, o in enumerate(graph.operators) if REGISTRY.ops[o.op].step]
    if len(steps) > 1:
        raise LowerError(f"a graph may have one step operator, found {[graph.operators[i].name for i in steps]}")
    if steps and steps[0] != len(graph.operators) - 1:
        late = graph.operators[steps[0] + 1].name
        raise LowerError(f"{graph.operators[steps[0]].name} opens the next iteration, so {late} cannot come after it")
    edges = derive_edges(graph, tiler)
    step = steps[0] if steps else -1
    kept = one_after_the_other(counts, step) if plan.barriers else prune(dependences(edges), counts, step)
    if not steps:
        kept = prune_between(kept)
    kept = coarsened(fewer_waits(kept), counts)
    while not steps and (more := counts_apart(kept, counts)):
        kept = coarsened(kept + more, counts)

    # Events: one for each distinct range that some consumer of an operator asks for.
    by_producer: dict[int, list[Dependence]] = {}
    for d in kept:
        by_producer.setdefault(d.producer, []).append(d)
    producer: list[IntArray] = []
    ranges_all: list[IntArray] = []
    waits: list[tuple[IntArray, IntArray, IntArray]] = []
    signals: list[tuple[IntArray, IntArray]] = []
    events = 0
    for p in sorted(by_producer):
        deps = by_producer[p]
        ranges = ranges_of(deps)
        keys = ranges[:, 0] * (counts[p] + 1) + ranges[:, 1]
        for d in deps:
            some = np.flatnonzero(d.end > d.begin)
            wanted = d.begin[some] * (counts[p] + 1) + d.end[some]
            which = np.searchsorted(keys, wanted)
            waits.append((first[d.consumer] + some, events + which, np.full(len(some), d.lag, np.int64)))
        for i, (begin, end) in enumerate(ranges):
            tile = np.arange(begin, end)
            signals.append((first[p] + tile, np.full(len(tile), events + i, np.int64)))
        producer.append(np.full(len(ranges), p, np.int64))
        ranges_all.append(ranges)
        events += len(ranges)
    n = int(first[-1])
    w = [np.concatenate(c) if waits else _no_ints() for c in zip(*waits, strict=True)] or [_no_ints()] * 3
    s = [np.concatenate(c) if signals else _no_ints() for c in zip(*signals, strict=True)] or [_no_ints()] * 2
    wait_first, (wait_event, wait_lag) = _csr(w[0], (w[1], w[2]), n)
    signal_first, (signal_event,) = _csr(s[0], (s[1],), n)
    spans = np.concatenate(ranges_all) if ranges_all else np.zeros((0, 2), np.int64)
    most = int(np.diff(wait_first).max(initial=0))
    if most > MAX_WAITS:
        task = int(np.diff(wait_first).argmax())
        name = graph.operators[int(np.searchsorted(first, task, "right")) - 1].name
        raise LowerError(f"{name}: a task would wait for {most} events; {MAX_WAITS} are possible. Use fewer producers")
    texts: dict[Variant, int] = {}
    variant_of = np.array(
        [
            texts.setdefault(REGISTRY.ops[o.op].variant(graph.node(o), plan.tilings[o.name]), len(texts))
            for o in graph.operators
        ],
        np.int64,
    )
    return TaskGraph(
        graph=graph,
        machine=machine,
        plan=plan,
        first=first,
        words=np.concatenate([t.words for t in tiler.tiles]),
        flops=np.concatenate([t.flops for t in tiler.tiles]),
        bytes=np.concatenate([t.bytes for t in tiler.tiles]),
        variants=tuple(texts),
        variant_of=variant_of,
        edges=edges,
        event_producer=np.concatenate(producer) if producer else _no_ints(),
        event_begin=spans[:, 0],
        event_end=spans[:, 1],
        wait_first=wait_first,
        wait_event=wait_event,
        wait_lag=wait_lag,
        signal_first=signal_first,
        signal_event=signal_event,
    )


def load(path: str | Path) -> TaskGraph:
    """What `TaskGraph.save` wrote. Lowering is deterministic, so the file holds what went in; the arrays are made again."""
    try:
        with zipfile.ZipFile(path) as z:
            head = json.loads(z.read("tasks.json"))
        parts = [head[name] for name in ("graph", "machine", "plan")]
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise LowerError(f"{path} is not a saved task graph: {error}") from error
    machine = replace(Machine.from_json(parts[1]), cpus=())  # the cores of another day need not be there
    return _lower_rewritten(Graph.from_json(parts[0]), machine, Plan.from_json(parts[2]))


def dim_values(graph: Graph, given: Mapping[str, int] | None) -> tuple[int, ...]:
    """Values of a graph's dims in the order of Step.dims: what is given, else the maximum."""
    given = dict(given or {})
    values = []
    for d in graph.dims:
        value = given.pop(str(d), d.max)
        if not 1 <= value <= upper(d):
            raise LowerError(f"{d} must be from 1 to {d.max}, not {value}")
        values.append(value)
    if given:
        raise LowerError(f"unknown dims {sorted(given)}: the graph has {[str(d) for d in graph.dims]}")
    return tuple(values)
