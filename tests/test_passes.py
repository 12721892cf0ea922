"""Passes: golden text before and after, equal meaning through the reference, and what they leave alone.

MPKLAB_UPDATE_GOLDEN=1 writes tests/golden anew; look at the difference before committing it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mpklab.errors import GraphError
from mpklab.graph import Graph, GraphBuilder
from mpklab.machine import Machine
from mpklab.models.config import Config
from mpklab.models.decoder import decode_graph
from mpklab.passes import PASSES, apply
from mpklab.reference import execute
from mpklab.schedule import assign
from mpklab.tasks import choose_plan, lower
from mpklab.verifier import verify

GOLDEN = Path(__file__).parent / "golden"
CONFIG = Config(
    "golden",
    vocab=96,
    hidden=32,
    layers=1,
    heads=4,
    kv_heads=2,
    head_dim=8,
    intermediate=48,
    qk_norm=True,
    max_position=64,
    dtype="float32",
)
ORDER = (
    "merge_linears", "fuse_norm", "fuse_silu_mul", "fuse_residual", "split_attention:2", "fuse_merge", "split_argmax:3",
    "fuse_argmax", "split_sample:3",
)  # fmt: skip


def decoder(batch: int = 1, sampling: bool = False) -> Graph:
    return decode_graph(CONFIG, batch=batch, context=32, dtype="float32", sampling=sampling)


def drawn(text: str) -> bool:
    """Whether a pass is for steps that draw their token."""
    return "sample" in text


def steps() -> list[tuple[str, Graph, Graph]]:
    """Every pass in the order in which a plan applies them: its text, the graph before, the graph after."""
    found, graph = [], decoder()
    for text in ORDER:
        graph = decoder(sampling=True) if drawn(text) else graph
        after = apply(graph, [text])
        found.append((text, graph, after))
        graph = after
    return found


def golden(name: str, text: str) -> None:
    """Compare with the file, or write it."""
    file = GOLDEN / name
    if os.environ.get("MPKLAB_UPDATE_GOLDEN") == "1":
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert file.exists(), f"{file.name} is missing: run again with MPKLAB_UPDATE_GOLDEN=1"
    assert text == file.read_text()


def values(graph: Graph, seed: int = 0) -> dict[str, torch.Tensor]:
    """Inputs and weights drawn by name, so that rewritten graphs get the same ones; caches hold a few rows already."""
    made = {}
    for i, (name, t) in enumerate(sorted(graph.tensors.items())):
        if t.role not in ("input", "weight", "state"):
            continue
        g = torch.Generator().manual_seed(1000 * seed + i)
        if name == "sampling":
            made[name] = torch.tensor([[0.8, 40.0, 0.9, 0.01, 1.2]]).expand(t.type.sizes).contiguous()
        elif t.dtype == "int32":
            made[name] = torch.full(
                t.type.sizes, {"position": 5, "limit": 30, "token": 7}.get(name, 0), dtype=torch.int32
            )
        else:
            made[name] = torch.randn(t.type.sizes, generator=g) * (0.2 if t.role == "weight" else 1.0)
    return made


def outcome(graph: Graph, given: dict[str, torch.Tensor], workers: int = 2) -> dict[str, torch.Tensor]:
    """Three iterations through the reference, in tiles and any order."""
    machine = Machine.cpu(workers)
    tasks = lower(graph, machine, choose_plan(graph, machine, passes=()))
    known = {n: t for n, t in given.items() if n in graph.tensors}
    return execute(verify(assign(tasks)), known, iterations=3, seed=1)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert set(a) == set(b)
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=2e-5, atol=2e-5, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_every_pass_is_covered() -> None:
    assert {text.partition(":")[0] for text in ORDER} == set(PASSES)


@pytest.mark.parametrize("name, before, after", steps(), ids=ORDER)
def test_golden_text(name: str, before: Graph, after: Graph) -> None:
    golden(f"{name.replace(':', '_')}.txt", f"{before.text()}\n\n# after {name}\n\n{after.text()}\n")
    assert after.text() != before.text() and after.parent is before


@pytest.mark.parametrize("name, before, after", steps(), ids=ORDER)
def test_both_graphs_mean_the_same(name: str, before: Graph, after: Graph) -> None:
    given = values(decoder(sampling=drawn(name)))
    same(outcome(before, given), outcome(after, given))


@pytest.mark.parametrize("batch", [1, 3])
def test_what_a_plan_applies_means_the_same(batch: int) -> None:
    graph = decoder(batch)
    machine = Machine.cpu(3)
    plan = choose_plan(graph, machine)
    rewritten = apply(graph, plan.passes)
    assert len(rewritten.operators) < len(graph.operators)
    given = values(graph)
    same(outcome(graph, given), outcome(rewritten, given))


def test_arguments_and_names() -> None:
    for text, says in (
        ("fuse_nrm", "unknown pass 'fuse_nrm': did you mean 'fuse_norm'"),
        ("split_attention:x", "arguments must be whole numbers"),
        ("split_attention:0", "splits must be at least 1, not 0"),
    ):
        with pytest.raises(GraphError, match=says):
            apply(decoder(), [text])
    graph = decoder()
    assert apply(graph, []) is graph and apply(graph, ["split_attention:1"]) is graph


# --- what must stay as it is -----------------------------------------------------------------------------------------


def small(build: Callable[[GraphBuilder], object]) -> Graph:
    g = GraphBuilder("small")
    build(g)
    return g.build()


def unchanged(name: str, graph: Graph) -> None:
    assert apply(graph, [name]).text() == graph.text()


def test_a_norm_that_somebody_else_reads_stays() -> None:
    def build(g: GraphBuilder) -> None:
        x = g.input("x", (1, 8))
        y = g.rms_norm("norm", x=x, weight=g.weight("nw", (8,)))
        z = g.linear("up", x=y, weight=g.weight("w", (8, 8)))
        g.add("out", a=y, b=z, role="output")

    unchanged("fuse_norm", small(build))


def test_an_output_is_not_fused_away() -> None:
    def build(g: GraphBuilder) -> None:
        x = g.input("x", (1, 8))
        y = g.linear("up", x=x, weight=g.weight("w", (8, 8)), role="output")
        g.add("out", a=x, b=y, role="output")

    unchanged("fuse_residual", small(build))


def test_a_sum_with_itself_has_no_residual() -> None:
    def build(g: GraphBuilder) -> None:
        y = g.linear("up", x=g.input("x", (1, 8)), weight=g.weight("w", (8, 8)))
        g.add("out", a=y, b=y, role="output")

    unchanged("fuse_residual", small(build))


def test_a_residual_written_later_is_not_read_earlier() -> None:
    def build(g: GraphBuilder) -> None:
        x, s = g.input("x", (1, 8)), g.state("s", (1, 8))
        y = g.linear("up", x=x, weight=g.weight("w", (8, 8)))
        g.add("first", a=x, b=x, out=s)
        g.add("second", a=x, b=s, out=s)
        g.add("out", a=s, b=y, role="output")

    graph = small(build)
    unchanged("fuse_residual", graph)


def test_a_norm_is_not_read_after_its_input_changed() -> None:
    def build(g: GraphBuilder) -> None:
        s = g.state("s", (1, 8))
        y = g.rms_norm("norm", x=s, weight=g.weight("nw", (8,)))
        g.add("grow", a=s, b=s, out=s)
        g.linear("up", x=y, weight=g.weight("w", (8, 8)), role="output")

    unchanged("fuse_norm", small(build))


def test_an_output_that_is_still_read_is_not_written_earlier() -> None:
    def build(g: GraphBuilder) -> None:
        x, s = g.input("x", (1, 8)), g.state("s", (1, 8))
        y = g.linear("up", x=x, weight=g.weight("w", (8, 8)))
        g.add("reader", a=s, b=x, role="output")
        g.add("out", a=x, b=y, out=s)

    unchanged("fuse_residual", small(build))


def gated(g: GraphBuilder, prefix: str, x: object, **kinds: str) -> object:
    gate = g.linear(f"{prefix}gate", x=x, weight=g.weight(f"{prefix}wg", (8, 8)))
    up = g.linear(f"{prefix}up", x=x, weight=g.weight(f"{prefix}wu", (8, 8)))
    return g.silu_mul(f"{prefix}mul", gate=gate, up=up, **kinds)


def test_merged_linears_get_names_of_their_own() -> None:
    """Two layers without a dotted prefix: the second merge must not take the name of the first."""

    def build(g: GraphBuilder) -> None:
        gated(g, "b", gated(g, "a", g.input("x", (1, 8))), role="output")

    graph = small(build)
    after = apply(graph, ["merge_linears"])
    assert [o.name for o in after.operators] == ["gate_up_proj", "amul", "gate_up_proj_1", "bmul"]
    given = values(graph)
    same(outcome(graph, given), outcome(after, given))


def test_linears_that_differ_are_not_merged() -> None:
    def build(g: GraphBuilder) -> None:
        x = g.input("x", (1, 8))
        gate = g.linear("gate", x=x, weight=g.weight("wg", (8, 8)), norm_weight=g.weight("n", (8,)))
        up = g.linear("up", x=x, weight=g.weight("wu", (8, 8)))
        g.silu_mul("mul", gate=gate, up=up, role="output")

    unchanged("merge_linears", small(build))
