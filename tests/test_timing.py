"""Interleaved timing: what is run how often in which order, and the ratio with its interval."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import mpklab as mk
from mpklab.timing import Prepared, ratio


@pytest.fixture(scope="module")
def schedule() -> mk.Schedule:
    graph = mk.models.random("tiny", weights=False).decode_graph(context=64)
    return mk.assign(mk.lower(graph, mk.Machine.cpu(2)), workers=2)


@pytest.fixture(scope="module")
def kernel(schedule: mk.Schedule) -> mk.Kernel:
    return mk.build(schedule)


def test_every_sample_is_kept_and_the_order_is_mixed(kernel: mk.Kernel) -> None:
    calls: list[str] = []
    samples = mk.time(
        {"kernel": kernel, "a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=12, warmup=2, seed=4
    )
    assert list(samples.columns) == ["name", "round", "order", "ms"]
    assert len(samples) == 36
    assert (samples.groupby("round")["name"].nunique() == 3).all()
    assert samples.groupby("name")["order"].nunique().min() == 3, "each has had each place"
    assert calls[:4] == ["a", "a", "b", "b"], "warm-up comes before any sample"
    assert calls[4:] == [n for n in samples["name"] if n != "kernel"]
    assert (samples["ms"] > 0).all()
    again = mk.time({"kernel": kernel, "a": lambda: None, "b": lambda: None}, rounds=12, warmup=0, seed=4)
    assert again["name"].tolist() == samples["name"].tolist()


def test_a_function_s_wall_time_is_measured() -> None:
    slept: list[float] = []

    def nap() -> None:
        begin = time.perf_counter()
        time.sleep(0.01)
        slept.append((time.perf_counter() - begin) * 1e3)

    begin = time.perf_counter()
    samples = mk.time({"nap": nap}, rounds=3, warmup=0)
    assert (samples["ms"] >= slept).all() and min(slept) >= 10
    assert samples["ms"].sum() <= (time.perf_counter() - begin) * 1e3


def test_a_kernel_is_timed_by_its_own_seconds_per_iteration(kernel: mk.Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[Any] = []
    launch = Prepared.launch
    monkeypatch.setattr(Prepared, "launch", lambda *given: outcomes.append(launch(*given)) or outcomes[-1])
    ms = mk.time({"k": kernel}, rounds=3, warmup=2, iterations=24)["ms"]
    assert ms.tolist() == [o.seconds / 24 * 1e3 for o in outcomes[2:]] and {o.iterations for o in outcomes} == {24}


def test_prepared_kernels_of_one_graph_compute_the_same(schedule: mk.Schedule, kernel: mk.Kernel) -> None:
    """On inputs and weights of their own, whatever the schedule, launch after launch."""
    other = mk.build(mk.assign(schedule.tasks, policy="round_robin", workers=3))
    first, second = Prepared(kernel, seed=3), Prepared(other, seed=3)
    results = []
    for prepared in (first, second, first):
        assert prepared.launch(4).iterations == 4
        results.append({k: v.clone() for k, v in prepared.results().items()})
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name
        assert torch.equal(value, results[2][name]), name
    assert results[0]["position"].item() == 32 + 4
    assert results[0]["logits"].isfinite().all() and results[0]["logits"].std() > 0
    differently = Prepared(kernel, seed=5)
    differently.launch(4)
    assert not torch.equal(differently.results()["logits"], results[0]["logits"])


def test_plain_graphs_can_be_timed_too() -> None:
    g = mk.GraphBuilder("toy")
    x = g.input("x", (1, 64))
    g.linear("y", x=x, weight=g.weight("w", (128, 64)), role="output")
    kernel = mk.build(mk.assign(mk.lower(g.build(), mk.Machine.cpu(2)), workers=2))
    prepared = Prepared(kernel)
    prepared.launch(2)
    t = prepared.session.tensors
    torch.testing.assert_close(t["y"], t["x"] @ t["w"].T)


def test_a_ratio_is_that_of_the_medians_with_an_honest_interval() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(40):
        drift = rng.lognormal(0, 0.3, 30)  # what both meet in a round
        a = 1.5 * drift * rng.lognormal(0, 0.05, 30)
        b = drift * rng.lognormal(0, 0.05, 30)
        table = pd.DataFrame({"name": ["a"] * 30 + ["b"] * 30, "round": [*range(30)] * 2, "ms": np.r_[a, b]})
        found = ratio(table, "a", "b", seed=trial)
        assert found.value == np.median(a) / np.median(b)
        assert found.low <= found.value <= found.high
        held += found.low <= 1.5 <= found.high
    assert held >= 34
    assert str(found).startswith("a / b = ")
    assert float(ratio(table, "a", "a")) == 1
    exact = pd.DataFrame({"name": ["x", "y"] * 5, "round": np.repeat(range(5), 2), "ms": [3.0, 2.0] * 5})
    assert (ratio(exact, "x", "y").low, ratio(exact, "x", "y").high) == (1.5, 1.5)


def test_slips_are_answered(kernel: mk.Kernel) -> None:
    with pytest.raises(mk.RunError, match="something to run"):
        mk.time({})
    with pytest.raises(mk.RunError, match="at least one round"):
        mk.time({"k": kernel}, rounds=0)
    with pytest.raises(mk.RunError, match="k is a int; time takes"):
        mk.time({"k": 3})
    with pytest.raises(mk.RunError, match="do not fit the context of 64"):
        mk.time({"k": kernel}, iterations=40)
    samples = mk.time({"first": lambda: None, "second": lambda: None}, rounds=2, warmup=0)
    with pytest.raises(mk.RunError, match="did you mean 'second'"):
        ratio(samples, "first", "secnd")
    with pytest.raises(mk.RunError, match="share no round"):
        ratio(samples[(samples.name == "first") == (samples["round"] == 0)], "first", "second")
