"""Which values have which drawings and analyses: the one module that looks back from the right end of the stages.

A value asks here by name when a method is called (presented.py), so that `profile.bubbles()` works and importing
`profile` loads no drawing library.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from importlib import import_module
from typing import Any

from mpklab.errors import ProfileError, ScheduleError, suggest

# class → method → "module:function"; each function takes the value first.
METHODS: dict[str, dict[str, str]] = {
    "Graph": {
        "to_svg": "mpklab.widgets.operator_graph:operator_graph",
        "to_html": "mpklab.present:graph_page",
    },
    "TaskGraph": {
        "dag": "mpklab.widgets.task_dag:task_dag",
        "to_svg": "mpklab.present:tasks_svg",
        "to_html": "mpklab.present:dag_page",
        "why": "mpklab.tasks.why:why",
    },
    "Schedule": {
        "dag": "mpklab.present:schedule_dag",
        "to_html": "mpklab.present:dag_page",
        "simulate": "mpklab.simulator:simulate",
    },
    "Kernel": {},
    "Generation": {},
    "Profile": {
        "timeline": "mpklab.widgets.recording:profile_timeline",
        "dag": "mpklab.widgets.recording:profile_dag",
        "studio": "mpklab.widgets.studio:studio",
        "frame": "mpklab.present:frame",
        "export": "mpklab.exports:export",
        "to_parquet": "mpklab.exports:to_parquet",
        "to_html": "mpklab.present:profile_page",
        "to_pandas": "mpklab.frames:spans",
        **{
            name: f"mpklab.frames:{name}"
            for name in ("spans", "health", "workers", "causality", "align", "alignment", "verdict", "query")
        },
        **{
            name: f"mpklab.analysis:{name}"
            for name in (
                "bubbles", "blame", "bounds", "critical_path", "utilisation", "overlap", "imbalance", "roofline",
                "handoff", "steady_state", "diff", "explain", "predicted", "what_if", "iterations", "efficiency",
            )
        },
    },
}  # fmt: skip


def methods(kind: str) -> list[str]:
    """The names a class answers to."""
    return sorted(METHODS.get(kind, {}))


def method(kind: str, name: str) -> Callable[..., Any] | None:
    """The function behind a name, or None. `_repr_mimebundle_` is every presented value's."""
    if name == "_repr_mimebundle_":
        return bundle
    home = METHODS.get(kind, {}).get(name)
    if home is None:
        return None
    module, _, function = home.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found


def bundle(value: Any, include: Any = None, exclude: Any = None) -> dict[str, str]:
    """What a cell shows: text always, beside it a script-free HTML card. A picture that fails costs only itself."""
    kind = type(value).__name__
    text = str(value)
    card = f'<div style="white-space:pre-wrap">{html.escape(text)}</div>'
    try:
        rows = import_module("mpklab.cards").CARDS[kind](value)
        text += "".join(f"\n  {label}: {fact}" for label, fact in rows)
        card += _table(rows)
        if kind == "Graph":
            card += _graph_picture(value)
    except Exception as error:  # a repr never raises: the text stands, and says why the rest does not
        card += f"<small>no more than that: {html.escape(str(error))}</small>"
    return {"text/plain": text, "text/html": card}


def _table(rows: list[tuple[str, str]]) -> str:
    left = "text-align:left;vertical-align:top"
    cells = "".join(
        f'<tr><th style="{left};white-space:nowrap">{html.escape(label)}</th><td style="{left}">{html.escape(fact)}</td></tr>'
        for label, fact in rows
    )
    return f"<table>{cells}</table>"


def _graph_picture(value: Any) -> str:
    svg: str = import_module("mpklab.widgets.operator_graph").operator_graph(value)
    return f'<div style="overflow:auto;max-height:40em;border:1px solid #8884;border-radius:4px">{svg}</div>'


def schedule_dag(schedule: Any, **options: Any) -> Any:
    """The task graph of a schedule; of one that fails its verification, with the two tasks and the missing edge in red."""
    try:
        import_module("mpklab.verifier").verify(schedule)
    except ScheduleError as fault:
        options = {"missing": fault, **options}
    return import_module("mpklab.widgets.task_dag").task_dag(schedule.tasks, **options)


def tasks_svg(tasks: Any) -> Any:
    """The operator graph that the tasks were cut from."""
    return import_module("mpklab.widgets.operator_graph").operator_graph(tasks.graph)


def graph_page(graph: Any, path: Any = None) -> Any:
    """The operator graph as a self-contained page: its text, or the path it was written to."""
    return import_module("mpklab.widgets.operator_graph").graph_view(graph).to_html(path)


def dag_page(value: Any, path: Any = None) -> Any:
    """The tasks of a task graph or a schedule as a self-contained page: its text, or the path it was written to."""
    return value.dag().to_html(path)


def profile_page(profile: Any, path: Any = None) -> Any:
    """The Studio of a recording as a self-contained page: its text, or the path it was written to."""
    return profile.studio().to_html(path)


def frame(profile: Any, name: str) -> Any:
    """A frame by name: spans, tasks, waits, events, workers, operators, edges; `profile.tasks`, `profile.waits` and the like
    are the raw tables."""
    homes = dict.fromkeys(("spans", "tasks", "events", "workers", "operators", "edges"), "mpklab.frames")
    homes["waits"] = "mpklab.analysis"
    if name not in homes:
        raise ProfileError(f"no frame {name!r}: {suggest(name, homes)}")
    return getattr(import_module(homes[name]), name)(profile)
