"""Lowering: operators become tiles (tasks), overlapping boxes become edges, edges become events.

Edges are never expanded. An `EdgeSet` holds, for each consumer tile, one range of producer tiles. They come from box
overlap alone: read after write, write after read and write after write, within an iteration (lag 0) and into the next
(lag 1). An edge set is left out only when others order every pair of tasks it orders.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpklab import passes as graph_passes
from mpklab.abi import MAX_WAITS
from mpklab.dims import upper
from mpklab.errors import LowerError, suggest
from mpklab.graph import Graph, Operator
from mpklab.machine import Machine
from mpklab.ops import REGISTRY, Box, Range, Tiles, Tiling, Variant
from mpklab.presented import Presented

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Every choice that lowering made: passes, a tiling per operator, and settings of the kernel. Replayable."""

    passes: tuple[str, ...]
    tilings: Mapping[str, Tiling]
    settings: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "passes": list(self.passes),
            "tilings": {k: asdict(v) for k, v in self.tilings.items()},
            "settings": dict(self.settings),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        try:
            tilings = {k: Tiling(**v) for k, v in data["tilings"].items()}
            return Plan(tuple(data["passes"]), tilings, dict(data["settings"]))
        except (KeyError, TypeError) as error:
            raise LowerError(f"not a plan: {error!r}") from error

    @cached_property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class EdgeSet:
    """Tile j of operator `consumer` comes after tiles begin[j] … end[j]-1 of `producer`, `lag` iterations before."""

    producer: int
    consumer: int
    tensor: str
    operand: str  # of the consumer
    kind: str  # raw, war, waw
    lag: int
    begin: IntArray
    end: IntArray

    @property
    def count(self) -> int:
        """How many single edges this stands for."""
        return int((self.end - self.begin).sum())


