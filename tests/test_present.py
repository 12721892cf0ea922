"""What a cell shows of every value, field by field, in text and in a card without scripts."""

import pytest

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
    "Graph": ("operators", "weights", "a step", "dims"),
    "TaskGraph": ("tasks", "events", "implied edges", "a step", "machine"),
    "Schedule": ("policy", "workers", "estimated load", "memory bound", "verified"),
    "Kernel": ("compiler", "built in", "folder"),
    "Generation": ("tokens", "prompt"),
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


def test_an_unknown_name_says_what_there_is(values):
    with pytest.raises(AttributeError, match="bubbles"):
        _ = values["Profile"].bubble
