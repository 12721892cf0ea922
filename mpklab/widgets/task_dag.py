"""The task graph: every tile of every operator in one picture, and for a selection what it waits for and what waits for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpklab.errors import GraphError, ScheduleError, answers_slips, suggest
from mpklab.frames import spans as spans_of
from mpklab.plots import PALETTE, kind_colours
from mpklab.widgets import raster
from mpklab.widgets.page import Column, container
from mpklab.widgets.raster import counted
from mpklab.widgets.view import View

if TYPE_CHECKING:
    import pandas as pd

# Layout in cells, one task a cell; dag.js has the same numbers.
TITLE, PAD, GAP, BETWEEN, HEAD = 3, 1, 2, 3, 6
MOST_UNFOLDED = 200_000  # above it the picture starts with layers folded
NO_TASKS = "No tasks: the graph is empty, or lowering made no tile of it."
FOLDED = "{:,} tasks are more than can be told apart, so the layers are folded: double-click one to open it."
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Edges:
    """Tile j of operator `consumer` comes after tiles begin[j] … end[j]-1 of `producer`, `lag` iterations before."""

    producer: int
    consumer: int
    tensor: str
    kind: str
    lag: int
    begin: Ints
    end: Ints


@dataclass(frozen=True, slots=True)
class TaskTable:
    """What the picture needs of a TaskGraph or of a Profile: arrays over operators, tasks, edge sets and events."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    layers: Ints  # -1 none
    first: Ints  # task ids of operator o are first[o] … first[o + 1]
    tile: NDArray[Any]  # int[n, 4]
    values: Mapping[str, NDArray[Any]]  # numbers per task to colour by; negative: unknown
    edges: tuple[Edges, ...]
    waits: tuple[Ints, Ints, Ints] | None = None  # CSR over tasks: first, event, lag
    events: tuple[Ints, Ints, Ints] | None = None  # producer operator (-1 several), first tile, how many tiles

    @property
    def n(self) -> int:
        return int(self.first[-1]) if len(self.first) else 0

    @property
    def operator_of(self) -> Ints:
        """The operator index of every task."""
        return np.repeat(np.arange(len(self.names)), np.diff(self.first))


def read_tasks(tasks: Any) -> TaskTable:
    """The table of a TaskGraph (`operators`, `first`, `tile`, `bytes`, `flops`, `edges`, and events where it has them)."""
    operators = list(tasks.operators)
    waits = events = None
    if getattr(tasks, "wait_event", None) is not None:
        waits = (_ints(tasks.wait_first), _ints(tasks.wait_event), _ints(tasks.wait_lag))
        begin = _ints(tasks.event_begin)
        events = (_ints(tasks.event_producer), begin, _ints(tasks.event_end) - begin)
    return TaskTable(
        names=tuple(str(o.name) for o in operators),
        kinds=tuple(str(o.op) for o in operators),
        layers=_ints([-1 if o.layer is None else o.layer for o in operators]),
        first=_ints(tasks.first),
        tile=np.asarray(tasks.tile),
        values={"bytes": np.asarray(tasks.bytes, float), "flops": np.asarray(tasks.flops, float)},
        edges=tuple(
            Edges(
                int(e.producer), int(e.consumer), str(e.tensor), str(e.kind), int(e.lag), _ints(e.begin), _ints(e.end)
            )
            for e in tasks.edges
        ),
        waits=waits,
        events=events,
    )


def read_profile(profile: Any) -> TaskTable:
    """The table that a recording carries, so that it can be drawn without the process that made it."""
    n_events = len(profile.events["need"])
    signal_first, signal_event = _ints(profile.signals["signal_begin"]), _ints(profile.signals["signal_event"])
    task = np.repeat(np.arange(len(signal_first) - 1), np.diff(signal_first))
    low, high = np.full(n_events, np.iinfo(np.int64).max), np.full(n_events, -1)
    np.minimum.at(low, signal_event, task)
    np.maximum.at(high, signal_event, task)
    producer = _ints(profile.events["producer_operator"])
    first = _ints(profile.task_first)
    base = np.where(producer >= 0, first[np.clip(producer, 0, max(0, len(first) - 2))], 0)
    silent = (high < 0) | (producer < 0)
    return TaskTable(
        names=tuple(str(o["name"]) for o in profile.operators),
        kinds=tuple(str(o["op"]) for o in profile.operators),
        layers=_ints([o.get("layer", -1) for o in profile.operators]),
        first=first,
        tile=np.asarray(profile.tasks["tile"]),
        values={"bytes": np.asarray(profile.tasks["bytes"], float), "flops": np.asarray(profile.tasks["flops"], float)},
        edges=tuple(
            Edges(
                int(e["producer"]),
                int(e["consumer"]),
                str(e["tensor"]),
                str(e["kind"]),
                int(e["lag"]),
                _ints(e["begin"]),
                _ints(e["end"]),
            )
            for e in profile.edges
        ),
        waits=(
            _ints(profile.waits["wait_begin"]),
            _ints(profile.waits["wait_event"]),
            _ints(profile.waits["wait_lag"]),
        ),
        events=(np.where(silent, -1, producer), np.where(silent, 0, low - base), np.where(silent, 0, high - low + 1)),
    )


