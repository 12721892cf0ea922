"""`Plan`: every choice that lowering makes, and how it makes them when none is given."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from mpklab import passes as graph_passes
from mpklab.errors import LowerError, suggest
from mpklab.graph import Graph, Operator
from mpklab.machine import Machine
from mpklab.ops import REGISTRY, Tiling
from mpklab.tasks.handoffs import choose_handoffs
from mpklab.tasks.settings import checked_settings


@dataclass(frozen=True, repr=False)
class Plan:
    """Every choice that lowering made: passes, a tiling per operator, and settings of the kernel. Replayable.

    LowerError for a setting that no kernel knows (`tasks.settings.DEFAULTS`). `barriers`: every operator waits for all of
    the one before it, as if each were a kernel of its own.
    """

    passes: tuple[str, ...]
    tilings: Mapping[str, Tiling]
    settings: Mapping[str, int] = field(default_factory=dict)
    barriers: bool = False
    handoffs: Mapping[str, str] = field(default_factory=dict)  # by operator, where not by a counter

    def __post_init__(self) -> None:
        checked_settings(self.settings)

    def to_json(self) -> dict[str, Any]:
        """The plan as `from_json` takes it."""
        return {
            "passes": list(self.passes),
            "tilings": {k: asdict(v) for k, v in self.tilings.items()},
            "settings": dict(self.settings),
            **({"barriers": True} if self.barriers else {}),
            **({"handoffs": dict(self.handoffs)} if self.handoffs else {}),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        """A plan that `to_json` wrote; LowerError for anything else."""
        try:
            tilings = {k: Tiling(**v) for k, v in data["tilings"].items()}
            return Plan(
                tuple(data["passes"]),
                tilings,
                dict(data["settings"]),
                bool(data.get("barriers", False)),
                dict(data.get("handoffs", {})),
            )
        except (KeyError, TypeError) as error:
            raise LowerError(f"not a plan: {error!r}") from error

    def __repr__(self) -> str:
        chosen = [f"{len(self.tilings)} tilings", *(f"{k}={v}" for k, v in self.settings.items())]
        words = sum(kind == "data" for kind in self.handoffs.values())
        chosen += [f"{words} operators hand over by words"] * bool(words) + ["barriers"] * self.barriers
        return f"Plan {self.hash}: {', '.join(self.passes) or 'no passes'}; {', '.join(chosen)}"

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits of all choices."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]


def choose_plan(
    graph: Graph,
    machine: Machine,
    tiles: Mapping[str, int] | None = None,
    passes: tuple[str, ...] | None = None,
    handoff: str | Mapping[str, str] | None = None,
    **settings: int,
) -> Plan:
    """The plan that `lower` follows when none is given. `tiles` sets tile sizes by operator name or kind, `handoff` how
    outputs are handed over (see `choose_handoffs`), `settings` those of the kernel."""
    checked_settings(settings)  # also slips in other keywords, before the work
    tiles = dict(tiles or {})
    kinds = {o.op for o in graph.operators}
    fused = passes if passes is not None else _default_passes(graph, machine)
    last = next((kind for kind in ("argmax_partial", "sample_partial") if kind in kinds), "")
    if passes is None and last:
        rewritten = graph_passes.apply(graph, fused)
        source = next(o for o in rewritten.operators if o.op == last)
        writers = rewritten.writers(source.operands["x"])
        tiled = writers[0] if writers and writers[0].op == "linear" else source
        parts = len(_tiling(rewritten, tiled, machine, tiles).bounds(_extent(rewritten, tiled))) - 1
        ends = (f"split_argmax:{parts}", "fuse_argmax") if last == "argmax_partial" else (f"split_sample:{parts}",)
        fused = (*fused, *ends)
    rewritten = graph_passes.apply(graph, fused)
    known = {o.name for o in rewritten.operators} | {o.op for o in rewritten.operators}
    for name, size in tiles.items():
        if name not in known:
            raise LowerError(f"tiles: no operator or kind {name!r}: {suggest(name, known)}")
        if not isinstance(size, int) or size < 1:
            raise LowerError(f"tiles: {name!r} needs a positive tile size, not {size!r}")
        for o in rewritten.operators:
            if name in (o.name, o.op) and o.op in _CUT_BY_ITSELF:
                raise LowerError(f"tiles: {o.name} ({o.op}) is cut {_CUT_BY_ITSELF[o.op]}, not by a tile size")
    tilings = {o.name: _tiling(rewritten, o, machine, tiles) for o in rewritten.operators}
    chosen = {**(_kernel_settings(rewritten) if machine.backend == "cuda" else {}), **settings}
    return Plan(fused, tilings, chosen, handoffs=choose_handoffs(rewritten, machine, tilings, chosen, handoff))


def _kernel_settings(graph: Graph) -> dict[str, int]:
    """The shape of a CUDA block, as measured on one H200 (profiles/LOG.md).

    Sixteen consumer warps leave a thread 96 registers. That is enough for one row of activations, except beside
    attention over heads of 64 or a merge on its own, which spill; there, and for several rows, eight are faster. One
    page's worth of weights is sent ahead to the L2, for one row only: for several, a page takes pieces of many rows, and
    the first bytes of a tile are not the first that are wanted.
    """
    attention = next((o for o in graph.operators if o.op == "attention"), None)
    warps, ahead = 8, 32768
    if attention is not None:
        batch, _, _, head_dim = graph.tensors[attention.operands["k_cache"]].type.sizes
        merges = any(o.op == "attention_merge" for o in graph.operators)
        warps = 16 if batch == 1 and head_dim > 64 and not merges else 8
        ahead = 32768 if batch == 1 else 0
    return {"consumer_warps": warps, "in_flight": 2, "l2_bytes": ahead}


_CUT_BY_ITSELF = {
    "attention": "by head and by the pass split_attention",
    "argmax_reduce": "into one tile",
    "sample_reduce": "into one tile",
    "advance": "into one tile",
}


def _default_passes(graph: Graph, machine: Machine) -> tuple[str, ...]:
    names = ["merge_linears", "fuse_norm", "fuse_silu_mul", "fuse_residual"]
    attention = next((o for o in graph.operators if o.op == "attention" and o.attrs["splits"] == 1), None)
    if attention is not None:
        batch, kv, context, _ = graph.tensors[attention.operands["k_cache"]].type.sizes
        if machine.backend == "cpu" and not isinstance(graph.tensors[attention.operands["k_cache"]].shape[0], int):
            batch = 1  # of a Dim's batches the smallest is the hardest to share out evenly
        splits = _context_splits(batch * kv, context, machine)
        if splits > 1:
            names += [f"split_attention:{splits}{'' if machine.backend == 'cpu' else ':16'}"]
            # Fused, every worker of the next linear reads all pieces of all rows: more than eight cost a GPU more than
            # the hand-off does, and so do those of several rows.
            if machine.backend == "cpu" or (batch == 1 and splits <= 8):
                names += ["fuse_merge"]
    return tuple(names)


def _context_splits(tiles: int, context: int, machine: Machine) -> int:
    """Pieces of the context per head: enough to occupy the workers, few enough that merging stays cheap.

    Somebody reads all pieces again. On a GPU a piece of less than 64 rows saves nothing, because a
    page of the ring holds that many (measured: 8 pieces of 64 rows beat 4, 9 and 16 at a context of 512).
    """
    if machine.backend == "cpu":
        return next((s for s in (1, 2) if tiles * s % machine.workers == 0), 2 if tiles < machine.workers else 1)
    most = min(16, machine.workers // tiles, context // 64)
    return 1 << (most.bit_length() - 1) if most > 1 else 1


def _extent(graph: Graph, operator: Operator) -> int:
    return REGISTRY.ops[operator.op].tile_extent(graph.node(operator))


def _tiling(graph: Graph, operator: Operator, machine: Machine, tiles: Mapping[str, int]) -> Tiling:
    size = tiles.get(operator.name, tiles.get(operator.op))
    if size:
        return Tiling(size=size)
    if operator.op in ("rms_norm", "argmax_reduce", "sample_reduce", "advance"):
        return Tiling(parts=1)
    if operator.op == "argmax_partial":
        return Tiling(parts=operator.attrs["parts"])
    if operator.op == "sample_partial":
        # Cut where the logits are cut, a part's scores are where its logits were made.
        source = next((o for o in graph.writers(operator.operands["x"]) if o.op == "linear"), None)
        alike = _tiling(graph, source, machine, tiles) if source else Tiling()
        parts = operator.attrs["parts"]
        return alike if source and len(alike.bounds(_extent(graph, source))) == parts + 1 else Tiling(parts=parts)
    if operator.op == "attention_merge":
        batch = graph.tensors[operator.operands["partial"]].type.sizes[0]  # a tile is of one of its rows
        return Tiling(parts=max(1, min(machine.workers // batch, _extent(graph, operator))))
    if operator.attrs.get("argmax_parts"):
        return Tiling(parts=operator.attrs["argmax_parts"])
    return Tiling(parts=machine.workers, granule=4 if machine.backend == "cpu" else 2)
