"""Runs a schedule task by task in any order its events allow, asserting every wait: the oracle for every backend."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch

from mpklab.abi import Handoff
from mpklab.errors import RunError, suggest
from mpklab.reference.functions import FUNCTIONS, dealt
from mpklab.schedule import ITERATION, Drain, Schedule

TORCH_DTYPES = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int32": torch.int32,
    "int64": torch.int64, "uint8": torch.uint8,
}  # fmt: skip


@torch.inference_mode()
def execute(
    schedule: Schedule,
    inputs: Mapping[str, torch.Tensor],
    *,
    iterations: int = 1,
    seed: int | None = None,
    device: str = "cpu",
) -> dict[str, torch.Tensor]:
    """State and outputs after so many iterations (fewer when a step says stop).

    `inputs` hold inputs, weights and (optionally) state by name; a merged weight may be given by its parts. With a
    `seed`, workers take turns at random and pop any ready task; without, each runs as far as it can and pops the
    oldest. Activations start as NaN, so a read before its write shows. RunError when no worker can go on.
    """
    if schedule.handout is not None:
        return _Pools(schedule, _tensors(schedule, inputs, device), iterations, seed).run()
    tasks = schedule.tasks
    graph = tasks.graph
    t = _tensors(schedule, inputs, device)
    nodes = [graph.node(o) for o in tasks.operators]
    views = [{k: t[v] for k, v in o.operands.items()} for o in tasks.operators]
    queues = [q.tolist() for q in schedule.queues]
    at = [(0, 0)] * schedule.workers
    count = np.zeros(len(tasks.need), np.int64)
    chooser = random.Random(seed) if seed is not None else None
    opened, stopped = 0, iterations  # the last iteration whose step stands; the first that does not happen
    step = tasks.step_task
    alive = [w for w in range(schedule.workers) if queues[w]]
    while alive:
        moved = False
        for w in chooser.sample(alive, len(alive)) if chooser else list(alive):
            while True:
                epoch, position = at[w]
                if epoch >= stopped:
                    alive.remove(w)
                    moved = True
                    break
                task = queues[w][position]
                if (step >= 0 and epoch > opened) or not _ready(schedule, task, epoch, count):
                    break
                o = int(tasks.operator_of[task])
                FUNCTIONS[tasks.operators[o].op](nodes[o], views[o], tasks.words[task].tolist())
                count[tasks.signal_event[tasks.signal_first[task] : tasks.signal_first[task + 1]]] += 1
                if task == step:
                    opened = epoch + 1
                    if bool(views[o]["done"].bool().all()):
                        stopped = min(stopped, opened)
                at[w] = (epoch, position + 1) if position + 1 < len(queues[w]) else (epoch + 1, 0)
                moved = True
                if chooser:
                    break
        if not moved:
            names = [tasks.task_name(queues[w][at[w][1]]) for w in alive[:4]]
            raise RunError(f"the schedule hangs: workers {alive[:4]} wait for ever at {', '.join(names)}")
    return {n: t[n] for n, x in graph.tensors.items() if x.role in ("state", "output")}


def _ready(schedule: Schedule, task: int, epoch: int, count: np.ndarray) -> bool:
    tasks = schedule.tasks
    for i in range(int(tasks.wait_first[task]), int(tasks.wait_first[task + 1])):
        if schedule.handoff[i] == Handoff.worker:
            continue
        event = tasks.wait_event[i]
        if count[event] < tasks.need[event] * (epoch + 1 - tasks.wait_lag[i]):
            return False
    return True


class _Pools:
    """The execution of a schedule that hands tasks out: per worker its place, and the tasks that it has popped."""

    def __init__(self, schedule: Schedule, t: dict[str, torch.Tensor], iterations: int, seed: int | None):
        assert schedule.handout is not None
        self.schedule, self.handout, self.t, self.iterations = schedule, schedule.handout, t, iterations
        self.chooser = random.Random(seed) if seed is not None else None
        tasks = self.tasks = schedule.tasks
        self.nodes = [tasks.graph.node(o) for o in tasks.operators]
        self.views = [{k: t[v] for k, v in o.operands.items()} for o in tasks.operators]
        n = len(tasks)
        consumer = np.repeat(np.arange(n), np.diff(tasks.wait_first))
        handed_out = (tasks.wait_lag == 0) & (schedule.worker[consumer] < 0)
        self.events_before = np.bincount(consumer[handed_out], minlength=n)
        self.triggers: list[list[int]] = [[] for _ in tasks.need]
        for event, task in zip(tasks.wait_event[handed_out], consumer[handed_out], strict=True):
            self.triggers[event].append(int(task))
        self.opening = [int(x) for x in schedule.pool if self.events_before[x] == 0]
        self.count = np.zeros(len(tasks.need), np.int64)
        self.promised = np.zeros(len(tasks.need), np.int64)
        self.pending = np.zeros(n, np.int64)
        self.rings: list[list[int]] = [[] for _ in range(schedule.n_rings)]
        self.entries: list[list[int | Drain]] = []
        for queue, drains in zip(schedule.queues, schedule.drains, strict=True):
            row: list[int | Drain] = []
            for position in range(len(queue) + 1):
                row += [d for d in drains if d.position == position]
                row += [int(queue[position])] if position < len(queue) else []
            self.entries.append(row)
        self.at = [(0, 0)] * schedule.workers  # epoch, entry
        self.held: list[list[int]] = [[] for _ in range(schedule.workers)]
        self.opened, self.stopped, self.ended = 0, iterations, 0

    def run(self) -> dict[str, torch.Tensor]:
        self._push(self.opening)
        alive = list(range(self.schedule.workers))
        while alive:
            moved = False
            for w in self.chooser.sample(alive, len(alive)) if self.chooser else list(alive):
                while self._step(w):
                    moved = True
                    if self.chooser:
                        break
                if self.at[w][0] >= self.stopped:
                    alive.remove(w)
                    moved = True
            if not moved:
                raise RunError(f"the schedule hangs: workers {alive[:4]} wait for ever, holding {self.held[alive[0]]}")
        graph = self.tasks.graph
        return {n: self.t[n] for n, x in graph.tensors.items() if x.role in ("state", "output")}

    def _step(self, w: int) -> bool:
        """One thing that the worker can do now; False when there is none."""
        epoch, i = self.at[w]
        if epoch >= self.stopped or epoch > self.opened:
            return False
        entry = self.entries[w][i]
        if not isinstance(entry, Drain):
            if not _ready(self.schedule, entry, epoch, self.count):
                return False
            self._promise(entry, epoch)
            self._end(entry, epoch)
            self._next(w)
            return True
        held = self.held[w]
        event = entry.event
        over = self.opened > epoch if event == ITERATION else bool(
            self.count[event] >= self.tasks.need[event] * (epoch + 1)
        )  # fmt: skip
        if not over and len(held) <= self.handout.pop_ahead:
            task = self._pop(w)
            if task >= 0:
                held.append(task)
                self._promise(task, epoch)
                return True
        if held:
            if not _ready(self.schedule, held[0], epoch, self.count):
                return False
            self._end(held.pop(0), epoch)
            return True
        if over:
            self._next(w)
        return over

    def _next(self, w: int) -> None:
        epoch, i = self.at[w]
        self.at[w] = (epoch, i + 1) if i + 1 < len(self.entries[w]) else (epoch + 1, 0)

    def _pop(self, w: int) -> int:
        first = self.schedule.first_ring(w)
        for ring in self.rings[first : first + self.handout.classes]:
            if ring:
                return ring.pop(self.chooser.randrange(len(ring)) if self.chooser else 0)
        return -1

    def _push(self, ready: list[int]) -> None:
        for task in ready:
            self.rings[int(self.schedule.ring[task])].append(task)

    def _hand_out(self, event: int, epoch: int) -> None:
        for task in self.triggers[event]:
            self.pending[task] += 1
            if self.pending[task] == self.events_before[task] * (epoch + 1):
                self._push([task])

    def _signals(self, task: int) -> list[int]:
        tasks = self.tasks
        return [int(e) for e in tasks.signal_event[tasks.signal_first[task] : tasks.signal_first[task + 1]]]

    def _promise(self, task: int, epoch: int) -> None:
        if self.handout.early_push:
            for event in self._signals(task):
                self.promised[event] += 1
                if self.promised[event] == self.tasks.need[event] * (epoch + 1):
                    self._hand_out(event, epoch)

    def _end(self, task: int, epoch: int) -> None:
        """Run a task whose waits are met, signal, and hand out what that makes ready."""
        tasks = self.tasks
        o = int(tasks.operator_of[task])
        FUNCTIONS[tasks.operators[o].op](self.nodes[o], self.views[o], tasks.words[task].tolist())
        for event in self._signals(task):
            self.count[event] += 1
            if self.count[event] == tasks.need[event] * (epoch + 1) and not self.handout.early_push:
                self._hand_out(event, epoch)
        self.ended += 1
        stops = False
        if task == tasks.step_task:
            stops = bool(self.views[o]["done"].bool().all())
        elif tasks.step_task >= 0 or self.ended < len(tasks) * (epoch + 1):
            return
        if self.ended != len(tasks) * (epoch + 1):
            raise RunError(f"{tasks.task_name(task)} opens iteration {epoch + 1} before iteration {epoch} is over")
        self.opened = epoch + 1
        if stops:
            self.stopped = min(self.stopped, self.opened)
        if self.opened < self.stopped:
            self._push(self.opening)


def _tensors(schedule: Schedule, inputs: Mapping[str, torch.Tensor], device: str) -> dict[str, torch.Tensor]:
    graph = schedule.tasks.graph
    unknown = set(inputs) - set(graph.tensors)
    if unknown:
        name = sorted(unknown)[0]
        raise RunError(f"the graph has no tensor {name!r}: {suggest(name, graph.tensors)}")
    used = {v for o in graph.operators for v in o.operands.values()}
    t: dict[str, torch.Tensor] = {}
    for name, x in graph.tensors.items():
        if name in inputs:
            t[name] = inputs[name].to(device)
            if x.role == "state":
                t[name] = t[name].clone()
        elif x.parts and all(p in inputs for p in x.parts):
            t[name] = torch.cat(dealt([inputs[p].to(device) for p in x.parts], x.groups))
        elif x.role in ("input", "weight"):
            if name in used:
                raise RunError(f"no value for the {x.role} {x}")
        else:
            fill = float("nan") if x.role != "state" and TORCH_DTYPES[x.dtype].is_floating_point else 0
            t[name] = torch.full(x.type.sizes, fill, dtype=TORCH_DTYPES[x.dtype], device=device)
    return t
