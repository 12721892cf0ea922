"""Simulated runs of a real graph, through records and back: the analyses find what the simulator did."""

from __future__ import annotations

import numpy as np
import pytest

import mpklab as mk
from mpklab import analysis, frames
from mpklab.analysis.idle import NAMES
from mpklab.simulator import predict


@pytest.fixture(scope="module", params=["static", "dynamic"])
def simulated(request):
    model = mk.models.random("qwen3-0.6b", weights=False)
    tasks = mk.lower(model.decode_graph(batch=1, context=256, layers=2), mk.Machine.named("h200"))
    simulation = predict(mk.assign(tasks, policy="locality"), iterations=3, mode=request.param)
    return simulation, simulation.to_profile()


def test_spans_are_those_of_the_simulator(simulated):
    simulation, profile = simulated
    want, got = simulation.spans(), frames.spans(profile)
    keys = ["worker", "phase", "iteration", "task", "event", "begin_ns", "dur_ns"]
    order = lambda t: t[keys].astype({"phase": str}).sort_values(keys, ignore_index=True)  # noqa: E731
    want, got = order(want), order(got)
    assert len(want) == len(got)
    pop = got["phase"] == "pop"
    for key in keys:
        same = want[key].to_numpy() == got[key].to_numpy()
        assert same[~pop].all(), key


def test_the_recording_is_healthy_and_all_time_is_accounted_for(simulated):
    simulation, profile = simulated
    assert frames.causality(profile)["violations"].sum() == 0
    health = frames.health(profile)
    assert not health[["unmatched_begins", "unmatched_ends", "unknown", "backward", "dropped"]].any(axis=None)
    table = analysis.bubbles(profile)
    assert (table[list(NAMES)].sum(axis=1) == table["makespan_ns"]).all() and (table[list(NAMES)] >= 0).all(axis=None)
    execute = np.nansum(simulation.timeline.end - simulation.timeline.begin)
    assert abs(table["execute"].sum() - execute) < profile.n_tasks * 3
    assert table["unexplained"].sum() <= 0.005 * table["makespan_ns"].sum()
    path = analysis.blame(profile)
    assert path["dur_ns"].sum() == table["makespan_ns"].iloc[0]
    assert (path["begin_ns"].to_numpy()[1:] == path["end_ns"].to_numpy()[:-1]).all()
    assert 0 < analysis.efficiency(profile) <= 1


def test_handoffs_come_out_as_they_were_put_in(simulated):
    simulation, profile = simulated
    if simulation.schedule.mode == "dynamic":
        pytest.skip("a popped task has no wait left")
    latency = simulation.costs.handoff_ns["counter"] + simulation.costs.signal_ns
    waited = analysis.waits(profile).query("waited")
    assert np.abs(waited["latency_ns"] - latency).max() <= 2


def test_a_static_recording_is_replayed_within_a_thousandth(simulated):
    simulation, profile = simulated
    if simulation.schedule.mode == "dynamic":
        pytest.skip("what is handed out at run time is replayed by the same rules, not in the same order")
    table = analysis.what_if(profile, policy="round_robin")
    assert abs(table["gain"].iloc[1]) < 1e-3
    assert table["makespan_ns"].iloc[2] > 0
    assert analysis.explain(profile)["gain_ns"].max() > 0
