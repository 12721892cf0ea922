"""`mpklab profile`: each subcommand answers in text and in JSON."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
from lanes import LaneClock
from schedules import Op, Run, make

from mpklab import frames, profile_cli
from mpklab.analysis import bars, bubbles
from mpklab.errors import ProfileError
from mpklab.profile import Profile


@pytest.fixture
def files(tmp_path):
    ops = [Op("a", before=("b",)), Op("b", after=("a",))]

    def record(b):
        return make(ops, [[[Run("a", 0, 100 + i % 3)], [Run("b", 0, b + i % 2)]] for i in range(6)], latency=9)

    return [str(record(b).save(tmp_path / f"{b}.mpkprof")) for b in (40, 90)], tmp_path


def run(*words):
    parser = argparse.ArgumentParser()
    profile_cli.add_arguments(parser)
    return profile_cli.main(parser.parse_args([str(w) for w in words]))


def test_show_says_what_cost_most(files, capsys):
    (one, two), _ = files
    assert run("show", one, two) == 0
    text = capsys.readouterr().out
    assert "what cost most" in text and "0 of 11 edges violate causality" in text and "path" in text
    run("show", one, "--json")
    data = json.loads(capsys.readouterr().out)
    assert 0 < data["efficiency"] <= 1 and data["findings"][0]["cost_ns"] > 0
    assert f"makespan: {data['makespan_ns']} ± {data['error_ns']:.0f} ns" in text
    run("blame", one)
    assert f"{data['makespan_ns']} ± {data['error_ns']:.0f} ns from first to last" in capsys.readouterr().out


def test_tables_and_their_json(files, capsys):
    (one, two), _ = files
    for words in (
        ("health", one),
        ("bubbles", one),
        ("bubbles", one, "--by", "op"),
        ("bubbles", one, "--by", "worker", "--ns"),
        ("blame", one),
        ("blame", one, "--path", "--top", 3),
        ("diff", one, two),
    ):
        assert run(*words) == 0
        assert capsys.readouterr().out.strip()
        assert run(*words, "--json") == 0
        assert json.loads(capsys.readouterr().out)
    run("bubbles", one, "--json")
    got = json.loads(capsys.readouterr().out)[0]
    assert got["execute"] == bubbles(Profile.load(one), "all")["execute"].iloc[0]
    run("diff", one, two, "--json")
    rows = {r["op"]: r for r in json.loads(capsys.readouterr().out)}
    assert abs(rows["b"]["delta_ns"] - 50) < 1 and rows["b"]["sure"]


def test_export_writes_what_the_suffix_says(files, capsys):
    (one, _), folder = files
    assert run("export", one, "-o", folder / "x.pftrace", "--select", 1) == 0
    assert (folder / "x.pftrace").stat().st_size > 500 and "wrote" in capsys.readouterr().out


def test_a_table_that_is_cut_says_so(capsys):
    assert run("health", "h200-qwen3-0.6b", "--top", "3") == 0
    said = capsys.readouterr().out
    assert "… and 261 more rows: --top 0 prints all" in said and len(said.splitlines()) < 9
    assert run("diff", "h200-qwen3-0.6b", "h200-qwen3-0.6b", "--top", "0") == 0
    assert "more rows" not in capsys.readouterr().out


def test_a_name_that_is_no_recording_s_is_answered_with_those_that_are():
    with pytest.raises(ProfileError, match=r"neither a file nor a recording's name; .*h200-qwen3-8b"):
        run("show", "h200-qwen")


def test_an_import_says_what_it_left_out(tmp_path, capsys):
    events = [{"ph": "X", "ts": 0, "dur": 1, "name": "a"}, {"ph": "X", "ts": "?", "name": "b"}]
    (tmp_path / "t.json").write_text(json.dumps(events))
    assert run("import", tmp_path / "t.json", "--from", "chrome", "-o", tmp_path / "t") == 0
    assert "1: events that could not be read" in capsys.readouterr().out


def test_import_reads_what_other_tools_wrote(files, capsys):
    (one, _), folder = files
    assert run("export", one, "-o", folder / "x.json") == 0
    assert run("import", folder / "x.json", "--from", "chrome", "-o", folder / "back.mpkprof") == 0
    assert "wrote" in capsys.readouterr().out
    assert run("show", folder / "back.mpkprof") == 0
    with pytest.raises(ProfileError, match="belongs to"):
        run("import", folder / "x.json", "--from", "chrome", "--task-graph", "t.json", "-o", folder / "y.mpkprof")
    (folder / "names.json").write_text("[1")
    with pytest.raises(ProfileError, match="expected a JSON list"):
        run("import", "b.npy", "--from", "flashinfer", "--names", folder / "names.json", "-o", folder / "y.mpkprof")


def test_sums_say_how_far_the_clocks_may_be_off(tmp_path, capsys):
    ops = [Op("layer0.a", tiles=2, before=("layer0.b",)), Op("layer0.b", tiles=2, after=("layer0.a",))]
    turns = [
        [[Run("layer0.a", 0, 900 + i), Run("layer0.b", 0, 400)], [Run("layer0.a", 1, 1250), Run("layer0.b", 1, 410)]]
        for i in range(6)
    ]
    coarse = {w: LaneClock(w * 1000, 1.0, tick_ns=500) for w in range(2)}
    profile = make(ops, turns, latency=9, clocks=coarse, meta={"bandwidth_gbps": 1000.0}, bytes_per_task=1e3)
    name, error = str(profile.save(tmp_path / "p.mpkprof")), frames.residual(profile)

    def told(*words):
        run(*words, name, "--json")
        return json.loads(capsys.readouterr().out)

    run("bubbles", name)
    assert capsys.readouterr().out.splitlines()[0].split() == ["class", "ns", "±", "share", "meaning"]
    (whole,) = told("bubbles")
    runs = frames.tasks(profile)["error_ns"].astype(float)
    assert whole["error_ns"]["execute"] == pytest.approx(np.sqrt((runs**2).sum()), rel=0.5)
    waits = frames.query(profile, "phase == 'wait' and dur_ns > 0")
    assert 0 < whole["error_ns"]["producer"] <= 1.01 * error * len(waits)
    assert whole["error_ns"]["makespan_ns"] == pytest.approx(2 * error)
    for by in ("worker", "op", "cause", "family", "cause_family", "layer", "iteration"):
        rows = told("bubbles", "--by", by)
        for row in rows:
            assert all((row["error_ns"][name] > 0) == (row[name] > 0) for name in bars.NAMES), by
        squares = sum(row["error_ns"]["execute"] ** 2 for row in rows)
        if not by.startswith("cause"):
            assert np.sqrt(squares) == pytest.approx(whole["error_ns"]["execute"], rel=0.5), by
    assert [row["error_ns"]["makespan_ns"] for row in told("bubbles", "--by", "worker")] == pytest.approx([error] * 2)
    run("bubbles", name, "--by", "worker", "--ns")
    assert f" ± {int(float(f'{error:.2g}'))}\n" in capsys.readouterr().out

    run("blame", name)
    assert capsys.readouterr().out.splitlines()[0].split() == ["segment", "family", "dur_ns", "±", "times", "share"]
    for row in told("blame"):
        assert row["error_ns"] == pytest.approx(error * np.sqrt(row["times"]))
    bounds = {row["bound"]: row for row in told("show")["bounds"]}
    assert bounds["measured"]["error_ns"] == pytest.approx(error / 6) and bounds["bytes"]["error_ns"] is None
    assert 0 < bounds["work"]["error_ns"] < bounds["path"]["error_ns"] < 6 * error
