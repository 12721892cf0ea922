"""Raw lanes to spans as plain arrays: unwrap the clocks, pair what begins with what ends, say whose each span is.

Nothing here raises on what a device can write: what cannot be paired or named is counted, lane by lane.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np

from mpklab import abi
from mpklab.frames import clocks
from mpklab.profile import Profile

BEGIN, END, NEXT, VALUE = (int(k) for k in (abi.Kind.begin, abi.Kind.end, abi.Kind.next, abi.Kind.value))
PHASES = tuple(p.name for p in abi.Phase if p not in (abi.Phase.none, abi.Phase.global_time))
ITERATION, EXECUTE, WAIT, GATHER, FETCH, SIGNAL, STEP = (
    int(getattr(abi.Phase, n)) for n in ("iteration", "execute", "wait", "gather", "fetch", "signal", "step")
)
PUSH, POP, OPERAND, GLOBAL_TIME = (int(getattr(abi.Phase, n)) for n in ("push", "pop", "operand", "global_time"))
COMPUTE = int(abi.Role.compute)
OFFSETS = "clock_offsets_ns"  # in Profile.meta: by how much `frames.align` moved each worker
BACKWARD = 1 << 20  # a step back of at most this many cycles is a step back, not a turn of the clock


def _set(*names: str) -> np.ndarray:
    out = np.zeros(64, bool)
    out[[int(abi.Phase[n]) for n in names]] = True
    return out


_KNOWN = _set(*PHASES)
_OF_TASK = _set("execute", "gather", "fetch", "signal", "load", "ring", "operand")
_OF_EVENT = _set("wait", "load_wait", "push")


@dataclass(frozen=True, slots=True, eq=False)
class Lanes:
    """What is known of each lane; arrays over lanes.

    valid: its header can be trusted; kept of `written` records lie in the profile, `dropped` do not; unmatched_begins
    and _ends: phases whose other side is missing; unknown: records that say nothing this version understands; backward:
    stamps earlier than the one before; last_ns: the lane's last stamp.
    """

    rank: np.ndarray
    worker: np.ndarray
    role: np.ndarray
    sm: np.ndarray
    valid: np.ndarray
    written: np.ndarray
    kept: np.ndarray
    dropped: np.ndarray
    wrapped: np.ndarray
    unmatched_begins: np.ndarray
    unmatched_ends: np.ndarray
    unknown: np.ndarray
    backward: np.ndarray
    last_ns: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """Spans as columns, ordered by lane, then by begin.

    phase u8 (abi.Phase); task, event, iteration i32 (-1: none); begin_ns, end_ns i64 since the first stamp; truncated:
    the end was not recorded; chain i32: spans from one begin to its end share a number (the phases of one task, -1 for
    an iteration); depth u8: 0 unless recorded inside another span of its lane. offsets i64[ranks × workers]: what
    `frames.align` added to the fitted clocks. `zero_ns`: global time of the first stamp.
    """

    lane: np.ndarray
    phase: np.ndarray
    task: np.ndarray
    event: np.ndarray
    iteration: np.ndarray
    begin_ns: np.ndarray
    end_ns: np.ndarray
    truncated: np.ndarray
    chain: np.ndarray
    depth: np.ndarray
    lanes: Lanes
    fit: clocks.Fit
    offsets: np.ndarray
    zero_ns: int


_decoded: weakref.WeakKeyDictionary[Profile, Decoded] = weakref.WeakKeyDictionary()


def decode(profile: Profile) -> Decoded:
    """The spans of a profile; remembered for as long as the profile lives."""
    found = _decoded.get(profile)
    if found is None:
        found = _decoded[profile] = _decode(profile)
    return found


def _decode(profile: Profile) -> Decoded:
    head = profile.headers()
    n_lanes = profile.n_lanes
    lanes, tag, clock, lane = _kept(profile, head)
    kind, phase = (tag & 3).astype(np.uint8), ((tag >> 2) & 63).astype(np.uint8)
    is_value = kind == VALUE
    is_time = ~is_value & _KNOWN[phase]
    unknown = lane[~is_time & ~(is_value & (phase == GLOBAL_TIME))]
    base = clocks.base_of(head, lanes["valid"])
    at, values = np.nonzero(is_time)[0], np.nonzero(is_value & (phase == GLOBAL_TIME))[0]
    # An anchor is a time record and the value record right after it.
    values = values[values > 0]
    values = values[is_time[values - 1] & (lane[values - 1] == lane[values])]
    t_of_value = np.searchsorted(at, values - 1)
    g = ((tag[values] >> 8).astype(np.uint64) << np.uint64(32)) | clock[values].astype(np.uint64)
    everything = at.size == tag.size
    if not everything:
        tag, clock, lane, kind, phase = tag[at], clock[at], lane[at], kind[at], phase[at]
    first = np.searchsorted(lane, np.arange(n_lanes + 1))
    ticks, backward = _unwrap(head, clock, lane, first)
    marks = clocks.Anchors(lane[t_of_value], ticks[t_of_value], clocks.since(base, g), t_of_value)
    begin, end = clocks.header_anchors(head, lanes["valid"], base)
    stated = clocks.nominal(head, profile.clock_hz)
    ticks = _turns(head, lanes["wrapped"], ticks, lane, first, marks, begin, end, clocks.header_rate(head, stated))
    marks = clocks.Anchors(marks.lane, ticks[t_of_value], marks.global_ns, marks.record)
    fit = clocks.fit(head, _merge(begin, marks, end), stated, ticks, first)
    offsets = _offsets(profile)
    ns = np.rint(fit.times(lane, ticks, first))
    if offsets.any():
        ns += offsets[np.arange(n_lanes) // profile.lanes_per_worker][lane]
    ns = np.clip(ns, -(1 << 60), 1 << 60).astype(np.int64)
    zero = int(ns.min()) if ns.size else 0
    ns -= zero
    closer, chain, depth, unmatched_ends = _pair(kind, phase, lane, first)
    is_open = kind != END
    spans = np.nonzero(is_open)[0]
    to = closer[spans]
    truncated = to < 0
    end_ns = ns[to]
    if truncated.any():
        end_ns[truncated] = _close(spans[truncated], ns, phase, lane, first)
    begin_ns = ns[spans]
    np.maximum(end_ns, begin_ns, out=end_ns)
    task, event, bad = _owners(profile, tag, phase, lane, spans, chain)
    none = np.zeros(n_lanes, np.int64)
    last = np.maximum(first[1:] - 1, 0)

    def count(which: np.ndarray) -> np.ndarray:
        return np.bincount(which, minlength=n_lanes)

    return Decoded(
        lane=lane[spans],
        phase=phase[spans],
        task=task,
        event=event,
        iteration=_iterations(tag, kind, phase, lane, first)[spans],
        begin_ns=begin_ns,
        end_ns=end_ns,
        truncated=truncated,
        chain=chain[spans],
        depth=depth[spans],
        lanes=Lanes(
            **lanes,
            unmatched_begins=count(lane[spans[truncated]]),
            unmatched_ends=count(lane[unmatched_ends]),
            unknown=count(unknown) + count(lane[spans[bad]]),
            backward=count(backward),
            last_ns=np.where(first[1:] > first[:-1], ns[last], 0) if ns.size else none,
        ),
        fit=fit,
        offsets=offsets,
        zero_ns=base + zero,
    )


def _offsets(profile: Profile) -> np.ndarray:
    """The shifts kept in the profile; none where they do not fit it, for a file may hold anything."""
    n = profile.n_ranks * profile.n_workers
    found = profile.meta.get(OFFSETS)
    if isinstance(found, list) and len(found) == n and all(isinstance(x, int) and abs(x) < 1 << 40 for x in found):
        return np.array(found, np.int64)
    return np.zeros(n, np.int64)


def _kept(profile: Profile, head: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Lane facts, and the records that were kept, oldest first: tag, clock and lane of each."""
    n, capacity = profile.n_lanes, profile.lane_capacity
    index = np.arange(n)
    valid = (head["magic"] == abi.LANE_MAGIC) & (head["version"] == abi.VERSION)
    written = np.where(valid, head["written"], 0).astype(np.int64)
    kept = np.minimum(written, capacity)
    wrapped = valid & (head["wrapped"] != 0) & (written > capacity)
    per_rank = profile.n_workers * profile.lanes_per_worker
    sm = head["sm"].astype(np.int64)
    lanes = {
        "rank": (head["rank"] if profile.n_ranks == 1 else index // per_rank).astype(np.int32),
        "worker": (index // profile.lanes_per_worker % profile.n_workers).astype(np.int32),
        "role": (index % profile.lanes_per_worker).astype(np.int32),
        "sm": np.where(valid & (sm < 1 << 16), sm, -1).astype(np.int32),
        "valid": valid,
        "written": written,
        "kept": kept,
        "dropped": written - kept,
        "wrapped": wrapped,
    }
    lane = np.repeat(index.astype(np.int32), kept)
    words = profile.lanes.reshape(n, -1)[:, abi.LANE.itemsize :]
    parts = []
    for i in np.nonzero(kept)[0]:  # a slice per lane: the buffer is mostly room that was not needed
        row = words[i].view(np.uint32).reshape(-1, 2)[: kept[i]]
        parts.append(np.roll(row, -int(written[i] % capacity), axis=0) if wrapped[i] else row)
    flat = np.concatenate(parts) if parts else np.zeros((0, 2), np.uint32)
    return lanes, np.ascontiguousarray(flat[:, 0]), np.ascontiguousarray(flat[:, 1]), lane


def _unwrap(head: np.ndarray, clock: np.ndarray, lane: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """64-bit cycles since the lane's begin, supposing less than one turn between neighbours; and who stepped back."""
    if not clock.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int32)
    step = np.empty(clock.size, np.int64)
    step[1:] = clock[1:] - clock[:-1]  # in 32 bits, so a turn takes care of itself
    heads = first[:-1][first[1:] > first[:-1]]
    step[heads] = clock[heads] - head["begin_clock"][lane[heads]].astype(np.uint32)
    back = np.nonzero(step > (1 << 32) - BACKWARD)[0]
    if back.size:
        step[back] -= 1 << 32
    total = np.cumsum(step)
    before = np.zeros(len(first) - 1, np.int64)
    before[lane[heads]] = total[heads] - step[heads]
    total -= before[lane]
    if back.size:  # stamps of one lane never run backward
        for i in np.unique(lane[back]):
            part = slice(first[i], first[i + 1])
            total[part] = np.maximum.accumulate(total[part])
    return total, lane[back]


def _turns(
    head: np.ndarray,
    wrapped: np.ndarray,
    ticks: np.ndarray,
    lane: np.ndarray,
    first: np.ndarray,
    marks: clocks.Anchors,
    begin: clocks.Anchors,
    end: clocks.Anchors,
    rate: np.ndarray,
) -> np.ndarray:
    """Add the whole turns of 32-bit clocks that passed unseen, as the anchors tell."""
    if not ticks.size:
        return ticks
    turn = float(1 << 32)
    extra = None
    if marks.lane.size:
        n = len(head)
        has_begin = np.zeros(n, bool)
        begin_ns = np.zeros(n, np.int64)
        has_begin[begin.lane], begin_ns[begin.lane] = True, begin.global_ns
        new = np.r_[True, marks.lane[1:] != marks.lane[:-1]]
        before_ns = np.where(new, begin_ns[marks.lane], np.r_[0, marks.global_ns[:-1]])
        before = np.where(new, 0, np.r_[0, marks.clock[:-1]])
        known = ~new | has_begin[marks.lane]
        expected = (marks.global_ns - before_ns) / rate[marks.lane]
        turns = np.where(known, np.rint((expected - (marks.clock - before)) / turn), 0)
        turns = np.clip(turns, 0, 1 << 20).astype(np.int64)
        if turns.any():
            extra = np.zeros(ticks.size, np.int64)
            at = np.where(new & wrapped[marks.lane], first[marks.lane], marks.record)
            np.add.at(extra, at, turns)
    alone = wrapped.copy()
    alone[marks.lane] = False
    for i, clock in zip(end.lane, end.clock, strict=True):
        if alone[i] and first[i + 1] > first[i]:
            turns_left = int((clock - ticks[first[i + 1] - 1]) // (1 << 32))
            if 0 < turns_left < 1 << 20:
                extra = np.zeros(ticks.size, np.int64) if extra is None else extra
                extra[first[i]] += turns_left
    if extra is None:
        return ticks
    total = np.cumsum(extra)
    before_lane = np.r_[0, total][first[:-1]]
    return ticks + ((total - before_lane[lane]) << 32)


def _merge(begin: clocks.Anchors, marks: clocks.Anchors, end: clocks.Anchors) -> clocks.Anchors:
    parts = (begin, marks, end)
    lane = np.concatenate([p.lane for p in parts])
    order = np.argsort(lane, kind="stable")
    columns = [np.concatenate([getattr(p, k) for p in parts])[order] for k in ("clock", "global_ns", "record")]
    return clocks.Anchors(lane[order], *columns)


def _pair(
    kind: np.ndarray, phase: np.ndarray, lane: np.ndarray, first: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For every record that opens a phase the record that closes it (-1: none), its chain and depth; ends of nothing.

    Iterations are paired apart from what lies inside them. Among the rest, a record's level is the number of begins
    less the number of ends before it; the records of one level of one lane open and close in turn.
    """
    n = kind.size
    closer = np.full(n, -1, np.int64)
    chain = np.full(n, -1, np.int32)
    depth = np.zeros(n, np.uint8)
    outer = phase == ITERATION
    marks = np.nonzero(outer)[0]
    ends = [_pair_in_turn(marks, kind, lane[marks], closer)]
    inner = np.nonzero(~outer)[0]
    if inner.size:
        k = kind[inner]
        is_end = k == END
        level = np.cumsum((k == BEGIN).astype(np.int8) - is_end.astype(np.int8), dtype=np.int32)
        level += is_end
        starts = np.searchsorted(inner, first)
        some = np.nonzero(starts[1:] > starts[:-1])[0]
        lowest = np.zeros(len(first) - 1, np.int32)  # differs from lane to lane by what the lanes before left open
        lowest[some] = np.minimum.reduceat(level, starts[some])
        level -= lowest[lane[inner]]
        chain[inner] = np.cumsum((k == BEGIN) & (level == 0), dtype=np.int32)
        depth[inner] = np.minimum(level, 255)
        key = lane[inner]
        if level.any():
            n_levels = int(level.max()) + 1
            key = key.astype(np.int64) * n_levels + level
            if int(key.max()) < 1 << 16:
                key = key.astype(np.uint16)  # NumPy sorts 16-bit keys by radix
            order = np.argsort(key, kind="stable")
            inner, key = inner[order], key[order]
        ends.append(_pair_in_turn(inner, kind, key, closer))
    return closer, chain, depth, np.concatenate(ends)


def _pair_in_turn(at: np.ndarray, kind: np.ndarray, key: np.ndarray, closer: np.ndarray) -> np.ndarray:
    """Pair neighbours among the records `at` that open and close the same level; returns the ends of nothing."""
    if not at.size:
        return at
    k = kind[at]
    opens, closes = k != END, k != BEGIN
    met = opens[:-1] & closes[1:] & (key[:-1] == key[1:])
    i = np.nonzero(met)[0]
    closer[at[i]] = at[i + 1]
    return at[closes & ~np.r_[False, met]]


def _close(spans: np.ndarray, ns: np.ndarray, phase: np.ndarray, lane: np.ndarray, first: np.ndarray) -> np.ndarray:
    """When spans that nothing closes are taken to end: with their iteration, else with the lane's last stamp."""
    marks = np.nonzero(phase == ITERATION)[0]
    after = np.searchsorted(marks, spans, side="right")
    last = first[lane[spans] + 1] - 1
    if not marks.size:
        return ns[last]
    mark = marks[np.minimum(after, marks.size - 1)]
    inside = (after < marks.size) & (lane[mark] == lane[spans])
    return ns[np.where(inside, mark, last)]


def _iterations(
    tag: np.ndarray, kind: np.ndarray, phase: np.ndarray, lane: np.ndarray, first: np.ndarray
) -> np.ndarray:
    """The iteration each record lies in: the last one begun on its lane; -1 where none is known."""
    out = np.full(kind.size, -1, np.int32)
    marks = np.nonzero(phase == ITERATION)[0]
    if not marks.size:
        return out
    number = (tag[marks] >> 8).astype(np.int32)
    edges = np.r_[marks, kind.size]
    lengths = np.diff(edges)
    out[marks[0] :] = np.repeat(number, lengths)
    # The part of a lane before its first mark (of a ring, or of a lane after another's) got the lane before's number.
    where = np.searchsorted(marks, first[:-1])
    for i in np.nonzero(first[1:] > first[:-1])[0]:
        j = where[i]
        own = j < marks.size and marks[j] < first[i + 1]
        stop = marks[j] if own else first[i + 1]
        if stop > first[i]:
            before = int(number[j]) - (kind[marks[j]] != END) if own else -1
            out[first[i] : stop] = before if before >= 0 else -1
    return out


def _owners(
    profile: Profile, tag: np.ndarray, phase: np.ndarray, lane: np.ndarray, spans: np.ndarray, chain: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Task and event of every span, and which spans name one that does not exist."""
    p = phase[spans]
    arg = (tag[spans] >> 8).astype(np.int32)
    of_task, of_event = _OF_TASK[p], _OF_EVENT[p]
    task = np.where(of_task, arg, -1).astype(np.int32)
    event = np.where(of_event, arg, -1).astype(np.int32)
    bad = np.zeros(spans.size, bool)
    if profile.n_tasks:
        bad |= task >= profile.n_tasks
        task[task >= profile.n_tasks] = -1
    if profile.n_events:
        bad |= event >= profile.n_events
        event[event >= profile.n_events] = -1
    # What waits for an event belongs to the task last named in its chain, or else next named in it.
    asks = np.nonzero(of_event)[0]
    if asks.size:
        chain_of, lane_of = chain[spans], lane[spans]
        names = np.nonzero(of_task)[0]
        for shift in (-1, 0):
            todo = asks[task[asks] < 0]
            if not todo.size or not names.size:
                break
            j = np.searchsorted(names, todo) + shift
            ok = (j >= 0) & (j < names.size)
            source = names[np.clip(j, 0, names.size - 1)]
            ok &= (chain_of[source] == chain_of[todo]) & (lane_of[source] == lane_of[todo])
            task[todo[ok]] = task[source[ok]]
    return task, event, bad
