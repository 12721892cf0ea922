"""Tasks handed out at run time: the same bits as static queues, verdicts against every order of pops, no hang.

MPKLAB_TEST_FULL=1 runs the whole of what a share is run of otherwise; -rP prints the counts.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from boxes import Axis, Piece, Program, Touch, random_program
from explorer import Case
from mutants import MUTATIONS, draft_of, schedule_of
from pool_explorer import explore_pool, pool_of
from test_verifier import boxes_operator, compare, judged, own_waits  # noqa: F401

from mpklab import cli, reach, reference
from mpklab.bench import imbalance
from mpklab.errors import DeadlockError, LowerError, ScheduleError
from mpklab.frames import tasks as task_table
from mpklab.graph import Graph, Operator, Tensor
from mpklab.machine import Machine
from mpklab.models.catalog import named
from mpklab.models.config import Config
from mpklab.models.decoder import decode_graph
from mpklab.ops import REGISTRY, Tiling
from mpklab.reference.execute import TORCH_DTYPES
from mpklab.run import build
from mpklab.schedule import POLICIES, POOLS, PRIORITIES, Drain, Handout, Schedule, assign, hand_out
from mpklab.tasks import Plan, TaskGraph, lower
from mpklab.verifier import verify

FULL = os.environ.get("MPKLAB_TEST_FULL") == "1"
ANYWHERE = ("swap_neighbours", "swap_tasks", "move_task", "drop_and_move", "trust_own_worker")  # of queues


def some_handout(rng: random.Random) -> Handout:
    return Handout(rng.choice(POOLS), rng.random() < 0.5, rng.choice((0, 0, 1)), rng.choice(PRIORITIES))


def as_dynamic(static: Schedule, handout: Handout) -> Schedule:
    """All its tasks handed out, their homes where they stood."""
    nowhere = np.full(len(static.tasks), -1, np.int64)
    drains = ((Drain(0),),) * static.workers
    return replace(
        static, mode="dynamic", worker=nowhere, position=nowhere, handout=handout, home=static.worker, drains=drains
    )


def damaged_drains(rng: random.Random, schedule: Schedule) -> Schedule | None:
    """A drain less, earlier, later, or until another event."""
    places = [(w, i) for w, row in enumerate(schedule.drains) for i in range(len(row) - 1)]
    if not places:
        return None
    w, i = rng.choice(places)
    row = list(schedule.drains[w])
    kind = rng.choice(("drop", "move", "event"))
    if kind == "drop":
        del row[i]
    elif kind == "move":
        row[i] = Drain(rng.randint(0, row[-1].position), row[i].event)
    else:
        row[i] = Drain(row[i].position, rng.randrange(len(schedule.tasks.need)))
    row[:-1] = sorted(row[:-1], key=lambda d: d.position)
    return replace(schedule, drains=(*schedule.drains[:w], tuple(row), *schedule.drains[w + 1 :]))


def tables_of(schedule: Schedule, program: object) -> Case:
    draft, own = draft_of(schedule), own_waits(schedule)
    waits = tuple(tuple((e, lag, (t, i) in own) for i, (e, lag) in enumerate(row)) for t, row in enumerate(draft.waits))
    return Case(
        (), program.operator, waits, tuple(map(tuple, draft.signals)), tuple(draft.need), schedule.tasks.step_task,
        program.memories(),
    )  # fmt: skip


def anyhow(rng: random.Random, base: Schedule, handout: Handout) -> Schedule:
    """A schedule that no policy would make: any task of the pool, drains anywhere, until anything."""
    tasks, workers, pooled = base.tasks, base.workers, np.array([rng.random() < 0.5 for _ in range(len(base.tasks))])
    home, position, drains = np.array([rng.randrange(workers) for _ in pooled]), np.full(len(tasks), -1), []
    for w in range(workers):
        queue = [t for t in range(len(tasks)) if home[t] == w and not pooled[t]]
        if rng.random() < 0.2:
            rng.shuffle(queue)
        position[queue] = np.arange(len(queue))
        row = [
            Drain(rng.randint(0, len(queue)), rng.randrange(len(tasks.need)))
            for _ in range(rng.choice((0, 0, 1, 1, 2)))
        ]
        drains.append((*sorted(row, key=lambda d: d.position), Drain(len(queue))))
    worker, home = np.where(pooled, -1, home), np.where(pooled, home, -1)
    return Schedule(tasks, "hybrid", "anyhow", workers, worker, position, handout, home, tuple(drains))


@pytest.mark.parametrize("early_push", [False, True])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("mode", ["dynamic", "hybrid", "anyhow"])
def test_agrees_with_every_order_of_pops(mode: str, pool: str, early_push: bool) -> None:
    """Verdicts and the pairs named, on random small schedules and mutants of them; 5,000 of each when full."""
    seen: Counter[str] = Counter()
    rng = random.Random(f"{mode} {pool} {early_push}")
    cases = 0
    while cases < (5000 if FULL else 100):
        _, program = random_program(rng, most=5 if mode == "anyhow" else 6)
        try:
            tasks = program.lower()
        except LowerError:
            continue
        base = assign(tasks, policy=rng.choice(list(POLICIES)), workers=rng.choice((1, 2, 2, 3, 3, 4)))
        names = [o.name for o in tasks.operators]
        chosen = rng.sample(names, rng.randint(1, len(names)))
        handout = Handout(pool, early_push, rng.choice((0, 0, 1)), rng.choice(PRIORITIES))
        drafts = [("", draft_of(base))]
        for _ in range(6):
            draft, name = draft_of(base), rng.choice([m for m in MUTATIONS if mode == "hybrid" or m not in ANYWHERE])
            if name != "trust_own_worker" and MUTATIONS[name](rng, draft):
                drafts.append((name, draft))
        for name, draft in drafts:
            static = schedule_of(tasks, draft)
            if mode == "dynamic":
                made = as_dynamic(static, handout)
            elif mode == "hybrid":
                made = hand_out(static, chosen, handout)
            else:
                made, name = anyhow(rng, static, handout), f"{name} anyhow"
            if mode == "hybrid" and rng.random() < 0.3 and (damaged := damaged_drains(rng, made)):
                name, made = f"{name} drains", damaged
            said, finding = judged(made)
            case = tables_of(made, program)
            given = [sum(row.count(e) for row in case.signals) for e in range(len(case.need))]
            verdict = explore_pool(case, pool_of(made), limit=4000)
            if verdict is None:
                seen["too large"] += 1
                continue
            if finding and finding.kind == "pool":
                finding = replace(finding, kind="hang")
            if finding and finding.kind == "hang" and verdict.late and not verdict.hangs:
                word = "misused"  # it hangs behind a step that came too early, where the explorer stops
            else:
                word = compare(case, verdict, said, finding)
            assert name or word == "safe", f"{made} is {word}: {said}"
            seen[word] += 1
            seen["refused" if finding else "accepted"] += given == list(case.need)
            seen["not safe" if verdict.name != "safe" else "harmless"] += given == list(case.need)
            cases += word != "counts wrong"
    print(
        f"{mode} {pool}{' early push' * early_push}: of {cases} the verifier accepts {seen['accepted']} and refuses "
        f"{seen['refused']}; in every order {seen['harmless']} are harmless, in some {seen['not safe']} are not; {dict(seen)}"
    )
    assert seen["refused"] - seen["not safe"] == seen["cautious"] <= cases / 1000
    assert seen["safe"] and seen["racy"] and seen["hanging"]


def tasks_with(*waits: tuple[int, ...]) -> TaskGraph:
    """One-tile operators op0, op1, …, each of which reads what these others wrote and writes a tensor of its own."""
    one = (Axis("span", ((0, 1),)),)
    pieces = [
        Piece(1, (Touch(f"t{i}", True, one), *(Touch(f"t{j}", False, one) for j in row))) for i, row in enumerate(waits)
    ]
    return Program(tuple(pieces)).lower()


def hybrid(tasks: TaskGraph, pool: str, rows: list[list[int | Drain]], home: dict[int, int]) -> Schedule:
    """Queues of task ids and drains; `home` lists the tasks that are handed out."""
    worker, position, homes = np.full((3, len(tasks)), -1)
    drains = []
    for w, row in enumerate(rows):
        queue = [x for x in row if not isinstance(x, Drain)]
        worker[queue], position[queue] = w, np.arange(len(queue))
        drains.append((*(x for x in row if isinstance(x, Drain)), Drain(len(queue))))
    homes[list(home)] = list(home.values())
    return Schedule(tasks, "hybrid", "test", len(rows), worker, position, Handout(pool), homes, tuple(drains))


def test_who_stands_outside_a_drain_may_do_so_while_another_serves_the_pool() -> None:
    tasks = tasks_with((), (0,), (0,))
    verify(hybrid(tasks, "central", [[1], []], {0: 0, 2: 0}))  # worker 1 is always at the pool
    with pytest.raises(ScheduleError, match=r"may hang where nobody pops early: op1\[0\] .* and op2|; op2") as caught:
        verify(hybrid(tasks, "central", [[1], [2]], {0: 0}))
    assert "give worker 0 a drain before op1[0]: Drain(0, 0)" in str(caught.value)
    verify(hybrid(tasks, "central", [[Drain(0, 0), 1], [2]], {0: 0}))


def test_rings_whose_workers_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker waits for a task that only the other may run: neither of the two tasks alone would do harm."""
    tasks = tasks_with((), (), (1,), (0,), (1,))
    verify(hybrid(tasks, "per_worker", [[2], [], []], {0: 0, 1: 1, 3: 1, 4: 2}))
    with pytest.raises(
        ScheduleError, match=r"op3\[0\] \(worker 1, position 0\) waits for .* cannot be proven"
    ) as caught:
        verify(hybrid(tasks, "per_worker", [[2], [3], []], {0: 0, 1: 1, 4: 2}))
    assert "give worker 1 a drain before op3[0]: Drain(0, 0)" in str(caught.value)
    verify(hybrid(tasks, "per_worker", [[2], [Drain(0, 0), 3], []], {0: 0, 1: 1, 4: 2}))
    verify(hybrid(tasks, "per_worker", [[Drain(0, 1), 2], [3], []], {0: 0, 1: 1, 4: 2}))
    # Worker 1 comes to its place after op1 has ended, so the two never stand there together.
    apart = hybrid(tasks, "per_worker", [[2], [Drain(0, 4), 3], []], {0: 0, 1: 1, 4: 2})
    verify(apart)
    monkeypatch.setattr(reach, "TRIALS", 0)
    with pytest.raises(ScheduleError, match="cannot be proven"):  # too many paths to look at
        verify(replace(apart))


