"""advance: ends a decode step. Takes the chosen token, moves each sequence on, and decides whether another step follows."""

import numpy as np

from mpklab.dims import upper
from mpklab.ops.base import (
    Box, Node, Op, Operand, Stage, TensorType, Tiles, Tiling, Variant,
    all_of, expect, expect_shape, register, rows_arguments, span, whole, words,
)  # fmt: skip


@register
class Advance(Op):
    """token, position and done are state; a sequence is done at an `eos` token or when position + 1 reaches `limit`.
    `generated` may be int64."""

    name = "advance"
    step = True
    operands = (
        Operand("next_token"),
        Operand("eos"),
        Operand("limit"),
        Operand("token", "rw"),
        Operand("position", "rw"),
        Operand("done", "rw"),
        Operand("generated", "w"),
    )
    attrs = {"context": 0}

    def infer(self, node: Node) -> dict[str, TensorType]:
        batch = node.types["next_token"].shape
        expect(len(batch) == 1, node, "next_token must have one axis")
        for name in ("next_token", "limit", "token", "position", "done"):
            expect_shape(node, name, batch, "int32")
        expect(node.attrs["context"] > 0, node, "context must be positive")
        given = node.types.get("generated")
        dtype = "int64" if given is not None and given.dtype == "int64" else "int32"
        return {"generated": TensorType((batch[0], node.attrs["context"]), dtype)}

    def tile_extent(self, node: Node) -> int:
        return 1

    def tiles(self, node: Node, tiling: Tiling) -> Tiles:
        state = ("token", "position", "done")
        batch = upper(node.types["token"].shape[0])
        reads = tuple(all_of(name, node) for name in ("next_token", "eos", "limit", *state))
        writes = (
            *(all_of(name, node) for name in state),
            Box("generated", (span(0, batch), whole(node.types["generated"].shape[1]))),
        )
        return Tiles(words(n=1), reads, writes, np.zeros(1), np.array([32.0 * batch]))

    def variant(self, node: Node, tiling: Tiling) -> Variant:
        (eos,) = node.types["eos"].sizes
        wide = ", long long" if node.types["generated"].dtype == "int64" else ""
        return Variant(
            "advance", f"mpk::ops::Advance<{eos}, {node.attrs['context']}, {rows_arguments(node, 'token')}{wide}>"
        )

    def block_graph(self, node: Node) -> tuple[Stage, ...]:
        return (
            Stage("load", "next_token, eos, limit"),
            Stage("compute", "position + 1; done?"),
            Stage("store", "token, position, done, generated[pos]; the next step"),
        )

    def thread_graph(self, node: Node) -> str:
        return "one lane a sequence"
