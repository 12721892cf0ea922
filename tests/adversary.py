"""Runs a schedule in a hostile order and looks at who wrote what every task reads. Shares nothing with the verifier.

One task instance, the victim, begins when it may and then takes as long as it can: everything else that the waits and
queues allow happens before it reads, writes and ends. If any order of tasks can go wrong because the victim is slow,
this one does: no wait is ever met later because others went ahead.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import numpy as np
from mutants import Draft

from mpklab.ops import REGISTRY, Box, Tiling
from mpklab.tasks import TaskGraph

Instance = tuple[int, int]  # (task, epoch)


@dataclass
class Memory:
    """Cells of every tensor that tasks write: per epoch and task the cells read and written, and what sequential
    execution reads there and leaves behind. A cell's value is the number of the instance that wrote it last."""

    size: int
    reads: list[list[np.ndarray]]
    writes: list[list[np.ndarray]]
    expected: list[list[np.ndarray]]
    final: np.ndarray


def _bounds(box: Box, tile: int, position: int) -> list[tuple[int, int]]:
    """Where a tile's box lies, at a position."""

    def value(x: int | np.ndarray) -> int:
        return int(x[tile]) if isinstance(x, np.ndarray) else int(x)

    found = []
    for r in box.ranges:
        lo, hi = value(r.lo) + r.pos_lo * position, value(r.hi) + r.pos_hi * position
        if r.split:
            parts, i = r.split[0], int(r.split[1][tile])
            lo, hi = lo + (hi - lo) * i // parts, lo + (hi - lo) * (i + 1) // parts
        found.append((lo, max(lo, hi)))
    return found


def memory_of(tasks: TaskGraph, epochs: int, position: int) -> Memory:
    """The cells of a task graph: every tensor is cut wherever some box begins or ends."""
    graph, plan = tasks.graph, tasks.plan
    steps = any(REGISTRY.ops[o.op].step for o in graph.operators)
    written = {o.operands[k] for o in graph.operators for k in o.outputs}
    touches: list[tuple[int, int, bool, str, list[tuple[int, int]]]] = []  # epoch, task, writes, tensor, box
    for i, o in enumerate(graph.operators):
        tiles = REGISTRY.ops[o.op].tiles(graph.node(o), plan.tilings.get(o.name, Tiling(parts=1)))
        for writes, boxes in ((False, tiles.reads), (True, tiles.writes)):
            for box in boxes:
                tensor = o.operands[box.operand]
                if tensor in written:
                    for epoch in range(epochs):
                        for tile in range(len(tiles)):
                            bounds = _bounds(box, tile, position + epoch * steps)
                            touches.append((epoch, int(tasks.first[i]) + tile, writes, tensor, bounds))
    cuts: dict[str, list[set[int]]] = {}
    for _, _, _, tensor, bounds in touches:
        axes = cuts.setdefault(tensor, [set() for _ in bounds])
        for axis, pair in zip(axes, bounds, strict=True):
            axis.update(pair)
    at: dict[str, tuple[int, list[dict[int, int]]]] = {}
    size = 0
    for tensor, axes in cuts.items():
        order = [{x: i for i, x in enumerate(sorted(axis))} for axis in axes]
        at[tensor] = (size, order)
        size += int(np.prod([len(axis) for axis in order]))
    known: dict[tuple[str, tuple[tuple[int, int], ...]], np.ndarray] = {}

    def cells(tensor: str, bounds: list[tuple[int, int]]) -> np.ndarray:
        key = (tensor, tuple(bounds))
        if key not in known:
            base, order = at[tensor]
            found = np.zeros(1, np.int64)
            for (lo, hi), axis in zip(bounds, order, strict=True):
                found = (found[:, None] * len(axis) + np.arange(axis[lo], axis[hi])).ravel()
            known[key] = base + found
        return known[key]

    lists: list[list[list[list[np.ndarray]]]] = [[[[], []] for _ in range(len(tasks))] for _ in range(epochs)]
    for epoch, task, writes, tensor, bounds in touches:
        lists[epoch][task][writes].append(cells(tensor, bounds))
    nothing = np.zeros(0, np.int64)
    joined = [[[np.concatenate([nothing, *x]) for x in pair] for pair in row] for row in lists]
    contents = np.full(size, -1, np.int64)
    expected = []
    for epoch, row in enumerate(joined):
        expected.append([])
        for task, (reads, writes) in enumerate(row):
            expected[-1].append(contents[reads])
            contents[writes] = epoch * len(tasks) + task
    return Memory(
        size, [[r for r, _ in row] for row in joined], [[w for _, w in row] for row in joined], expected, contents
    )