def test_a_task_of_the_pool_comes_after_what_ends_before_every_drain() -> None:
    """op1 overwrites what op0 reads, and waits for nothing: only where the drains stand keeps it behind."""
    one = (Axis("span", ((0, 1),)),)
    read, write = (Piece(1, (Touch("t", writes, one), Touch(f"own{writes}", True, one))) for writes in (False, True))
    lowered = Program((read, write)).lower()
    draft = draft_of(assign(lowered))
    draft.waits[1] = []
    tasks = schedule_of(lowered, draft).tasks
    verify(hybrid(tasks, "central", [[0]], {1: 0}))
    verify(hybrid(tasks, "per_worker", [[0], []], {1: 0}))
    for pool, rows, home in (
        ("central", [[0], []], 0),
        ("central", [[Drain(0, 1), 0]], 0),
        ("per_worker", [[0], []], 1),
    ):
        with pytest.raises(ScheduleError, match=r"race: op1\[0\] \(of the pool\) overwrites t") as caught:
            verify(hybrid(tasks, pool, rows, {1: home}))
        assert "let op1[0] wait for event 0, which op0[0] signals" in str(caught.value)


def test_a_circle_is_told_link_by_link() -> None:
    tasks = tasks_with((), (0,), (), (2,))
    with pytest.raises(ScheduleError, match="the schedule would hang: 4 tasks can never start") as caught:
        verify(hybrid(tasks, "central", [[Drain(0, 3), 0], [1, 2]], {3: 0}))
    for link in (
        "op0[0] (worker 0, position 0) comes after the drain until event 3 of op3[0]",
        "op3[0] (of the pool) waits for event 2 of op2[0]",
        "op2[0] (worker 1, position 1) stands behind op1[0]",
        "op1[0] (worker 1, position 0) waits for event 0 of op0[0]",
    ):
        assert link in str(caught.value)
    assert "before op0[0] let worker 0 drain until an event that does not come after it" in str(caught.value)
    with pytest.raises(ScheduleError, match=re.escape("queue op1[0] before op2[0]")):
        verify(hybrid(tasks_with((), (), (1,)), "central", [[2, 1], []], {0: 0}))


