"""silu_mul: silu(gate) · up, the gated activation of Llama-style feed-forward layers (Shazeer 2020, SwiGLU)."""

from mpklab.dims import upper
from mpklab.ops.base import (
    C_TYPE, ITEM_BYTES, Box, Node, Op, Operand, Stage, TensorType, Tiles, Tiling, Variant,
    column_tiles, expect, expect_float, register, rows_arguments, span, whole, words,
)  # fmt: skip


@register
class SiluMul(Op):
    """gate and up may be columns of one tensor: `gate_offset` and `up_offset` say where; `width` how many. With `groups`,
    they alternate in it, in runs of width / groups columns."""

    name = "silu_mul"
    operands = (Operand("gate"), Operand("up"), Operand("out", "w"))
    attrs = {"gate_offset": 0, "up_offset": 0, "width": 0, "groups": 1}

    def _width(self, node: Node) -> int:
        return node.attrs["width"] or upper(node.types["gate"].shape[1])

    def infer(self, node: Node) -> dict[str, TensorType]:
        gate, up = node.types["gate"], node.types["up"]
        width = self._width(node)
        groups = node.attrs.get("groups", 1)
        expect(groups >= 1 and width % groups == 0, node, f"{width} columns cannot be shared by {groups} groups")
        others = width - width // groups  # columns of the other kind that lie between
        expect_float(node, "gate")
        for name, t in (("gate", gate), ("up", up)):
            expect(
                len(t.shape) == 2 and t.sizes[1] >= node.attrs[f"{name}_offset"] + width + others,
                node,
                f"{name} needs {width} columns from {node.attrs[f'{name}_offset']}",
            )
        expect(gate.shape[0] == up.shape[0] and gate.dtype == up.dtype, node, "gate and up must agree")
        return {"out": TensorType((gate.shape[0], width), gate.dtype)}

    def tile_extent(self, node: Node) -> int:
        return self._width(node)

    def tiles(self, node: Node, tiling: Tiling) -> Tiles:
        lo, hi = column_tiles(node, tiling, self._width(node))
        rows = node.types["out"].sizes[0]

        run = self._width(node) // node.attrs.get("groups", 1)

        def box(name: str, offset: int) -> Box:
            # With groups, a tile that crosses from one run into the next claims what lies between them too.
            return Box(name, (whole(rows), span(offset + lo + lo // run * run, offset + hi + (hi - 1) // run * run)))

        return Tiles(
            words(lo, hi, n=len(lo)),
            reads=(box("gate", node.attrs["gate_offset"]), box("up", node.attrs["up_offset"])),
            writes=(Box("out", (whole(rows), span(lo, hi))),),
            flops=(hi - lo) * rows * 6.0,
            bytes=(hi - lo) * rows * 3.0 * ITEM_BYTES[node.types["gate"].dtype],
        )

    def variant(self, node: Node, tiling: Tiling) -> Variant:
        gate, up = node.types["gate"], node.types["up"]
        groups = node.attrs.get("groups", 1)
        return Variant(
            "silu_mul",
            f"mpk::ops::SiluMul<{C_TYPE[gate.dtype]}, {self._width(node)}, {node.attrs['gate_offset']}, "
            f"{node.attrs['up_offset']}, {gate.sizes[1]}, {up.sizes[1]}, {rows_arguments(node, 'out')}"
            f"{f', {groups}' if groups > 1 else ''}>",
        )

    def block_graph(self, node: Node) -> tuple[Stage, ...]:
        return (
            Stage("load", "gate[:, tile], up[:, tile]"),
            Stage("compute", "silu(gate) · up"),
            Stage("store", "out[:, tile]"),
        )

    def thread_graph(self, node: Node) -> str:
        return "elementwise: lanes along the tile's columns"
