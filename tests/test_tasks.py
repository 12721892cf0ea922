"""Lowering: tilings, boxes that meet, edges, events, plans."""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import adversary
import numpy as np
import pytest
from boxes import MACHINE, STARTS, Axis, Piece, Program, Touch, random_program, registered

import mpklab as mk
from mpklab.abi import MAX_WAITS
from mpklab.bench import compile as compile_bench
from mpklab.codegen import pack
from mpklab.dims import Dim
from mpklab.errors import GraphError, LowerError
from mpklab.graph import GraphBuilder
from mpklab.machine import Machine
from mpklab.models.catalog import named
from mpklab.models.config import Config
from mpklab.models.decoder import decode_graph
from mpklab.ops import Box, Tiling
from mpklab.schedule import assign
from mpklab.tasks import Plan, TaskGraph, choose_plan, dim_values, load, lower, overlap_ranges
from mpklab.verifier import verify

TINY = Config("tiny", vocab=96, hidden=32, layers=4, heads=4, kv_heads=2, head_dim=8, intermediate=64, max_position=64)


@pytest.fixture(autouse=True)
def boxes_operator() -> Iterator[None]:
    with registered():
        yield


def tiny(workers: int, layers: int = 2, gpu: bool = False, **keywords: object) -> TaskGraph:
    machine = Machine.named("h200", workers) if gpu else Machine.cpu(workers)
    return lower(decode_graph(TINY, context=64, layers=layers), machine, **keywords)  # type: ignore[arg-type]


def arrays(tasks: TaskGraph) -> dict[str, list]:
    """Everything that lowering worked out, comparable."""
    names = (
        "first", "words", "flops", "bytes", "variant_of", "event_producer", "event_begin", "event_end", "wait_first",
        "wait_event", "wait_lag", "signal_first", "signal_event",
    )  # fmt: skip
    return {n: getattr(tasks, n).tolist() for n in names}


# --- tilings ---------------------------------------------------------------------------------------------------------


def test_a_ragged_split_gives_every_worker_a_tile() -> None:
    cuts = Tiling(parts=132, granule=2).bounds(4096)
    assert len(cuts) == 133 and (cuts[0], cuts[-1]) == (0, 4096)
    assert set(np.diff(cuts)) == {30, 32} and not (cuts % 2).any()
    assert Tiling(parts=3).bounds(10).tolist() == [0, 3, 6, 10]
    assert Tiling(parts=8, granule=4).bounds(10).tolist() == [0, 4, 8, 10]
    assert Tiling(size=4).bounds(10).tolist() == [0, 4, 8, 10]
    assert Tiling(size=16).bounds(10).tolist() == [0, 10]


def test_one_split_keeps_a_slice_on_its_worker() -> None:
    """embedding, o_proj and down_proj cut the residual alike, so the locality policy gives a slice to one worker."""
    for machine in (Machine.named("h200"), Machine.cpu(3)):
        tasks = lower(decode_graph(named("qwen3-0.6b"), layers=2, context=1024), machine)
        schedule = assign(tasks, policy="locality")
        alike = [
            tasks.tasks_of(n)
            for n in ("embed", "layer0.o_proj", "layer0.down_proj", "layer1.o_proj", "layer1.down_proj")
        ]
        for other in alike[1:]:
            assert (tasks.words[other, :2] == tasks.words[alike[0], :2]).all()
            assert (schedule.worker[other] == schedule.worker[alike[0]]).all()
        assert len(alike[0]) == machine.workers


def test_tiles_by_hand() -> None:
    tasks = tiny(3, tiles={"linear": 64, "layer1.o_proj": 16, "embedding": 8})
    words = {
        n: tasks.words[tasks.tasks_of(n), :2].tolist() for n in ("layer0.qkv_proj", "layer1.o_proj", "embed", "logits")
    }
    assert words == {
        "layer0.qkv_proj": [[0, 64]],
        "layer1.o_proj": [[0, 16], [16, 32]],
        "embed": [[0, 8], [8, 16], [16, 24], [24, 32]],
        "logits": [[0, 64], [64, 96]],
    }
    assert tasks.plan.tilings["layer1.o_proj"] == Tiling(size=16)
    verify(assign(tasks))


