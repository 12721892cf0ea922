"""Buffers in FlashInfer's layout, which Mirage shares: 64-bit entries, the k-th of every lane side by side.

Entry 0 holds (blocks, groups). Entry 1 + lane + k · blocks · groups is the k-th of lane block · groups + group: 32 bits
of tag, 32 bits of the global timer in ns. A lane is known by where its entries lie; what a tag says of it is not
trusted, for it has been written in several ways (see `_version`). Tags, from bit 31 down:
FlashInfer, first: lane 20 · event 10 · kind 2. Since it knows the SM: SM 8 · block 12 (the group is lost, and blocks
from 4096 on run into the SM) · event 10 · kind 2. Mirage: number 13 · lane 8 · event 9 · kind 2, later 10 · 11 · 9 · 2.
`Field` says it once, for reading and for writing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpklab.errors import ProfileError
from mpklab.frames import decode, tasks
from mpklab.imports.mirage import TASK_TYPES, MirageGraph, read_graph, task_type
from mpklab.imports.writing import BEGIN, END, EXECUTE, MAX_ARG, words, write_lanes
from mpklab.profile import Profile

MAX_LANES = 1 << 16
LIKELY = 0.9  # of the tags must agree with where they lie


@dataclass(frozen=True, slots=True)
class Field:
    """`bits` bits of a word, from bit `first` up."""

    first: int
    bits: int

    def of(self, word: np.ndarray) -> np.ndarray:
        """The field in every word, as the word's own type."""
        return (word >> word.dtype.type(self.first)) & word.dtype.type(self.most)

    def put(self, value: Any) -> np.ndarray:
        """Words of 64 bits that hold the values here, as much of them as fits, and nothing else."""
        return (np.asarray(value).astype(np.uint64) & np.uint64(self.most)) << np.uint64(self.first)

    @property
    def most(self) -> int:
        """The largest value."""
        return (1 << self.bits) - 1


TAG, TIME = Field(0, 32), Field(32, 32)  # of an entry
BLOCKS, GROUPS = Field(0, 32), Field(32, 32)  # of entry 0
KIND = Field(0, 2)  # of a tag, and so are these:
FLASHINFER_EVENT, FLASHINFER_LANE, FLASHINFER_BLOCK, FLASHINFER_SM = (
    Field(2, 10), Field(12, 20), Field(12, 12), Field(24, 8),
)  # fmt: skip
MIRAGE_EVENT, MIRAGE_LANE, MIRAGE_NUMBER, MIRAGE_WIDE_LANE = Field(2, 9), Field(11, 8), Field(19, 13), Field(11, 11)
MIRAGE_WORKERS = MIRAGE_LANE.most + 1  # that a tag can tell apart, as Mirage's own exporter reads it


