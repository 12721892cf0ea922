"""rms_norm: x / sqrt(mean(x²) + eps) · weight, by row (Zhang & Sennrich 2019)."""

from mpklab.dims import upper
from mpklab.ops.base import (
    C_TYPE, ITEM_BYTES, Box, Node, Op, Operand, Stage, TensorType, Tiles, Tiling, Variant,
    all_of, column_tiles, expect, expect_float, expect_shape, float_bits, register, rows_arguments, span, whole, words,
)  # fmt: skip


@register
class RmsNorm(Op):
    name = "rms_norm"
    operands = (Operand("x"), Operand("weight"), Operand("out", "w"))
    attrs = {"eps": 1e-5}

    def infer(self, node: Node) -> dict[str, TensorType]:
        x = node.types["x"]
        expect(len(x.shape) == 2, node, "x must have two axes")
        expect_float(node, "x")
        expect_shape(node, "weight", (x.shape[1],), x.dtype)
        return {"out": x}

    def tile_extent(self, node: Node) -> int:
        return upper(node.types["x"].shape[0])

    def tiles(self, node: Node, tiling: Tiling) -> Tiles:
        lo, hi = column_tiles(node, tiling, self.tile_extent(node))
        width = node.types["x"].sizes[1]
        rows = (span(lo, hi), whole(width))
        item = ITEM_BYTES[node.types["x"].dtype]
        return Tiles(
            words(lo, hi, n=len(lo)),
            reads=(Box("x", rows), all_of("weight", node)),
            writes=(Box("out", rows),),
            flops=(hi - lo) * width * 4.0,
            bytes=(hi - lo) * width * 2.0 * item + width * item,
        )

    def variant(self, node: Node, tiling: Tiling) -> Variant:
        x = node.types["x"]
        eps = float_bits(node.attrs["eps"])
        return Variant(
            "rms_norm", f"mpk::ops::RmsNorm<{C_TYPE[x.dtype]}, {x.sizes[1]}, {eps}, {rows_arguments(node, 'x')}>"
        )

    def block_graph(self, node: Node) -> tuple[Stage, ...]:
        return (
            Stage("load", "x[tile, :], weight"),
            Stage("compute", "Σx² by row", "float32"),
            Stage("store", "out[tile, :]"),
        )

    def thread_graph(self, node: Node) -> str:
        return "a row at a time: lanes along the columns, Σx² reduced over lanes then warps"
