"""Planted defects come first in `explain`."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
from lanes import Span, encode
from schedules import Op, Run, make

import mpklab as mk
from mpklab.analysis import bubbles, explain, findings, what_if
from mpklab.analysis.findings import say_ns
from mpklab.errors import ProfileError
from mpklab.frames.tables import family
from mpklab.profile import Profile
from mpklab.simulator import predict

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


def test_tasks_that_lay_in_a_pool_are_named_and_queues_advised():
    model = mk.models.random("qwen3-0.6b", weights=False)
    tasks = mk.lower(model.decode_graph(batch=1, context=256, layers=2), mk.Machine.named("h200"))
    profile = predict(mk.assign(tasks, mode="dynamic"), iterations=2).to_profile()
    table = explain(profile, top=50)
    row, whole = table.iloc[0], bubbles(profile, "all").iloc[0]
    assert row["kind"] == "handout" and row["finding"].startswith(
        f"Tasks lay ready for {say_ns(whole['ready_elsewhere'])}"
    )
    assert row["cost_ns"] == whole["ready_elsewhere"] + whole["starved"]
    assert row["tasks"] and row["gain_ns"] == what_if(profile, mode="static")["gain_ns"].iloc[2] > 0
    assert "Making queues beforehand is predicted to save" in row["finding"]
    assert "waits" not in table["kind"].tolist()  # nobody in particular is waited for


def test_what_is_at_the_memorys_limit_is_not_advised_to_be_twice_as_fast():
    # Both tasks of `a` bring 1 KB in 1000 ns while the worker of b waits for the longer one.
    def waits(bandwidth_gbps):
        ops = [Op("a", 2), Op("b", 2, after=("a",))]
        queues = [[[Run("a", w, 1000 - 400 * w), Run("b", w, 10)] for w in range(2)]]
        profile = make(ops, queues, bytes_per_task=1000.0, meta={"bandwidth_gbps": bandwidth_gbps})
        return explain(profile, top=50).set_index("kind").loc["waits"]

    slow, some, limit = waits(20.0), waits(2.5), waits(2.1)
    assert slow["remedy"] == "Making it twice as fast" and slow["gain_ns"] == 500
    assert "memory's bandwidth" in some["remedy"] and some["gain_ns"] == pytest.approx(200, abs=2)
    assert limit["remedy"] == "" and np.isnan(limit["gain_ns"])
    assert "at 95 % of the memory's bandwidth already." in limit["finding"]


def test_no_finding_advises_what_it_cannot_name():
    ops = [Op("a"), Op("b")]
    profile = make(ops, [[[Run("a", 0, 100)], [Run("b", 0, 10)]]], level=1)
    for row in explain(profile, top=50).itertuples():
        assert row.tasks or not row.remedy


def test_where_the_replay_is_off_it_is_said():
    ops = [Op("a", W), Op("b", W, after=("a",))]
    queues = [[[Run("a", w, 100 + 50 * w), Run("b", w, 100)] for w in range(W)]]
    tables = {level: explain(make(ops, queues, latency=900, level=level)) for level in (1, 2)}
    assert tables[1]["gain_ns"].isna().all() and tables[2]["gain_ns"].notna().any()
    said = {level: table["finding"].str.contains("not predicted").tolist() for level, table in tables.items()}
    assert said[1][0] and "record level 2" in tables[1]["finding"].iloc[0]
    assert not any(said[1][1:]) and not any(said[2])


@pytest.mark.parametrize("top", [0, -3, 2.5, True])
def test_how_many_findings_is_a_count(top):
    with pytest.raises(ProfileError, match="from 1"):
        explain(run(chain(), lambda op, w: 1000), top=top)


def test_the_docstring_names_the_kinds_there_are():
    source = inspect.getsource(findings)
    made = set(re.findall(r'Finding\(\s*"(\w+)"', source)) | set(re.findall(r'\("(\w+)", lambda c: f"', source))
    named = re.search(r"kind: ([\w, ]+)", explain.__doc__).group(1)
    assert {name.strip() for name in named.split(",")} == made


@pytest.mark.parametrize(
    ("ns", "text"), [(0, "0 ns"), (412, "412 ns"), (3600, "3.6 µs"), (1.24e6, "1.24 ms"), (2e9, "2 s")]
)
def test_times_are_said_as_people_do(ns, text):
    assert say_ns(ns) == text


def test_families_leave_the_layer_out():
    assert family("layer3.qkv_proj") == family("layer12.qkv_proj") == "qkv_proj" and family("lm_head") == "lm_head"