# --- random graphs: the same bits ------------------------------------------------------------------------------------

WIDTH, CONTEXT = 24, 32


def random_graph(rng: random.Random, step: bool) -> Graph:
    """Sums, norms and linears over a few buffers that are read and overwritten at will; all are state.

    The first three operators are one of each kind, so that equal kernels serve all graphs.
    """
    names = [f"x{i}" for i in range(rng.randint(3, 6))]
    tensors = {n: Tensor(n, (1, WIDTH), "float32", "state") for n in names}
    tensors |= {
        "gain": Tensor("gain", (WIDTH,), "float32", "weight"),
        "matrix": Tensor("matrix", (WIDTH, WIDTH), "float32", "weight"),
    }
    operators = []
    for i in range(rng.randint(4, 14)):
        kind = ("add", "rms_norm", "linear")[i] if i < 3 else rng.choice(("add", "add", "rms_norm", "linear"))
        x, out = rng.sample(names, 2)
        operands = {
            "add": {"a": x, "b": rng.choice([n for n in names if n != out]), "out": out},
            "rms_norm": {"x": x, "weight": "gain", "out": out},
            "linear": {"x": x, "weight": "matrix", "out": out},
        }[kind]
        operators.append(Operator(f"op{i}", kind, operands, dict(REGISTRY.ops[kind].attrs)))
    if step:
        counts = {
            "next": "input",
            "eos": "input",
            "limit": "input",
            "token": "state",
            "position": "state",
            "done": "state",
        }
        tensors |= {n: Tensor(n, (1,), "int32", role) for n, role in counts.items()}
        tensors["generated"] = Tensor("generated", (1, CONTEXT), "int32", "output")
        operands = {n: n for n in ("eos", "limit", "token", "position", "done", "generated")}
        operators.append(Operator("advance", "advance", {"next_token": "next", **operands}, {"context": CONTEXT}))
    return Graph("random", tensors, tuple(operators))


