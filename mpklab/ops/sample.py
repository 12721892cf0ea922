"""sample in two operators: each part sorts its scores by size or draws from them, then one tile draws from what survives."""

import numpy as np

from mpklab.dims import Extent, upper
from mpklab.ops.base import (
    C_TYPE, ITEM_BYTES, Box, Node, Op, Operand, Stage, TensorType, Tiles, Tiling, Variant,
    all_of, at, column_tiles, expect, expect_float, expect_shape, register, rows_arguments, span, whole, words,
)  # fmt: skip

# What a row of `sampling` holds. They are data: changing one compiles nothing.
COLUMNS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
SEED_WORDS = 3  # seed & 0xffffffff, seed >> 32, number of the request
BINS = 48  # of scores, an octave of their exponentials each
MOST = 1 << 19  # tokens: a word of `words` counts them in 19 bits


def seen_words(vocabulary: int) -> int:
    """Words of a row of `seen`: bit i % 32 of word i / 32 says that token i has occurred."""
    return -(-vocabulary // 32)


def _expect_rules(node: Node, batch: Extent, vocabulary: int) -> None:
    expect(vocabulary < MOST, node, f"a vocabulary must be smaller than {MOST}")
    expect_shape(node, "seen", (batch, seen_words(vocabulary)), "int32")
    expect_shape(node, "sampling", (batch, len(COLUMNS)), "float32")
    expect_shape(node, "seed", (batch, SEED_WORDS), "int32")
    expect_shape(node, "position", (batch,), "int32")


@register
class SamplePartial(Op):
    """A row that no filter touches keeps the best draw of each part; else a part's scores stand sorted by bin."""

    name = "sample_partial"
    operands = (
        Operand("x"),
        Operand("seen"),
        Operand("sampling"),
        Operand("seed"),
        Operand("position"),
        Operand("value", "w"),
        Operand("index", "w"),
        Operand("score", "w"),
        Operand("token", "w"),
        Operand("words", "w"),
    )
    attrs = {"parts": 1}

    def infer(self, node: Node) -> dict[str, TensorType]:
        x, parts = node.types["x"], node.attrs["parts"]
        expect(len(x.shape) == 2, node, "x must have two axes")
        expect_float(node, "x")
        batch = x.shape[0]
        _expect_rules(node, batch, upper(x.shape[1]))
        return {
            "value": TensorType((batch, parts), "float32"),
            "index": TensorType((batch, parts), "int32"),
            "score": TensorType(x.shape, "float32"),
            "token": TensorType(x.shape, "int32"),
            "words": TensorType((batch, parts, BINS), "int64"),
        }

    def tile_extent(self, node: Node) -> int:
        return upper(node.types["x"].shape[1])

    def tiles(self, node: Node, tiling: Tiling) -> Tiles:
        lo, hi = column_tiles(node, tiling, self.tile_extent(node))
        parts = node.attrs["parts"]
        expect(len(lo) == parts, node, f"parts is {parts} but the tiling makes {len(lo)} tiles")
        rows = whole(node.types["x"].shape[0])
        batch, part = node.types["x"].sizes[0], np.arange(parts)
        rules = tuple(all_of(name, node) for name in ("sampling", "seed", "position"))
        mine, columns = (rows, at(part)), (rows, span(lo, hi))
        return Tiles(
            words(lo, hi, part, n=parts),
            reads=(Box("x", columns), Box("seen", (rows, span(lo // 32, -(-hi // 32)))), *rules),
            writes=(
                Box("value", mine),
                Box("index", mine),
                Box("score", columns),
                Box("token", columns),
                Box("words", (*mine, span(0, BINS))),
            ),
            flops=(hi - lo) * 60.0 * batch,
            bytes=(hi - lo) * batch * (ITEM_BYTES[node.types["x"].dtype] + 8.0),
        )

    def variant(self, node: Node, tiling: Tiling) -> Variant:
        x = node.types["x"]
        return Variant(
            "sample",
            f"mpk::ops::SamplePartial<{C_TYPE[x.dtype]}, {x.sizes[1]}, {node.attrs['parts']}, {rows_arguments(node, 'x')}>",
        )

    def block_graph(self, node: Node) -> tuple[Stage, ...]:
        return (
            Stage("load", "x, seen[:, tile]", "and the row's rules"),
            Stage("compute", "score = penalised x / temperature"),
            Stage("compute", "no filter: largest score + noise"),
            Stage("compute", "else: count and sum exp(score) by octave, sort by octave"),
            Stage("store", "value, index[:, part]; score, token[:, tile]; words[:, part]"),
        )

    def thread_graph(self, node: Node) -> str:
        return "lanes along the tile; a warp sorts its own stretch, and places follow from counts of warps and bins"


@register
class SampleReduce(Op):
    """`cut` is the smallest score that passes the filters: those survive, ties included, that are not below it."""

    name = "sample_reduce"
    operands = (
        Operand("value"),
        Operand("index"),
        Operand("score"),
        Operand("token"),
        Operand("words"),
        Operand("sampling"),
        Operand("seed"),
        Operand("position"),
        Operand("seen", "rw"),
        Operand("out", "w"),
        Operand("cut", "w"),
    )

    def infer(self, node: Node) -> dict[str, TensorType]:
        score, value = node.types["score"], node.types["value"]
        expect(len(score.shape) == 2 and len(value.shape) == 2, node, "score and value must have two axes")
        batch, parts = score.shape[0], value.shape[1]
        expect_shape(node, "score", score.shape, "float32")
        expect_shape(node, "token", score.shape, "int32")
        expect_shape(node, "value", (batch, parts), "float32")
        expect_shape(node, "index", (batch, parts), "int32")
        expect_shape(node, "words", (batch, parts, BINS), "int64")
        _expect_rules(node, batch, upper(score.shape[1]))
        return {"out": TensorType((batch,), "int32"), "cut": TensorType((batch,), "float32")}

    def tile_extent(self, node: Node) -> int:
        return 1

    def tiles(self, node: Node, tiling: Tiling) -> Tiles:
        reads = tuple(all_of(o.name, node) for o in self.operands if o.access != "w")
        writes = tuple(all_of(o.name, node) for o in self.operands if o.access != "r")
        size = float(node.types["words"].bytes)  # and of the scores those few that may survive
        return Tiles(words(n=1), reads, writes, flops=np.array([size / 8]), bytes=np.array([size]))

    def variant(self, node: Node, tiling: Tiling) -> Variant:
        vocabulary, parts = node.types["score"].sizes[1], node.types["value"].sizes[1]
        return Variant("sample", f"mpk::ops::SampleReduce<{vocabulary}, {parts}, {rows_arguments(node, 'out')}>")

    def block_graph(self, node: Node) -> tuple[Stage, ...]:
        return (
            Stage("load", "value, index, words", "and of score, token the bins that may survive"),
            Stage("compute", "the octaves where top-k and top-p end, then the scores"),
            Stage("compute", "largest score + noise of those that survive"),
            Stage("store", "out, cut; seen[:, out]"),
        )

    def thread_graph(self, node: Node) -> str:
        return "all threads add up bins and search digit by digit; every warp reads off the digit"
