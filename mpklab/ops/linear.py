"""linear: out = x · weightᵀ (+ bias), with optional prologues (rms_norm, attention merge) and epilogues (silu_mul,
residual, argmax over the tile's own rows)."""

import math

import numpy as np

from mpklab.dims import shape_text, upper
from mpklab.ops.base import (
    C_TYPE, ITEM_BYTES, Box, Node, Op, Operand, Stage, TensorType, Tiles, Tiling, Variant,
    all_of, at, column_tiles, expect, expect_float, expect_shape, float_bits, register, rows_arguments, span, whole,
    words,
)  # fmt: skip

EPILOGUES = ("none", "silu_mul", "residual")


@register
class Linear(Op):
    """`weight` is [N, K]; with the silu_mul epilogue [2N, K], gate rows first, and a tile owns the same rows of both.

    With `stats`, x is an attention partial [B, heads, splits, D] and is merged on the way in. With `value` and
    `index`, each tile also writes the largest of its outputs and where it stands.
    """

    name = "linear"
    operands = (
        Operand("x"),
        Operand("weight", streamed=True),
        Operand("out", "w"),
        Operand("norm_weight", optional=True),
        Operand("residual", optional=True),
        Operand("bias", optional=True),
        Operand("stats", optional=True),
        Operand("value", "w", optional=True),
        Operand("index", "w", optional=True),
    )
    attrs = {"eps": 1e-5, "epilogue": "none", "out_dtype": None, "argmax_parts": 0}

    def _columns(self, node: Node) -> int:
        x = node.types["x"]
        return x.sizes[1] if len(x.shape) == 2 else x.sizes[1] * x.sizes[3]

    def infer(self, node: Node) -> dict[str, TensorType]:
        x, weight = node.types["x"], node.types["weight"]
        merged = "stats" in node.types
        expect(len(x.shape) == (4 if merged else 2), node, f"x must have {4 if merged else 2} axes")
        expect(len(weight.shape) == 2, node, "weight must have two axes [N, K]")
        expect_float(node, "weight")
        k = self._columns(node)
        expect(
            k == upper(weight.shape[1]),
            node,
            f"x has {k} columns but weight [{shape_text(weight.shape)}] takes {weight.shape[1]}",
        )
        expect(merged or x.dtype == weight.dtype, node, "x and weight must have one dtype")
        epilogue = node.attrs["epilogue"]
        expect(epilogue in EPILOGUES, node, f"epilogue must be one of {EPILOGUES}, not {epilogue!r}")
        n = weight.shape[0]
        if epilogue == "silu_mul":
            expect(upper(n) % 2 == 0, node, "silu_mul needs an even number of weight rows (gate, then up)")
            n = upper(n) // 2
        if "norm_weight" in node.types:
            expect_shape(node, "norm_weight", (k,))
        if "bias" in node.types:
            expect_shape(node, "bias", (weight.shape[0],))
        expect(
            ("residual" in node.types) == (epilogue == "residual"),
            node,
            "the residual epilogue and operand go together",
        )
        if epilogue == "residual":
            expect_shape(node, "residual", (x.shape[0], n))
        out = {"out": TensorType((x.shape[0], n), node.attrs["out_dtype"] or weight.dtype)}
        parts = node.attrs["argmax_parts"]
        if parts:
            out["value"] = TensorType((x.shape[0], parts), "float32")
            out["index"] = TensorType((x.shape[0], parts), "int32")
        return out

    def tile_extent(self, node: Node) -> int:
        n = upper(node.types["weight"].shape[0])
        return n // 2 if node.attrs["epilogue"] == "silu_mul" else n

    def tiles(self, node: Node, tiling: Tiling) -> Tiles:
        n = self.tile_extent(node)
        lo, hi = column_tiles(node, tiling, n)
        parts = node.attrs["argmax_parts"]
        expect(not parts or len(lo) == parts, node, f"argmax_parts is {parts} but the tiling makes {len(lo)} tiles")
        index = np.arange(len(lo))
        k = self._columns(node)
        weight, out = node.types["weight"], node.types["out"]
        rows = whole(out.shape[0])
        reads = [all_of("x", node), Box("weight", (span(lo, hi), whole(k)))]
        pair = node.attrs["epilogue"] == "silu_mul"
        if pair:
            reads.append(Box("weight", (span(n + lo, n + hi), whole(k))))
        for name in ("norm_weight", "stats"):
            if name in node.types:
                reads.append(all_of(name, node))
        if "residual" in node.types:
            reads.append(Box("residual", (rows, span(lo, hi))))
        if "bias" in node.types:
            reads.append(Box("bias", (span(lo, hi),)))
            if pair:
                reads.append(Box("bias", (span(n + lo, n + hi),)))
        writes = [Box("out", (rows, span(lo, hi)))]
        if parts:
            writes += [Box(name, (rows, at(index))) for name in ("value", "index")]
        batch = out.sizes[0]
        height = (hi - lo).astype(np.float64) * (2 if pair else 1)
        moved = (
            height * k * ITEM_BYTES[weight.dtype] + node.types["x"].bytes + (hi - lo) * batch * ITEM_BYTES[out.dtype]
        )
        return Tiles(words(lo, hi, index, n=len(lo)), tuple(reads), tuple(writes), 2.0 * height * k * batch, moved)

    def variant(self, node: Node, tiling: Tiling) -> Variant:
        x, weight, out = node.types["x"], node.types["weight"], node.types["out"]
        splits, d = (x.sizes[2], x.sizes[3]) if "stats" in node.types else (0, 0)
        arguments = [
            C_TYPE[weight.dtype],
            C_TYPE[out.dtype],
            str(out.sizes[1]),
            str(self._columns(node)),
            rows_arguments(node, "out"),
            str(int("norm_weight" in node.types)),
            float_bits(node.attrs["eps"]),
            f"mpk::Epilogue::{node.attrs['epilogue']}",
            str(int("bias" in node.types)),
            str(splits),
            str(d),
            C_TYPE[x.dtype],
            str(node.attrs["argmax_parts"]),
        ]
        return Variant("linear", f"mpk::ops::Linear<{', '.join(arguments)}>")

    def _one_row(self, node: Node, consumer_warps: int) -> bool:
        """Whether ops/linear_row.cuh computes it: Linear::row in ops/linear.cuh says when."""
        k = self._columns(node)
        if node.types["weight"].dtype != "bfloat16" or node.types["out"].shape[0] != 1 or k % 64:
            return False
        if "stats" in node.types and node.types["x"].sizes[3] % 8:
            return False
        distinct = k // 64 // math.gcd(k // 64, consumer_warps)
        return (2 * distinct if distinct % 2 and distinct <= 8 else distinct) <= 32

    def hands_over(self, node: Node, tiling: Tiling, consumer_warps: int) -> bool:
        pairs = not (tiling.bounds(self.tile_extent(node)) % 2).any()
        return pairs and node.types["out"].dtype == "bfloat16" and self._one_row(node, consumer_warps)

    def awaits(self, node: Node, consumer_warps: int) -> tuple[str, ...]:
        if not self._one_row(node, consumer_warps):
            return ()
        return ("residual",) if "stats" in node.types else ("x", "residual")

    def block_graph(self, node: Node) -> tuple[Stage, ...]:
        stages = [Stage("load", "weight[tile, :]", "streamed through the ring, ahead of the task's events")]
        stages.append(Stage("load", "x", "whole, after its events"))
        if "stats" in node.types:
            stages.append(Stage("compute", "merge the context's splits", "weights exp(m - max m) · l"))
        if "norm_weight" in node.types:
            stages.append(Stage("compute", "rms_norm", "Σx² beside the products"))
        stages.append(Stage("compute", "x · weight[tile, :]ᵀ", "float32"))
        if "bias" in node.types:
            stages.append(Stage("compute", "+ bias[tile]"))
        if node.attrs["epilogue"] == "silu_mul":
            stages.append(Stage("compute", "silu(gate) · up", "the tile owns the same rows of both"))
        if node.attrs["epilogue"] == "residual":
            stages.append(Stage("compute", "+ residual[:, tile]"))
        stages.append(Stage("store", "out[:, tile]"))
        if node.attrs["argmax_parts"]:
            stages.append(Stage("store", "value[:, part], index[:, part]", "largest of the tile"))
        return tuple(stages)

    def thread_graph(self, node: Node) -> str:
        return "k is split over warps, 8 elements a lane; rows of a page in turn; partial sums reduced in a fixed order"
