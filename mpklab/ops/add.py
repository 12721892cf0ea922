"""add: elementwise sum, the residual connection."""

from mpklab.dims import upper
from mpklab.ops.base import (
    C_TYPE, ITEM_BYTES, Box, Node, Op, Operand, Stage, TensorType, Tiles, Tiling, Variant,
    column_tiles, expect, expect_float, expect_shape, register, rows_arguments, span, whole, words,
)  # fmt: skip


@register
class Add(Op):
    name = "add"
    operands = (Operand("a"), Operand("b"), Operand("out", "w"))

    def infer(self, node: Node) -> dict[str, TensorType]:
        a = node.types["a"]
        expect(len(a.shape) == 2, node, "a must have two axes")
        expect_float(node, "a")
        expect_shape(node, "b", a.shape, a.dtype)
        return {"out": a}

    def tile_extent(self, node: Node) -> int:
        return upper(node.types["a"].shape[1])

    def tiles(self, node: Node, tiling: Tiling) -> Tiles:
        lo, hi = column_tiles(node, tiling, self.tile_extent(node))
        rows = node.types["out"].sizes[0]
        ranges = (whole(rows), span(lo, hi))
        return Tiles(
            words(lo, hi, n=len(lo)),
            reads=(Box("a", ranges), Box("b", ranges)),
            writes=(Box("out", ranges),),
            flops=(hi - lo) * float(rows),
            bytes=(hi - lo) * rows * 3.0 * ITEM_BYTES[node.types["a"].dtype],
        )

    def variant(self, node: Node, tiling: Tiling) -> Variant:
        a = node.types["a"]
        return Variant("add", f"mpk::ops::Add<{C_TYPE[a.dtype]}, {a.sizes[1]}, {rows_arguments(node, 'out')}>")

    def block_graph(self, node: Node) -> tuple[Stage, ...]:
        return (Stage("load", "a[:, tile], b[:, tile]"), Stage("compute", "a + b"), Stage("store", "out[:, tile]"))

    def thread_graph(self, node: Node) -> str:
        return "elementwise: lanes along the tile's columns"
