"""Studies: every combination runs, is kept, survives a kill, and can be asked questions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mpklab as mk
from mpklab import builder
from mpklab.analysis.idle import NAMES
from mpklab.simulator import Costs
from mpklab.study import rerun

MACHINE = mk.Machine.cpu(2)


def tiny(context: int = 64) -> mk.Graph:
    return mk.models.random("tiny", weights=False).decode_graph(context=context)


@pytest.fixture
def study(tmp_path: Path) -> mk.Study:
    return mk.Study(tmp_path / "runs" / "one")


def test_every_combination_and_round_is_a_row(study: mk.Study) -> None:
    table = study.sweep(tiny(), machine=MACHINE, policy=["locality", "zigzag"], workers=[1, 2], rounds=3)
    assert len(table) == 12
    assert (table.groupby(["policy", "workers"])["round"].apply(set) == {0, 1, 2}).all()
    assert table["error"].isna().all()
    assert (table["ms"] > 0).all()
    assert table["tokens_equal"].all() and table["outputs_equal"].all()
    assert table["run"].is_unique
    assert table["run"].iloc[0].startswith(table["config"].iloc[0])
    shares = table[[f"share_{name}" for name in NAMES]].sum(axis=1)
    assert np.allclose(shares, 1)
    assert ((table["efficiency"] > 0) & (table["efficiency"] <= 1.5)).all()
    pd.testing.assert_frame_equal(study.frame, mk.Study(study.folder).frame)
    # Each round takes an order of its own.
    orders = {tuple(rows.sort_values("order")["config"]) for _, rows in table.groupby("round")}
    assert len(orders) > 1


def test_modes_and_their_knobs_in_one_sweep(study: mk.Study) -> None:
    table = study.sweep(
        tiny(), machine=MACHINE, mode=["static", "dynamic"], early_push=[False, True], prefetch=[True, False], rounds=1
    )
    assert len(table) == 2 + 4, "a static schedule hands out nothing, so early_push makes no two of it"
    assert table["error"].isna().all()
    assert table["tokens_equal"].all() and table["outputs_equal"].all()


def test_other_tiles_are_another_plan(study: mk.Study) -> None:
    table = study.sweep(tiny(), machine=MACHINE, tiles=[None, {"linear": 16}], rounds=1, profile=0)
    assert table["plan"].nunique() == 2
    assert table["outputs_equal"].all(), "outputs are compared within a plan"
    assert table["tiles"].tolist().count("linear=16") == 1
    assert table[[f"share_{name}" for name in NAMES]].isna().all().all()


def test_failures_are_rows(study: mk.Study) -> None:
    def broken(tasks: mk.TaskGraph, workers: int) -> list[int]:
        raise KeyError("no such thing")

    table = study.sweep(
        tiny(), machine=MACHINE, policy=["locality", broken, "nonsense"], rounds=2, profile=0
    ).set_index("policy")
    assert table.loc["locality", "error"].isna().all()
    assert (table.loc["broken", "error"] == "KeyError: 'no such thing'").all()
    assert table.loc["nonsense", "error"].str.contains("unknown policy 'nonsense'").all()
    assert table["ms"].notna().sum() == 2
    assert "4 failed" in repr(study)
    assert study.best()["policy"] == "locality"
    assert study.summary.set_index("policy").loc["broken", "failures"] == 2


def test_schedules_of_one_plan_start_the_compiler_once(
    study: mk.Study, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[list[str]] = []
    real = builder._run_compiler

    def counted(line: list[str], *rest: object) -> str:
        starts.append(line)
        return real(line, *rest)

    monkeypatch.setattr(builder, "_run_compiler", counted)
    table = study.sweep(
        tiny(),
        machine=MACHINE,
        policy=["locality", "zigzag", "round_robin", "list_scheduling"],
        workers=[1, 2, 3],
        prefetch=[True, False],
        rounds=1,
        profile=0,
        iterations=2,
    )
    assert len(table) == 24
    assert table["error"].isna().all()
    assert len(starts) == 1


def test_only_missing_rounds_run(study: mk.Study) -> None:
    knobs = {"machine": MACHINE, "policy": ["locality", "zigzag"], "iterations": 2, "profile": 0}
    first = study.sweep(tiny(), rounds=2, **knobs)
    made: list[str] = []
    again = mk.Study(study.folder).sweep(tiny(), rounds=3, report=lambda _d, _t, row: made.append(row["run"]), **knobs)
    assert len(again) == 6
    assert len(made) == 2 and all(run.endswith("-002") for run in made)
    assert set(first["run"]) < set(again["run"])
    told: list[tuple[int, int]] = []
    study.sweep(
        tiny(), rounds=4, report=lambda done, total, _row: told.append((done, total)), **{**knobs, "policy": "zigzag"}
    )
    assert told == [(4, 4)]
    assert len(list(study.folder.glob("rows-*.jsonl"))) == 3, "each sweep has its own file"
    # Another question is another configuration.
    assert len(study.sweep(tiny(), rounds=1, **{**knobs, "iterations": 3})) == 2


SWEEP = """
import sys
import mpklab as mk
graph = mk.models.random("tiny", weights=False).decode_graph(context=64)
study = mk.Study(sys.argv[1])
study.sweep(graph, machine=mk.Machine.cpu(2), policy=["locality", "zigzag", "round_robin"], workers=[1, 2], rounds=25,
            iterations=2, report=lambda done, total, row: print(done, flush=True) or done % 10 or sys.stdin.readline())
