"""Profiles: what is saved is what is loaded, and nothing but a profile is."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lanes import Span, encode

from mpklab import abi, stamp
from mpklab.errors import ProfileError
from mpklab.profile import Profile, Window


def small(**more) -> Profile:
    made = [Span(w, 0, "execute", w, 10 * i, 10 * i + 5) for w in range(2) for i in range(5)]
    parts = {
        "operators": [{"name": "a", "op": "linear", "layer": 0}, {"name": "b", "op": "add", "layer": None}],
        "tasks": {
            "operator": [0, 0, 1],
            "tile": np.arange(12).reshape(3, 4),
            "worker": [0, 1, 0],
            "bytes": [1, 2, 3.5],
        },
        "waits": {"wait_begin": [0, 0, 0, 1], "wait_event": [0], "wait_lag": [1]},
        "signals": {"signal_begin": [0, 1, 2, 2], "signal_event": [0, 0]},
        "edges": [
            {"producer": 0, "consumer": 1, "tensor": "x", "kind": "raw", "lag": 0, "begin": [0], "end": [2]},
            {"producer": 1, "consumer": 0, "tensor": "y", "kind": "war", "lag": 1, "begin": [0, 0], "end": [1, 0]},
        ],
        "stamp": {"created": "now", "n": np.int64(3)},
        "meta": {"model": "tiny <script>", "bandwidth_gbps": np.float32(2.5)},
    }
    return Profile.from_parts(encode(made, 2, capacity=30), 2, **{**parts, **more})


def same(a: Profile, b: Profile) -> None:
    for name in ("n_workers", "lanes_per_worker", "level", "clock_hz", "operators", "n_ranks"):
        assert getattr(a, name) == getattr(b, name), name
    for name in ("tasks", "waits", "signals", "events"):
        for column, values in getattr(a, name).items():
            found = getattr(b, name)[column]
            assert found.dtype == values.dtype and np.array_equal(found, values), (name, column)
    for x, y in zip(a.edges, b.edges, strict=True):
        assert {k: v for k, v in x.items() if k not in ("begin", "end")} == {
            k: v for k, v in y.items() if k not in ("begin", "end")
        }
        assert np.array_equal(x["begin"], y["begin"]) and np.array_equal(x["end"], y["end"])


def test_a_saved_profile_is_the_same_profile(tmp_path):
    profile = small()
    path = profile.save(tmp_path / "one")
    assert path.name == "one.mpkprof" and [p.name for p in tmp_path.iterdir()] == ["one.mpkprof"]
    loaded = Profile.load(path)
    same(profile, loaded)
    assert loaded.lane_capacity == 10  # what was never written is not kept
    assert np.array_equal(loaded.headers(), profile.headers())
    assert np.array_equal(loaded.records(), profile.records()[:, :10])
    assert loaded.stamp == {"created": "now", "n": 3} and loaded.meta["bandwidth_gbps"] == 2.5
    again = loaded.save(tmp_path / "two.mpkprof")
    assert again.read_bytes() == path.read_bytes()


def test_a_profile_cannot_be_changed_and_does_not_follow_the_buffer():
    lanes = encode([Span(0, 0, "execute", 0, 0, 5)], 1).copy()
    profile = Profile.from_parts(lanes, 1, tasks={"operator": [0]})
    lanes[:] = 0
    assert profile.headers()["magic"][0] == abi.LANE_MAGIC
    with pytest.raises(ValueError):
        profile.lanes[0] = 1
    with pytest.raises(AttributeError):
        profile.level = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tasks": {"operator": [0, 0, 9]}}, "task_first"),
        ({"tasks": {"operator": [0, 0, 1], "worker": [0, 5, 0]}}, "worker"),
        ({"tasks": {"operator": [0, 1, 0]}}, "order of operators"),
        ({"tasks": {"operator": [0, 0, 1], "byte": [0, 0, 0]}}, "did you mean 'bytes'"),
        ({"waits": {"wait_begin": [0, 0, 2], "wait_event": [0]}}, "wait_begin"),
        ({"events": {"need": [1, 1]}, "signals": {"signal_begin": [0, 1, 1, 1], "signal_event": [7]}}, "signal_event"),
        ({"edges": [{"producer": 0}]}, "edges"),
        ({"clock_hz": 0.0}, "clock_hz"),
        ({"level": 7}, "level"),
        ({"n_workers": 3}, "divide"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, words):
    with pytest.raises(ProfileError, match=words):
        if "n_workers" in change:
            Profile.from_parts(small().lanes, **change)
        else:
            small(**change)


def test_windows_are_checked():
    assert Window(skip=20, record=8).level == 2
    for bad in ({"level": 4}, {"skip": -1}, {"record": 1.5}):
        with pytest.raises(ProfileError):
            Window(**bad)


def test_a_missing_or_foreign_file_is_one_clear_error(tmp_path):
    with pytest.raises(ProfileError, match="cannot open"):
        Profile.load(tmp_path / "none.mpkprof")
    for name, data in (("text", b"hello"), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ProfileError, match="not a readable"):
            Profile.load(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "foreign.zip", "w") as z:
        z.writestr("about.json", json.dumps({"format": "something"}))
    with pytest.raises(ProfileError, match="not an mpklab profile"):
        Profile.load(tmp_path / "foreign.zip")
    with pytest.raises(ProfileError, match="cannot save"):
        small().save(tmp_path / "no" / "folder.mpkprof")


def repacked(tmp_path, change) -> Profile:
    path = small().save(tmp_path / "x.mpkprof")
    with zipfile.ZipFile(path) as z:
        entries = {name: z.read(name) for name in z.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in entries.items():
            z.writestr(name, data)
    return Profile.load(path)


def npy(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("about.json", b'{"format": "mpkprof", "version": 99, "abi": 1}', "version 99"),
        ("tasks.operator.npy", npy(np.array([object()]), allow_pickle=True), "plain numbers"),
        ("tasks.operator.npy", npy(np.zeros(3, np.int32)).replace(b"(3,)", b"(9,)"), "does not fit"),
        ("tasks.operator.npy", npy(np.zeros(3, np.int32)).replace(b"(3,)", b"(x,)"), "not a readable"),
        ("profile.json", b"[" * 100_000, "not a readable"),
        ("profile.json", b"{}", "not a readable"),
        ("edges.json", b'[{"consumer": 99}]', "consumer"),
        ("lanes.npy", npy(np.zeros(10, np.uint8)), "lanes"),
        ("operators.json", b"[1, 2]", "operators"),
        ("stamp.json", b"3", "expected a dict"),
    ],
)
def test_damaged_entries_are_refused(tmp_path, name, data, words):
    with pytest.raises(ProfileError, match=words):
        repacked(tmp_path, lambda entries: entries.update({name: data}))


def test_missing_entries_and_too_many_are_refused(tmp_path):
    with pytest.raises(ProfileError, match="is missing"):
        repacked(tmp_path, lambda entries: entries.pop("lanes.npy"))
    with pytest.raises(ProfileError, match="entries"):
        repacked(tmp_path, lambda entries: entries.update({f"x{i}": b"" for i in range(100)}))


def test_what_would_not_fit_into_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mpklab.profile.MAX_BYTES", 1000)
    with pytest.raises(ProfileError, match="unpacks to more"):
        Profile.load(small().save(tmp_path / "x.mpkprof"))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_files_never_do_anything_else_than_say_so(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    path = small().save(folder / "x.mpkprof")
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    with contextlib.suppress(ProfileError):
        Profile.load(path)


def test_a_stamp_says_what_it_ran_on_and_not_whose():
    found = json.dumps(stamp.collect(device={"name": "cpu"}, hashes={"graph": "abc"}, seed=3))
    import getpass
    import socket

    assert '"seed": 3' in found and '"numpy"' in found
    for private in (socket.gethostname(), getpass.getuser()):
        assert f'"{private}"' not in found
