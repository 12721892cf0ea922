"""Exports say what the spans say: read back by a reader of their own, and by Perfetto's classes where they are."""

from __future__ import annotations

import gzip
import json
import struct
from collections import defaultdict

import pandas as pd
import pytest
from schedules import Op, Run, make
from test_frames import big_profile

from mpklab import frames
from mpklab.errors import ProfileError
from mpklab.exports import export, perfetto_trace

OPS = [Op("layer0.a", 2), Op('layer0.<b>"', after=("layer0.a",))]
QUEUES = [
    [[Run("layer0.a", 0, 100, fetch=5, signal=3)], [Run("layer0.a", 1, 90), Run('layer0.<b>"', 0, 40, gather=4)]]
] * 2


def small():
    return make(OPS, QUEUES, latency=9)


def message(data: bytes) -> dict[int, list]:
    """A protobuf message as field number → values: ints for varints, bytes for the rest."""
    out, i = defaultdict(list), 0

    def varint() -> int:
        nonlocal i
        value = shift = 0
        while True:
            byte = data[i]
            i += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    while i < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            out[key >> 3].append(varint())
        else:
            size = varint() if kind == 2 else 8
            assert kind in (1, 2)
            out[key >> 3].append(data[i : i + size])
            i += size
    assert i == len(data)
    return out


def read_trace(data: bytes):
    """Slices (track path, name, category, begin, end, args), flows (id → ends), counters (name → values)."""
    names, categories, keys, tracks, counters = {}, {}, {}, {}, defaultdict(list)
    open_slices, slices, flows = defaultdict(list), [], defaultdict(lambda: [None, None])
    for raw in message(data)[1]:
        p = message(raw)
        for interned in p[12]:
            for field, table in ((1, categories), (2, names), (3, keys)):
                for entry in message(interned)[field]:
                    e = message(entry)
                    table[e[1][0]] = e[2][0].decode()
        for descriptor in p[60]:
            t = message(descriptor)
            name = message(t[3][0])[6][0] if t[3] else t[2][0]
            tracks[t[1][0]] = (name.decode(), t[5][0] if t[5] else None)
        for event in p[11]:
            e = message(event)
            track, now = e[11][0], p[8][0]
            if e[9] == [4]:
                counters[tracks[track][0]].append(struct.unpack("<d", e[44][0])[0])
            elif e[9] == [1]:
                args = {}
                for a in map(message, e[4]):
                    args[keys[a[1][0]]] = a[4][0]
                index = len(slices)
                slices.append([track, names[e[10][0]], categories[e[3][0]], now, None, args])
                open_slices[track].append(index)
                for end, field in enumerate((47, 48)):
                    for f in e[field]:
                        flows[struct.unpack("<Q", f)[0]][end] = index
            else:
                slices[open_slices[track].pop()][4] = now
    assert not any(open_slices.values())

    def path(track):
        name, parent = tracks[track]
        return (*path(parent), name) if parent else (name,)

    return [(path(t), *rest) for t, *rest in slices], dict(flows), counters


def test_perfetto_slices_are_the_spans():
    profile = small()
    slices, flows, counters = read_trace(perfetto_trace(profile))
    want = []
    for r in frames.spans(profile).itertuples():
        name = r.op if r.phase == "execute" else r.phase
        args = {k: v for k, v in (("task", r.task), ("iteration", r.iteration), ("event", r.event)) if v >= 0}
        place = ("mpklab, rank 0", f"worker {r.worker} (SM {r.worker})", "compute")
        want.append((place, name, r.phase, r.begin_ns, r.end_ns, args))
    key = lambda s: (s[0], s[3], -s[4], s[2])  # noqa: E731
    assert sorted(slices, key=key) == sorted(want, key=key)
    assert len(counters["workers executing"]) == 2000 and max(counters["GB/s"]) == 0
    ends = [(slices[a][1], slices[b][1]) for a, b in flows.values()]
    assert ends and set(ends) <= {("layer0.a", 'layer0.<b>"')}


def test_perfetto_draws_what_a_selected_task_waited_for():
    _, flows, _ = read_trace(perfetto_trace(small(), select=[2]))
    assert len(flows) >= 4  # two producers in each of two iterations
    assert all(a is not None and b is not None for a, b in flows.values())


def test_perfetto_of_a_million_spans_is_compact():
    profile = big_profile(n_workers=8, n_iterations=50)
    data = perfetto_trace(profile)
    slices, _, _ = read_trace(data)
    assert len(slices) == len(frames.spans(profile))
    assert len(data) < 80 * len(slices)


def test_perfettos_own_classes_read_it():
    trace = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    parsed = trace.Trace()
    parsed.ParseFromString(perfetto_trace(small(), select=[2]))
    begins = [p for p in parsed.packet if p.track_event.type == trace.TrackEvent.TYPE_SLICE_BEGIN]
    assert len(begins) == len(frames.spans(small())) and any(p.track_event.flow_ids for p in begins)
    assert not any(p.track_event.FindInitializationErrors() for p in parsed.packet)


def test_chrome_events_are_the_spans(tmp_path):
    path = export(small(), tmp_path / "x.json.gz")
    trace = json.loads(gzip.decompress(path.read_bytes()))
    events = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    spans = frames.spans(small())
    assert [round(e["ts"] * 1000) for e in events] == spans["begin_ns"].tolist()
    assert [round(e["dur"] * 1000) for e in events] == spans["dur_ns"].tolist()
    assert [e["args"]["task"] for e in events] == spans["task"].tolist()
    assert {e["name"] for e in events if e["cat"] == "execute"} == {"layer0.a", 'layer0.<b>"'}
    labels = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"]
    assert labels == ["worker 0 (SM 0) compute", "worker 1 (SM 1) compute"]


def test_frames_as_files(tmp_path):
    table = pd.read_csv(export(small(), tmp_path / "x.csv"))
    assert table["dur_ns"].tolist() == frames.spans(small())["dur_ns"].tolist()
    pytest.importorskip("pyarrow")
    table = pd.read_parquet(export(small(), tmp_path / "x.parquet"))
    assert table["error_ns"].tolist() == frames.spans(small())["error_ns"].tolist() and (table["error_ns"] > 0).all()
    assert table["phase"].tolist() == frames.spans(small())["phase"].tolist()
    assert len(list(tmp_path.iterdir())) == 2


def test_unknown_formats_and_folders_are_clear_errors(tmp_path):
    with pytest.raises(ProfileError, match=r"did you mean '\.json'"):
        export(small(), tmp_path / "x.jsn")
    with pytest.raises(ProfileError, match="cannot write"):
        export(small(), tmp_path / "no" / "x.json")


def test_an_empty_recording_exports(tmp_path):
    profile = make(OPS, [[[], []]])
    for name in ("x.pftrace", "x.json", "x.csv"):
        export(profile, tmp_path / name)