@pytest.mark.parametrize(
    "tiles, says",
    [
        ({"linaer": 64}, "no operator or kind 'linaer': did you mean 'linear'"),
        ({"linear": 0}, "'linear' needs a positive tile size, not 0"),
        ({"linear": 2.5}, "needs a positive tile size, not 2.5"),
        ({"attention": 2}, r"layer0.attention \(attention\) is cut by head and by the pass split_attention"),
        ({"advance": 2}, r"advance \(advance\) is cut into one tile"),
    ],
)
def test_wrong_tiles_are_refused(tiles: dict[str, int], says: str) -> None:
    with pytest.raises(LowerError, match=says):
        tiny(2, tiles=tiles)


# --- boxes that meet -------------------------------------------------------------------------------------------------


def _axis(rng: random.Random, tiles: int) -> Axis:
    kind = rng.choice(("span", "at", "below", "split"))
    if kind == "split":
        return Axis(kind, tuple((i, tiles) for i in range(tiles)))
    low = {"span": (0, 8), "at": (-1, 2), "below": (0, 2)}[kind]
    bounds = []
    for _ in range(tiles):
        lo = rng.randint(*low)
        bounds.append((lo, lo + rng.randint(0, 4)) if kind == "span" else (lo, rng.randint(lo, 3)))
    return Axis(kind, tuple(bounds))


def _meet(p: tuple[Axis, ...], c: tuple[Axis, ...], i: int, j: int, q: int, delta: int) -> bool:
    return all(set(a.cells(i, q)) & set(b.cells(j, q + delta)) for a, b in zip(p, c, strict=True))


def test_ranges_hold_every_tile_that_can_meet() -> None:
    """Against boxes expanded to cells at many positions: never too narrow; exact where the position plays no part."""
    rng = random.Random(3)
    exact = 0
    for _ in range(1500):
        p_tiles, c_tiles, delta, axes = rng.randint(1, 4), rng.randint(1, 4), rng.choice((0, 1)), rng.choice((1, 2))
        p, c = (tuple(_axis(rng, tiles) for _ in range(axes)) for tiles in (p_tiles, c_tiles))
        p_box, c_box = (Box("x", tuple(a.range() for a in x)) for x in (p, c))
        begin, end = overlap_ranges(p_box, p_tiles, c_box, c_tiles, delta)
        for j in range(c_tiles):
            met = {i for i in range(p_tiles) for q in range(12) if _meet(p, c, i, j, q, delta)}
            found = set(range(begin[j], end[j]))
            assert met <= found, (p, c, j, delta)
            if all(a.kind == "span" for a in (*p, *c)):
                assert found == (set(range(min(met), max(met) + 1)) if met else set())
                exact += 1
    assert exact > 100


@pytest.mark.parametrize(
    "p, c, delta, meets",
    [
        (("at", 0, 1), ("below", 0, 0), 0, False),  # [pos, pos+1) and [0, pos)
        (("at", 0, 1), ("below", 0, 1), 0, True),  # … and [0, pos+1)
        (("at", 0, 1), ("at", 0, 1), 0, True),
        (("at", 0, 1), ("at", 0, 1), 1, False),  # this row and the next
        (("at", 0, 1), ("below", 0, 0), 1, True),  # what was appended is below the next position
        (("at", 0, 1), ("at", -1, 0), 1, True),  # the next iteration looks back by one
        (("at", 0, 1), ("at", 1, 2), 1, False),
        (("split", 0, 3), ("split", 1, 3), 0, False),  # pieces of one extent
        (("split", 1, 3), ("split", 1, 3), 0, True),
        (("split", 0, 3), ("split", 1, 3), 1, True),  # cuts move with the position
        (("split", 0, 2), ("split", 1, 3), 0, True),  # other cuts
        (("span", 0, 4), ("span", 4, 8), 0, False),
        (("span", 0, 4), ("span", 3, 3), 0, False),  # nothing
    ],
)
def test_positions_and_splits(p: tuple[str, int, int], c: tuple[str, int, int], delta: int, meets: bool) -> None:
    boxes = [Box("x", (Axis(kind, ((lo, hi),)).range(),)) for kind, lo, hi in (p, c)]
    begin, end = overlap_ranges(boxes[0], 1, boxes[1], 1, delta)
    assert (end[0] > begin[0]) == meets