@dataclass(frozen=True)
class TaskGraph(Presented):
    """Tasks as arrays (task ids of operator o are first[o] … first[o+1]-1), events, and both directions between them.

    `words` int32[n, 4] · `flops`, `bytes` float64[n] · events: `event_producer`, `event_begin`, `event_end` (a range of
    the producer's tiles), `need` int64[e] · waits of task i: `wait_event`, `wait_lag` at wait_first[i]:wait_first[i+1] ·
    signals likewise. `edges` are all that the boxes imply; those that events carry are `kept`.
    """

    graph: Graph
    machine: Machine
    plan: Plan
    first: IntArray
    words: npt.NDArray[np.int32]
    flops: npt.NDArray[np.float64]
    bytes: npt.NDArray[np.float64]
    variants: tuple[Variant, ...]
    variant_of: IntArray
    edges: tuple[EdgeSet, ...]
    event_producer: IntArray
    event_begin: IntArray
    event_end: IntArray
    wait_first: IntArray
    wait_event: IntArray
    wait_lag: IntArray
    signal_first: IntArray
    signal_event: IntArray

    def __len__(self) -> int:
        return len(self.words)

    @property
    def operators(self) -> tuple[Operator, ...]:
        return self.graph.operators

    @property
    def need(self) -> IntArray:
        """Signals per iteration that make each event happen."""
        return self.event_end - self.event_begin

    @cached_property
    def operator_of(self) -> IntArray:
        """The operator index of every task."""
        return np.repeat(np.arange(len(self.operators)), np.diff(self.first))

    @cached_property
    def step_task(self) -> int:
        """The task that publishes StepControl, or -1."""
        for i, o in enumerate(self.operators):
            if REGISTRY.ops[o.op].step:
                return int(self.first[i])
        return -1

    @property
    def tile(self) -> npt.NDArray[np.int32]:
        return self.words

    def tasks_of(self, name: str) -> range:
        """Task ids of an operator."""
        for i, o in enumerate(self.operators):
            if o.name == name:
                return range(int(self.first[i]), int(self.first[i + 1]))
        raise LowerError(f"no operator {name!r}: {suggest(name, (o.name for o in self.operators))}")

    def predecessors(self, task: int) -> Iterator[tuple[EdgeSet, range]]:
        """The edge sets that end at a task, with the producer tasks of each."""
        o = int(self.operator_of[task])
        tile = task - int(self.first[o])
        for e in self.edges:
            if e.consumer == o and e.end[tile] > e.begin[tile]:
                base = int(self.first[e.producer])
                yield e, range(base + int(e.begin[tile]), base + int(e.end[tile]))

    def task_name(self, task: int) -> str:
        """`layer3.o_proj[17]`."""
        o = int(self.operator_of[task])
        return f"{self.operators[o].name}[{task - int(self.first[o])}]"

    def __str__(self) -> str:
        edges = sum(e.count for e in self.edges)
        return (
            f"TaskGraph {self.graph.name}: {len(self)} tasks of {len(self.operators)} operators, {len(self.need)} events, "
            f"{len(self.wait_event)} waits, {len(self.signal_event)} signals, {edges} implied edges, "
            f"{self.bytes.sum() / 1e6:.1f} MB a step, for {self.machine.name} with {self.machine.workers} workers"
        )

    def to_pandas(self) -> Any:
        """One row per task: task, operator, op, layer, tile, flops, bytes, waits, signals."""
        import pandas as pd

        o = self.operator_of
        return pd.DataFrame(
            {
                "task": np.arange(len(self)),
                "operator": pd.Categorical([self.operators[i].name for i in o], [x.name for x in self.operators]),
                "op": [self.operators[i].op for i in o],
                "layer": [-1 if self.operators[i].layer is None else self.operators[i].layer for i in o],
                "tile": np.arange(len(self)) - self.first[o],
                "flops": self.flops,
                "bytes": self.bytes,
                "waits": np.diff(self.wait_first),
                "signals": np.diff(self.signal_first),
            }
        )

    def save(self, path: str | Path) -> None:
        """graph, plan and machine as JSON, arrays as npy, in one zip; `load` reads it back."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
            head = {"graph": self.graph.to_json(), "plan": self.plan.to_json(), "machine": self.machine.to_json()}
            z.writestr("tasks.json", json.dumps(head))

    @staticmethod
    def load(path: str | Path) -> TaskGraph:
        """Lowering is deterministic, so the file holds what went in; the arrays are made again."""
        try:
            with zipfile.ZipFile(path) as z:
                head = json.loads(z.read("tasks.json"))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise LowerError(f"{path} is not a saved task graph: {error}") from error
        machine = {**head["machine"], "capability": tuple(head["machine"]["capability"]), "cpus": ()}
        return _lower_rewritten(Graph.from_json(head["graph"]), Machine(**machine), Plan.from_json(head["plan"]))


# --- choosing a plan -------------------------------------------------------------------------------------------------


def choose_plan(
    graph: Graph, machine: Machine, tiles: Mapping[str, int] | None = None, passes: tuple[str, ...] | None = None
) -> Plan:
    """The plan that `lower` follows when none is given. `tiles` sets tile sizes by operator name or kind."""
    tiles = dict(tiles or {})
    kinds = {o.op for o in graph.operators}
    fused = passes if passes is not None else _default_passes(graph, machine)
    if passes is None and "argmax_partial" in kinds:
        rewritten = graph_passes.apply(graph, fused)
        source = next(o for o in rewritten.operators if o.op == "argmax_partial")
        writers = rewritten.writers(source.operands["x"])
        tiled = writers[0] if writers and writers[0].op == "linear" else source
        parts = len(_tiling(rewritten, tiled, machine, tiles).bounds(_extent(rewritten, tiled))) - 1
        fused = (*fused, f"split_argmax:{parts}", "fuse_argmax")
    rewritten = graph_passes.apply(graph, fused)
    known = {o.name for o in rewritten.operators} | {o.op for o in rewritten.operators}
    for name, size in tiles.items():
        if name not in known:
            raise LowerError(f"tiles: no operator or kind {name!r}: {suggest(name, known)}")
        if not isinstance(size, int) or size < 1:
            raise LowerError(f"tiles: {name!r} needs a positive tile size, not {size!r}")
        for o in rewritten.operators:
            if name in (o.name, o.op) and o.op in _CUT_BY_ITSELF:
                raise LowerError(f"tiles: {o.name} ({o.op}) is cut {_CUT_BY_ITSELF[o.op]}, not by a tile size")
    tilings = {o.name: _tiling(rewritten, o, machine, tiles) for o in rewritten.operators}
    return Plan(fused, tilings)


_CUT_BY_ITSELF = {
    "attention": "by head and by the pass split_attention",
    "argmax_reduce": "into one tile",
    "advance": "into one tile",
}


def _default_passes(graph: Graph, machine: Machine) -> tuple[str, ...]:
    names = ["merge_linears", "fuse_norm", "fuse_silu_mul", "fuse_residual"]
    attention = next((o for o in graph.operators if o.op == "attention" and o.attrs["splits"] == 1), None)
    if attention is not None:
        batch, kv, context, _ = graph.tensors[attention.operands["k_cache"]].type.sizes
        splits = _context_splits(batch * kv, context, machine)
        if splits > 1:
            names += [f"split_attention:{splits}{'' if machine.backend == 'cpu' else ':16'}", "fuse_merge"]
    return tuple(names)


def _context_splits(tiles: int, context: int, machine: Machine) -> int:
    """Pieces of the context per head: enough to occupy the workers, few enough that merging stays cheap.

    Every worker of the next linear reads all pieces. On a GPU a piece of less than 64 rows saves nothing, because a
    page of the ring holds that many (measured: 8 pieces of 64 rows beat 4, 9 and 16 at a context of 512).
    """
    if machine.backend == "cpu":
        return next((s for s in (1, 2) if tiles * s % machine.workers == 0), 2 if tiles < machine.workers else 1)
    most = min(16, machine.workers // tiles, context // 64)
    return 1 << (most.bit_length() - 1) if most > 1 else 1


def _extent(graph: Graph, operator: Operator) -> int:
    return REGISTRY.ops[operator.op].tile_extent(graph.node(operator))


def _tiling(graph: Graph, operator: Operator, machine: Machine, tiles: Mapping[str, int]) -> Tiling:
    size = tiles.get(operator.name, tiles.get(operator.op))
    if size:
        return Tiling(size=size)
    if operator.op in ("rms_norm", "argmax_reduce", "advance"):
        return Tiling(parts=1)
    if operator.op == "argmax_partial":
        return Tiling(parts=operator.attrs["parts"])
    if operator.op == "attention_merge":
        return Tiling(parts=min(machine.workers, _extent(graph, operator)))
    if operator.attrs.get("argmax_parts"):
        return Tiling(parts=operator.attrs["argmax_parts"])
    return Tiling(parts=machine.workers, granule=4 if machine.backend == "cpu" else 2)


# --- edges -----------------------------------------------------------------------------------------------------------


def _possible(a: Any, b: Any, slope: int) -> Any:
    """Whether a < b + slope · q for some q ≥ 0."""
    return np.ones(np.broadcast(a, b).shape, bool) if slope > 0 else np.less(a, b)


def _axis_overlap(p: Range, c: Range, delta: int) -> Any:
    """Whether a producer range may meet a consumer range whose position is `delta` further; unknown means yes."""
    if p.split and c.split and delta == 0:
        same = (p.lo, p.hi, p.pos_lo, p.pos_hi, p.split[0]) == (c.lo, c.hi, c.pos_lo, c.pos_hi, c.split[0])
        if same:
            return _row(p.split[1]) == _column(c.split[1])
    p_lo, p_hi, c_lo, c_hi = _row(p.lo), _row(p.hi), _column(c.lo), _column(c.hi)
    begins = _possible(p_lo, c_hi + c.pos_hi * delta, c.pos_hi - p.pos_lo)
    ends = _possible(c_lo + c.pos_lo * delta, p_hi, p.pos_hi - c.pos_lo)
    filled = _possible(p_lo, p_hi, p.pos_hi - p.pos_lo) & _possible(c_lo, c_hi, c.pos_hi - c.pos_lo)
    return begins & ends & filled


def _row(x: Any) -> Any:
    return x[None, :] if isinstance(x, np.ndarray) else x


def _column(x: Any) -> Any:
    return x[:, None] if isinstance(x, np.ndarray) else x


def _varies(r: Range) -> bool:
    return isinstance(r.lo, np.ndarray) or isinstance(r.hi, np.ndarray) or r.split is not None


def _sorted_overlap(p: Range, c: Range, producers: int, consumers: int, delta: int) -> tuple[IntArray, IntArray] | None:
    """`overlap_ranges` along one axis by bisection, where the producer's tiles lie in order; else None."""
    p_lo, p_hi = np.broadcast_to(p.lo, producers), np.broadcast_to(p.hi, producers)
    in_order = (p_lo[1:] >= p_lo[:-1]).all() and (p_hi[1:] >= p_hi[:-1]).all()
    if p.split or c.split or not in_order or not _possible(p_lo, p_hi, p.pos_hi - p.pos_lo).all():
        return None
    c_lo, c_hi = np.broadcast_to(c.lo, consumers), np.broadcast_to(c.hi, consumers)
    begin, end = np.zeros(consumers, np.int64), np.full(consumers, producers, np.int64)
    if p.pos_hi <= c.pos_lo:
        begin = np.searchsorted(p_hi, c_lo + c.pos_lo * delta, "right")
    if c.pos_hi <= p.pos_lo:
        end = np.searchsorted(p_lo, c_hi + c.pos_hi * delta, "left")
    some = (end > begin) & _possible(c_lo, c_hi, c.pos_hi - c.pos_lo)
    return np.where(some, begin, 0).astype(np.int64), np.where(some, end, 0).astype(np.int64)


