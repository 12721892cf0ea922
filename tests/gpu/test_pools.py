"""Tasks handed out on the GPU: the same bits as static queues, an idle machine that tells of a hang, records."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mpklab as mk
from mpklab.errors import DeadlockError

CONTEXT, PROMPT = 256, [5, 9, 200, 17]
CHOICES = [
    {"mode": "dynamic"},
    {"mode": "dynamic", "pop_ahead": 0},
    {"mode": "dynamic", "early_push": True},
    {"mode": "dynamic", "policy": "per_worker"},
    {"mode": "dynamic", "policy": "per_worker", "early_push": True, "pop_ahead": 3},
    {"mode": "dynamic", "priority": "critical_path"},
    {"mode": "hybrid", "dynamic": ("attention",)},
    {"mode": "hybrid", "dynamic": ("attention", "advance"), "early_push": True},
    {"mode": "hybrid", "dynamic": ("linear",), "pool": "per_worker"},
]


@pytest.fixture(scope="module")
def tasks() -> Any:
    model = mk.models.random("qwen3-0.6b", device="cuda")
    return model, mk.lower(model.decode_graph(context=CONTEXT, layers=4), mk.Machine.cuda())


@pytest.fixture(scope="module")
def expected(tasks: Any) -> list[int]:
    tokens = mk.build(mk.assign(tasks[1]), weights=tasks[0]).generate(PROMPT, max_new_tokens=60).tokens
    assert len(set(tokens)) > 1
    return tokens


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_the_same_tokens_as_static(tasks: Any, expected: list[int], choice: dict) -> None:
    kernel = mk.build(mk.assign(tasks[1], **choice), weights=tasks[0])
    for level in (0, 2):
        assert kernel.generate(PROMPT, max_new_tokens=60, profile=level).tokens == expected
    spans = kernel.last_profile.spans()
    assert (spans["phase"] == "execute").sum() == 60 * len(tasks[1])
    assert "pop" in set(spans["phase"])


def test_iterations_without_a_step_follow_one_another(tasks: Any) -> None:
    """Nothing publishes a step: whoever ends the last task opens the next iteration."""
    builder = mk.GraphBuilder("loop")
    x = builder.state("x", (1, 512))
    y = builder.linear("y", x=x, weight=builder.weight("w", (512, 512)))
    builder.add("z", a=x, b=y, role="output")
    graph = builder.build()
    lowered = mk.lower(graph, mk.Machine.cuda())
    given = {"w": torch.randn(512, 512, device="cuda") / 30, "x": torch.randn(1, 512, device="cuda")}
    found = [
        mk.build(mk.assign(lowered, **choice)).run(given, iterations=50)["z"].cpu() for choice in ({}, *CHOICES[:4])
    ]
    assert all(torch.equal(found[0], f) for f in found[1:])


@pytest.mark.parametrize("choice", CHOICES[:4], ids=str)
def test_an_idle_machine_tells_of_a_hang(tasks: Any, choice: dict) -> None:
    kernel = mk.build(mk.assign(tasks[1], **choice), weights=tasks[0])
    session = kernel.new_session()
    kernel._set_up(session)
    kernel._place(session, 0, PROMPT, 8)
    with pytest.raises(DeadlockError, match=r"layer1\.o_proj"):
        session.launch(4, drop_signals=int(tasks[1].tasks_of("layer1.o_proj")[3]), wait_limit_s=0.3)
    assert kernel.generate(PROMPT, max_new_tokens=4).tokens
