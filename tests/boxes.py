"""A test-only operator whose tiles touch any boxes one likes, random small graphs of it, and the cells they touch.

The cells are worked out here from the same few words that describe the boxes, not through mpklab's ranges.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from explorer import Accesses, cells_of

from mpklab.graph import Graph, Operator, Tensor
from mpklab.machine import Machine
from mpklab.ops import REGISTRY, Box, Node, Op, Range, TensorType, Tiles, Tiling, Variant
from mpklab.ops.base import Operand
from mpklab.tasks import Plan, TaskGraph, lower

SLOTS = "abcdefghijklmnop"
EPOCHS = 3
STARTS = range(5)  # start positions; constants beside a position are smaller
MACHINE = Machine("test", "cpu", 3, 1 << 20, 1e10, 1e10, 1e10, 1e-6, 1e-7)


@dataclass(frozen=True)
class Axis:
    """Bounds of one axis, one pair a tile. kind: `span` [lo, hi), `at` [pos + lo, pos + hi), `below` [lo, pos + hi), or
    `split`, the lo-th of hi pieces of [0, pos + 1)."""

    kind: str
    bounds: tuple[tuple[int, int], ...]

    def range(self) -> Range:
        lo, hi = (np.array(x, np.int64) for x in zip(*self.bounds, strict=True))
        if self.kind == "split":
            return Range(0, 1, pos_hi=1, split=(int(hi[0]), lo))
        return Range(lo, hi, int(self.kind == "at"), int(self.kind != "span"))

    def cells(self, tile: int, position: int) -> range:
        lo, hi = self.bounds[tile]
        if self.kind == "span":
            return range(lo, hi)
        if self.kind == "at":
            return range(position + lo, position + hi)
        if self.kind == "below":
            return range(lo, position + hi)
        return range((position + 1) * lo // hi, (position + 1) * (lo + 1) // hi)


@dataclass(frozen=True)
class Touch:
    """A box of every tile on one tensor."""

    tensor: str
    writes: bool
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Piece:
    """One operator of a random graph."""

    tiles: int
    touches: tuple[Touch, ...]
    step: bool = False

    @property
    def tensors(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(t.tensor for t in self.touches))


class Boxes(Op):
    """Reads and writes what its `touches` say."""

    name = "boxes"
    operands = tuple(Operand(s, "rw", optional=True) for s in SLOTS)
    attrs = {"tiles": 1, "touches": ()}

    def infer(self, node: Node) -> dict[str, TensorType]:
        return {}

    def tile_extent(self, node: Node) -> int:
        return int(node.attrs["tiles"])

    def tiles(self, node: Node, tiling: Tiling) -> Tiles:
        n = node.attrs["tiles"]
        boxes = [(w, Box(slot, tuple(a.range() for a in axes))) for slot, w, axes in node.attrs["touches"]]
        words = np.zeros((n, 4), np.int32)
        words[:, 0] = np.arange(n)
        reads, writes = (tuple(b for w, b in boxes if w == wanted) for wanted in (False, True))
        return Tiles(words, reads, writes, np.ones(n), np.ones(n))

    def variant(self, node: Node, tiling: Tiling) -> Variant:
        return Variant("boxes", node.op)


class StepBoxes(Boxes):
    """The same, and publishes the next step."""

    name = "step_boxes"
    step = True


@contextmanager
def registered() -> Iterator[None]:
    """The two operators exist only in here: other tests look at every registered operator."""
    added = {op.name: op for op in (Boxes(), StepBoxes())}
    REGISTRY.ops.update(added)
    try:
        yield
    finally:
        for name in added:
            del REGISTRY.ops[name]


@dataclass(frozen=True)
class Program:
    """Operators in program order, over tensors of one or two axes."""

    pieces: tuple[Piece, ...]

    @property
    def step(self) -> bool:
        return any(p.step for p in self.pieces)

    @property
    def operator(self) -> tuple[int, ...]:
        return tuple(i for i, p in enumerate(self.pieces) for _ in range(p.tiles))

    def graph(self) -> Graph:
        axes = {t.tensor: len(t.axes) for p in self.pieces for t in p.touches}
        tensors = {n: Tensor(n, (16,) * k, "float32", "state") for n, k in axes.items()}
        operators = []
        for i, p in enumerate(self.pieces):
            slot = dict(zip(p.tensors, SLOTS, strict=False))
            touches = tuple((slot[t.tensor], t.writes, t.axes) for t in p.touches)
            operands = {s: n for n, s in slot.items()}
            name = "step_boxes" if p.step else "boxes"
            operators.append(Operator(f"op{i}", name, operands, {"tiles": p.tiles, "touches": touches}))
        return Graph("random", tensors, tuple(operators))

    def lower(self) -> TaskGraph:
        tilings = {f"op{i}": Tiling(parts=p.tiles) for i, p in enumerate(self.pieces)}
        return lower(self.graph(), MACHINE, Plan((), tilings))

    def accesses(self, position: int) -> tuple[Accesses, ...]:
        """What every task touches at a position."""
        number = {n: i for i, n in enumerate(dict.fromkeys(t.tensor for p in self.pieces for t in p.touches))}
        found = []
        for p in self.pieces:
            for tile in range(p.tiles):
                cells: tuple[set, set] = (set(), set())
                for t in p.touches:
                    cells[t.writes].update(cells_of([a.cells(tile, position) for a in t.axes], number[t.tensor]))
                found.append(Accesses(frozenset(cells[0]), frozenset(cells[1])))
        return tuple(found)

    def memories(self) -> tuple[tuple[tuple[Accesses, ...], ...], ...]:
        """Accesses by start position and epoch; the position moves where a step moves it."""
        starts = STARTS if any(a.kind != "span" for p in self.pieces for t in p.touches for a in t.axes) else range(1)
        moves = int(self.step)
        return tuple(dict.fromkeys(tuple(self.accesses(q + moves * e) for e in range(EPOCHS)) for q in starts))

    def well_formed(self) -> bool:
        """Tiles of one operator must not disturb each other: that is the operator's own promise."""
        for position in {q + e for q in STARTS for e in range(EPOCHS)}:
            accesses = self.accesses(position)
            for i, a in enumerate(accesses):
                for j in range(i):
                    if self.operator[i] == self.operator[j] and a.conflicts(accesses[j]):
                        return False
        return True


