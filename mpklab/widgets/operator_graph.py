"""The operator graph: one box per operator, layers folded when they are alike, drawn as our own SVG whatever laid it out."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpklab.errors import GraphError, answers_slips
from mpklab.plots import PALETTE, kind_colours
from mpklab.widgets import raster
from mpklab.widgets.page import Column, container
from mpklab.widgets.view import View, card

if TYPE_CHECKING:
    import pandas as pd

NO_OPERATORS = "No operators: the graph is empty."
HIGH = 40.0  # of a box, in pixels
CHARACTER = 6.6  # width of one, near enough for box sizes
RANK_GAP, NODE_GAP, MARGIN = 46.0, 18.0, 14.0
TITLE = 8.0  # what a cluster's title needs beyond the margin that dot leaves
MOST_NAME = 25  # characters on a box
DOT_SECONDS = 10
MOST_FOR_DOT = 1500  # boxes; beyond it dot takes too long

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """One operator, or that operator of `count` identical layers; `operators` are their indices in the graph."""

    name: str
    kind: str
    detail: str  # output shape and dtype
    cost: float
    group: int  # index of its cluster, -1 none
    operators: tuple[int, ...]
    x: float = 0.0  # centre
    y: float = 0.0
    width: float = 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """A tensor from one box to another; `later` when it reaches the next layer of a fold or the next iteration."""

    tail: int
    head: int
    tensor: str
    detail: str
    later: str  # "", "next layer", "next iteration"
    points: tuple[Point, ...] = ()
    at: Point | None = None  # of its label


@dataclass(frozen=True, slots=True)
class Cluster:
    """A layer, or several alike."""

    title: str
    members: tuple[int, ...]
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Drawing:
    """Boxes, lines and clusters with positions in pixels."""

    boxes: tuple[Box, ...]
    lines: tuple[Line, ...]
    clusters: tuple[Cluster, ...]
    width: float = 0.0
    height: float = 0.0
    engine: str = field(default="own", compare=False)


# ---- what to draw


def shape_text(tensor: Any) -> str:
    """`1×4096 bfloat16`."""
    if not tensor.dtype:
        return ""
    shape = "×".join(str(extent) for extent in tensor.shape) or "scalar"
    return f"{shape} {tensor.dtype}"


def _relative(name: str, layer: int | None) -> str:
    """A name without the prefix of its layer, so that layers can be compared."""
    return re.sub(rf"^(.*?)\b(layers?)([._]?){layer}\b[._]?", r"\1", name) if layer is not None else name


def simplify(graph: Any, cost: Mapping[str, float] | None = None, fold: bool = True) -> Drawing:
    """Boxes and lines of a Graph, not placed yet. Runs of identical layers become one cluster, "× 30"."""
    operators = list(graph.operators)
    tensors = graph.tensors
    layers: list[list[int]] = []
    of: dict[int, int] = {}  # operator -> position in `layers`
    for i, o in enumerate(operators):
        if o.layer is None:
            continue
        if not layers or operators[layers[-1][-1]].layer != o.layer:
            layers.append([])
        layers[-1].append(i)
        of[i] = len(layers) - 1

    def signature(members: list[int]) -> tuple[object, ...]:
        place = {operators[i].operands[k]: (n, k) for n, i in enumerate(members) for k in operators[i].outputs}
        parts: list[object] = []
        for i in members:
            o = operators[i]
            operands = tuple(
                (k, str(tensors[t].shape), str(tensors[t].dtype), tensors[t].role, place.get(t, "outside"))
                for k, t in sorted(o.operands.items())
            )
            attrs = tuple(sorted((str(k), str(v)) for k, v in o.attrs.items()))
            parts.append((_relative(o.name, o.layer), o.op, operands, attrs))
        return tuple(parts)

    runs: list[list[int]] = []  # positions in `layers` drawn as one
    for position, members in enumerate(layers):
        if fold and runs and signature(layers[runs[-1][-1]]) == signature(members) and runs[-1][-1] == position - 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    box_of: dict[int, int] = {}
    boxes: list[Box] = []
    clusters: list[Cluster] = []
    started: set[int] = set()
    run_of = {position: r for r, run in enumerate(runs) for position in run}
    for i in range(len(operators)):
        if i in of:
            r = run_of[of[i]]
            if r in started:
                continue
            started.add(r)
            first = layers[runs[r][0]]
            inside: list[int] = []
            for n, lead in enumerate(first):
                same = tuple(layers[position][n] for position in runs[r])
                for other in same:
                    box_of[other] = len(boxes)
                inside.append(len(boxes))
                boxes.append(_box(operators, tensors, same, lead, cost, len(clusters)))
            numbers = [operators[layers[position][0]].layer for position in runs[r]]
            title = (
                f"layer {numbers[0]}" if len(numbers) == 1 else f"layers {numbers[0]}–{numbers[-1]}  × {len(numbers)}"
            )
            clusters.append(Cluster(title, tuple(inside)))
        else:
            box_of[i] = len(boxes)
            boxes.append(_box(operators, tensors, (i,), i, cost, -1))
    return Drawing(tuple(boxes), _lines(operators, tensors, box_of, of), tuple(clusters))


def _box(
    operators: Sequence[Any],
    tensors: Mapping[str, Any],
    same: tuple[int, ...],
    lead: int,
    cost: Mapping[str, float] | None,
    group: int,
) -> Box:
    o = operators[lead]
    written = [tensors[o.operands[k]] for k in o.outputs if tensors[o.operands[k]].role != "state"]
    name = _relative(o.name, o.layer) if len(same) > 1 else o.name
    detail = shape_text(written[0]) if written else ""
    if cost is not None:
        amount = sum(float(cost.get(operators[i].name, 0.0)) for i in same) / len(same)
    else:
        amount = float(
            sum(
                getattr(tensors[t], "bytes", 0)
                for t in dict.fromkeys(o.operands.values())
                if tensors[t].role == "weight"
            )
        )
    longest = max(1.12 * len(raster.shorten(name, MOST_NAME)), 0.92 * len(raster.shorten(f"{o.op} {detail}", 34)))
    return Box(name, o.op, detail, amount, group, same, width=max(70.0, 20 + CHARACTER * longest))


def _lines(
    operators: Sequence[Any], tensors: Mapping[str, Any], box_of: Mapping[int, int], layer_of: Mapping[int, int]
) -> tuple[Line, ...]:
    """Every read of a tensor some operator wrote: in program order, or by the iteration before."""
    writer: dict[str, int] = {}
    lines: dict[tuple[int, int, str], Line] = {}
    last: dict[str, int] = {}
    for i, o in enumerate(operators):
        for k in o.outputs:
            last[o.operands[k]] = i

    def add(source: int, target: int, tensor: str, later: str) -> None:
        tail, head = box_of[source], box_of[target]
        if not later and head == tail and source != target:
            later = "next layer"
        if not later and layer_of.get(source, -1) != layer_of.get(target, -1) and boxes_back(tail, head):
            later = "next layer"
        if tail == head and not later:
            return
        name = _relative(tensor, operators[source].layer)
        key = (tail, head, later)
        if key not in lines or (tensors[tensor].role == "activation" and key in lines and not lines[key].tensor):
            lines[key] = Line(tail, head, name, shape_text(tensors[tensor]), later)

    def boxes_back(tail: int, head: int) -> bool:
        return head <= tail

    for i, o in enumerate(operators):
        reads = [k for k in o.operands if k not in o.outputs or tensors[o.operands[k]].role == "state"]
        for name in dict.fromkeys(o.operands[k] for k in reads):
            if name in writer and writer[name] != i:
                add(writer[name], i, name, "")
            elif name not in writer and last.get(name, i) != i:
                add(last[name], i, name, "next iteration")
        for k in o.outputs:
            writer[o.operands[k]] = i
    return tuple(lines.values())


# ---- where it goes


def place(drawing: Drawing, engine: str = "auto") -> Drawing:
    """Positions from `dot` where there is one, else from our own layered layout. Never fails for want of a program."""
    if not drawing.boxes:
        return drawing
    if engine in ("auto", "dot") and len(drawing.boxes) <= MOST_FOR_DOT:
        program = find_dot()
        if program is not None:
            try:
                return _place_by_dot(drawing, program)
            except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError, AttributeError, IndexError):
                pass  # an old, broken or different dot: our own layout always works
    return _place_ourselves(drawing)


def find_dot() -> str | None:
    """Graphviz's `dot`, or the pure stand-in that a package brings; None without either."""
    beside = Path(sys.executable).parent / "graphviz-pure"
    return shutil.which("dot") or shutil.which("graphviz-pure") or (str(beside) if beside.exists() else None)


