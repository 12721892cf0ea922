"""Simulated runs of a real graph, through records and back: the analyses find what the simulator did."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from schedules import Op, Run, make

import mpklab as mk
from mpklab import analysis, frames, recipe
from mpklab.abi import Handoff
from mpklab.analysis.idle import NAMES
from mpklab.analysis.observed import observe
from mpklab.analysis.replay import measured
from mpklab.analysis.streams import RING
from mpklab.bench.record import estimate
from mpklab.frames.tables import operator_columns
from mpklab.schedule import Handout
from mpklab.simulator import Costs, predict


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
    w, costs = analysis.waits(profile), simulation.costs
    for name, words in (("counter", False), ("data", True)):
        latency = costs.handoff_ns[name] + costs.signal_ns
        waited = w[w["waited"] & (w["words"] == words)]
        assert len(waited) and np.abs(waited["latency_ns"] - latency).max() <= 2


def test_each_kind_of_handoff_is_replayed_with_its_own_figure(simulated):
    simulation, profile = simulated
    if simulation.schedule.mode == "dynamic":
        pytest.skip("events are counted there")
    m = measured(profile)
    assert (m.program.handoff == simulation.timeline.program.handoff).all()
    assert {int(Handoff.data), int(Handoff.counter)} <= set(m.program.handoff.tolist())
    for name in ("counter", "data"):
        assert m.costs.handoff_ns[name] == pytest.approx(simulation.costs.handoff_ns[name], rel=0.01)
    slow = m.costs.replaced(handoff_ns={"data": m.costs.handoff_ns["data"] + 1000})
    steps = 9 * simulation.timeline.iterations  # one after the other: embed to qkv_proj, to attention …, to logits
    assert m.run(costs=slow) - m.run() == pytest.approx(1000 * steps, rel=0.05)
    moved = m.program.as_static([list(q) for q in m.program.queues])
    assert (moved.handoff == m.program.handoff).all()
    assert int(Handoff.data) not in m.program.as_dynamic(4).handoff


def test_a_task_that_waits_for_words_alone_has_one_record_of_them(simulated):
    simulation, profile = simulated
    if simulation.schedule.mode == "dynamic":
        pytest.skip("events are counted there")
    w, t = analysis.waits(profile), profile.waits
    of_attention = w[operator_columns(profile, w["task"].to_numpy())["kind"] == "attention"]
    assert (np.diff(t["wait_begin"])[of_attention["task"]] == 3).all()
    assert of_attention["words"].all() and not of_attention.duplicated(["iteration", "task"]).any()
    seen = observe(profile)[0]
    row, task = of_attention["iteration"].to_numpy() - seen.iterations[0], of_attention["task"].to_numpy()
    assert (of_attention["happened_ns"] == seen.ready[row, task]).all()  # the last of its three
    assert (of_attention["producer"] == seen.binding[row, task]).all()


def test_what_handing_out_costs_comes_out_as_it_was_put_in(simulated):
    simulation, profile = simulated
    if simulation.schedule.mode == "static":
        pytest.skip("nothing is handed out there")
    found, given = measured(profile).costs, simulation.costs
    assert found.handout_ns == pytest.approx(given.handout_ns, rel=0.02)
    assert found.push_ns == pytest.approx(given.push_ns, rel=0.02)
    sum_of = lambda c: c.queue_ns + c.round_ns / 2 + c.pop_ns + c.layout_ns  # noqa: E731
    assert sum_of(found) == pytest.approx(sum_of(given), rel=0.1)


def test_a_recording_is_replayed_as_it_was_simulated(simulated):
    simulation, profile = simulated
    if simulation.schedule.mode == "dynamic":  # by the same rules, not in the same order
        m = measured(profile)
        assert m.run() == pytest.approx(m.makespan_ns, rel=0.02)
        return
    table = analysis.what_if(profile, policy="round_robin")
    assert abs(table["gain"].iloc[1]) < 1e-3
    assert table["makespan_ns"].iloc[2] > 0
    assert analysis.explain(profile)["gain_ns"].max() > 0


@pytest.fixture(scope="module")
def graph():
    return mk.models.random("qwen3-0.6b", weights=False).decode_graph(batch=1, context=256, layers=2)


def test_hand_offs_by_words_and_by_counters_are_predicted_from_each_other(graph):
    h200 = mk.Machine.named("h200")
    schedules = {kind: mk.assign(mk.lower(graph, h200, handoff=kind)) for kind in ("counter", "data")}
    made = {kind: predict(s, iterations=3).to_profile() for kind, s in schedules.items()}
    for kind, other in (("counter", "data"), ("data", "counter")):
        asked, truth = (measured(made[k]).makespan_ns for k in (kind, other))
        table = analysis.what_if(made[kind], handoff=other)
        assert table["change"].iloc[2] == f"hand-offs by {'words' if other == 'data' else 'counters'}"
        assert table["makespan_ns"].iloc[2] == pytest.approx(truth, rel=0.005)
        assert abs(truth / asked - 1) > 0.01 and table["error"].iloc[2] >= 0.03
        same = analysis.what_if(made[kind], handoff=kind)["makespan_ns"]
        assert same.iloc[2] == same.iloc[1]
    with pytest.raises(mk.ProfileError, match="counted"):
        analysis.what_if(made["counter"], handoff="data", mode="dynamic")
    with pytest.raises(mk.ProfileError, match="counter"):
        analysis.what_if(made["counter"], handoff="count")


def test_handing_out_is_predicted_from_queues(graph):
    schedule = mk.assign(mk.lower(graph, mk.Machine.named("h200")))
    static = predict(schedule, iterations=3)
    dynamic = predict(schedule, iterations=3, mode="dynamic", handout=Handout("central", pop_ahead=1))
    assert dynamic.makespan_ns > 1.5 * static.makespan_ns
    table = analysis.what_if(static.to_profile(), mode="dynamic")
    assert table["makespan_ns"].iloc[2] == pytest.approx(dynamic.makespan_ns, rel=0.02)


def test_a_recordings_cost_is_that_of_the_records_on_the_path():
    """Task a, then b on another worker that did n before: n's records are written while b would wait."""
    ops = [Op("a"), Op("n"), Op("b", after=("a",))]
    profile = make(ops, [[[Run("a", 0, 100)], [Run("n", 0, 30), Run("b", 0, 50)]]], latency=9)
    profile = replace(profile, meta={**profile.meta, "record_ns": 10.0})
    of = frames.spans(profile).query("task in (0, 2)").groupby("task").size()
    records = of.sum() + 2 * 2  # an end and an anchor each
    assert estimate(profile, 1) == (records, 10.0 * records)
    assert estimate(profile, 2) == (records / 2, 5.0 * records)


