"""argmax in two operators: the largest of each piece, then the largest of those. Order: value, then lowest index; NaN first."""

import numpy as np

from mpklab.dims import upper
from mpklab.ops.base import (
    C_TYPE, ITEM_BYTES, Box, Node, Op, Operand, Stage, TensorType, Tiles, Tiling, Variant,
    all_of, at, column_tiles, expect, expect_float, expect_shape, register, rows_arguments, span, whole, words,
)  # fmt: skip


@register
class ArgmaxPartial(Op):
    name = "argmax_partial"
    operands = (Operand("x"), Operand("value", "w"), Operand("index", "w"))
    attrs = {"parts": 1}

    def infer(self, node: Node) -> dict[str, TensorType]:
        x = node.types["x"]
        expect(len(x.shape) == 2, node, "x must have two axes")
        expect_float(node, "x")
        shape = (x.shape[0], node.attrs["parts"])
        return {"value": TensorType(shape, "float32"), "index": TensorType(shape, "int32")}

    def tile_extent(self, node: Node) -> int:
        return upper(node.types["x"].shape[1])

    def tiles(self, node: Node, tiling: Tiling) -> Tiles:
        lo, hi = column_tiles(node, tiling, self.tile_extent(node))
        parts = node.attrs["parts"]
        expect(len(lo) == parts, node, f"parts is {parts} but the tiling makes {len(lo)} tiles")
        rows = node.types["x"].sizes[0]
        out = (whole(rows), at(np.arange(parts)))
        return Tiles(
            words(lo, hi, np.arange(parts), n=parts),
            reads=(Box("x", (whole(rows), span(lo, hi))),),
            writes=(Box("value", out), Box("index", out)),
            flops=(hi - lo) * float(rows),
            bytes=(hi - lo) * rows * float(ITEM_BYTES[node.types["x"].dtype]),
        )

    def variant(self, node: Node, tiling: Tiling) -> Variant:
        x = node.types["x"]
        return Variant(
            "argmax_partial",
            f"mpk::ops::ArgmaxPartial<{C_TYPE[x.dtype]}, {x.sizes[1]}, {node.attrs['parts']}, {rows_arguments(node, 'x')}>",
        )

    def block_graph(self, node: Node) -> tuple[Stage, ...]:
        return (
            Stage("load", "x[:, tile]"),
            Stage("compute", "largest, lowest index"),
            Stage("store", "value, index[:, part]"),
        )

    def thread_graph(self, node: Node) -> str:
        return "lanes along the tile, then lanes and warps reduced by (value, index)"


@register
class ArgmaxReduce(Op):
    name = "argmax_reduce"
    operands = (Operand("value"), Operand("index"), Operand("out", "w"))

    def infer(self, node: Node) -> dict[str, TensorType]:
        value = node.types["value"]
        expect(len(value.shape) == 2 and value.dtype == "float32", node, "value must be float32 [batch, parts]")
        expect_shape(node, "index", value.shape, "int32")
        return {"out": TensorType((value.shape[0],), "int32")}

    def tile_extent(self, node: Node) -> int:
        return 1

    def tiles(self, node: Node, tiling: Tiling) -> Tiles:
        size = node.types["value"].bytes * 2.0
        return Tiles(
            words(n=1),
            reads=(all_of("value", node), all_of("index", node)),
            writes=(all_of("out", node),),
            flops=np.array([size / 8]),
            bytes=np.array([size]),
        )

    def variant(self, node: Node, tiling: Tiling) -> Variant:
        parts = node.types["value"].sizes[1]
        return Variant("argmax_reduce", f"mpk::ops::ArgmaxReduce<{parts}, {rows_arguments(node, 'out')}>")

    def block_graph(self, node: Node) -> tuple[Stage, ...]:
        return (Stage("load", "value, index"), Stage("compute", "largest, lowest index"), Stage("store", "out"))

    def thread_graph(self, node: Node) -> str:
        return "one warp a row of the batch"
