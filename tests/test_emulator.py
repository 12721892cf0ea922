"""The CUDA backend without a GPU: its operators and its whole kernel on emulated blocks (see emulator/cuda.hpp).

A fast part runs always; MPKLAB_TEST_FULL=1 runs every operator case, every mode and more orders of execution.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_host_ops as host
import torch
from emulator import kit
from emulator.kit import EmulatedLibrary, EmulatorError, emulated
from operator_cases import GROUPS, hold, hold_rows_to_no_tile

import mpklab as mk
from mpklab import abi, env
from mpklab.errors import DeadlockError
from mpklab.reference import execute

if kit.why_not():
    pytest.skip(str(kit.why_not()), allow_module_level=True)

FULL = os.environ.get("MPKLAB_TEST_FULL") == "1"
SKIPPED = [pytest.param(None, id="all", marks=pytest.mark.skip("MPKLAB_TEST_FULL=1 runs these"))]

# --- operators ---

# A linear's three ways with each epilogue, attention by tensor cores and without, both caches' orders, drawing.
FAST = [
    ("tuned", "linear-90x1024-1of1-none-norm-segments"),
    ("tuned", "linear-70x2048-1of1-residual-splits8"),
    ("tuned", "linear-70x1024-5of8-silu_mul-norm"),
    ("bfloat16", "linear-203x48-3of3-none-norm-parts4"),
    ("tuned", "attention-16of8x128-at400-splits1-norm-torch.bfloat16-grouped-rows_first"),
    ("tuned", "attention-8of2x64-at200-splits8-torch.bfloat16-rows_first"),
    ("float32", "attention-4of2x12-at39-splits3"),
    ("bfloat16", "embedding-5x64"),
    ("bfloat16", "argmax_partial-91"),
    ("bfloat16", "sample_partial-1203"),
    ("bfloat16", "sample_reduce-3001"),
]
TOGETHER = 6  # variants of one library


def number_of(group: str, name: str) -> int:
    return next(i for i, case in enumerate(GROUPS[group]) if case.name.startswith(name))


CHOSEN = [(group, number_of(group, name)) for group, name in FAST]


@pytest.fixture(scope="module")
def chosen() -> EmulatedLibrary:
    return EmulatedLibrary([GROUPS[group][i].variant for group, i in CHOSEN], 8)


@pytest.mark.parametrize("at", range(len(FAST)), ids=[name for _, name in FAST])
def test_operator(chosen: EmulatedLibrary, at: int) -> None:
    group, number = CHOSEN[at]
    hold(chosen, at, GROUPS[group][number])


def test_rows_of_a_linear_do_not_depend_on_the_tile(chosen: EmulatedLibrary) -> None:
    g = torch.Generator().manual_seed(1)
    for at, (group, number) in enumerate(CHOSEN):
        case = GROUPS[group][number]
        if case.name.startswith("linear") and "parts" not in case.name:
            hold_rows_to_no_tile(chosen, at, case, host.cuts(g, case.outputs[2].shape[1], 3))


EVERY = [(group, first, warps, bulk) for bulk in (1, 0) for warps in (8, 16) for group, cases in GROUPS.items()
         for first in range(0, len(cases), TOGETHER)]  # fmt: skip


@pytest.mark.parametrize("some", EVERY if FULL else SKIPPED, ids=str)
def test_every_operator(some: tuple[str, int, int, int]) -> None:
    """With 8 and 16 consumer warps, and with the copies of sm_90 and of what came before."""
    group, first, warps, bulk = some
    cases = GROUPS[group][first : first + TOGETHER]
    library = EmulatedLibrary([case.variant for case in cases], warps, f"-DMPK_BULK={bulk}")
    for at, case in enumerate(cases):
        hold(library, at, case)


# --- a whole decode step ---

# With this seed no token is a near tie. A tile of the logits has more rows than one round of partial sums; heads are
# split over the context.
SIZES = {"vocab": 5003, "hidden": 128, "heads": 4, "kv_heads": 2, "head_dim": 32, "intermediate": 192, "eos": ()}
MODEL = mk.models.random("tiny", seed=4, qk_norm=True, **SIZES)
CONTEXT, PROMPT, NEW, BLOCKS = 256, [5, 9, 100, 17], 4, 4
WARM = {"temperature": 0.8, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 3}


def schedule(batch: Any = 1, handoff: Any = "counter", model: Any = MODEL, machine: Any = None, **choice: Any) -> Any:
    machine = machine or mk.Machine.named("h200", BLOCKS)
    tasks = mk.lower(model.decode_graph(batch=batch, context=CONTEXT), machine, handoff=handoff)
    return mk.assign(tasks, **choice)


def after(kernel: Any, level: int = 0, new: int = NEW, **rules: Any) -> tuple[list[int], dict[str, torch.Tensor]]:
    """The tokens of a prompt, and all that the run leaves."""
    session = kernel.open_session(**rules)
    tokens = kernel.generate(PROMPT, new, session=session, profile=level, **rules).tokens
    graph = session.kernel.graph
    kept = [name for name, t in graph.tensors.items() if t.role in ("state", "output")]
    return tokens, {name: session.tensors[name] for name in kept}


def assert_same(found: Any, expected: Any) -> None:
    assert found[0] == expected[0]
    for name, value in expected[1].items():
        assert found[1][name].contiguous().view(torch.uint8).equal(value.contiguous().view(torch.uint8)), name


def assert_close(found: Any, expected: Any) -> None:
    assert found[0] == expected[0] and len(set(found[0])) > 2
    logits, right = found[1]["logits"].double(), expected[1]["logits"].double()
    assert float((logits - right).norm() / right.norm()) < 2.0**-6


def on_the_cpu(model: Any = MODEL, **rules: Any) -> Any:
    made = mk.build(schedule(machine=mk.Machine.cpu(2), model=model), weights=model)
    return after(made, **rules)


@pytest.fixture(scope="module")
def expected() -> Any:
    """What static queues and counters give, close to the torch oracle."""
    kernel = emulated(schedule(), MODEL)
    found = after(kernel)
    session = kernel.open_session()
    kernel._place(session, 0, PROMPT, NEW)
    roles = {name: t.role for name, t in kernel.graph.tensors.items()}
    given = {name: t.clone() for name, t in session.tensors.items() if roles[name] in ("input", "weight", "state")}
    right = execute(kernel.schedule, given, iterations=NEW)
    tokens = right[kernel.graph.operands_of("advance")["generated"]][0, len(PROMPT) : len(PROMPT) + NEW]
    assert_close(found, (tokens.tolist(), right))
    return found


@pytest.mark.parametrize("seed", range(1, 20 if FULL else 3))
def test_static_queues_in_any_order(expected: Any, seed: int) -> None:
    assert_same(after(emulated(schedule(), MODEL, seed=seed)), expected)


@pytest.mark.parametrize("seed", range(20 if FULL else 3))
def test_words_give_the_bits_of_counters(expected: Any, seed: int) -> None:
    by_words = schedule(handoff="data", policy="round_robin" if seed % 2 else "locality")
    assert "layer0.qkv_proj" in by_words.handed
    assert_same(after(emulated(by_words, MODEL, seed=seed)), expected)


def test_words_without_loading_ahead(expected: Any) -> None:
    assert_same(after(emulated(schedule(handoff="data"), MODEL, prefetch=False)), expected)


@pytest.mark.parametrize("level", [1, 2, 3] if FULL else [2])
@pytest.mark.parametrize("choice", [{"handoff": "data"}, *([{}, {"mode": "dynamic"}] if FULL else [])], ids=str)
def test_recording_changes_no_bit(expected: Any, choice: dict[str, Any], level: int) -> None:
    kernel = emulated(schedule(**choice), MODEL)
    assert_same(after(kernel, level), expected)
    spans = kernel.last_profile.spans()
    assert (spans["phase"] == "execute").sum() == NEW * len(kernel.schedule.tasks)
    assert not spans["truncated"].any()


DYNAMIC: list[dict[str, Any]] = [
    {"mode": "dynamic", "policy": "per_worker", "early_push": True, "pop_ahead": 3},
    {"mode": "hybrid", "dynamic": ("attention",)},
    {"mode": "dynamic"},
    {"mode": "dynamic", "pop_ahead": 0},
    {"mode": "dynamic", "early_push": True},
    {"mode": "dynamic", "priority": "critical_path"},
    {"mode": "hybrid", "dynamic": ("attention", "advance"), "early_push": True},
    {"mode": "hybrid", "dynamic": ("linear",), "pool": "per_worker"},
]


@pytest.mark.parametrize("choice", DYNAMIC if FULL else DYNAMIC[:2], ids=str)
def test_pools_give_the_bits_of_queues(expected: Any, choice: dict[str, Any]) -> None:
    for seed in range(10 if FULL else 1):
        assert_same(after(emulated(schedule(**choice), MODEL, seed=seed)), expected)


def test_a_lost_signal_is_told() -> None:
    kernel = emulated(schedule(), MODEL)
    session = kernel.open_session()
    kernel._place(session, 0, PROMPT, 8)
    with pytest.raises(DeadlockError, match=r"layer1\.o_proj"):
        session.launch(4, drop_signals=int(kernel.schedule.tasks.tasks_of("layer1.o_proj")[1]), wait_limit_s=0.02)


def test_lost_words_are_told_by_their_task() -> None:
    kernel = emulated(schedule(handoff="data"), MODEL)
    session = kernel.open_session()
    kernel._place(session, 0, PROMPT, 8)
    lost = int(kernel.schedule.tasks.tasks_of("layer1.qkv_proj")[2])
    # Who waits for the words tells it, or who waits for that one.
    with pytest.raises(
        DeadlockError, match=r"event \d+ of layer1.qkv_proj.* dropped the signals of layer1.qkv_proj\[2\]"
    ):
        session.launch(4, drop_signals=lost, wait_limit_s=0.02)


def test_a_nan_is_no_missing_word() -> None:
    model = mk.models.random("tiny", seed=3, qk_norm=True, **SIZES)
    model.weights["embed.weight"].view(torch.int16)[PROMPT[-1]] = -1  # 0xffff, the half of a missing word
    kernel = emulated(schedule(handoff="data", model=model), model)
    session = kernel.open_session()
    kernel._place(session, 0, PROMPT[-1:], 2)
    session.launch(1, wait_limit_s=0.05)
    assert session.tensors["logits"].isnan().all()


# --- more shapes of a kernel ---


@pytest.mark.parametrize("bulk", [1, 0] if FULL else SKIPPED)
def test_sixteen_warps_and_copies_before_sm_90(bulk: int) -> None:
    """Heads of 128: sixteen consumer warps, two of which share rows of the cache."""
    model = mk.models.random("tiny", seed=5, qk_norm=True, **{**SIZES, "hidden": 256, "head_dim": 128})
    flag = f"-DMPK_BULK={bulk}"
    kernel = emulated(schedule(model=model), model, flag)
    assert kernel.schedule.tasks.plan.settings["consumer_warps"] == 16
    found = after(kernel)
    assert_close(found, on_the_cpu(model))
    for choice in ({"handoff": "data"}, {"mode": "dynamic"}):
        for seed in range(4):
            assert_same(after(emulated(schedule(model=model, **choice), model, flag, seed=seed)), found)


@pytest.mark.parametrize("batch", [2, 8, 16, mk.Dim("batch", max=4)] if FULL else SKIPPED, ids=str)
def test_several_sequences_have_the_tokens_of_each_alone(batch: Any) -> None:
    prompts = [PROMPT, [7], [200, 3, 1]][: 2 if batch == 2 else 3]
    for choice in ({}, {"mode": "dynamic"}):
        kernel = emulated(schedule(batch=batch, **choice), MODEL)
        found = [g.tokens for g in kernel.generate_batch(prompts, NEW)]
        cpu = mk.build(schedule(batch=batch, machine=mk.Machine.cpu(2)), weights=MODEL)
        assert found == [g.tokens for g in cpu.generate_batch(prompts, NEW)]


@pytest.mark.parametrize("choice", [{}, {"mode": "dynamic"}, {"handoff": "data"}] if FULL else SKIPPED, ids=str)
def test_drawn_tokens_are_those_of_the_cpu(choice: dict[str, Any]) -> None:
    expected = on_the_cpu(new=8, **WARM)
    for seed in range(3):
        assert after(emulated(schedule(**choice), MODEL, seed=seed), new=8, **WARM)[0] == expected[0]


# --- the emulator itself ---

# What goes wrong in each: two warps and a ring of one page, `at` says which.
WRONG = """
#include "mpklab/platform.h"
using namespace mpk;
extern "C" __global__ void mpk_kernel(const __grid_constant__ Launch launch) {
  __shared__ u64 landed;
  u32* seen = (u32*)launch.words;
  if (threadIdx.x == 0) ptx::barrier_init(&landed, 1);
  __syncthreads();
  bool first = threadIdx.x == 0, copies = launch.table <= 2 || launch.table == 6;
  if (first && copies) ptx::barrier_expect(&landed, 64);
  if (first && copies) ptx::bulk_copy(mpk_pages, (void*)launch.tasks, 64, &landed, 0);
  if (launch.table == 0) while (!ptx::barrier_try(&landed, 0)) {}
  if (first && launch.table != 6) seen[0] = ptx::load_shared(mpk_pages).x;
  if (launch.table == 1) while (!ptx::barrier_try(&landed, 0)) {}
  if (launch.table == 3 && first) ptx::barrier_expect(&landed, 64), ptx::barrier_arrive(&landed);
  if (launch.table == 4 && threadIdx.x < 32) ptx::named_barrier<64>(1);
  if (launch.table == 5) threadIdx.x % 2 ? __syncwarp() : (void)__ballot_sync(0xffffffffu, true);
  if (launch.table == 6 && first) ptx::bulk_copy(mpk_pages + 8, (void*)launch.tasks, 64, &landed, 0);
  if (launch.table == 7) while (ptx::load_acquire_gpu(seen + 1) == 0) {}
}
"""


def run_wrong(at: int, seed: int) -> int:
    """What the first thread saw in the page."""
    source, seen, launch = np.arange(7, 23, dtype=np.uint32), np.zeros(2, np.uint32), np.zeros(1, abi.LAUNCH)
    source = np.concatenate([source, source])[-source.ctypes.data // 4 % 4 :]  # bulk copies begin at multiples of 16
    launch["tasks"], launch["words"], launch["table"] = source.ctypes.data, seen.ctypes.data, at
    shape = {"page_bytes": 4096, "pages": 1, "consumer_warps": 1}
    kit.launch(kit.compiled(WRONG), launch, 2 if at == 0 else 1, shape, seed, patience=20_000)
    return int(seen[0]) - int(source[0])


def test_a_page_that_has_landed_is_read() -> None:
    assert all(run_wrong(0, seed) == 0 for seed in range(20))


def test_a_page_that_is_not_waited_for_is_not_there() -> None:
    assert any(run_wrong(1, seed) != 0 for seed in range(20))


@pytest.mark.parametrize(
    ("at", "told"),
    [(2, "ended with bulk copies under way"), (3, "more arrivals in a phase than the 1 it expects"),
     (4, r"every thread of the block waits for another one[^$]*warp 0 lanes [^:]*: bar.sync[^$]*warp 1 lanes 0-31: its end"),
     (5, "the lanes of a warp part ways: some are at"), (6, "should be multiples of 16"),
     (7, r"nothing happened for 20000 switches[^$]*: a load that others store to 0x")],
)  # fmt: skip
def test_what_no_gpu_would_end_is_told(at: int, told: str) -> None:
    with pytest.raises(EmulatorError, match=told):
        for seed in range(20):
            run_wrong(at, seed)


# A wait or a barrier left out of the sources: whether it is needed for counters or for words. That a linear's partial sums
# alternate between two places is not among them: 120 seeds without it gave the same bits.
LEFT_OUT = [
    ("device/context.cuh", "    if (!ptx::barrier_try(full, at.parity)) wait_long(full);", {}),
    ("device/context.cuh", "    __syncwarp();\n    if (threadIdx.x % 32 == 0) ptx::barrier_arrive(shared.ring.empty + at.page);", {}),
    ("device/worker.cuh", "if constexpr (by_words<S>) clear_next_copy();", {"handoff": "data"}),
    ("ops/attention.cuh", "      c.sync();\n      Sums sums;", {}),
    ("ops/attention.cuh", "      c.sync();\n      join(", {}),
    ("ops/attention.cuh", "          all &= first != missing && second != missing;", {"handoff": "data"}),
    ("ops/linear_row.cuh", "    if constexpr (L::SPLITS > 0) c.sync();", {}),
    ("ops/linear_row.cuh", "    c.sync();\n    return row;", {}),
    ("ops/linear_row.cuh", "      c.sync();\n      if constexpr (L::NORM) {\n        if (r == begin) {", {}),
    ("ops/linear_row.cuh", "if constexpr (by_words<S>) all &= !any_missing(x[i][j]);", {"handoff": "data"}),
]  # fmt: skip


@pytest.mark.parametrize("left_out", LEFT_OUT if FULL else SKIPPED, ids=lambda x: f"{x[0]}:{x[1].split()[0]}")
def test_what_is_left_out_of_the_sources_is_missed(
    expected: Any, left_out: tuple[str, str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, text, choice = left_out
    shutil.copytree(env.csrc_folder() / "include", tmp_path / "include")
    path = tmp_path / "include" / "mpklab" / file
    whole = path.read_text()
    assert whole.count(text) == 1
    path.write_text(whole.replace(text, text.partition("\n")[2]))  # its first line goes
    monkeypatch.setattr(env, "csrc_folder", lambda: tmp_path)
    for seed in range(10):
        try:
            assert_same(after(emulated(schedule(**choice), MODEL, "-Wno-error", seed=seed)), expected)
        except (AssertionError, EmulatorError, DeadlockError):
            return
    pytest.fail("nothing was found wrong")
