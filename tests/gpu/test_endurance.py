"""Long runs: ten thousand steps in one launch, a thousand launches, two kernels at once, Ctrl-C on the GPU."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import pytest
import torch

import mpklab as mk

STEPS = 10_000
PROMPT = [5, 17, 300, 4, 99]


@pytest.fixture(scope="module")
def model() -> Any:
    return mk.models.random("qwen3-0.6b", device="cuda")


def endless(model: Any, context: int, layers: int | None = None, **choices: Any) -> Any:
    """A kernel that no end-of-sequence token stops."""
    graph = model.decode_graph(context=context, layers=layers) if layers else model.decode_graph(context=context)
    return mk.build(mk.assign(mk.lower(graph, mk.Machine.cuda()), **choices), weights=model)


def test_ten_thousand_steps_in_one_launch(model: Any) -> None:
    """The whole model over a cache of 16,384 rows: the tokens of launches of 1,250 steps, and no memory left behind."""
    kernel = endless(model, 16_384)
    kernel.generate(PROMPT, max_new_tokens=4)
    torch.cuda.synchronize()
    allocated, free = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    whole = kernel.generate(PROMPT, max_new_tokens=STEPS)
    assert len(whole.tokens) == STEPS or whole.tokens[-1] in model.config.eos
    print(f"{len(whole.tokens)} steps in one launch: {whole.seconds / len(whole.tokens) * 1e3:.3f} ms a step")
    assert kernel.generate(PROMPT, max_new_tokens=STEPS, chunk=1250).tokens == whole.tokens
    assert torch.cuda.memory_allocated() == allocated
    assert torch.cuda.mem_get_info()[0] >= free - (4 << 20)


def test_a_thousand_launches(model: Any) -> None:
    kernel = endless(model, 512, layers=4)
    expected = kernel.generate(PROMPT, max_new_tokens=6).tokens
    torch.cuda.synchronize()
    allocated, free = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    wrong = sum(kernel.generate(PROMPT, max_new_tokens=6).tokens != expected for _ in range(1000))
    assert wrong == 0
    assert torch.cuda.memory_allocated() == allocated
    assert torch.cuda.mem_get_info()[0] >= free - (4 << 20)


def test_two_kernels_take_turns(model: Any) -> None:
    """Two threads, a static and a dynamic kernel, each with its own stream: every launch waits for a whole GPU."""
    kernels = [endless(model, 512, layers=3), endless(model, 512, layers=3, mode="dynamic")]
    expected = [kernel.generate(PROMPT, max_new_tokens=30).tokens for kernel in kernels]
    found: list[list[list[int]]] = [[], []]

    def work(i: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(10):
                found[i].append(kernels[i].generate(PROMPT, max_new_tokens=30).tokens)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [[tokens] * 10 for tokens in expected]


def test_ctrl_c_stops_the_kernel_and_leaves_the_device_well(model: Any) -> None:
    kernel = endless(model, 16_384)
    expected = kernel.generate(PROMPT, max_new_tokens=20).tokens
    sent: list[float] = []

    def interrupt() -> None:
        time.sleep(1.0)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        kernel.generate(PROMPT, max_new_tokens=STEPS)
    assert time.perf_counter() - sent[0] < 1.0
    assert kernel.generate(PROMPT, max_new_tokens=20).tokens == expected


def test_a_real_model_says_what_transformers_says() -> None:
    """SmolLM2 with its real weights, bf16: twenty tokens of three prompts are transformers' own, but for ties."""
    try:
        real = mk.models.load("smollm2-135m")
    except mk.errors.MpkError as error:
        pytest.skip(str(error).splitlines()[0])
    kernel = mk.build(mk.assign(mk.lower(real.decode_graph(context=256), mk.Machine.cuda())), weights=real)
    peer = real.to_transformers("float32").cuda()
    for text in ("What is the capital of France?", "Once upon a time", "def fibonacci(n):"):
        ids = real.tokenizer.encode(text, chat=True)
        tokens = kernel.generate(ids, max_new_tokens=20).tokens
        with torch.inference_mode():
            logits = peer(torch.tensor([ids + tokens], device="cuda")).logits[0, len(ids) - 1 : -1].float()
        best = logits.max(-1).values
        chosen = logits[torch.arange(len(tokens)), torch.tensor(tokens, device="cuda")]
        # bf16 may take the second of two that float32 sees within its rounding; nothing further away.
        assert float((best - chosen).max()) < 0.25, text
