"""The Studio: timeline, task graph, operator graph and task table of one recording, linked by one selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mpklab.abi import Clock
from mpklab.analysis import blame, critical_path
from mpklab.analysis import bounds as limits
from mpklab.analysis.idle import NAMES, pieces
from mpklab.errors import ProfileError
from mpklab.frames import residual, verdict
from mpklab.frames import spans as spans_of
from mpklab.graph import Graph
from mpklab.widgets import raster
from mpklab.widgets.operator_graph import OperatorGraph, graph_view
from mpklab.widgets.page import Column, container
from mpklab.widgets.task_dag import TaskDag, TaskTable, read_profile, table_of, task_dag
from mpklab.widgets.timeline import Timeline, timeline
from mpklab.widgets.view import View

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class _Operator:
    name: str
    op: str
    layer: int | None
    operands: dict[str, str]
    outputs: tuple[str, ...]
    attrs: dict[str, object]


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    shape: tuple[object, ...]
    dtype: str
    role: str


@dataclass(frozen=True, slots=True)
class _Graph:
    name: str
    tensors: dict[str, _Tensor]
    operators: tuple[_Operator, ...]


def graph_of(table: TaskTable, name: str) -> _Graph:
    """What can be told of the operator graph from its edges alone: who reads what of whom, without shapes."""
    tensors: dict[str, _Tensor] = {}
    operands: list[dict[str, str]] = [{} for _ in table.names]
    outputs: list[list[str]] = [[] for _ in table.names]
    for edges in table.edges:
        if edges.kind != "raw" or edges.producer == edges.consumer:
            continue
        tensors[edges.tensor] = _Tensor(edges.tensor, (), "", "state" if edges.lag else "activation")
        for op, writes in ((edges.producer, True), (edges.consumer, False)):
            if edges.tensor not in operands[op].values():
                operands[op][f"{'out' if writes else 'in'}{len(operands[op])}"] = edges.tensor
            if writes and edges.tensor not in (operands[op][k] for k in outputs[op]):
                outputs[op].append(next(k for k, t in operands[op].items() if t == edges.tensor))
    made = tuple(
        _Operator(n, kind, None if layer < 0 else int(layer), operands[i], tuple(outputs[i]), {})
        for i, (n, kind, layer) in enumerate(zip(table.names, table.kinds, table.layers.tolist(), strict=True))
    )
    return _Graph(name, tensors, made)


def idle_classes(profile: Any, spans: pd.DataFrame) -> pd.Categorical:
    """For every span of a compute lane the class of `analysis.bubbles` that holds most of its time; missing elsewhere."""
    import pandas as pd

    cut = pieces(profile, 0.0)
    key = cut.worker.astype(np.int64) << 44 | cut.begin_ns
    order = np.lexsort((cut.ns, key))
    key, kind = key[order], cut.kind[order]
    last = np.r_[key[1:] != key[:-1], np.ones(min(1, len(key)), bool)]  # the largest piece of each record
    key, kind = key[last], kind[last]
    worker = spans["rank"].to_numpy(np.int64) * profile.n_workers + spans["worker"].to_numpy(np.int64)
    wanted = worker << 44 | spans["begin_ns"].to_numpy(np.int64)
    at = np.minimum(np.searchsorted(key, wanted), max(0, len(key) - 1))
    own = np.asarray((spans["role"] == "compute") & (spans["phase"] != "iteration"))
    known = own & (key[at] == wanted) if len(key) else np.zeros(len(spans), bool)
    codes = np.where(known, kind[at] if len(key) else -1, -1)
    names = np.array([*NAMES, None], object)
    return pd.Categorical(names[codes], categories=list(NAMES))


def paths_of(profile: Any) -> dict[str, list[int]]:
    """The critical path and the path of blame through the middle recorded iteration, as task ids in order of time."""
    found: dict[str, list[int]] = {}
    for name, frame in (("critical path", critical_path(profile)), ("path of blame", blame(profile))):
        rows = frame[frame["task"] >= 0]
        numbers = np.unique(rows["iteration"].to_numpy())
        if len(numbers):
            inside = rows.loc[rows["iteration"] == numbers[len(numbers) // 2], "task"]
            found[name] = list(dict.fromkeys(inside.tolist()))
    return found


class Studio(View):
    """One recording as one view. `Studio(profile)`; or from its parts: spans, tasks (a TaskGraph) and a Graph."""

    module = "studio.js"
    mount = "mountStudio"

    def __init__(
        self,
        profile: Any = None,
        *,
        spans: pd.DataFrame | None = None,
        tasks: Any = None,
        graph: Any = None,
        title: str | None = None,
        notes: Sequence[str] = (),
        color: str = "kind",
        bounds: Mapping[str, float] | None = None,
        error_ns: float | Mapping[int, float] | None = None,
        classes: Mapping[str, object] | None = None,
        paths: Mapping[str, Sequence[int]] | None = None,
    ):
        if profile is None and spans is None and tasks is None:
            raise ProfileError("a Studio needs a profile, or spans, or tasks: Studio(run.profile)")
        name = title or (str(getattr(profile, "meta", {}).get("model", "")) if profile is not None else "") or "studio"
        table: TaskTable | None = None
        if tasks is not None:
            table = table_of(tasks)
        elif profile is not None:
            table = read_profile(profile)
        if spans is None and profile is not None:
            spans = spans_of(profile)
            classes = {"class": idle_classes(profile, spans), **(classes or {})}
            error_ns = residual(profile) if error_ns is None else error_ns
            notes = [verdict(profile), *notes]
            if bounds is None:
                known = limits(profile)
                bounds = {
                    str(b): float(ns) for b, ns in zip(known["bound"], known["ns"], strict=True) if b != "measured"
                }
            paths = paths_of(profile) if paths is None else paths
        if graph is None:
            graph = getattr(tasks, "graph", None)
        if graph is None and profile is not None and isinstance(profile.meta.get("graph"), Mapping):
            graph = Graph.from_json(profile.meta["graph"])
        if graph is None and table is not None:
            graph = graph_of(table, "operators")
        self.timeline: Timeline | None = None
        self.dag: TaskDag | None = None
        self.graph: OperatorGraph | None = None
        if spans is not None:
            on_gpu = profile is None or bool((profile.headers()["clock_unit"] == Clock.sm_cycles).all())
            self.timeline = timeline(
                spans,
                title="timeline",
                color=color,
                bounds=bounds,
                error_ns=error_ns,
                classes=classes,
                place="SM" if on_gpu else "CPU",
            )
        if table is not None:
            self.dag = task_dag(table, spans, title="tasks", paths=paths)
        if graph is not None:
            cost, cost_name = None, "weight bytes"
            if (
                self.dag is not None
                and "dur_ns" in self.dag.table.values
                and len(self.dag.table.names) == len(graph.operators)
            ):
                cost, cost_name = _operator_time(self.dag.table), "mean ns"
            first = self.dag.table.first if self.dag is not None else None
            self.graph = graph_view(graph, cost=cost, cost_name=cost_name, title="operators", first=first)
        self.notes = [str(note) for note in notes]
        self.spans = spans
        most = [view._limit for view in (self.timeline, self.dag) if view is not None]
        super().__init__(name, max(most, default=0))

    def data(self, level: int = 9) -> bytes:
        """What studio.js draws, packed: the columns of each part under the part's name."""
        meta: dict[str, Any] = {"title": self.title, "notes": self.notes}
        columns: dict[str, Column] = {}

        def put(name: str, packed: tuple[dict[str, Any], dict[str, Column]]) -> None:
            meta[name] = packed[0]
            columns.update({f"{name}.{key}": column for key, column in packed[1].items()})

        if self.timeline is not None:
            put("timeline", (dict(self.timeline.lanes.meta), dict(self.timeline.lanes.columns)))
            if len(self.timeline.lanes.columns["row_count"].values) > 9:  # fewer rows need less than that by themselves
                meta["timeline"]["height"] = 400
        if self.graph is not None:
            put("graph", self.graph.packed())
            meta["graph"]["box_height"] = 420
        if self.dag is not None:
            put("dag", self.dag.packed())
            meta["dag"] |= {"height": 420, "hint": False}
        return container(meta, columns, level)

    def text(self) -> str:
        """What the parts say, one a line."""
        parts = [view.text() for view in (self.timeline, self.dag, self.graph) if view is not None]
        return "\n".join([self.title, *self.notes, *("  " + part for part in parts)])

    def picture(self, width: int = 900) -> raster.Picture:
        """The timeline's picture, or the task graph's where there is none."""
        shown = self.timeline or self.dag or self.graph
        assert shown is not None
        return shown.picture(width)

    def rows(self, tasks: list[int]) -> pd.DataFrame:
        """The rows of these tasks, with what they took."""
        if self.dag is not None:
            return self.dag.rows([task for task in tasks if task < self.dag.table.n])
        assert self.timeline is not None
        return self.timeline.rows(tasks)

    def to_pandas(self) -> pd.DataFrame:
        """All tasks, or all spans where no tasks are known."""
        if self.dag is not None:
            return self.dag.to_pandas()
        assert self.timeline is not None
        return self.timeline.to_pandas()


def studio(profile: Any, **options: Any) -> Studio:
    """The Studio of a recording; options as for the class."""
    return Studio(profile, **options)


def _operator_time(table: TaskTable) -> dict[str, float]:
    """Mean time of an operator's tasks, in nanoseconds."""
    took = np.maximum(np.asarray(table.values["dur_ns"]), 0)
    total = np.bincount(table.operator_of, weights=took, minlength=len(table.names))
    counts = np.maximum(np.diff(table.first), 1)
    return {name: float(t) for name, t in zip(table.names, total / counts, strict=True)}
