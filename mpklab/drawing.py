"""The operator graph as SVG: equal layers folded into one, laid out by dot where it is installed, by rows elsewhere."""

from __future__ import annotations

import html
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mpklab.console import human_bytes
from mpklab.graph import Graph, Operator
from mpklab.plots import PALETTE, kind_colours

# Sizes of the layout by rows, in pixels.
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN, SIDE, CHARACTER = 236, 52, 28, 34, 24, 36, 6.7
DOT_LIMIT_S = 20


@dataclass(frozen=True, slots=True)
class Box:
    """One operator as it is drawn. `layers` says which it stands for, None outside of layers."""

    name: str
    kind: str
    lines: tuple[str, ...]
    layers: range | None


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is drawn: boxes in program order, and edges (producer, consumer, tensor) by box number."""

    title: str
    boxes: tuple[Box, ...]
    edges: tuple[tuple[int, int, str], ...]


def to_svg(graph: Graph, path: str | Path | None = None, *, fold: bool = True, dot: bool | None = None) -> str:
    """The graph as SVG text, also written to `path` if given.

    `fold` draws equal layers in a row once. `dot` asks for Graphviz' layout or for the one by rows; None takes dot if
    it is installed and works.
    """
    drawing = draw(graph, fold)
    text = None if dot is False else _with_dot(drawing)
    svg = text if text is not None else _by_rows(drawing)
    if path is not None:
        Path(path).write_text(svg)
    return svg


def draw(graph: Graph, fold: bool = True) -> Drawing:
    """Choose what is shown: one box per operator, or per operator of the first of several equal layers."""
    runs = list(_equal_layers(graph)) if fold else []
    first = {layer: run for run in runs for layer in run}
    number: dict[str, int] = {}
    boxes: list[Box] = []
    for operator in graph.operators:
        run = None if operator.layer is None else first.get(operator.layer, range(operator.layer, operator.layer + 1))
        if run is not None and operator.layer != run.start:
            number[operator.name] = number[_renamed(operator, run.start)]
            continue
        number[operator.name] = len(boxes)
        boxes.append(Box(operator.name, operator.op, _lines(graph, operator), run))
    edges: dict[tuple[int, int], str] = {}
    writer: dict[str, str] = {}
    for operator in graph.operators:
        for operand in operator.inputs:
            tensor = operator.operands[operand]
            if tensor in writer:
                edge = (number[writer[tensor]], number[operator.name])
                if edge[0] < edge[1]:  # from one folded layer to the next is said by the frame around it
                    edges.setdefault(edge, tensor)
        for operand in operator.outputs:
            writer[operator.operands[operand]] = operator.name
    return Drawing(graph.name, tuple(boxes), tuple((*edge, tensor) for edge, tensor in edges.items()))


def _equal_layers(graph: Graph) -> Iterator[range]:
    """Runs of neighbouring layers that differ in their weights only."""
    looks: dict[int, list[object]] = {}
    for operator in graph.operators:
        if operator.layer is not None:
            types = [str(graph.tensors[tensor].type) for tensor in operator.operands.values()]
            look = (_renamed(operator, 0), operator.op, sorted(operator.attrs.items(), key=str), types)
            looks.setdefault(operator.layer, []).append(look)
    layers = sorted(looks)
    begin = 0
    for end in range(1, len(layers) + 1):
        if end == len(layers) or layers[end] != layers[end - 1] + 1 or looks[layers[end]] != looks[layers[begin]]:
            yield range(layers[begin], layers[end - 1] + 1)
            begin = end


def _renamed(operator: Operator, layer: int) -> str:
    """What the same operator of another layer is called."""
    own = f"layer{operator.layer}."
    return f"layer{layer}.{operator.name.removeprefix(own)}" if operator.name.startswith(own) else operator.name


def _lines(graph: Graph, operator: Operator) -> tuple[str, ...]:
    own = "" if operator.layer is None else f"layer{operator.layer}."
    extras = [str(operator.attrs[name]) for name in ("epilogue",) if operator.attrs.get(name, "none") != "none"]
    extras += ["rms_norm"] if "norm_weight" in operator.operands and operator.op != "rms_norm" else []
    made = [graph.tensors[operator.operands[operand]] for operand in operator.outputs]
    shown = [str(tensor.type) for tensor in made if tensor.role != "state"]
    held = [graph.tensors[t] for t in operator.operands.values() if graph.tensors[t].role == "weight"]
    weights = f" · {human_bytes(sum(tensor.bytes for tensor in held))}" if held else ""
    return (
        operator.name.removeprefix(own),
        operator.op + (f" + {', '.join(extras)}" if extras else ""),
        f"{shown[0] if shown else 'in place'}{weights}",
    )


def _frame_title(layers: range) -> str:
    return (
        f"layer {layers.start}" if len(layers) == 1 else f"layers {layers.start} to {layers[-1]}: {len(layers)} alike"
    )


def _frames(drawing: Drawing) -> dict[range, list[int]]:
    """Box numbers by the layers they stand for."""
    frames: dict[range, list[int]] = {}
    for number, box in enumerate(drawing.boxes):
        if box.layers is not None:
            frames.setdefault(box.layers, []).append(number)
    return frames


def _colours(drawing: Drawing) -> list[str]:
    kinds = list(dict.fromkeys(box.kind for box in drawing.boxes))
    palette = PALETTE["light"]
    index = dict(zip(kinds, kind_colours(kinds), strict=True))
    return [palette[index[box.kind] % len(palette)] for box in drawing.boxes]


def _quoted(text: str) -> str:
    """A DOT string. Line ends are written \\n, so a backslash of the text itself is doubled first."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _with_dot(drawing: Drawing) -> str | None:
    """Graphviz' layout, or None where it is missing or fails."""
    program = shutil.which("dot")
    if program is None:
        return None
    lines = [
        f"digraph {_quoted(drawing.title)} {{",
        'node [shape=box style="rounded" fontname="sans-serif" fontsize=10]',
    ]
    lines.append('edge [color="#888888" arrowsize=0.6]; fontname="sans-serif"; fontsize=11')
    for number, (box, colour) in enumerate(zip(drawing.boxes, _colours(drawing), strict=True)):
        label, about = "\n".join(box.lines), f"{box.name}: {box.kind}"
        lines.append(f'n{number} [label={_quoted(label)} color="{colour}" tooltip={_quoted(about)}]')
    for place, (layers, members) in enumerate(_frames(drawing).items()):
        inside = " ".join(f"n{number};" for number in members)
        lines.append(f'subgraph cluster{place} {{ label={_quoted(_frame_title(layers))} color="#bbbbbb" {inside} }}')
    lines += [f"n{producer} -> n{consumer} [tooltip={_quoted(tensor)}]" for producer, consumer, tensor in drawing.edges]
    try:
        text = "\n".join([*lines, "}"])
        answer = subprocess.run([program, "-Tsvg"], input=text, capture_output=True, text=True, timeout=DOT_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 and "<svg" in answer.stdout else None


def _by_rows(drawing: Drawing) -> str:
    """A box stands one row below the lowest of its producers; long edges run to the right of what they pass."""
    rank = [0] * len(drawing.boxes)
    for producer, consumer, _ in sorted(drawing.edges, key=lambda edge: edge[1]):  # edges lead to later boxes only
        rank[consumer] = max(rank[consumer], rank[producer] + 1)
    for members in _frames(drawing).values():  # what has no producer inside starts with its frame, not at the top
        top = min((rank[number] for number in members if rank[number]), default=0)
        for number in members:
            rank[number] = max(rank[number], top)
    rows: dict[int, list[int]] = {}
    for number, row in enumerate(rank):
        rows.setdefault(row, []).append(number)
    widest = max((len(row) for row in rows.values()), default=1)
    total_w = 2 * (MARGIN + SIDE) + widest * WIDTH + (widest - 1) * GAP_X
    total_h = 2 * MARGIN + 20 + (max(rows, default=0) + 1) * (HEIGHT + GAP_Y)
    at: dict[int, tuple[float, float]] = {}
    for row, members in rows.items():
        left = (total_w - len(members) * WIDTH - (len(members) - 1) * GAP_X) / 2
        for place, number in enumerate(members):
            at[number] = (left + place * (WIDTH + GAP_X), MARGIN + 20 + row * (HEIGHT + GAP_Y))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_w:g} {total_h:g}" width="{total_w:g}"'
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="100%" height="100%" fill="white"/><text x="{MARGIN}" y="{MARGIN}">{html.escape(drawing.title)}</text>',
    ]
    for layers, members in _frames(drawing).items():
        xs, ys = [at[number][0] for number in members], [at[number][1] for number in members]
        frame = (min(xs) - 10, min(ys) - 18, max(xs) - min(xs) + WIDTH + SIDE, max(ys) - min(ys) + HEIGHT + 26)
        parts.append(
            '<rect x="{:g}" y="{:g}" width="{:g}" height="{:g}" rx="6" fill="none" stroke="#bbb"/>'.format(*frame)
        )
        parts.append(f'<text x="{frame[0] + 6:g}" y="{frame[1] + 12:g}" fill="#666">{_frame_title(layers)}</text>')
    for producer, consumer, tensor in drawing.edges:
        (x0, y0), (x1, y1) = at[producer], at[consumer]
        if rank[consumer] - rank[producer] == 1:
            x0, x1, y0, bend = x0 + WIDTH / 2, x1 + WIDTH / 2, y0 + HEIGHT, GAP_Y / 2
            curve = f"M{x0:g} {y0:g} C{x0:g} {y0 + bend:g} {x1:g} {y1 - bend:g} {x1:g} {y1:g}"
        else:
            passed = [at[number][0] for row in range(rank[producer], rank[consumer] + 1) for number in rows[row]]
            far = max(passed) + WIDTH + SIDE / 2
            x0, x1, y0, y1 = x0 + WIDTH, x1 + WIDTH, y0 + HEIGHT * 0.75, y1 + HEIGHT * 0.25
            curve = f"M{x0:g} {y0:g} Q{far:g} {y0:g} {far:g} {y0 + 24:g} V{y1 - 24:g} Q{far:g} {y1:g} {x1:g} {y1:g}"
        parts.append(f'<path d="{curve}" fill="none" stroke="#999"><title>{html.escape(tensor)}</title></path>')
    most = int((WIDTH - 12) / CHARACTER)
    for number, (box, colour) in enumerate(zip(drawing.boxes, _colours(drawing), strict=True)):
        x, y = at[number]
        parts.append(f"<g><title>{html.escape(f'{box.name}: {box.kind}')}</title>")
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="white" stroke="{colour}"/>'
        )
        for line, text in enumerate(box.lines):
            short = text if len(text) <= most else text[: most - 1] + "…"
            weight = ' font-weight="bold"' if line == 0 else ""
            parts.append(f'<text x="{x + 7:g}" y="{y + 15 + 15 * line:g}"{weight}>{html.escape(short)}</text>')
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])
