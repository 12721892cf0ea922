"""Small models and seeded values for tests that run a whole decode step."""

from __future__ import annotations

from typing import Any

import torch

from mpklab import models
from mpklab.graph import Graph
from mpklab.models.rope import rope_table
from mpklab.schedule import Schedule

CONTEXT = 48
TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Grouped queries; heads, widths and vocabulary that no power of two divides; with and without q/k norm and tied ends.
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen": {
        "qk_norm": True,
        "tied": False,
        "heads": 6,
        "kv_heads": 3,
        "hidden": 72,
        "intermediate": 100,
        "vocab": 131,
    },
}


def model(shape: str = "llama", dtype: str = "float32", **changes: Any) -> models.Model:
    """A random model of two layers; its end-of-sequence token is left out, so that it never stops by chance."""
    return models.random("tiny", seed=3, dtype=dtype, **{**SHAPES[shape], "eos": (), **changes})


def state(graph: Graph, seed: int = 0, positions: tuple[int, ...] | None = None, steps: int = 99) -> dict[str, Any]:
    """Inputs and state of a decode graph: caches full of noise below each position, and room for so many steps."""
    draw = torch.Generator().manual_seed(seed)
    values: dict[str, Any] = {}
    rows = graph.tensors["token"].type.sizes[0]
    at = torch.tensor((positions or (7, 0, 19, 30))[:rows], dtype=torch.int32)
    for t in graph.tensors.values():
        if t.name.endswith("_cache"):
            values[t.name] = torch.randn(t.type.sizes, generator=draw).to(TORCH[t.dtype])
    vocab = graph.tensors["embed.weight"].type.sizes[0]
    values["token"] = torch.randint(0, vocab, (rows,), generator=draw, dtype=torch.int32)
    values["position"] = at
    values["limit"] = at + 1 + steps
    values["eos"] = torch.full(graph.tensors["eos"].type.sizes, -1, dtype=torch.int32)
    return values


def everything(made: models.Model, schedule: Schedule, values: dict[str, Any]) -> dict[str, Any]:
    """The same with weights and the table of rotations, as `reference.execute` takes them."""
    graph = schedule.tasks.graph
    assert made.weights is not None
    weights = {name: made.weights[name] for name in graph.tensors if name in made.weights}
    return {**weights, "rope": rope_table(made.config, graph.tensors["rope"].type.sizes[0]), **values}