"""


def test_a_killed_sweep_goes_on_where_it_was(study: mk.Study) -> None:
    """kill -9 at three moments; what was told stands, nothing is made twice. The sweep is let on every ten rows, so that it
    cannot end before it is killed."""
    command = [sys.executable, "-c", SWEEP, str(study.folder)]
    told = 0
    for stop in (3, 43, 93):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdin is not None
        for line in process.stdout:
            told = int(line)
            if told >= stop:
                os.kill(process.pid, signal.SIGKILL)
                break
            if told % 10 == 0:
                print(file=process.stdin, flush=True)
        process.wait()
        process.stdout.close()
        process.stdin.close()
        assert process.returncode == -signal.SIGKILL
        assert len(study.frame) >= told >= stop
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    table = study.frame
    assert len(table) == 150
    assert (table.groupby("config")["round"].apply(sorted).apply(tuple) == tuple(range(25))).all()
    lines = sum(len(p.read_text().splitlines()) for p in study.folder.glob("rows-*.jsonl"))
    assert lines <= 150 + 3


def test_half_a_line_is_no_row(study: mk.Study) -> None:
    study.sweep(tiny(), machine=MACHINE, rounds=3, profile=0, iterations=2)
    file = next(study.folder.glob("rows-*.jsonl"))
    file.write_text(file.read_text()[:-40])
    assert len(study.frame) == 2
    table = mk.Study(study.folder).sweep(tiny(), machine=MACHINE, rounds=3, profile=0, iterations=2)
    assert sorted(table["round"]) == [0, 1, 2]


def test_folders_of_two_machines_can_be_put_together(study: mk.Study, tmp_path: Path) -> None:
    other = mk.Study(tmp_path / "other")
    for s in (study, other):
        s.sweep(tiny(), machine=MACHINE, rounds=2, profile=0, iterations=2)
    for file in other.folder.glob("rows-*.jsonl"):
        (study.folder / file.name).write_bytes(file.read_bytes())
    table = study.frame
    assert len(table) == 4
    assert table["place"].nunique() == 2
    assert table["run"].nunique() == 2, "the same question has the same name everywhere"


def test_predictions_come_in_the_same_form(study: mk.Study) -> None:
    begin = time.process_time()
    graph = mk.models.random("qwen3-0.6b", weights=False).decode_graph(context=256, layers=4)
    gpus = [mk.Machine.named("h200"), mk.Machine.named("h200", workers=66)]
    table = study.sweep(
        graph,
        machine=gpus,
        mode=["static", "dynamic"],
        prefetch=[True, False],
        rounds=20,
        simulate=True,
        bandwidth_gbps=4550,
    )
    assert time.process_time() - begin < 30
    assert len(table) == 8, "a prediction is made once"
    assert (table["how"] == "predicted").all() and table["error"].isna().all()
    ms = table[table["mode"] == "static"].set_index(["machine", "prefetch"])["ms"]
    assert ms["h200×132", True] < ms["h200×132", False]
    best = study.best(how="predicted")
    assert best["machine"] == "h200×132" and best["mode"] == "static"
    profile = study.open(table["run"].iloc[0])
    assert profile.stamp["simulated"]
    slow = study.sweep(
        graph, machine=gpus[0], simulate=True, costs=Costs.of(gpus[0]).replaced(handoff_ns={"counter": 1e5})
    )
    assert slow["ms"].iloc[0] > 2 * best["ms"], "other costs are another configuration"


def test_comparing_and_opening(study: mk.Study) -> None:
    study.sweep(tiny(), machine=MACHINE, policy=["locality", "zigzag"], workers=[1, 2], rounds=5, iterations=2)
    found = study.compare({"policy": "locality", "workers": 2}, {"policy": "zigzag", "workers": 2})
    table = study.frame
    medians = table[table["workers"] == 2].groupby("policy")["ms"].median()
    assert found.value == pytest.approx(medians["locality"] / medians["zigzag"])
    assert found.low <= found.value <= found.high
    assert study.compare(found.a, found.b) == found
    with pytest.raises(mk.MpkError, match="stands for 2 configurations"):
        study.compare({"policy": "locality"}, found.b)
    with pytest.raises(mk.MpkError, match="no configuration 'nothing'"):
        study.compare("nothing", found.b)
    profile = study.open(found.a)
    assert profile.meta["policy"] == "locality" and profile.level == 1
    assert study.open(f"{found.a}-000").meta == profile.meta
    with pytest.raises(mk.ProfileError, match="no profile of"):
        study.open(f"{found.a}-001")
    assert study.best(policy="zigzag")["policy"] == "zigzag"


def test_a_model_brings_its_own_weights(study: mk.Study) -> None:
    model = mk.models.random("tiny", seed=3)
    table = study.sweep(model, machine=MACHINE, context=64, policy=["locality", "zigzag"], rounds=1, profile=0)
    assert table["error"].isna().all() and table["tokens_equal"].all()
    other = study.sweep(tiny(), machine=MACHINE, rounds=1, profile=0)
    assert other["tokens"].iloc[0] != table["tokens"].iloc[0]


def test_slips_are_answered(study: mk.Study) -> None:
    with pytest.raises(mk.MpkError, match="did you mean 'policy'"):
        study.sweep(tiny(), machine=MACHINE, polcy=["locality"])
    with pytest.raises(mk.MpkError, match="empty list"):
        study.sweep(tiny(), machine=MACHINE, policy=[])
    with pytest.raises(mk.MpkError, match="at least one round"):
        study.sweep(tiny(), machine=MACHINE, rounds=0)
    with pytest.raises(mk.MpkError, match="keep must be"):
        study.sweep(tiny(), machine=MACHINE, keep="some")
    with pytest.raises(mk.MpkError, match="context: a Graph has decided"):
        study.sweep(tiny(), machine=MACHINE, context=3)
    with pytest.raises(mk.MpkError, match="holds no measured result"):
        study.best()
    assert study.frame.empty and "0 rows" in repr(study)


def test_rows_name_no_host_and_no_user(study: mk.Study) -> None:
    study.sweep(tiny(), machine=MACHINE, rounds=1, profile=0)
    text = "".join(p.read_text() for p in study.folder.glob("rows-*.jsonl"))
    import getpass
    import socket

    assert socket.gethostname() not in text
    assert f'"{getpass.getuser()}"' not in text
    assert json.loads(text)["device"]


def test_a_profile_can_be_run_again() -> None:
    kernel = mk.build(mk.assign(mk.lower(tiny(), MACHINE), policy="zigzag", workers=2))
    from mpklab.timing import Prepared

    profile = Prepared(kernel).launch(6, 2).profile
    assert profile is not None
    table = rerun(profile)
    assert table["field"].iloc[0] == "ms" and table["now"].iloc[0] > 0
    rows = table.set_index("field")
    assert not rows.loc[["hashes.graph", "hashes.plan", "hashes.schedule", "cpu.model"], "differs"].any()
    assert not rows.loc["created", "differs"]
    again = table.attrs["profile"]
    assert again.n_tasks == profile.n_tasks and again.meta["iterations"] == 6
    kernel.prefetch = False
    assert rerun(Prepared(kernel).launch(6, 2).profile).attrs["profile"].meta["prefetch"] is False
    changed = {**profile.stamp, "versions": {**profile.stamp["versions"], "numpy": "1.0"}}
    moved = mk.Profile(**{**{f: getattr(profile, f) for f in mk.Profile.__dataclass_fields__}, "stamp": changed})
    table = rerun(moved)
    assert table["field"].iloc[1] == "versions.numpy" and bool(table["differs"].iloc[1])
