"""How outputs are handed over: who may do it by words, what a plan keeps of it, and what the verifier refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpklab as mk
from mpklab.abi import Handoff
from mpklab.codegen import emit, pack
from mpklab.errors import LowerError, ScheduleError
from mpklab.tasks import Plan

H200 = mk.Machine.named("h200")


def graph(batch: int = 1, layers: int = 2) -> Any:
    return mk.models.random("qwen3-0.6b", layers=layers, weights=False).decode_graph(batch=batch, context=512)


def lowered(handoff: Any = None, **more: Any) -> Any:
    return mk.lower(graph(), H200, handoff=handoff, **more)


def kinds(schedule: Any) -> dict[str, set[str]]:
    """Producer → kinds of the waits for it."""
    t = schedule.tasks
    found: dict[str, set[str]] = {}
    for event, kind in zip(t.wait_event, schedule.handoff, strict=True):
        found.setdefault(t.operators[int(t.event_producer[event])].name, set()).add(Handoff(int(kind)).name)
    return found


def test_one_row_of_activations_is_handed_over_by_words() -> None:
    schedule = mk.verify(mk.assign(lowered()))
    found = kinds(schedule)
    for name in ("embed", *(f"layer1.{x}" for x in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"))):
        assert found[name] == {"data"}
    assert found["layer1.attention"] == {"counter"}  # its pieces are many words, read by everybody
    assert "layer1.attention_add" in schedule.handed


def test_what_streams_for_long_keeps_the_counter_unless_asked() -> None:
    for name in ("qwen3-1.7b", "llama-3.2-1b", "qwen3-8b"):
        large = mk.models.random(name, layers=2, weights=False).decode_graph(context=512)
        assert not mk.lower(large, H200).plan.handoffs
        assert mk.assign(mk.lower(large, H200, handoff="data")).handed


def test_several_rows_a_dim_and_a_cpu_keep_the_counter() -> None:
    assert not mk.assign(mk.lower(graph(batch=2), H200)).handed
    assert not mk.assign(mk.lower(graph(batch=mk.Dim("batch", max=4)), H200)).handed
    assert not mk.lower(graph(), mk.Machine.cpu(2)).plan.handoffs
    assert not mk.lower(graph(), mk.Machine.cpu(2), handoff="data").plan.handoffs


def test_tasks_handed_out_at_run_time_and_barriers_keep_the_counter() -> None:
    tasks = lowered()
    for schedule in (mk.assign(tasks, mode="dynamic"), mk.assign(tasks, mode="hybrid", dynamic=("attention",))):
        assert not schedule.handed and int(Handoff.data) not in schedule.handoff
    assert not mk.assign(lowered(barriers=True)).handed


def test_choices_by_name_and_by_kind() -> None:
    assert not lowered("counter").plan.handoffs
    assert set(lowered({"layer0.o_proj": "data"}).plan.handoffs) == {"layer0.o_proj"}
    but_one = lowered({"linear": "data", "layer0.o_proj": "counter"}).plan.handoffs
    assert "layer0.o_proj" not in but_one and "layer1.o_proj" in but_one


@pytest.mark.parametrize(
    ("handoff", "told"),
    [("dat", "data"), ({"layer0.o_pro": "data"}, "o_proj"), ({"layer0.attention": "data"}, "whole words"),
     ({"logits": "data"}, "whole words")],
)  # fmt: skip
def test_what_cannot_be_is_refused(handoff: Any, told: str) -> None:
    with pytest.raises(LowerError, match=told):
        lowered(handoff)


def test_odd_tiles_keep_the_counter() -> None:
    odd = {"layer0.o_proj": 7}
    plan = lowered("data", tiles=odd).plan
    assert "layer0.o_proj" not in plan.handoffs and "layer1.o_proj" in plan.handoffs
    assert not lowered(tiles=odd).plan.handoffs  # by itself it is all or nothing


def test_the_plan_keeps_the_choice() -> None:
    plan = lowered().plan
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.hash != lowered("counter").plan.hash
    assert mk.lower(graph(), H200, plan).plan == plan


def test_nobody_signals_what_words_say() -> None:
    schedule = mk.verify(mk.assign(lowered()))
    tables, t = pack(schedule), schedule.tasks
    by_words = schedule.by_words[t.operator_of]
    assert (tables.tasks["n_signals"][by_words] == 0).all()
    asked = np.unique(tables.waits["event"][tables.waits["handoff"] == int(Handoff.counter)])
    assert set(asked) <= set(tables.signals["event"])
    assert "Holds::words" in emit(schedule).text
    assert "Holds::words" not in emit(mk.assign(lowered("counter"))).text


def test_every_policy_is_proved() -> None:
    tasks = lowered()
    assert mk.verify(mk.assign(tasks, policy="round_robin")).handed
    for policy in ("zigzag", "list_scheduling"):
        mk.verify(mk.assign(tasks, policy=policy))


def test_a_reader_that_cannot_wait_for_words_is_refused() -> None:
    tasks = lowered()
    forced = replace(tasks, plan=replace(tasks.plan, handoffs={**tasks.plan.handoffs, "layer0.attention": "data"}))
    with pytest.raises(ScheduleError, match=r"layer0\.o_proj.*cannot wait for the words of its x"):
        mk.verify(mk.assign(forced))


def test_words_order_nothing_but_themselves() -> None:
    """down_proj adds what o_proj wrote. Between them stand gate_up_proj's words alone, which do not carry o_proj's."""
    one = {"layer0.gate_up_proj": "data"}
    assert mk.verify(mk.assign(lowered(one))).handed  # its own worker wrote it
    with pytest.raises(ScheduleError, match=r"race: layer0\.down_proj"):
        mk.verify(mk.assign(lowered(one), policy=shifted))


def shifted(tasks: Any, workers: int) -> Any:
    """Like locality, but half the workers have no gate_up_proj, which waits for all of o_proj by a counter, and
    down_proj's tiles stand one worker further than the slice of o_proj that they add."""
    tile = np.arange(len(tasks)) - tasks.first[tasks.operator_of]
    worker = tile * workers // np.diff(tasks.first)[tasks.operator_of]
    name = np.array([o.name for o in tasks.operators])[tasks.operator_of]
    worker = np.where(name == "layer0.gate_up_proj", worker // 2, worker)
    return np.where(name == "layer0.down_proj", (worker + 1) % workers, worker)


def test_who_ends_an_iteration_without_a_counter_gets_counters() -> None:
    """Words are used again two iterations later: each worker's last task must come before the step by counters."""

    def last_by_words(tasks: Any, workers: int) -> list[list[int]]:
        queues = [q.tolist() for q in mk.assign(tasks).queues]
        lm_head = set(tasks.tasks_of("logits"))
        moved = [t for t in queues[0] if t in lm_head]
        queues[0] = [t for t in queues[0] if t not in lm_head and t < min(lm_head)]
        queues[1] += moved + [t for t in range(min(lm_head), len(tasks)) if t not in lm_head and t not in queues[1]]
        return queues

    schedule = mk.assign(lowered(), policy=last_by_words)
    assert not schedule.handed
    mk.verify(schedule)


def test_the_conditions_are_those_of_the_device_code(tmp_path: Path) -> None:
    """Linear::row says in C++ what Linear.awaits repeats in Python."""
    device = pytest.importorskip("mpklab.device")
    pytest.importorskip("cuda.core")
    from mpklab.ops import REGISTRY, Node, TensorType

    lines = ['#include "mpklab/ops/linear.cuh"', "using namespace mpk;", "using namespace mpk::ops;"]
    rules = REGISTRY.ops["linear"]
    for warps in (8, 16):
        for k in (64, 192, 1024, 2048, 3072, 4096, 6144, 8192, 12288, 64 * 17, 64 * 33 * 16, 64 * 7 * 16, 100):
            types = {
                "x": TensorType((1, k), "bfloat16"),
                "weight": TensorType((256, k), "bfloat16"),
                "out": TensorType((1, 256), "bfloat16"),
            }
            node = Node("l", "linear", types, {**rules.attrs})
            mine = bool(rules.awaits(node, warps))
            linear = f"Linear<bf16, bf16, 256, {k}, 1, -1, 0, 0u, Epilogue::none, 0, 0, 0, bf16, 0>"
            shape = f"Shape<0, {warps}, 32768, 6, 2, 0>"
            lines.append(f'static_assert({linear}::row<{shape}> == {str(mine).lower()}, "K {k}, {warps} warps");')
    lines.append('extern "C" __global__ void nothing() {}')
    device.compile_cubin("\n".join(lines) + "\n", "sm_90a", "nvrtc", tmp_path)
