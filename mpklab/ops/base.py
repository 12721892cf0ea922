"""What an operator declares: operands, shapes, tiles, the boxes each tile reads and writes, costs, and its C++ variant."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mpklab.dims import Dim, Extent, shape_text, upper
from mpklab.errors import GraphError, LowerError

IntArray = npt.NDArray[np.int64]
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int32": 4, "int64": 8, "uint8": 1}
C_TYPE = {"float32": "float", "bfloat16": "mpk::bf16", "int32": "int"}
FLOATS = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class TensorType:
    """A shape (ints and expressions over dims), a dtype name, and the order in which the axes are stored (as they stand
    unless said)."""

    shape: tuple[Extent, ...]
    dtype: str
    order: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape with every dim at its maximum."""
        return tuple(upper(e) for e in self.shape)

    @property
    def bytes(self) -> int:
        return int(np.prod(self.sizes, dtype=np.int64)) * ITEM_BYTES[self.dtype]

    def __str__(self) -> str:
        stored = f" stored as axes {', '.join(map(str, self.order))}" if self.order else ""
        return f"{self.dtype}[{shape_text(self.shape)}]{stored}"


@dataclass(frozen=True, slots=True)
class Operand:
    """One named argument of an operator, in slot order.

    `access` is "r", "w" or "rw". A *streamed* operand goes through a worker's ring of pages, so it may be loaded
    before the task's events happen. `orders` are the ways to store its axes that the operator reads, beside the usual.
    """

    name: str
    access: str = "r"
    optional: bool = False
    streamed: bool = False
    orders: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Node:
    """An operator with the types of its operands: all that an operator's rules may look at."""

    name: str
    op: str
    types: Mapping[str, TensorType]
    attrs: Mapping[str, Any]
    dims: tuple[Dim, ...] = ()

    def dim_index(self, extent: Extent) -> int:
        """The index in Step.dims of a run-time size, -1 for a fixed one."""
        return -1 if isinstance(extent, int) else [str(d) for d in self.dims].index(str(extent))