def table_of(tasks: Any) -> TaskTable:
    """The table of a TaskGraph, of a Profile, or one that is a table already."""
    if isinstance(tasks, TaskTable):
        return tasks
    return read_profile(tasks) if hasattr(tasks, "task_first") else read_tasks(tasks)


def measured(table: TaskTable, spans: pd.DataFrame) -> dict[str, NDArray[Any]]:
    """Means over iterations per task: worker (the last one), begin in its iteration, waiting and executing; -1 unknown."""
    n = table.n
    task = spans["task"].to_numpy(np.int64)
    known = (task >= 0) & (task < n)
    phase = np.asarray(spans["phase"].astype(str))
    begin, end = spans["begin_ns"].to_numpy(np.int64), spans["end_ns"].to_numpy(np.int64)
    iteration = spans["iteration"].to_numpy(np.int64)
    start = np.full(int(iteration.max(initial=-1)) + 2, np.iinfo(np.int64).max)
    np.minimum.at(start, iteration, begin)  # iteration -1 is the last entry
    found: dict[str, NDArray[Any]] = {}
    worker = np.full(n, -1.0)
    execute = known & (phase == "execute")
    worker[task[execute]] = spans["worker"].to_numpy(np.int64)[execute]
    found["worker"] = worker
    times = np.bincount(task[execute], minlength=n)
    for name, chosen, amount in (
        ("dur_ns", execute, end - begin),
        ("wait_ns", known & (phase == "wait"), end - begin),
        ("begin_ns", execute, begin - start[iteration]),
    ):
        total = np.bincount(task[chosen], weights=amount[chosen].astype(float), minlength=n)
        found[name] = np.where(times > 0, total / np.maximum(times, 1), -1.0)
    return found


