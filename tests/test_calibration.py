"""Costs fitted to profiles whose costs are known, and what they then predict."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import mpklab as mk
from mpklab.calibration import fit_costs
from mpklab.simulator import Costs, KindCost, predict

TRUTH = Costs(
    kinds={
        "linear": KindCost(overhead_ns=900, ns_per_byte=0.25),
        "attention": KindCost(overhead_ns=1700),
        "embedding": KindCost(overhead_ns=800),
        "argmax_reduce": KindCost(overhead_ns=400),
        "advance": KindCost(overhead_ns=300),
    },
    fetch_ns=60,
    wait_ns=30,
    signal_ns=90,
    handoff_ns={"counter": 350.0, "data": 280.0, "worker": 0.0},
    step_ns=500,
    bandwidth=8e9,
    worker_bandwidth=4e9,
)


def scheduled(name: str, workers: int = 2, **sizes: object) -> mk.Schedule:
    graph = mk.models.random(name, weights=False, **sizes).decode_graph(context=128)
    return mk.assign(mk.lower(graph, mk.Machine.cpu(workers)), workers=workers)


@pytest.fixture(scope="module")
def small() -> mk.Schedule:
    return scheduled("smollm2-135m", layers=4, vocab=4096)


def test_what_was_put_in_comes_out(small: mk.Schedule) -> None:
    found = fit_costs(predict(small, TRUTH, iterations=4).to_profile())
    assert found.kinds["linear"].overhead_ns == pytest.approx(900, rel=0.02)
    assert found.kinds["linear"].ns_per_byte == pytest.approx(0.25, rel=0.01)
    assert found.kinds["attention"].overhead_ns + found.kinds["attention"].ns_per_byte * _bytes(
        small, "attention"
    ) == pytest.approx(1700 + 0.25 * _bytes(small, "attention"), rel=0.02)
    assert found.fetch_ns == pytest.approx(60, abs=1)
    assert found.signal_ns == pytest.approx(90, abs=1)
    assert found.wait_ns == pytest.approx(30, abs=1)
    assert found.handoff_ns["counter"] == pytest.approx(350, abs=TRUTH.wait_ns / 2 + 1)  # events are noticed by looks
    assert found.step_ns == pytest.approx(500, abs=2)
    assert found.bandwidth == pytest.approx(8e9, rel=0.02)
    assert found.worker_bandwidth == pytest.approx(4e9, rel=0.02)


def _bytes(schedule: mk.Schedule, kind: str) -> float:
    t = schedule.tasks
    operators = [i for i, o in enumerate(t.operators) if o.op == kind]
    return float(t.bytes[t.first[operators[0]]])


@pytest.mark.parametrize("name", ["smollm2-360m", "qwen3-0.6b", "llama-3.2-1b"])
@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_one_model_s_run_predicts_another_model(small: mk.Schedule, name: str, noise: float) -> None:
    """Also when durations scatter and a tenth of them are disturbed by something else on the machine."""
    rng = np.random.default_rng(1)
    iterations = 6
    exact = predict(small, TRUTH, iterations=iterations)
    ns = exact.timeline.end - exact.timeline.begin
    if noise:
        ns = ns * rng.lognormal(0, noise, ns.shape) + (rng.random(ns.shape) < 0.1) * 20_000
    found = fit_costs(predict(small, TRUTH, durations=ns, iterations=iterations).to_profile())
    other = scheduled(name, layers=3)
    truth = replace(TRUTH, kinds={k: replace(c, spread=noise) for k, c in TRUTH.kinds.items()})
    ratio = predict(other, found, iterations=5).iteration_ns / predict(other, truth, iterations=5, seed=1).iteration_ns
    assert ratio == pytest.approx(1, abs=0.02 if not noise else 0.1)
    assert found.kinds["linear"].spread == pytest.approx(noise, abs=0.05)


def test_flavours_of_a_kind_have_their_own_costs(small: mk.Schedule) -> None:
    """A linear with a norm before it gathers and begins otherwise than one with a residual behind it."""
    kinds = {**TRUTH.kinds, "linear+norm_weight": KindCost(overhead_ns=2500, ns_per_byte=0.25, gather_ns=700)}
    found = fit_costs(predict(small, replace(TRUTH, kinds=kinds), iterations=3).to_profile()).kinds
    assert found["linear+norm_weight"].overhead_ns - found["linear+residual"].overhead_ns == pytest.approx(
        1600, rel=0.1
    )
    assert found["linear+norm_weight"].gather_ns == pytest.approx(700, abs=2)
    assert found["linear+residual"].gather_ns == 0


def test_a_loader_s_machine_keeps_its_bandwidth() -> None:
    graph = mk.models.random("qwen3-0.6b", weights=False).decode_graph(context=128, layers=4)
    schedule = mk.assign(mk.lower(graph, mk.Machine.named("h200")))
    truth = Costs.of(schedule.tasks.machine).replaced(kinds={"linear": KindCost(overhead_ns=300, ns_per_byte=0.02)})
    found = fit_costs(predict(schedule, truth, iterations=3).to_profile())
    assert found.bandwidth == truth.bandwidth and found.ring_bytes == truth.ring_bytes
    assert found.kinds["linear"].ns_per_byte == pytest.approx(0.02, rel=0.1)
    ratio = predict(schedule, found, iterations=3).iteration_ns / predict(schedule, truth, iterations=3).iteration_ns
    assert ratio == pytest.approx(1, abs=0.05)


def test_one_size_alone_is_not_all_overhead(small: mk.Schedule) -> None:
    found = fit_costs(predict(small, TRUTH, iterations=3).to_profile())
    assert found.kinds["attention"].ns_per_byte > 0
    assert found.kinds["advance"].overhead_ns == pytest.approx(300 + 0.25 * 32, abs=40)


def test_what_was_not_seen_stays_as_the_machine_says() -> None:
    alone = scheduled("tiny", workers=1)
    found = fit_costs(predict(alone, TRUTH, iterations=2).to_profile())
    assert found.handoff_ns["counter"] == Costs.of(alone.tasks.machine).handoff_ns["counter"]
    assert "tiny" in found.source


def test_a_run_without_steps_or_waits_fits_too() -> None:
    g = mk.GraphBuilder("wide")
    x = g.input("x", (1, 64))
    for i in range(4):
        g.linear(f"branch{i}", x=x, weight=g.weight(f"w{i}", (64 << i, 64)), role="output")
    schedule = mk.assign(mk.lower(g.build(), mk.Machine.cpu(2)), workers=2)
    found = fit_costs(predict(schedule, TRUTH, iterations=2).to_profile())
    assert found.kinds["linear"].overhead_ns == pytest.approx(900, rel=0.05)


def test_nothing_to_fit_is_said(small: mk.Schedule) -> None:
    profile = predict(small, TRUTH).to_profile()
    lanes = profile.lanes.copy()
    lanes.reshape(profile.n_lanes, -1)[:, :64].view(mk.abi.LANE)["written"] = 0
    with pytest.raises(mk.ProfileError, match="nothing to fit"):
        fit_costs(replace(profile, lanes=lanes))