def overlap_ranges(p: Box, producers: int, c: Box, consumers: int, delta: int) -> tuple[IntArray, IntArray]:
    """For each consumer tile the smallest range of producer tiles that holds all whose boxes may overlap its own."""
    none = np.zeros(consumers, np.int64)
    pairs = list(zip(p.ranges, c.ranges, strict=True))
    varying = [(a, b) for a, b in pairs if _varies(a) or _varies(b)]
    if not all(bool(_axis_overlap(a, b, delta)) for a, b in pairs if not (_varies(a) or _varies(b))):
        return none, none
    if len(varying) == 1 and (ranges := _sorted_overlap(*varying[0], producers, consumers, delta)):
        return ranges
    hit: Any = np.ones((1, 1), bool)
    for a, b in varying:
        hit = hit & _axis_overlap(a, b, delta)
    hit = np.broadcast_to(hit, (consumers, producers))
    some = hit.any(axis=1)
    begin = np.where(some, hit.argmax(axis=1), 0)
    end = np.where(some, producers - hit[:, ::-1].argmax(axis=1), 0)
    return begin.astype(np.int64), end.astype(np.int64)


class _Tiler:
    """Tiles and overlaps, computed once per distinct operator signature: the layers of a model share them."""

    def __init__(self, graph: Graph, plan: Plan):
        self.tiles: list[Tiles] = []
        cache: dict[str, Tiles] = {}
        for o in graph.operators:
            tiling = plan.tilings.get(o.name)
            if tiling is None:
                raise LowerError(f"the plan has no tiling for operator {o.name!r}")
            node = graph.node(o)
            key = f"{o.op} {sorted((k, str(t)) for k, t in node.types.items())} {sorted(o.attrs.items())} {tiling}"
            if key not in cache:
                cache[key] = REGISTRY.ops[o.op].tiles(node, tiling)
            self.tiles.append(cache[key])
        self._overlaps: dict[tuple[int, int, int, int, int], tuple[IntArray, IntArray]] = {}

    def overlap(self, p: int, p_box: Box, c: int, c_box: Box, delta: int) -> tuple[IntArray, IntArray]:
        producer, consumer = self.tiles[p], self.tiles[c]
        key = (id(producer), id(p_box), id(consumer), id(c_box), delta)
        if key not in self._overlaps:
            self._overlaps[key] = overlap_ranges(p_box, len(producer), c_box, len(consumer), delta)
        return self._overlaps[key]


