"""Buffers in FlashInfer's layout, which Mirage shares: 64-bit entries, the k-th of every lane side by side.

Entry 0 holds (blocks, groups). Entry 1 + lane + k · blocks · groups is the k-th of lane block · groups + group: 32 bits
of tag, 32 bits of the global timer in ns. A lane is known by where its entries lie; what a tag says of it is not
trusted, for it has been written in several ways (see `_version`). Tags, from bit 31 down:
FlashInfer, first: lane 20 · event 10 · kind 2. Since it knows the SM: SM 8 · block 12 (the group is lost, and blocks
from 4096 on run into the SM) · event 10 · kind 2. Mirage: number 13 · lane 8 · event 9 · kind 2, later 10 · 11 · 9 · 2.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpklab.errors import ProfileError
from mpklab.imports.mirage import MirageGraph, read_graph
from mpklab.imports.writing import BEGIN, END, EXECUTE, MAX_ARG, words, write_lanes
from mpklab.profile import Profile

MAX_LANES = 1 << 16
LIKELY = 0.9  # of the tags must agree with where they lie


def from_flashinfer(buffer: Any, names: Sequence[str] | Mapping[int, str] | None = None) -> Profile:
    """FlashInfer's profiler buffer (array, tensor or file) as a profile; `names` are those of its events.

    Blocks become workers, groups their roles, events operators; each span is a task of its own. Both tag layouts are
    recognised. Instants are left out: the device overwrites them with the next event.
    """
    lane, tag, time_ns, blocks, groups = _entries(words(buffer))
    version = _version(
        lane,
        {
            "lane": ((tag >> 12) == lane),
            "block and SM": ((tag >> 12) & 0xFFF) == ((lane // groups) & 0xFFF),
            "lane and SM": ((tag >> 12) & 0xFFF) == (lane & 0xFFF),
        },
        "FlashInfer",
    )
    sm = None
    if version != "lane" and blocks <= 4096:
        sm = np.full(blocks, -1, np.int64)
        sm[lane // groups] = tag >> 24
    meta = {"source": f"FlashInfer, tags with {version}", "blocks": blocks, "groups": groups}
    return _profile(lane, tag & 3, (tag >> 2) & 0x3FF, time_ns, blocks, groups, _namer(names, "event"), sm, meta)


def from_mirage(
    buffer: Any,
    task_graph: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    names: Mapping[int, str] | None = None,
) -> Profile:
    """Mirage's profiler buffer as a profile; with its `task_graph.json`, spans become that graph's tasks.

    `names` by task type. A span does not say which task it is: the k-th to begin of a type is taken for the k-th of that
    type in the graph, so tasks may be exchanged within a layer, never between layers. Types whose counts exceed the
    graph's are left out of it (`meta["unmatched"]`).
    """
    lane, tag, time_ns, blocks, groups = _entries(words(buffer))
    version = _version(
        lane,
        {"11 bits of lane": (tag >> 11) & 0x7FF == lane, "8 bits of lane": (tag >> 11) & 0xFF == lane & 0xFF},
        "Mirage",
    )
    meta = {"source": f"Mirage, tags with {version}", "blocks": blocks, "groups": groups}
    name = _namer(names, "task")
    if task_graph is None:
        return _profile(lane, tag & 3, (tag >> 2) & 0x1FF, time_ns, blocks, groups, name, None, meta)
    graph = read_graph(task_graph, name)
    return _with_graph(lane, tag & 3, (tag >> 2) & 0x1FF, time_ns, blocks, groups, name, graph, meta)


def _entries(buffer: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    """Lane, tag and unwrapped time of every entry, lane by lane; blocks and groups."""
    if not buffer.size:
        raise ProfileError("the buffer is empty")
    blocks, groups = int(buffer[0] & np.uint64(0xFFFFFFFF)), int(buffer[0] >> np.uint64(32))
    lanes = blocks * groups
    if not (0 < blocks < MAX_LANES and 0 < groups < 16 and lanes <= MAX_LANES and lanes < buffer.size):
        raise ProfileError(f"not such a buffer: its first entry says {blocks} blocks of {groups} groups")
    deep = (buffer.size - 1) // lanes
    table = buffer[1 : 1 + deep * lanes].reshape(deep, lanes).T
    # A lane ends with its first empty entry; what lies behind is left over from another run.
    held = np.where((table == 0).any(1), (table == 0).argmax(1), deep)
    keep = np.arange(deep)[None] < held[:, None]
    lane = np.repeat(np.arange(lanes), held)
    raw = table[keep]
    tag = (raw & np.uint64(0xFFFFFFFF)).astype(np.int64)
    low = (raw >> np.uint64(32)).astype(np.int64)
    if not raw.size:
        return lane, tag, low, blocks, groups
    # 32 bits of ns turn every 4.3 s: unwrap each lane, and place its first entry near the others' first.
    first = np.r_[0, np.cumsum(held)][:-1]
    some = np.nonzero(held)[0]
    step = np.diff(low, prepend=0) & 0xFFFFFFFF
    step = np.where(step > 0xFFFFFFFF - (1 << 20), 0, step)
    begin = ((low[first[some]] - low[first[some[0]]] + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)
    step[first[some]] = begin
    total = np.cumsum(step)
    before = np.zeros(lanes, np.int64)
    before[some] = total[first[some]] - begin
    time_ns = total - before[lane]
    return lane, tag, time_ns - time_ns.min(), blocks, groups


def _version(lane: np.ndarray, claims: Mapping[str, np.ndarray], tool: str) -> str:
    """The layout in which most tags agree with where they lie; the first of equals."""
    if not lane.size:
        return next(iter(claims))
    shares = {name: float(np.mean(agrees)) for name, agrees in claims.items()}
    best = max(shares, key=lambda name: shares[name])
    if shares[best] < LIKELY:
        raise ProfileError(
            f"not a {tool} buffer: only {100 * shares[best]:.0f} % of its tags name the lane that they lie in "
            f"(was it zeroed before the run, and is it from one run?)"
        )
    return best


def _namer(names: Sequence[str] | Mapping[int, str] | None, word: str) -> Any:
    known = dict(names) if isinstance(names, Mapping) else dict(enumerate(names or ()))
    return lambda number: str(known.get(int(number), f"{word}{int(number)}"))


def _profile(
    lane: np.ndarray,
    kind: np.ndarray,
    event: np.ndarray,
    time_ns: np.ndarray,
    blocks: int,
    groups: int,
    name: Any,
    sm: np.ndarray | None,
    meta: dict[str, Any],
) -> Profile:
    """One operator per event, one task per span."""
    use = kind <= END
    lane, kind, event, time_ns = lane[use], kind[use], event[use], time_ns[use]
    begins = np.nonzero(kind == BEGIN)[0]
    if begins.size >= MAX_ARG:
        raise ProfileError(f"{begins.size} spans; at most {MAX_ARG - 1} can be told apart")
    numbers, operator = np.unique(event[begins], return_inverse=True)
    order = np.argsort(operator, kind="stable")
    task = np.empty(begins.size, np.int64)
    task[order] = np.arange(begins.size)
    arg = np.zeros(lane.size, np.int64)
    arg[begins] = task
    phase = np.full(lane.size, EXECUTE)
    return Profile.from_parts(
        write_lanes(blocks * groups, groups, lane, kind, phase, arg, time_ns, sm),
        blocks,
        groups,
        level=1,
        clock_hz=1e9,
        operators=[{"name": name(n), "op": name(n), "layer": -1} for n in numbers],
        tasks={"operator": operator[order], "worker": (lane[begins] // groups)[order]},
        meta={**meta, "instants": int((~use).sum())},
    )


def _with_graph(
    lane: np.ndarray,
    kind: np.ndarray,
    event: np.ndarray,
    time_ns: np.ndarray,
    blocks: int,
    groups: int,
    name: Any,
    graph: MirageGraph,
    meta: dict[str, Any],
) -> Profile:
    """Spans as tasks of the graph."""
    use = kind <= END
    lane, kind, event, time_ns = lane[use], kind[use], event[use], time_ns[use]
    begins = np.nonzero(kind == BEGIN)[0]
    arg = np.full(lane.size, MAX_ARG - 1)
    unmatched = {}
    for number in np.unique(event[begins]).tolist():
        mine = begins[event[begins] == number]
        mine = mine[np.argsort(time_ns[mine], kind="stable")]
        tasks = np.nonzero(graph.types == number)[0]
        if mine.size > tasks.size:
            unmatched[name(number)] = int(mine.size)
            continue
        arg[mine] = graph.new_id[tasks[: mine.size]]
    return Profile.from_parts(
        write_lanes(blocks * groups, groups, lane, kind, np.full(lane.size, EXECUTE), arg, time_ns),
        blocks,
        groups,
        level=1,
        clock_hz=1e9,
        operators=graph.operators,
        **graph.columns,
        meta={**meta, "instants": int((~use).sum()), "unmatched": unmatched, "matching": "by type and order of begin"},
    )