# --- edges -----------------------------------------------------------------------------------------------------------


def expanded(tasks: TaskGraph) -> set[tuple[int, int, int]]:
    """Every single edge: (producer task, consumer task, lag)."""
    found = set()
    for e in tasks.edges:
        p, c = int(tasks.first[e.producer]), int(tasks.first[e.consumer])
        for tile, (begin, end) in enumerate(zip(e.begin.tolist(), e.end.tolist(), strict=True)):
            found |= {(p + i, c + tile, e.lag) for i in range(begin, end)}
    return found


def ordered_by_events(tasks: TaskGraph) -> list[list[int]]:
    """Two iterations without any queue: per epoch and task, the bits of the instances that must have ended before."""
    n = len(tasks)
    before = [[0] * n for _ in range(2)]
    signalled = [[0] * len(tasks.need) for _ in range(2)]
    opened = 0
    for epoch in range(2):
        for task in range(n):  # operators stand in order, so this order follows every wait
            bits = opened
            for i in range(tasks.wait_first[task], tasks.wait_first[task + 1]):
                if epoch >= tasks.wait_lag[i]:
                    bits |= signalled[epoch - tasks.wait_lag[i]][tasks.wait_event[i]]
            before[epoch][task] = bits
            for event in tasks.signal_event[tasks.signal_first[task] : tasks.signal_first[task + 1]]:
                signalled[epoch][event] |= bits | 1 << (epoch * n + task)
        if tasks.step_task >= 0:
            opened = before[epoch][tasks.step_task] | 1 << (epoch * n + tasks.step_task)
    return before


def no_edge_is_lost(tasks: TaskGraph) -> None:
    before = ordered_by_events(tasks)
    for p, c, lag in expanded(tasks):
        if p != c:
            assert before[lag][c] >> p & 1, f"{tasks.task_name(p)} → {tasks.task_name(c)}, lag {lag}, is not kept"
    if tasks.step_task >= 0:
        assert before[0][tasks.step_task] == (1 << len(tasks)) - 1 - (1 << tasks.step_task)


def test_edges_are_what_the_cells_say() -> None:
    """On random graphs: every pair of tasks that touch a cell has its edge, and none of the edges is made up."""
    rng = random.Random(5)
    for _ in range(300):
        _, program = random_program(rng)
        try:
            tasks = program.lower()
        except LowerError:
            continue
        operator = program.operator
        static = all(a.kind == "span" for p in program.pieces for t in p.touches for a in t.axes)
        pairs = {
            (p, c, lag)
            for q in STARTS
            for lag in (0, 1)
            for first, second in [(program.accesses(q), program.accesses(q + lag * program.step))]
            for p in range(len(operator))
            for c in range(len(operator))
            if (lag or operator[p] < operator[c]) and first[p].conflicts(second[c])
        }
        assert pairs <= expanded(tasks)
        if static:  # one range for each consumer tile: producers between two that it meets are in it
            for p, c, lag in expanded(tasks) - pairs:
                tiles = [x for x in range(len(operator)) if operator[x] == operator[p]]
                assert any((x, c, lag) in pairs for x in tiles if x < p) and any(
                    (x, c, lag) in pairs for x in tiles if x > p
                )
        no_edge_is_lost(tasks)


@pytest.mark.parametrize(
    "workers, layers, gpu", [(1, 2, False), (2, 2, False), (3, 4, False), (8, 2, False), (16, 2, True)]
)
def test_no_edge_of_a_decoder_is_lost(workers: int, layers: int, gpu: bool) -> None:
    tasks = tiny(workers, layers, gpu)
    no_edge_is_lost(tasks)
    kinds = {(e.kind, e.lag) for e in tasks.edges}
    assert {("raw", 0), ("war", 1), ("waw", 1), ("raw", 1)} <= kinds


