"""attention: one new token per sequence against its key/value cache, cut by head group and by context
(Flash-Decoding's split of the keys; grouped queries; rotate-half rope; optional q/k norm)."""

import numpy as np

from mpklab.ops.base import (
    C_TYPE, ITEM_BYTES, Box, Node, Op, Operand, Range, Stage, TensorType, Tiles, Tiling, Variant,
    all_of, at, at_position, expect, expect_float, expect_shape, float_bits, register, rows_arguments, span,
    split_context, whole, words,
)  # fmt: skip


ROWS_FIRST = (0, 2, 1, 3)  # a cache stored as [batch, context, kv_heads, head_dim]


@register
class Attention(Op):
    """q, k and v may be columns of one tensor: `q_offset`… say where; with a `group_stride`, those of each KV head begin
    so many columns after the last one's. The split that owns the position appends to the caches in place. With
    `splits` > 1 the output is a partial [B, heads, splits, D] with its `stats`."""

    name = "attention"
    operands = (
        Operand("q"),
        Operand("k"),
        Operand("v"),
        Operand("q_norm", optional=True),
        Operand("k_norm", optional=True),
        Operand("rope"),
        Operand("k_cache", "rw", streamed=True, orders=(ROWS_FIRST,)),
        Operand("v_cache", "rw", streamed=True, orders=(ROWS_FIRST,)),
        Operand("position"),
        Operand("out", "w"),
        Operand("stats", "w", optional=True),
    )
    attrs = {
        "heads": 0, "q_offset": 0, "k_offset": 0, "v_offset": 0, "group_stride": 0, "eps": 1e-6, "splits": 1,
        "partial_dtype": "float32",
    }  # fmt: skip

    def _columns(self, node: Node, name: str) -> tuple[int, int, int]:
        """Of q, k or v: the first column, how many belong to a KV head, and how far it is to the next one's."""
        _, kv, _, d = node.types["k_cache"].sizes
        width = d * (node.attrs["heads"] // kv if name == "q" else 1)
        return node.attrs[f"{name}_offset"], width, node.attrs.get("group_stride") or width

    def infer(self, node: Node) -> dict[str, TensorType]:
        k_cache = node.types["k_cache"]
        expect(len(k_cache.shape) == 4, node, "k_cache must be [batch, kv_heads, context, head_dim]")
        expect_float(node, "k_cache")
        batch, _, context, d = k_cache.shape
        heads = node.attrs["heads"]
        kv = k_cache.sizes[1]
        expect(
            heads > 0 and heads % kv == 0, node, f"heads ({heads}) must be a multiple of the cache's kv heads ({kv})"
        )
        expect_shape(node, "v_cache", k_cache.shape, k_cache.dtype)
        expect(node.types["v_cache"].order == k_cache.order, node, "both caches must be stored in one order")
        expect_shape(node, "position", (batch,), "int32")
        expect_shape(node, "rope", (context, d), "float32")
        for name in "qkv":
            found = node.types[name]
            offset, width, step = self._columns(node, name)
            expect(
                step >= width, node, f"group_stride ({step}) must be at least the {width} columns of a KV head's {name}"
            )
            expect(
                len(found.shape) == 2
                and found.shape[0] == batch
                and found.sizes[1] >= offset + (kv - 1) * step + width,
                node,
                f"{name} needs {heads if name == 'q' else kv} heads of {d} columns from {offset}",
            )
            expect(found.dtype == k_cache.dtype, node, f"{name} and the caches must have one dtype")
        expect(("q_norm" in node.types) == ("k_norm" in node.types), node, "q_norm and k_norm go together")
        for name in ("q_norm", "k_norm"):
            if name in node.types:
                expect_shape(node, name, (d,), k_cache.dtype)
        splits = node.attrs["splits"]
        expect(splits >= 1, node, f"splits must be at least 1, not {splits}")
        if splits == 1:
            return {"out": TensorType((batch, heads * k_cache.sizes[3]), k_cache.dtype)}
        return {
            "out": TensorType((batch, heads, splits, d), node.attrs["partial_dtype"]),
            "stats": TensorType((batch, heads, splits, 2), "float32"),
        }

    def tile_extent(self, node: Node) -> int:
        b, h, _, _ = node.types["k_cache"].sizes
        return b * h * int(node.attrs["splits"])

    def tiles(self, node: Node, tiling: Tiling) -> Tiles:
        batch, kv, context, d = node.types["k_cache"].sizes
        splits, heads = node.attrs["splits"], node.attrs["heads"]
        group = heads // kv
        b, h, s = (a.ravel() for a in np.meshgrid(np.arange(batch), np.arange(kv), np.arange(splits), indexing="ij"))
        n = len(b)

        def columns(name: str) -> Range:
            offset, width, step = self._columns(node, name)
            return span(offset + h * step, offset + h * step + width)

        reads = [
            *(Box(name, (at(b), columns(name))) for name in "qkv"),
            *(all_of(name, node) for name in ("q_norm", "k_norm") if name in node.types),
            Box("rope", (at_position(), whole(d))),
            Box("position", (at(b),)),
        ]
        writes = []
        for name in ("k_cache", "v_cache"):
            reads.append(Box(name, (at(b), at(h), split_context(splits, s), whole(d))))
        # Only the split that holds the position appends, and which one that is follows the context: with one split
        # it is tile 0, otherwise the last, because pieces of [0, pos + 1) are cut in order.
        owner = np.where(s == splits - 1, 1, 0)
        for name in ("k_cache", "v_cache"):
            writes.append(Box(name, (Range(b, b + owner), at(h), at_position(), whole(d))))
        if splits == 1:
            writes.append(Box("out", (at(b), span(h * group * d, (h + 1) * group * d))))
        else:
            writes.append(Box("out", (at(b), span(h * group, (h + 1) * group), at(s), whole(d))))
            writes.append(Box("stats", (at(b), span(h * group, (h + 1) * group), at(s), whole(2))))
        rows = context / splits / 2  # costs at half the context: the mean over a whole generation
        item = ITEM_BYTES[node.types["k_cache"].dtype]
        flops = np.full(n, 4.0 * group * d * rows)
        moved = np.full(n, 2.0 * rows * d * item + (group + 2) * d * item)
        return Tiles(words(b, h, s, n=n), tuple(reads), tuple(writes), flops, moved)

    def variant(self, node: Node, tiling: Tiling) -> Variant:
        k_cache = node.types["k_cache"]
        _, kv, context, d = k_cache.sizes
        a = node.attrs
        offsets = ", ".join(str(a[f"{x}_offset"]) for x in "qkv")
        strides = ", ".join(str(node.types[x].sizes[1]) for x in "qkv")
        partial = C_TYPE[a["partial_dtype"] if a["splits"] > 1 else k_cache.dtype]
        every, rows_first = a.get("group_stride", 0), k_cache.order == ROWS_FIRST
        layout = f", {every}, {'true' if rows_first else 'false'}" if every or rows_first else ""
        return Variant(
            "attention",
            f"mpk::ops::Attention<{C_TYPE[k_cache.dtype]}, {a['heads']}, {kv}, {d}, {context}, {a['splits']}, {offsets}, "
            f"{strides}, {int('q_norm' in node.types)}, {float_bits(a['eps'])}, {partial}, {rows_arguments(node, 'k_cache')}{layout}>",
        )

    def awaits(self, node: Node, consumer_warps: int) -> tuple[str, ...]:
        # Attention::streamed in ops/attention.cuh; one sequence, because another's rows may be dead and never come.
        _, kv, _, d = node.types["k_cache"].sizes
        few = node.attrs["heads"] // kv <= 8
        streamed = node.types["k_cache"].dtype == "bfloat16" and few and d in (32, 64, 128, 256)
        return ("q", "k", "v") if streamed and node.types["k_cache"].shape[0] == 1 else ()

    def block_graph(self, node: Node) -> tuple[Stage, ...]:
        norm = "norm, " if "q_norm" in node.types else ""
        return (
            Stage(
                "load", "k_cache, v_cache rows of the split", "rows below the position wait only for the last iteration"
            ),
            Stage("load", "q of the head group, k and v of the position"),
            Stage("compute", f"{norm}rope", "rotate-half, at the position"),
            Stage("store", "k_cache[pos], v_cache[pos]", "by the split that owns the position"),
            Stage("compute", "softmax(q · kᵀ / √d) · v", "running maximum and sum, float32"),
            Stage("store", "out" if node.attrs["splits"] == 1 else "out, stats of the split"),
        )

    def thread_graph(self, node: Node) -> str:
        return "warps along the context's rows, lanes along head_dim; partial softmaxes joined in warp order"
