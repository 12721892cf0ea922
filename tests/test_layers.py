"""The layer API: Mirage's programs on mpklab's own graph, plans and kernels, and what it says to those that cannot run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_programs import Qwen3Program

import mpklab as mk
from mpklab import models
from mpklab.errors import GraphError, RunError
from mpklab.imports import from_mirage
from mpklab.machine import Machine
from mpklab.ops import Tiling
from mpklab.reference import execute

transformers = pytest.importorskip("transformers", reason="the comparison needs transformers")

SIZES = {"hidden": 64, "intermediate": 96, "heads": 4, "kv_heads": 2, "head_dim": 24, "vocab": 192, "qk_norm": True}
PROMPT = [5, 17, 3, 99, 140, 8, 8, 61]
LENGTH = 48


def module(dtype: str = "float32", **changes: Any) -> Any:
    """A small Qwen3ForCausalLM with random weights; its head_dim is not hidden / heads. eps is what the layers use."""
    made = models.random("tiny", seed=5, dtype=dtype, **{**SIZES, "eps": 1e-6, "eos": (), **changes})
    return made.to_transformers(dtype)


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """transformers' own greedy tokens."""
    with torch.inference_mode():
        ids = torch.tensor([prompt], device=model.device)
        return model.generate(
            ids, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0, use_cache=True
        )[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def model() -> Any:
    return module()


# The published program


@pytest.mark.parametrize("grids", [True, False], ids=["grids given", "the machine's"])
@pytest.mark.parametrize("tied", [True, False])
def test_qwen3_gives_the_tokens_of_transformers(tied: bool, grids: bool) -> None:
    model = module(tied=tied)
    program = Qwen3Program(model, LENGTH, grids=grids)
    program.mpk.compile()
    expected = greedy(model, PROMPT, LENGTH - len(PROMPT))
    assert program.generate(PROMPT) == expected
    assert int(program.step[0]) == LENGTH - 1


def test_bfloat16_agrees_up_to_ties() -> None:
    """Rounded otherwise than transformers, a token may differ only where both are as likely: by what bfloat16 resolves."""
    model = module("bfloat16")
    program = Qwen3Program(model, LENGTH)
    program.mpk.compile()
    found = program.generate(PROMPT)
    with torch.inference_mode():
        logits = model.float()(torch.tensor([PROMPT + found])).logits[0, len(PROMPT) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(found)[:, None])[:, 0]
    assert (logits.max(1).values - chosen).max() <= 2**-6 * logits.abs().max()
    model.bfloat16()


def test_generation_ends_at_the_end_of_sequence_and_begins_anew(model: Any) -> None:
    expected = greedy(model, PROMPT, LENGTH - len(PROMPT))
    end = next(t for i, t in enumerate(expected) if i > 3 and t not in expected[:i])
    program = Qwen3Program(model, LENGTH, eos=end)
    kernel = program.mpk.compile()
    length = expected.index(end) + 1
    assert program.generate(PROMPT) == expected[:length]
    assert int(program.step[0]) == len(PROMPT) + length - 1
    other = PROMPT[::-1]
    program.mpk.init_func([program.step.data_ptr(), program.tokens.data_ptr()], 0, 0, 2, 0, 0)
    second = greedy(model, other, LENGTH - len(other))
    assert program.generate(other, default_stream=None) == second[: second.index(end) + 1 if end in second else None]
    assert kernel is program.mpk.kernel


def test_fused_weights_and_caches_are_used_where_they_lie(model: Any) -> None:
    program = Qwen3Program(model, LENGTH)
    program.mpk.compile()
    session = program.mpk._session
    assert session is not None
    graph = program.mpk.graph
    fused = graph.tensors["layer_0_qkv_proj"]
    assert fused.parts == ("layer_0_q_proj", "layer_0_k_proj", "layer_0_v_proj") and fused.groups == 2
    held = {t.data_ptr() for t in session.tensors.values()}
    weights = {p.data_ptr() for n, p in model.named_parameters() if "proj" in n or "norm" in n}
    # Parts of fused weights are reached through segments.
    parts = {int(row["base"]) for m in session._segments.values() for row in m.host().view(mk.abi.SEGMENT)}
    assert weights <= held | parts
    assert program.kv_cache[0][1].data_ptr() in held and program.tokens.data_ptr() in held
    before = program.kv_cache[0][0, 0, len(PROMPT)].clone()
    program.generate(PROMPT)
    assert not program.kv_cache[0][0, 0, len(PROMPT)].equal(before)
    assert not program.kv_cache[0][:, :, LENGTH:].any()


def test_grids_are_the_tiles_of_the_plan(model: Any) -> None:
    program = Qwen3Program(model, LENGTH)
    program.mpk.compile()
    tasks = program.mpk.tasks
    assert tasks.plan.tilings["layer0.qkv_proj"] == Tiling(parts=96)
    assert len(tasks.tasks_of("layer0.qkv_proj")) == 96
    assert len(tasks.tasks_of("layer1.o_proj")) == 64
    assert len(tasks.tasks_of("layer1.attention")) == 2
    assert len(tasks.tasks_of("argmax_partial")) == 96
    free = Qwen3Program(model, LENGTH, grids=False, machine=Machine.cpu(2))
    free.mpk.compile()
    assert "fuse_silu_mul" in free.mpk.tasks.plan.passes and "fuse_argmax" in free.mpk.tasks.plan.passes
    assert len(free.mpk.tasks.tasks_of("layer1.o_proj")) == 2


def test_a_program_is_a_graph_like_any_other(model: Any, tmp_path: Any) -> None:
    """The oracle, the schedule, the profile and the files of the toolkit, on what the layers wrote."""
    program = Qwen3Program(model, LENGTH)
    texts = program.mpk.kn_graph.generate_task_graph(num_gpus=1, my_gpu_id=0)
    assert "mpk_run" in texts["cuda_code"] and "layer0.qkv_proj" in texts["json_file"]
    program.mpk.compile(output_dir=tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {"test.cpp", "graph.json", "tasks.npz"}
    mpk = program.mpk
    assert mk.Graph.from_json(mpk.graph.to_json()).hash == mpk.graph.hash
    assert [o.layer for o in mpk.graph.operators if "attention" in o.name] == [0, 1]
    position = program.prefill(PROMPT)
    program.step.fill_(position)
    inputs = {n: t.clone() for n, t in mpk._program.memory.items() if n in mpk.graph.tensors}
    inputs["meta.token"] = program.tokens[0, position : position + 1].int()
    inputs |= {
        "meta.eos": torch.tensor([-1], dtype=torch.int32),
        "meta.limit": torch.tensor([LENGTH], dtype=torch.int32),
    }
    inputs.pop("meta.tokens")
    reference = execute(mpk.schedule, inputs, iterations=5, seed=1)
    mpk(profile=2)
    assert reference["meta.tokens"][0, position + 1 : position + 6].tolist() == (
        program.tokens[0, position + 1 : position + 6].tolist()
    )
    assert mpk.profile is not None and mpk.profile.verdict() is not None
    assert {"layer0.attention", "advance"} <= set(mpk.profile.bubbles(by="op")["op"])


@pytest.mark.parametrize("choices", [{"mode": "dynamic"}, {"mode": "hybrid", "dynamic": ["attention"]}])
def test_other_modes_give_the_same_tokens(model: Any, choices: dict[str, Any]) -> None:
    program = Qwen3Program(model, LENGTH)
    program.mpk.compile(**choices)
    assert program.generate(PROMPT) == greedy(model, PROMPT, LENGTH - len(PROMPT))


def read_by_hand(words: torch.Tensor) -> dict[int, list[tuple[int, int, int]]]:
    """What Mirage's own exporter finds in a profiler tensor: by block, the type, begin and end of each span, in ns."""
    raw = [int(w) & 0xFFFFFFFFFFFFFFFF for w in words.view(torch.int64).flatten().tolist()]
    blocks, groups = raw[0] % 2**32, raw[0] // 2**32
    assert groups == 1
    spans: dict[int, list[tuple[int, int, int]]] = {b: [] for b in range(blocks)}
    opened: dict[int, tuple[int, int, int]] = {}
    for place, word in enumerate(raw[1:]):
        if word:
            tag, time = word % 2**32, word // 2**32
            number, block, kind, ends = tag >> 19, (tag >> 11) & 0xFF, (tag >> 2) & 0x1FF, tag & 3
            assert block == place % blocks and ends in (0, 1)
            if not ends:
                opened[block] = (number, kind, time)
            else:
                assert opened[block][:2] == (number, kind) and number == len(spans[block]) % 8192
                spans[block].append((kind, opened.pop(block)[2], time))
    assert not opened
    return spans


@pytest.mark.parametrize("dtype", [torch.uint64, torch.int64])
def test_a_profiler_tensor_holds_the_recording_as_mirage_s_own_would(model: Any, dtype: torch.dtype) -> None:
    tensor = torch.full((1 << 15,), 7, dtype=torch.int64).view(dtype)  # as torch.empty leaves one
    program = Qwen3Program(model, LENGTH, grids=False, profiler_tensor=tensor, num_workers=2)
    program.mpk.compile()
    assert program.mpk.profile is None
    program.generate(PROMPT)
    profile = program.mpk.profile
    assert profile is not None
    tasks = mk.frames.tasks(profile).sort_values(["worker", "begin_ns"], kind="stable")
    found = read_by_hand(tensor)
    zero = min(begin for spans in found.values() for _, begin, _ in spans)
    first = int(tasks["begin_ns"].min())
    types = {"linear": (102, 108, 120), "attention": (103,), "embedding": (101,), "advance": (200,)}
    for block, spans in found.items():
        mine = tasks[tasks["worker"] == block]
        times = [(b - first, e - first) for b, e in zip(mine["begin_ns"], mine["end_ns"], strict=True)]
        assert [((b - zero) % 2**32, (e - zero) % 2**32) for _, b, e in spans] == times
        for (kind, _, _), op in zip(spans, mine["kind"], strict=True):
            assert kind in types.get(str(op), (110, 111, 118, 119, 281))
    assert {t for spans in found.values() for t, _, _ in spans} >= {101, 102, 103, 108, 200}
    back = mk.frames.spans(from_mirage(tensor))
    back = back[back["phase"] == "execute"]
    assert back["begin_ns"].tolist() == (tasks["begin_ns"] - first).tolist()
    assert back["dur_ns"].tolist() == tasks["dur_ns"].tolist() and back["worker"].tolist() == tasks["worker"].tolist()
    named = {"linear_residual", "rms_norm_linear", "attention", "embedding", "schedule"}
    assert named <= set(back["op"].astype(str))


def test_a_profiler_tensor_that_is_full_says_what_it_lacks(model: Any) -> None:
    tensor = torch.zeros(1 + 2 * 2 * 10 + 3, dtype=torch.int64)  # ten spans for each of two workers, and a bit
    program = Qwen3Program(model, LENGTH, grids=False, profiler_tensor=tensor, num_workers=2)
    program.mpk.compile()
    with pytest.warns(UserWarning, match=r"room for 44 words: the latest \d+ spans are not in it") as warned:
        program.generate(PROMPT)
    tasks = mk.frames.tasks(program.mpk.profile)
    kept = sum(min(10, int((tasks["worker"] == w).sum())) for w in range(2))
    assert f"latest {len(tasks) - kept} spans" in str(warned[0].message)
    found = read_by_hand(tensor)
    for block, spans in found.items():
        begin = tasks[tasks["worker"] == block]["begin_ns"].tolist()[:10]
        assert [b - spans[0][1] for _, b, _ in spans] == [b - begin[0] for b in begin]


def test_init_func_changes_the_profiler_tensor(model: Any) -> None:
    first, second = torch.zeros(1 << 15, dtype=torch.int64), torch.zeros(1 << 15, dtype=torch.uint64)
    program = Qwen3Program(model, LENGTH, grids=False, profiler_tensor=first, num_workers=2)
    program.mpk.compile()
    own = [program.step.data_ptr(), program.tokens.data_ptr()]
    program.mpk.init_func(own, 0, 0, 2, 0, 0)
    program.generate(PROMPT)
    assert program.mpk.profile is None and not first.any()
    program.mpk.init_func(own, second)
    program.generate(PROMPT)
    assert program.mpk.profile is not None and second.view(torch.int64).any() and not first.any()
    program.mpk.init_func(own, second.data_ptr())
    with pytest.raises(RunError, match=f"{first.data_ptr()} is not the address of the kernel's profiler_tensor"):
        program.mpk.init_func(own, first.data_ptr())


def test_the_demo_s_surroundings(model: Any) -> None:
    """A padded lm_head, a default dtype, lists of ends, a stream by either name, and an end of the kernel."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        program = Qwen3Program(model, LENGTH, pad_to=288, eos=[-1])
        program.mpk.compile()
        expected = greedy(model, PROMPT, LENGTH - len(PROMPT))
        assert program.generate(PROMPT, stream=None) == expected
    finally:
        torch.set_default_dtype(torch.float32)
    assert program.generate(PROMPT, default_stream=object()) == expected  # the CPU has no streams
    assert program.tokens[:, : program.step[0]].shape == (1, LENGTH - 1)  # how the demos cut out what was generated
    program.mpk.finalize()
    program.mpk.finalize()
    with pytest.raises(RunError, match="the kernel was finalized"):
        program.mpk()


# What was published, and what of it is taken

GRID = "grid_dim, block_dim"
PUBLISHED = {
    "__init__": "world_size, mpi_rank, num_workers, num_local_schedulers, num_remote_schedulers, max_seq_length, "
    "eos_token_id, meta_tensors, profiler_tensor, spec_decode_config",
    "attach_input": "torch_tensor, name=None",
    "new_tensor": "dims, strides=None, dtype=mk.bfloat16, name=None, io_category='cuda_tensor'",
    "fuse_tensors": "inputs, fused_dim, num_groups, name=None",
    "shuffle_tensors": "inputs, shuffled_dim, num_groups, name=None",
    "embed_layer": f"input, weight, output, {GRID}, input_source=0",
    "rmsnorm_layer": f"input, weight, output, {GRID}",
    "rmsnorm_linear_layer": f"input, weight_norm, weight_linear, output, {GRID}",
    "attention_layer": f"input, k_cache, v_cache, q_norm, k_norm, cos_pos_embed, sin_pos_embed, output, {GRID}",
    "linear_layer": f"input, weight, output, {GRID}",
    "linear_with_residual_layer": f"input, weight, residual, output, {GRID}",
    "allreduce_layer": f"input, buffer, output, {GRID}",
    "silu_mul_layer": f"input, output, {GRID}",
    "silu_mul_linear_with_residual_layer": f"input, weight, residual, output, {GRID}",
    "elementwise_add_layer": f"input_a, input_b, output, {GRID}",
    "argmax_partial_layer": f"input, output, {GRID}",
    "argmax_reduce_layer": f"input, output, {GRID}",
    "compile": "*, output_dir=None",
    "__call__": "default_stream=None, *, stream=None",
    "init_func": "meta_ptrs, profiler_ptr, rank, workers, local_schedulers, remote_schedulers",
    "finalize": "",
}
# Methods of the later API: batches, paged caches, experts, MLA, quantised weights, speculation, several devices.
ELSEWHERE = """
    single_batch_extend_attention_layer paged_attention_layer paged_attention_split_kv_layer
    paged_attention_split_kv_merge_layer mla_kv_gather_layer mla_decode_layer mla_reduce_layer mla_prefill_layer
    mla_mtp_decode_layer tensor_init_layer moe_topk_softmax_routing_layer moe_topk_sigmoid_routing_layer
    moe_w13_linear_layer moe_w2_linear_layer moe_w13_fp8_layer moe_w2_fp8_layer quantize_fp8_layer linear_fp8_layer
    linear_fp8_with_residual_layer moe_silu_mul_layer moe_mul_sum_add_layer splitk_linear_layer identity_layer argmax_layer
    sampling_sm100_layer find_ngram_partial_layer find_ngram_global_layer prompt_lookup_spec_handler
    draft_forward_layer_dispatcher target_verify_greedy_layer prompt_lookup_verify_handler verify_layer_dispatcher
""".split()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_signatures_are_taken(name: str) -> None:
    """The same names in the same order with the same defaults; what is ours comes after, or by keyword, and may be left
    out."""
    published = eval(f"lambda {PUBLISHED[name]}: 0", {"mk": mk})
    theirs = list(inspect.signature(published).parameters.values())
    ours = list(inspect.signature(getattr(mk.PersistentKernel, name)).parameters.values())[1:]
    by_name = {p.name: p for p in ours}
    in_order = [p.name for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in ours][: len(in_order)] == in_order
    for p in theirs:
        assert by_name[p.name].kind in (p.kind, p.POSITIONAL_OR_KEYWORD)
        assert p.default is p.empty or by_name[p.name].default == p.default
    for p in ours:
        known = p.name in {t.name for t in theirs}
        assert known or p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_other_layers_are_refused_by_name(kernel: mk.PersistentKernel, name: str) -> None:
    with pytest.raises(GraphError, match=f"has no '{name}', for its layers are those of a dense decoder"):
        getattr(kernel, name)(input=None, output=None, grid_dim=(1, 1, 1), block_dim=(128, 1, 1))
    assert not hasattr(kernel, name)


def test_slips_in_a_call_name_the_layer(kernel: mk.PersistentKernel) -> None:
    x = kernel.attach_input(draw(1, 32), "x")
    for call, message in (
        (lambda: kernel.linear_layer(x, draw(32, 32), x), r"linear_layer .*weight must be .*not Tensor"),
        (lambda: kernel.linear_layer(x, x), r"linear_layer .*missing a required argument: 'output'"),
        (lambda: kernel.linear_layer(x, x, x, grid=(1, 1, 1)), r"linear_layer .*no 'grid': did you mean 'grid_dim'"),
        (lambda: kernel.rmsnorm_layer(None, x, x), r"rmsnorm_layer .*input must be .*not NoneType"),
        (lambda: kernel.allreduce_layer(x, None, None), r"allreduce_layer .*output must be .*not NoneType"),
        (
            lambda: kernel.silu_mul_layer(x, kernel.attach_input(draw(4), "v")),
            r"silu_mul_layer .*found x .*, v float32\[4\]",
        ),
        (lambda: kernel.argmax_partial_layer(x, x), "argmax_partial_layer .*output must be two tensors"),
        (lambda: kernel.fuse_tensors([None], 0, 1, "f"), r"fuse_tensors\(name='f'\): inputs must be tensors"),
        (lambda: kernel.compile(eos_token_id=2), "compile takes no 'eos_token_id'"),
    ):
        with pytest.raises(GraphError, match=message):
            call()
    with pytest.raises(AttributeError, match="has no attribute 'finalise'"):
        kernel.finalise()


def test_shuffled_tensors_are_fused_ones(kernel: mk.PersistentKernel) -> None:
    parts = [kernel.attach_input(draw(4, 8, seed=i), n) for i, n in enumerate("ab")]
    shuffled = kernel.shuffle_tensors(inputs=parts, shuffled_dim=0, num_groups=2, name="s")
    assert shuffled.parts == ("a", "b") and shuffled.num_groups == 2 and shuffled.dims == (8, 8)


# Layers one by one


Maker = Callable[..., mk.PersistentKernel]


@pytest.fixture
def kernel() -> mk.PersistentKernel:
    step, tokens = torch.zeros(1, dtype=torch.int32), torch.zeros(1, 64, dtype=torch.int64)
    return mk.PersistentKernel(num_workers=2, max_seq_length=32, meta_tensors=[step, tokens])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def normalised(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def test_every_layer_computes_what_it_says(kernel: mk.PersistentKernel) -> None:
    rows, h, n = 3, 32, 24
    values = {
        "x": draw(rows, h),
        "g": draw(h),
        "w": draw(n, h),
        "r": draw(rows, n),
        "v": draw(h, n),
        "q": draw(rows, h),
    }
    a = {name: kernel.attach_input(torch_tensor=t, name=name) for name, t in values.items()}
    out = {}

    def result(name: str, *shape: int) -> Any:
        out[name] = torch.zeros(shape)
        return kernel.attach_input(torch_tensor=out[name], name=name)

    kernel.rmsnorm_layer(input=a["x"], weight=a["g"], output=result("norm", rows, h), grid_dim=(3, 1, 1))
    kernel.linear_layer(input=a["x"], weight=a["w"], output=result("linear", rows, n), grid_dim=(6, 1, 1))
    kernel.rmsnorm_linear_layer(
        input=a["x"], weight_norm=a["g"], weight_linear=a["w"], output=result("norm_linear", rows, n)
    )
    kernel.linear_with_residual_layer(
        input=a["x"], weight=a["w"], residual=a["r"], output=result("residual", rows, n), grid_dim=(4, 1, 1)
    )
    kernel.elementwise_add_layer(input_a=a["x"], input_b=a["q"], output=result("add", rows, h), grid_dim=(3, 1, 1))
    halves = kernel.new_tensor(dims=(rows, 2 * n), dtype=mk.float32, name="halves")
    both = kernel.attach_input(torch_tensor=draw(2 * n, h, seed=1), name="both")
    kernel.linear_layer(input=a["x"], weight=both, output=halves)
    kernel.silu_mul_layer(input=halves, output=result("silu", rows, n), grid_dim=(4, 1, 1))
    kernel.silu_mul_linear_with_residual_layer(
        input=halves, weight=a["v"], residual=a["q"], output=result("silu_linear", rows, h), grid_dim=(8, 1, 1)
    )
    kernel.compile()
    kernel()
    x, g, w = values["x"], values["g"], values["w"]
    linear = x @ w.T
    made = x @ draw(2 * n, h, seed=1).T
    runs = made.view(rows, 4, 2, n // 4)
    gate, up = made.chunk(2, 1)
    expected = {
        "norm": normalised(x, g),
        "linear": linear,
        "norm_linear": normalised(x, g) @ w.T,
        "residual": linear + values["r"],
        "add": x + values["q"],
        "silu": (torch.nn.functional.silu(runs[:, :, 0]) * runs[:, :, 1]).reshape(rows, n),
        "silu_linear": (torch.nn.functional.silu(gate) * up) @ values["v"].T + values["q"],
    }
    for name, wanted in expected.items():
        torch.testing.assert_close(out[name], wanted, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("passes", [True, False], ids=["fused by the machine", "as written"])
def test_interleaved_groups_give_the_same_result(kernel: mk.PersistentKernel, passes: bool) -> None:
    """gate and up dealt out in groups: the linear's columns are Mirage's, and silu_mul takes them apart again."""
    h, n, groups = 32, 40, 4
    x, gate, up = draw(1, h), draw(n, h), draw(n, h, seed=1)
    a = {k: kernel.attach_input(torch_tensor=t, name=k) for k, t in (("x", x), ("gate", gate), ("up", up))}
    fused = kernel.fuse_tensors(inputs=[a["gate"], a["up"]], fused_dim=0, num_groups=groups, name="gate_up")
    assert fused.dims == (2 * n, h)
    mid = torch.zeros(1, 2 * n)
    out = torch.zeros(1, n)
    middle = kernel.new_tensor(dims=mid.shape, dtype=mk.float32, name="mid") if passes else (
        kernel.attach_input(torch_tensor=mid, name="mid"))  # fmt: skip
    kernel.linear_layer(input=a["x"], weight=fused, output=middle)
    kernel.silu_mul_layer(input=middle, output=kernel.attach_input(torch_tensor=out, name="out"))
    kernel.compile()
    kernel()
    weight = torch.cat([torch.cat(pair) for pair in zip(gate.chunk(groups), up.chunk(groups), strict=True)])
    if passes:
        assert [o.op for o in kernel.graph.operators] == ["linear"]
    else:
        torch.testing.assert_close(mid, x @ weight.T, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(out, torch.nn.functional.silu(x @ gate.T) * (x @ up.T), rtol=1e-4, atol=1e-4)


# What cannot be


def layer_of(kernel: mk.PersistentKernel, rows: int = 48, width: int = 32, **more: Any) -> None:
    x = kernel.attach_input(torch_tensor=draw(1, 32), name="x")
    w = kernel.attach_input(torch_tensor=draw(rows, width), name="layer_2_o_proj")
    y = kernel.new_tensor(dims=(1, 48), dtype=mk.float32, name="y")
    kernel.linear_layer(input=x, weight=w, output=y, **more)


def test_a_wrong_dim_names_the_layer(kernel: mk.PersistentKernel) -> None:
    with pytest.raises(GraphError, match=r"linear_layer 'layer2\.o_proj'.*x has 32 columns"):
        layer_of(kernel, width=16)


def test_a_wrong_output_names_the_layer(kernel: mk.PersistentKernel) -> None:
    with pytest.raises(GraphError, match=r"linear_layer 'layer2\.o_proj'.*output must be float32\[1×47\]; found y"):
        layer_of(kernel, rows=47)


def test_a_grid_that_does_not_divide_names_the_layer(kernel: mk.PersistentKernel) -> None:
    with pytest.raises(GraphError, match=r"linear_layer 'layer2\.o_proj'.*\(5, 1, 1\) does not divide the 48 rows"):
        layer_of(kernel, grid_dim=(5, 1, 1))


@pytest.mark.parametrize("grid", [(2, 2, 1), (0, 1, 1), 4, (4, 1)])
def test_a_grid_that_is_none_names_the_layer(kernel: mk.PersistentKernel, grid: Any) -> None:
    with pytest.raises(GraphError, match=r"'layer2\.o_proj'.*grid_dim must be \(x, 1, 1\)"):
        layer_of(kernel, grid_dim=grid)


def test_an_output_never_written_names_the_layer(kernel: mk.PersistentKernel) -> None:
    empty = kernel.new_tensor(dims=(1, 32), dtype=mk.float32, name="empty")
    w = kernel.attach_input(torch_tensor=draw(48, 32), name="layer_2_o_proj")
    y = kernel.new_tensor(dims=(1, 48), dtype=mk.float32, name="y")
    with pytest.raises(GraphError, match=r"linear_layer 'layer2\.o_proj'.*empty .*no layer has written"):
        kernel.linear_layer(input=empty, weight=w, output=y)


def test_a_name_used_twice(kernel: mk.PersistentKernel) -> None:
    layer_of(kernel)
    for call in (
        lambda: kernel.attach_input(torch_tensor=draw(2), name="y"),
        lambda: kernel.new_tensor(dims=(1, 2), name="y"),
        lambda: kernel.fuse_tensors(inputs=[], num_groups=1, name="y"),
    ):
        with pytest.raises(GraphError, match=r"\(name='y'\).*taken by y float32\[1×48\]"):
            call()
    with pytest.raises(GraphError, match="needs a name"):
        kernel.attach_input(torch_tensor=draw(2))


def test_a_tensor_of_another_device(kernel: mk.PersistentKernel) -> None:
    with pytest.raises(
        GraphError, match=r"attach_input\(name='w'\): the tensor is on meta, but step and tokens are on cpu"
    ):
        kernel.attach_input(torch_tensor=torch.empty(3, 3, device="meta"), name="w")


def test_a_tensor_with_gaps_or_of_no_dtype(kernel: mk.PersistentKernel) -> None:
    with pytest.raises(GraphError, match=r"name='w'.*strides \(1, 4\)"):
        kernel.attach_input(torch_tensor=draw(3, 4).T, name="w")
    with pytest.raises(GraphError, match=r"name='w'.*float64\[3\]"):
        kernel.attach_input(torch_tensor=torch.zeros(3, dtype=torch.float64), name="w")
    with pytest.raises(GraphError, match="dtype must be one of"):
        kernel.new_tensor(dims=(1, 2), dtype="half", name="h")
    with pytest.raises(GraphError, match="io_category"):
        kernel.new_tensor(dims=(1, 2), name="h", io_category="cuda")


def test_a_tensor_of_another_kernel(kernel: mk.PersistentKernel) -> None:
    step, tokens = torch.zeros(1, dtype=torch.int32), torch.zeros(1, 64, dtype=torch.int64)
    other = mk.PersistentKernel(max_seq_length=8, meta_tensors=[step, tokens]).attach_input(draw(1, 32), "x")
    w, y = kernel.attach_input(draw(48, 32), "w"), kernel.new_tensor(dims=(1, 48), dtype=mk.float32, name="y")
    with pytest.raises(GraphError, match=r"linear_layer 'w'.*input is x .*another kernel"):
        kernel.linear_layer(input=other, weight=w, output=y)
    x = kernel.attach_input(draw(1, 32), "x")
    kernel.linear_layer(input=x, weight=w, output=y)
    foreign = mk.PersistentKernel(max_seq_length=8, meta_tensors=[step, tokens]).new_tensor(
        dims=(1, 48), dtype="float32", name="y"
    )
    for arguments in ({"input": x, "output": foreign}, {"input": foreign, "output": y}):
        with pytest.raises(GraphError, match="another kernel"):
            kernel.linear_layer(weight=w, **arguments)


def test_memory_written_under_two_names(kernel: mk.PersistentKernel) -> None:
    x = draw(1, 32)
    a, b = kernel.attach_input(x, "a"), kernel.attach_input(x, "b")
    kernel.elementwise_add_layer(input_a=a, input_b=a, output=b)
    with pytest.raises(GraphError, match="a and b lie in the same memory"):
        kernel.compile()


STEP, TOKENS = torch.zeros(1, dtype=torch.int32), torch.zeros(1, 64, dtype=torch.int64)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"step": STEP, "tokens": TOKENS}, "not dict"),
        ([STEP], "not 1 of them"),
        ([STEP, TOKENS, STEP], "not 3 of them"),
        ([STEP.long(), TOKENS], r"step is int32\[1\], dense, not torch.int64\[1\]"),
        ([STEP, TOKENS[0]], r"tokens is int64\[1×n\], dense, not torch.int64\[64\]"),
        ([STEP, TOKENS.expand(2, 64)], "tokens is"),
        ([TOKENS, STEP], "step is"),
        ([STEP, "tokens"], "not str"),
        ([STEP.to("meta"), TOKENS], "on one device"),
    ],
)
def test_meta_tensors_must_be_step_and_tokens(meta: Any, message: str) -> None:
    with pytest.raises(GraphError, match=rf"meta_tensors.*{message}"):
        mk.PersistentKernel(max_seq_length=8, meta_tensors=meta)


def test_the_readme_s_constructor_is_taken() -> None:
    """Without max_seq_length and eos_token_id: 512 tokens, or all places of tokens where they are fewer."""
    for places, length in ((64, 64), (4096, 512)):
        tokens = torch.zeros(1, places, dtype=torch.int64)
        made = mk.PersistentKernel(
            world_size=1, mpi_rank=0, num_workers=96, num_local_schedulers=48, num_remote_schedulers=0,
            meta_tensors=[STEP, tokens], profiler_tensor=None,
        )  # fmt: skip
        assert made._program.max_seq_length == length


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world_size": 2}, "one device: world_size=2"),
        ({"mpi_rank": 1}, "mpi_rank=1"),
        ({"max_seq_length": 65}, "from 2 to the 64 places of tokens, not 65"),
        ({"num_workers": 0}, "num_workers must be a positive number"),
        ({"spec_decode_config": object()}, "no speculative decoding"),
        ({"profiler_tensor": 3}, "profiler_tensor is a dense tensor of uint64 or int64, or None, not int"),
        ({"profiler_tensor": torch.zeros(99)}, "profiler_tensor is a dense tensor of uint64 .* this is torch.float32"),
        ({"profiler_tensor": torch.zeros(99, 2, dtype=torch.int64)[:, 0]}, r"with strides \(2,\)"),
        ({"profiler_tensor": torch.zeros(4, dtype=torch.int64), "num_workers": 2}, "needs 5 words .* of 2 workers"),
        ({"max_seq_len": 8}, "did you mean 'max_seq_length'"),
        (
            {"mode": "offline", "page_size": 64, "max_num_pages": 16},
            "takes no mode, max_num_pages, page_size: those belong to Mirage's later API of batched requests",
        ),
        ({"eos_token_id": "2"}, "eos_token_id is a token, several, or None, not '2'"),
    ],
)
def test_constructor_slips_are_answered(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        mk.PersistentKernel(**{"max_seq_length": 8, "meta_tensors": [STEP, TOKENS], **options})


def attention_of(kernel: mk.PersistentKernel, rows: int = 32, width: int = 128, groups: int = 2, **more: Any) -> None:
    weights = [kernel.attach_input(draw(n, 32), f"layer_1_{k}_proj") for k, n in (("q", 64), ("k", 32), ("v", 32))]
    fused = kernel.fuse_tensors(inputs=weights, num_groups=groups, name="layer_1_qkv")
    x = kernel.attach_input(draw(1, 32), "x")
    into = kernel.new_tensor(dims=(1, 128), dtype=mk.float32, name="attn_in")
    kernel.linear_layer(input=x, weight=fused, output=into)
    caches = [kernel.attach_input(torch.zeros(1, rows, 2, 16), f"layer_1_{k}_cache") for k in "kv"]
    tables = {
        f"{n}_pos_embed": kernel.attach_input(draw(rows, 16).repeat(1, 2)[:, 8:24].contiguous(), n)
        for n in ("cos", "sin")
    }
    out = kernel.new_tensor(dims=(1, width // 2), dtype=mk.float32, name="attn_out")
    arguments = {"k_cache": caches[0], "v_cache": caches[1], "q_norm": None, "k_norm": None, **tables, "output": out}
    kernel.attention_layer(into, **{**arguments, **more})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 31}, "31 rows of k_cache are fewer than max_seq_length=32"),
        ({"width": 96}, "output must hold heads of 16 columns"),
        ({"groups": 1}, "layer_1_qkv was fused in 1"),
        ({"grid_dim": (1, 4, 1)}, r"grid_dim must be \(1, 2, 1\)"),
        ({}, "both halves of cos must be alike"),
    ],
)
def test_what_attention_refuses_names_the_layer(
    kernel: mk.PersistentKernel, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(GraphError, match=rf"attention_layer 'layer1\.attention'.*{message}"):
        attention_of(kernel, **options)


def test_attention_without_rope_or_norm(kernel: mk.PersistentKernel) -> None:
    attention_of(kernel, cos_pos_embed=None, sin_pos_embed=None)
    assert kernel.graph.operator("layer1.attention").attrs["group_stride"] == 64


def test_silu_groups_must_be_the_weights(kernel: mk.PersistentKernel) -> None:
    x = kernel.attach_input(draw(1, 32), "x")
    parts = [kernel.attach_input(draw(24, 32, seed=i), f"layer_0_{k}") for i, k in enumerate(("gate", "up"))]
    fused = kernel.fuse_tensors(inputs=parts, num_groups=2, name="layer_0_gate_up")
    mid = kernel.new_tensor(dims=(1, 48), dtype=mk.float32, name="mid")
    kernel.linear_layer(input=x, weight=fused, output=mid)
    out = kernel.new_tensor(dims=(1, 24), dtype=mk.float32, name="out")
    with pytest.raises(
        GraphError, match=r"silu_mul_layer 'layer0\.silu_mul'.*3 groups, but layer_0_gate_up was fused in 2"
    ):
        kernel.silu_mul_layer(input=mid, output=out, grid_dim=(3, 1, 1))


def test_a_kernel_is_used_in_order(model: Any) -> None:
    program = Qwen3Program(model, LENGTH, grids=False)
    with pytest.raises(RunError, match="compile"):
        program.mpk()
    program.mpk.compile()
    with pytest.raises(GraphError, match="compiled already"):
        program.mpk.compile()
    program.step.fill_(LENGTH - 1)
    with pytest.raises(RunError, match=r"step\[0\] is 47"):
        program.mpk()
    program.step.fill_(2)
    program.tokens[0, 2] = 1000
    with pytest.raises(RunError, match=r"tokens\[0, 2\] is 1000, outside the vocabulary of 192"):
        program.mpk()
    with pytest.raises(RunError, match="meta_ptrs must be the addresses"):
        program.mpk.init_func([1, 2])
