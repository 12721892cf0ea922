"""Entry files and packed tables: short, the same for equal variants, and true to the schedule."""

import numpy as np
import pytest

from mpklab import abi
from mpklab.codegen import Delay, emit, pack
from mpklab.errors import BuildError
from mpklab.machine import Machine
from mpklab.models.catalog import named
from mpklab.models.decoder import decode_graph
from mpklab.schedule import POLICIES, assign
from mpklab.tasks import choose_plan, lower


@pytest.fixture(scope="module")
def tasks():
    return lower(decode_graph(named("tiny"), context=64), Machine.cpu(3))


def test_source_is_short_and_blind_to_the_schedule(tasks):
    texts = {emit(assign(tasks, policy=p)).text for p in POLICIES}
    assert len(texts) == 1
    (text,) = texts
    assert len(text.splitlines()) <= 20 + len(tasks.variants)
    assert "decode" not in text


def test_cuda_source_names_its_settings():
    tasks = lower(decode_graph(named("tiny"), context=64), Machine.named("h200"), pages=4)
    text = emit(assign(tasks), level=2).text
    assert "run_device<Kernel, 2, 8, 32768, 4, 2, 32768>" in text


@pytest.mark.parametrize(("context", "warps"), [(512, 16), (4096, 8)])
def test_a_merge_on_its_own_leaves_a_block_eight_warps(context, warps):
    """With sixteen it spills; at 512 rows the merge is part of the next linear."""
    plan = choose_plan(decode_graph(named("qwen3-0.6b"), context=context), Machine.named("h200"))
    assert plan.settings["consumer_warps"] == warps


def test_a_delay_is_compiled_in_only_where_it_is_asked_for(tasks):
    schedule = assign(tasks)
    assert "MPK_DELAY" not in emit(schedule).text
    text = emit(schedule, delay=Delay(5000, task=7, signals=True)).text
    assert "MPK_DELAY_NS 5000" in text and "MPK_DELAYED signals" in text and "(task, worker) (task == 7u)" in text
    text = emit(schedule, delay=Delay(5000, task=(1, 2), worker=3)).text
    assert "(task, worker) (task == 1u || task == 2u) && worker == 3u" in text


@pytest.mark.parametrize("policy", POLICIES)
def test_tables_say_what_the_schedule_says(tasks, policy):
    schedule = assign(tasks, policy=policy)
    tables = pack(schedule)
    for w, queue in enumerate(schedule.queues):
        entries = tables.entries[tables.queues[w] : tables.queues[w + 1]]
        np.testing.assert_array_equal(entries["task"], queue)
    assert tables.tasks.dtype == abi.TASK
    np.testing.assert_array_equal(tables.tasks["n_waits"], np.diff(tasks.wait_first))
    given = np.bincount(tables.signals["event"], weights=tables.signals["weight"], minlength=len(tables.events))
    np.testing.assert_array_equal(given, tables.events["need"])
    steps = np.flatnonzero(tables.tasks["flags"] & abi.TaskFlag.step)
    assert steps.tolist() == [tasks.step_task]


def test_one_kernel_per_operator_runs_every_task_where_the_schedule_has_it():
    lowered = lower(decode_graph(named("tiny"), context=64), Machine.named("h200", 5), tiles={"linear": 8})
    schedule = assign(lowered, policy="zigzag")
    text = emit(schedule, per_operator=True).text
    assert text.count("__global__") == len(lowered.variants)
    tables = pack(schedule, per_operator=True)
    by_number = pack(schedule)
    assert len(tables.grids) == len(lowered.operators)
    for i, grid in enumerate(tables.grids):
        assert f"{grid.kernel}(const" in text and grid.kernel.endswith(f"_{lowered.variant_of[i]}")
        mine = range(int(lowered.first[i]), int(lowered.first[i + 1]))
        held = [[t for t in q.tolist() if t in mine] for q in schedule.queues]
        held = [tasks for tasks in held if tasks]
        assert (grid.blocks, grid.each) == (len(held), max(map(len, held)))
        rows = tables.tasks[grid.tasks_at // abi.TASK.itemsize :][: grid.blocks * grid.each].reshape(grid.blocks, -1)
        for row, tasks in zip(rows, held, strict=True):
            assert row[: len(tasks)].tobytes() == by_number.tasks[tasks].tobytes()
            assert (row[len(tasks) :]["variant"] == abi.NO_VARIANT).all()
            assert all(tuple(r["slots"]) == grid.slots for r in row[: len(tasks)])
    assert any(grid.each > 1 for grid in tables.grids) and (tables.tasks["variant"] == abi.NO_VARIANT).any()


def test_one_kernel_per_operator_needs_a_place_for_every_task():
    lowered = lower(decode_graph(named("tiny"), context=64), Machine.named("h200"))
    with pytest.raises(BuildError, match="static"):
        pack(assign(lowered, mode="dynamic"), per_operator=True)


def test_operands_stand_in_slot_order(tasks):
    tables = pack(assign(tasks))
    task = tables.tasks[tasks.tasks_of("layer0.o_proj")[0]]
    named_slots = [tables.slots[i] for i in task["slots"][:5]]
    operands = tasks.graph.operator("layer0.o_proj").operands
    assert named_slots[0] == operands["x"]
    assert named_slots[1] == operands["weight"]
    assert named_slots[2] == operands["out"]
    assert named_slots[4] == operands["residual"]