def random_tasks(rng: random.Random, graph: Graph, workers: int) -> TaskGraph | None:
    tilings = {
        o.name: Tiling(parts=1 if o.op in ("rms_norm", "advance") else rng.randint(1, 6)) for o in graph.operators
    }
    try:
        return lower(graph, Machine.cpu(workers), Plan((), tilings))
    except LowerError:
        return None


def some_schedule(rng: random.Random, tasks: TaskGraph, workers: int) -> Schedule:
    base = assign(tasks, policy=rng.choice(list(POLICIES)), workers=workers)
    if rng.random() < 0.5:
        return as_dynamic(base, some_handout(rng))
    names = [o.name for o in tasks.operators]
    return hand_out(base, rng.sample(names, rng.randint(1, len(names))), some_handout(rng))


def values(step: bool, iterations: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    given = {"gain": torch.rand(WIDTH, generator=g), "matrix": torch.randn(WIDTH, WIDTH, generator=g) / 5}
    given |= {"x0": torch.randn(1, WIDTH, generator=g), "x1": torch.randn(1, WIDTH, generator=g)}
    if step:
        counts = {"next": 7, "eos": -1, "limit": iterations, "token": 1, "position": 0, "done": 0}
        given |= {n: torch.tensor([v], dtype=torch.int32) for n, v in counts.items()}
    return given


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit, NaN and all."""
    return all(torch.equal(a[n].contiguous().view(torch.uint8), b[n].contiguous().view(torch.uint8)) for n in a)


@pytest.mark.parametrize("chunk", range(4))
def test_random_graphs_give_the_same_bits(chunk: int) -> None:
    """Random graphs, modes and seeds, on 1, 2, 3 and 8 workers against one worker's queue, and the oracle against
    itself; 1,000 in all when full. No hang, no wrong bit."""
    rng = random.Random(chunk)
    modes: Counter[str] = Counter()
    done = 0
    while done < (250 if FULL else 15):
        step, workers, iterations = rng.random() < 0.5, rng.choice((1, 2, 3, 8)), rng.randint(1, 5)
        graph = random_graph(rng, step)
        tasks = random_tasks(rng, graph, workers)
        if tasks is None:
            continue
        given = values(step, iterations)
        state = {n: v for n, v in given.items() if graph.tensors[n].role == "state"}
        one = build(assign(tasks, workers=1)).run(
            {**given, **{n: v.clone() for n, v in state.items()}}, iterations=iterations
        )
        oracle = reference.execute(one_queue(tasks), given, iterations=iterations) if done % 3 == 0 else None
        for _ in range(2):
            schedule = verify(some_schedule(rng, tasks, workers))
            level = rng.choice((0, 0, 2))
            found = build(schedule).run(
                {**given, **{n: v.clone() for n, v in state.items()}},
                iterations=iterations,
                profile=level,
                wait_limit_s=10,
            )
            assert same(one.outputs, found.outputs), f"{schedule}: other bits"
            if oracle is not None:
                assert same(
                    oracle, reference.execute(schedule, given, iterations=iterations, seed=rng.randrange(1 << 30))
                )
            modes[f"{schedule.mode} on {workers}"] += 1
        done += 1
    print(dict(modes))


def one_queue(tasks: TaskGraph) -> Schedule:
    return verify(assign(tasks, workers=1))


TINY = Config(
    "tiny", vocab=96, hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, intermediate=64, max_position=64
)  # fmt: skip


@cache
def decoder(workers: int) -> TaskGraph:
    return lower(decode_graph(TINY, context=64), Machine.cpu(workers))


MODES = [
    {"mode": "dynamic"},
    {"mode": "dynamic", "policy": "per_worker", "early_push": True, "pop_ahead": 1},
    {"mode": "dynamic", "policy": "zigzag", "priority": "critical_path"},
    {"mode": "hybrid", "dynamic": ("attention",)},
    {"mode": "hybrid", "dynamic": ("linear",), "pool": "per_worker", "early_push": True},
]


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_decoders_give_the_same_tokens(workers: int) -> None:
    """A decode step's every output and state, bit for bit as from static queues, until the step says stop."""
    tasks = decoder(workers)
    g = torch.Generator().manual_seed(1)
    given: dict[str, torch.Tensor] = {}
    for name, x in tasks.graph.tensors.items():
        if x.role == "weight":
            given[name] = (torch.randn(x.type.sizes, generator=g) / 4).to(TORCH_DTYPES[x.dtype])
    names = tasks.graph.operands_of("advance")
    counts = {"eos": -1, "limit": 12, "token": 3, "position": 0, "done": 0}

    def run(schedule: Schedule) -> dict[str, torch.Tensor]:
        state = {
            names[k]: torch.full(tasks.graph.tensors[names[k]].type.sizes, v, dtype=torch.int32)
            for k, v in counts.items()
        }
        return build(schedule).run({**given, **state}, iterations=100, profile=2).outputs

    expected = run(assign(tasks))
    assert int(expected[names["position"]][0]) == 11 and len(set(expected[names["generated"]][0, 1:12].tolist())) > 1
    for choice in MODES:
        assert same(expected, run(assign(tasks, **choice))), choice


def test_a_large_model_is_proved_fast() -> None:
    """Seconds of one core; `mpklab bench compile` prints those of static schedules."""
    tasks = lower(decode_graph(named("qwen3-8b")), Machine.named("h200"))
    for choice in ({"mode": "dynamic"}, {"mode": "hybrid", "dynamic": ("attention",)}):
        begin = time.process_time()
        verify(assign(tasks, **choice))
        seconds = time.process_time() - begin
        print(choice, f"{len(tasks)} tasks in {seconds:.2f} s")
        assert seconds < 10


# --- faults and imbalance --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", MODES, ids=str)
def test_a_dropped_signal_is_found_by_idle_workers(choice: dict) -> None:
    """Whoever waits: the message names the event that lags behind and who should have signalled it."""
    rng = random.Random(3)
    tasks = None
    while tasks is None:
        tasks = random_tasks(rng, random_graph(rng, False), 3)
    kernel = build(assign(tasks, **{**choice, **({"dynamic": ("linear",)} if choice["mode"] == "hybrid" else {})}))
    task = next(int(t) for t in tasks.tasks_of("op0") if tasks.signal_first[t] < tasks.signal_first[t + 1])
    with pytest.raises(DeadlockError, match=r"event \d+ of op0.*; the test hook dropped the signals of op0"):
        kernel.run(values(False, 1), iterations=2, drop_signals=task, wait_limit_s=1)


@pytest.fixture(scope="module")
def planted() -> imbalance.Planted:
    return imbalance.plant(Machine.cpu(2), late_ns=1_000_000)


def test_a_planted_imbalance_is_foretold(planted: imbalance.Planted) -> None:
    """How much handing out wins is what `mpklab bench imbalance` measures; here, what no busy machine can change."""
    assert planted.said_ns["round robin"] > 1.5 * planted.said_ns["dynamic"]
    results, ran = {}, {}
    for name, prepared in planted.kernels.items():
        profile = prepared.launch(6, 1).profile
        results[name] = {k: v.clone() for k, v in prepared.results().items()}
        ran[name] = table = task_table(profile)
        for _, one in table.groupby("iteration"):
            assert sorted(one["task"]) == list(range(16))
        late = table["task"].isin(planted.slow)
        assert late.sum() == 6 * 8 and table.loc[late, "dur_ns"].min() >= 0.99 * planted.late_ns
    assert same(results["round robin"], results["dynamic"])
    at = ran["round robin"]
    assert (at["worker"] == at["task"] % 2).all() and set(planted.slow % 2) == {0}  # one worker has all of them


def test_the_bench_of_the_imbalance_prints_both_ratios(planted, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(imbalance, "plant", lambda machine: planted)
    assert cli.main(["bench", "imbalance", "--rounds", "2", "--iterations", "2", "--json", str(tmp_path / "x")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"round robin / dynamic: predicted [\d.]+, measured [\d.]+ \[[\d.]+, [\d.]+\]", said), said
    assert len(json.loads((tmp_path / "x").read_text())["samples"]["ms"]) == 4
