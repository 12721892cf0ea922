"""From a schedule to a short entry file and packed tables. The tables carry the schedule; the source only the variants."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mpklab import abi
from mpklab.device import Grid
from mpklab.errors import BuildError
from mpklab.ops import REGISTRY
from mpklab.schedule import ITERATION, Schedule
from mpklab.tasks.settings import DEFAULTS

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
class Delay:
    """A test hook that only a kernel made with it contains: a task, some tasks, or all tasks of a worker, take `ns`
    longer, in their execution or before their signals."""

    ns: int
    task: int | tuple[int, ...] | None = None
    worker: int | None = None
    signals: bool = False

    def lines(self) -> list[str]:
        """The macros that delay.h reads."""
        some = (self.task,) if isinstance(self.task, int) else self.task
        which = [] if some is None else [f"({' || '.join(f'task == {t}u' for t in some)})"]
        which += [] if self.worker is None else [f"worker == {self.worker}u"]
        return [
            f"#define MPK_DELAYED {'signals' if self.signals else 'execution'}",
            f"#define MPK_DELAYS(task, worker) {' && '.join(which) or 'true'}",
            f"#define MPK_DELAY_NS {self.ns}",
        ]


@dataclass(frozen=True)
class Tables:
    """Everything the device reads, packed as mpklab.abi declares. `slots` are the tensor names in slot order.

    `entries` are those of queue 0, queue 1 …, whose begins and end are in `queues`. With `grids`, one for every operator,
    `tasks` are theirs, block by block, and may have rows of no variant between them.
    """

    tasks: Table
    waits: Table
    signals: Table
    events: Table
    entries: Table
    queues: npt.NDArray[np.uint32]
    slots: tuple[str, ...]
    workers: int
    steps: int
    triggered: Table
    rings: Table
    opening: int
    grids: tuple[Grid, ...] = ()

    @property
    def bytes(self) -> int:
        tables = (self.tasks, self.waits, self.signals, self.events, self.entries, self.queues, self.triggered)
        return sum(t.nbytes for t in tables)

    @property
    def ready_slots(self) -> int:
        """Words in all rings."""
        return int((self.rings["mask"].astype(np.int64) + 1).sum()) if len(self.rings) else 0


def emit(
    schedule: Schedule, level: int | None = None, delay: Delay | None = None, *, per_operator: bool = False
) -> Source:
    """The entry file: includes, the list of operator variants, one extern "C" entry, or one for each variant.

    The CPU library holds all recording levels; a CUDA kernel is compiled for one `level`. `delay` is a test hook.
    """
    tasks = schedule.tasks
    backend = tasks.machine.backend
    suffix = "hpp" if backend == "cpu" else "cuh"
    headers = sorted({v.header for v in tasks.variants})
    lines = delay.lines() if delay else []
    lines += [f'#include "mpklab/{"host/worker.hpp" if backend == "cpu" else "device/worker.cuh"}"']
    lines += [f'#include "mpklab/ops/{h}.{suffix}"' for h in headers]
    if per_operator:
        for i, v in enumerate(tasks.variants):
            lines += ["", f"using Operator{i} = {v.text};", *_operator_entry(schedule, i)]
        return Source("\n".join(lines) + "\n", backend)
    lines += ["", "using Kernel = mpk::Variants<"]
    lines += [f"    {v.text}{',' if i + 1 < len(tasks.variants) else '>;'}" for i, v in enumerate(tasks.variants)]
    lines += ["", *(_host_entry() if backend == "cpu" else _device_entry(schedule, level or 0))]
    return Source("\n".join(lines) + "\n", backend)


def _host_entry() -> list[str]:
    return [
        'extern "C" int mpk_run(const mpk::Launch* launch, unsigned level, const int* cpus) {',
        "  return mpk::run_host<Kernel>(*launch, level, cpus);",
        "}",
        'extern "C" unsigned mpk_scratch_bytes() { return mpk::scratch_bytes<Kernel>(); }',
    ]


def device_settings(settings: Mapping[str, int]) -> dict[str, int]:
    """The kernel settings of a plan, with what it leaves open filled in."""
    return {**DEFAULTS, **settings}


def _device_entry(schedule: Schedule, level: int) -> list[str]:
    kind = "pools" if schedule.handout is not None else "words" if schedule.handed else ""
    holds = f", mpk::Holds::{kind}" if kind else ""
    return _entry("mpk_kernel", f"Kernel, {level}", device_settings(schedule.tasks.plan.settings), "1", holds)


def _operator_entry(schedule: Schedule, variant: int) -> list[str]:
    s = device_settings(schedule.tasks.plan.settings)
    kernel = f"mpk::Variants<Operator{variant}>"
    shape = f"{kernel}, {s['consumer_warps']}, {s['page_bytes']}, {s['pages']}"
    blocks = f"mpk::blocks_together<{shape}>({schedule.tasks.machine.shared_bytes})"
    more = ", const __grid_constant__ mpk::Operands operands"
    return _entry(f"mpk_operator_{variant}", f"{kernel}, 0", s, blocks, ", mpk::Holds::operator_", more)


def _entry(name: str, kernel: str, s: dict[str, int], blocks: str, holds: str, more: str = "") -> list[str]:
    shape = f"{s['consumer_warps']}, {s['page_bytes']}, {s['pages']}, {s['in_flight']}, {s['l2_bytes']}"
    return [
        f'extern "C" __global__ void __launch_bounds__(mpk::threads<{s["consumer_warps"]}>(), {blocks})',
        f"{name}(const __grid_constant__ mpk::Launch launch{more}) {{",
        f"  mpk::run_device<{kernel}, {shape}{holds}>(launch{', operands' if more else ''});",
        "}",
    ]


def pack(schedule: Schedule, *, per_operator: bool = False) -> Tables:
    """The schedule's tables; BuildError where something does not fit its field.

    `per_operator`: tasks stand operator by operator, those that the schedule gave one worker as the row of a block.
    """
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
    operands = np.zeros((len(tasks.operators), abi.MAX_SLOTS), np.uint16)
    for i, o in enumerate(tasks.operators):
        for k, operand in enumerate(REGISTRY.ops[o.op].operands):
            if operand.name in o.operands:
                operands[i, k] = slot_of[o.operands[operand.name]]
    table["slots"] = operands[operator]
    table["waits"], table["n_waits"] = tasks.wait_first[:-1], np.diff(tasks.wait_first)
    # Nobody counts the signals of what is handed over by its own words.
    signaller = np.repeat(np.arange(n), np.diff(tasks.signal_first))
    counted = ~schedule.by_words[operator[signaller]]
    sent = np.bincount(signaller[counted], minlength=n)
    table["signals"], table["n_signals"] = np.cumsum(sent) - sent, sent
    if tasks.step_task >= 0:
        table["flags"][tasks.step_task] = int(abi.TaskFlag.step)

    waits = np.zeros(len(tasks.wait_event), abi.WAIT)
    waits["event"], waits["need"] = tasks.wait_event, tasks.need[tasks.wait_event]
    waits["word"], waits["lag"], waits["handoff"] = abi.NO_WORD, tasks.wait_lag, schedule.handoff
    signals = np.zeros(int(counted.sum()), abi.SIGNAL)
    signals["event"], signals["weight"] = tasks.signal_event[counted], 1
    events = np.zeros(len(tasks.need), abi.EVENT)
    events["need"], events["word"] = tasks.need, abi.NO_WORD

    grids: tuple[Grid, ...] = ()
    if per_operator:
        table, grids = _grids(schedule, table)
    entries, lengths = _entries(schedule)
    queues = np.concatenate([[0], np.cumsum(lengths)])
    steps = abi.Steps.task if tasks.step_task >= 0 else abi.Steps.none
    if schedule.handout is not None and steps == abi.Steps.none:
        steps = abi.Steps.last
    triggered, rings, opening = _pools(schedule, events)
    return Tables(
        table, waits, signals, events, entries, queues.astype(np.uint32), names, schedule.workers, int(steps), triggered,
        rings, opening, grids,
    )  # fmt: skip


def _entries(schedule: Schedule) -> tuple[Table, list[int]]:
    """Every queue's entries, one queue after the other, and how many each has. A drain stands before its task."""
    rows: list[tuple[int, int, int]] = []
    lengths = []
    for w, queue in enumerate(schedule.queues):
        drains = list(schedule.drains[w]) if schedule.drains else []
        before = len(rows)
        for position, task in enumerate([*queue.tolist(), None]):
            while drains and drains[0].position == position:
                event = drains.pop(0).event
                word = abi.NO_WORD if event == ITERATION else event
                rows.append((word, int(abi.EntryKind.drain), schedule.first_ring(w)))
            if task is not None:
                rows.append((task, int(abi.EntryKind.task), 0))
        lengths.append(len(rows) - before)
    return np.array(rows, abi.ENTRY), lengths


