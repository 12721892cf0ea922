"""Perfetto's protobuf, written directly: names interned, all packets of a kind laid out at once as rows of bytes.

Field numbers are those of perfetto/trace/{trace_packet,track_event,track_descriptor,interned_data}.proto. Varints are
padded to a fixed width, which the format allows, so that a packet's length depends on its kind alone.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from mpklab.analysis import blame, utilisation
from mpklab.analysis.intervals import nesting_order
from mpklab.analysis.observed import ALWAYS, observe
from mpklab.frames import NEVER, decode, spans
from mpklab.profile import Profile

SLICE_BEGIN, SLICE_END, COUNTER = 1, 2, 4
STATE_CLEARED, NEEDS_STATE = 1, 2
EXPLICIT = 3  # children are ordered by their rank
SEQUENCE = 1
BINS = 2000
MAX_FLOWS = 20_000


def perfetto_trace(profile: Profile, select: Sequence[int] = ()) -> bytes:
    """The trace: a process per rank, a track per worker with one below it per role; slices are spans.

    A slice is called after its operator (execute) or its phase, which is also its category; task, iteration and event
    are its arguments. Counter tracks: workers executing, tasks ready and not taken up, GB/s. Flow arrows: the path of
    blame, and what the tasks in `select` waited for.
    """
    s = spans(profile)
    d = decode(profile)
    lanes = d.lanes
    out = [_names(s), *_tracks(profile, s)]
    track = d.lane.astype(np.int64) + _LANES
    begin, end = d.begin_ns, d.end_ns
    phase = s["phase"].cat.codes.to_numpy().astype(np.int64)
    is_execute = (s["phase"] == "execute").to_numpy() & (s["op"].cat.codes.to_numpy() >= 0)
    name = np.where(is_execute, s["op"].cat.codes.to_numpy() + len(s["phase"].cat.categories), phase) + 1
    flows = _flows(profile, s, select)
    n = len(s)
    plain = np.ones(n, bool)
    plain[list(flows)] = False
    args = np.stack([d.task, d.iteration, d.event], 1)
    has = args >= 0
    pieces: list[
        tuple[np.ndarray, np.ndarray]
    ] = []  # which events, and their bytes; event 2i begins span i, 2i + 1 ends it
    for mask in range(8):
        which = np.nonzero(plain & (has @ np.array([1, 2, 4]) == mask))[0]
        if which.size:
            given = [(k + 1, args[which, k]) for k in range(3) if mask >> k & 1]
            body = _begin(track[which], phase[which] + 1, name[which], given)
            pieces.append((2 * which, _packet(begin[which], body)))
    for i, (outgoing, incoming) in flows.items():
        at = np.array([i])
        given = [(k + 1, args[at, k]) for k in range(3) if has[i, k]]
        body = _begin(track[at], phase[at] + 1, name[at], given)
        ids = b"".join(b"\xf9\x02" + struct.pack("<Q", f) for f in outgoing)
        ids += b"".join(b"\x81\x03" + struct.pack("<Q", f) for f in incoming)
        body = np.concatenate([body, np.frombuffer(ids, np.uint8)[None]], 1)
        pieces.append((2 * at, _packet(begin[at], body)))
    both = np.arange(n)
    if n:
        body = _rows(n, [b"\x48", SLICE_END, b"\x58", _varint(track, 4)])
        pieces.append((2 * both + 1, _packet(end, body)))
    out.append(_interleave(pieces, nesting_order(d.lane, begin, end)))
    out += _counters(profile)
    assert lanes.rank.size == profile.n_lanes
    return b"".join(out)


_LANES = 1 << 20  # track ids: 1 + rank, then workers, counters and lanes in ranges of their own
_WORKERS = 1 << 24
_COUNTERS = 1 << 16


def _varint(values: np.ndarray, width: int) -> np.ndarray:
    """[n, width] bytes: varints padded to one width."""
    v = np.asarray(values).astype(np.uint64)[:, None]
    shifts = np.arange(0, 7 * width, 7, dtype=np.uint64)
    out = ((v >> shifts) & np.uint64(0x7F)).astype(np.uint8)
    out[:, :-1] |= 0x80
    return out


def _rows(n: int, parts: Sequence[bytes | int | np.ndarray]) -> np.ndarray:
    """The parts side by side, repeated where they are constant: [n, bytes]."""
    columns = []
    for part in parts:
        if isinstance(part, np.ndarray):
            columns.append(part)
        else:
            fixed = np.frombuffer(bytes([part]) if isinstance(part, int) else part, np.uint8)
            columns.append(np.broadcast_to(fixed, (n, fixed.size)))
    return np.concatenate(columns, 1)


def _begin(
    track: np.ndarray, category: np.ndarray, name: np.ndarray, args: Sequence[tuple[int, np.ndarray]]
) -> np.ndarray:
    """TrackEvent bodies that begin slices; args are (interned name, value)."""
    n = track.size
    parts: list[bytes | int | np.ndarray] = [b"\x48", SLICE_BEGIN, b"\x58", _varint(track, 4)]
    parts += [b"\x18", _varint(category, 1), b"\x50", _varint(name, 3)]
    for key, value in args:
        parts += [b"\x22\x07\x08", key, b"\x20", _varint(value, 4)]
    return _rows(n, parts)


def _packet(time_ns: np.ndarray, body: np.ndarray) -> np.ndarray:
    """Trace entries that hold one track event each."""
    n, size = body.shape
    event = _rows(
        n,
        [
            b"\x40",
            _varint(time_ns, 7 if time_ns.max(initial=0) < 1 << 49 else 9),
            b"\x50",
            SEQUENCE,
            b"\x68",
            NEEDS_STATE,
            b"\x5a",
            _plain(size),
            body,
        ],
    )
    return _rows(n, [b"\x0a", _plain(event.shape[1]), event])


def _interleave(pieces: Sequence[tuple[np.ndarray, np.ndarray]], order: np.ndarray) -> bytes:
    """All packets in one buffer, each in its event's place."""
    size = np.zeros(order.size, np.int64)
    for events, rows in pieces:
        size[events] = rows.shape[1]
    at = np.empty(order.size, np.int64)
    at[order] = np.r_[0, np.cumsum(size[order])[:-1]]
    out = np.empty(int(size.sum()), np.uint8)
    for events, rows in pieces:
        for k in range(0, len(events), 1 << 16):
            part = slice(k, k + (1 << 16))
            out[at[events[part], None] + np.arange(rows.shape[1])] = rows[part]
    return out.tobytes()


