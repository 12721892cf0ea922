"""attention_merge: joins the splits of a context into the attention's output."""

import numpy as np

from mpklab.ops.base import (
    C_TYPE, ITEM_BYTES, Box, Node, Op, Operand, Stage, TensorType, Tiles, Tiling, Variant,
    at, column_tiles, expect, expect_shape, register, rows_arguments, span, whole, words,
)  # fmt: skip


@register
class AttentionMerge(Op):
    name = "attention_merge"
    operands = (Operand("partial"), Operand("stats"), Operand("out", "w"))
    attrs = {"out_dtype": "bfloat16"}

    def infer(self, node: Node) -> dict[str, TensorType]:
        partial = node.types["partial"]
        expect(len(partial.shape) == 4, node, "partial must be [batch, heads, splits, head_dim]")
        expect_shape(node, "stats", (*partial.shape[:3], 2), "float32")
        return {"out": TensorType((partial.shape[0], partial.sizes[1] * partial.sizes[3]), node.attrs["out_dtype"])}

    def tile_extent(self, node: Node) -> int:
        return node.types["partial"].sizes[1]

    def tiles(self, node: Node, tiling: Tiling) -> Tiles:
        batch, heads, splits, d = node.types["partial"].sizes
        first, last = column_tiles(node, tiling, heads)
        b = np.repeat(np.arange(batch), len(first))
        lo, hi = np.tile(first, batch), np.tile(last, batch)
        read = (at(b), span(lo, hi), whole(splits))
        moved = (hi - lo) * d * (splits * ITEM_BYTES[node.types["partial"].dtype] + ITEM_BYTES[node.types["out"].dtype])
        return Tiles(
            words(b, lo, hi, n=len(b)),
            reads=(Box("partial", (*read, whole(d))), Box("stats", (*read, whole(2)))),
            writes=(Box("out", (at(b), span(lo * d, hi * d))),),
            flops=(hi - lo) * d * splits * 2.0,
            bytes=moved.astype(np.float64),
        )

    def variant(self, node: Node, tiling: Tiling) -> Variant:
        partial, out = node.types["partial"], node.types["out"]
        _, heads, splits, d = partial.sizes
        return Variant(
            "attention_merge",
            f"mpk::ops::AttentionMerge<{C_TYPE[out.dtype]}, {heads}, {d}, {splits}, {C_TYPE[partial.dtype]}, "
            f"{rows_arguments(node, 'out')}>",
        )

    def block_graph(self, node: Node) -> tuple[Stage, ...]:
        return (
            Stage("load", "partial[tile], stats[tile]"),
            Stage("compute", "Σ exp(m - max m) · l · partial", "splits in order"),
            Stage("store", "out[tile]"),
        )

    def thread_graph(self, node: Node) -> str:
        return "lanes along head_dim, heads in turn"
