"""Clocks whose rate follows the load, one for each group of SMs: pooled anchors, pieces, and honest error bars."""

from __future__ import annotations

import numpy as np
import pytest

from mpklab import abi
from mpklab.frames import clocks

GROUPS, LANES, SPAN_NS = 3, 6, 2_000_000


def recorded(every_ns: float, wander: float = 0.08, seed: int = 0):
    """Headers, anchors, ticks, lane starts and true times of lanes whose groups share a counter each."""
    rng = np.random.default_rng(seed)
    grid = np.arange(0, SPAN_NS + 5000, 250.0)
    n = GROUPS * LANES
    head = np.zeros(n, abi.LANE)
    head["magic"], head["version"], head["clock_unit"] = abi.LANE_MAGIC, abi.VERSION, int(abi.Clock.sm_cycles)
    parts, ticks, true = [], [], []
    for g in range(GROUPS):
        rate = 1.83 * (1 + wander * rng.uniform(-1, 1, grid.size // 16 + 1).repeat(16)[: grid.size])
        count = np.cumsum(rate * 250.0) + 5e8 * (g + 1)
        for i in range(g * LANES, (g + 1) * LANES):

            def read(t, count=count):
                return np.rint(np.interp(t, grid, count)).astype(np.int64)

            start = float(rng.integers(100, 300))
            head["begin_clock"][i], head["begin_global_ns"][i] = read(start), 1 << 40
            inner = np.sort(rng.uniform(start, SPAN_NS, int(SPAN_NS / every_ns)))
            at = np.r_[start, inner, SPAN_NS]
            clock = read(at) - read(start)
            parts.append((np.full(at.size, i, np.int32), clock, (at // 32 * 32).astype(np.int64)))
            stamps = np.sort(rng.uniform(start, SPAN_NS, 500))
            ticks.append(read(stamps) - read(start))
            true.append(stamps)
    lane, clock, ns = (np.concatenate(c) for c in zip(*parts, strict=True))
    anchors = clocks.Anchors(lane, clock, ns, np.zeros(lane.size, np.int64))
    first = np.r_[0, np.cumsum([len(t) for t in ticks])]
    return head, anchors, np.concatenate(ticks), first, np.concatenate(true)


def fitted(head, anchors, ticks, first):
    fit = clocks.fit(head, anchors, np.full(len(head), 1 / 1.83), ticks, first)
    return fit, fit.times(np.repeat(np.arange(len(head)), np.diff(first)), ticks, first)


def test_lanes_of_one_counter_are_found_and_follow_its_rate():
    head, anchors, ticks, first, true = recorded(every_ns=10_000)
    fit, ns = fitted(head, anchors, ticks, first)
    assert len(fit.curves) == GROUPS
    assert (fit.curve.reshape(GROUPS, LANES) == np.arange(GROUPS)[:, None]).all()
    error = ns - (true - 16)  # a timer read is half a tick early on average
    assert np.sqrt((error**2).mean()) < 60 and np.abs(error).max() < 400
    line = fit.offset_ns  # what a line per lane would have left
    slope = [np.polyfit(ticks[first[i] : first[i + 1]], true[first[i] : first[i + 1]], 1) for i in range(len(line))]
    rest = [true[first[i] : first[i + 1]] - np.polyval(s, ticks[first[i] : first[i + 1]]) for i, s in enumerate(slope)]
    assert np.std(np.concatenate(rest)) > 4 * np.std(error)


@pytest.mark.parametrize("every_ns", (5_000, 40_000, 400_000))
def test_the_stated_error_grows_with_the_gaps_and_holds(every_ns):
    head, anchors, ticks, first, true = recorded(every_ns)
    fit, ns = fitted(head, anchors, ticks, first)
    error = np.abs(ns - (true - 16))
    stated = float(np.sqrt((fit.residual_ns**2).mean()))
    real = float(np.sqrt((error**2).mean()))
    assert real / 2.5 < stated < 3 * real
    assert (error > fit.residual_max_ns.max()).mean() < 0.01


def test_a_steady_clock_keeps_its_lines():
    head, anchors, ticks, first, true = recorded(every_ns=100_000, wander=0.0)
    fit, ns = fitted(head, anchors, ticks, first)
    assert not fit.curves and (fit.curve == -1).all()
    assert np.abs(ns - (true - 16)).max() < 40


def test_a_lane_with_a_counter_of_its_own_keeps_to_itself():
    head, anchors, ticks, first, _ = recorded(every_ns=10_000)
    late = anchors.lane == 2  # its timer runs 50 µs ahead of the others'
    moved = clocks.Anchors(anchors.lane, anchors.clock, anchors.global_ns + 50_000 * late, anchors.record)
    fit, _ = fitted(head, moved, ticks, first)
    assert fit.curve[2] not in fit.curve[[0, 1, 3, 4, 5]]