def _field(number: int, value: int | str | bytes) -> bytes:
    """One field of a message, written the plain way."""
    if isinstance(value, int):
        return _plain(number << 3) + _plain(value)
    data = value.encode() if isinstance(value, str) else value
    return _plain(number << 3 | 2) + _plain(len(data)) + data


def _plain(value: int) -> bytes:
    out = bytearray()
    while True:
        out.append(value & 0x7F | (0x80 if value > 0x7F else 0))
        value >>= 7
        if not value:
            return bytes(out)


def _names(s: pd.DataFrame) -> bytes:
    """The first packet: categories, names and argument names, by the numbers the other packets use."""

    def table(field: int, names: Sequence[str]) -> bytes:
        return b"".join(_field(field, _field(1, i + 1) + _field(2, str(name))) for i, name in enumerate(names))

    phases = [str(c) for c in s["phase"].cat.categories]
    interned = table(1, phases) + table(2, phases + [str(c) for c in s["op"].cat.categories])
    interned += table(3, ["task", "iteration", "event"])
    return _field(1, _field(10, SEQUENCE) + _field(13, STATE_CLEARED) + _field(12, interned))


def _tracks(profile: Profile, s: pd.DataFrame) -> list[bytes]:
    """Descriptors: a process per rank, below it a track per worker; the role lanes of a worker below that."""
    lanes = decode(profile).lanes
    title = str(profile.meta.get("model", "mpklab"))

    def packet(descriptor: bytes) -> bytes:
        return _field(1, _field(10, SEQUENCE) + _field(60, descriptor))

    out = []
    for rank in np.unique(lanes.rank).tolist():
        process = _field(1, rank + 1) + _field(6, f"{title}, rank {rank}")
        out.append(packet(_field(1, 1 + rank) + _field(3, process) + _field(11, EXPLICIT)))
    roles = s["role"].cat.categories
    for lane in range(lanes.rank.size):
        rank, role, worker = int(lanes.rank[lane]), int(lanes.role[lane]), int(lanes.worker[lane])
        place = _WORKERS + lane // profile.lanes_per_worker
        if role == 0:
            sm = f" (SM {lanes.sm[lane]})" if lanes.sm[lane] >= 0 else ""
            about = _field(1, place) + _field(2, f"worker {worker}{sm}") + _field(5, 1 + rank)
            out.append(packet(about + _field(11, EXPLICIT) + _field(12, worker)))
        if lanes.kept[lane]:
            about = _field(1, _LANES + lane) + _field(2, str(roles[role])) + _field(5, place)
            out.append(packet(about + _field(12, role)))
    return out