def derive_edges(graph: Graph, tiler: _Tiler) -> tuple[EdgeSet, ...]:
    """Every hazard between tiles of different operators, and between iterations, from their boxes."""
    accesses: dict[str, list[tuple[int, bool, Box]]] = {}
    for i, o in enumerate(graph.operators):
        for writes, boxes in ((False, tiler.tiles[i].reads), (True, tiler.tiles[i].writes)):
            for box in boxes:
                accesses.setdefault(o.operands[box.operand], []).append((i, writes, box))
    moves = 1 if any(REGISTRY.ops[o.op].step for o in graph.operators) else 0
    for tensor, uses in accesses.items():
        _check_disjoint(graph, tiler, tensor, [(i, box) for i, writes, box in uses if writes])
    found: dict[tuple[int, int, str, str, str, int], tuple[IntArray, IntArray]] = {}
    for tensor, uses in accesses.items():
        if not any(w for _, w, _ in uses):
            continue
        for p, p_writes, p_box in uses:
            for c, c_writes, c_box in uses:
                if not (p_writes or c_writes):
                    continue
                kind = ("waw" if c_writes else "raw") if p_writes else "war"
                for lag in (0, 1) if p < c else (1,):
                    begin, end = tiler.overlap(p, p_box, c, c_box, moves * lag)
                    if not (end > begin).any():
                        continue
                    key = (p, c, tensor, c_box.operand, kind, lag)
                    found[key] = _hull(found[key], (begin, end)) if key in found else (begin, end)
    return tuple(EdgeSet(*key, *ranges) for key, ranges in sorted(found.items(), key=lambda kv: kv[0]))


