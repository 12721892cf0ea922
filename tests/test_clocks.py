"""Clocks whose rate follows the load, one for each group of SMs: pooled anchors, pieces, and honest error bars."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lanes import LaneClock
from schedules import Op, Run, make

from mpklab import abi, frames
from mpklab.frames import accuracy, clocks
from mpklab.profile import open_profile

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


@settings(max_examples=150, deadline=None)
@given(
    tick=st.sampled_from((32, 100, 1000, 1024)),
    hz=st.floats(0.3, 3.0),
    drift=st.floats(-3e-4, 3e-4),
    offset=st.integers(0, 1 << 40),
    every=st.integers(20_000, 200_000),
    n=st.integers(3, 300),
    seed=st.integers(0, 1 << 30),
)
def test_the_timers_edges_pin_down_a_steady_clock(tick, hz, drift, offset, every, n, seed):
    rng = np.random.default_rng(seed)
    at = np.sort(rng.uniform(0, every * n, n))  # true times since the lane began
    at[0] = 0.0
    rate = hz * (1 + drift)
    clock = np.rint(at * rate).astype(np.int64)
    shown = ((at + offset) // tick * tick).astype(np.int64)
    head = np.zeros(1, abi.LANE)
    head["clock_unit"] = int(abi.Clock.sm_cycles)
    anchors = clocks.Anchors(np.zeros(n, np.int32), clock, shown, np.zeros(n, np.int64))
    fit = clocks.fit(head, anchors, np.array([1 / hz]))
    stamps = np.sort(rng.uniform(0, at[-1], 200))
    got = fit.times(np.zeros(200, int), np.rint(stamps * rate).astype(np.int64), np.array([0, 200]))
    if fit.tick_ns != tick:  # too few anchors to show it
        return
    pinned = clocks.edges(clock.astype(float), shown.astype(float), tick, 1 / hz)
    assert pinned is not None  # the truth is always among the lines that are left
    count = 1 / rate  # a stamp is whole, too
    assert (np.abs(pinned[0] + pinned[1] * clock - (at + offset)) <= pinned[2] + count).all()
    error = np.abs(got + tick / 2 - (stamps + offset)).max()
    if n >= clocks.MIN_EDGES and fit.residual_ns[0] < tick / np.sqrt(12):
        assert fit.residual_ns[0] == fit.residual_max_ns[0]
        assert error <= fit.residual_ns[0] + count
    else:
        assert error <= 2 * tick


def test_many_anchors_leave_a_small_part_of_a_tick():
    rng = np.random.default_rng(1)
    at = np.sort(rng.uniform(0, 2e7, 400))
    clock, shown = np.rint(at * 1.83), at // 1000 * 1000
    pinned = clocks.edges(clock, shown, 1000, 1 / 1.83)
    assert pinned is not None and pinned[2] < 60  # a line through the means is said to be off by 289
    assert np.abs(pinned[0] + pinned[1] * clock - at).max() <= pinned[2]
    wandering = np.rint(1.83 * (at + 2000 * np.sin(at / 2e6)))
    assert clocks.edges(wandering, shown, 1000, 1 / 1.83) is None


@pytest.mark.parametrize("wander", (0.02, 0.08))
@pytest.mark.parametrize("every_ns", (5_000, 40_000))
def test_a_short_time_by_one_clock_is_known_better_than_two_clocks_agree(every_ns, wander):
    head, anchors, ticks, first, true = recorded(every_ns, wander)
    fit, ns = fitted(head, anchors, ticks, first)
    lane = np.repeat(np.arange(len(head)), np.diff(first))
    walk = accuracy.wander(fit, lane, ns)
    for apart in (1, 4, 16, 64):
        same = lane[apart:] == lane[:-apart]
        took = (true[apart:] - true[:-apart])[same]
        off = ((ns - true)[apart:] - (ns - true)[:-apart])[same]
        on = lane[apart:][same]
        bar = np.sqrt(np.minimum(1 / 3 + walk[on] ** 2 * took, 2 * fit.residual_ns[on] ** 2))
        for some in (np.full(took.shape, True), took < 1000):
            if np.count_nonzero(some) > 100:
                assert np.sqrt((off[some] ** 2).mean()) < 1.1 * np.sqrt((bar[some] ** 2).mean())
        if apart == 1 and every_ns > 10_000:
            assert np.median(bar[took < 1000]) < 0.5 * np.sqrt(2) * np.median(fit.residual_ns)


def test_a_clock_without_a_curve_of_its_own_strays_as_the_others_do():
    head, anchors, ticks, first, _ = recorded(every_ns=10_000)
    few = (anchors.lane != 2) | (anchors.clock == 0)
    last = np.nonzero(anchors.lane == 2)[0][-1]
    few[last] = True  # two anchors, 50 µs from the others'
    moved = anchors.global_ns + 50_000 * (anchors.lane == 2)
    some = clocks.Anchors(anchors.lane[few], anchors.clock[few], moved[few], anchors.record[few])
    fit, ns = fitted(head, some, ticks, first)
    walk = accuracy.wander(fit, np.repeat(np.arange(len(head)), np.diff(first)), ns)
    assert fit.curve[2] == -1 and walk[2] >= walk[fit.curve >= 0].max() > 0


def test_every_frame_tells_how_far_its_durations_may_be_off():
    rates = {w: LaneClock(w * 1000, 1.0, tick_ns=1000) for w in range(2)}
    ops = [Op("a", tiles=2), Op("b", tiles=2, after=("a",))]
    queues = [[[Run("a", 0, 900 + i), Run("b", 0, 400)], [Run("a", 1, 1250), Run("b", 1, 410)]] for i in range(5)]
    profile = make(ops, queues, clocks=rates)
    rest = frames.decode(profile).fit.residual_ns
    spans, tasks, workers, operators = (
        f(profile) for f in (frames.spans, frames.tasks, frames.workers, frames.operators)
    )
    lane = spans["worker"].to_numpy() * profile.lanes_per_worker
    assert (spans["error_ns"] > 0).all() and (spans["error_ns"] <= np.sqrt(2) * rest[lane] * 1.0001).all()
    assert spans["error_ns"].min() < 0.5 * np.sqrt(2) * rest[lane].max()  # the short ones are known better
    flat = spans[spans["phase"].isin(["execute", "wait", "step"])]
    squares = (flat["error_ns"].astype(float) ** 2).groupby(flat["worker"]).sum()
    assert np.allclose(workers["error_ns"], np.sqrt(squares), rtol=1e-3)
    squares = (tasks["error_ns"].astype(float) ** 2).groupby(tasks["op"].astype(str)).sum()
    assert np.allclose(operators["error_ns"], np.sqrt(squares[operators["op"]]), rtol=1e-3)
    events = frames.events(profile)
    two = events["signals"] > 1
    assert two.any() and np.allclose(events.loc[two, "error_ns"], np.hypot(*rest[:: profile.lanes_per_worker]))


def test_what_one_clock_told_at_one_time_is_off_alike():
    profile = open_profile("h200-qwen3-8b")
    curve = frames.decode(profile).fit.curve
    a, b = np.nonzero(curve == curve[0])[0][:2]  # SMs of one counter
    other = np.nonzero(curve != curve[0])[0][0]
    error = np.array([3.0, 4.0] * 3)
    part, lane = np.array([0, 0, 1, 1, 2, 2]), np.array([a, b, a, other, a, a])
    assert accuracy.summed(profile, error, part, lane, 4) == pytest.approx([7, 5, 5, 0])
    assert accuracy.summed(profile, error[:0], part[:0], lane[:0], 2).tolist() == [0, 0]
    operators, tasks = frames.operators(profile), frames.tasks(profile)
    squares = (tasks["error_ns"].astype(float) ** 2).groupby(tasks["op"].astype(str)).sum()
    least = np.sqrt(squares.reindex(operators["op"]).to_numpy())
    widest = np.bincount(curve).max() ** 0.5  # all SMs of a counter at once
    assert (operators["error_ns"] >= 0.999 * least).all() and (operators["error_ns"] <= 1.001 * widest * least).all()
    assert operators["error_ns"].sum() > 2 * least.sum()


def test_a_lane_without_anchors_states_no_error():
    profile = make([Op("a")], [[[Run("a", 0, 900)]]], anchors=False)
    assert np.isfinite(frames.spans(profile)["error_ns"]).all()
    lanes = profile.lanes.copy()
    for lane in lanes.reshape(profile.n_lanes, -1):
        lane[: abi.LANE.itemsize].view(abi.LANE)[["begin_global_ns", "end_global_ns"]] = 0
    spans = frames.spans(replace(profile, lanes=lanes))
    assert len(spans) and spans["error_ns"].isna().all()
