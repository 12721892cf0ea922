"""Made-up spans and task graphs in the shapes that frames and lowering give, for tests of plots and views."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

PHASES = [
    "iteration",
    "execute",
    "wait",
    "gather",
    "fetch",
    "signal",
    "step",
    "load",
    "ring",
    "load_wait",
    "operand",
    "push",
    "pop",
]
LAYER_OPS = [
    ("qkv_proj", "linear", 9000), ("attention", "attention", 5000), ("attention_merge", "attention_merge", 1200),
    ("o_proj", "linear", 5000), ("gate_up_proj", "linear", 14000), ("down_proj", "linear", 8000),
]  # fmt: skip


def operators(layers: int) -> list[tuple[str, str, int]]:
    """Name, kind and layer of each operator of a made-up decoder."""
    table = [("embedding", "embedding", -1)]
    for layer in range(layers):
        table += [(f"layer{layer}.{name}", kind, layer) for name, kind, _ in LAYER_OPS]
    return [*table, ("lm_head", "linear", -1), ("argmax", "argmax_reduce", -1)]


def make_spans(
    n_tasks: int = 2000, workers: int = 16, iterations: int = 2, level: int = 2, seed: int = 0, rank: int = 0
) -> pd.DataFrame:
    """About `n_tasks` tasks over all iterations; five spans a task at level 2, one at level 1, a loader lane at level 3."""
    rng = np.random.default_rng(seed)
    per_iteration = max(1, n_tasks // iterations)
    layers = max(1, (per_iteration // workers - 3) // len(LAYER_OPS))
    ops = operators(layers)
    n_ops = len(ops)
    base = np.array([2000, *([t for _, _, t in LAYER_OPS] * layers), 20000, 1500][:n_ops], float)
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("worker", "role", "phase", "iteration", "task", "op", "event", "begin", "end")
    }

    def put(worker, role, phase, iteration, task, op, event, begin, end):
        size = begin.size
        for name, value in zip(columns, (worker, role, phase, iteration, task, op, event, begin, end), strict=True):
            columns[name].append(
                np.broadcast_to(np.asarray(value), size).ravel() if np.ndim(value) == 0 else np.asarray(value).ravel()
            )

    at = rng.integers(0, 300, workers).astype(float)
    ids = np.arange(workers)
    for iteration in range(iterations):
        start = at.copy()
        for op in range(n_ops):
            task = op * workers + ids
            if level >= 2:
                fetch = at + rng.gamma(3, 40, workers)
                ready = np.maximum(fetch + rng.gamma(2, 300, workers), at.mean())
                gather = ready + rng.gamma(3, 120, workers)
            else:
                fetch = ready = gather = at
            done = gather + base[op] * rng.gamma(60, 1 / 60, workers)
            signal = done + (rng.gamma(3, 60, workers) if level >= 2 else 0)
            if level >= 2:
                put(ids, 0, PHASES.index("fetch"), iteration, task, op, -1, at, fetch)
                put(ids, 0, PHASES.index("wait"), iteration, task, op, op, fetch, ready)
                put(ids, 0, PHASES.index("gather"), iteration, task, op, -1, ready, gather)
                put(ids, 0, PHASES.index("signal"), iteration, task, op, -1, done, signal)
            if level >= 3:
                put(ids, 1, PHASES.index("load"), iteration, task, op, -1, at, at + 0.5 * (done - at))
                put(ids, 1, PHASES.index("ring"), iteration, task, op, -1, at + 0.5 * (done - at), done)
                put(
                    ids,
                    0,
                    PHASES.index("operand"),
                    iteration,
                    task,
                    op,
                    -1,
                    gather + 0.1 * (done - gather),
                    gather + 0.3 * (done - gather),
                )
            put(ids, 0, PHASES.index("execute"), iteration, task, op, -1, gather, done)
            at = signal
        put(ids, 0, PHASES.index("iteration"), iteration, -1, -1, -1, start, at)
        at = np.full(workers, at.max()) + rng.integers(0, 400, workers)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    op = joined["op"].astype(int)
    names, kinds, layer = zip(*ops, strict=True)
    begin, end = joined["begin"].astype(np.int64), joined["end"].astype(np.int64)
    kind_names = sorted(set(kinds))
    kind_codes = np.array([kind_names.index(kind) for kind in kinds] + [-1])
    return pd.DataFrame({
        "rank": np.full(len(op), rank, np.uint16), "worker": joined["worker"].astype(np.uint16), "sm": joined["worker"].astype(np.int32),
        "role": pd.Categorical.from_codes(joined["role"].astype(int), ["compute", "loader", "scheduler"]),
        "phase": pd.Categorical.from_codes(joined["phase"].astype(int), PHASES),
        "iteration": joined["iteration"].astype(np.int32), "task": joined["task"].astype(np.int32),
        "op": pd.Categorical.from_codes(op, list(names)), "kind": pd.Categorical.from_codes(kind_codes[op], kind_names),
        "layer": np.array([*layer, -1], np.int16)[op], "event": joined["event"].astype(np.int32),
        "begin_ns": begin, "end_ns": end, "dur_ns": end - begin, "truncated": np.zeros(len(op), bool),
    })  # fmt: skip


@dataclass
class MadeOperator:
    """As mpklab.graph.Operator, as far as views look."""

    name: str
    op: str
    layer: int | None


@dataclass
class MadeEdges:
    """As mpklab.tasks.EdgeSet."""

    producer: int
    consumer: int
    tensor: str
    kind: str
    lag: int
    begin: np.ndarray
    end: np.ndarray


@dataclass
class MadeTasks:
    """As mpklab.tasks.TaskGraph, as far as views look."""

    operators: tuple[MadeOperator, ...]
    first: np.ndarray
    tile: np.ndarray
    bytes: np.ndarray
    flops: np.ndarray
    edges: tuple[MadeEdges, ...]


def make_tasks(layers: int = 4, tiles: int = 16, names: str = "") -> MadeTasks:
    """A made-up decoder: every operator cut into `tiles`, each tile after one, two or all tiles of the one before."""
    table = operators(layers)
    n = len(table)
    first = np.arange(n + 1) * tiles
    j = np.arange(tiles)
    edges = []
    for o in range(1, n):
        wide = table[o][1] == "linear" and o % 6 == 1
        begin = np.zeros(tiles, int) if wide else np.maximum(j - 1, 0)
        edges.append(MadeEdges(o - 1, o, f"{names}t{o}", "raw", 0, begin, np.full(tiles, tiles) if wide else j + 1))
    edges.append(MadeEdges(n - 1, 0, f"{names}token", "raw", 1, np.zeros(tiles, int), np.full(tiles, tiles)))
    tile = np.zeros((n * tiles, 4), np.int32)
    tile[:, 0] = np.tile(j, n)
    cost = np.repeat([{"linear": 5e5, "attention": 1e5}.get(kind, 1e3) for _, kind, _ in table], tiles)
    ops = tuple(MadeOperator(names + name, kind, layer if layer >= 0 else None) for name, kind, layer in table)
    return MadeTasks(ops, first, tile, cost + np.tile(j, n) * 100.0, cost * 2, tuple(edges))
