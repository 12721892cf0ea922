"""Bounds, hand-offs, load, rates, repeats: each on a schedule whose answer can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from fuzz import renumbered, rounds
from lanes import LaneClock, Span, encode
from schedules import Op, Run, make

import mpklab
from mpklab import analysis, frames
from mpklab.analysis import load
from mpklab.analysis.intervals import Union, binned
from mpklab.errors import ProfileError
from mpklab.profile import Profile

A, B = Op("a"), Op("b", after=("a",))


def by(table, key, column):
    return dict(zip(table[key].astype(object), table[column].tolist(), strict=True))


def test_unions_and_bins():
    u = Union(np.array([5, 0, 3, 20]), np.array([8, 2, 5, 21]))
    assert u.starts.tolist() == [0, 3, 20] and u.ends.tolist() == [2, 8, 21] and u.length == 8
    assert u.within(np.array([1, -5, 9]), np.array([4, 100, 20])).tolist() == [2, 8, 0]
    assert u.common(Union(np.array([1, 7]), np.array([6, 30]))) == 1 + 3 + 1 + 1
    none = Union(np.zeros(0, int), np.zeros(0, int))
    assert none.length == 0 and none.common(u) == 0 and u.common(none) == 0
    sums = binned(np.array([0, 5]), np.array([10, 15]), np.array([0.0, 5.0, 10.0, 20.0]), np.array([1.0, 2.0]))
    assert sums.tolist() == [5, 15, 10]


def test_bounds_of_a_chain_and_of_a_crowd():
    chain = make([A, B], [[[Run("a", 0, 100), Run("b", 0, 60)], []]])
    got = by(analysis.bounds(chain), "bound", "ns")
    assert got == {"path": 160, "work": 80, "measured": 160}
    assert analysis.efficiency(chain) == 1.0
    crowd = make([Op("a", tiles=4)], [[[Run("a", t, 50) for t in range(3)], [Run("a", 3, 50)]]], bytes_per_task=100.0)
    table = analysis.bounds(crowd, bandwidth_gbps=4.0)
    assert by(table, "bound", "ns") == {"work": 100, "bytes": 100, "path": 50, "measured": 150}
    assert table["binds"].tolist() == [True, False, False, False]
    assert analysis.efficiency(crowd) == pytest.approx(100 / 150)


def test_handoff_counts_only_waits_that_were_there_before_the_signal():
    ops = [A, Op("n"), Op("b", tiles=2, after=("a",))]
    queues = [[[Run("a", 0, 100, signal=4)], [Run("b", 0, 5)], [Run("n", 0, 300), Run("b", 1, 5)]]]
    row = analysis.handoff(make(ops, queues, latency=9)).iloc[0]
    assert (row["producer"], row["consumer"], row["waits"], row["waited"]) == ("a", "b", 2, 1)
    assert (row["median_ns"], row["publish_ns"], row["check_ns"]) == (9, 4, 0)


@pytest.mark.parametrize(("there", "waited"), [(90, True), (102, True), (103, True), (104, False)])
def test_handoff_counts_waits_that_began_while_the_signal_was_on_its_way(there, waited):
    queues = [[[Run("a", 0, 100, signal=4)], [Run("n", 0, there), Run("b", 0, 5)]]]
    profile = make([A, Op("n"), B], queues, latency=9)
    row = analysis.handoff(profile).iloc[0]
    assert (row["waits"], row["waited"]) == (1, int(waited))
    if waited:
        assert (row["median_ns"], row["publish_ns"]) == (9, 4)


def test_utilisation_adds_up_to_the_workers():
    profile = make([A, B], [[[Run("a", 0, 100)], [Run("b", 0, 100)]]], bytes_per_task=1000.0)
    table = analysis.utilisation(profile, bins=4)
    phases = table[["execute", "gather", "fetch", "signal", "wait", "step", "pop", "push", "other"]]
    assert phases.sum(axis=1).tolist() == [2] * 4
    assert table["execute"].tolist() == [1, 1, 1, 1] and table["wait"].tolist() == [1, 1, 0, 0]
    assert table["gbps"].tolist() == [10] * 4


def test_overlap_of_loads_and_executions():
    made = [
        Span(0, 0, "execute", 0, 0, 100),
        Span(0, 1, "load", 0, 50, 150),
        Span(1, 1, "load", 1, 0, 40),
    ]
    lanes = encode(made, 2, 2, level=3)
    profile = Profile.from_parts(lanes, 2, 2, level=3, tasks={"operator": [0, 0]})
    row = analysis.overlap(profile, "load", "execute").iloc[0]
    assert (row["a_ns"], row["b_ns"], row["both_ns"]) == (140, 100, 50)
    row = analysis.overlap(profile, "load", {"phase": ["execute"]}, within="device").iloc[0]
    assert (row["a_ns"], row["both_ns"]) == (140, 90)
    assert analysis.overlap(profile).iloc[0]["both_ns"] == 50
    with pytest.raises(ProfileError, match="did you mean 'load'"):
        analysis.overlap(profile, "loads", "execute")


def test_overlap_of_operators():
    ops = [Op("a", kind="linear"), Op("b", kind="attention")]
    profile = make(ops, [[[Run("a", 0, 100)], [Run("b", 0, 60)]]], start=[0, 70])
    row = analysis.overlap(profile).iloc[0]
    assert {row["a"], row["b"]} == {"linear", "attention"} and row["both_ns"] == 30


def test_imbalance_names_the_uneven_operator_and_the_slow_worker():
    even = [[Run("a", w, 100), Run("b", w, 40)] for w in range(4)]
    even[3] = [Run("a", 3, 180), Run("b", 3, 72)]
    ops = [Op("a", tiles=4), Op("b", tiles=4)]
    profile = make(ops, [even, even])
    table = analysis.imbalance(profile)
    assert by(table, "op", "lost_ns") == {"a": 4 * (180 - 120), "b": 4 * (72 - 48)}
    assert by(table, "op", "ratio") == {"a": 1.5, "b": 1.5}
    workers = analysis.imbalance(profile, "worker")
    assert workers["worker"].tolist()[0] == 3 and workers["slowdown"].tolist()[:2] == [1.8, 1.0]


def test_roofline_of_operators_and_over_time():
    ops = [Op("a", tiles=2), Op("b")]
    profile = make(
        ops,
        [[[Run("a", 0, 100)], [Run("a", 1, 100), Run("b", 0, 50)]]],
        bytes_per_task=1000.0,
        flops_per_task=4000.0,
        meta={"bandwidth_gbps": 40.0, "peak_tflops": 1.0},
    )
    table = analysis.roofline(profile).set_index("op")
    assert table.loc["a", "gbps"] == 20 and table.loc["a", "worker_gbps"] == 10 and table.loc["b", "gbps"] == 20
    assert table.loc["a", "intensity"] == 4 and table.loc["a", "tflops"] == pytest.approx(0.08)
    assert table.loc["a", "share"] == 0.5 and table.loc["a", "limit"] == "bytes"
    assert analysis.roofline(profile, "time", bins=3)["gbps"].tolist() == [20, 20, 20]
    assert analysis.roofline(profile, "kind")["tasks"].tolist() == [3]


def test_bytes_that_a_loader_brings_may_move_while_their_task_waits(monkeypatch):
    ops = [Op("a"), Op("b", tiles=2, after=("a",))]
    queues = [[[Run("a", 0, 100), Run("b", 0, 20)], [Run("b", 1, 50, fetch=10)]]]
    profile = make(ops, queues, bytes_per_task=600.0, meta={"bandwidth_gbps": 12.0})
    assert analysis.roofline(profile).set_index("op").loc["b", "gbps"] == 24  # none: over its execution
    monkeypatch.setattr(load, "_loaded", lambda _: np.array([False, True, True]))
    row = analysis.roofline(profile).set_index("op").loc["b"]
    assert (row["span_ns"], row["busy_ns"], row["gbps"]) == (150, 20 + 150, 8)
    assert analysis.roofline(profile).set_index("op").loc["a", "gbps"] == 6
    over = analysis.roofline(profile, "time", bins=3)["gbps"]
    assert over.tolist() == pytest.approx([4 + 6, 4 + 6, 4 + 12])
    assert analysis.utilisation(profile, bins=3)["gbps"].tolist() == over.tolist()


@pytest.mark.parametrize("name", ["h200-qwen3-8b", "h200-qwen3-0.6b"])
def test_no_operator_is_faster_than_the_memory(name):
    """Over their executions alone, o_proj's rates were up to 2.1 times the H200's."""
    profile = mpklab.recording(name)
    table = analysis.roofline(profile)
    assert 0.9 < table["share"].max() < 1.05
    over = analysis.roofline(profile, "time", bins=50)
    assert over["share"].max() < 1.05
    took = over["end_ns"].iloc[-1] - over["begin_ns"].iloc[0]
    assert over["gbps"].mean() * took == pytest.approx(table["bytes"].sum())


def test_on_a_cpu_nothing_is_loaded_ahead():
    profile = mpklab.recording("cpu-smollm2-135m")
    t = frames.tasks(profile)
    assert (load.moving(profile, t) == t["begin_ns"]).all()
    assert analysis.roofline(profile)["busy_ns"].sum() == t["dur_ns"].sum()


def test_questions_that_make_no_sense_are_refused_in_one_sentence():
    profile = make([A, B], [[[Run("a", 0, 100), Run("b", 0, 60)], []]])
    for ask, said in (
        (lambda: analysis.handoff(profile, "ops"), "handoff.*did you mean 'op'"),
        (lambda: analysis.diff(profile, "x"), "diff.*expected two profiles.*str"),
        (lambda: analysis.predicted(profile, "x"), "predicted.*expected a table of spans.*str"),
        (lambda: analysis.predicted(profile, frames.spans(profile).drop(columns="phase")), "predicted.*phase"),
        (lambda: analysis.critical_path(profile, handoff_ns=-5), "critical_path.*handoff_ns.*-5"),
        (lambda: analysis.critical_path(profile, handoff_ns=float("nan")), "critical_path.*handoff_ns.*nan"),
        (lambda: analysis.critical_path(profile, rank=5), "critical_path.*rank.*5"),
        (lambda: analysis.blame(profile, rank=5), "blame.*rank.*5"),
    ):
        with pytest.raises(ProfileError, match=said):
            ask()
    assert len(analysis.blame(profile, rank=0)) and len(analysis.critical_path(profile, rank=0))


def test_steady_state_and_iterations():
    durations = [500, 100, 104, 100, 140]
    queues = [[[Run("a", 0, dur)]] for dur in durations]
    profile = make([A], queues)
    row = analysis.steady_state(profile).iloc[0]
    assert (row["n"], row["median_ns"], row["max_ns"]) == (4, 102, 140)
    assert row["jitter_ns"] == pytest.approx(1.4826 * 2)
    assert analysis.steady_state(profile, "op", skip=0)["n"].tolist() == [5]
    assert analysis.steady_state(profile, "iteration")["dur_ns"].tolist() == durations


def test_diff_finds_what_changed_and_says_how_sure_it_is():
    def run(b_ns, n=8):
        rng = np.random.default_rng(b_ns)
        queues = [
            [[Run("a", 0, 1000 + int(rng.integers(0, 9)))], [Run("b", 0, b_ns + int(rng.integers(0, 9)))]]
            for _ in range(n)
        ]
        return make([Op("a", before=("b",)), B], queues)

    table = analysis.diff(run(500), run(650)).set_index("op")
    assert table.index[0] == "iteration" and table.index[1] == "b"
    assert abs(table.loc["b", "delta_ns"] - 150) < 8 and table.loc["b", "sure"] and not table.loc["a", "sure"]
    assert table.loc["b", "low_ns"] <= table.loc["b", "delta_ns"] <= table.loc["b", "high_ns"]
    assert table.loc["iteration", "delta_ns"] > 100
    short = analysis.diff(run(500, 1), run(650, 1), by="task").set_index("op")
    assert np.isnan(short.loc["b", "low_ns"]) and not short.loc["b", "sure"]
    other = analysis.diff(run(500), make([A], [[[Run("a", 0, 7)]]])).set_index("op")
    assert other.loc["b", "only"] == "a"


def test_iterations_that_lack_tiles_say_nothing_of_an_operators_time():
    good = rounds()
    bad = renumbered(good, 2, lambda _: 500_000)  # worker 0's tiles of one iteration of six
    a, b = (analysis.steady_state(p, "op", skip=0).set_index("op") for p in (good, bad))
    assert b["n"].to_dict() == {"a": 5, "b": 5, "c": 6} and (b["min_ns"] == a["min_ns"]).all()
    change = analysis.diff(good, bad).set_index("op")["delta_ns"]
    assert (change.drop("iteration") == 0).all()


def test_predicted_spans_against_measured_ones():
    queues = [[[Run("a", 0, 100)], [Run("b", 0, 60)]]]
    slow = [[[Run("a", 0, 150)], [Run("b", 0, 60)]]]
    table = analysis.predicted(make([A, B], queues), frames.spans(make([A, B], slow))).set_index("op")
    assert table.loc["a", "ratio"] == 1.5 and table.loc["b", "shift_ns"] == 50


def test_an_empty_recording_gives_empty_tables():
    profile = make([A, B], [[[], []]])
    for f in (
        analysis.bounds,
        analysis.handoff,
        analysis.utilisation,
        analysis.overlap,
        analysis.imbalance,
        analysis.roofline,
        analysis.steady_state,
        analysis.iterations,
        analysis.waits,
        analysis.bubbles,
    ):
        f(profile)
    analysis.diff(profile, profile)
    analysis.imbalance(profile, "worker")


def test_every_duration_has_its_error_bar():
    clocks = {w: LaneClock(w * 1000, 1.0, tick_ns=1000) for w in range(2)}
    ops = [Op("a", tiles=2), Op("b", tiles=2, after=("a",))]
    queues = [[[Run("a", 0, 900 + i), Run("b", 0, 400)], [Run("a", 1, 1250), Run("b", 1, 410)]] for i in range(5)]
    exact, profile = make(ops, queues), make(ops, queues, clocks=clocks)
    error = frames.residual(profile)
    assert error > 200 > frames.residual(exact)
    tasks, health = frames.tasks(profile), frames.health(profile)["residual_ns"]
    assert (tasks["error_ns"] > 0).all() and (tasks["error_ns"] <= tasks["worker"].map(health) * 1.4143).all()
    for table in (analysis.handoff(profile), analysis.blame(profile), analysis.steady_state(profile),
                  analysis.steady_state(profile, "op"), analysis.steady_state(profile, "iteration")):  # fmt: skip
        assert (table["error_ns"] == error).all() and len(table)
    both = analysis.diff(exact, profile)["error_ns"]
    assert (both == np.hypot(error, frames.residual(exact))).all()
    said, plain = (analysis.explain(p, gains=False) for p in (profile, exact))
    assert said["finding"].str.contains("±").any() and not plain["finding"].str.contains("wait .* ± .* for").any()