@pytest.mark.parametrize("model", ["qwen3-0.6b", "qwen3-8b"])
@pytest.mark.parametrize("change", [{"workers": 66}, {"policy": "zigzag"}, {"tiles": {"linear": 64}}], ids=str)
def test_fewer_workers_at_once_load_faster(model, change):
    """One that loads alone gets what its pages on their way allow, many share the bandwidth; the base shows only many."""
    h200 = mk.Machine.named("h200")
    graph = mk.models.random(model, weights=False).decode_graph(batch=1, context=256, layers=2)
    schedule = mk.assign(mk.lower(graph, h200))
    costs = Costs.of(h200, schedule.tasks.plan.settings)
    quick = 1e9 * h200.workers / (RING * h200.bandwidth)
    costs = costs.replaced(default=replace(costs.default, ns_per_byte=quick))
    changed = mk.lower(graph, h200, tiles=change.get("tiles"))
    other = mk.assign(changed, policy=change.get("policy") or schedule.policy, workers=change.get("workers") or 132)
    truth = predict(other, costs, iterations=3).makespan_ns
    table = analysis.what_if(predict(schedule, costs, iterations=3).to_profile(), **change)
    assert table["makespan_ns"].iloc[2] == pytest.approx(truth, rel=0.02)


def gpu_recording(times=1.0, **meta):
    """Of a GPU whose memory is so many times as fast as its recipe says."""
    h200 = mk.Machine.named("h200")
    schedule = mk.assign(
        mk.lower(mk.models.random("qwen3-0.6b", weights=False).decode_graph(batch=1, context=256, layers=2), h200)
    )
    costs = Costs.of(replace(h200, bandwidth=times * h200.bandwidth), schedule.tasks.plan.settings)
    profile = predict(schedule, costs, iterations=2).to_profile()
    return replace(profile, meta={**profile.meta, **meta})


@pytest.mark.parametrize("times", [1.0, 2.0])
def test_the_recorded_policy_asked_for_changes_nothing(times):
    """Also where tasks took less than the stated bandwidth allows, as with weights that stay in the L2."""
    profile = gpu_recording(times)
    table = analysis.what_if(profile, policy=recipe.schedule_of(profile).policy)
    assert table["makespan_ns"].iloc[2] == pytest.approx(table["makespan_ns"].iloc[1], rel=0.01)


def test_without_prefetch_no_loader_runs_ahead():
    assert measured(gpu_recording()).streams is not None
    assert measured(gpu_recording(prefetch=False)).streams is None


def test_a_recipe_without_a_graph_answers_what_needs_none():
    profile = gpu_recording()
    known = {name: value for name, value in profile.meta[recipe.KEY].items() if name != "graph"}
    table = analysis.what_if(replace(profile, meta={**profile.meta, recipe.KEY: known}), faster={"linear": 2.0})
    assert table["gain"].iloc[2] > 0