def _ints(values: Any) -> Ints:
    return np.asarray(values, np.int64)


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions in cells: boxes of operators (x, y, width, height) and the corner of every task."""

    boxes: Ints  # [n_ops, 4]
    x: Ints
    y: Ints
    width: int
    height: int
    across: int
    group: Ints  # per operator
    group_names: tuple[str, ...]


def groups_of(table: TaskTable) -> tuple[Ints, tuple[str, ...]]:
    """The column of each operator: its layer, in program order; a graph without layers goes by dependency level."""
    n_ops = len(table.names)
    if not n_ops:
        return _ints([]), ()
    if (table.layers < 0).all():
        level = np.zeros(n_ops, np.int64)
        for edges in sorted(
            (e for e in table.edges if not e.lag and e.producer < e.consumer), key=lambda e: e.consumer
        ):
            level[edges.consumer] = max(level[edges.consumer], level[edges.producer] + 1)
        used, group = np.unique(level, return_inverse=True)
        return _ints(group), tuple(f"level {int(k)}" for k in used)
    change = np.flatnonzero(np.r_[True, table.layers[1:] != table.layers[:-1]])
    group = _ints(np.cumsum(np.r_[0, (table.layers[1:] != table.layers[:-1]).astype(np.int64)]))
    last = np.r_[change[1:], n_ops] - 1
    outside = [
        name if a == b else f"{name} … {table.names[b]}"
        for a, b in zip(change, last, strict=True)
        for name in [table.names[a]]
    ]
    layers = table.layers[change].tolist()
    return group, tuple(f"layer {k}" if k >= 0 else name for k, name in zip(layers, outside, strict=True))


def across_of(table: TaskTable) -> int:
    """How many tiles stand side by side in every box: twice as wide as high for the most tiles, ten at least for a name."""
    return max(10, math.ceil(math.sqrt(2 * max(np.diff(table.first), default=1)))) if table.n else 10


def lay_out(table: TaskTable, aspect: float = 2.0) -> Layout:
    """Analytic: layer → operator → tile. Linear in tasks; the same numbers as `place` in dag.js."""
    group, names = groups_of(table)
    across = across_of(table)
    counts = np.diff(table.first)
    rows = np.maximum(1, -(-counts // across))
    high = TITLE + rows + 2 * PAD
    heights = np.bincount(group, weights=high + GAP, minlength=len(names)).astype(np.int64) + HEAD
    wide = across + 2 * PAD

    def arrange(per_band: int) -> tuple[int, int, Ints]:
        padded = np.zeros(-(-len(heights) // per_band) * per_band, np.int64)
        padded[: len(heights)] = heights
        bands = padded.reshape(-1, per_band).max(axis=1) + GAP
        tops = np.r_[0, np.cumsum(bands)]
        return min(per_band, len(heights)) * (wide + BETWEEN) - BETWEEN, max(1, int(tops[-1]) - GAP), tops

    best, waste = 1, math.inf
    for per_band in range(1, len(heights) + 1):
        w, h, _ = arrange(per_band)
        if max(w / aspect, h) < waste - 1e-9:
            best, waste = per_band, max(w / aspect, h)
    if not len(heights):
        empty = _ints([])
        return Layout(np.zeros((0, 4), np.int64), empty, empty, 1, 1, across, group, names)
    width, height, tops = arrange(best)
    column_x = (np.arange(len(heights)) % best) * (wide + BETWEEN)
    column_y = tops[np.arange(len(heights)) // best] + HEAD
    # Within a column operators follow each other; the running height starts again with each group.
    order = np.argsort(group, kind="stable")
    running = np.cumsum(np.r_[0, (high + GAP)[order][:-1]])
    starts = np.r_[True, group[order][1:] != group[order][:-1]]
    offset = np.empty(len(counts), np.int64)
    offset[order] = running - np.repeat(running[starts], np.diff(np.r_[np.flatnonzero(starts), len(order)]))
    boxes = np.stack([column_x[group], column_y[group] + offset, np.full(len(counts), wide), high], axis=1)
    op = table.operator_of
    tile = np.arange(table.n) - table.first[op]
    x = boxes[op, 0] + PAD + tile % across
    y = boxes[op, 1] + TITLE + PAD + tile // across
    return Layout(boxes, x, y, width, height, across, group, names)


class TaskDag(View):
    """The task graph as a picture. Shows itself as a cell's last line; `to_html`, `to_png` and `save` keep it."""

    module = "dag.js"
    mount = "mountDag"

    def __init__(self, table: TaskTable, title: str, options: Mapping[str, Any]):
        super().__init__(title, table.n)
        self.table = table
        self.options = options
        self._stages: list[tuple[str, float, str]] = []
        self._iterations: tuple[int, int | None] = (0, None)
        self._faults: list[dict[str, Any]] = []

    # ---- while something is going on

    def stage(self, name: str, seconds: float, text: str = "") -> None:
        """A stage has ended; `mk.compile(…, report=dag.stage)` tells of each one above the picture."""
        self._stages.append((str(name), float(seconds), str(text)))
        self._tell(now=True)

    def running(self, iteration: int, of: int | None = None) -> None:
        """How many iterations have ended, and of how many; shown at 10 Hz at most."""
        self._iterations = (int(iteration), None if of is None else int(of))
        self._tell(now=of is not None and iteration >= of)

    def step(self, *_: object) -> None:
        """One more iteration has ended: `kernel.generate(…, on_token=dag.step)`."""
        self.running(self._iterations[0] + 1, self._iterations[1])

    def failed(self, error: Exception) -> None:
        """What went wrong: the two tasks of a ScheduleError and the edge that is missing between them in red."""
        self._faults += _faults(self.table, [error])
        self._tell(now=True)

    def state(self) -> dict[str, Any]:
        """What is going on, as the picture shows it: stages, iterations, faults."""
        return {
            "stages": self._stages,
            "iteration": self._iterations[0],
            "of": self._iterations[1],
            "faults": self._faults,
        }

    def packed(self) -> tuple[dict[str, Any], dict[str, Column]]:
        """Header and columns for dag.js."""
        table = self.table
        group, names = groups_of(table)
        kinds = sorted(set(table.kinds))
        tensors = sorted({e.tensor for e in table.edges})
        edge_kinds = sorted({e.kind for e in table.edges})
        of_tensor = {name: k for k, name in enumerate(tensors)}
        edges = table.edges
        meta: dict[str, Any] = {
            "title": self.title,
            "ops": [
                {"name": name, "kind": kinds.index(kind), "layer": int(layer)}
                for name, kind, layer in zip(table.names, table.kinds, table.layers, strict=True)
            ],
            "kinds": [
                {"name": kind, "colour": colour} for kind, colour in zip(kinds, kind_colours(kinds), strict=True)
            ],
            "groups": list(names),
            "across": across_of(table),
            "collapsed": table.n > MOST_UNFOLDED,
            "tensors": tensors,
            "edge_kinds": edge_kinds,
            "columns": [{"name": name} for name in table.values],
            "palette": PALETTE,
            "color": self.options["color"],
            "height": self.options["height"],
            "paths": [{"name": name, "column": f"path{k}"} for k, name in enumerate(self.options["paths"])],
            "missing": self.options["missing"],
            "notes": [*self.options["notes"], *([FOLDED.format(table.n)] if table.n > MOST_UNFOLDED else [])],
            "state": self.state(),
            "empty": NO_TASKS,
        }
        columns = {
            "first": Column(table.first, delta=True),
            "group": Column(group, delta=True),
            "edge_producer": Column(_ints([e.producer for e in edges]), delta=True),
            "edge_consumer": Column(_ints([e.consumer for e in edges]), delta=True),
            "edge_tensor": Column(_ints([of_tensor[e.tensor] for e in edges])),
            "edge_kind": Column(_ints([edge_kinds.index(e.kind) for e in edges])),
            "edge_lag": Column(_ints([e.lag for e in edges])),
            "edge_begin": Column(np.concatenate([*(e.begin for e in edges), _ints([])]), delta=True),
            "edge_length": Column(np.concatenate([*(np.maximum(e.end - e.begin, 0) for e in edges), _ints([])])),
        }
        for k in range(4):
            columns[f"tile{k}"] = Column(table.tile[:, k] if len(table.tile) else _ints([]), delta=True)
        for k, values in enumerate(table.values.values()):
            whole = np.asarray(values)
            # Integers pack smaller and read exactly; ratios stay floats.
            plain = whole.dtype.kind != "f" or bool((whole == np.round(whole)).all() and (np.abs(whole) < 2**50).all())
            columns[f"value{k}"] = Column(
                whole.astype(np.int64) if plain else np.where(np.isfinite(whole), whole, -1), delta=plain
            )
        for k, path in enumerate(self.options["paths"].values()):
            columns[f"path{k}"] = Column(_ints(path), delta=True)
        if table.waits is not None and table.events is not None:
            first, event, lag = table.waits
            producer, begin, size = table.events
            columns |= {
                "wait_first": Column(first, delta=True), "wait_event": Column(event, delta=True), "wait_lag": Column(lag),
                "event_producer": Column(producer, delta=True), "event_begin": Column(begin, delta=True), "event_size": Column(size),
            }  # fmt: skip
        return meta, columns

    def data(self, level: int = 9) -> bytes:
        """What dag.js draws, packed."""
        return container(*self.packed(), level)

    def text(self) -> str:
        """What the picture says, in words."""
        table = self.table
        if not table.n:
            return f"{self.title}: {NO_TASKS}"
        edges = sum(int(np.maximum(e.end - e.begin, 0).sum()) for e in table.edges)
        layers = len(set(table.layers[table.layers >= 0].tolist()))
        inside = f" in {counted(layers, 'layer')}" if layers else ""
        events = f", {counted(len(table.events[0]), 'event')}" if table.events is not None else ""
        folded = "; drawn with its layers folded" if table.n > MOST_UNFOLDED else ""
        said = f"{counted(table.n, 'task')} of {counted(len(table.names), 'operator')}"
        notes = "".join(
            f"\n  {note}" for note in (*self.options["notes"], *(m["text"] for m in self.options["missing"]))
        )
        return f"{self.title}: {said}{inside}, {counted(edges, 'implied edge')}{events}{folded}{notes}"

    def to_pandas(self) -> pd.DataFrame:
        """One row per task: task, op, kind, layer, tile and the columns it can be coloured by."""
        return self.rows(list(range(self.table.n)))

    def rows(self, tasks: list[int]) -> pd.DataFrame:
        """The rows of these tasks."""
        import pandas as pd

        table = self.table
        task = _ints(tasks)
        op = table.operator_of[task] if len(task) else task
        return pd.DataFrame(
            {
                "task": task,
                "op": [table.names[o] for o in op.tolist()],
                "kind": [table.kinds[o] for o in op.tolist()],
                "layer": table.layers[op] if len(task) else task,
                "tile": task - table.first[op] if len(task) else task,
                **{name: np.asarray(values)[task] for name, values in table.values.items()},
            }
        )

    def picture(self, width: int = 900) -> raster.Picture:
        """All tasks as pixels, coloured by operator kind."""
        table = self.table
        if not table.n:
            return raster.message(NO_TASKS, width)
        layout = lay_out(table)
        scale = min(12, max(1, (width - 16) // layout.width))
        step = -(-layout.width // (width - 16))  # cells a pixel where there are more cells than pixels
        kinds = sorted(set(table.kinds))
        colours = [raster.rgb(PALETTE["light"][c % len(PALETTE["light"])]) for c in kind_colours(kinds)]
        high = layout.height * scale // step + 1
        picture = raster.Picture(width, high + 44 + 14 * (len(kinds) // 6))
        picture.text(4, 8, raster.shorten(self.title, 60))
        kind = np.array([kinds.index(k) for k in table.kinds])[table.operator_of]
        palette = np.array(colours, np.uint8)
        for dx in range(max(1, scale - (scale > 2))):
            for dy in range(max(1, scale - (scale > 2))):
                picture.pixels[22 + layout.y * scale // step + dy, 8 + layout.x * scale // step + dx] = palette[kind]
        if scale * TITLE >= 8:
            for name, (x, y, *_) in zip(table.names, layout.boxes.tolist(), strict=True):
                picture.text(
                    8 + x * scale,
                    22 + y * scale + 2,
                    raster.shorten(name.split(".")[-1], layout.across * scale // 6),
                    raster.FAINT,
                )
        for k, name in enumerate(kinds):
            picture.swatch(8 + (k % 6) * 140, high + 30 + 14 * (k // 6), colours[k], raster.shorten(name, 18))
        return picture


@answers_slips(GraphError)
def task_dag(
    tasks: Any,
    spans: pd.DataFrame | None = None,
    *,
    title: str = "task graph",
    color: str = "kind",
    columns: Mapping[str, Sequence[float]] | None = None,
    paths: Mapping[str, Iterable[int]] | None = None,
    missing: Iterable[tuple[int, int, str] | Exception] | Exception = (),
    height: int | None = None,
    notes: Sequence[str] = (),
) -> TaskDag:
    """A picture of a TaskGraph, with `profile.spans()` also of what each task took; or of a Profile's, with its own spans.

    `columns` are more numbers per task to colour by (negative: unknown), `paths` named lists of task ids (a critical
    path), `missing` pairs of tasks that nothing orders, drawn in red with their text, or the ScheduleError of `mk.verify`;
    `notes` are sentences above the picture.
    """
    table = table_of(tasks)
    if spans is None and hasattr(tasks, "task_first"):
        spans = spans_of(tasks)
    values = dict(table.values)
    if spans is not None:
        values |= measured(table, spans)
    for name, given in (columns or {}).items():
        if len(given) != table.n:
            raise GraphError(f"columns[{name!r}] has {len(given)} values, expected one per task: {table.n}")
        values[str(name)] = np.asarray(given, float)
    known = ["kind", "layer", *values]
    if color not in known:
        raise GraphError(f"color={color!r} is no way to colour tasks: {suggest(color, known)}")
    lists = {str(name): [int(task) for task in path] for name, path in (paths or {}).items()}
    faults = _faults(table, [missing] if isinstance(missing, Exception) else missing)
    pairs = [f[end] for f in faults for end in ("before", "after") if f[end] >= 0]
    for task in [*(t for path in lists.values() for t in path), *pairs]:
        if not 0 <= task < table.n:
            raise GraphError(f"task {task} does not exist: ids are 0 … {table.n - 1}")
    complete = TaskTable(
        table.names, table.kinds, table.layers, table.first, table.tile, values, table.edges, table.waits, table.events
    )
    return TaskDag(
        complete,
        str(title),
        {"color": color, "height": height, "paths": lists, "missing": faults, "notes": [str(note) for note in notes]},
    )


def _faults(table: TaskTable, missing: Iterable[Any]) -> list[dict[str, Any]]:
    """Pairs of tasks, or errors that name them, as dag.js draws them; -1 for a side that is not known."""
    found = []
    for fault in missing:
        if not isinstance(fault, Exception):
            before, after, text = fault
            found.append({"before": int(before), "after": int(after), "text": str(text)})
            continue
        finding = getattr(fault, "finding", None) if isinstance(fault, ScheduleError) else None
        before, after = (int(getattr(finding, end, -1)) for end in ("producer", "consumer"))
        text = str(fault)
        if finding is not None and min(before, after) >= 0:
            op = table.operator_of[[before, after]].tolist()
            source, target = (
                f"{table.names[o]}[{task - int(table.first[o])}]" for o, task in zip(op, (before, after), strict=True)
            )
            late = " of the iteration before" if finding.lag else ""
            reads = f" though it needs {finding.tensor}" if finding.tensor else ""
            text = f"{finding.kind}: nothing makes {target} wait for {source}{late}{reads}"
        found.append({"before": before, "after": after, "text": text})
    return found
