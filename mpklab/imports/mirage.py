"""Mirage's task_graph.json: its tasks and events as those of a profile, so that what draws and counts tasks can read them.

The file (Mirage's `print_task_graph`, runtime.cc) lists `all_tasks` with a type, a variant, the one event each waits for
(`dependent_event`) and the one it signals (`trigger_event`), and its tensors (`base_ptr`, `dims`, `data_type`). It names
neither operators nor layers: both are worked out from the types, from what the tasks write, and from the names of weights.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from mpklab.errors import ProfileError
from mpklab.imports.writing import MAX_ARG, read_file, write_lanes
from mpklab.profile import Profile

# `TaskType` of Mirage's runtime_header.h: Ampere from 100, Hopper from 150, Blackwell from 230, several GPUs from 300.
TASK_TYPES = {
    0: "terminate", 10: "begin", 101: "embedding", 102: "rms_norm_linear", 103: "attention",
    105: "silu_mul_linear_residual", 106: "all_reduce", 107: "reduce", 108: "linear_residual", 109: "argmax",
    110: "argmax_partial", 111: "argmax_reduce", 112: "find_ngram_partial", 113: "find_ngram_global",
    114: "target_verify", 115: "extend_attention", 116: "paged_attention", 118: "silu_mul", 119: "rms_norm", 120: "linear",
    121: "identity", 153: "paged_attention", 154: "rms_norm", 155: "linear", 156: "linear_residual", 161: "moe_w13",
    162: "moe_w2", 163: "splitk_linear", 164: "attention_split", 251: "splitk_linear", 252: "linear_residual", 253: "linear",
    254: "moe_w13", 255: "moe_w2", 257: "paged_attention", 258: "argmax_reduce", 259: "argmax_partial", 260: "topk_router",
    261: "mul_sum_add", 262: "tensor_init", 263: "attention_split", 264: "attention_merge", 265: "sample", 281: "add",
    200: "schedule", 201: "signal", 301: "all_gather", 302: "tile_all_reduce",
}  # fmt: skip
# What stands for mpklab's kinds of operator there. `advance` is what Mirage's schedulers do between two tokens.
TYPE_OF = {
    "embedding": 101, "rms_norm": 119, "linear": 120, "silu_mul": 118, "attention": 103, "attention_merge": 264,
    "add": 281, "argmax_partial": 110, "argmax_reduce": 111, "sample_partial": 265, "sample_reduce": 265, "advance": 200,
}  # fmt: skip
UNKNOWN_TYPE = 121  # identity
ITEM_BYTES = {930: 1, 940: 2, 941: 2, 950: 4, 955: 4, 965: 8}  # of `data_type`
INVALID_EVENT = 0x7FFFFFFFFFFFFFFE
LAYER_OF_NAME = re.compile(r"(?:^|[_.])layers?[_.]?(\d+)[_.]")  # how the demos name weights: layer_3_q_proj


@dataclass(frozen=True)
class MirageGraph:
    """A task graph as `Profile.from_parts` takes it. Task i of the file is task `new_id[i]`, of type `types[i]`."""

    types: np.ndarray
    new_id: np.ndarray
    operators: list[dict[str, Any]]
    columns: dict[str, Any]


def task_type(op: str, operands: Collection[str] = ()) -> int:
    """Mirage's task type for a kind of operator; what is fused into a linear is known by its operands."""
    if op == "linear" and "norm_weight" in operands:
        return 102
    if op == "linear" and "residual" in operands:
        return 108
    return TYPE_OF.get(op, UNKNOWN_TYPE)


def import_mirage(path: str | os.PathLike[str] | Mapping[str, Any], names: Mapping[int, str] | None = None) -> Profile:
    """Mirage's task graph, a file or its parsed content, as a profile without a recording: `dag()` draws it; its
    tables `tasks`, `waits`, `signals`, `events` and `edges` hold it. `names` by task type, beside those that are known.

    ProfileError for what is no such file. `from_mirage` reads a recording of such a graph.
    """
    named = {**TASK_TYPES, **(names or {})}
    graph = read_graph(path, lambda kind: named.get(kind, f"task{kind}"))
    none = np.zeros(0, np.int64)
    meta = {"source": "Mirage's task graph", "recorded": False}
    lanes = write_lanes(1, 1, none, none, none, none, none)
    return Profile.from_parts(lanes, 1, 1, level=1, operators=graph.operators, **graph.columns, meta=meta)


def read_graph(source: str | os.PathLike[str] | Mapping[str, Any], name: Callable[[int], str]) -> MirageGraph:
    """The tasks, waits, signals, events and edges of a task_graph.json; an operator is a run of tasks of one kind."""
    tasks = _tasks(source)
    of, operators = _operators(tasks, name)
    order = np.argsort(of, kind="stable")
    new_id = np.empty(len(tasks), np.int64)
    new_id[order] = np.arange(len(tasks))
    waited = np.array([tasks[i]["waits"] for i in order], np.int64)
    signalled = np.array([tasks[i]["signals"] for i in order], np.int64)
    numbers = np.unique(signalled[signalled >= 0])
    event_of = {int(e): i for i, e in enumerate(numbers)}
    wait = np.array([event_of.get(int(e), -1) for e in waited], np.int64)
    signal = np.array([event_of.get(int(e), -1) for e in signalled], np.int64)
    columns = {
        "tasks": {"operator": of[order], "bytes": np.array([tasks[i]["bytes"] for i in order], float)},
        "waits": {"wait_begin": np.r_[0, np.cumsum(wait >= 0)], "wait_event": wait[wait >= 0]},
        "signals": {"signal_begin": np.r_[0, np.cumsum(signal >= 0)], "signal_event": signal[signal >= 0]},
        "events": {"need": np.bincount(signal[signal >= 0], minlength=len(numbers))},
        "edges": _edges(of[order], wait, signal, [tasks[i]["writes"] for i in order]),
    }
    return MirageGraph(np.array([t["type"] for t in tasks], np.int64), new_id, operators, columns)


