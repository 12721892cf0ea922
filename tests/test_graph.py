"""Graphs: what the builder makes, what is refused and in which words, JSON and text, sizes."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest

from mpklab.dims import Dim, dims_of, evaluate, shape_text, upper
from mpklab.errors import GraphError
from mpklab.graph import Graph, GraphBuilder, Tensor
from mpklab.models.catalog import named
from mpklab.models.decoder import decode_graph

TINY = named("tiny")


def toy() -> GraphBuilder:
    g = GraphBuilder("toy", note="for tests")
    x = g.input("x", (1, 64))
    y = g.rms_norm("norm", x=x, weight=g.weight("nw", (64,)))
    g.linear("up", x=y, weight=g.weight("w", (128, 64)), role="output")
    return g


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_dims_are_symbols_with_a_maximum() -> None:
    batch, tokens = Dim("batch", max=8), Dim("tokens", max=64)
    assert upper(batch) == 8 and upper(3 * batch) == 24 and upper(5) == 5
    assert evaluate(3 * batch, {"batch": 2, "tokens": 1}) == 6
    assert dims_of((batch, 4, tokens * 2)) == (batch, tokens)
    assert shape_text((batch, 576)) == "batch×576" and shape_text(()) == "scalar"
    assert Dim("batch", max=8) == batch and Dim("batch", max=4) != batch
    for same in (copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert same == batch and same.max == 8
    for wrong in (0, -1, 2.5, "8"):
        with pytest.raises(GraphError, match="maximum must be a positive integer"):
            Dim("batch", max=wrong)


def test_one_dim_has_one_maximum() -> None:
    g = GraphBuilder("two")
    g.input("x", (Dim("batch", max=4), 8))
    g.input("y", (Dim("batch", max=8), 8))
    with pytest.raises(GraphError, match="the dim 'batch' has two maxima, 4 and 8"):
        g.build()


# --- what is made ----------------------------------------------------------------------------------------------------


def test_the_builder_infers_shapes_and_names() -> None:
    graph = toy().build()
    assert [str(t) for t in graph.tensors.values() if t.role in ("activation", "output")] == [
        "norm: float32[1×64]",
        "up: float32[1×128]",
    ]
    assert graph.operator("up").operands == {"x": "norm", "weight": "w", "out": "up"}
    assert [o.name for o in graph.writers("norm")] == ["norm"] and [o.name for o in graph.readers("norm")] == ["up"]
    assert graph.weight_bytes() == 4 * (64 + 128 * 64)
    flops, moved = graph.cost
    assert flops == 2 * 64 * 128 + 4 * 64 and moved > graph.weight_bytes()
    assert "2 operators" in str(graph)


def test_text_lists_what_matters() -> None:
    assert toy().build().text() == (
        "graph toy\n"
        "  input x: float32[1×64]\n"
        "  norm: float32[1×64] = rms_norm(x=x, weight=nw)  # norm\n"
        "  up: float32[1×128] = linear(x=norm, weight=w)  # up"
    )


@pytest.mark.parametrize("batch", [1, 3, Dim("batch", max=4)], ids=str)
def test_json_round_trip(batch: int | Dim) -> None:
    graph = decode_graph(TINY, batch=batch, context=64)
    again = Graph.from_json(json.loads(json.dumps(graph.to_json())))
    assert again.text() == graph.text() and again.hash == graph.hash and again.dims == graph.dims
    assert again.to_json() == graph.to_json()
    assert graph.operator("layer0.q_proj").layer == 0 == again.operator("layer0.q_proj").layer


def test_hash_follows_contents() -> None:
    a, b = decode_graph(TINY, context=64), decode_graph(TINY, context=65)
    assert a.hash == decode_graph(TINY, context=64).hash != b.hash


def test_a_graph_is_a_value() -> None:
    graph = toy().build()
    with pytest.raises(TypeError):
        graph.tensors["z"] = graph.tensors["x"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        graph.name = "other"  # type: ignore[misc]


def test_levels_two_and_three_can_be_printed() -> None:
    graph = decode_graph(TINY, context=64)
    for o in graph.operators:
        lines = graph.block_graph(o.name).splitlines()
        assert {line.split()[0] for line in lines} <= {"load", "compute", "store"} and lines[-1].startswith("store")
        assert graph.thread_graph(o.name)


# --- what is refused -------------------------------------------------------------------------------------------------


def caught(call: Callable[[], object]) -> str:
    with pytest.raises(GraphError) as error:
        call()
    return str(error.value)


def linear(**changes: object) -> Callable[[], object]:
    """A linear with something wrong about it."""

    def call() -> object:
        g = GraphBuilder("wrong")
        shapes = {"x": (1, 64), "weight": (128, 64), "bias": (128,), "residual": (1, 128), "norm_weight": (64,)}
        dtypes = dict.fromkeys(shapes, "float32")
        keywords: dict[str, object] = {}
        for k, v in changes.items():
            name = k.removesuffix("_dtype")
            if name != k and name in dtypes:
                dtypes[name] = str(v)
            elif k in shapes:
                shapes[k] = v  # type: ignore[assignment]
            else:
                keywords[k] = v
        used = {"x", "weight"} | (set(changes) & set(shapes))
        tensors = {k: g.weight(k, shapes[k], dtypes[k]) for k in used}
        return g.linear("layer3.o_proj", **tensors, **keywords)

    return call


@pytest.mark.parametrize(
    "call, says",
    [
        (linear(x=(1, 65)), ["65 columns", "128×64", "float32[1×65]", "float32[128×64]"]),
        (linear(x=(1, 2, 64)), ["x must have 2 axes", "float32[1×2×64]"]),
        (linear(x_dtype="bfloat16"), ["one dtype", "bfloat16[1×64]", "float32[128×64]"]),
        (linear(weight_dtype="int32"), ["weight must be float32 or bfloat16, not int32"]),
        (linear(bias=(127,)), ["bias must be float32[128], not float32[127]"]),
        (linear(norm_weight=(63,)), ["norm_weight must be float32[64], not float32[63]"]),
        (linear(residual=(1, 127), epilogue="residual"), ["residual must be float32[1×128], not float32[1×127]"]),
        (linear(residual=(1, 128)), ["the residual epilogue and operand go together"]),
        (linear(epilogue="gelu"), ["epilogue must be one of", "'gelu'"]),
        (linear(weight=(127, 64), epilogue="silu_mul"), ["even number of weight rows", "float32[127×64]"]),
        (linear(epilog="none"), ["unknown keyword 'epilog'", "did you mean 'epilogue'"]),
    ],
)
def test_a_wrong_linear_names_the_operator_and_both_shapes(call: Callable[[], object], says: list[str]) -> None:
    message = caught(call)
    assert "layer3.o_proj (linear)" in message
    for words in says:
        assert words in message


def attention(**changes: object) -> Callable[[], object]:
    def call() -> object:
        g = GraphBuilder("wrong")
        shapes: dict[str, tuple[int, ...]] = {
            "q": (1, 64), "k": (1, 32), "v": (1, 32), "rope": (128, 16), "k_cache": (1, 2, 128, 16),
            "v_cache": (1, 2, 128, 16), "position": (1,),
        }  # fmt: skip
        keywords = {"heads": 4, **{k: v for k, v in changes.items() if k not in shapes}}
        shapes.update({k: v for k, v in changes.items() if k in shapes})  # type: ignore[misc]
        tensors = {k: g.state(k, s, "int32" if k == "position" else "float32") for k, s in shapes.items()}
        return g.attention("layer1.attention", **tensors, **keywords)

    return call


@pytest.mark.parametrize(
    "call, says",
    [
        (attention(heads=3), ["heads (3) must be a multiple of the cache's kv heads (2)"]),
        (attention(q=(1, 63)), ["q needs 4 heads of 16 columns from 0", "float32[1×63]"]),
        (attention(k_offset=1), ["k needs 2 heads of 16 columns from 1", "float32[1×32]"]),
        (attention(v_cache=(1, 2, 127, 16)), ["v_cache must be float32[1×2×128×16], not float32[1×2×127×16]"]),
        (attention(rope=(128, 8)), ["rope must be float32[128×16], not float32[128×8]"]),
        (attention(position=(2,)), ["position must be int32[1], not int32[2]"]),
        (attention(k_cache=(1, 2, 128)), ["k_cache must be [batch, kv_heads, context, head_dim]"]),
        (attention(splits=0), ["splits must be at least 1, not 0"]),
    ],
)
def test_a_wrong_attention_says_what_it_needs(call: Callable[[], object], says: list[str]) -> None:
    message = caught(call)
    assert "layer1.attention (attention)" in message
    for words in says:
        assert words in message


def wrong(build: Callable[[GraphBuilder], object]) -> Callable[[], object]:
    def call() -> object:
        g = GraphBuilder("wrong")
        build(g)
        return g.build()

    return call


def test_the_other_operators_check_too() -> None:
    def message(build: Callable[[GraphBuilder], object]) -> str:
        return caught(wrong(build))

    said = message(lambda g: g.add("layer2.add", a=g.input("a", (1, 8)), b=g.input("b", (1, 9))))
    assert "layer2.add (add): b must be float32[1×8], not float32[1×9]" in said
    said = message(lambda g: g.rms_norm("n", x=g.input("a", (1, 8)), weight=g.weight("b", (9,))))
    assert "n (rms_norm): weight must be float32[8], not float32[9]" in said
    said = message(lambda g: g.silu_mul("m", gate=g.input("a", (1, 8)), up=g.input("b", (1, 4))))
    assert "m (silu_mul): up needs 8 columns from 0" in said and "float32[1×4]" in said
    said = message(lambda g: g.embedding("e", token=g.input("t", (1,)), weight=g.weight("b", (9, 4))))
    assert "e (embedding): token must be int32" in said and "float32[1]" in said
    said = message(
        lambda g: g.argmax_reduce("r", value=g.input("a", (1, 8)), index=g.input("b", (1, 7), "int32"))
    )  # fmt: skip
    assert "r (argmax_reduce): index must be int32[1×8], not int32[1×7]" in said


def test_names_and_roles() -> None:
    g = toy()
    assert "known: " in caught(lambda: g.linear("a", y=1)) or "unknown keyword 'y'" in caught(
        lambda: g.linear("a", y=1)
    )
    assert "x must be a tensor of this graph, not int" in caught(lambda: g.linear("a", x=1))
    assert "operand 'weight' is missing" in caught(lambda: g.linear("a", x=g.input("x", (1, 64))))
    with pytest.raises(AttributeError, match=r"no operator 'linaer'.*did you mean 'linear'"):
        g.linaer("a")
    assert "tensor 'x' exists as" in caught(lambda: g.input("x", (1, 65)))
    graph = toy().build()
    assert "did you mean 'norm'" in caught(lambda: graph.operator("nrm"))
    up, norm = graph.operator("up"), graph.operator("norm")

    def with_operators(*operators: object) -> str:
        return caught(lambda: replace(graph, operators=operators))  # type: ignore[arg-type]

    def with_tensor(**changes: object) -> str:
        tensors = {**graph.tensors, "x": replace(graph.tensors["x"], **changes)}  # type: ignore[arg-type]
        return caught(lambda: replace(graph, tensors=tensors))

    assert "x reads 'norm' before any operator writes it" in with_operators(up)
    assert "two operators are called 'norm'" in with_operators(norm, norm)
    assert "unknown operator 'linaer'" in with_operators(replace(norm, op="linaer"))
    assert "no operand 'wieght'" in with_operators(replace(norm, operands={**norm.operands, "wieght": "nw"}))
    assert "which the graph does not have" in with_operators(replace(norm, operands={**norm.operands, "x": "gone"}))
    assert "no attribute 'epsilon'" in with_operators(replace(norm, attrs={"epsilon": 1}))
    assert "would write 'x', whose role is input" in with_operators(
        replace(norm, operands={**norm.operands, "out": "x"})
    )
    assert "role must be one of" in with_tensor(role="inputs")
    assert "found dtype 'float23'" in with_tensor(dtype="float23")
    assert "every size must be at least 1" in with_tensor(shape=(0, 64))
    assert "its part 'gone' is not a tensor" in with_tensor(parts=("gone",))
    said = caught(lambda: replace(graph, tensors={**graph.tensors, "up": Tensor("up", (1, 127), "float32", "output")}))
    assert "up (linear): out must be float32[1×128], but tensor 'up' is float32[1×127]" in said


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda d: d.update(format=99), "format 99; this version reads"),
        (lambda d: d.pop("tensors"), "not a graph description"),
        (lambda d: d["tensors"][0].update(shape=["__import__('os')"]), "neither an integer nor a known dim"),
        (lambda d: d["tensors"][0].update(shape=["2*batch"]), "neither an integer nor a known dim"),
        (lambda d: d["operators"][0].pop("op"), "not a graph description"),
    ],
)
def test_foreign_json_is_refused(change: Callable[[dict], object], says: str) -> None:
    data = toy().build().to_json()
    change(data)
    assert says in caught(lambda: Graph.from_json(data))


def test_a_decoder_checks_what_it_is_asked_for() -> None:
    assert "context must be from 1 to" in caught(lambda: decode_graph(TINY, context=0))
    assert "layers must be from 1 to 2" in caught(lambda: decode_graph(TINY, layers=3))
    assert "dtype must be float32 or bfloat16" in caught(lambda: decode_graph(TINY, dtype="float16"))
