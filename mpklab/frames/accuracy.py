"""How far a duration may be off: what two stamps of one clock share, and what two clocks leave.

All is root mean square. What writing a record costs is no error of the clocks: `meta["record_ns"]` says it, and
`analysis.bubbles` sets it apart.
"""

from __future__ import annotations

import weakref

import numpy as np

from mpklab import abi
from mpklab.frames import clocks
from mpklab.frames.records import decode
from mpklab.profile import Profile

MAX_STAMPS = 20_000  # per counter, to weigh the gaps between its anchors by


def error(profile: Profile, lane: np.ndarray, ns: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
    """Error bars, in ns, f64, of times of `ns` nanoseconds between two stamps of `lane`, or one of it and one of `other`;
    NaN where a lane has no anchors.

    Two lanes: the root of the sum of their residuals squared. One lane: its clock's offset cancels, which leaves the steps
    in which it counts and is written down (both stamps together: a step over the root of 6) and how far its rate strays
    from the fit meanwhile. An H200's clocks change theirs within microseconds, so time strays as a random walk
    does, by `wander` times the root of the duration, and never by more than two stamps far apart: the residual times √2.
    A steady clock's error is overstated by this.
    """
    grain, walk = _lanes(profile)
    rest = decode(profile).fit.residual_ns
    own = np.minimum(grain[lane] ** 2 / 6 + walk[lane] ** 2 * ns, 2 * rest[lane] ** 2)
    if other is not None:
        own = np.where(lane == other, own, rest[lane] ** 2 + rest[other] ** 2)
    out: np.ndarray = np.sqrt(own)
    return out


def per_lane(profile: Profile) -> np.ndarray:
    """f64[lanes, 3], what `error` reckons with: the error bar, in ns, of a time against another lane as good or of two
    stamps far apart; that of two stamps at once; and what it grows by with the root of the ns between two stamps."""
    grain, walk = _lanes(profile)
    return np.stack([np.sqrt(2) * decode(profile).fit.residual_ns, grain / np.sqrt(6), walk], 1)


def wander(fit: clocks.Fit, lane: np.ndarray, ns: np.ndarray) -> np.ndarray:
    """Per lane, by how many ns its clock strays from the fit in 1 ns, growing as the root of time: the most that its
    residual leaves room for. `lane` (sorted) and `ns` (as the anchors' `global_ns`) are the stamps that matter.

    A random walk of s that is held at both ends of a gap g lies off by s·sqrt(t·u/g) at t from one and u from the other
    (compare `clocks._between`), over an even gap by s·sqrt(g/6). The whole residual is taken for that. A lane that only
    a line holds strays no less than the curves of its profile do.
    """
    n = fit.anchors.size
    first = np.searchsorted(lane, np.arange(n + 1))
    some = np.nonzero(first[1:] > first[:-1])[0]
    bridge = np.ones(n)  # mean t·u/g; of a lane with one anchor or none nothing is known
    low, high = np.full(n, np.inf), np.full(n, -np.inf)
    if some.size:
        low[some], high[some] = np.minimum.reduceat(ns, first[some]), np.maximum.reduceat(ns, first[some])
    held = (fit.anchors >= 2) & (high > low)
    bridge[held] = np.maximum((high - low)[held] / (fit.anchors[held] - 1) / 6, 1.0)
    for i, curve in enumerate(fit.curves):
        lanes = np.nonzero(fit.curve == i)[0]
        stamps = np.concatenate([ns[first[j] : first[j + 1]] for j in lanes])
        stamps = stamps[:: max(1, stamps.size // MAX_STAMPS)]
        if stamps.size:
            at = np.clip(np.searchsorted(curve.ns, stamps, side="right") - 1, 0, curve.ns.size - 2)
            since, until = stamps - curve.ns[at], curve.ns[at + 1] - stamps
            inside = (since >= 0) & (until >= 0)
            held_by = np.where(inside, since * until / np.maximum(since + until, 1), -np.minimum(since, until))
            bridge[lanes] = max(float(held_by.mean()), 1.0)
    out: np.ndarray = fit.residual_ns / np.sqrt(bridge)
    curved = fit.curve >= 0
    if curved.any():
        out[~curved] = np.maximum(out[~curved], out[curved].max())
    return out


_known: weakref.WeakKeyDictionary[Profile, tuple[np.ndarray, np.ndarray]] = weakref.WeakKeyDictionary()


def _lanes(profile: Profile) -> tuple[np.ndarray, np.ndarray]:
    """Per lane: the step of its stamps in ns, and its clock's `wander`."""
    found = _known.get(profile)
    if found is None:
        d = decode(profile)
        counts_ns = profile.headers()["clock_unit"] == int(abi.Clock.nanoseconds)
        grain = np.where(counts_ns, d.fit.tick_ns, np.hypot(d.fit.ns_per_cycle, 1.0))  # times are whole ns
        walk = wander(d.fit, d.lane, d.begin_ns + (d.zero_ns - clocks.base_of(profile.headers(), d.lanes.valid)))
        walk[counts_ns & (d.fit.residual_max_ns < 1)] = 0.0  # it is the timer
        found = _known[profile] = grain, walk
    return found


def summed(profile: Profile, error_ns: np.ndarray, part: np.ndarray, lane: np.ndarray, n: int) -> np.ndarray:
    """Error bars of sums of durations, one for each of 0 … n - 1 in `part`; `lane` says whose clock measured each.

    What lanes of one curve measured at one time, as SMs do that share a counter, is off alike: such errors are added up;
    the nth duration of each lane in a part stands for one time. All others are taken to be independent, as the steps of a
    random walk are: their errors are added in squares.
    """
    if not error_ns.size:
        return np.zeros(n)
    fit = decode(profile).fit
    counter = np.where(fit.curve >= 0, fit.curve, len(fit.curves) + np.arange(fit.curve.size))
    order = np.lexsort((lane, part))
    first = _changes(part[order], lane[order])
    turn = np.empty(part.size, np.int64)
    turn[order] = np.arange(part.size) - np.repeat(first, np.diff(np.r_[first, part.size]))
    order = np.lexsort((turn, counter[lane], part))
    first = _changes(part[order], counter[lane][order], turn[order])
    alike = np.add.reduceat(error_ns[order], first)
    out: np.ndarray = np.sqrt(np.bincount(part[order[first]], weights=alike**2, minlength=n))
    return out


def _changes(*sorted_keys: np.ndarray) -> np.ndarray:
    """Where rows begin that differ from the one before."""
    return np.nonzero(np.r_[True, np.any([np.diff(key) != 0 for key in sorted_keys], axis=0)])[0]
