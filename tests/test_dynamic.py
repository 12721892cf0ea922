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
from boxes import random_program
from explorer import Case, Verdict
from mutants import MUTATIONS, draft_of, schedule_of
from pool_explorer import explore_pool, pool_of
from test_verifier import boxes_operator, compare, judged, own_waits  # noqa: F401

from mpklab import cli, reference
from mpklab.bench import imbalance
from mpklab.errors import DeadlockError, LowerError
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
from mpklab.verifier import Finding, verify

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


def lucky(schedule: Schedule, finding: Finding, verdict: Verdict) -> bool:
    """Refused, but in order because of who happens to be at the pool when: of that the verifier assumes nothing."""
    if finding.kind == "pool":
        return not verdict.hangs
    pairs = {(a[0], b[0]) for a, b in (verdict.races if finding.kind == "race" else verdict.late)}
    mixed = schedule.mode == "hybrid" and finding.kind in ("race", "step")
    return mixed and (finding.producer, finding.consumer) not in pairs


@pytest.mark.parametrize("mode", ["dynamic", "hybrid"])
@pytest.mark.parametrize("chunk", range(4))
def test_agrees_with_every_order_of_pops(mode: str, chunk: int) -> None:
    """Verdicts and the pairs named, on random small schedules and mutants of them; 5,000 of each mode in all when full."""
    seen: Counter[tuple[str, ...]] = Counter()
    rng = random.Random(f"{mode} {chunk}")
    cases = 0
    while cases < (1300 if FULL else 130):
        _, program = random_program(rng, most=6)
        try:
            tasks = program.lower()
        except LowerError:
            continue
        base = assign(tasks, policy=rng.choice(list(POLICIES)), workers=rng.choice((1, 2, 2, 3)))
        names = [o.name for o in tasks.operators]
        chosen, handout = rng.sample(names, rng.randint(1, len(names))), some_handout(rng)
        drafts = [("", draft_of(base))]
        for _ in range(6):
            draft, name = draft_of(base), rng.choice([m for m in MUTATIONS if mode == "hybrid" or m not in ANYWHERE])
            if name != "trust_own_worker" and MUTATIONS[name](rng, draft):
                drafts.append((name, draft))
        for name, draft in drafts:
            static = schedule_of(tasks, draft)
            made = as_dynamic(static, handout) if mode == "dynamic" else hand_out(static, chosen, handout)
            if mode == "hybrid" and rng.random() < 0.3 and (damaged := damaged_drains(rng, made)):
                name, made = f"{name} drains", damaged
            said, finding = judged(made)
            case = tables_of(made, program)
            given = [sum(row.count(e) for row in case.signals) for e in range(len(case.need))]
            verdict = explore_pool(case, pool_of(made)) if given == list(case.need) else None
            if given == list(case.need) and verdict is None:
                seen["too large",] += 1
                continue
            if finding and verdict and lucky(made, finding, verdict):
                seen["cautious",] += 1
                assert name, said
                continue
            if finding and finding.kind == "pool":
                finding = replace(finding, kind="hang")
            if finding and finding.kind == "hang" and verdict and verdict.late and not verdict.hangs:
                seen["misused",] += 1  # it hangs behind a step that came too early, where the explorer stops
                continue
            word = compare(case, verdict, said, finding)
            assert name or word == "safe", f"{made} is {word}: {said}"
            seen[word,] += 1
            cases += word not in ("counts wrong", "cautious")
    print(f"{mode} {chunk}: {cases} verdicts compared and equal;", {" ".join(k): v for k, v in sorted(seen.items())})
    assert seen["cautious",] * 8 < cases
    assert seen["safe",] and seen["racy",] and seen["hanging",]


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