def from_flashinfer(buffer: Any, names: Sequence[str] | Mapping[int, str] | None = None) -> Profile:
    """FlashInfer's profiler buffer (array, tensor or file) as a profile; `names` are those of its events.

    Blocks become workers, groups their roles, events operators; each span is a task of its own. Both tag layouts are
    recognised. Instants are left out: the device overwrites them with the next event.
    """
    lane, tag, time_ns, blocks, groups = _entries(words(buffer))
    version = _version(
        lane,
        {
            "lane": FLASHINFER_LANE.of(tag) == lane,
            "block and SM": FLASHINFER_BLOCK.of(tag) == FLASHINFER_BLOCK.most & (lane // groups),
            "lane and SM": FLASHINFER_BLOCK.of(tag) == FLASHINFER_BLOCK.most & lane,
        },
        "FlashInfer",
    )
    sm = None
    if version != "lane" and blocks <= 4096:
        sm = np.full(blocks, -1, np.int64)
        sm[lane // groups] = FLASHINFER_SM.of(tag)
    meta = {"source": f"FlashInfer, tags with {version}", "blocks": blocks, "groups": groups}
    event = FLASHINFER_EVENT.of(tag)
    return _profile(lane, KIND.of(tag), event, time_ns, blocks, groups, _namer(names, "event"), sm, meta)


def from_mirage(
    buffer: Any,
    task_graph: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    names: Mapping[int, str] | None = None,
) -> Profile:
    """Mirage's profiler buffer as a profile; with its `task_graph.json`, spans become that graph's tasks.

    `names` by task type, beside those that are known. A span does not say which task it is: the k-th to begin of a type
    is taken for the k-th of that type in the graph, so tasks may be exchanged within a layer, never between layers.
    Types whose counts exceed the graph's are left out of it (`meta["unmatched"]`).
    """
    lane, tag, time_ns, blocks, groups = _entries(words(buffer))
    version = _version(
        lane,
        {
            "11 bits of lane": MIRAGE_WIDE_LANE.of(tag) == lane,
            "8 bits of lane": MIRAGE_LANE.of(tag) == MIRAGE_LANE.most & lane,
        },
        "Mirage",
    )
    meta = {"source": f"Mirage, tags with {version}", "blocks": blocks, "groups": groups}
    name, kind, event = _namer({**TASK_TYPES, **(names or {})}, "task"), KIND.of(tag), MIRAGE_EVENT.of(tag)
    if task_graph is None:
        return _profile(lane, kind, event, time_ns, blocks, groups, name, None, meta)
    return _with_graph(lane, kind, event, time_ns, blocks, groups, name, read_graph(task_graph, name), meta)


def to_mirage(profile: Profile, size: int, types: Mapping[str, int] | None = None) -> tuple[np.ndarray, int]:
    """A profile as Mirage's profiler buffer: `size` words uint64, and how many spans had no room in them.

    What Mirage records is written: each task's execution, on its worker, with a type of Mirage's own (`types` by
    operator, otherwise `task_type` of its kind), numbered within its worker. Workers are blocks of one group. A worker
    has room for (size - 1) // workers // 2 spans; the latest are left out, and what is not filled is zero. Times are
    the low 32 bits of the global timer in ns: pauses of more than 4.29 s within a worker come back shorter.
    ProfileError for more workers than tags tell apart, and for a size without room for one span each.
    """
    workers = profile.n_workers
    check_room(workers, size)
    spans = tasks(profile).sort_values(["worker", "begin_ns"], kind="stable")
    lane, begin, end = (spans[c].to_numpy().astype(np.int64) for c in ("worker", "begin_ns", "end_ns"))
    of_operator = np.array([(types or {}).get(o["name"], task_type(o["op"])) for o in profile.operators], np.int64)
    operator = profile.tasks["operator"][spans["task"].to_numpy()]
    number = np.arange(len(lane)) - np.searchsorted(lane, lane)
    deep = (size - 1) // workers // 2
    kept = number < deep
    lane, begin, end, number, event = lane[kept], begin[kept], end[kept], number[kept], of_operator[operator[kept]]
    zero_ns = decode(profile).zero_ns
    tag = MIRAGE_NUMBER.put(number) | MIRAGE_LANE.put(lane) | MIRAGE_EVENT.put(event)
    out = np.zeros(size, np.uint64)
    out[0] = BLOCKS.put(workers) | GROUPS.put(1)
    place = 1 + lane + 2 * number * workers
    out[place] = TAG.put(tag | KIND.put(BEGIN)) | TIME.put(begin + zero_ns)
    out[place + workers] = TAG.put(tag | KIND.put(END)) | TIME.put(end + zero_ns)
    return out, int((~kept).sum())


def check_room(workers: int, size: int) -> None:
    """ProfileError unless Mirage's buffer of so many words can hold a span of each worker."""
    if workers > MIRAGE_WORKERS:
        raise ProfileError(
            f"Mirage's buffer tells {MIRAGE_WORKERS} workers apart, and there are {workers}: take fewer, or read .profile"
        )
    least = 1 + 2 * workers
    if size < least:
        raise ProfileError(
            f"Mirage's buffer needs {least} words for one span of each of {workers} workers, and has {size}: the "
            f"published demos give it 3000·128"
        )


def _entries(buffer: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
    """Lane, tag and unwrapped time of every entry, lane by lane; blocks and groups."""
    if not buffer.size:
        raise ProfileError("the buffer is empty")
    blocks, groups = int(BLOCKS.of(buffer[0])), int(GROUPS.of(buffer[0]))
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
    tag, low = TAG.of(raw).astype(np.int64), TIME.of(raw).astype(np.int64)
    if not raw.size:
        return lane, tag, low, blocks, groups
    # 32 bits of ns turn every 4.3 s: unwrap each lane, and place its first entry near the others' first.
    first = np.r_[0, np.cumsum(held)][:-1]
    some = np.nonzero(held)[0]
    step = np.diff(low, prepend=0) & TIME.most
    step = np.where(step > TIME.most - (1 << 20), 0, step)
    begin = ((low[first[some]] - low[first[some[0]]] + (1 << 31)) & TIME.most) - (1 << 31)
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
        alike = np.nonzero(graph.types == number)[0]
        if mine.size > alike.size:
            unmatched[name(number)] = int(mine.size)
            continue
        arg[mine] = graph.new_id[alike[: mine.size]]
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