def dot_source(drawing: Drawing) -> str:
    """The graph for `dot`: numbers only. No name of a user's reaches it, so nothing needs escaping."""
    out = [
        "digraph g {", 'graph [rankdir=TB, ranksep=0.42, nodesep=0.28];', 'node [shape=box, fixedsize=true, label=""];',
        'edge [arrowsize=0.6];',
    ]  # fmt: skip
    for c, cluster in enumerate(drawing.clusters):
        out.append(f"subgraph cluster_{c} {{ margin=14; " + " ".join(f"n{m};" for m in cluster.members) + " }")
    for i, box in enumerate(drawing.boxes):
        out.append(f"n{i} [width={box.width / 72:.3f}, height={HIGH / 72:.3f}];")
    for e, line in enumerate(drawing.lines):
        if line.later:
            continue
        wide = CHARACTER * 0.85 * min(30, len(line.detail))
        label = f'<<table border="0" cellborder="0" fixedsize="true" width="{wide:.0f}" height="12"><tr><td></td></tr></table>>'
        out.append(f"n{line.tail} -> n{line.head} [id=e{e}, label={label}];")
    return "\n".join([*out, "}"])


def _place_by_dot(drawing: Drawing, program: str) -> Drawing:
    done = subprocess.run(
        [program, "-Tjson"], input=dot_source(drawing).encode(), capture_output=True, timeout=DOT_SECONDS, check=True
    )  # fmt: skip
    told = json.loads(done.stdout)
    left, bottom, right, top = (float(v) for v in told["bb"].split(","))

    def point(text: str) -> Point:
        x, y = text.split(",")[-2:]
        return float(x) - left + MARGIN, top - float(y) + MARGIN

    boxes = list(drawing.boxes)
    clusters = list(drawing.clusters)
    for thing in told["objects"]:
        if re.fullmatch(r"n\d+", thing["name"]):
            k = int(thing["name"][1:])
            x, y = point(thing["pos"])
            boxes[k] = replace(boxes[k], x=x, y=y)
        elif re.fullmatch(r"cluster_\d+", thing["name"]):
            k = int(thing["name"][8:])
            x0, y0, x1, y1 = (float(v) for v in thing["bb"].split(","))
            y1 += TITLE
            clusters[k] = replace(clusters[k], box=(x0 - left + MARGIN, top - y1 + MARGIN, x1 - x0, y1 - y0))
    lines = list(drawing.lines)
    for edge in told.get("edges", ()):
        k = int(edge["id"][1:])
        parts = edge["pos"].split(" ")
        end = [point(p) for p in parts if p.startswith("e,")]
        start = [point(p) for p in parts if p.startswith("s,")]
        points = [point(p) for p in parts if p[0] not in "es"]
        lines[k] = replace(lines[k], points=tuple(start + points + end), at=point(edge["lp"]) if "lp" in edge else None)
    if any(not line.points and not line.later for line in lines):
        raise ValueError("an edge came back without a path")
    wide, high = right - left + 2 * MARGIN, top - bottom + 2 * MARGIN
    lines, wide = _around(boxes, lines, wide)
    return Drawing(tuple(boxes), tuple(lines), tuple(clusters), wide, high, "dot")


