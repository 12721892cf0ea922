"""Decoding: what a lane says comes back as it was, and nothing that a device can write makes it raise."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from fuzz import renumbered, rounds
from hypothesis import given, settings
from hypothesis import strategies as st
from lanes import LaneClock, Span, encode, record
from schedules import Op, Run
from schedules import make as scheduled

import mpklab
from mpklab import analysis, frames
from mpklab.analysis.observed import observe
from mpklab.errors import ProfileError
from mpklab.frames.checks import _bulk
from mpklab.profile import Profile

NAMES = [{"name": "layer0.a", "op": "linear", "layer": 0}, {"name": "layer1.b", "op": "add", "layer": 1}]


def profile_of(spans, n_workers=1, n_tasks=4, n_events=4, *, hz=1e9, lanes_per_worker=1, **options):
    lanes = encode(spans, n_workers, lanes_per_worker, **options)
    operator = np.arange(n_tasks) >= (n_tasks + 1) // 2
    return Profile.from_parts(
        lanes,
        n_workers,
        lanes_per_worker,
        clock_hz=hz,
        operators=NAMES,
        tasks={"operator": operator.astype(int), "bytes": np.arange(n_tasks) * 10.0},
        events={"need": np.ones(n_events, int)},
    )


def chain(worker, task, at, fetch=10, waits=(), gather=5, execute=100, signal=7):
    """The phases of one task at level 2 as the compute lane records them, from `at`."""
    out = []
    phases = [("fetch", task, fetch), *(("wait", e, d) for e, d in waits)]
    phases += [("gather", task, gather), ("execute", task, execute), ("signal", task, signal)]
    for phase, arg, dur in phases:
        out.append(Span(worker, 0, phase, arg, at, at + dur))
        at += dur
    return out, at


def iteration(worker, number, tasks, at=0):
    inside, now = [], at + 3
    for kw in tasks:
        spans, now = chain(worker, at=now, **kw)
        inside += spans
        now += 2
    return [Span(worker, 0, "iteration", number, at, now), *inside]


def test_spans_of_one_worker_come_back():
    made = iteration(0, 5, [{"task": 0}, {"task": 2, "waits": [(1, 40), (3, 0)]}])
    got = frames.spans(profile_of(made))
    assert got["phase"].tolist() == [s.phase for s in made]
    assert got["begin_ns"].tolist() == [s.begin_ns for s in made]
    assert got["end_ns"].tolist() == [s.end_ns for s in made]
    assert (got["iteration"] == 5).all() and not got["truncated"].any()
    waits = got[got["phase"] == "wait"]
    assert waits["task"].tolist() == [2, 2] and waits["event"].tolist() == [1, 3]
    assert waits["op"].tolist() == ["layer1.b"] * 2 and waits["layer"].tolist() == [1, 1]
    row = frames.tasks(profile_of(made)).iloc[1]
    assert (row["task"], row["wait_ns"], row["dur_ns"], row["fetch_ns"], row["gather_ns"]) == (2, 40, 100, 10, 5)
    assert row["bytes"] == 20.0 and row["done_ns"] - row["signalled_ns"] == 7


@pytest.mark.parametrize("rate", [0.4, 1.0, 1.98, 3.3])
def test_clocks_of_workers_are_brought_together(rate):
    """Each worker has its own offset and a slightly different rate; 32-bit clocks turn many times."""
    made, clocks = [], {}
    for w in range(5):
        clocks[w] = LaneClock(offset=w * 7_777_777_777, rate=rate * (1 + w * 1e-4))
        for i in range(6):
            at = i * 1_500_000_000 + w * 10
            made += iteration(w, i, [{"task": w % 4, "execute": 1000}, {"task": 3, "waits": [(1, 700)]}], at)
    profile = profile_of(made, 5, clocks=clocks, hz=rate * 1e9)
    got = frames.spans(profile)
    assert np.abs(got["begin_ns"].to_numpy() - [s.begin_ns for s in made]).max() <= 3
    health = frames.health(profile)
    assert (health["residual_ns"] < 5).all() and health["unmatched_begins"].sum() == 0


def test_a_wait_longer_than_a_turn_of_the_clock_keeps_its_length():
    clocks = {0: LaneClock(offset=123, rate=2.0)}
    made = iteration(0, 0, [{"task": 0, "waits": [(1, 9_000_000_000)]}, {"task": 1}])
    got = frames.spans(profile_of(made, clocks=clocks, hz=2e9))
    assert got["dur_ns"].tolist() == [s.end_ns - s.begin_ns for s in made]


def test_coarse_timers_show_in_the_residual():
    clocks = {w: LaneClock(w * 1000, 1.98, tick_ns=32) for w in range(4)}
    made = []
    for w in range(4):
        for i in range(40):
            made += iteration(w, i, [{"task": w, "execute": 900 + 31 * w}], i * 1717 + w * 3)
    profile = profile_of(made, 4, clocks=clocks, hz=1.98e9)
    health = frames.health(profile)
    assert (health["residual_ns"] > 1).all() and (health["residual_ns"] < 40).all()
    off = frames.spans(profile)["begin_ns"].to_numpy() - [s.begin_ns for s in made]
    assert np.ptp(off) <= 2 * health["residual_ns"].max() + 1


def test_what_was_dropped_is_said_and_open_spans_are_closed():
    made = iteration(0, 0, [{"task": t} for t in range(4)])
    whole = frames.spans(profile_of(made))
    profile = profile_of(made, capacity=8)
    got = frames.spans(profile)
    health = frames.health(profile).iloc[0]
    assert (health["kept"], health["dropped"], health["written"]) == (8, 15, 23)
    assert got["truncated"].sum() == health["unmatched_begins"] == 2  # the iteration and the phase then open
    fine = got[~got["truncated"]]
    assert fine["dur_ns"].tolist() == whole["dur_ns"][fine.index].tolist()
    assert (got["end_ns"] >= got["begin_ns"]).all()


def test_a_ring_keeps_the_last_records():
    made = []
    for i in range(10):
        made += iteration(0, i, [{"task": t} for t in range(4)], i * 1000)
    profile = profile_of(made, capacity=60, ring=True)
    got = frames.spans(profile)
    want = {(s.phase, s.begin_ns): s.end_ns for s in made}
    shift = max(s.end_ns for s in made) - got["end_ns"].max()
    for row in got[~got["truncated"]].itertuples():
        assert want[(row.phase, row.begin_ns + shift)] == row.end_ns + shift
    assert got["iteration"].max() == 9 and got["iteration"].min() == 7
    t = frames.tasks(profile)
    assert t["iteration"].tolist()[-4:] == [9] * 4


def test_level_one_has_only_tasks():
    made = [Span(0, 0, "iteration", 0, 0, 400), Span(0, 0, "execute", 1, 10, 20), Span(0, 0, "execute", 2, 20, 20)]
    t = frames.tasks(profile_of(made))
    assert t["dur_ns"].tolist() == [10, 0] and t["issue_ns"].tolist() == [10, 20]


def test_role_lanes_and_nesting():
    made = [
        Span(0, 0, "iteration", 0, 0, 400),
        Span(0, 0, "fetch", 1, 5, 10),
        Span(0, 0, "execute", 1, 10, 100),
        Span(0, 0, "operand", 1, 20, 30),
        Span(0, 0, "operand", 1, 50, 60),
        Span(0, 0, "signal", 1, 100, 110),
        Span(0, 1, "ring", 1, 0, 5),
        Span(0, 1, "load_wait", 2, 5, 9),
        Span(0, 1, "load", 1, 9, 11),
    ]
    profile = profile_of(made, lanes_per_worker=2)
    got = frames.spans(profile)
    assert got["dur_ns"].tolist() == [400, 5, 90, 10, 10, 10, 5, 4, 2]
    assert got["role"].tolist() == ["compute"] * 6 + ["loader"] * 3
    assert got["task"].tolist() == [-1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert frames.tasks(profile)["dur_ns"].tolist() == [90]


def test_events_workers_operators_edges_are_tables():
    made = iteration(0, 0, [{"task": 0}, {"task": 1, "waits": [(0, 5)]}]) + iteration(1, 0, [{"task": 2}], 4)
    lanes = encode(made, 2)
    profile = Profile.from_parts(
        lanes,
        2,
        operators=NAMES,
        tasks={"operator": [0, 0, 1]},
        signals={"signal_begin": [0, 1, 2, 3], "signal_event": [0, 1, 1]},
        waits={"wait_begin": [0, 0, 1, 1], "wait_event": [0], "wait_lag": [0]},
        edges=[{"producer": 0, "consumer": 1, "tensor": "x", "kind": "raw", "lag": 0, "begin": [0], "end": [2]}],
    )
    events = frames.events(profile)
    assert events["signals"].tolist() == [1, 2] and events["need"].tolist() == [1, 2]
    assert events["last_task"].tolist() == [0, 1] and events["waiters"].tolist() == [1, 0]
    assert frames.workers(profile)["tasks"].tolist() == [2, 1]
    assert frames.operators(profile)["runs"].tolist() == [2, 1]
    assert frames.edges(profile)["edges"].tolist() == [2]
    causality = frames.causality(profile)
    assert causality["edges"].tolist() == [2]


def test_tables_can_be_queried():
    profile = profile_of(iteration(0, 0, [{"task": 0}, {"task": 2, "waits": [(1, 40)]}]))
    assert frames.query(profile, "phase == 'wait' and dur_ns > 30")["task"].tolist() == [2]
    assert len(frames.query(profile, "wait_ns == 0", "tasks")) == 1
    with pytest.raises(ProfileError, match="did you mean 'tasks'"):
        frames.query(profile, "wait_ns == 0", "task")
    for nonsense in ("nosuch > 3", "dur_ns >", "dur_ns + "):
        with pytest.raises(ProfileError, match=r"query: .*the columns of spans are rank, worker"):
            frames.query(profile, nonsense)


def test_a_consumer_before_its_producer_is_found():
    made = iteration(0, 0, [{"task": 0}]) + iteration(1, 0, [{"task": 1}])
    profile = Profile.from_parts(
        encode(made, 2),
        2,
        operators=NAMES,
        tasks={"operator": [0, 1]},
        edges=[{"producer": 0, "consumer": 1, "tensor": "x", "kind": "raw", "lag": 0, "begin": [0], "end": [1]}],
    )
    row = frames.causality(profile).iloc[0]
    # the producer's signal begins at 118, the consumer gathers at 13
    assert row["violations"] == 1 and row["worst_ns"] == 105
    assert frames.health(profile)["violations"].tolist() == [0, 1]


def random_lanes(data: bytes, n_workers: int, header: bool) -> Profile:
    lanes = np.frombuffer(data, np.uint8).copy().reshape(n_workers, -1)
    if header:
        good = encode([], n_workers, capacity=(lanes.shape[1] - 64) // 8).reshape(n_workers, -1)
        lanes[:, :20] = good[:, :20]
        lanes[:, 24:28] = 0xFF
    return Profile.from_parts(lanes, n_workers, operators=NAMES, tasks={"operator": [0, 0, 1]}, events={"need": [1, 1]})


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 4), st.integers(0, 40), st.booleans(), st.randoms(use_true_random=False))
@pytest.mark.filterwarnings("error")
def test_random_bytes_never_raise(n_workers, n_records, header, rng):
    profile = random_lanes(rng.randbytes(n_workers * (64 + 8 * n_records)), n_workers, header)
    got = frames.spans(profile)
    assert (got["dur_ns"] >= 0).all()
    frames.tasks(profile)
    frames.health(profile)
    frames.events(profile)
    frames.workers(profile)


_small = st.tuples(
    st.sampled_from(["begin", "end", "next", "value"]),
    st.sampled_from("none iteration execute wait gather fetch signal step load push pop global_time".split()),
    st.integers(0, 5),
    st.integers(0, 2**32 - 1),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_small, max_size=40), st.booleans())
@pytest.mark.filterwarnings("error")
def test_records_in_any_order_never_raise(items, ring):
    body = b"".join(record(*item) for item in items)
    head = encode([], 1, capacity=len(items), ring=ring)[:64].copy()
    head[20:24] = np.frombuffer(np.uint32(len(items) + (3 if ring else 0)).tobytes(), np.uint8)
    head[30] = ring
    lanes = np.r_[head, np.frombuffer(body, np.uint8)]
    profile = Profile.from_parts(lanes, 1, operators=NAMES, tasks={"operator": [0, 0, 1]}, events={"need": [1, 1]})
    got = frames.spans(profile)
    opened = sum(kind in ("begin", "next") and phase not in ("none", "global_time") for kind, phase, *_ in items)
    assert len(got) == opened
    assert (got["dur_ns"] >= 0).all()
    frames.tasks(profile)
    frames.health(profile)


def test_a_million_records_take_about_a_second():
    """Seconds of one core. The aim is 0.3; the bound is what no loop over records in Python could keep."""
    profile = big_profile()
    begun = time.process_time()
    got = frames.spans(profile)
    seconds = time.process_time() - begun
    assert len(got) > 800_000
    assert seconds < 2.0, f"{seconds:.2f} s"


def big_profile(n_workers=132, n_iterations=100, per_worker=15) -> Profile:
    """About 10^6 records of level 2, written without the encoder's loops."""
    one = iteration(0, 0, [{"task": t, "waits": [(0, 5)]} for t in range(per_worker)])
    words = encode(one, 1).view(np.uint32)
    records = words[16:].reshape(-1, 2)
    lanes = []
    for w in range(n_workers):
        body = np.tile(records, (n_iterations, 1)).reshape(n_iterations, -1, 2)
        shift = np.arange(n_iterations) * 10_000 + w
        is_value = (records[:, 0] & 3) == 3
        body[..., 1] += shift[:, None].astype(np.uint32)
        iterations = ((records[:, 0] >> 2) & 63) == 1
        body[:, iterations & ~is_value, 0] += (np.arange(n_iterations, dtype=np.uint32) << 8)[:, None]
        head = words[:16].copy()
        head[4] = head[5] = body.size // 2
        lanes.append(np.r_[head, body.reshape(-1)])
    raw = np.concatenate(lanes).view(np.uint8)
    return Profile.from_parts(
        raw, n_workers, operators=NAMES, tasks={"operator": [0] * 10 + [1] * 10}, events={"need": [1]}
    )