def _check_disjoint(graph: Graph, tiler: _Tiler, tensor: str, writes: list[tuple[int, Box]]) -> None:
    """Nothing orders the tiles of one operator, so no two of them may write the same place."""
    for i, box in writes:
        for j, other in writes:
            if i == j:
                begin, end = tiler.overlap(i, box, i, other, 0)
                own = np.arange(len(begin))
                shared = np.flatnonzero((end > begin) & ((begin != own) | (end != own + 1)))
                if len(shared):
                    tile = int(shared[0])
                    rival = int(begin[tile]) if begin[tile] != tile else int(end[tile]) - 1
                    raise LowerError(
                        f"{graph.operators[i].name}: tiles {tile} and {rival} both write {tensor}; "
                        "tiles of one operator run in any order, so what they write must be disjoint"
                    )


def _hull(a: tuple[IntArray, IntArray], b: tuple[IntArray, IntArray]) -> tuple[IntArray, IntArray]:
    """The smallest range around two, tile by tile; an empty range adds nothing."""
    has_a, has_b = a[1] > a[0], b[1] > b[0]
    begin = np.where(has_a & has_b, np.minimum(a[0], b[0]), np.where(has_a, a[0], b[0]))
    return begin, np.maximum(a[1], b[1])


@dataclass(slots=True)
class _Dependence:
    """One or more edge sets of a pair of operators and a lag. A pair may have several: q, k and v are far apart."""

    producer: int
    consumer: int
    lag: int
    begin: IntArray
    end: IntArray


def _dependences(edges: tuple[EdgeSet, ...]) -> list[_Dependence]:
    """Edge sets as dependences, without those that lie inside another of the same pair."""
    pairs: dict[tuple[int, int, int], list[_Dependence]] = {}
    for e in edges:
        group = pairs.setdefault((e.producer, e.consumer, e.lag), [])
        if any(_inside(e.begin, e.end, d.begin, d.end) for d in group):
            continue
        group[:] = [d for d in group if not _inside(d.begin, d.end, e.begin, e.end)]
        group.append(_Dependence(e.producer, e.consumer, e.lag, e.begin, e.end))
    return [d for group in pairs.values() for d in group]


def _inside(begin: IntArray, end: IntArray, outer_begin: IntArray, outer_end: IntArray) -> bool:
    return bool(((end <= begin) | ((outer_begin <= begin) & (end <= outer_end))).all())


def _covers(begin: IntArray, end: IntArray, n: int) -> bool:
    """Whether the ranges together hold all of 0 … n-1."""
    mark = np.zeros(n + 1, np.int64)
    some = end > begin
    np.add.at(mark, begin[some], 1)
    np.add.at(mark, end[some], -1)
    return bool((np.cumsum(mark)[:n] > 0).all())


