"""A brute-force explorer of everything a static schedule can do. It shares nothing with mpklab's verifier.

`explore` walks all reachable states of the workers, counters as the runtime keeps them, and collects every pair of
tasks that can run in the wrong order. Nothing a task does before its end can help another worker, so a state is how
many tasks each worker has ended; a task whose waits pass may be running already. `explore_values` takes no such short
cut: begin, end and each signal are steps of their own, and memory holds the writer of every cell. It is slower, and
checks the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Cell = tuple[int, ...]
Instance = tuple[int, int]  # (task, epoch)


@dataclass(frozen=True)
class Accesses:
    """Cells that a task reads and writes in one epoch."""

    reads: frozenset[Cell]
    writes: frozenset[Cell]

    def conflicts(self, other: Accesses) -> bool:
        return bool(self.writes & (other.reads | other.writes) or self.reads & other.writes)


@dataclass(frozen=True)
class Case:
    """A schedule as plain data. `memories[m][epoch][task]`: accesses, once for each start position worth looking at."""

    queues: tuple[tuple[int, ...], ...]
    operator: tuple[int, ...]  # of each task, in program order
    waits: tuple[tuple[tuple[int, int, bool], ...], ...]  # of each task: (event, lag, left to the worker's own order)
    signals: tuple[tuple[int, ...], ...]
    need: tuple[int, ...]
    step: int  # the task that opens the next epoch to all workers, or -1
    memories: tuple[tuple[tuple[Accesses, ...], ...], ...]

    @property
    def epochs(self) -> int:
        return len(self.memories[0])


@dataclass(frozen=True)
class Verdict:
    """What can happen: `races` are pairs (first, second) where second can begin before first has ended."""

    hangs: bool
    races: frozenset[tuple[Instance, Instance]]
    mixed: frozenset[tuple[Instance, Instance]]  # signals of two epochs that one counter cannot tell apart
    late: frozenset[tuple[Instance, Instance]]  # tasks that may still run when their epoch's step task begins
    states: int

    @property
    def name(self) -> str:
        return "hanging" if self.hangs else "racy" if self.races else "misused" if self.mixed or self.late else "safe"


def must_precede(case: Case) -> dict[Instance, set[Instance]]:
    """For each instance of a task, the instances with conflicting accesses that come earlier in program order."""
    found: dict[Instance, set[Instance]] = {}
    every = [(t, e) for e in range(case.epochs) for t in range(len(case.operator))]
    for memory in dict.fromkeys(case.memories):
        for second, later in every:
            for first, earlier in every:
                place = (earlier, case.operator[first])
                if place < (later, case.operator[second]) and memory[earlier][first].conflicts(memory[later][second]):
                    found.setdefault((second, later), set()).add((first, earlier))
    return found


def _pairs_for_counts(case: Case) -> dict[Instance, set[Instance]]:
    """A signal of one epoch must come after all signals of the last one."""
    found: dict[Instance, set[Instance]] = {}
    for event in range(len(case.need)):
        signallers = [t for t, events in enumerate(case.signals) if event in events]
        for t in signallers:
            for epoch in range(1, case.epochs):
                found.setdefault((t, epoch), set()).update((s, epoch - 1) for s in signallers if s != t)
    return found


def _pairs_for_step(case: Case) -> dict[Instance, set[Instance]]:
    tasks = [t for queue in case.queues for t in queue if t != case.step]
    return {(case.step, epoch): {(t, epoch) for t in tasks} for epoch in range(case.epochs)} if case.step >= 0 else {}


def explore(case: Case) -> Verdict:
    """Every reachable state."""
    workers = range(len(case.queues))
    programs = [[(t, e) for e in range(case.epochs) for t in queue] for queue in case.queues]
    place = {instance: (w, i) for w in workers for i, instance in enumerate(programs[w])}

    # sent[event][w][i]: signals of the event by worker w's first i entries.
    sent = [[[0] for _ in workers] for _ in case.need]
    for w in workers:
        for task, _ in programs[w]:
            for event, columns in enumerate(sent):
                columns[w].append(columns[w][-1] + case.signals[task].count(event))

    def guards(w: int, i: int) -> tuple[list[tuple[list[list[int]], int]], tuple[int, int] | None]:
        task, epoch = programs[w][i]
        counted = [
            (sent[event], case.need[event] * (epoch + 1 - lag))
            for event, lag, own in case.waits[task]
            if not own and case.need[event] * (epoch + 1 - lag) > 0
        ]
        first = epoch > 0 and task == case.queues[w][0]
        return counted, place[case.step, epoch - 1] if first and case.step >= 0 else None

    guard_of = [[guards(w, i) for i in range(len(programs[w]))] for w in workers]
    rules = [must_precede(case), _pairs_for_counts(case), _pairs_for_step(case)]
    owed = [
        [[[(*place[a], a) for a in rule.get(b, ())] for b in programs[w]] for w in workers] for rule in rules
    ]  # rule, worker, entry: what must have ended
    broken: list[set[tuple[Instance, Instance]]] = [set(), set(), set()]
    start = tuple(0 for _ in workers)
    seen, todo, hangs = {start}, [start], False
    while todo:
        at = todo.pop()
        moved = False
        for w in workers:
            i = at[w]
            if i == len(programs[w]):
                continue
            counted, step = guard_of[w][i]
            if step is not None and at[step[0]] <= step[1]:
                continue
            if any(sum(column[at[v]] for v, column in enumerate(columns)) < target for columns, target in counted):
                continue
            moved = True
            for pairs, entries in zip(broken, owed, strict=True):
                for v, k, a in entries[w][i]:
                    if at[v] <= k:
                        pairs.add((a, programs[w][i]))
            after = (*at[:w], i + 1, *at[w + 1 :])
            if after not in seen:
                seen.add(after)
                todo.append(after)
        if not moved and any(at[w] < len(programs[w]) for w in workers):
            hangs = True
    return Verdict(hangs, *map(frozenset, broken), len(seen))


def explore_values(case: Case, memory: int, limit: int = 200_000) -> tuple[bool, bool] | None:
    """(hangs, differs) over every interleaving of small steps, with the writer of each cell in memory.

    It differs when a task reads another writer's value than in sequential execution, runs beside a task whose cells
    conflict with its own, or leaves other values behind. None when there are more than `limit` states.
    """
    workers = range(len(case.queues))
    table = case.memories[memory]
    cells = sorted({c for row in table for a in row for c in a.reads | a.writes})
    index = {c: i for i, c in enumerate(cells)}
    reads = {(t, e): [index[c] for c in a.reads] for e, row in enumerate(table) for t, a in enumerate(row)}
    writes = {(t, e): [index[c] for c in a.writes] for e, row in enumerate(table) for t, a in enumerate(row)}
    contents: list[Instance | None] = [None] * len(cells)
    expected = {}
    for epoch in range(case.epochs):
        order = sorted(range(len(case.operator)), key=lambda t: case.operator[t])
        for t in order:
            expected[t, epoch] = [contents[c] for c in reads[t, epoch]]
            for c in writes[t, epoch]:
                contents[c] = (t, epoch)
    steps: list[list[tuple[str, Instance, int]]] = []
    for queue in case.queues:
        program: list[tuple[str, Instance, int]] = []
        for epoch in range(case.epochs):
            for t in queue:
                program += [("begin", (t, epoch), 0), ("end", (t, epoch), 0)]
                program += [("signal", (t, epoch), event) for event in case.signals[t]]
                program += [("publish", (t, epoch), 0)] if t == case.step else []
        steps.append(program)
    start = (tuple(0 for _ in workers), tuple(0 for _ in case.need), 0, (None,) * len(cells))
    seen, todo, hangs = {start}, [start], False
    while todo:
        if len(seen) > limit:
            return None
        at, counts, published, values = state = todo.pop()
        running = [steps[w][at[w]][1] for w in workers if at[w] < len(steps[w]) and steps[w][at[w]][0] == "end"]
        for w in workers:
            if at[w] == len(steps[w]):
                continue
            kind, (task, epoch), event = steps[w][at[w]]
            if kind == "begin":
                waits = [(e, case.need[e] * (epoch + 1 - lag)) for e, lag, own in case.waits[task] if not own]
                if any(counts[e] < target for e, target in waits):
                    continue
                if case.step >= 0 and task == case.queues[w][0] and published < epoch:
                    continue
                if [values[c] for c in reads[task, epoch]] != expected[task, epoch]:
                    return hangs, True
                if any(table[epoch][task].conflicts(table[e][t]) for t, e in running):
                    return hangs, True
            after = (*at[:w], at[w] + 1, *at[w + 1 :])
            now_counts, now_published, now_values = counts, published, values
            if kind == "end":
                changed = list(values)
                for c in writes[task, epoch]:
                    changed[c] = (task, epoch)
                now_values = tuple(changed)
            elif kind == "signal":
                now_counts = (*counts[:event], counts[event] + 1, *counts[event + 1 :])
            elif kind == "publish":
                now_published = epoch + 1
            reached = (after, now_counts, now_published, now_values)
            if reached not in seen:
                seen.add(reached)
                todo.append(reached)
        if all(at[w] == len(steps[w]) for w in workers):
            if list(values) != contents:
                return hangs, True
        elif not _moves(case, steps, state):
            hangs = True
    return hangs, False


def _moves(case: Case, steps: list[list[tuple[str, Instance, int]]], state: tuple) -> bool:
    """Whether some worker can take a step."""
    at, counts, published, _ = state
    for w, program in enumerate(steps):
        if at[w] < len(program):
            kind, (task, epoch), _ = program[at[w]]
            held = kind == "begin" and (
                any(counts[e] < case.need[e] * (epoch + 1 - lag) for e, lag, own in case.waits[task] if not own)
                or (case.step >= 0 and task == case.queues[w][0] and published < epoch)
            )
            if not held:
                return True
    return False


def cells_of(ranges: Iterable[range], buffer: int) -> set[Cell]:
    """The cells of a box."""
    found: set[Cell] = {(buffer,)}
    for r in ranges:
        found = {(*cell, i) for cell in found for i in r}
    return found