def _grids(schedule: Schedule, table: Table) -> tuple[Table, tuple[Grid, ...]]:
    """The operators in the order of the graph, and their tasks block by block, as many rows for each block of one."""
    tasks = schedule.tasks
    if schedule.handout is not None:
        raise BuildError(f"a {schedule.mode} schedule gives tasks to no worker beforehand: one kernel per operator needs "
                         'assign(…, mode="static")')  # fmt: skip
    producer = tasks.event_producer[tasks.wait_event]
    consumer = tasks.operator_of[np.repeat(np.arange(len(tasks)), np.diff(tasks.wait_first))]
    backward = np.flatnonzero((tasks.wait_lag == 0) & (producer >= consumer))
    if len(backward):
        names = [tasks.operators[int(side[backward[0]])].name for side in (consumer, producer)]
        raise BuildError(f"{names[0]} waits for {names[1]}, which is launched no earlier: use the persistent kernel")
    groups: list[Table] = []
    grids = []
    rows = 0
    for i in range(len(tasks.operators)):
        mine = np.arange(tasks.first[i], tasks.first[i + 1])
        mine = mine[np.lexsort((schedule.position[mine], schedule.worker[mine]))]
        _, block, held = np.unique(schedule.worker[mine], return_inverse=True, return_counts=True)
        each = int(held.max())
        group = np.zeros((len(held), each), abi.TASK)
        group["variant"] = abi.NO_VARIANT
        group[block, np.arange(len(mine)) - (np.cumsum(held) - held)[block]] = table[mine]
        kernel, slots = f"mpk_operator_{tasks.variant_of[i]}", tuple(table["slots"][mine[0]].tolist())
        grids.append(Grid(kernel, len(held), each, rows * abi.TASK.itemsize, slots))
        groups.append(group.reshape(-1))
        rows += group.size
    return np.concatenate(groups), tuple(grids)


