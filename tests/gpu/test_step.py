"""A whole decode step: logits against float32, records that change nothing, hangs that are told, memory that stays."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import mpklab as mk
from mpklab.bench.decode import start
from mpklab.bench.torch_decoder import Decoder
from mpklab.errors import DeadlockError
from mpklab.models.rope import rope_table

CONTEXT = 400


def small(name: str, batch: int, layers: int, policy: str = "locality", **settings: Any) -> Any:
    model = mk.models.random(name, device="cuda")
    graph = model.decode_graph(batch=batch, context=CONTEXT, layers=layers)
    tasks = mk.lower(graph, mk.Machine.cuda(), **settings)
    return mk.build(mk.assign(tasks, policy=policy), weights=model)


@pytest.fixture(scope="module")
def kernel() -> Any:
    return small("qwen3-0.6b", 1, 3)


def step(kernel: Any, session: Any, position: int, token: int = 7, steps: int = 1, **more: Any) -> Any:
    o, t = kernel.graph.operands_of("advance"), session.tensors
    t[o["token"]].fill_(token)
    t[o["position"]].fill_(position)
    t[o["done"]].zero_()
    return session.launch(steps, **more)


@pytest.mark.parametrize(
    ("name", "batch", "layers"),
    [("qwen3-0.6b", 1, 28), ("qwen3-0.6b", 8, 4), ("qwen3-0.6b", 2, 4), ("llama-3.2-1b", 1, 8), ("llama-3.2-1b", 16, 4),
     ("qwen3-8b", 1, 4), ("qwen3-8b", 4, 3), ("qwen3-8b", 8, 3), ("qwen3-8b", 16, 2), ("qwen3-1.7b", 1, 6), ("qwen3-1.7b", 2, 4)],
)  # fmt: skip
def test_logits_are_as_close_to_float32_as_those_of_torch(name: str, batch: int, layers: int) -> None:
    kernel = small(name, batch, layers)
    session = start(kernel, batch, CONTEXT, 16)
    model = kernel.model
    decoder = Decoder(model, batch, CONTEXT)
    decoder.layers = decoder.layers[:layers]
    exact = copy.deepcopy(decoder).float()
    rope = rope_table(model.config, CONTEXT).cuda()
    half = model.config.head_dim // 2
    exact.cos, exact.sin = torch.cat([rope[:, :half]] * 2, -1), torch.cat([rope[:, half:]] * 2, -1)
    caches = [n for n in session.tensors if n.endswith("_cache")]
    mine, theirs = [], []
    with torch.inference_mode():
        for i, position in enumerate([0, 1, 37, 63, 64, 65, 130, 255, 256, 300, 333, 384]):
            for c in caches:
                layer = int(c.split(".")[0].removeprefix("layer"))
                for d in (decoder, exact):
                    getattr(d.layers[layer], c.split(".")[1]).copy_(session.tensors[c])
            token = 100 + 911 * i
            step(kernel, session, position, token)
            logits = session.tensors["logits"].float()
            where = torch.tensor([position], device="cuda")
            tokens = torch.full((batch, 1), token, device="cuda")
            right = exact(tokens, where)[1]
            mine.append(float((logits - right).norm() / right.norm()))
            theirs.append(float((decoder(tokens, where)[1].float() - right).norm() / right.norm()))
    assert sum(mine) <= 1.2 * sum(theirs), f"{sum(mine) / len(mine):.2e}, torch {sum(theirs) / len(theirs):.2e}"


def after_steps(kernel: Any, level: int = 0, steps: int = 6) -> dict[str, torch.Tensor]:
    session = start(kernel, 1, CONTEXT, 40)
    step(kernel, session, 300, steps=steps, profile=level)
    names = [n for n, t in kernel.graph.tensors.items() if t.role in ("state", "output")]
    return {n: session.tensors[n].clone() for n in names}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        assert found[name].view(torch.uint8).equal(value.view(torch.uint8)), name


def test_recording_and_policies_change_no_bit(kernel: Any) -> None:
    expected = after_steps(kernel)
    for level in (1, 2, 3):
        assert_same(after_steps(kernel, level), expected)
    for policy in ("round_robin", "zigzag"):
        other = mk.build(mk.assign(kernel.schedule.tasks, policy=policy), weights=kernel.model)
        assert_same(after_steps(other), expected)


def test_records_are_whole(kernel: Any) -> None:
    pytest.importorskip("pandas")
    from mpklab import frames

    session = start(kernel, 1, CONTEXT, 40)
    profile = step(kernel, session, 300, steps=4, profile=3).profile
    spans = frames.spans(profile)
    assert not spans["truncated"].any()
    tasks = frames.tasks(profile)
    assert len(tasks) == 4 * len(kernel.schedule.tasks)


def test_a_lost_signal_is_told_and_the_device_goes_on(kernel: Any) -> None:
    expected = after_steps(kernel)
    session = start(kernel, 1, CONTEXT, 40)
    lost = len(kernel.schedule.tasks) // 2
    with pytest.raises(DeadlockError):
        step(kernel, session, 300, steps=6, drop_signals=lost, wait_limit_s=0.5)
    assert_same(after_steps(kernel), expected)


def test_chunks_give_the_tokens_of_one_launch(kernel: Any) -> None:
    prompt = [5, 17, 300, 4, 99]
    whole = kernel.generate(prompt, max_new_tokens=20)
    assert kernel.generate(prompt, max_new_tokens=20, chunk=7).tokens == whole.tokens
    assert len(whole.tokens) == 20


def test_launches_leave_no_memory_behind(kernel: Any) -> None:
    session = start(kernel, 1, CONTEXT, 40)
    step(kernel, session, 300)
    torch.cuda.synchronize()
    allocated, free = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    for _ in range(200):
        step(kernel, session, 300)
    assert torch.cuda.memory_allocated() == allocated
    assert torch.cuda.mem_get_info()[0] >= free - (4 << 20)