def _prune(deps: list[_Dependence], counts: IntArray, step: int) -> list[_Dependence]:
    """Drop what the rest imply, task by task.

    complete[c] is the set of operators all of whose tiles come before every tile of c; cover[c] those each of whose
    tiles comes before some tile of c. Operators are bits of an integer. With a step operator, everything of one
    iteration comes before its StepControl and that before everything of the next, so lag-1 edges go; operators that
    the step does not follow yet are ordered before it.
    """
    n = len(counts)
    by_consumer: dict[int, list[_Dependence]] = {}
    for d in deps:
        if d.lag == 0:
            by_consumer.setdefault(d.consumer, []).append(d)
    complete, cover = [0] * n, [0] * n
    kept: list[_Dependence] = []

    def add(d: _Dependence) -> None:
        p, c = d.producer, d.consumer
        kept.append(d)
        if (d.end > d.begin).all():
            complete[c] |= complete[p]
        if ((d.begin == 0) & (d.end == counts[p])).all():
            complete[c] |= (1 << p) | cover[p]
        same = [k for k in kept if (k.producer, k.consumer, k.lag) == (p, c, d.lag)]
        begin, end = (np.concatenate([getattr(k, side) for k in same]) for side in ("begin", "end"))
        if _covers(begin, end, int(counts[p])):
            cover[c] |= (1 << p) | cover[p]
        cover[c] |= complete[c]

    for c in range(n):
        for d in sorted(by_consumer.get(c, []), key=lambda d: -d.producer):
            if not complete[c] >> d.producer & 1:
                add(d)
        if c == step:
            for p in reversed(range(c)):
                if not complete[c] >> p & 1:
                    ones = np.zeros(int(counts[c]), np.int64)
                    add(_Dependence(p, c, 0, ones, ones + counts[p]))
    if step < 0:
        kept += [d for d in deps if d.lag == 1]
    return kept


def _prune_between(deps: list[_Dependence]) -> list[_Dependence]:
    """Drop lag-1 dependences that two others imply: some tile that the consumer waits for waited for all of the range."""
    into: dict[int, list[_Dependence]] = {}
    pairs: dict[tuple[int, int], list[_Dependence]] = {}
    for d in deps:
        into.setdefault(d.consumer, []).append(d)
        pairs.setdefault((d.producer, d.consumer), []).append(d)
    gone: set[int] = set()
    for d in deps:
        if d.lag == 0:
            continue
        implied = d.end <= d.begin
        for last in into[d.consumer]:
            for first in pairs.get((d.producer, last.producer), ()):
                if first.lag + last.lag == 1 and d is not first and d is not last and not gone & {id(first), id(last)}:
                    tile = np.arange(len(first.begin))
                    within = (last.begin[:, None] <= tile) & (tile < last.end[:, None])
                    covers = (first.begin <= d.begin[:, None]) & (d.end[:, None] <= first.end)
                    implied |= (within & covers).any(axis=1)
        if implied.all():
            gone.add(id(d))
    return [d for d in deps if id(d) not in gone]


def _fewer_waits(deps: list[_Dependence]) -> list[_Dependence]:
    """Where some tile would wait for too many events, ranges of one producer become one."""
    waits: dict[int, Any] = {}
    for d in deps:
        waits[d.consumer] = waits.get(d.consumer, 0) + (d.end > d.begin)
    crowded = {c for c, count in waits.items() if count.max(initial=0) > MAX_WAITS}
    joined: dict[tuple[int, int, int], _Dependence] = {}
    kept = []
    for d in deps:
        key = (d.producer, d.consumer, d.lag)
        if d.consumer not in crowded:
            kept.append(d)
        elif key in joined:
            held = joined[key]
            held.begin, held.end = _hull((held.begin, held.end), (d.begin, d.end))
        else:
            joined[key] = replace(d)
    return kept + list(joined.values())


def _coarsened(deps: list[_Dependence], counts: IntArray) -> list[_Dependence]:
    """Where some tile would have to signal too many events, consumers wait for all tiles of its operator instead."""
    by_producer: dict[int, list[_Dependence]] = {}
    for d in deps:
        by_producer.setdefault(d.producer, []).append(d)
    coarse = set()
    for p, group in by_producer.items():
        ranges = _ranges(group)
        mark = np.zeros(int(counts[p]) + 1, np.int64)
        np.add.at(mark, ranges[:, 0], 1)
        np.add.at(mark, ranges[:, 1], -1)
        if len(ranges) > 1 and int(np.cumsum(mark).max()) > MAX_WAITS:
            coarse.add(p)
    return [
        replace(d, begin=np.zeros_like(d.begin), end=np.where(d.end > d.begin, counts[d.producer], 0))
        if d.producer in coarse
        else d
        for d in deps
    ]