def _pools(schedule: Schedule, events: Table) -> tuple[Table, Table, int]:
    """What each event hands out (noted in `events`), the rings it goes to, and how many tasks open an iteration."""
    tasks, ring = schedule.tasks, schedule.ring
    rings = np.zeros(schedule.n_rings, abi.RING)
    if schedule.handout is None:
        return np.zeros(0, abi.TRIGGER), rings, 0
    _fits("rings", len(rings), 1 << 16)
    rings["tasks"] = np.bincount(ring[schedule.pool], minlength=len(rings))
    # All of an iteration's tasks are popped before the next one's are pushed, so one iteration's must fit.
    capacity = 1 << np.ceil(np.log2(np.maximum(rings["tasks"], 1))).astype(np.int64)
    rings["mask"], rings["base"] = capacity - 1, np.cumsum(capacity) - capacity
    consumer = np.repeat(np.arange(len(tasks)), np.diff(tasks.wait_first))
    now = (tasks.wait_lag == 0) & (schedule.worker[consumer] < 0)
    count = np.bincount(consumer[now], minlength=len(tasks))
    opening = schedule.pool[count[schedule.pool] == 0]
    order = np.lexsort((consumer[now], tasks.wait_event[now]))
    handed_out = np.concatenate([opening, consumer[now][order]])
    triggered = np.zeros(len(handed_out), abi.TRIGGER)
    triggered["task"], triggered["ring"], triggered["waits"] = handed_out, ring[handed_out], count[handed_out]
    per_event = np.bincount(tasks.wait_event[now], minlength=len(events))
    events["n_tasks"] = per_event
    events["tasks"] = len(opening) + np.cumsum(per_event) - per_event
    return triggered, rings, len(opening)


def _fits(what: str, count: int, limit: int) -> None:
    if count >= limit:
        raise BuildError(
            f"{count} {what} do not fit the tables, which hold {limit - 1}: use larger tiles or fewer layers"
        )