@pytest.mark.parametrize(("early", "counted", "by_words"), [(0, 0, 0), (30, 1, 0), (99, 1, 0), (120, 1, 1)])
def test_words_may_be_seen_while_their_producer_runs(early, counted, by_words):
    ops = [Op("a"), Op("b", after=("a",))]
    queues = [[[Run("a", 0, 100)], [Run("b", 0, 50)]]]
    profile = scheduled(ops, queues, start=[200, 0], latency=-early)
    words = replace(profile, operators=[{**o, "handoff": "data"} for o in profile.operators])
    assert frames.causality(profile)["violations"].sum() == counted
    assert frames.causality(words)["violations"].sum() == by_words
    assert frames.alignment(words, limit_ns=50)["offset_ns"].abs().max() == 10 * by_words
    assert analysis.bubbles(words)["makespan_ns"].nunique() == 1
    assert analysis.blame(words)["dur_ns"].sum() == analysis.bubbles(words)["makespan_ns"].iloc[0]


@pytest.mark.parametrize(("which", "number"), [(0, 500_000), (2, 500_000), (5, 0xFFFFFF), (11, 9)])
def test_a_damaged_iteration_number_opens_no_cells(which, number):
    """One record of twelve: what it begins is stray, and nothing else changes."""
    good = rounds()
    bad = renumbered(good, which, lambda _: number)
    assert all(seen.iterations.tolist() == list(range(6)) for seen in observe(bad))
    tasks = 3 if which < 6 else 2  # of the worker whose record it is
    assert frames.health(bad)["stray"].sum() == tasks and f"{tasks} stray tasks" in frames.verdict(bad)
    assert not frames.health(good)["stray"].any() and "stray" not in frames.verdict(good)
    a, b = (analysis.bubbles(p) for p in (good, bad))
    assert a["makespan_ns"].tolist() == b["makespan_ns"].tolist() and a["execute"].tolist() == b["execute"].tolist()
    a, b = (analysis.bounds(p).set_index("bound")["iteration_ns"] for p in (good, bad))
    assert b["measured"] == a["measured"] and 0.8 * a["work"] < b["work"] < a["work"]
    assert analysis.blame(bad)["dur_ns"].sum() == analysis.blame(good)["dur_ns"].sum()
    assert len(analysis.critical_path(bad)) and len(analysis.waits(bad)) == len(analysis.waits(good))


