"""Why a task waits: every dependence of one task, the boxes that overlap, and the event that carries it."""

from __future__ import annotations

from typing import Any

from mpklab.errors import LowerError
from mpklab.ops import REGISTRY
from mpklab.tasks.task_graph import TaskGraph

MEANING = {
    "raw": "reads what they write",
    "war": "overwrites what they read",
    "waw": "overwrites what they write",
}


def why(tasks: TaskGraph, task: int | str) -> Any:
    """One row per edge set that ends at a task, given by its id or as `layer3.o_proj[17]` (pandas).

    because: what the task does to the tensor · tensor · its_box: what the task touches of it, half-open per axis ·
    producers: the tasks it comes after · their_box: what the first of them touches · kind: raw, war, waw · iteration:
    "this" or "before" · event: the one that carries it, or missing where the other rows and queue order imply it.
    """
    import pandas as pd

    at = _number(tasks, task)
    rows = []
    for edges, producers in tasks.predecessors(at):
        writes = edges.kind != "raw"
        name = tasks.task_name(producers[0])
        rows.append(
            {
                "because": MEANING[edges.kind],
                "tensor": edges.tensor,
                "its_box": box_text(tasks, at, edges.tensor, writes),
                "producers": name if len(producers) == 1 else f"{name} and {len(producers) - 1} more",
                "their_box": box_text(tasks, producers[0], edges.tensor, edges.kind != "war"),
                "kind": edges.kind,
                "iteration": "before" if edges.lag else "this",
                "event": _carrier(tasks, at, edges.producer, edges.lag, producers),
            }
        )
    columns = ["because", "tensor", "its_box", "producers", "their_box", "kind", "iteration", "event"]
    return pd.DataFrame(rows, columns=columns).astype({"event": "Int64"})


def box_text(tasks: TaskGraph, task: int, tensor: str, writes: bool) -> str:
    """What a task touches of a tensor: `0:1, 32:64`; several boxes are joined by `and`."""
    operator = tasks.operators[int(tasks.operator_of[task])]
    tile = task - int(tasks.first[tasks.operator_of[task]])
    tiles = REGISTRY.ops[operator.op].tiles(tasks.graph.node(operator), tasks.plan.tilings[operator.name])
    boxes = [b for b in (tiles.writes if writes else tiles.reads) if operator.operands[b.operand] == tensor]
    return " and ".join(dict.fromkeys(", ".join(r.text(tile) for r in b.ranges) for b in boxes))


def _carrier(tasks: TaskGraph, task: int, producer: int, lag: int, producers: range) -> int | None:
    """The event that a task waits for on behalf of these producers, or None."""
    first = int(tasks.first[producer])
    for i in range(int(tasks.wait_first[task]), int(tasks.wait_first[task + 1])):
        event = int(tasks.wait_event[i])
        covers = tasks.event_begin[event] <= producers[0] - first and producers[-1] - first < tasks.event_end[event]
        if int(tasks.event_producer[event]) == producer and int(tasks.wait_lag[i]) == lag and covers:
            return event
    return None


def _number(tasks: TaskGraph, task: int | str) -> int:
    if isinstance(task, str):
        name, _, tile = task.removesuffix("]").partition("[")
        ids = tasks.tasks_of(name)
        if not tile.isdigit() or int(tile) >= len(ids):
            raise LowerError(f"no task {task!r}: {name} has the tiles 0 to {len(ids) - 1}, as in {name}[0]")
        return ids[int(tile)]
    if not 0 <= task < len(tasks):
        raise LowerError(f"no task {task}: expected an id from 0 to {len(tasks) - 1}")
    return int(task)