def _around(boxes: Sequence[Box], lines: Sequence[Line], right: float) -> tuple[list[Line], float]:
    """Lines to the next layer or iteration go around the right side, short ones inside long ones; and the new width."""
    routed = list(lines)
    back = sorted(
        (k for k, line in enumerate(lines) if line.later),
        key=lambda k: abs(boxes[lines[k].tail].y - boxes[lines[k].head].y),
    )
    far = right
    taken: list[float] = []
    for place, k in enumerate(back):
        a, b = boxes[lines[k].tail], boxes[lines[k].head]
        far = right + 4 + 16 * place
        ay, by = a.y + 6, b.y - 6 if a is not b else b.y - 12
        middle = by + (ay - by) * (0.3 + 0.4 * (place % 4) / 3)
        while any(abs(middle - y) < 16 for y in taken):  # labels side by side would run into each other
            middle += 16
        taken.append(middle)
        start, end = (a.x + a.width / 2, ay), (b.x + b.width / 2, by)
        points = (start, (far, ay), (far, ay), (far, middle), (far, by), (far, by), end)
        routed[k] = replace(lines[k], points=points, at=(far, middle))
    return routed, far + 44 if back else right


def _place_ourselves(drawing: Drawing) -> Drawing:
    """Longest-path ranks, four barycentre sweeps, straight-down curves: linear, stable, needs nothing."""
    n = len(drawing.boxes)
    forward = [line for line in drawing.lines if not line.later and line.tail < line.head]
    rank = [0] * n
    for line in sorted(forward, key=lambda line: line.tail):
        rank[line.head] = max(rank[line.head], rank[line.tail] + 1)
    ranks: list[list[int]] = [[] for _ in range(max(rank) + 1)]
    for i in range(n):
        ranks[rank[i]].append(i)
    near: list[list[int]] = [[] for _ in range(n)]
    for line in forward:
        near[line.tail].append(line.head)
        near[line.head].append(line.tail)
    order = {i: float(k) for row in ranks for k, i in enumerate(row)}
    for sweep in range(4):
        for row in ranks if sweep % 2 == 0 else reversed(ranks):
            row.sort(key=lambda i: (sum(order[j] for j in near[i]) / len(near[i]) if near[i] else order[i], i))
            order.update({i: k - len(row) / 2 for k, i in enumerate(row)})
    widths = [sum(drawing.boxes[i].width + NODE_GAP for i in row) - NODE_GAP for row in ranks]
    whole = max(widths)
    boxes = list(drawing.boxes)
    for r, row in enumerate(ranks):
        x = MARGIN + (whole - widths[r]) / 2
        for i in row:
            boxes[i] = replace(boxes[i], x=x + boxes[i].width / 2, y=MARGIN + 24 + r * (HIGH + RANK_GAP) + HIGH / 2)
            x += boxes[i].width + NODE_GAP
    clusters = []
    for cluster in drawing.clusters:
        inside = [boxes[m] for m in cluster.members]
        x0 = min(b.x - b.width / 2 for b in inside) - 12
        x1 = max(b.x + b.width / 2 for b in inside) + 12
        y0 = min(b.y for b in inside) - HIGH / 2 - 22
        y1 = max(b.y for b in inside) + HIGH / 2 + 10
        clusters.append(replace(cluster, box=(x0, y0, x1 - x0, y1 - y0)))
    lines = []
    for line in drawing.lines:
        a, b = boxes[line.tail], boxes[line.head]
        y0, y1 = a.y + HIGH / 2, b.y - HIGH / 2
        half = (y1 - y0) / 2
        points = ((a.x, y0), (a.x, y0 + half), (b.x, y1 - half), (b.x, y1))
        lines.append(replace(line, points=points, at=((a.x + b.x) / 2, y0 + 0.35 * (y1 - y0))))
    lines, wide = _around(boxes, lines, 2 * MARGIN + whole)
    high = MARGIN + 24 + len(ranks) * (HIGH + RANK_GAP) - RANK_GAP + MARGIN
    return Drawing(tuple(boxes), tuple(lines), tuple(clusters), wide, high, "own")