@dataclass(frozen=True, slots=True)
class Tiling:
    """How one operator's tile axis is cut: `parts` ragged tiles, or tiles of `size`; cuts fall on multiples of `granule`."""

    parts: int = 0
    size: int = 0
    granule: int = 1
    splits: int = 1  # attention: pieces of the context per head

    def bounds(self, extent: int) -> IntArray:
        """Cut points 0 = b[0] < … < b[n] = extent."""
        if self.size:
            cuts = np.arange(0, extent + self.size, self.size, dtype=np.int64)
        else:
            units = -(-extent // self.granule)
            parts = max(1, min(self.parts, units))
            cuts = np.arange(parts + 1, dtype=np.int64) * units // parts * self.granule
        return np.unique(np.minimum(cuts, extent))


@dataclass(frozen=True, slots=True)
class Range:
    """Half-open bounds on one axis, for every tile at once: scalars or arrays of one value per tile.

    `pos_lo`, `pos_hi`: how often the run-time position is added to each bound. `split` = (parts, index array): the
    tile has the index-th of `parts` pieces of [lo, hi); pieces of one extent are disjoint by construction.
    """

    lo: int | IntArray
    hi: int | IntArray
    pos_lo: int = 0
    pos_hi: int = 0
    split: tuple[int, IntArray] | None = None

    def text(self, tile: int) -> str:
        """The bounds of one tile: `32:64`, `pos:pos+1`, `piece 1 of 3 of 0:pos+1`."""

        def bound(x: int | IntArray, positions: int) -> str:
            number = int(x[tile]) if isinstance(x, np.ndarray) else int(x)
            return str(number) if not positions else "pos" + (f"{number:+d}" if number else "")

        piece = f"piece {int(self.split[1][tile])} of {self.split[0]} of " if self.split else ""
        return f"{piece}{bound(self.lo, self.pos_lo)}:{bound(self.hi, self.pos_hi)}"


@dataclass(frozen=True, slots=True)
class Box:
    """The part of one operand that each tile touches: a range per axis."""

    operand: str
    ranges: tuple[Range, ...]


def whole(extent: Extent) -> Range:
    """The full axis, in every tile."""
    return Range(0, upper(extent))


def span(lo: int | IntArray, hi: int | IntArray) -> Range:
    """[lo, hi)."""
    return Range(lo, hi)


def at(index: int | IntArray) -> Range:
    """The single index."""
    return Range(index, index + 1)


def at_position() -> Range:
    """The row of the run-time position: [pos, pos + 1)."""
    return Range(0, 1, pos_lo=1, pos_hi=1)


def split_context(parts: int, index: IntArray) -> Range:
    """The index-th of `parts` pieces of [0, pos + 1)."""
    return Range(0, 1, pos_hi=1, split=(parts, index))


def all_of(operand: str, node: Node) -> Box:
    """The whole operand."""
    return Box(operand, tuple(whole(e) for e in node.types[operand].shape))


@dataclass(frozen=True, slots=True)
class Tiles:
    """The tiles of one operator: `words` int32[n, 4] is what the device sees; `flops` and `bytes` float64[n]."""

    words: npt.NDArray[np.int32]
    reads: tuple[Box, ...]
    writes: tuple[Box, ...]
    flops: npt.NDArray[np.floating[Any]]
    bytes: npt.NDArray[np.floating[Any]]

    def __len__(self) -> int:
        return len(self.words)


@dataclass(frozen=True, slots=True)
class Variant:
    """A C++ instantiation: header stem and full type. Two tasks of equal variants run the same machine code."""

    header: str
    text: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One line of a block graph or thread graph, for printing."""

    kind: str  # load, compute, store
    what: str
    detail: str = ""


class Op:
    """An operator's rules. Subclasses set the class variables and define infer, tiles, variant and the two graphs."""

    name: ClassVar[str]
    operands: ClassVar[tuple[Operand, ...]]
    attrs: ClassVar[dict[str, Any]] = {}
    step: ClassVar[bool] = False  # its task publishes the next StepControl

    def infer(self, node: Node) -> dict[str, TensorType]:
        """Output types, after checking the inputs; raises GraphError naming the operator and both shapes."""
        raise NotImplementedError

    def tiles(self, node: Node, tiling: Tiling) -> Tiles:
        """Every tile with its boxes and costs."""
        raise NotImplementedError

    def tile_extent(self, node: Node) -> int:
        """The length of the axis that a Tiling cuts."""
        raise NotImplementedError

    def variant(self, node: Node, tiling: Tiling) -> Variant:
        """What the compiler must know: the header, and the C++ type with its arguments."""
        raise NotImplementedError

    def hands_over(self, node: Node, tiling: Tiling, consumer_warps: int) -> bool:
        """Whether its CUDA code stores outputs in whole words that can say themselves when they are there."""
        return False

    def awaits(self, node: Node, consumer_warps: int) -> tuple[str, ...]:
        """Operands whose words its CUDA code can wait for one by one."""
        return ()

    def block_graph(self, node: Node) -> tuple[Stage, ...]:
        """What one tile loads, computes and stores."""
        raise NotImplementedError

    def thread_graph(self, node: Node) -> str:
        """How warps and lanes share that tile."""
        raise NotImplementedError

    @classmethod
    def operand(cls, name: str) -> Operand:
        """The operand of that name."""
        return next(o for o in cls.operands if o.name == name)

    @classmethod
    def outputs(cls) -> tuple[str, ...]:
        """Operands whose tensors the operator creates (a pure write)."""
        return tuple(o.name for o in cls.operands if o.access == "w")


@dataclass
class Registry:
    """All operators by name."""

    ops: dict[str, Op] = field(default_factory=dict)

    def add(self, cls: type[Op]) -> type[Op]:
        self.ops[cls.name] = cls()
        return cls


REGISTRY = Registry()
register = REGISTRY.add


# --- helpers shared by operators -------------------------------------------------------------------------------------


def expect(condition: bool, node: Node, message: str) -> None:
    """Raise a GraphError that starts with the operator's name and lists its operand types."""
    if not condition:
        types = ", ".join(f"{k} {v}" for k, v in node.types.items())
        raise GraphError(f"{node.name} ({node.op}): {message}; found {types}")


def expect_shape(node: Node, operand: str, shape: tuple[Extent, ...], dtype: str | None = None) -> None:
    """GraphError unless an operand has this shape, and this dtype where one is given."""
    found = node.types[operand]
    expect(
        found.shape == shape and (dtype is None or found.dtype == dtype),
        node,
        f"{operand} must be {dtype or found.dtype}[{shape_text(shape)}], not {found}",
    )


def expect_float(node: Node, operand: str) -> None:
    """GraphError unless an operand is of floating point."""
    dtype = node.types[operand].dtype
    expect(dtype in FLOATS, node, f"{operand} must be float32 or bfloat16, not {dtype}")


def words(*columns: int | IntArray, n: int) -> npt.NDArray[np.int32]:
    """int32[n, 4] from up to four columns."""
    out = np.zeros((n, 4), np.int32)
    for i, column in enumerate(columns):
        out[:, i] = column
    return out


def float_bits(value: float) -> str:
    """A float as the unsigned literal a C++ template takes."""
    return f"{struct.unpack('<I', struct.pack('<f', value))[0]:#x}u"


def column_tiles(node: Node, tiling: Tiling, extent: int) -> tuple[IntArray, IntArray]:
    """Begin and end of each tile along one axis."""
    bounds = tiling.bounds(extent)
    if len(bounds) < 2:
        raise LowerError(f"{node.name} ({node.op}): an axis of {extent} cannot be cut by {tiling}")
    return bounds[:-1], bounds[1:]


def rows_arguments(node: Node, operand: str) -> str:
    """`Rows, Dim` for a tensor whose first axis is the batch."""
    extent = node.types[operand].shape[0]
    return f"{upper(extent)}, {node.dim_index(extent)}"
