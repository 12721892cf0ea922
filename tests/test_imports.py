"""Other tools' buffers, written here from their published bit layouts, read by the importers."""

from __future__ import annotations

import gzip
import json
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedules import Op, Run, make

from mpklab import analysis, frames
from mpklab.errors import ProfileError
from mpklab.exports import export
from mpklab.imports import from_chrome, from_flashinfer, from_mirage, import_mirage, to_mirage
from mpklab.imports.mirage import TASK_TYPES, TYPE_OF, UNKNOWN_TYPE, task_type


def buffer(blocks, groups, events, tag, size=64):
    """Entries as the device macros write them: events are (block, group, event, kind, time), in order of each lane."""
    out = [0] * (1 + blocks * groups * size)
    out[0] = groups << 32 | blocks
    at = {}
    for number, (block, group, event, kind, time) in enumerate(events):
        lane = block * groups + group
        k = at.get(lane, 0)
        out[1 + lane + k * blocks * groups] = (time & 0xFFFFFFFF) << 32 | tag(block, group, groups, event, kind, number)
        if kind != 2:  # an instant does not move the pointer: the next event overwrites it
            at[lane] = k + 1
    return np.array(out, np.uint64)


def first_tag(block, group, groups, event, kind, number):
    return (block * groups + group) << 12 | event << 2 | kind


def sm_tag(block, group, groups, event, kind, number):
    """As the device has encoded since it knows the SM: the block's number alone in bits 12 to 23."""
    return (block % 132) << 24 | block << 12 | event << 2 | kind


