"""The Studio: timeline, task graph, operator graph and task table of one recording, linked by one selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mpklab.errors import ProfileError
from mpklab.frames import spans as spans_of
from mpklab.widgets import raster
from mpklab.widgets.operator_graph import OperatorGraph, graph_view
from mpklab.widgets.page import Column, container
from mpklab.widgets.recording import notes_of, paths_of, profile_timeline, schedule_or_none
from mpklab.widgets.source import source_of
from mpklab.widgets.task_dag import TaskDag, TaskTable, measured, read_profile, table_of, task_dag
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


class Studio(View):
    """One recording as one view. `Studio(profile)`; or from its parts: spans, tasks (a TaskGraph) and a Graph.

    `other` is a second recording: its timeline stands below, and where both have the same tasks these can be coloured by
    `times_other`, how many times as long each took as there. `view.selection` is a DataFrame of the tasks chosen, and
    `view.on_select(f)` calls f with it. ProfileError where there is nothing to show.
    """

    module = "studio.js"
    mount = "mountStudio"

    def __init__(
        self,
        profile: Any = None,
        *,
        other: Any = None,
        spans: pd.DataFrame | None = None,
        tasks: Any = None,
        graph: Any = None,
        title: str | None = None,
        notes: Sequence[str] = (),
        color: str | None = None,
        bounds: Mapping[str, float] | None = None,
        error_ns: float | Mapping[int, float] | None = None,
        classes: Mapping[str, object] | None = None,
        paths: Mapping[str, Sequence[int]] | None = None,
    ):
        if profile is None and spans is None and tasks is None:
            raise ProfileError("a Studio needs a profile, or spans, or tasks: Studio(run.profile)")
        if other is not None and profile is None:
            raise ProfileError("a Studio compares two profiles: Studio(profile, other=another)")
        name = title or (str(getattr(profile, "meta", {}).get("model", "")) if profile is not None else "") or "studio"
        table = table_of(tasks) if tasks is not None else read_profile(profile) if profile is not None else None
        given = {"bounds": bounds, "error_ns": error_ns, "classes": classes, "color": color}
        options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        self.timeline: Timeline | None = None
        if profile is not None and spans is None:
            spans = spans_of(profile)
            notes = [*notes_of(profile, other), *notes]
            options = {"notes": (), **({"color": "difference"} if other is not None else {}), **options}
            self.timeline = profile_timeline(profile, other, title="timeline", **options)
            paths = paths_of(profile) if paths is None else paths
        elif spans is not None:
            self.timeline = timeline(spans, title="timeline", **options)
        schedule = schedule_or_none(profile) if profile is not None else None
        if graph is None:
            graph = getattr(tasks, "graph", None) or (schedule.tasks.graph if schedule is not None else None)
        if table is not None and (graph is None or len(graph.operators) != len(table.names)):
            graph = graph_of(table, "operators") if table.edges else None
        self.dag: TaskDag | None = None
        self.graph: OperatorGraph | None = None
        self.source: tuple[dict[str, Any], dict[str, Column]] | None = None
        if table is not None:
            columns = _against(table, spans, other) if other is not None and spans is not None else None
            self.dag = task_dag(table, spans, title="tasks", paths=paths, columns=columns)
            backend = str(profile.meta.get("backend", "cuda")) if profile is not None else "cuda"
            if profile is not None:
                self.source = source_of(table.names, table.kinds, schedule, backend, profile.level)
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
            rows = len(self.timeline.lanes.columns["row_count"].values)
            if rows > 9:  # fewer need less than that by themselves
                meta["timeline"] |= {"height": 440 if len(meta["timeline"]["groups"]) == 1 else 560}
        if self.graph is not None:
            put("graph", self.graph.packed())
            meta["graph"]["box_height"] = 420
        if self.dag is not None:
            put("dag", self.dag.packed())
            meta["dag"] |= {"height": 420, "hint": False}
        if self.source is not None:
            put("source", self.source)
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


def _against(table: TaskTable, spans: pd.DataFrame, other: Any) -> dict[str, list[float]] | None:
    """How many times as long each task took as in another recording of the same tasks; -1 where one is not known."""
    theirs = read_profile(other)
    if theirs.names != table.names or (theirs.first != table.first).any():
        return None
    own, reference = (np.asarray(measured(t, s)["dur_ns"]) for t, s in ((table, spans), (theirs, spans_of(other))))
    known = (own >= 0) & (reference > 0)
    return {"times_other": np.where(known, own / np.where(known, reference, 1), -1.0).tolist()}
