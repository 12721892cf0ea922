"""From a lane's clock to nanoseconds that all lanes share: a line through each lane's anchors, with what it leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpklab import abi

LOW_56 = (1 << 56) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Anchors:
    """Moments at which a lane read its own clock and the global timer; sorted by lane, then time.

    lane i32; clock i64 since the lane's `begin_clock`; global_ns i64 since `base_ns`; record i64: the index of the time
    record that carries the anchor, -1 for one of the header.
    """

    lane: np.ndarray
    clock: np.ndarray
    global_ns: np.ndarray
    record: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """Per lane: global_ns = offset_ns + clock * ns_per_cycle, clock counted from the lane's `begin_clock`.

    residual_ns is the root mean square of what the line leaves, never below tick_ns / sqrt(12), and the tick itself
    where two anchors or fewer leave nothing to judge by (NaN without any); residual_max_ns the largest.
    """

    offset_ns: np.ndarray
    ns_per_cycle: np.ndarray
    residual_ns: np.ndarray
    residual_max_ns: np.ndarray
    anchors: np.ndarray
    tick_ns: int


def base_of(headers: np.ndarray, valid: np.ndarray) -> int:
    """The global time that counts as zero: the earliest lane's begin."""
    begins = headers["begin_global_ns"][valid & (headers["begin_global_ns"] != 0)]
    return int(begins.min()) if begins.size else 0


def since(base_ns: int, global_ns: np.ndarray) -> np.ndarray:
    """Global times, of which only the low 56 bits need be right, as signed nanoseconds since `base_ns`."""
    rest = (global_ns.astype(np.uint64) - np.uint64(base_ns & LOW_56)) & np.uint64(LOW_56)
    return (rest << np.uint64(8)).view(np.int64) >> 8


def nominal(headers: np.ndarray, clock_hz: float) -> np.ndarray:
    """Nanoseconds per clock unit as stated, lane by lane."""
    return np.where(headers["clock_unit"] == int(abi.Clock.nanoseconds), 1.0, 1e9 / clock_hz)


def header_rate(headers: np.ndarray, stated: np.ndarray) -> np.ndarray:
    """Nanoseconds per clock unit from the two anchors of each header, or as stated where they say nothing."""
    cycles = (headers["end_clock"] - headers["begin_clock"]).view(np.int64).astype(np.float64)
    ns = (headers["end_global_ns"] - headers["begin_global_ns"]).view(np.int64).astype(np.float64)
    use = _has_end(headers) & (cycles > 0) & (ns > 0)
    return np.where(use, ns / np.where(use, cycles, 1.0), stated)


def header_anchors(headers: np.ndarray, valid: np.ndarray, base_ns: int) -> tuple[Anchors, Anchors]:
    """What the headers hold: the anchors at the lanes' begins and at their ends."""
    begin = np.nonzero(valid & (headers["begin_global_ns"] != 0))[0]
    end = np.nonzero(valid & _has_end(headers))[0]
    clock = (headers["end_clock"] - headers["begin_clock"]).view(np.int64)

    def make(lanes: np.ndarray, clock: np.ndarray, field: str) -> Anchors:
        none = np.full(lanes.size, -1, np.int64)
        return Anchors(lanes.astype(np.int32), clock, since(base_ns, headers[field][lanes]), none)

    return make(begin, np.zeros(begin.size, np.int64), "begin_global_ns"), make(end, clock[end], "end_global_ns")


def _has_end(headers: np.ndarray) -> np.ndarray:
    begin, end = headers["begin_global_ns"], headers["end_global_ns"]
    cycles = (headers["end_clock"] - headers["begin_clock"]).view(np.int64)
    return np.asarray((begin != 0) & (end > begin) & (cycles > 0) & (cycles < 1 << 53))


def fit(headers: np.ndarray, anchors: Anchors, stated: np.ndarray) -> Fit:
    """A robust line per lane.

    The lanes of one worker share an SM's clock. CPU clocks are one clock for all: their anchors are fitted together, so
    that a thread that lost its core between two reads does not bend its own lane; a lane that the common line misses by
    far more than its noise keeps its own.
    """
    n = len(headers)
    out = {k: np.zeros(n) for k in ("offset", "slope", "rms", "worst")}
    out["slope"][:] = stated
    out["rms"][:] = out["worst"][:] = np.nan
    count = np.bincount(anchors.lane, minlength=n)
    tick = _tick(anchors.global_ns)
    start = np.searchsorted(anchors.lane, np.arange(n + 1))
    shared = headers["clock_unit"] != int(abi.Clock.sm_cycles)
    clock = anchors.clock.astype(np.float64)
    ns = anchors.global_ns.astype(np.float64)

    def use(lane: int, offset: float, slope: float) -> None:
        part = slice(start[lane], start[lane + 1])
        rest = np.abs(ns[part] - (offset + slope * clock[part]))
        out["offset"][lane], out["slope"][lane] = offset, slope
        if rest.size:
            out["worst"][lane] = rest.max()
            typical = rest[rest <= _limit(rest)]
            out["rms"][lane] = tick if rest.size <= 2 else max(np.sqrt((typical**2).mean()), tick / np.sqrt(12))

    for lane in np.nonzero(count)[0]:
        use(int(lane), *_line(clock[start[lane] : start[lane + 1]], ns[start[lane] : start[lane + 1]], stated[lane]))
    for rank in np.unique(headers["rank"][shared & (count > 0)]):
        lanes = np.nonzero(shared & (count > 0) & (headers["rank"] == rank))[0]
        begin = (headers["begin_clock"] - headers["begin_clock"][lanes[0]]).view(np.int64).astype(np.float64)
        mine = np.isin(anchors.lane, lanes)
        x, y, lane_of = clock[mine] + begin[anchors.lane[mine]], ns[mine], anchors.lane[mine]
        offset, slope = _line(x, y, stated[lanes[0]])
        rest = y - (offset + slope * x)
        noise = max(2000.0, 5 * 1.4826 * float(np.median(np.abs(rest))))
        for lane in lanes:
            if abs(float(np.median(rest[lane_of == lane]))) <= noise:
                use(int(lane), offset + slope * begin[lane], slope)
    return Fit(out["offset"], out["slope"], out["rms"], out["worst"], count, tick)


def _limit(rest: np.ndarray) -> float:
    return max(1.0, 6 * 1.4826 * float(np.median(rest)))


def _line(x: np.ndarray, y: np.ndarray, stated: float) -> tuple[float, float]:
    """Offset and slope through the points, leaving out those far from the line that most points agree on."""
    if x.size < 2 or x.max() - x.min() <= 0:
        return float(np.median(y - stated * x)) if x.size else 0.0, float(stated)
    keep = np.ones(x.size, bool)
    offset, slope = 0.0, float(stated)
    for _ in range(4):
        cx, cy = x[keep].mean(), y[keep].mean()
        dx = x[keep] - cx
        spread = float(dx @ dx)
        slope = float(dx @ (y[keep] - cy)) / spread if spread > 0 else float(stated)
        if not (np.isfinite(slope) and slope > 0):
            return float(np.median(y - stated * x)), float(stated)
        offset = float(cy - slope * cx)
        rest = np.abs(y - (offset + slope * x))
        still = rest <= _limit(rest)
        if still.sum() < 2 or (still == keep).all():
            break
        keep = still
    return offset, slope


def _tick(global_ns: np.ndarray) -> int:
    """The step in which the global timer advances, as far as the anchors show it."""
    if global_ns.size < 2:
        return 1
    return max(1, int(np.gcd.reduce(np.abs(global_ns - global_ns[0]))))