def _ranges(deps: list[_Dependence]) -> IntArray:
    """The distinct ranges of producer tiles that some consumer asks for, in order."""
    asked = np.concatenate([np.stack([d.begin, d.end], 1) for d in deps])
    return np.unique(asked[asked[:, 1] > asked[:, 0]], axis=0)


def _counts_apart(deps: list[_Dependence], counts: IntArray) -> list[_Dependence]:
    """Without a step one worker may be an iteration ahead of another. What keeps their signals apart, where needed.

    A tile may signal an event again only after all that share the event have signalled it. Mostly the tile waits for a
    consumer that waited for the event. Where it does not, the tiles of the event wait for one another's last signals.
    """
    by_pair: dict[tuple[int, int], list[_Dependence]] = {}
    for d in deps:
        by_pair.setdefault((d.producer, d.consumer), []).append(d)
    found: dict[int, list[tuple[int, int]]] = {}
    for d in deps:
        p, c = d.producer, d.consumer
        tile, consumer = np.arange(counts[p]), np.arange(counts[c])[:, None]
        begin, end = d.begin[:, None], d.end[:, None]
        mixed = (begin <= tile) & (tile < end) & (end > begin + 1)
        for r in by_pair.get((c, p), ()):
            if d.lag + r.lag <= 1:
                mixed &= ~((r.begin <= consumer) & (consumer < r.end))
        for r in by_pair.get((p, p), ()):
            mixed &= ~((r.begin <= begin) & (end <= r.end))
        for j in np.flatnonzero(mixed.any(axis=1)):
            found.setdefault(p, []).append((int(d.begin[j]), int(d.end[j])))
    added = []
    for p, ranges in found.items():
        first, last = np.zeros(int(counts[p]), np.int64), np.zeros(int(counts[p]), np.int64)
        at, until = -1, -1
        for low, high in sorted(ranges):
            at, until = (at, max(until, high)) if low < until else (low, high)
            first[at:until], last[at:until] = at, until
        added.append(_Dependence(p, p, 1, first, last))
    return added


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
    **settings: int,
) -> TaskGraph:
    """Cut a graph into tasks for a machine and work out what must wait for what.

    `plan` replays choices made before; otherwise `tiles` (tile sizes by operator name or kind) and `passes` override
    what the machine suggests. The tasks' own `graph` is the rewritten one; its ancestors are its `parent`s.
    Further keywords are kernel settings kept in the plan.
    """
    machine = machine or Machine.detect()
    if plan is not None and (tiles or passes is not None):
        raise LowerError("give either a plan, or tiles and passes to make one from")
    plan = plan or choose_plan(graph, machine, tiles, passes)
    if settings:
        plan = replace(plan, settings={**plan.settings, **settings})
    return _lower_rewritten(graph_passes.apply(graph, plan.passes), machine, plan)


def _lower_rewritten(graph: Graph, machine: Machine, plan: Plan) -> TaskGraph:
    tiler = _Tiler(graph, plan)
    counts = np.array([len(t) for t in tiler.tiles], np.int64)
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    steps = [i for i, o in enumerate(graph.operators) if REGISTRY.ops[o.op].step]
    if len(steps) > 1:
        raise LowerError(f"a graph may have one step operator, found {[graph.operators[i].name for i in steps]}")
    if steps and steps[0] != len(graph.operators) - 1:
        late = graph.operators[steps[0] + 1].name
        raise LowerError(f"{graph.operators[steps[0]].name} opens the next iteration, so {late} cannot come after it")
    edges = derive_edges(graph, tiler)
    kept = _prune(_dependences(edges), counts, steps[0] if steps else -1)
    if not steps:
        kept = _prune_between(kept)
    kept = _coarsened(_fewer_waits(kept), counts)
    while not steps and (more := _counts_apart(kept, counts)):
        kept = _coarsened(kept + more, counts)

    # Events: one for each distinct range that some consumer of an operator asks for.
    by_producer: dict[int, list[_Dependence]] = {}
    for d in kept:
        by_producer.setdefault(d.producer, []).append(d)
    producer: list[IntArray] = []
    ranges_all: list[IntArray] = []
    waits: list[tuple[IntArray, IntArray, IntArray]] = []
    signals: list[tuple[IntArray, IntArray]] = []
    events = 0
    for p in sorted(by_producer):
        deps = by_producer[p]
        ranges = _ranges(deps)
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
