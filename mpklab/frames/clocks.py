"""From a lane's clock to nanoseconds that all lanes share: a line or a curve through its anchors, with what that leaves.

The SMs of an H200 do not share one clock: each GPC has its own, whose counter its 16 or 18 SMs read alike, and whose
rate follows the load, between 1.6 and 2.0 GHz within microseconds. Lanes whose counters agree are therefore fitted
together, and by pieces wherever no line will do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mpklab import abi

LOW_56 = (1 << 56) - 1
SAME_COUNTER_NS = (
    2000  # counters of one GPC agree to less than this where their kernels begin; those of two to far more
)
PIECE_NS = 1000  # length of a curve's pieces
MIN_EDGES, MAX_EDGES = 8, 32  # anchors that show whether a clock is steady; pieces whose tightest anchors bound it


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
    """Per lane: global_ns = offset_ns + clock * ns_per_cycle, clock counted from the lane's `begin_clock`; or a curve.

    residual_ns is the root mean square of what line or curve leaves, never below tick_ns / sqrt(12), and the tick
    itself where two anchors or fewer leave nothing to judge by (NaN without any); residual_max_ns the largest. Of a
    curve both count what it may miss between anchors. Of a line that the timer's edges pin down, both are the most by
    which it can be off anywhere between its anchors. Times are those that the timer shows: half a tick early, on average,
    in all lanes alike. curve: which of `curves` a lane follows, -1 none; start: what to
    add to its clock for that.
    """

    offset_ns: np.ndarray
    ns_per_cycle: np.ndarray
    curve: np.ndarray
    start: np.ndarray
    curves: tuple[Curve, ...]
    residual_ns: np.ndarray
    residual_max_ns: np.ndarray
    anchors: np.ndarray
    tick_ns: int

    def times(self, lane: np.ndarray, ticks: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Global ns, as floats, of the records first[i] … first[i + 1] of each lane i."""
        ns: np.ndarray = self.offset_ns[lane] + ticks * self.ns_per_cycle[lane]
        for i in np.nonzero((self.curve >= 0) & (first[1:] > first[:-1]))[0]:
            part = slice(first[i], first[i + 1])
            ns[part] = self.curves[self.curve[i]].at(ticks[part] + self.start[i])
        return ns


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Global time over a counter by pieces: knots, means of the anchors around them; rate: ns per cycle overall."""

    clock: np.ndarray
    ns: np.ndarray
    rate: float

    def at(self, clock: np.ndarray) -> np.ndarray:
        x = clock.astype(np.float64)
        # What the pieces add to the overall rate, so that beyond the knots this rate goes on.
        out: np.ndarray = self.rate * x + np.interp(x, self.clock, self.ns - self.rate * self.clock)
        return out


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


def fit(
    headers: np.ndarray, anchors: Anchors, stated: np.ndarray, ticks: np.ndarray | None = None, first: Any = None
) -> Fit:
    """A robust line per lane, or a curve for lanes of one counter that no line fits.

    The lanes of one worker share an SM's clock. CPU clocks are one clock for all: their anchors are fitted together, so
    that a thread that lost its core between two reads does not bend its own lane; a lane that the common line misses by
    far more than its noise keeps its own. `ticks` and `first` are the lanes' records, which say where between the anchors
    a curve's error matters.
    """
    n = len(headers)
    out = {k: np.zeros(n) for k in ("offset", "slope", "rms", "worst")}
    out["slope"][:] = stated
    out["rms"][:] = out["worst"][:] = np.nan
    count = np.bincount(anchors.lane, minlength=n)
    tick = _tick(anchors.global_ns)
    if (
        ticks is not None
    ):  # few anchors can agree by chance; a lane that counts nanoseconds shows the timer in every record
        counted = np.repeat(headers["clock_unit"] == int(abi.Clock.nanoseconds), np.diff(first))
        tick = max(1, int(np.gcd.reduce(ticks[counted], initial=tick)))
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
    curve, begun = np.full(n, -1), np.zeros(n, np.int64)
    curves: list[Curve] = []
    for lanes, zero in _counters(headers, anchors, ~shared & (count > 0), stated):
        begin = (headers["begin_clock"][lanes] - np.uint64(zero)).view(np.int64)
        begun[lanes] = begin
        at = np.nonzero(np.isin(anchors.lane, lanes))[0]
        x, y = anchors.clock[at] + begun[anchors.lane[at]], ns[at]
        made = _curve(x, y, tick)
        if made is None or out["worst"][lanes].max() <= 2 * tick:  # too little to go by, or lines that fit
            continue
        rest = np.abs(y - made.at(x))
        keep = rest <= max(8.0 * tick, _limit(rest))
        # The loader's stores may hold it up between its clock and the timer.
        first_role = headers["role"][anchors.lane[at]] == headers["role"][lanes].min()
        made = _curve(x[keep & first_role], y[keep & first_role], tick) or _curve(x[keep], y[keep], tick)
        if made is None:
            continue
        used = [] if ticks is None else [ticks[first[i] : first[i + 1]] + begun[i] for i in lanes]
        typical, most = _between(made, np.concatenate([x, *used]) if used else x)
        for lane in lanes:
            mine = np.abs(y - made.at(x))[anchors.lane[at] == lane]
            rms = float(np.hypot(max(np.sqrt(np.mean(mine**2)), tick / np.sqrt(12)), typical))
            if np.median(mine) > 4 * tick:
                continue  # another counter after all
            curve[lane], out["slope"][lane] = len(curves), made.rate
            out["rms"][lane], out["worst"][lane] = rms, float(mine.max()) + most
        curves.append(made)
    for lane in np.nonzero(~shared & (count >= MIN_EDGES) & (curve < 0))[0] if tick > 1 else ():
        part = slice(start[lane], start[lane + 1])
        pinned = edges(clock[part], ns[part], tick, out["slope"][lane])
        if pinned is not None and pinned[2] < out["rms"][lane]:
            out["offset"][lane], out["slope"][lane] = pinned[0] - tick / 2, pinned[1]
            out["rms"][lane] = out["worst"][lane] = pinned[2]
    return Fit(out["offset"], out["slope"], curve, begun, tuple(curves), out["rms"], out["worst"], count, tick)


def _counters(
    headers: np.ndarray, anchors: Anchors, use: np.ndarray, stated: np.ndarray
) -> list[tuple[np.ndarray, int]]:
    """Lanes that read the same counter, and where its count begins: those whose counters meet, where all began."""
    start = np.searchsorted(anchors.lane, np.arange(len(headers)))
    out = []
    for rank in np.unique(headers["rank"][use]):
        lanes = np.nonzero(use & (headers["rank"] == rank))[0]
        zero = int(headers["begin_clock"][lanes].min())
        since_zero = (headers["begin_clock"][lanes] - np.uint64(zero)).astype(np.float64)
        first_ns = anchors.global_ns[start[lanes]].astype(np.float64)
        first_clock = anchors.clock[start[lanes]].astype(np.float64)
        origin = since_zero + first_clock - (first_ns - first_ns.min()) / stated[lanes]
        order = np.argsort(origin, kind="stable")
        cut = np.nonzero(np.diff(origin[order]) * stated[lanes[order[1:]]] > SAME_COUNTER_NS)[0] + 1
        out += [(np.sort(lanes[part]), zero) for part in np.split(order, cut)]
    return out


def _curve(clock: np.ndarray, ns: np.ndarray, tick: int) -> Curve | None:
    """Means of the anchors over pieces of equal length; None for fewer than three."""
    if clock.size < 3 or clock.max() == clock.min() or ns.max() <= ns.min():
        return None
    rate = float(ns.max() - ns.min()) / float(clock.max() - clock.min())
    order = np.argsort(clock, kind="stable")
    x, y = clock[order].astype(np.float64), ns[order]
    piece = np.floor((x - x[0]) * rate / max(PIECE_NS, 16.0 * tick))
    begin = np.nonzero(np.r_[True, np.diff(piece) > 0])[0]
    if begin.size < 3:
        return None
    size = np.diff(np.r_[begin, x.size])
    knots, times = np.add.reduceat(x - x[0], begin) / size + x[0], np.add.reduceat(y - y[0], begin) / size + y[0]
    return Curve(knots, np.maximum.accumulate(times), rate)


def _between(curve: Curve, clock: np.ndarray) -> tuple[float, float]:
    """What a curve may miss between its knots, over the stamps `clock`: root mean square, and at most (three times that
    of the worst stamp).

    Loads come and go, so a clock wanders from its mean rate as a random walk does: by s·sqrt(t·u·(1 - u)) at the part u
    of a gap of t. s is taken from how far each knot lies from the chord over the gap behind it and as long a time before.
    """
    x, y = curve.clock, curve.ns
    i = np.arange(1, x.size - 1)
    behind = y[i + 1] - y[i]
    k = np.clip(np.searchsorted(y, y[i] - behind, side="right") - 1, 0, i - 1)
    before = y[i] - y[k]
    off = before - (x[i] - x[k]) / (x[i + 1] - x[k]) * (y[i + 1] - y[k])
    at = np.clip(np.searchsorted(x, clock, side="right") - 1, 0, x.size - 2)
    stamps = np.bincount(at, minlength=x.size - 1)[1:]  # what matters is how clocks wandered while they were stamped
    room = float((stamps * before * behind / np.maximum(before + behind, 1.0)).sum())
    walk = float((stamps * off**2).sum()) / room if room > 0 else 0.0
    gap = (x[at + 1] - x[at]) * curve.rate
    since = (clock - x[at]) * curve.rate
    inside = (since >= 0) & (since <= gap)
    bridge = np.where(inside, since * (gap - since) / gap, np.maximum(-since, since - gap))
    return float(np.sqrt(walk * bridge.mean())), 3 * float(np.sqrt(walk * bridge.max()))


def edges(clock: np.ndarray, ns: np.ndarray, tick: float, rate: float) -> tuple[float, float, float] | None:
    """The true time over a steady clock: offset, rate, and the most by which this can be off between the anchors; None
    where no steady clock could have seen these anchors. `rate` is roughly the clock's, in ns per count.

    A timer that advances by ticks and shows g means a time in [g, g + tick). Each anchor so leaves out lines that pass
    above or below; those that all anchors leave are a polygon over the times that a line has at both ends.
    """
    order = np.argsort(clock, kind="stable")
    x, rest = clock[order], (ns - rate * clock)[order]
    length = float(x[-1] - x[0])
    if length <= 0:
        return None
    t = (x - x[0]) / length
    low, high = rest - rate, rest + tick + rate  # a clock's count is whole
    polygon = [(low[0], low[-1]), (high[0], low[-1]), (high[0], high[-1]), (low[0], high[-1])]
    piece = np.minimum(t * MAX_EDGES, MAX_EDGES - 1).astype(int)
    by = np.lexsort((rest, piece))
    first = np.nonzero(np.r_[True, np.diff(piece[by]) > 0])[0]
    # Of each piece the anchor soonest after an edge bounds the line from above, the one soonest before from below.
    soon, late = by[first], by[np.r_[first[1:], x.size] - 1]
    bounds = [(t[soon], high[soon], 1.0), (t[late], low[late], -1.0)]
    for where, limit, sign in ((float(w), float(v), sign) for a, b, sign in bounds for w, v in zip(a, b, strict=True)):
        polygon = _clipped(polygon, where, limit, sign)
        if not polygon:
            return None
    corners = np.array(polygon)
    middle, half = (corners.max(0) + corners.min(0)) / 2, (corners.max(0) - corners.min(0)) / 2
    slope = float(middle[1] - middle[0]) / length
    return float(middle[0] - slope * x[0]), rate + slope, float(half.max())


def _clipped(polygon: list[tuple[float, float]], t: float, limit: float, sign: float) -> list[tuple[float, float]]:
    """The part of a polygon of lines (time at the begin, time at the end) that at t is not beyond the limit."""
    out: list[tuple[float, float]] = []
    over = [sign * (a + (b - a) * t - limit) for a, b in polygon]
    for i, (a, b) in enumerate(polygon):
        (a0, b0), before, now = polygon[i - 1], over[i - 1], over[i]
        if (before > 0) != (now > 0):
            part = before / (before - now)
            out.append((a0 + (a - a0) * part, b0 + (b - b0) * part))
        if now <= 0:
            out.append((a, b))
    return out


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
