"""The operator graph as SVG: equal layers once, with and without dot, and nothing from a name gets out of its text."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

import mpklab as mk
from mpklab import drawing

NASTY = "</text><script>alert(1)</script>\"'\\n&"


def decode(layers: int = 4, **choices: object) -> mk.Graph:
    return mk.models.random("tiny", weights=False, layers=layers).decode_graph(**choices)


def toy(name: str) -> mk.Graph:
    builder = mk.GraphBuilder(name)
    x = builder.input("x", (1, 8))
    builder.linear(name, x=x, weight=builder.weight(name + ".weight", (8, 8)), role="output")
    return builder.build()


def words(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def test_equal_layers_are_drawn_once() -> None:
    shown = drawing.draw(decode())
    assert len(shown.boxes) == len(drawing.draw(decode(layers=1)).boxes)
    assert {box.layers for box in shown.boxes} == {None, range(4)}
    assert len(drawing.draw(decode(), fold=False).boxes) == len(decode().operators)


def test_a_layer_that_differs_is_drawn_apart() -> None:
    builder = mk.GraphBuilder("pyramid")
    x = builder.input("x", (1, 8))
    for layer, (rows, columns) in enumerate([(8, 8), (8, 8), (4, 8), (8, 4)]):
        name = f"layer{layer}.up"
        x = builder.linear(name, x=x, weight=builder.weight(name + ".weight", (rows, columns)), layer=layer)
    builder.add("sum", a=x, b=x, role="output")
    shown = drawing.draw(builder.build())
    assert [box.layers for box in shown.boxes] == [range(2), range(2, 3), range(3, 4), None]
    assert [edge[:2] for edge in shown.edges] == [(0, 1), (1, 2), (2, 3)]


def test_every_producer_comes_first() -> None:
    for graph in (decode(), mk.lower(decode(), mk.Machine.named("h200")).graph):
        shown = drawing.draw(graph)
        assert all(producer < consumer for producer, consumer, _ in shown.edges)
        reached = {consumer for _, consumer, _ in shown.edges}
        assert reached == set(range(1, len(shown.boxes))), "only the embedding has no producer"


@pytest.mark.parametrize("dot", [False, None])
def test_the_svg_says_what_is_there(dot: bool | None, tmp_path: object) -> None:
    path = tmp_path / "graph.svg"
    svg = drawing.to_svg(decode(batch=mk.Dim("batch", max=4)), path, dot=dot)
    assert path.read_text() == svg
    said = " ".join(words(svg))
    for expected in ("q_proj", "attention", "layers 0 to 3: 4 alike"):
        assert expected in said


@pytest.mark.parametrize("dot", [False, None])
def test_names_stay_text(dot: bool | None) -> None:
    svg = drawing.to_svg(toy(NASTY), dot=dot)
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()}
    assert "script" not in tags
    assert any("alert(1)" in word for word in words(svg))


def test_a_dot_that_fails_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing.shutil, "which", lambda name: "/bin/false")
    assert "linear" in drawing.to_svg(toy("y"))
    monkeypatch.setattr(drawing.shutil, "which", lambda name: None)
    assert "linear" in drawing.to_svg(toy("y"))