# ---- the picture

_SVG_STYLE = (
    ".g-bg{fill:#fff}.g-text{fill:#1c1e21}.g-soft{fill:#5b6069}.g-line{stroke:#6b7280;fill:none}.g-head{fill:#6b7280}"
    ".g-group{fill:#f4f5f7;stroke:#c6cad1}.g-halo{stroke:#fff;stroke-width:3;paint-order:stroke}"
    "@media (prefers-color-scheme:dark){.g-bg{fill:#15171b}.g-text{fill:#e4e6ea}.g-soft{fill:#a2a8b3}.g-line{stroke:#8d95a1}"
    ".g-head{fill:#8d95a1}.g-group{fill:#1f2228;stroke:#3a3f47}.g-halo{stroke:#15171b}}"
)


def shades(drawing: Drawing) -> list[float]:
    """Each box's cost between 0 and 1, for its colour: by its logarithm over three powers of ten."""
    most = max((box.cost for box in drawing.boxes), default=0.0)
    return [
        max(0.0, 1 + np.log10(max(box.cost / most, 1e-3)) / 3) if most > 0 and box.cost > 0 else 0.0
        for box in drawing.boxes
    ]


def _fill(shade: float) -> tuple[str, str]:
    """Pale to strong orange, with the ink that can be read on it."""
    pale, strong = (253, 244, 232), (232, 120, 32)
    r, g, b = (round(p + (s - p) * shade) for p, s in zip(pale, strong, strict=True))
    return f"#{r:02x}{g:02x}{b:02x}", "#1c1e21"


