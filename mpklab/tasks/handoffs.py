"""How an operator's outputs reach those who wait for them: by a counter, or by words that say themselves when they are there."""

from __future__ import annotations

from collections.abc import Mapping

from mpklab.errors import LowerError, suggest
from mpklab.graph import Graph, Operator
from mpklab.machine import Machine
from mpklab.ops import REGISTRY, Tiling
from mpklab.tasks.settings import DEFAULTS

KINDS = ("counter", "data")
CONSUMER_WARPS = DEFAULTS["consumer_warps"]  # of a CUDA kernel whose plan leaves them open


def why_not(graph: Graph, operator: Operator, tiling: Tiling, consumer_warps: int) -> str:
    """What keeps an operator's outputs from being handed over by their own words, or nothing."""
    rules = REGISTRY.ops[operator.op]
    if not any(REGISTRY.ops[o.op].step for o in graph.operators):
        return "no operator ends the iteration, so nothing says when words may be used again"
    if not rules.hands_over(graph.node(operator), tiling, consumer_warps):
        return "its CUDA code does not store whole words: that takes one row of bfloat16 and an even tile"
    for name in rules.outputs():
        tensor = operator.operands.get(name)
        if tensor is None:
            continue
        if graph.tensors[tensor].role != "activation":
            return f"{tensor} is an {graph.tensors[tensor].role}, which must stay where it is"
        for reader in graph.operators:
            for operand, read in reader.operands.items():
                if read != tensor or reader is operator:
                    continue
                if operand not in REGISTRY.ops[reader.op].awaits(graph.node(reader), consumer_warps):
                    return f"{reader.name} reads {tensor} and can only wait for a counter"
    return ""


def _waits_for_handoffs(graph: Graph, machine: Machine) -> bool:
    """Whether half of the linears stream their weights in less time than two hand-offs take.

    Measured on one H200 (profiles/LOG.md): words gain 2 % at Qwen3-0.6B, whose median linear takes 1.8 µs; from 4.6 µs on
    (Qwen3-1.7B, Llama-3.2-1B, Qwen3-8B) polling them costs what they save.
    """
    weights = sorted(graph.tensors[o.operands["weight"]].bytes for o in graph.operators if o.op == "linear")
    return bool(weights) and weights[len(weights) // 2] / machine.bandwidth < 2 * machine.handoff_s


def choose_handoffs(
    graph: Graph,
    machine: Machine,
    tilings: Mapping[str, Tiling],
    settings: Mapping[str, int],
    wanted: str | Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Operators of a rewritten graph whose outputs are not handed over by a counter.

    `wanted`: a kind, or kinds by operator (which must be able to) or kind of operator. Without it, on a GPU, `data` where
    hand-offs are what a step waits for, and all activations that linears write can be handed over so: a word orders
    nothing but itself, and where some stay with counters few schedules order the rest. On a CPU every hand-off is by a
    counter.
    """
    given = wanted if isinstance(wanted, Mapping) else {}
    for kind in given.values() if not isinstance(wanted, str) else (wanted,):
        if kind not in KINDS:
            raise LowerError(f"handoff: unknown kind {kind!r}: {suggest(kind, KINDS)}")
    known = {o.name for o in graph.operators} | {o.op for o in graph.operators}
    for name in given:
        if name not in known:
            raise LowerError(f"handoff: no operator or kind {name!r}: {suggest(name, known)}")
    if machine.backend == "cpu" or wanted == "counter":
        return {}
    warps = settings.get("consumer_warps", CONSUMER_WARPS)
    if wanted is None and not _waits_for_handoffs(graph, machine):
        return {}
    chosen: dict[str, str] = {}
    for o in graph.operators:
        asked = given.get(o.name, given.get(o.op))
        reason = why_not(graph, o, tilings[o.name], warps) if asked != "counter" else "unwanted"
        if given.get(o.name) == "data" and reason:
            raise LowerError(f"handoff: {o.name} cannot hand over by data: {reason}")
        if not reason and (asked == "data" or not given):
            chosen[o.name] = "data"
        if wanted is None and o.op == "linear" and reason and graph.tensors[o.operands["out"]].role == "activation":
            return {}
    return chosen