# --- random graphs, by kind ------------------------------------------------------------------------------------------


def _cuts(rng: random.Random, tiles: int, size: int) -> tuple[tuple[int, int], ...]:
    """A disjoint piece for each tile; together they may leave gaps."""
    cuts = sorted(rng.choices(range(size + 1), k=2 * tiles)) if rng.random() < 0.3 else None
    if cuts is None:
        inner = sorted(rng.sample(range(1, size), tiles - 1))
        cuts = [x for pair in zip([0, *inner], [*inner, size], strict=True) for x in pair]
    pairs = [(cuts[2 * i], cuts[2 * i + 1]) for i in range(tiles)]
    if rng.random() < 0.15:
        rng.shuffle(pairs)
    return tuple(pairs)


def _some(rng: random.Random, tiles: int, size: int) -> tuple[tuple[int, int], ...]:
    """Any piece for each tile, overlapping at will; sometimes the whole."""
    if rng.random() < 0.3:
        return ((0, size),) * tiles
    return tuple((lo := rng.randrange(size), rng.randint(lo, size)) for _ in range(tiles))


def _read(rng: random.Random, tensor: str, tiles: int, size: int = 6) -> Touch:
    return Touch(tensor, False, (Axis("span", _some(rng, tiles, size)),))


def _write(rng: random.Random, tensor: str, tiles: int, size: int = 6) -> Touch:
    return Touch(tensor, True, (Axis("span", _cuts(rng, tiles, size)),))


def _anything(rng: random.Random) -> list[Piece]:
    pieces = []
    for _ in range(rng.randint(2, 5)):
        n = rng.choice((1, 1, 2, 2, 3))
        touches = [_read(rng, rng.choice("xyz"), n) for _ in range(rng.randint(0, 2))]
        touches += [_write(rng, rng.choice("xyz"), n) for _ in range(rng.choice((1, 1, 2)))]
        pieces.append(Piece(n, tuple(touches)))
    return pieces


def _fork_join(rng: random.Random) -> list[Piece]:
    n, left, right = rng.choice((1, 2, 3)), rng.choice((1, 2)), rng.choice((1, 2))
    end = [_read(rng, "y", 1), _read(rng, "z", 1), _write(rng, rng.choice("xw"), 1)]
    return [
        Piece(n, (_write(rng, "x", n),)),
        Piece(left, (_read(rng, "x", left), _write(rng, "y", left))),
        Piece(right, (_read(rng, "x", right), _write(rng, "z", right))),
        Piece(1, tuple(end)),
    ]