def _counters(profile: Profile) -> list[bytes]:
    """Counter tracks over equal bins of time."""
    table = utilisation(profile, BINS)
    at = table["begin_ns"].to_numpy()
    ready, taken = [], []
    for seen in observe(profile):
        some = (seen.issue != NEVER) & (seen.ready != ALWAYS) & (seen.ready < seen.issue)
        ready.append(seen.ready[some])
        taken.append(seen.issue[some])
    none = np.zeros(0, np.int64)
    waiting = np.searchsorted(np.sort(np.concatenate([none, *ready])), at, side="right") - np.searchsorted(
        np.sort(np.concatenate([none, *taken])), at, side="right"
    )
    out = []
    series = {
        "workers executing": table["execute"].to_numpy(),
        "tasks ready, not taken up": waiting.astype(float),
        "GB/s": table["gbps"].to_numpy(),
    }
    for k, (name, values) in enumerate(series.items()):
        track = _COUNTERS + k
        descriptor = _field(1, track) + _field(2, name) + _field(8, b"")
        out.append(_field(1, _field(10, SEQUENCE) + _field(60, descriptor)))
        n = values.size
        doubles = np.ascontiguousarray(values, "<f8").view(np.uint8).reshape(n, 8)
        body = _rows(n, [b"\x48", COUNTER, b"\x58", _varint(np.full(n, track), 4), b"\xe1\x02", doubles])
        out.append(_packet(np.rint(at).astype(np.int64), body).tobytes())
    return out


def _flows(profile: Profile, s: pd.DataFrame, select: Sequence[int]) -> dict[int, tuple[list[int], list[int]]]:
    """For the spans that arrows touch: numbers of the arrows that leave them and of those that arrive."""
    rows = np.nonzero((s["phase"] == "execute").to_numpy())[0]
    where = dict(
        zip(
            zip(s["iteration"].to_numpy()[rows].tolist(), s["task"].to_numpy()[rows].tolist(), strict=True),
            rows,
            strict=True,
        )
    )
    arrows: list[tuple[tuple[int, int], tuple[int, int]]] = []
    path = blame(profile)
    path = path[path["segment"] == "execute"]
    steps = list(
        zip(path["iteration"].tolist(), path["task"].tolist(), path["because"].astype(str).tolist(), strict=True)
    )
    arrows += [((a[0], a[1]), (b[0], b[1])) for a, b in pairwise(steps) if a[2] in ("data", "step")]
    wanted = sorted({int(t) for t in select})
    for seen in observe(profile) if wanted else ():
        rules = seen.protocol
        for w in np.nonzero(np.isin(rules.wait_task, wanted))[0].tolist():
            senders = rules.signal_task[rules.signal_event == rules.wait_event[w]].tolist()
            for iteration in seen.iterations.tolist():
                before = iteration - int(rules.wait_lag[w])
                arrows += [((before, p), (iteration, int(rules.wait_task[w]))) for p in senders]
    out: dict[int, tuple[list[int], list[int]]] = {}
    for number, (a, b) in enumerate(arrows[:MAX_FLOWS], 1):
        if a in where and b in where:
            out.setdefault(int(where[a]), ([], []))[0].append(number)
            out.setdefault(int(where[b]), ([], []))[1].append(number)
    return out
