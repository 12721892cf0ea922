"""`TaskGraph`: tasks, events, and who waits for and signals what, as arrays."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpklab.errors import LowerError, suggest
from mpklab.graph import Graph, Operator
from mpklab.machine import Machine
from mpklab.ops import REGISTRY, Variant
from mpklab.presented import Presented
from mpklab.tasks.edges import EdgeSet
from mpklab.tasks.plan import Plan

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, repr=False)
class TaskGraph(Presented):
    """Tasks as arrays (task ids of operator o are first[o] … first[o+1]-1), events, and both directions between them.

    `words` int32[n, 4] · `flops`, `bytes` float64[n] · events: `event_producer`, `event_begin`, `event_end` (a range of
    the producer's tiles), `need` int64[e] · waits of task i: `wait_event`, `wait_lag` at wait_first[i]:wait_first[i+1] ·
    signals likewise. `edges` are all that the boxes imply; those that events carry are `kept`.
    """

    graph: Graph
    machine: Machine
    plan: Plan
    first: IntArray
    words: npt.NDArray[np.int32]
    flops: npt.NDArray[np.float64]
    bytes: npt.NDArray[np.float64]
    variants: tuple[Variant, ...]
    variant_of: IntArray
    edges: tuple[EdgeSet, ...]
    event_producer: IntArray
    event_begin: IntArray
    event_end: IntArray
    wait_first: IntArray
    wait_event: IntArray
    wait_lag: IntArray
    signal_first: IntArray
    signal_event: IntArray

    def __len__(self) -> int:
        return len(self.words)

    @property
    def operators(self) -> tuple[Operator, ...]:
        return self.graph.operators

    @property
    def need(self) -> IntArray:
        """Signals per iteration that make each event happen."""
        return self.event_end - self.event_begin

    @cached_property
    def operator_of(self) -> IntArray:
        """The operator index of every task."""
        return np.repeat(np.arange(len(self.operators)), np.diff(self.first))

    @cached_property
    def step_task(self) -> int:
        """The task that publishes StepControl, or -1."""
        for i, o in enumerate(self.operators):
            if REGISTRY.ops[o.op].step:
                return int(self.first[i])
        return -1

    @property
    def tile(self) -> npt.NDArray[np.int32]:
        return self.words

    def tasks_of(self, name: str) -> range:
        """Task ids of an operator."""
        for i, o in enumerate(self.operators):
            if o.name == name:
                return range(int(self.first[i]), int(self.first[i + 1]))
        raise LowerError(f"no operator {name!r}: {suggest(name, (o.name for o in self.operators))}")

    def predecessors(self, task: int) -> Iterator[tuple[EdgeSet, range]]:
        """The edge sets that end at a task, with the producer tasks of each."""
        o = int(self.operator_of[task])
        tile = task - int(self.first[o])
        for e in self.edges:
            if e.consumer == o and e.end[tile] > e.begin[tile]:
                base = int(self.first[e.producer])
                yield e, range(base + int(e.begin[tile]), base + int(e.end[tile]))

    def task_name(self, task: int) -> str:
        """`layer3.o_proj[17]`."""
        o = int(self.operator_of[task])
        return f"{self.operators[o].name}[{task - int(self.first[o])}]"

    def __str__(self) -> str:
        edges = sum(e.count for e in self.edges)
        return (
            f"TaskGraph {self.graph.name}: {len(self)} tasks of {len(self.operators)} operators, {len(self.need)} events, "
            f"{len(self.wait_event)} waits, {len(self.signal_event)} signals, {edges} implied edges, "
            f"{self.bytes.sum() / 1e6:.1f} MB a step, for {self.machine.name} with {self.machine.workers} workers"
        )

    def to_pandas(self) -> Any:
        """One row per task: task, operator, op, layer, tile, flops, bytes, waits, signals."""
        import pandas as pd

        o = self.operator_of
        return pd.DataFrame(
            {
                "task": np.arange(len(self)),
                "operator": pd.Categorical([self.operators[i].name for i in o], [x.name for x in self.operators]),
                "op": [self.operators[i].op for i in o],
                "layer": [-1 if self.operators[i].layer is None else self.operators[i].layer for i in o],
                "tile": np.arange(len(self)) - self.first[o],
                "flops": self.flops,
                "bytes": self.bytes,
                "waits": np.diff(self.wait_first),
                "signals": np.diff(self.signal_first),
            }
        )

    def save(self, path: str | Path) -> None:
        """Graph, plan and machine as JSON in a zip; `mk.tasks.load` makes the arrays of them again."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
            head = {
                "graph": self.graph.to_json(origin=True),
                "plan": self.plan.to_json(),
                "machine": self.machine.to_json(),
            }
            z.writestr("tasks.json", json.dumps(head))
