"""Edges between tiles, from overlapping boxes alone; never expanded.

An `EdgeSet` holds, for each consumer tile, one range of producer tiles: read after write, write after read and write
after write, within an iteration (lag 0) and into the next (lag 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpklab.errors import LowerError
from mpklab.graph import Graph
from mpklab.ops import REGISTRY, Box, Range, Tiles
from mpklab.tasks.plan import Plan

IntArray = npt.NDArray[np.int64]


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


class Tiler:
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


def derive_edges(graph: Graph, tiler: Tiler) -> tuple[EdgeSet, ...]:
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
                    found[key] = hull(found[key], (begin, end)) if key in found else (begin, end)
    return tuple(EdgeSet(*key, *ranges) for key, ranges in sorted(found.items(), key=lambda kv: kv[0]))


def _check_disjoint(graph: Graph, tiler: Tiler, tensor: str, writes: list[tuple[int, Box]]) -> None:
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


def hull(a: tuple[IntArray, IntArray], b: tuple[IntArray, IntArray]) -> tuple[IntArray, IntArray]:
    """The smallest range around two, tile by tile; an empty range adds nothing."""
    has_a, has_b = a[1] > a[0], b[1] > b[0]
    begin = np.where(has_a & has_b, np.minimum(a[0], b[0]), np.where(has_a, a[0], b[0]))
    return begin, np.maximum(a[1], b[1])
