"""Foreign records as lanes of our own: the same bytes a device would write, with a clock in nanoseconds."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from mpklab import abi
from mpklab.errors import ProfileError

BEGIN, END, VALUE = int(abi.Kind.begin), int(abi.Kind.end), int(abi.Kind.value)
EXECUTE, ITERATION, GLOBAL_TIME = (int(getattr(abi.Phase, n)) for n in ("execute", "iteration", "global_time"))
MAX_ARG = 1 << abi.ARG_BITS
MAX_FILE = 2 << 30
ZERO_NS = 1 << 40  # what the global timer is said to have shown at time 0
LONG_NS = 1_000_000_000  # after a pause this long a record is followed by the full time


def write_lanes(
    n_lanes: int,
    lanes_per_worker: int,
    lane: np.ndarray,
    kind: np.ndarray,
    phase: np.ndarray,
    arg: np.ndarray,
    time_ns: np.ndarray,
    sm: np.ndarray | None = None,
    level: int = 1,
) -> np.ndarray:
    """The lane buffer for records that come lane by lane, in order; times from 0, rising within a lane.

    `sm` by worker. Lanes that have records get an iteration 0 around them.
    """
    counts = np.bincount(lane, minlength=n_lanes)
    first = np.r_[0, np.cumsum(counts)]
    used = np.nonzero(counts)[0]
    low, high = np.zeros(n_lanes, np.int64), np.zeros(n_lanes, np.int64)
    low[used], high[used] = time_ns[first[used]], time_ns[first[used + 1] - 1]
    pause = np.diff(time_ns, prepend=0) > LONG_NS
    pause[first[used]] = False
    # Every record's place: after the two that begin its lane's iteration and the extra ones before it.
    extra: np.ndarray = np.cumsum(pause) - pause
    if lane.size:
        extra = extra - np.r_[extra, 0][first[:-1]][lane]
    place = np.arange(lane.size) - first[lane] + 2 + extra
    many = np.bincount(lane, weights=pause, minlength=n_lanes).astype(np.int64)
    written = np.where(counts > 0, counts + many + 3, 0)
    capacity = int(written.max(initial=0))
    if n_lanes * capacity * abi.RECORD.itemsize > MAX_FILE:  # lanes are of equal length
        raise ProfileError(
            f"{n_lanes} lanes, the fullest with {capacity} records, are more than the {MAX_FILE >> 30} GiB that a profile "
            f"can hold: leave out threads that did little, or cut the trace to a shorter time"
        )
    records = np.zeros((n_lanes, capacity), abi.RECORD)
    tags = (kind.astype(np.int64) | phase.astype(np.int64) << 2 | (arg.astype(np.int64) % MAX_ARG) << 8).astype(
        np.uint32
    )
    records["tag"][lane, place] = tags
    records["clock"][lane, place] = time_ns.astype(np.uint64).astype(np.uint32)
    for who, where, ns in (
        (used, np.ones(used.size, np.int64), low[used]),
        (lane[pause], place[pause] + 1, time_ns[pause]),
    ):
        now = (ns + ZERO_NS).astype(np.uint64)
        high_bits = (now >> np.uint64(32)) & np.uint64(MAX_ARG - 1)
        records["tag"][who, where] = (VALUE | GLOBAL_TIME << 2 | high_bits.astype(np.int64) << 8).astype(np.uint32)
        records["clock"][who, where] = now.astype(np.uint32)
    for where, what, ns in ((np.zeros(used.size, np.int64), BEGIN, low), (written[used] - 1, END, high)):
        records["tag"][used, where] = what | ITERATION << 2
        records["clock"][used, where] = ns[used].astype(np.uint64).astype(np.uint32)
    head = np.zeros(n_lanes, abi.LANE)
    index = np.arange(n_lanes)
    head["magic"], head["version"], head["level"] = abi.LANE_MAGIC, abi.VERSION, level
    head["worker"], head["role"] = index // lanes_per_worker, index % lanes_per_worker
    head["clock_unit"] = int(abi.Clock.nanoseconds)
    head["sm"] = 0xFFFFFFFF if sm is None else np.repeat(np.where(sm < 0, 0xFFFFFFFF, sm), lanes_per_worker)
    head["capacity"], head["written"] = capacity, written
    head["begin_global_ns"], head["begin_clock"] = ZERO_NS + low, low
    head["end_global_ns"], head["end_clock"] = ZERO_NS + high, high
    raw = np.concatenate([head.view(np.uint8).reshape(n_lanes, -1), records.view(np.uint8).reshape(n_lanes, -1)], 1)
    return raw.reshape(-1)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """A file's bytes, within reason."""
    try:
        if Path(path).stat().st_size > MAX_FILE:
            raise ProfileError(f"{path}: larger than {MAX_FILE >> 20} MiB")
        return Path(path).read_bytes()
    except OSError as e:
        raise ProfileError(f"cannot open {path}: {e.strerror or e}") from e


def words(source: Any) -> np.ndarray:
    """A buffer of 64-bit words: an array, a tensor, or a file (.npy, otherwise the bare words)."""
    if isinstance(source, str | os.PathLike):
        data = read_file(source)
        if data[:6] == b"\x93NUMPY":
            try:
                source = np.load(io.BytesIO(data), allow_pickle=False)
            except (ValueError, OSError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError) as e:
                raise ProfileError(f"not a readable .npy file: {e!s:.200}") from e
        else:
            if len(data) % 8:
                raise ProfileError(f"expected 64-bit words, found {len(data)} bytes")
            source = np.frombuffer(data, "<u8")
    if hasattr(source, "detach"):
        source = source.detach().cpu().numpy()
    array = np.ascontiguousarray(source).reshape(-1)
    if array.dtype.kind not in "iu" or array.dtype.itemsize != 8:
        raise ProfileError(f"expected a buffer of 64-bit integers, found dtype {array.dtype}")
    return array.view(np.uint64)