def _tasks(source: str | os.PathLike[str] | Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is wanted of every task in the file."""
    found: Any = source
    if not isinstance(source, Mapping):
        try:
            found = json.loads(read_file(source))
        except (ValueError, RecursionError) as e:
            raise ProfileError(f"{source}: not JSON: {e!s:.200}") from e
    tasks = found.get("all_tasks") if isinstance(found, Mapping) else None
    if not isinstance(tasks, list) or len(tasks) >= MAX_ARG:
        raise ProfileError("not Mirage's task graph: expected a list under all_tasks")
    out: list[dict[str, Any]] = []
    for i, t in enumerate(tasks):
        try:
            reads, writes = t.get("inputs") or [], t.get("outputs") or []
            out.append(
                {
                    "type": int(t["task_type"]),
                    "variant": int(t["variant_id"]),
                    "waits": _event(t["dependent_event"]),
                    "signals": _event(t["trigger_event"]),
                    "writes": str(writes[0].get("base_ptr", "")) if writes else "",
                    "layer": _layer([str(x.get("base_ptr", "")) for x in (*reads, *writes)]),
                    "bytes": sum(_bytes(x) for x in (*reads, *writes)),
                }
            )
        except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError) as e:
            raise ProfileError(f"all_tasks[{i}] of the task graph cannot be read: {type(e).__name__}: {e!s:.80}") from e
    return out


def _event(number: Any) -> int:
    """The index of an event in the file, without the tags for GPUs; -1 for none."""
    value = int(number)
    return -1 if value >= INVALID_EVENT or value < 0 else value & 0xFFFFFFFF


def _layer(names: list[str]) -> int:
    """The layer that the name of a weight or a cache states, or -1."""
    return next((int(m[1]) for m in map(LAYER_OF_NAME.search, names) if m and len(m[1]) < 6), -1)


def _bytes(tensor: Mapping[str, Any]) -> float:
    return float(prod(int(d) for d in tensor.get("dims") or ())) * ITEM_BYTES.get(int(tensor.get("data_type", 0)), 2)


def _operators(tasks: list[dict[str, Any]], name: Callable[[int], str]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The operator of every task. Tasks of one type, variant, output and layer belong together; where no name states a
    layer, a new operator begins once other types have come between and the events have moved on."""
    of = np.empty(len(tasks), np.int64)
    types = np.array([t["type"] for t in tasks], np.int64)
    changes = np.r_[0, np.cumsum(np.diff(types) != 0)]
    newest: dict[tuple[Any, ...], tuple[int, int]] = {}  # kind → (its newest operator, the last of its tasks)
    operators: list[dict[str, Any]] = []
    times: dict[tuple[Any, ...], int] = {}
    taken: dict[str, int] = {}
    stated = [i for i, t in enumerate(tasks) if t["layer"] >= 0]
    at = -1  # the layer that was stated last; behind the last of all comes what belongs to none
    for i, t in enumerate(tasks):
        at = t["layer"] if t["layer"] >= 0 else at
        key = (t["type"], t["variant"], t["writes"])
        known = newest.get(key)
        if known is not None:
            last = tasks[known[1]]
            apart = bool(changes[i] != changes[known[1]]) and not _alike(last, t)
            if apart or (t["layer"] >= 0 and last["layer"] != t["layer"]):
                known = None
        if known is None:
            count = times.get(key, 0)
            times[key] = count + 1
            layer = count if not stated else at if i <= stated[-1] else -1
            label = name(t["type"])
            stem = (f"layer{layer}." if layer >= 0 else "") + label + (f".{t['writes']}" if t["writes"] else "")
            taken[stem] = taken.get(stem, 0) + 1
            suffix = f"_{taken[stem]}" if taken[stem] > 1 else ""
            operators.append({"name": stem + suffix, "op": label, "layer": layer})
            known = (len(operators) - 1, i)
        newest[key] = (known[0], i)
        of[i] = known[0]
    return of, operators


def _alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two tasks of one kind stand between the same events."""
    return bool(a["waits"] == b["waits"] or a["signals"] == b["signals"])


def _edges(of: np.ndarray, wait: np.ndarray, signal: np.ndarray, writes: list[str]) -> list[dict[str, Any]]:
    """Per pair of operators, the range of the producer's tiles that each of the consumer's tiles waits for through its
    event; where they are no range, the smallest that holds them."""
    first = np.searchsorted(of, np.arange(int(of.max(initial=-1)) + 2))
    producers: dict[int, dict[int, list[int]]] = {}
    for task in np.flatnonzero(signal >= 0).tolist():
        o = int(of[task])
        low, high = producers.setdefault(int(signal[task]), {}).setdefault(o, [task, task])
        producers[int(signal[task])][o] = [min(low, task), max(high, task)]
    ranges: dict[tuple[int, int], np.ndarray] = {}
    for task in np.flatnonzero(wait >= 0).tolist():
        consumer = int(of[task])
        tiles = int(first[consumer + 1] - first[consumer])
        for p, (low, high) in producers.get(int(wait[task]), {}).items():
            held = ranges.setdefault((p, consumer), np.zeros((2, tiles), np.int64))
            held[:, task - int(first[consumer])] = low - int(first[p]), high + 1 - int(first[p])
    return [
        {
            "producer": p, "consumer": c, "tensor": writes[int(first[p])], "kind": "raw", "lag": 0, "begin": begin, "end": end,
        }
        for (p, c), (begin, end) in sorted(ranges.items(), key=lambda kv: kv[0])
    ]  # fmt: skip
