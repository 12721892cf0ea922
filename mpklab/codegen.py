"""From a schedule to a short entry file and packed tables. The tables carry the schedule; the source only the variants."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from mpklab import abi
from mpklab.errors import BuildError
from mpklab.ops import REGISTRY
from mpklab.schedule import Schedule

Table = npt.NDArray[np.void]


@dataclass(frozen=True)
class Source:
    """What a compiler needs: the entry file's text. Equal texts are equal kernels, whatever the schedule."""

    text: str
    backend: str

    @cached_property
    def hash(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Tables:
    """Everything the device reads, packed as mpklab.abi declares. `slots` are the tensor names in slot order."""

    tasks: Table
    waits: Table
    signals: Table
    events: Table
    entries: Table
    queues: npt.NDArray[np.uint32]
    slots: tuple[str, ...]
    workers: int
    steps: bool

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in (self.tasks, self.waits, self.signals, self.events, self.entries, self.queues))


def emit(schedule: Schedule, level: int | None = None) -> Source:
    """The entry file: includes, the list of operator variants, one extern "C" entry.

    The CPU library holds all recording levels; a CUDA kernel is compiled for one `level`.
    """
    tasks = schedule.tasks
    backend = tasks.machine.backend
    suffix = "hpp" if backend == "cpu" else "cuh"
    headers = sorted({v.header for v in tasks.variants})
    lines = [f'#include "mpklab/{"host/worker.hpp" if backend == "cpu" else "device/worker.cuh"}"']
    lines += [f'#include "mpklab/ops/{h}.{suffix}"' for h in headers]
    lines += ["", "using Kernel = mpk::Variants<"]
    lines += [f"    {v.text}{',' if i + 1 < len(tasks.variants) else '>;'}" for i, v in enumerate(tasks.variants)]
    lines += ["", *(_host_entry() if backend == "cpu" else _device_entry(tasks.plan.settings, level or 0))]
    return Source("\n".join(lines) + "\n", backend)


def _host_entry() -> list[str]:
    return [
        'extern "C" int mpk_run(const mpk::Launch* launch, unsigned level, const int* cpus) {',
        "  return mpk::run_host<Kernel>(*launch, level, cpus);",
        "}",
        'extern "C" unsigned mpk_scratch_bytes() { return mpk::scratch_bytes<Kernel>(); }',
    ]


# What a CUDA kernel is made with unless the plan says otherwise; FACTS of one H200 in profiles/LOG.md.
DEVICE_SETTINGS = {"consumer_warps": 16, "page_bytes": 32768, "pages": 6, "in_flight": 2}


def device_settings(settings: Any) -> dict[str, int]:
    """The kernel settings of a plan, with what it leaves open filled in."""
    unknown = set(settings) - set(DEVICE_SETTINGS)
    if unknown:
        raise BuildError(f"unknown kernel settings {sorted(unknown)}: known are {sorted(DEVICE_SETTINGS)}")
    return {**DEVICE_SETTINGS, **settings}


def _device_entry(settings: Any, level: int) -> list[str]:
    s = device_settings(settings)
    arguments = f"Kernel, {level}, {s['consumer_warps']}, {s['page_bytes']}, {s['pages']}, {s['in_flight']}"
    return [
        f'extern "C" __global__ void __launch_bounds__(mpk::threads<{s["consumer_warps"]}>(), 1)',
        "mpk_kernel(const __grid_constant__ mpk::Launch launch) {",
        f"  mpk::run_device<{arguments}>(launch);",
        "}",
    ]


def pack(schedule: Schedule) -> Tables:
    """The schedule's tables; BuildError where something does not fit its field."""
    tasks = schedule.tasks
    n = len(tasks)
    names = tuple(tasks.graph.tensors)
    _fits("tasks", n, 1 << abi.ARG_BITS)
    _fits("events", len(tasks.need), 1 << abi.ARG_BITS)
    _fits("operators", len(tasks.operators), 1 << 16)
    _fits("tensors", len(names), 1 << 16)
    _fits("workers", schedule.workers, 1 << 16)
    slot_of = {name: i for i, name in enumerate(names)}

    table = np.zeros(n, abi.TASK)
    operator = tasks.operator_of
    table["variant"] = tasks.variant_of[operator]
    table["op"] = operator
    table["tile"] = tasks.words
    per_operator = np.zeros((len(tasks.operators), abi.MAX_SLOTS), np.uint16)
    for i, o in enumerate(tasks.operators):
        for k, operand in enumerate(REGISTRY.ops[o.op].operands):
            if operand.name in o.operands:
                per_operator[i, k] = slot_of[o.operands[operand.name]]
    table["slots"] = per_operator[operator]
    table["waits"], table["n_waits"] = tasks.wait_first[:-1], np.diff(tasks.wait_first)
    table["signals"], table["n_signals"] = tasks.signal_first[:-1], np.diff(tasks.signal_first)
    if tasks.step_task >= 0:
        table["flags"][tasks.step_task] = int(abi.TaskFlag.step)

    waits = np.zeros(len(tasks.wait_event), abi.WAIT)
    waits["event"], waits["need"] = tasks.wait_event, tasks.need[tasks.wait_event]
    waits["word"], waits["lag"], waits["handoff"] = abi.NO_WORD, tasks.wait_lag, schedule.handoff
    signals = np.zeros(len(tasks.signal_event), abi.SIGNAL)
    signals["event"], signals["weight"] = tasks.signal_event, 1
    events = np.zeros(len(tasks.need), abi.EVENT)
    events["need"], events["word"] = tasks.need, abi.NO_WORD

    entries = np.zeros(n, abi.ENTRY)
    entries["task"] = np.lexsort((schedule.position, schedule.worker))
    queues = np.concatenate([[0], np.cumsum(np.bincount(schedule.worker, minlength=schedule.workers))])
    return Tables(
        table, waits, signals, events, entries, queues.astype(np.uint32), names, schedule.workers, tasks.step_task >= 0
    )


def _fits(what: str, count: int, limit: int) -> None:
    if count >= limit:
        raise BuildError(
            f"{count} {what} do not fit the tables, which hold {limit - 1}: use larger tiles or fewer layers"
        )
