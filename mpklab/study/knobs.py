"""The knobs of a study, and the configurations that lists of their values make."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mpklab.errors import MpkError, suggest
from mpklab.machine import Machine
from mpklab.models import Model
from mpklab.run import Kernel, build
from mpklab.schedule import Schedule, assign
from mpklab.tasks import TaskGraph, lower

# Where each knob goes. None means: what the stage does by itself.
LOWER = ("machine", "tiles", "passes")
ASSIGN = ("mode", "policy", "workers", "dynamic", "pool", "early_push", "pop_ahead", "priority")
KERNEL = ("prefetch",)
KNOBS = (*LOWER, *ASSIGN, *KERNEL)
# Knobs that mean something in some modes only: elsewhere they are left out, and equal configurations are one.
ONLY_IN = {
    "dynamic": ("hybrid",),
    "pool": ("hybrid",),
    "early_push": ("dynamic", "hybrid"),
    "pop_ahead": ("dynamic", "hybrid"),
    "priority": ("dynamic", "hybrid"),
}
LISTS = {"dynamic", "passes"}  # a tuple of these is one value, not several


@dataclass(frozen=True)
class Configuration:
    """One value per knob, and what else a result depends on (`setting`): graph, device, iterations, seed …"""

    values: Mapping[str, Any]
    setting: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def texts(self) -> dict[str, Any]:
        """The knobs as a row keeps them: numbers, booleans, words."""
        return {name: text(self.values.get(name)) for name in KNOBS}

    @cached_property
    def id(self) -> str:
        """Ten letters that stand for all of it."""
        whole = json.dumps([self.texts, dict(self.setting)], sort_keys=True, default=str)
        return hashlib.sha256(whole.encode()).hexdigest()[:10]

    def run(self, number: int) -> str:
        """The name of a round."""
        return f"{self.id}-{number:03d}"

    def __str__(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in self.texts.items() if v is not None) or "defaults"


def text(value: Any) -> Any:
    """A knob's value as something that JSON and a table can hold."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Machine):
        return f"{value.name}×{value.workers}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={text(v)}" for k, v in sorted(value.items()))
    if isinstance(value, list | tuple):
        return ", ".join(str(text(v)) for v in value)
    return getattr(value, "__name__", str(value))


def combinations(knobs: Mapping[str, Any], setting: Mapping[str, Any]) -> list[Configuration]:
    """Every combination of the values given, in the order given; equal ones once."""
    for name in knobs:
        if name not in KNOBS:
            raise MpkError(f"sweep takes no {name!r}: {suggest(name, KNOBS)}")
    axes = {name: _axis(name, value) for name, value in knobs.items()}
    for name, axis in axes.items():
        if not axis:
            raise MpkError(f"{name} is an empty list: leave it out, or give it a value")
    found: dict[str, Configuration] = {}
    for chosen in itertools.product(*axes.values()):
        values = dict(zip(axes, chosen, strict=True))
        mode = values.get("mode") or "static"
        values = {k: v for k, v in values.items() if mode in ONLY_IN.get(k, (mode,))}
        made = Configuration(values, setting)
        found.setdefault(made.id, made)
    return list(found.values())


def _axis(name: str, value: Any) -> list[Any]:
    if isinstance(value, list | range | np.ndarray) or (isinstance(value, tuple) and name not in LISTS):
        return [v.item() if isinstance(v, np.generic) else v for v in value]
    return [value]


class Bench:
    """Makes schedules and kernels of configurations; what several share is made once."""

    def __init__(self, graph: Any, weights: Model | Mapping[str, Any] | None):
        self._graph, self._weights = graph, weights
        self._tasks: dict[str, TaskGraph] = {}
        self._schedules: dict[str, Schedule] = {}

    def schedule(self, c: Configuration) -> Schedule:
        """Lowered and assigned; a MpkError says what cannot be."""
        lowered: dict[str, Any] = {k: c.values.get(k) for k in LOWER if c.values.get(k) is not None}
        key = str({k: text(v) for k, v in lowered.items()})
        if key not in self._tasks:
            self._tasks[key] = lower(self._graph, **lowered)
        assigned: dict[str, Any] = {k: c.values.get(k) for k in ASSIGN if c.values.get(k) is not None}
        whole = f"{key} { ({k: text(v) for k, v in assigned.items()}) }"
        if whole not in self._schedules:
            self._schedules[whole] = assign(self._tasks[key], **assigned)
        return self._schedules[whole]

    def kernel(self, c: Configuration) -> Kernel:
        """Verified and built: compiled once for all schedules of the same operator variants."""
        kernel = build(self.schedule(c), weights=self._weights)
        if c.values.get("prefetch") is not None:
            kernel.prefetch = bool(c.values["prefetch"])
        return kernel
