"""What a cell shows of every value, field by field, in text and in a card without scripts."""

import re

import pytest
import torch

import mpklab as mk
from mpklab.present import METHODS, bundle, method


@pytest.fixture(scope="module")
def values():
    model = mk.models.random("tiny", seed=1)
    kernel = mk.compile(model, machine=mk.Machine.cpu(2), context=64, report=lambda *_: None)
    run = kernel.generate([1, 2, 3], 4, profile=2)
    return {
        "Graph": kernel.graph,
        "TaskGraph": kernel.schedule.tasks,
        "Schedule": kernel.schedule,
        "Kernel": kernel,
        "Generation": run,
        "Profile": run.profile,
    }


FIELDS = {
    "Graph": ("operators", "parameters", "a step", "dims"),
    "TaskGraph": ("tasks", "by operator", "events", "implied edges", "a step", "machine"),
    "Schedule": ("policy", "workers", "load per worker", "predicted makespan", "bounds", "verified"),
    "Kernel": ("compiler", "built in", "cache", "folder"),
    "Generation": ("text", "tokens", "a token", "prompt"),
    "Profile": ("health", "makespan", "efficiency", "bubble", "first finding"),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_every_field_is_there(values, kind):
    shown = bundle(values[kind])
    assert type(values[kind]).__name__ == kind
    for field in FIELDS[kind]:
        assert f"\n  {field}" in shown["text/plain"], shown["text/plain"]
        assert f">{field}" in shown["text/html"]
    assert "<script" not in shown["text/html"]


def rows(value):
    return dict(__import__("mpklab.cards").cards.CARDS[type(value).__name__](value))


def test_what_the_fields_say(values):
    """Each number against one that was got another way."""
    model = values["Kernel"].model
    graph, tasks, schedule = values["Graph"], values["TaskGraph"], values["Schedule"]
    assert f"{sum(w.numel() for w in model.weights.values()):,} in " in rows(graph)["parameters"]
    assert rows(tasks)["tasks"] == f"{len(tasks):,}"
    counted = [
        int(n) * int(m.replace(",", "")) for n, m in re.findall(r"(\d+) × ([\d,]+) tiles", rows(tasks)["by operator"])
    ]
    assert "to" not in rows(tasks)["by operator"] and sum(counted) == len(tasks)
    told = mk.predict(schedule).iteration_ns / 1e3
    assert rows(schedule)["predicted makespan"].startswith(f"{told:,.1f} µs")
    held = sum(t.bytes for t in tasks.graph.tensors.values() if t.role == "weight" and not t.parts) / 1e3
    bound_us = float(re.match(r"memory ([\d,.]+) µs", rows(schedule)["bounds"])[1].replace(",", ""))
    assert 0 < bound_us * 1e-9 * tasks.machine.bandwidth <= 1.2 * held and bound_us <= told
    assert rows(schedule)["verified"] == "✓" and rows(mk.assign(tasks))["verified"] == "not yet"
    assert "run time" in rows(mk.assign(tasks, mode="dynamic"))["load per worker"]
    assert rows(values["Kernel"])["cache"] in ("hit", "miss: compiled now")
    assert "recorded: median" in rows(values["Generation"])["a token"]
    plain = values["Kernel"].generate([1, 2, 3], 2)
    assert rows(plain)["a token"].endswith("profile=1 records its spread")
    profile = values["Profile"]
    assert rows(profile)["makespan"].endswith(f"± {mk.frames.residual(profile):,.0f} ns")
    assert sum(label.startswith("bubble: ") for label in rows(profile)) <= 3
    assert rows(profile)["first finding"] == profile.explain(top=1, gains=False)["finding"].iloc[0]


def test_a_gpu_kernel_says_what_it_takes(values, monkeypatch):
    log = "ptxas info: Used 128 registers, 24 bytes spill stores, 36 bytes spill loads, 1024 bytes smem"
    monkeypatch.setattr(mk.Kernel, "resources", __import__("mpklab.device").device.resources(log))
    found = rows(values["Kernel"])
    assert found["registers"] == "128 a thread" and found["spills"] == "24 bytes stored, 36 loaded"
    assert found["shared memory"].startswith("1,024 bytes")


def test_a_graph_shows_its_picture(values):
    assert "<svg" in bundle(values["Graph"])["text/html"]


def test_names_are_escaped():
    g = mk.GraphBuilder("<img src=x onerror=alert(1)>")
    g.add("<b>", a=g.input("x", (1, 8)), b=g.input("y", (1, 8)), role="output")
    shown = bundle(g.build())["text/html"]
    assert "<img" not in shown
    assert "<b>" not in shown


def test_a_value_that_cannot_be_described_still_shows(values, monkeypatch):
    def broken(_):
        raise RuntimeError("a <broken> card")

    monkeypatch.setitem(__import__("mpklab.cards").cards.CARDS, "Schedule", broken)
    shown = bundle(values["Schedule"])
    assert shown["text/plain"] == str(values["Schedule"])
    assert "a &lt;broken&gt; card" in shown["text/html"]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in METHODS.items() for name in names])
def test_every_method_has_a_function(kind, name):
    assert callable(method(kind, name))
    assert name not in getattr(getattr(mk, kind, None), "__dataclass_fields__", {})  # which would be found first


def test_every_value_is_a_line_in_a_plain_terminal(values):
    """Also inside a list, a traceback or a debugger, which ask for the repr: a model's would be megabytes."""
    kernel = values["Kernel"]
    g = mk.GraphBuilder("sum")
    g.add("sum", a=g.input("a", (1, 8)), b=g.input("b", (1, 8)), role="output")
    plan = kernel.schedule.tasks.plan
    small = mk.build(mk.assign(mk.lower(g.build(), mk.Machine.cpu(2))))
    result = small.run(a=torch.ones(1, 8), b=torch.ones(1, 8), profile=1)
    others = [result, kernel.new_session(), plan]
    for value in (*values.values(), *others):
        assert "\n" not in repr(value) and 10 < len(repr(value)) < 600, repr(value)
    assert repr(kernel.graph) == str(kernel.graph) and "on cpu with 2 workers (" in repr(kernel)
    assert "sum float32[1×8]" in repr(result) and "Profile(level 1, 2 workers" in repr(result)
    assert repr(others[1]).startswith("Session of Kernel tiny-decode") and plan.hash in repr(plan)


def test_an_unknown_name_says_what_there_is(values):
    with pytest.raises(AttributeError, match="did you mean 'bubbles'"):
        _ = values["Profile"].bubble
    with pytest.raises(AttributeError, match="did you mean 'schedule'"):
        _ = values["Kernel"].shedule
    with pytest.raises(AttributeError, match="did you mean 'compile'"):
        _ = mk.comple
