"""Lanes as a device would write them, made by hand from spans: an encoder that shares no code with the decoder.

The layout is spelled out here with `struct` on purpose, so that a mistake in mpklab.abi or in the decoder shows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

PHASES = "none iteration execute wait gather fetch signal step load ring load_wait operand push pop global_time".split()
CHAIN_STARTS = ("iteration", "fetch", "step", "load", "ring", "pop")
KINDS = {"begin": 0, "end": 1, "next": 2, "value": 3}
LANE = "<IHHHBBIIIIHHQQQQ"
assert struct.calcsize(LANE) == 64


@dataclass(frozen=True)
class Span:
    """One interval of one lane; times in ns since the start of the run."""

    worker: int
    role: int
    phase: str
    arg: int
    begin_ns: int
    end_ns: int


@dataclass(frozen=True)
class LaneClock:
    """How a lane's clock runs: cycles at time zero, cycles per ns; the global timer's step in ns."""

    offset: int = 0
    rate: float = 1.0
    tick_ns: int = 1

    def cycles(self, ns: int) -> int:
        return self.offset + round(ns * self.rate)

    def timer(self, ns: int) -> int:
        return ns // self.tick_ns * self.tick_ns


def encode(
    spans: Iterable[Span],
    n_workers: int,
    lanes_per_worker: int = 1,
    capacity: int | None = None,
    clocks: dict[int, LaneClock] | None = None,
    clock_unit: int = 0,
    global_zero: int = 1_700_000_000_000_000_000,
    level: int = 2,
    ring: bool = False,
    end_anchor: bool = True,
    begin_ns: int = 0,
    anchors: bool = True,
) -> np.ndarray:
    """The bytes of all lanes; `clocks` by worker.

    Spans of one lane must nest or follow each other; one that starts where its neighbour of the same depth ended is
    written as a `next` record, as the runtime does. An `iteration` span carries a value record with the global timer.
    """
    lanes: dict[int, list[Span]] = {i: [] for i in range(n_workers * lanes_per_worker)}
    for s in spans:
        lanes[s.worker * lanes_per_worker + s.role].append(s)
    written = [
        _records(lanes[i], (clocks or {}).get(i // lanes_per_worker, LaneClock()), global_zero, anchors)
        for i in range(len(lanes))
    ]
    if capacity is None:
        capacity = max((len(w) for w in written), default=0)
    out = bytearray()
    for i, records in enumerate(written):
        worker, role = divmod(i, lanes_per_worker)
        clock = (clocks or {}).get(worker, LaneClock())
        last = max((s.end_ns for s in lanes[i]), default=begin_ns)
        dropped = max(0, len(records) - capacity)
        out += struct.pack(
            LANE,
            0x4B504D4C,
            1,
            0,
            worker,
            role,
            clock_unit,
            worker,
            capacity,
            len(records),
            dropped,
            level,
            int(ring and dropped > 0),
            global_zero + clock.timer(begin_ns),
            clock.cycles(begin_ns) % 2**64,
            global_zero + clock.timer(last) if end_anchor else 0,
            clock.cycles(last) % 2**64 if end_anchor else 0,
        )
        if ring and dropped:
            kept = [b""] * capacity
            for j, record in enumerate(records):
                kept[j % capacity] = record
        else:
            kept = records[:capacity]
        body = b"".join(kept)
        out += body + bytes(8 * capacity - len(body))
    return np.frombuffer(bytes(out), np.uint8)


def record(kind: str, phase: str, arg: int, clock: int) -> bytes:
    """One record: tag = kind | phase << 2 | arg << 8, then the low 32 bits of the clock."""
    return struct.pack("<II", KINDS[kind] | PHASES.index(phase) << 2 | (arg & 0xFFFFFF) << 8, clock & 0xFFFFFFFF)


def _records(spans: list[Span], clock: LaneClock, global_zero: int, anchors: bool) -> list[bytes]:
    """Spans in the order given, which is the order of their begins."""
    out: list[bytes] = []
    open_spans: list[Span] = []

    def write(kind: str, s: Span, ns: int) -> None:
        out.append(record(kind, s.phase, s.arg, clock.cycles(ns)))

    def anchor(ns: int) -> None:
        if anchors:
            now = global_zero + clock.timer(ns)
            out.append(record("value", "global_time", (now >> 32) & 0xFFFFFF, now & 0xFFFFFFFF))

    def was_long(s: Span) -> bool:
        return s.phase == "wait" and s.end_ns - s.begin_ns > 1_000_000_000

    for s in spans:
        chained = False
        while open_spans:
            top = open_spans[-1]
            if s.end_ns <= top.end_ns and (s.begin_ns < top.end_ns or top.phase == "iteration"):
                break
            open_spans.pop()
            same_depth = all(s.end_ns <= o.end_ns for o in open_spans)
            chained = top.end_ns == s.begin_ns and same_depth and top.phase != "iteration"
            chained &= s.phase not in CHAIN_STARTS
            if chained:
                write("next", s, s.begin_ns)
                if was_long(top):
                    anchor(s.begin_ns)
                break
            write("end", top, top.end_ns)
            if was_long(top):
                anchor(top.end_ns)
        if not chained:
            write("begin", s, s.begin_ns)
            if s.phase == "iteration":
                anchor(s.begin_ns)
        open_spans.append(s)
    for top in reversed(open_spans):
        write("end", top, top.end_ns)
    return out