@dataclass(frozen=True)
class Outcome:
    """ok, hang, or value with the instance that saw a wrong one (None: what was left behind is wrong)."""

    kind: str
    where: Instance | None = None


def run(
    draft: Draft, own: set[tuple[int, int]], step: int, memory: Memory, victim: Instance | None, rng: random.Random
) -> Outcome:
    """One execution; ready workers go in random order, the victim as late as possible."""
    epochs, n = len(memory.reads), len(draft.waits)
    queues, workers = draft.queues, len(draft.queues)
    counts = [0] * len(draft.need)
    contents = np.full(memory.size, -1, np.int64)
    place = [(0, 0)] * workers  # epoch, position
    published = 0
    sleeping: dict[int, list[int]] = {}  # event, or -1 for the step
    awake = [w for w in range(workers) if queues[w]]
    held = -1  # the victim's worker, once it is in the victim

    def act(task: int, epoch: int) -> bool:
        right = np.array_equal(contents[memory.reads[epoch][task]], memory.expected[epoch][task])
        contents[memory.writes[epoch][task]] = epoch * n + task
        return right

    def finish(w: int, task: int, epoch: int) -> None:
        nonlocal published
        for event in draft.signals[task]:
            counts[event] += 1
            awake.extend(sleeping.pop(event, ()))
        if task == step:
            published = epoch + 1
            awake.extend(sleeping.pop(-1, ()))
        position = place[w][1] + 1
        place[w] = (epoch, position) if position < len(queues[w]) else (epoch + 1, 0)

    def blocker(task: int, epoch: int, position: int) -> int | None:
        if position == 0 and step >= 0 and published < epoch:
            return -1
        for i, (event, lag) in enumerate(draft.waits[task]):
            if counts[event] < draft.need[event] * (epoch + 1 - lag) and (task, i) not in own:
                return event
        return None

    while True:
        while awake:
            i = rng.randrange(len(awake))
            awake[i], awake[-1] = awake[-1], awake[i]
            w = awake.pop()
            for _ in range(rng.randint(1, 8)):  # some tasks in a row, then somebody else
                epoch, position = place[w]
                if epoch == epochs:
                    break
                task = queues[w][position]
                event = blocker(task, epoch, position)
                if event is not None:
                    sleeping.setdefault(event, []).append(w)
                    break
                if (task, epoch) == victim:
                    held, victim = w, None
                    break
                if not act(task, epoch):
                    return Outcome("value", (task, epoch))
                finish(w, task, epoch)
            else:
                awake.append(w)
        if held < 0:
            break
        epoch, position = place[held]
        task = queues[held][position]
        if not act(task, epoch):
            return Outcome("value", (task, epoch))
        finish(held, task, epoch)
        awake.append(held)
        held = -1
    if any(place[w][0] < epochs for w in range(workers) if queues[w]):
        return Outcome("hang")
    return Outcome("ok") if np.array_equal(contents, memory.final) else Outcome("value")


def acyclic(draft: Draft) -> bool:
    """Whether queue order and the waits within one iteration can all be followed."""
    n = len(draft.waits)
    after: list[list[int]] = [[] for _ in range(n + len(draft.need))]
    missing = [0] * len(after)
    for queue in draft.queues:
        for a, b in itertools.pairwise(queue):
            after[a].append(b)
            missing[b] += 1
    for task in range(n):
        for event in draft.signals[task]:
            after[task].append(n + event)
            missing[n + event] += 1
        for event, lag in draft.waits[task]:
            if lag == 0:
                after[n + event].append(task)
                missing[task] += 1
    ready = [x for x, m in enumerate(missing) if m == 0]
    seen = 0
    while ready:
        x = ready.pop()
        seen += 1
        for y in after[x]:
            missing[y] -= 1
            if missing[y] == 0:
                ready.append(y)
    return seen == len(after)