def path_of(points: Sequence[Point]) -> str:
    """Cubic curve through dot's control points; a straight line where there are only two."""
    if len(points) % 3 != 1:  # dot gives 1 + 3k points; an arrow's tip may follow
        head = points[: 1 + 3 * ((len(points) - 1) // 3)]
        rest = points[len(head) :]
    else:
        head, rest = points, ()
    start = f"M{head[0][0]:.1f},{head[0][1]:.1f}"
    curve = " ".join(f"{x:.1f},{y:.1f}" for x, y in head[1:])
    tail = "".join(f"L{x:.1f},{y:.1f}" for x, y in rest)
    return start + (f"C{curve}" if curve else "") + tail


def svg(drawing: Drawing, title: str) -> str:
    """The drawing as one SVG text; every name is escaped, light and dark follow the reader's setting."""
    escape = html.escape
    if not drawing.boxes:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="420" height="40" role="img"><style>{_SVG_STYLE}</style>'
            f'<rect class="g-bg" width="420" height="40"/><text class="g-text" x="10" y="25">{escape(NO_OPERATORS)}</text></svg>'
        )
    wide, high = drawing.width, drawing.height
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {high:.0f}" width="{wide:.0f}" height="{high:.0f}" '
        f'role="img" font-family="system-ui,sans-serif" font-size="11"><title>{escape(title)}</title><style>{_SVG_STYLE}</style>',
        '<defs><marker id="mpk-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="g-head" d="M0,0L8,4L0,8Z"/></marker></defs>',
        f'<rect class="g-bg" width="{wide:.0f}" height="{high:.0f}"/>',
    ]
    for cluster in drawing.clusters:
        x, y, w, h = cluster.box
        out.append(f'<rect class="g-group" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="6"/>')
    for line in drawing.lines:
        dash = ' stroke-dasharray="5 4"' if line.later else ""
        full = f"{line.tensor} {line.detail}{', ' + line.later if line.later else ''}"
        out.append(
            f'<path class="g-line" d="{path_of(line.points)}" marker-end="url(#mpk-tip)"{dash}><title>{escape(full)}</title></path>'
        )
    for line in drawing.lines:
        if line.at is not None:
            text = line.later or line.detail
            out.append(
                f'<text class="g-soft g-halo" x="{line.at[0]:.1f}" y="{line.at[1] + 3:.1f}" text-anchor="middle" font-size="10">'
                f"{escape(raster.shorten(text, 30))}</text>"
            )
    for cluster in drawing.clusters:  # over the lines that cross it
        x, y, *_ = cluster.box
        name = escape(raster.shorten(cluster.title, 40))
        out.append(f'<text class="g-soft g-halo" x="{x + 8:.1f}" y="{y + 13:.1f}" font-weight="600">{name}</text>')
    kinds = sorted({box.kind for box in drawing.boxes})
    stripe = dict(zip(kinds, kind_colours(kinds), strict=True))
    for box, shade in zip(drawing.boxes, shades(drawing), strict=True):
        fill, ink = _fill(shade)
        x, y = box.x - box.width / 2, box.y - HIGH / 2
        colour = PALETTE["light"][stripe[box.kind] % len(PALETTE["light"])]
        cost = f", {amount(box.cost)}" if box.cost else ""
        out.append(
            f"<g><title>{escape(f'{box.name}: {box.kind} {box.detail}{cost}')}</title>"
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{box.width:.1f}" height="{HIGH:.0f}" rx="4" fill="{fill}" stroke="#9aa0aa"/>'
            f'<rect x="{x:.1f}" y="{y:.1f}" width="5" height="{HIGH:.0f}" rx="2" fill="{colour}"/>'
            f'<text x="{x + 11:.1f}" y="{y + 16:.1f}" fill="{ink}" font-weight="600">{escape(raster.shorten(box.name, MOST_NAME))}</text>'
            f'<text x="{x + 11:.1f}" y="{y + 31:.1f}" fill="{ink}" font-size="10">'
            f"{escape(raster.shorten(f'{box.kind} {box.detail}', 34))}</text></g>"
        )
    out.append("</svg>")
    return "".join(out)


