"""The operators, one file each; REGISTRY finds them by name."""

from mpklab.ops import (  # noqa: F401  (importing registers)
    add,
    advance,
    argmax,
    attention,
    attention_merge,
    embedding,
    linear,
    rms_norm,
    sample,
    silu_mul,
)
from mpklab.ops.base import REGISTRY, Box, Node, Op, Range, TensorType, Tiles, Tiling, Variant

__all__ = ["REGISTRY", "Box", "Node", "Op", "Range", "TensorType", "Tiles", "Tiling", "Variant"]
