"""The layer API on a GPU: Qwen3 as the published demo writes it, small in float32 and 0.6B in bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layer_programs import Qwen3Program
from test_layers import LENGTH, PROMPT, greedy, module

import mpklab as mk
from mpklab import models
from mpklab.errors import GraphError

pytest.importorskip("transformers", reason="the comparison needs transformers")

LARGE_LENGTH = 160
LARGE_PROMPT = [151644, 872, 198, 3838, 374, 264, 22670, 30, 151645, 198, 151644, 77091, 198]


@pytest.fixture(scope="module")
def large() -> Any:
    """Qwen3-0.6B with random weights."""
    model = models.random("qwen3-0.6b", seed=2, eps=1e-6, dtype="bfloat16", device="cuda")
    return model.to_transformers("bfloat16")


def worst_gap(model: Any, prompt: list[int], found: list[int]) -> float:
    """How far below the best the chosen tokens' logits are at most, given the same tokens before them: in float32, as a
    part of the largest logit."""
    with torch.inference_mode():
        ids = torch.tensor([prompt + found], device="cuda")
        logits = model.float()(ids).logits[0, len(prompt) - 1 : -1]
    model.bfloat16()
    chosen = logits.gather(1, torch.tensor(found, device="cuda")[:, None])[:, 0]
    return float((logits.max(1).values - chosen).max() / logits.abs().max())


@pytest.mark.parametrize("grids", [True, False], ids=["grids given", "the machine's"])
@pytest.mark.parametrize("eager", [True, False], ids=["own stream", "current stream"])
def test_a_small_qwen3_gives_the_tokens_of_transformers(grids: bool, eager: bool) -> None:
    model = module().cuda()
    program = Qwen3Program(model, LENGTH, grids=grids)
    program.mpk.compile()
    stream = torch.cuda.Stream() if eager else None
    assert program.generate(PROMPT, default_stream=stream) == greedy(model, PROMPT, LENGTH - len(PROMPT))
    assert int(program.step[0]) == LENGTH - 1


def test_another_stream_waits_for_what_was_queued_before() -> None:
    model = module().cuda()
    program = Qwen3Program(model, LENGTH, grids=False)
    program.mpk.compile()
    place, other = program.prefill(PROMPT), torch.cuda.Stream()
    torch.cuda.synchronize()
    torch.cuda._sleep(500_000_000)  # a quarter of a second before the kernel knows where to go on
    program.step.fill_(place)
    program.mpk(default_stream=other)
    assert program.tokens[0, place:].tolist() == greedy(model, PROMPT, LENGTH - len(PROMPT))
    assert int(program.step[0]) == LENGTH - 1


@pytest.mark.parametrize("grids", [True, False], ids=["grids given", "the machine's"])
def test_qwen3_06b_gives_the_tokens_of_transformers(large: Any, grids: bool) -> None:
    """In bfloat16, up to ties: a token is the best one, or nearly as good as transformers' own bfloat16 tokens are."""
    program = Qwen3Program(large, LARGE_LENGTH, grids=grids)
    program.mpk.compile()
    found = program.generate(LARGE_PROMPT)
    expected = greedy(large, LARGE_PROMPT, len(found))
    same = next((i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b), len(found))
    gap, theirs = worst_gap(large, LARGE_PROMPT, found), worst_gap(large, LARGE_PROMPT, expected)
    position = program.step.clone()
    times = []
    for _ in range(5):
        program.step.fill_(len(LARGE_PROMPT))
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        program.mpk()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / (LARGE_LENGTH - 1 - len(LARGE_PROMPT)))
    assert program.step.equal(position)
    print(
        f"\ngrids {grids}: the first {same} of {len(found)} tokens are those of transformers, worst gap {gap:.2g}, "
        f"transformers' own {theirs:.2g}; "
        f"ms a token with host work {sorted(round(t, 4) for t in times)}; {len(program.mpk.tasks)} tasks"
    )
    assert len(found) == LARGE_LENGTH - len(LARGE_PROMPT)
    assert gap <= max(2**-7, 2 * theirs)


def test_qwen3_06b_in_float32_gives_the_very_tokens_of_transformers(large: Any) -> None:
    program = Qwen3Program(large.float(), 64, grids=False)
    program.mpk.compile()
    found, expected = program.generate(LARGE_PROMPT), greedy(large, LARGE_PROMPT, 64 - len(LARGE_PROMPT))
    large.bfloat16()
    assert found == expected


def test_a_recorded_call_keeps_its_tokens(large: Any) -> None:
    tensor = torch.zeros(3000 * 128, dtype=torch.uint64, device="cuda")
    program = Qwen3Program(large, 64, grids=False, profiler_tensor=tensor)
    program.mpk.compile()
    found = program.generate(LARGE_PROMPT)
    assert program.mpk.profile is not None and len(program.mpk.profile.spans())
    assert program.generate(LARGE_PROMPT, profile=0) == found


def test_a_module_on_the_gpu_is_used_where_it_lies(large: Any) -> None:
    model = models.from_hf(large)
    kernel = mk.compile(model, context=LARGE_LENGTH)
    addresses = {p.data_ptr() for p in large.parameters()}
    session = kernel.new_session()
    held = {
        session.tensors[n].data_ptr() for n, t in kernel.graph.tensors.items() if t.role == "weight" and n != "rope"
    }
    assert held <= addresses
    found = kernel.generate(LARGE_PROMPT, max_new_tokens=80)
    print(f"\nfrom_hf: {found.seconds / len(found.tokens) * 1e3:.4f} ms a token")
    assert worst_gap(large, LARGE_PROMPT, found.tokens) <= 2**-6


def test_a_tensor_of_the_host_is_refused() -> None:
    step = torch.zeros(1, dtype=torch.int32, device="cuda")
    tokens = torch.zeros(1, 8, dtype=torch.int64, device="cuda")
    kernel = mk.PersistentKernel(max_seq_length=8, meta_tensors=[step, tokens])
    with pytest.raises(
        GraphError, match=r"attach_input\(name='w'\): the tensor is on cpu, but step and tokens are on cuda:0"
    ):
        kernel.attach_input(torch_tensor=torch.zeros(2, 2), name="w")
