"""Planted defects come first in `explain`."""

from __future__ import annotations

import pytest
from lanes import Span, encode
from schedules import Op, Run, make

from mpklab.analysis import bubbles, explain
from mpklab.analysis.findings import say_ns
from mpklab.frames.tables import family
from mpklab.profile import Profile

W = 8


def chain(layers=4, tiles=W, **odd):
    """Operators with a tile per worker, each waiting for the one before."""
    ops, before = [], ()
    for layer in range(layers):
        for name in ("qkv", "down"):
            ops.append(Op(f"layer{layer}.{name}", odd.get(name, tiles), before, layer=layer))
            before = (ops[-1].name,)
    return ops


def run(ops, duration, **options):
    queues = [[[Run(op.name, w, duration(op, w)) for op in ops if w < op.tiles] for w in range(W)]]
    return make(ops, queues, latency=10, **options)


def test_a_slow_worker_comes_first():
    profile = run(chain(), lambda op, w: 1000 if w != 5 else 1500)
    table = explain(profile)
    assert table["kind"].iloc[0] == "slow_worker" and "Worker 5 takes 1.50 times" in table["finding"].iloc[0]
    assert all(t % W == 5 for t in table["tasks"].iloc[0])


def test_an_operator_in_one_tile_comes_first():
    profile = run(chain(down=1), lambda op, w: 1000)
    row = explain(profile).iloc[0]
    assert row["kind"] == "few_tiles" and row["finding"].startswith("down is cut into 1 tile for 8 workers")
    waits = bubbles(profile, "cause").set_index("cause")
    downs = [f"layer{i}.down" for i in range(4)]
    idle = ["producer", "starved", "ready_elsewhere", "blocked"]
    assert row["cost_ns"] == waits.loc[[d for d in downs if d in waits.index], idle].to_numpy().sum()


def test_pages_that_come_late_come_first():
    spans = []
    for w in range(4):
        for t in range(3):
            at = 1000 * t
            spans += [Span(w, 0, "execute", w * 3 + t, at, at + 1000), Span(w, 0, "operand", w * 3 + t, at, at + 600)]
        spans += [Span(w, 1, "load", w * 3 + t, 1000 * t, 1000 * t + 600) for t in range(3)]
    lanes = encode(spans, 4, 2, level=3)
    profile = Profile.from_parts(lanes, 4, 2, level=3, tasks={"operator": [0] * 12})
    row = explain(profile).iloc[0]
    assert row["kind"] == "late_pages" and "Consumers wait 7.2 µs" in row["finding"]
    assert "a median of 0 ns before" in row["finding"]


def test_a_bad_order_is_named():
    ops = [Op("a"), Op("b", after=("a",)), Op("c")]
    profile = make(ops, [[[Run("a", 0, 100)], [Run("b", 0, 10), Run("c", 0, 10)]]])
    row = explain(profile).iloc[0]
    assert row["kind"] == "order" and row["cost_ns"] == 100 and row["tasks"] == [1]


def test_costs_are_counted_once():
    profile = run(chain(down=3), lambda op, w: 1000 + 100 * w)
    table = explain(profile, top=100)
    whole = bubbles(profile, "all").iloc[0]
    idle = whole[[c for c in whole.index if c not in ("workers", "execute", "gather", "makespan_ns")]]
    assert table["cost_ns"].sum() == idle.sum()


@pytest.mark.parametrize(
    ("ns", "text"), [(0, "0 ns"), (412, "412 ns"), (3600, "3.6 µs"), (1.24e6, "1.24 ms"), (2e9, "2 s")]
)
def test_times_are_said_as_people_do(ns, text):
    assert say_ns(ns) == text


def test_families_leave_the_layer_out():
    assert family("layer3.qkv_proj") == family("layer12.qkv_proj") == "qkv_proj" and family("lm_head") == "lm_head"