@pytest.mark.parametrize("workers, gpu", [(3, False), (8, False), (16, True)])
def test_every_value_read_has_its_edge(workers: int, gpu: bool) -> None:
    """Whoever wrote what a task reads in sequential execution is among its edges."""
    tasks = tiny(workers, 2, gpu)
    memory = adversary.memory_of(tasks, epochs=3, position=7)
    known = expanded(tasks)
    n = len(tasks)
    seen = 0
    for epoch in range(3):
        for task in range(n):
            for writer in np.unique(memory.expected[epoch][task]):
                lag = epoch - int(writer) // n
                if writer >= 0 and lag <= 1 and (int(writer) % n, lag) != (task, 1):
                    assert (int(writer) % n, task, lag) in known
                    seen += 1
    assert seen > n


# --- events ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers, gpu", [(1, False), (3, False), (8, False), (16, True), (132, True)])
def test_needs_and_limits(workers: int, gpu: bool) -> None:
    tasks = tiny(workers, 2, gpu)
    assert (np.bincount(tasks.signal_event, minlength=len(tasks.need)) == tasks.need).all()
    assert (np.bincount(tasks.wait_event, minlength=len(tasks.need)) > 0).all(), "an event that nobody waits for"
    assert 1 <= np.diff(tasks.wait_first).max() <= MAX_WAITS
    assert np.diff(tasks.signal_first).max() <= MAX_WAITS
    assert not tasks.wait_lag.any(), "with a step, nothing waits for the last iteration"
    for event in range(len(tasks.need)):
        at = np.flatnonzero(tasks.signal_event == event)
        signallers = np.searchsorted(tasks.signal_first, at, "right") - 1
        base = tasks.first[tasks.event_producer[event]]
        assert signallers.tolist() == list(range(base + tasks.event_begin[event], base + tasks.event_end[event]))


def test_consumers_of_equal_ranges_share_an_event() -> None:
    tasks = tiny(8, 1)
    down = tasks.tasks_of("layer0.down_proj")
    waits = {tuple(tasks.wait_event[tasks.wait_first[t] : tasks.wait_first[t + 1]].tolist()) for t in down}
    assert len(waits) == 1 and len(waits.pop()) == 1, "all tiles wait for all of gate_up, which implies the rest"


def spread(touches: dict[str, tuple[tuple[int, int], ...]], writes: str) -> Piece:
    return Piece(
        len(touches[writes]),
        tuple(Touch(n, n == writes, (Axis("span", bounds),)) for n, bounds in touches.items()),
    )


