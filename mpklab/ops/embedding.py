"""embedding: rows of a table picked by token ids."""

import numpy as np

from mpklab.dims import upper
from mpklab.ops.base import (
    C_TYPE, ITEM_BYTES, Box, Node, Op, Operand, Stage, TensorType, Tiles, Tiling, Variant,
    all_of, column_tiles, expect, expect_float, register, rows_arguments, span, whole, words,
)  # fmt: skip


@register
class Embedding(Op):
    name = "embedding"
    operands = (Operand("token"), Operand("weight"), Operand("out", "w"))

    def infer(self, node: Node) -> dict[str, TensorType]:
        token, weight = node.types["token"], node.types["weight"]
        expect(len(token.shape) == 1 and token.dtype == "int32", node, "token must be int32 with one axis")
        expect(len(weight.shape) == 2, node, "weight must have two axes")
        expect_float(node, "weight")
        return {"out": TensorType((token.shape[0], weight.shape[1]), weight.dtype)}

    def tile_extent(self, node: Node) -> int:
        return upper(node.types["weight"].shape[1])

    def tiles(self, node: Node, tiling: Tiling) -> Tiles:
        lo, hi = column_tiles(node, tiling, self.tile_extent(node))
        rows = node.types["out"].sizes[0]
        columns = span(lo, hi)
        size = (hi - lo) * rows * ITEM_BYTES[node.types["weight"].dtype] * 2.0
        return Tiles(
            words(lo, hi, n=len(lo)),
            reads=(all_of("token", node), Box("weight", (whole(node.types["weight"].shape[0]), columns))),
            writes=(Box("out", (whole(rows), columns)),),
            flops=np.zeros(len(lo)),
            bytes=size,
        )

    def variant(self, node: Node, tiling: Tiling) -> Variant:
        v, h = node.types["weight"].sizes
        dtype = C_TYPE[node.types["weight"].dtype]
        return Variant("embedding", f"mpk::ops::Embedding<{dtype}, {v}, {h}, {rows_arguments(node, 'out')}>")

    def hands_over(self, node: Node, tiling: Tiling, consumer_warps: int) -> bool:
        out = node.types["out"]
        pairs = out.sizes[1] % 2 == 0 and not (tiling.bounds(self.tile_extent(node)) % 2).any()
        return pairs and out.dtype == "bfloat16" and out.shape[0] == 1

    def block_graph(self, node: Node) -> tuple[Stage, ...]:
        return (Stage("load", "weight[token, tile]"), Stage("store", "out[:, tile]"))

    def thread_graph(self, node: Node) -> str:
        return "lanes along the tile's columns, one row of the batch after another"