def _in_place(rng: random.Random) -> list[Piece]:
    """A residual that every operator adds to, in other cuts each time."""
    pieces = []
    for i in range(rng.randint(2, 4)):
        n = rng.choice((1, 2, 2, 3))
        cut = _cuts(rng, n, 6)
        mine = [Touch("x", w, (Axis("span", cut),)) for w in (False, True)]
        pieces.append(Piece(n, (*mine, *([_read(rng, f"w{i - 1}", n)] if i else []), _write(rng, f"w{i}", n))))
    return pieces


def _double_buffer(rng: random.Random) -> list[Piece]:
    pieces = []
    for i in range(rng.randint(2, 4)):
        n = rng.choice((1, 2, 2, 3))
        source, target = ((i % 2, i % 2 + 1),) * n, ((1 - i % 2, 2 - i % 2),) * n
        read = Touch("x", False, (Axis("span", source), Axis("span", _some(rng, n, 6))))
        write = Touch("x", True, (Axis("span", target), Axis("span", _cuts(rng, n, 6))))
        pieces.append(Piece(n, (read, write)))
    return pieces


def _cache(rng: random.Random) -> list[Piece]:
    """Attention over a cache: split, appended in place by the last split or by an operator before it."""
    n, splits = rng.choice((1, 2)), rng.choice((1, 2, 3))
    pieces = [Piece(n, (_read(rng, "token", n, 1), _write(rng, "qkv", n)))]
    own = Touch("cache", True, (Axis("at", tuple((0, int(i == splits - 1)) for i in range(splits))),))
    split = Touch("cache", False, (Axis("split", tuple((i, splits) for i in range(splits))),))
    if rng.random() < 0.4:
        pieces.append(Piece(1, (_read(rng, "qkv", 1), Touch("cache", True, (Axis("at", ((0, 1),)),)))))
        reads = rng.choice((split, Touch("cache", False, (Axis("below", ((0, rng.choice((0, 1))),) * splits),))))
        touches = [reads]
    else:
        touches = [split, own]
    part = Touch("part", True, (Axis("span", tuple((i, i + 1) for i in range(splits))),))
    pieces.append(Piece(splits, (_read(rng, "qkv", splits), *touches, part)))
    m = rng.choice((1, 2))
    pieces.append(Piece(m, (_read(rng, "part", m, 3), _write(rng, "out", m))))
    if rng.random() < 0.3:
        pieces.append(Piece(1, (_read(rng, "out", 1), Touch("cache", rng.random() < 0.5, (Axis("at", ((-1, 1),)),)))))
    return pieces


def _gap(rng: random.Random) -> list[Piece]:
    """A consumer of the first and the last tile: the event has tiles between them that nothing else ties to it."""
    n, m = rng.choice((3, 4)), rng.choice((1, 2))
    cut = tuple((2 * i, 2 * i + 2) for i in range(n))
    ends = [Touch("x", False, (Axis("span", (bounds,) * m),)) for bounds in ((0, 1), (2 * n - 1, 2 * n))]
    return [Piece(n, (Touch("x", True, (Axis("span", cut),)),)), Piece(m, (*ends, _write(rng, "y", m)))]


KINDS = {
    "gap": _gap,
    "anything": _anything,
    "fork and join": _fork_join,
    "in place": _in_place,
    "double buffer": _double_buffer,
    "cache": _cache,
}


def random_program(rng: random.Random, most: int = 8) -> tuple[str, Program]:
    """A kind, and a graph of that kind with 2 to `most` tasks; every second one ends in a step."""
    while True:
        kind = rng.choice(list(KINDS))
        pieces = KINDS[kind](rng)
        if rng.random() < 0.5:
            token = [Touch("token", w, (Axis("span", ((0, 1),)),)) for w in (False, True)]
            last = pieces[-1].touches[-1]
            seen = Touch(last.tensor, False, tuple(Axis(a.kind, a.bounds[:1]) for a in last.axes))
            pieces.append(Piece(1, (*token, seen), step=True))
        program = Program(tuple(pieces))
        if 2 <= len(program.operator) <= most and program.well_formed():
            return kind, program