def test_too_many_signals_become_a_coarser_event() -> None:
    """Ten consumers with ten ranges around tile 5 of ten: exact events would cost it ten signals."""
    cells = tuple((i, i + 1) for i in range(10))
    ranges = tuple((i // 2, min(10, 6 + (i + 1) // 2)) for i in range(10))
    step = Piece(1, (Touch("token", True, (Axis("span", ((0, 1),)),)),), step=True)
    program = Program((spread({"x": cells}, "x"), spread({"x": ranges, "y": cells}, "y"), step))
    tasks = program.lower()
    assert np.diff(tasks.signal_first).max() <= MAX_WAITS
    x = np.flatnonzero(tasks.event_producer == 0)
    assert [(tasks.event_begin[e], tasks.event_end[e]) for e in x] == [(0, 10)]
    no_edge_is_lost(tasks)
    verify(assign(tasks))


def test_too_many_waits_become_fewer() -> None:
    """A consumer that reads ten pieces far apart waits for one range around them; nine producers are too many."""
    step = Piece(1, (Touch("token", True, (Axis("span", ((0, 1),)),)),), step=True)
    writers = [spread({f"x{i}": ((0, 1),)}, f"x{i}") for i in range(10)]
    reader = Piece(1, tuple(Touch(f"x{i}", False, (Axis("span", ((0, 1),)),)) for i in range(7)))
    tasks = Program((*writers[:7], reader, step)).lower()
    assert np.diff(tasks.wait_first).max() == 7
    only = [tuple((0, int(tile == 2 * i)) for tile in range(20)) for i in range(10)]
    source = Piece(20, tuple(Touch(f"x{i}", True, (Axis("span", bounds),)) for i, bounds in enumerate(only)))
    apart = Piece(1, tuple(Touch(f"x{i}", False, (Axis("span", ((0, 1),)),)) for i in range(10)))
    tasks = Program((source, apart, step)).lower()
    assert np.diff(tasks.wait_first)[tasks.tasks_of("op1")[0]] == 1
    no_edge_is_lost(tasks)
    with pytest.raises(LowerError, match="a task would wait for 9 events; 8 are possible"):
        Program((*writers[:9], step)).lower()  # the step itself must follow nine operators that nobody reads


def test_tiles_of_one_operator_must_not_write_the_same_place() -> None:
    program = Program((spread({"x": ((0, 3), (5, 6), (2, 4))}, "x"),))
    with pytest.raises(LowerError, match=r"op0: tiles 0 and 2 both write x; .* must be disjoint"):
        program.lower()


def test_the_step_comes_last_and_alone() -> None:
    step = Piece(1, (Touch("token", True, (Axis("span", ((0, 1),)),)),), step=True)
    with pytest.raises(LowerError, match="op0 opens the next iteration, so op1 cannot come after it"):
        Program((step, spread({"x": ((0, 1),)}, "x"))).lower()
    with pytest.raises(LowerError, match="a graph may have one step operator"):
        Program((step, step)).lower()


# --- without a step --------------------------------------------------------------------------------------------------


def test_lag_one_waits_that_others_imply_are_dropped() -> None:
    """x → y → x: the overwrite of x waits for its reader alone, not also for the last write of x."""
    one = ((0, 1),)
    tasks = Program((spread({"x": one}, "x"), spread({"x": one, "y": one}, "y"))).lower()
    kinds = {(e.producer, e.consumer, e.kind, e.lag) for e in tasks.edges}
    assert (0, 0, "waw", 1) in kinds and (1, 0, "war", 1) in kinds
    waits = [
        (int(tasks.event_producer[e]), int(lag))
        for e, lag in zip(tasks.wait_event[: tasks.wait_first[1]], tasks.wait_lag, strict=False)
    ]
    assert waits == [(1, 1)]
    no_edge_is_lost(tasks)


# --- plans and files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", [Machine.cpu(3), Machine.named("h200")], ids=["cpu", "h200"])
def test_a_plan_replays(machine: Machine) -> None:
    graph = decode_graph(TINY, context=64, layers=2)
    tasks = lower(graph, machine, tiles={"layer1.o_proj": 16}, pages=4)
    plan = Plan.from_json(json.loads(json.dumps(tasks.plan.to_json())))
    assert plan == tasks.plan and plan.hash == tasks.plan.hash
    assert plan.settings == {**choose_plan(graph, machine, {"layer1.o_proj": 16}).settings, "pages": 4}
    again = lower(graph, machine, plan)
    assert arrays(again) == arrays(tasks)
    assert again.graph.hash == tasks.graph.hash and again.variants == tasks.variants
    assert tasks.graph.parent is not None


def test_a_task_graph_can_be_saved(tmp_path: Path) -> None:
    tasks = tiny(3)
    tasks.save(tmp_path / "tasks.npz")
    again = load(tmp_path / "tasks.npz")
    assert arrays(again) == arrays(tasks) and again.plan == tasks.plan
    (tmp_path / "other").write_bytes(b"nothing")
    with pytest.raises(LowerError, match="is not a saved task graph"):
        load(tmp_path / "other")


@pytest.mark.parametrize(
    ("batch", "context", "pieces", "fused"),
    [(1, 528, 8, True), (1, 4112, 16, False), (2, 528, 8, False), (8, 528, 2, False)],
)
def test_gpu_plans_join_few_pieces_of_one_row_only_where_they_are_read(
    batch: int, context: int, pieces: int, fused: bool
) -> None:
    """Elsewhere attention_merge stands on its own, in at most one tile a worker."""
    graph = decode_graph(replace(named("qwen3-8b"), layers=1), batch=batch, context=context)
    machine = Machine.named("h200")
    plan = choose_plan(graph, machine)
    assert f"split_attention:{pieces}:16" in plan.passes
    assert ("fuse_merge" in plan.passes) == fused
    assert (plan.settings["l2_bytes"] > 0) == (batch == 1)
    tasks = lower(graph, machine)
    merges = sum(tasks.operators[i].op == "attention_merge" for i in tasks.operator_of)
    assert (merges == 0) if fused else (0 < merges <= machine.workers)


def test_wrong_plans_are_refused() -> None:
    graph = decode_graph(TINY, context=64, layers=1)
    plan = choose_plan(graph, MACHINE)
    with pytest.raises(LowerError, match="give either a plan, or tiles and passes"):
        lower(graph, MACHINE, plan, tiles={"linear": 8})
    with pytest.raises(LowerError, match=r"the plan has no tiling for operator 'layer1\."):
        lower(decode_graph(TINY, context=64, layers=2), MACHINE, plan)
    for data in ({}, {"passes": [], "tilings": {"a": {"size": 1, "colour": 2}}, "settings": {}}):
        with pytest.raises(LowerError, match="not a plan"):
            Plan.from_json(data)
    with pytest.raises(GraphError, match="unknown pass"):
        lower(graph, MACHINE, passes=("fuse_everything",))


def test_a_batch_may_be_a_dim() -> None:
    """Boxes reach to the maximum, so one task graph serves every size. Alone, the context is cut for a batch of one."""
    batch = Dim("batch", max=4)
    tasks = lower(decode_graph(TINY, batch=batch, context=64, layers=1), Machine.cpu(3))
    fixed = lower(decode_graph(TINY, batch=4, context=64, layers=1), Machine.cpu(3), passes=tasks.plan.passes)
    one = choose_plan(decode_graph(TINY, context=64, layers=1), Machine.cpu(3))
    assert tasks.plan.passes == one.passes
    assert tasks.words.tolist() == fixed.words.tolist() and tasks.need.tolist() == fixed.need.tolist()
    verify(assign(tasks))
    assert dim_values(tasks.graph, None) == (4,) and dim_values(tasks.graph, {"batch": 2}) == (2,)
    for given, says in (
        ({"batch": 5}, "batch must be from 1 to 4, not 5"),
        ({"tokens": 1}, r"unknown dims \['tokens'\]"),
    ):
        with pytest.raises(LowerError, match=says):
            dim_values(tasks.graph, given)


def test_looking_at_tasks() -> None:
    tasks = tiny(3)
    assert tasks.task_name(tasks.tasks_of("layer1.o_proj")[2]) == "layer1.o_proj[2]"
    with pytest.raises(LowerError, match=r"no operator 'layer1.oproj': did you mean 'layer1.o_proj'"):
        tasks.tasks_of("layer1.oproj")
    task = tasks.tasks_of("layer0.down_proj")[1]
    sources = {(e.kind, e.lag, e.tensor): list(r) for e, r in tasks.predecessors(task)}
    assert sources["raw", 0, "layer0.silu_mul"] == list(tasks.tasks_of("layer0.gate_up_proj"))
    table = tasks.to_pandas()
    assert (
        len(table) == len(tasks) and table.loc[task, "operator"] == "layer0.down_proj" and table.loc[task, "tile"] == 1
    )
    assert table["waits"].sum() == len(tasks.wait_event)
    assert f"{len(tasks)} tasks" in str(tasks)


@pytest.mark.parametrize("workers, gpu", [(2, False), (16, True)])
def test_barriers_put_operators_one_after_the_other(workers: int, gpu: bool) -> None:
    tasks = tiny(workers, 2, gpu, barriers=True)
    for i in range(len(tasks.operators)):
        for t in range(int(tasks.first[i]), int(tasks.first[i + 1])):
            events = tasks.wait_event[tasks.wait_first[t] : tasks.wait_first[t + 1]]
            assert tasks.event_producer[events].tolist() == ([i - 1] if i else [])
    assert (tasks.need == np.diff(tasks.first)[:-1]).all()
    for policy in ("locality", "zigzag"):
        verify(assign(tasks, policy=policy))
    again = lower(tasks.graph.parent or tasks.graph, tasks.machine, plan=Plan.from_json(tasks.plan.to_json()))
    assert arrays(again)["wait_event"] == arrays(tasks)["wait_event"]
    assert tasks.plan.hash != tiny(workers, 2, gpu).plan.hash


def test_barriers_without_a_step_hold_between_iterations() -> None:
    """Random programs, whose iterations overlap unless something keeps them apart."""
    for seed in range(40):
        plain = random_program(random.Random(seed))[1].lower()
        tasks = lower(plain.graph, plain.machine, plain.plan, barriers=True)
        verify(assign(tasks))
        assert tasks.step_task >= 0 or tasks.wait_lag.any()


def test_no_step_no_tasks_no_problem() -> None:
    g = GraphBuilder("one")
    g.linear("up", x=g.input("x", (1, 8)), weight=g.weight("w", (8, 8)), role="output")
    tasks = lower(g.build(), replace(MACHINE, workers=2))
    assert tasks.step_task == -1 and len(tasks) == 2 and {(e.kind, e.lag) for e in tasks.edges} == {("waw", 1)}
    verify(assign(tasks))


def test_qwen3_8b_is_lowered_verified_and_packed_in_time() -> None:
    """Seconds of one core; `mpklab bench compile` prints them."""
    graph = decode_graph(named("qwen3-8b"), context=4096)
    begin = time.process_time()
    tasks = lower(graph, Machine.named("h200"))
    pack(verify(assign(tasks)))
    seconds = time.process_time() - begin
    assert len(tasks) > 20_000 and sum(e.count for e in tasks.edges) > 3_000_000
    assert seconds < 3, f"{seconds:.2f} s"


def test_bench_compile_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    compile_bench.add_arguments(parser)
    line = f"--model tiny --machine rtx4090 --context 64 --most 1000 --rounds 1 --json {tmp_path / 'bench.json'}"
    assert compile_bench.main(parser.parse_args(line.split())) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:2] == ["what", "tasks"] and printed[1].startswith("tiny, 128 workers")
    data = json.loads((tmp_path / "bench.json").read_text())
    assert {"lower_s", "assign_s", "verify_s", "pack_s", "edges"} <= set(data["rows"][0]) and "versions" in data[
        "stamp"
    ]


def test_why_names_the_boxes_and_the_event() -> None:
    graph = mk.models.random("tiny", weights=False).decode_graph(context=32)
    tasks = mk.lower(graph, mk.Machine.cpu(2))
    told = tasks.why("layer0.o_proj[1]")
    assert len(told) == len(list(tasks.predecessors(tasks.tasks_of("layer0.o_proj")[1])))
    row = told[(told["kind"] == "raw") & (told["iteration"] == "this") & (told["event"].notna())].iloc[0]
    assert row["because"] == "reads what they write" and row["producers"].startswith("layer0.attention[0] and ")
    begin, end = tasks.wait_first[tasks.tasks_of("layer0.o_proj")[1] :][:2]
    assert row["event"] in tasks.wait_event[begin:end]
    size = tasks.graph.tensors["layer0.attention_add"].shape[1]
    box = told[told["kind"] == "waw"].iloc[0]["its_box"]
    assert box == f"0:1, {size // 2}:{size}"
    assert (told["event"].isna()).any(), "some dependence is implied by the others"
    assert len(tasks.why(0)) == len(list(tasks.predecessors(0)))
    with pytest.raises(mk.LowerError, match="has the tiles 0 to 1"):
        tasks.why("layer0.o_proj[2]")
    with pytest.raises(mk.LowerError, match="no task 9999"):
        tasks.why(9999)