def test_a_damaged_recording_is_quick_to_ask():
    good = mpklab.recording("cpu-smollm2-135m")
    begun = time.process_time()
    bad = renumbered(good, 5, lambda _: 500_000)
    frames.verdict(bad)
    a, b = (analysis.bubbles(p) for p in (good, bad))
    assert a["execute"].tolist() == b["execute"].tolist() and a["makespan_ns"].tolist() == b["makespan_ns"].tolist()
    assert (b["unexplained"] < 0.02 * b["makespan_ns"]).all()
    asked = (analysis.blame, analysis.bounds, analysis.critical_path, analysis.waits, analysis.steady_state,
             analysis.what_if, analysis.explain, frames.alignment)  # fmt: skip
    assert all(len(ask(bad)) for ask in asked)
    a, b = (analysis.what_if(p)["makespan_ns"] for p in (good, bad))
    assert abs(b[1] / a[1] - 1) < 0.02
    assert time.process_time() - begun < 10


def test_iterations_between_which_some_are_missing_keep_their_rows():
    made = [s for i in (4, 5, 7, 8) for s in iteration(0, i, [{"task": 0}], i * 200)]
    cells, rows = frames.grid(profile_of(made), ("begin_ns",))
    assert rows.tolist() == [4, 5, 6, 7, 8] and (cells["begin_ns"][2] == frames.NEVER).all()
    cells, rows = frames.grid(profile_of([]), ("begin_ns",))
    assert rows.size == 0 and cells["begin_ns"].shape == (0, 4)


def test_a_grid_is_never_out_of_proportion_to_the_records():
    numbers = np.arange(0, 200 * 150, 150)
    low, high = _bulk(numbers, np.ones(200, int), 1000)
    assert high - low == 1000 and low <= numbers[100] < high
    assert _bulk(numbers, np.ones(200, int), 10**6) == (0, 199 * 150 + 1)
