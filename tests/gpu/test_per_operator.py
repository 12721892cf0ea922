"""One kernel per operator in a CUDA graph: the same bits as the persistent kernel of the same plan."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_step import CONTEXT, assert_same, start, step

import mpklab as mk
from mpklab.errors import RunError

PROMPT = [5, 17, 300, 4, 99]
OVERLAPPING = {"consumer_warps": 8, "pages": 3}  # two blocks an SM


def both(name: str, batch: Any, layers: int, policy: str = "locality", **settings: Any) -> tuple[Any, Any]:
    model = mk.models.random(name, device="cuda")
    graph = model.decode_graph(batch=batch, context=CONTEXT, layers=layers)
    schedule = mk.assign(mk.lower(graph, mk.Machine.cuda(), **settings), policy=policy)
    return mk.build(schedule, weights=model), mk.build(schedule, weights=model, launch="per_operator")


def after(kernel: Any, batch: int, steps: int = 12, **more: Any) -> dict[str, torch.Tensor]:
    session = start(kernel, batch, CONTEXT, 40)
    for name in ("logits",):
        session.tensors[name].fill_(float("nan"))
    step(kernel, session, 300, steps=steps, **more)
    return {n: session.tensors[n].clone() for n, t in kernel.graph.tensors.items() if t.role in ("state", "output")}


@pytest.mark.parametrize(
    ("name", "batch", "layers", "policy", "settings"),
    [
        ("qwen3-0.6b", 1, 28, "locality", {}),
        ("qwen3-0.6b", 1, 6, "zigzag", OVERLAPPING),
        ("qwen3-0.6b", 8, 4, "locality", {}),
        ("llama-3.2-1b", 1, 5, "locality", OVERLAPPING),
        ("qwen3-8b", 1, 4, "locality", OVERLAPPING),
        ("qwen3-8b", 8, 3, "round_robin", OVERLAPPING),
    ],
)
def test_the_same_bits_as_the_persistent_kernel(
    name: str, batch: int, layers: int, policy: str, settings: dict[str, int]
) -> None:
    persistent, per_operator = both(name, batch, layers, policy, **settings)
    expected = after(persistent, batch)
    for _ in range(3):
        assert_same(after(per_operator, batch), expected)
    per_operator.prefetch = False
    assert_same(after(per_operator, batch), expected)


def test_many_tiles_on_a_worker_and_a_batch_that_is_not_full() -> None:
    model = mk.models.random("qwen3-0.6b", device="cuda")
    graph = model.decode_graph(batch=mk.Dim("batch", 4), context=CONTEXT, layers=3)
    schedule = mk.assign(mk.lower(graph, mk.Machine.cuda(), tiles={"linear": 16}), policy="round_robin")
    found = [
        [g.tokens for g in mk.build(schedule, weights=model, launch=how).generate_batch([PROMPT, PROMPT[::-1]], 20)]
        for how in ("persistent", "per_operator")
    ]
    assert found[0] == found[1]


def test_generation_tells_tokens_as_they_come_and_stops_where_it_should() -> None:
    persistent, per_operator = both("qwen3-0.6b", 1, 3)
    expected = persistent.generate(PROMPT, max_new_tokens=40).tokens
    told: list[int] = []
    assert per_operator.generate(PROMPT, max_new_tokens=40, on_token=lambda t, _: told.append(t)).tokens == expected
    assert told == expected
    assert per_operator.generate(PROMPT, max_new_tokens=40, chunk=7).tokens == expected
    end = expected[25]
    first = expected.index(end)
    stopped = []
    for kernel in (persistent, per_operator):
        session = kernel.session_for(PROMPT, max_new_tokens=40)
        names = kernel.graph.operands_of("advance")
        session.tensors[names["eos"]].fill_(end)
        outcome = session.launch(40)
        stopped.append((outcome.iterations, session.tensors[names["generated"]].tolist()))
    assert stopped[0] == stopped[1] and stopped[0][0] == first + 1


def test_it_records_nothing_and_leaves_no_memory_behind() -> None:
    _, kernel = both("qwen3-0.6b", 1, 3)
    with pytest.raises(RunError, match="records nothing"):
        kernel.generate(PROMPT, max_new_tokens=4, profile=1)
    session = start(kernel, 1, CONTEXT, 40)
    for _ in range(20):
        step(kernel, session, 300)
    torch.cuda.synchronize()
    allocated, free = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    for _ in range(200):
        step(kernel, session, 300)
    assert torch.cuda.memory_allocated() == allocated
    assert torch.cuda.mem_get_info()[0] >= free - (4 << 20)