def amount(value: float) -> str:
    """`12.6M`."""
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


class OperatorGraph(View):
    """The operator graph as a picture. Shows itself as a cell's last line; `to_svg`, `to_html` and `save` keep it."""

    module = "opgraph.js"
    mount = "mountGraph"

    def __init__(self, graph: Any, drawing: Drawing, title: str, cost_name: str, first: Any = None):
        self.graph = graph
        self.drawing = drawing
        self.cost_name = cost_name
        self.first = None if first is None else np.asarray(first, np.int64)
        super().__init__(title, int(self.first[-1]) if self.first is not None and len(self.first) else 0)

    def packed(self) -> tuple[dict[str, Any], dict[str, Column]]:
        """Header and columns for opgraph.js."""
        drawing = self.drawing
        kinds = sorted({box.kind for box in drawing.boxes})
        lines = [
            {
                "tail": line.tail, "head": line.head, "tensor": line.tensor, "detail": line.detail, "later": line.later,
                "path": path_of(line.points) if line.points else "", "at": [round(v, 1) for v in line.at] if line.at else None,
            }
            for line in drawing.lines
        ]  # fmt: skip
        meta: dict[str, Any] = {
            "title": self.title, "width": drawing.width, "height": drawing.height, "high": HIGH, "cost_name": self.cost_name,
            "boxes": [
                {
                    "name": box.name, "kind": kinds.index(box.kind), "detail": box.detail, "cost": box.cost, "shade": shade,
                    "x": round(box.x, 1), "y": round(box.y, 1), "w": round(box.width, 1), "ops": list(box.operators),
                    "inside": self.inside(box),
                }
                for box, shade in zip(drawing.boxes, shades(drawing), strict=True)
            ],
            "lines": lines,
            "clusters": [{"title": c.title, "box": [round(v, 1) for v in c.box]} for c in drawing.clusters],
            "kinds": [{"name": kind, "colour": colour} for kind, colour in zip(kinds, kind_colours(kinds), strict=True)],
            "palette": PALETTE,
            "empty": NO_OPERATORS,
        }  # fmt: skip
        first = self.first if self.first is not None else np.zeros(len(self.graph.operators) + 1, np.int64)
        return meta, {"first": Column(first, delta=True)}

    def inside(self, box: Box) -> str:
        """The operator's block graph and thread graph as text, where the graph can tell."""
        parts = []
        name = self.graph.operators[box.operators[0]].name
        for title, ask in (("one tile", "block_graph"), ("its warps and lanes", "thread_graph")):
            if hasattr(self.graph, ask) and len(self.drawing.boxes) <= 400:
                try:
                    told = str(getattr(self.graph, ask)(name))
                except Exception as error:  # a picture without this panel is still a picture
                    told = f"not available: {error}"
                parts.append(f"{title}\n{told[:4000]}")
        return "\n\n".join(parts)

    def data(self, level: int = 9) -> bytes:
        """What opgraph.js draws, packed."""
        return container(*self.packed(), level)

    def to_svg(self, path: str | Path | None = None) -> str | Path:
        """The picture as SVG. Returns the text, or the path."""
        text = svg(self.drawing, self.title)
        if path is None:
            return text
        target = Path(path)
        target.write_text(text, encoding="utf-8")
        return target

    def save(self, path: str | Path) -> Path:
        """SVG, page or picture, by the path's suffix."""
        if Path(path).suffix == ".svg":
            return Path(self.to_svg(path))
        return super().save(path)

    def text(self) -> str:
        """What the picture says, in words."""
        if not self.drawing.boxes:
            return f"{self.title}: {NO_OPERATORS}"
        folded = [cluster.title for cluster in self.drawing.clusters if "×" in cluster.title]
        inside = f"; {', '.join(folded)}" if folded else ""
        size = f"{len(self.graph.operators)} operators, {len(self.graph.tensors)} tensors"
        return f"{self.title}: {size}, drawn as {len(self.drawing.boxes)} boxes{inside}"

    def picture(self, width: int = 900) -> raster.Picture:
        """The drawing as pixels, at its own size."""
        drawing = self.drawing
        if not drawing.boxes:
            return raster.message(NO_OPERATORS, width)
        picture = raster.Picture(int(drawing.width) + 1, int(drawing.height) + 1)
        for cluster in drawing.clusters:
            x, y, w, h = cluster.box
            picture.fill(x, y, w, h, (244, 245, 247))
            picture.text(int(x) + 6, int(y) + 5, raster.shorten(cluster.title, 40), raster.FAINT)
        for line in drawing.lines:
            picture.curve(line.points[: 1 + 3 * ((len(line.points) - 1) // 3)], (107, 114, 128), bool(line.later))
        for line in drawing.lines:
            if line.at is not None:
                text = raster.shorten(line.later or line.detail, 30)
                x, y = int(line.at[0]) - 3 * len(text), int(line.at[1]) - 3
                picture.fill(x - 2, y - 1, 6 * len(text) + 3, 9, (255, 255, 255))
                picture.text(x, y, text, raster.FAINT)
        kinds = sorted({box.kind for box in drawing.boxes})
        stripe = dict(zip(kinds, kind_colours(kinds), strict=True))
        for box, shade in zip(drawing.boxes, shades(drawing), strict=True):
            x, y = int(box.x - box.width / 2), int(box.y - HIGH / 2)
            picture.fill(x - 1, y - 1, box.width + 2, HIGH + 2, (154, 160, 170))
            picture.fill(x, y, box.width, HIGH, raster.rgb(_fill(shade)[0]))
            picture.fill(x, y, 5, HIGH, raster.rgb(PALETTE["light"][stripe[box.kind] % len(PALETTE["light"])]))
            picture.text(x + 10, y + 9, raster.shorten(box.name, MOST_NAME))
            picture.text(
                x + 10, y + 24, raster.shorten(f"{box.kind} {box.detail}", int(box.width - 14) // 6), raster.INK
            )
        return picture

    def rows(self, tasks: list[int]) -> pd.DataFrame:
        """The operators of these tasks."""
        import pandas as pd

        first = self.first if self.first is not None else np.zeros(0, np.int64)
        found = np.searchsorted(first, tasks, side="right") - 1 if len(first) else np.zeros(0, np.int64)
        names = [self.graph.operators[o] for o in found.tolist()]
        return pd.DataFrame({"task": tasks[: len(names)], "op": [o.name for o in names], "kind": [o.op for o in names]})

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(include, exclude)
        try:
            picture = svg(self.drawing, self.title)
            encoded = base64.b64encode(picture.encode()).decode()
            bundle["image/svg+xml"] = picture
            bundle["text/html"] = card(self.text(), encoded, "image/svg+xml")
        except Exception as error:  # a repr never raises
            bundle["text/plain"] = f"{self.title} (could not be drawn: {error})"
        return bundle


@answers_slips(GraphError)
def graph_view(
    graph: Any,
    *,
    cost: Mapping[str, float] | None = None,
    cost_name: str = "weight bytes",
    fold: bool = True,
    engine: str = "auto",
    title: str | None = None,
    first: Any = None,
) -> OperatorGraph:
    """The operator graph as a view to explore. `cost` maps operator names to what their colour says (default: bytes of weights).

    `fold` draws runs of identical layers once; `engine` is "auto", "dot" or "own"; `first` (a TaskGraph's) lets a click
    select tasks.
    """
    name = str(title if title is not None else getattr(graph, "name", "operator graph"))
    return OperatorGraph(graph, place(simplify(graph, cost, fold), engine), name, cost_name, first)


def operator_graph(graph: Any, **options: Any) -> str:
    """The operator graph as SVG text; options as for `graph_view`."""
    return str(graph_view(graph, **options).to_svg())
