"""Runs a schedule task by task in any order its events allow, asserting every wait: the oracle for every backend."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch

from mpklab.abi import Handoff
from mpklab.errors import RunError, suggest
from mpklab.reference.functions import FUNCTIONS
from mpklab.schedule import Schedule

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
    `seed`, workers take turns at random; without, each runs as far as it can. Activations start as NaN, so a read
    before its write shows. RunError when no worker can go on.
    """
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
            t[name] = torch.cat([inputs[p].to(device) for p in x.parts])
        elif x.role in ("input", "weight"):
            if name in used:
                raise RunError(f"no value for the {x.role} {x}")
        else:
            fill = float("nan") if x.role != "state" and TORCH_DTYPES[x.dtype].is_floating_point else 0
            t[name] = torch.full(x.type.sizes, fill, dtype=TORCH_DTYPES[x.dtype], device=device)
    return t