def old_mirage_tag(block, group, groups, event, kind, number):
    return (number // 2 % 8192) << 19 | (block * groups + group) << 11 | event << 2 | kind


def new_mirage_tag(block, group, groups, event, kind, number):
    return (number // 2 % 1024) << 22 | (block * groups + group) << 11 | event << 2 | kind


BASE = 2**32 - 5000  # the 32-bit timer turns during the recording


def some_events(blocks=3, groups=2):
    out, want = [], []
    for b in range(blocks):
        for g in range(groups):
            t = BASE + 32 * b
            for k in range(5):
                dur = 640 + 32 * k + 64 * g
                out += [(b, g, k % 3, 0, t), (b, g, k % 3, 1, t + dur)]
                want.append((b, g, k % 3, t - BASE, dur))
                t += dur + 1000
    return out, want


@pytest.mark.parametrize("tag", [first_tag, sm_tag])
@pytest.mark.parametrize("groups", [1, 2])
def test_flashinfer_buffers_before_and_after_the_sm_was_added(tag, groups):
    events, want = some_events(groups=groups)
    profile = from_flashinfer(buffer(3, groups, events, tag), names=["load", "mma", "store"])
    got = frames.spans(profile)
    got = got[got["phase"] == "execute"]
    roles = got["role"].astype(str).map({"compute": 0, "loader": 1}).tolist()
    ops = [["load", "mma", "store"].index(o) for o in got["op"]]
    assert list(zip(got["worker"], roles, ops, got["begin_ns"], got["dur_ns"], strict=True)) == want
    assert not got["truncated"].any() and frames.health(profile)["unmatched_ends"].sum() == 0
    assert got["sm"].tolist() == ([-1] * len(got) if tag is first_tag else got["worker"].tolist())


def test_flashinfer_instants_and_open_ends_are_said():
    events = [(0, 0, 0, 0, 100), (0, 0, 5, 2, 150), (0, 0, 0, 1, 200), (0, 0, 1, 0, 300), (0, 0, 7, 2, 400)]
    profile = from_flashinfer(buffer(1, 1, events, first_tag))
    got = frames.spans(profile)
    assert profile.meta["instants"] == 1 and got["truncated"].sum() == 1
    assert got[got["phase"] == "execute"]["op"].tolist() == ["event0", "event1"]
    table = analysis.bubbles(profile)
    assert (table.drop(columns=["rank", "worker", "makespan_ns"]).sum(axis=1) == table["makespan_ns"]).all()


def mirage_graph():
    tasks = [{"task_type": 1, "variant_id": 0, "dependent_event": 0, "trigger_event": 0, "outputs": None}]
    event = 0
    for _ in range(2):
        for kind, tiles, name in ((154, 1, "norm_out"), (155, 3, "qkv")):
            writes = [{"base_ptr": name}]
            tasks += [
                {
                    "task_type": kind,
                    "variant_id": 0,
                    "dependent_event": event,
                    "trigger_event": event + 1,
                    "outputs": writes,
                }
                for _ in range(tiles)
            ]
            event += 1
    return {"all_tasks": tasks, "all_events": [], "first_tasks": [1]}


@pytest.mark.parametrize("tag", [old_mirage_tag, new_mirage_tag])
def test_mirage_buffers_become_tasks_of_their_graph(tag, tmp_path):
    events, t = [], 1000
    for _ in range(2):
        events += [(0, 0, 154, 0, t), (0, 0, 154, 1, t + 100)]
        for b in range(3):
            events += [(b, 0, 155, 0, t + 200), (b, 0, 155, 1, t + 300 + 10 * b)]
        t += 400
    np.save(tmp_path / "buffer.npy", buffer(3, 1, events, tag))
    (tmp_path / "task_graph.json").write_text(json.dumps(mirage_graph()))
    profile = from_mirage(tmp_path / "buffer.npy", tmp_path / "task_graph.json", {154: "rms_norm", 155: "linear"})
    t = frames.tasks(profile)
    assert t["op"].tolist()[0] == "layer0.rms_norm.norm_out" and t["layer"].tolist() == [0] * 4 + [1] * 4
    assert sorted(t["kind"].unique()) == ["linear", "rms_norm"]
    path = analysis.blame(profile)
    assert path["dur_ns"].sum() == 720
    assert path[path["segment"] == "execute"]["op"].tolist()[-1] == "layer1.linear.qkv"
    assert path[path["segment"] == "latency"]["dur_ns"].tolist() == [100, 80, 100]
    table = analysis.bubbles(profile).set_index("worker")
    assert table.loc[1, "producer"] > 0
    bare = from_mirage(tmp_path / "buffer.npy")
    assert set(frames.tasks(bare)["op"]) == {"rms_norm", "linear"}
    assert set(frames.tasks(from_mirage(tmp_path / "buffer.npy", names={155: "mine"}))["op"]) == {"rms_norm", "mine"}


def test_a_profile_as_a_mirage_buffer_is_what_the_macros_would_have_written():
    ops = [Op("a", 3), Op("b", 2, after=("a",)), Op("c", after=("b",))]
    queues = [
        [[Run("a", 0, 100), Run("b", 0, 50), Run("c", 0, 7)], [Run("a", 1, 90), Run("b", 1, 40)], [Run("a", 2, 5)]]
    ] * 3
    profile = make(ops, queues, latency=9)
    types = {"a": 154, "b": 155, "c": 511}
    words, left_out = to_mirage(profile, 1 + 3 * 64, types)
    rows = frames.tasks(profile).sort_values(["worker", "begin_ns"], kind="stable")
    zero = frames.decode(profile).zero_ns
    by_hand, of_worker = [0] * len(words), {}
    by_hand[0] = 1 << 32 | 3
    for worker, op, begin, end in zip(rows["worker"], rows["op"], rows["begin_ns"], rows["end_ns"], strict=True):
        k = of_worker[worker] = of_worker.get(worker, -1) + 1
        for kind, time in ((0, begin), (1, end)):
            tag = k << 19 | int(worker) << 11 | types[op] << 2 | kind
            by_hand[1 + worker + (2 * k + kind) * 3] = ((zero + int(time)) & 0xFFFFFFFF) << 32 | tag
    assert left_out == 0 and words.tolist() == by_hand
    got = frames.tasks(from_mirage(words, names={511: "last"}))
    assert got["begin_ns"].tolist() == (frames.tasks(profile)["begin_ns"] - rows["begin_ns"].min()).tolist()
    assert got["dur_ns"].tolist() == frames.tasks(profile)["dur_ns"].tolist()
    assert set(got["op"]) == {"rms_norm", "linear", "last"}
    short, left_out = to_mirage(profile, 1 + 3 * 5, types)  # two spans of each worker, and one word more
    assert left_out == len(rows) - 6 and short[:13].tolist() == by_hand[:13] and not short[13:].any()
    with pytest.raises(ProfileError, match="needs 7 words for one span of each of 3 workers, and has 6"):
        to_mirage(profile, 6)


def test_what_mpklab_s_operators_are_called_there_is_known():
    """Every kind of operator has a type whose name Mirage's exporter and ours know; fused linears have their own."""
    from mpklab.ops import REGISTRY

    assert set(TYPE_OF) == set(REGISTRY.ops)
    assert set(TYPE_OF.values()) <= set(TASK_TYPES)
    assert [task_type("linear", o) for o in ((), ("residual",), ("norm_weight",))] == [120, 108, 102]
    assert task_type("something new") == UNKNOWN_TYPE


def test_more_workers_than_a_tag_tells_apart_are_refused():
    profile = make([Op("a", 257)], [[[Run("a", i, 3)] for i in range(257)]])
    with pytest.raises(ProfileError, match="tells 256 workers apart, and there are 257"):
        to_mirage(profile, 1 << 12)


def real_mirage_graph():
    """Two layers and an end, with the fields and the odd values of a file that Mirage wrote."""
    tasks, none, tagged = [], 0x7FFFFFFFFFFFFFFE, 1 << 32

    def add(kind, tiles, waits, signals, reads, writes, size=8):
        for i in range(tiles):
            tensors = [
                [
                    {"base_ptr": n, "offset": 16 * i, "data_type": 941, "dims": [1, size], "strides": [size, 1]}
                    for n in names
                ]
                for names in (reads, writes)
            ]
            tasks.append(
                {
                    "task_type": kind, "variant_id": 0, "dependent_event": waits(i), "trigger_event": signals(i),
                    "inputs": tensors[0] or None, "outputs": tensors[1], "request_id": 0, "expert_offset": -65536,
                }
            )  # fmt: skip

    add(0, 1, lambda i: none, lambda i: none, [], [])
    add(10, 1, lambda i: none, lambda i: tagged | 1, [], [])
    e = 1
    for layer in range(2):
        p = f"layer_{layer}_"
        add(154, 1, lambda i, e=e: tagged | e, lambda i, e=e: tagged | (e + 1), ["x", p + "input_norm"], ["norm_out"])
        add(
            155,
            4,
            lambda i, e=e: tagged | (e + 1),
            lambda i, e=e: tagged | (e + 2 + i // 2),
            ["norm_out", p + "up"],
            ["mid"],
        )
        add(118, 2, lambda i, e=e: tagged | (e + 2 + i), lambda i, e=e: tagged | (e + 4), ["mid"], ["act"])
        add(156, 3, lambda i, e=e: tagged | (e + 4), lambda i, e=e: tagged | (e + 5), ["act", p + "down"], ["x"])
        e += 5
    add(154, 1, lambda i: tagged | e, lambda i: tagged | (e + 1), ["x", "model_norm"], ["norm_out"])
    add(155, 5, lambda i: tagged | (e + 1), lambda i: tagged | (e + 2), ["norm_out", "lm_head"], ["logits"])
    return {"all_tasks": tasks, "all_events": [], "first_tasks": [2]}


def test_mirage_s_task_graph_can_be_looked_at(tmp_path):
    (tmp_path / "task_graph.json").write_text(json.dumps(real_mirage_graph()))
    profile = import_mirage(tmp_path / "task_graph.json", {118: "gated"})
    names = [o["name"] for o in profile.operators]
    assert names == [
        "terminate", "begin", "layer0.rms_norm.norm_out", "layer0.linear.mid", "layer0.gated.act",
        "layer0.linear_residual.x", "layer1.rms_norm.norm_out", "layer1.linear.mid", "layer1.gated.act",
        "layer1.linear_residual.x", "rms_norm.norm_out", "linear.logits",
    ]  # fmt: skip
    assert [o["layer"] for o in profile.operators][4:] == [0, 0, 1, 1, 1, 1, -1, -1]
    assert profile.tasks["bytes"].tolist()[:4] == [0, 0, 48, 48] and profile.n_tasks == 28
    edges = {(names[e["producer"]], names[e["consumer"]]): e for e in profile.edges}
    pair = edges["layer1.linear.mid", "layer1.gated.act"]
    assert list(zip(pair["begin"], pair["end"], strict=True)) == [(0, 2), (2, 4)] and pair["tensor"] == "mid"
    assert edges["layer0.linear_residual.x", "layer1.rms_norm.norm_out"]["end"].tolist() == [3]
    assert ("begin", "layer0.rms_norm.norm_out") in edges and len(edges) == 10
    assert profile.events["need"].tolist()[:4] == [1, 1, 2, 2] and frames.spans(profile).empty
    assert "28 tasks" in str(profile.dag())


def test_our_own_chrome_export_comes_back(tmp_path):
    ops = [Op("a", 2), Op("b", after=("a",))]
    queues = [[[Run("a", 0, 100, fetch=5, signal=3)], [Run("a", 1, 90), Run("b", 0, 40, gather=4)]]] * 2
    profile = make(ops, queues, latency=9)
    back = from_chrome(export(profile, tmp_path / "x.json"))
    a, b = frames.spans(profile), frames.spans(back)
    a, b = a[a["phase"] != "iteration"], b[b["phase"] != "iteration"]
    names = [o if p == "execute" else p for o, p in zip(a["op"], a["phase"], strict=True)]
    want = sorted(zip(a["worker"], a["begin_ns"], a["dur_ns"], names, strict=True))
    assert sorted(zip(b["worker"], b["begin_ns"], b["dur_ns"], b["op"].astype(str), strict=True)) == want


def test_chrome_begin_end_nesting_and_overlap(tmp_path):
    x = lambda ts, dur, name, tid=1: {"ph": "X", "ts": ts, "dur": dur, "name": name, "pid": 1, "tid": tid}  # noqa: E731
    events = [
        x(0, 10, "outer"),
        x(2, 3, "inner"),
        x(8, 6, "overlaps"),
        {"ph": "B", "ts": 20, "name": "pair", "pid": 1, "tid": 2},
        {"ph": "E", "ts": 25.5, "pid": 1, "tid": 2},
        {"ph": "B", "ts": 26, "name": "open", "pid": 1, "tid": 2},
        {"ph": "X", "ts": "?", "name": "bad"},
        {"ph": "M", "name": "process_name"},
        7,
    ]
    path = tmp_path / "t.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    profile = from_chrome(path)
    got = frames.spans(profile)
    got = got[got["phase"] == "execute"]
    want = {"outer": (0, 10_000), "inner": (2000, 3000), "overlaps": (8000, 6000), "pair": (20_000, 5500)}
    found = {o: (b, d) for o, b, d in zip(got["op"], got["begin_ns"], got["dur_ns"], strict=True)}
    assert found == want | {"open": (26_000, 0)}
    assert profile.meta["skipped"] == 2 and profile.lanes_per_worker == 2
    assert from_chrome({"traceEvents": events}).n_tasks == 5


def test_a_trace_of_torch_s_profiler_is_read_whatever_its_zero_of_time():
    since_1970 = 1_758_000_000_000_000.0
    kernels = [
        {"ph": "X", "cat": "kernel", "name": f"gemm{k % 2}", "pid": 0, "tid": 7, "ts": since_1970 + 20 * k, "dur": 18.5}
        for k in range(5)
    ]
    stray = {"ph": "X", "name": "from another age", "pid": 0, "tid": 7, "ts": 0, "dur": 1}
    names = [
        {"ph": "M", "name": "process_name", "pid": 0, "tid": 0, "args": {"name": "GPU 0"}},
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": 7, "args": {"name": "stream 7"}},
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": 8},
    ]
    profile = from_chrome({"traceEvents": [stray, *names, *kernels]})
    got = frames.spans(profile)
    got = got[got["phase"] == "execute"]
    assert got["begin_ns"].tolist() == [0, 20_000, 40_000, 60_000, 80_000] and set(got["dur_ns"]) == {18_500}
    assert profile.meta["skipped"] == 1 and profile.meta["threads"] == {"0": "GPU 0/stream 7"}
    assert '"worker_names":{"0":"GPU 0/stream 7"}' in json.dumps(profile.timeline().lanes.meta, separators=(",", ":"))


def test_stamps_of_a_trace_say_how_fine_its_clock_is():
    """Not its few anchors, which a long common divisor may join by chance."""
    slices = [{"ph": "X", "ts": t, "dur": 0.5, "name": "a", "tid": 0} for t in (0, 10, 20.001, 30.25)]
    profile = from_chrome({"traceEvents": [*slices, {"ph": "X", "ts": 0, "dur": 40, "name": "b", "tid": 1}]})
    assert frames.residual(profile) < 1


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([], "0 events"),
        ([{"name": "a", "start": 0, "end": 5}], "fields end, name, start"),
        ([{"ph": "i", "ts": 1}, {"ph": "b", "ts": 2}], "1 of ph 'b', 1 of ph 'i'"),
    ],
)
def test_a_trace_without_slices_says_what_it_has_instead(events, said):
    with pytest.raises(ProfileError, match=f"no slices: expected complete .*; found .*{said}"):
        from_chrome({"traceEvents": events})


def test_a_trace_whose_writer_was_killed_is_read(tmp_path):
    """The format allows a list without its closing bracket."""
    path = tmp_path / "t.json"
    path.write_text('[\n{"ph": "X", "ts": 0, "dur": 1, "name": "a"},\n{"ph": "X", "ts": 2, "dur": 1, "name": "b"},\n')
    assert from_chrome(path).n_tasks == 2


def test_a_trace_of_many_idle_threads_beside_a_full_one_is_refused_before_it_takes_the_memory():
    events = [{"ph": "X", "ts": 0, "dur": 1, "name": "a", "tid": t} for t in range(2000)]
    events += [{"ph": "X", "ts": 2 * k, "dur": 1, "name": "b", "tid": 0} for k in range(80_000)]
    with pytest.raises(ProfileError, match=r"2000 lanes, the fullest with 16[0-9]{4} records"):
        from_chrome({"traceEvents": events})


def test_long_pauses_keep_their_length():
    events = [{"ph": "X", "ts": t, "dur": 1, "name": "a", "tid": 0} for t in (0, 7_000_000, 60_000_000)]
    got = frames.spans(from_chrome({"traceEvents": events}))
    assert got[got["phase"] == "execute"]["begin_ns"].tolist() == [0, 7_000_000_000, 60_000_000_000]


@pytest.mark.parametrize(
    "bad",
    [b"", b"abc", b"\x93NUMPY", struct.pack("<QQ", 0, 1), struct.pack("<QQQ", 1 << 32 | 1, 77 << 12, 5 << 12)],
)
def test_what_is_no_buffer_is_refused(bad, tmp_path):
    (tmp_path / "x.bin").write_bytes(bad)
    for read in (from_flashinfer, from_mirage, from_chrome, import_mirage):
        with pytest.raises(ProfileError):
            read(tmp_path / "x.bin")
    with pytest.raises(ProfileError, match="64-bit"):
        from_flashinfer(np.zeros(4, np.float32))
    with pytest.raises(ProfileError, match="cannot open"):
        from_mirage(tmp_path / "none.npy")


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.lists(st.integers(0, 2**64 - 1), max_size=60), st.booleans())
def test_random_buffers_never_do_anything_else_than_say_so(blocks, groups, entries, with_graph):
    raw = np.array([groups << 32 | blocks, *entries], np.uint64)
    for read in (from_flashinfer, lambda b: from_mirage(b, mirage_graph() if with_graph else None)):
        try:
            profile = read(raw)
        except ProfileError:
            continue
        frames.spans(profile)
        analysis.bubbles(profile)


_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.integers(),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["ph", "ts", "dur", "name", "tid", "args"]), x),
    max_leaves=8,
)
_event = st.fixed_dictionaries(
    {}, optional={"ph": st.sampled_from(["X", "B", "E", 3]), "ts": _json, "dur": _json, "tid": _json, "name": _json}
) | st.fixed_dictionaries(
    {"ph": st.sampled_from(["X", "B", "E"]), "ts": st.floats(-1e6, 1e6)}, optional={"dur": st.floats(0, 1e5)}
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_event, max_size=12) | _json)
def test_random_traces_never_do_anything_else_than_say_so(events):
    try:
        profile = from_chrome({"traceEvents": events})
    except ProfileError:
        return
    got = frames.spans(profile)
    assert (got["dur_ns"] >= 0).all()
    analysis.bubbles(profile)


def test_a_packed_trace_takes_no_more_room_than_it_needs(tmp_path):
    file = tmp_path / "trace.json.gz"
    file.write_bytes(b"\x1f\x8b5,")
    tracemalloc.start()
    with pytest.raises(ProfileError, match="not a JSON trace"):
        from_chrome(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20
