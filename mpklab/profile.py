"""`Profile`: what the lanes recorded, as raw bytes, and the tables that give them a meaning; `.mpkprof` files."""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mpklab import abi
from mpklab.env import whole_file
from mpklab.errors import ProfileError, suggest
from mpklab.presented import Presented

FORMAT = "mpkprof"
FORMAT_VERSION = 1
SUFFIX = ".mpkprof"
MAX_ENTRIES = 64  # files in one archive
MAX_BYTES = 2 << 30  # all entries together, unpacked
MAX_JSON_BYTES = 64 << 20  # one JSON entry

_I32, _U8, _F64 = np.dtype("<i4"), np.dtype("u1"), np.dtype("<f8")
_SCALARS = ("n_ranks", "n_workers", "lanes_per_worker", "lane_capacity", "level", "clock_hz")
_EDGE_KEYS = ("producer", "consumer", "tensor", "kind", "lag", "begin", "end")
# Columns a table must have, with type and shape of one row; what is missing gets the default.
_TASK_COLUMNS: dict[str, tuple[np.dtype[Any], tuple[int, ...], float]] = {
    "operator": (_I32, (), 0),
    "tile": (_I32, (4,), 0),
    "worker": (_I32, (), -1),
    "position": (_I32, (), -1),
    "bytes": (_F64, (), 0.0),
    "flops": (_F64, (), 0.0),
}


@dataclass(frozen=True, slots=True)
class Window:
    """Which iterations of a run are recorded: `skip` first ones are not, then `record` are (0: all that follow)."""

    skip: int = 0
    record: int = 0
    level: int = 2

    def __post_init__(self) -> None:
        for name in ("skip", "record", "level"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0 or value >= 1 << 31:
                raise ProfileError(f"Window({name}=…): expected a count from 0, found {value!r}")
        if self.level > 3:
            raise ProfileError(f"Window(level=…): expected a recording level from 0 to 3, found {self.level}")


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Profile(Presented):
    """Raw lanes and everything they refer to. All arrays are read-only; ids are indices into the tables below.

    lanes            uint8[n_ranks * n_workers * lanes_per_worker * (64 + 8 * lane_capacity)], as the device wrote it:
                     lane (rank * n_workers + worker) * lanes_per_worker + role is an `abi.LANE` header, then
                     lane_capacity `abi.RECORD`s
    level            recording level, 0 to 3
    clock_hz         nominal rate of the lane clocks; a fit from anchors replaces it wherever there are two anchors
    tasks            columns over task ids: operator i32, tile i32[n, 4], worker i32 (-1: decided at run time),
                     position i32 in the worker's queue (-1 likewise), bytes f64, flops f64
    waits            CSR over tasks: wait_begin i32[n_tasks + 1], wait_event i32, wait_lag u8,
                     wait_scope u8 (abi.Scope; may be left out: gpu)
    signals          CSR over tasks: signal_begin i32[n_tasks + 1], signal_event i32
    events           columns over events: need i32 (-1: known only at run time), producer_operator i32 (-1: several)
    operators        one dict per operator: name, op (its kind), layer (-1: none), and what else helps a reader;
                     handoff "data" where its outputs were handed over by their own words
    edges            edge sets: producer, consumer (operator indices), tensor (name), kind (raw, war, waw), lag (0, 1),
                     begin, end: per consumer tile the half-open range of producer tiles it depends on
    task_first       i32[n_operators + 1]: tasks of operator o are ids task_first[o] … task_first[o + 1]
    stamp            what it ran on (mpklab.stamp); meta: model, mode, policy, hashes, bandwidth_gbps …
    Raises ProfileError when sizes or indices do not fit together.
    """

    lanes: np.ndarray
    n_workers: int
    lanes_per_worker: int
    lane_capacity: int
    level: int
    clock_hz: float
    tasks: dict[str, np.ndarray]
    waits: dict[str, np.ndarray]
    signals: dict[str, np.ndarray]
    events: dict[str, np.ndarray]
    operators: list[dict[str, Any]]
    edges: list[dict[str, Any]]
    task_first: np.ndarray
    stamp: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    n_ranks: int = 1

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        for name, limit in (("n_ranks", 1 << 10), ("n_workers", 1 << 16), ("lanes_per_worker", 1 << 4)):
            put(name, _count(name, getattr(self, name), 1, limit))
        put("lane_capacity", _count("lane_capacity", self.lane_capacity, 0, 1 << 31))
        put("level", _count("level", self.level, 0, 3))
        hz = float(self.clock_hz)
        if not (math.isfinite(hz) and hz > 0):
            raise ProfileError(f"clock_hz: expected a positive rate, found {self.clock_hz!r}")
        put("clock_hz", hz)
        put("lanes", _lanes(self.lanes, self.n_lanes * self.lane_bytes))
        put("operators", [_operator(i, o) for i, o in enumerate(self.operators)])
        put("tasks", _columns("tasks", self.tasks, _TASK_COLUMNS))
        put("task_first", _array("task_first", self.task_first, _I32))
        n_tasks, n_ops = self.n_tasks, len(self.operators)
        first = self.task_first
        if len(first) != n_ops + 1 or (np.diff(first) < 0).any() or first[0] != 0 or first[-1] != n_tasks:
            raise ProfileError(
                f"task_first: expected {n_ops + 1} rising offsets from 0 to {n_tasks} tasks, found "
                f"{len(first)} from {first[:1].tolist()} to {first[-1:].tolist()}"
            )
        _range("tasks['operator']", self.tasks["operator"], 0, n_ops)
        _range("tasks['worker']", self.tasks["worker"], -1, self.n_workers)
        put("events", _columns("events", self.events, {"need": (_I32, (), -1), "producer_operator": (_I32, (), -1)}))
        _range("events['producer_operator']", self.events["producer_operator"], -1, n_ops)
        put("waits", _csr("wait", self.waits, n_tasks, self.n_events, {"wait_lag": _U8, "wait_scope": _U8}))
        put("signals", _csr("signal", self.signals, n_tasks, self.n_events, {}))
        put("edges", [_edge(i, e, self.task_first) for i, e in enumerate(self.edges)])
        put("stamp", dict(self.stamp))
        put("meta", dict(self.meta))

    @classmethod
    def from_parts(
        cls,
        lanes: np.ndarray,
        n_workers: int,
        lanes_per_worker: int = 1,
        *,
        level: int = 2,
        clock_hz: float = 1e9,
        operators: Sequence[Mapping[str, Any]] = (),
        tasks: Mapping[str, Any] | None = None,
        waits: Mapping[str, Any] | None = None,
        signals: Mapping[str, Any] | None = None,
        events: Mapping[str, Any] | None = None,
        edges: Iterable[Mapping[str, Any]] = (),
        n_ranks: int = 1,
        stamp: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Profile:
        """A profile from what is known: capacity and offsets are worked out, absent columns get defaults."""
        raw = np.ascontiguousarray(lanes).reshape(-1).view(np.uint8)
        each, rest = divmod(raw.size, max(1, n_ranks * n_workers * lanes_per_worker))
        if rest or each < abi.LANE.itemsize or (each - abi.LANE.itemsize) % abi.RECORD.itemsize:
            raise ProfileError(
                f"lanes: {raw.size} bytes do not divide into {n_ranks * n_workers * lanes_per_worker} lanes of a "
                f"{abi.LANE.itemsize}-byte header and {abi.RECORD.itemsize}-byte records"
            )
        table = dict(tasks or {})
        operator = np.asarray(table.get("operator", ()), _I32)
        ops = [dict(o) for o in operators] or [
            {"name": f"operator{i}", "op": "task", "layer": -1} for i in range(int(operator.max(initial=-1)) + 1)
        ]
        if (np.diff(operator) < 0).any():
            raise ProfileError("tasks['operator']: task ids must follow the order of operators")
        links = [dict(e) for e in edges]
        wait, signal, event = dict(waits or {}), dict(signals or {}), dict(events or {})
        if not event:
            ids = [np.asarray(t.get(k, ()), _I32) for t, k in ((wait, "wait_event"), (signal, "signal_event"))]
            n_events = max(int(a.max(initial=-1)) + 1 for a in ids)
            event = {"need": np.bincount(ids[1], minlength=n_events) if ids[1].size else np.full(n_events, -1)}
        return cls(
            lanes=raw,
            n_workers=n_workers,
            lanes_per_worker=lanes_per_worker,
            lane_capacity=(each - abi.LANE.itemsize) // abi.RECORD.itemsize,
            level=level,
            clock_hz=clock_hz,
            tasks=table,
            waits=wait,
            signals=signal,
            events=event,
            operators=ops,
            edges=links,
            task_first=np.searchsorted(operator, np.arange(len(ops) + 1)),
            stamp=dict(stamp or {}),
            meta=dict(meta or {}),
            n_ranks=n_ranks,
        )

    @property
    def n_lanes(self) -> int:
        return self.n_ranks * self.n_workers * self.lanes_per_worker

    @property
    def lane_bytes(self) -> int:
        return abi.LANE.itemsize + self.lane_capacity * abi.RECORD.itemsize

    @property
    def n_tasks(self) -> int:
        return len(self.tasks["operator"])

    @property
    def n_events(self) -> int:
        return len(self.events["need"])

    def headers(self) -> np.ndarray:
        """The lane headers, `abi.LANE`[n_lanes]; a copy."""
        rows = self.lanes.reshape(self.n_lanes, self.lane_bytes)
        return np.ascontiguousarray(rows[:, : abi.LANE.itemsize]).view(abi.LANE).reshape(-1)

    def records(self) -> np.ndarray:
        """The records of all lanes, `abi.RECORD`[n_lanes, lane_capacity]; what was never written is included."""
        rows = self.lanes.reshape(self.n_lanes, self.lane_bytes)
        return np.ascontiguousarray(rows[:, abi.LANE.itemsize :]).view(abi.RECORD).reshape(self.n_lanes, -1)

    def trimmed(self) -> Profile:
        """The same recording without the part of the lanes that was never written."""
        head = self.headers()
        if (head["wrapped"] != 0).any():
            return self
        capacity = int(np.minimum(head["written"], self.lane_capacity).max(initial=0))
        if capacity == self.lane_capacity:
            return self
        rows = self.lanes.reshape(self.n_lanes, self.lane_bytes)
        kept = np.ascontiguousarray(rows[:, : abi.LANE.itemsize + capacity * abi.RECORD.itemsize]).reshape(-1)
        return Profile(**{**_fields(self), "lanes": kept, "lane_capacity": capacity})

    def with_meta(self, **more: Any) -> Profile:
        """The same recording with other entries in `meta`."""
        return Profile(**{**_fields(self), "meta": {**self.meta, **more}})

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a `.mpkprof` file (the suffix is added if there is none) and return its path.

        A temporary file beside it is renamed when complete, so a reader never sees half of one.
        """
        target = Path(path)
        if not target.suffix:
            target = target.with_suffix(SUFFIX)
        try:
            with whole_file(target) as part, open(part, "wb") as f:
                _write(self.trimmed(), f)
        except OSError as e:
            raise ProfileError(f"cannot save the profile to {target}: {e.strerror or e}") from e
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Read a `.mpkprof` file. Raises ProfileError for anything that is not one; nothing in a file is executed."""
        try:
            with open(path, "rb") as f:
                return _read(f, str(path))
        except OSError as e:
            raise ProfileError(f"cannot open the profile {path}: {e.strerror or e}") from e

    def __repr__(self) -> str:
        head = self.headers()
        asked = int(head["written"].astype(np.int64).sum())
        kept = int(np.minimum(head["written"], self.lane_capacity).astype(np.int64).sum())
        lost = f", {asked - kept} dropped" if asked > kept else ""
        model = f"{self.meta['model']}, " if self.meta.get("model") else ""
        return (
            f"Profile({model}level {self.level}, {self.n_ranks * self.n_workers} workers, {self.n_tasks} tasks, "
            f"{len(self.operators)} operators, {kept} records{lost})"
        )


def recordings() -> list[str]:
    """Names of the recordings that come with mpklab."""
    return sorted(p.stem for folder in _recording_folders() for p in folder.glob(f"*{SUFFIX}"))


def recording(name: str) -> Profile:
    """One of the project's own recordings by name, from a checkout or an installed package; ProfileError names those known."""
    names = recordings()
    if name not in names:
        raise ProfileError(f"no recording is called {name!r}; {suggest(name, names) if names else 'none is installed'}")
    path = next(p for folder in _recording_folders() if (p := folder / f"{name}{SUFFIX}").is_file())
    return Profile.load(path)


def open_profile(name: str) -> Profile:
    """A `.mpkprof` file by its path, or one of the project's recordings by its name. ProfileError for neither."""
    if Path(name).exists() or name.endswith(SUFFIX):
        return Profile.load(name)
    known = recordings()
    if name in known:
        return recording(name)
    come = f"; recordings that come with mpklab: {', '.join(known)}" if known else ""
    raise ProfileError(f"{name!r} is neither a file nor a recording's name{come}")


def _recording_folders() -> list[Path]:
    package = Path(__file__).resolve().parent
    return [p for p in (package / "profiles", package.parent / "profiles") if p.is_dir()][:1]


def _fields(profile: Profile) -> dict[str, Any]:
    return {name: getattr(profile, name) for name in Profile.__dataclass_fields__}


def _count(name: str, value: Any, low: int, high: int) -> int:
    try:
        n = int(value)
    except (TypeError, ValueError, OverflowError):
        raise ProfileError(f"{name}: expected a whole number, found {value!r}") from None
    if not low <= n <= high or n != value:
        raise ProfileError(f"{name}: expected a whole number from {low} to {high}, found {value!r}")
    return n


def _array(name: str, value: Any, dtype: np.dtype[Any], row: tuple[int, ...] = ()) -> np.ndarray:
    """A read-only array of one dtype; values that the dtype cannot hold are refused, not wrapped."""
    try:
        found = np.asarray(value)
        if found.size == 0:
            found = found.astype(dtype).reshape(0, *row)
        if found.dtype.kind not in "iufb":
            raise ProfileError(f"{name}: expected numbers, found dtype {found.dtype}")
        if dtype.kind in "iu" and found.dtype != dtype:
            info = np.iinfo(dtype)
            if found.size and not (info.min <= found.min() and found.max() <= info.max):
                raise ProfileError(f"{name}: values must lie in {info.min} … {info.max}")
        out = np.ascontiguousarray(found, dtype)
    except (TypeError, ValueError, OverflowError) as e:
        raise ProfileError(f"{name}: expected an array of {dtype}, found {type(value).__name__} ({e})") from None
    if out.ndim != 1 + len(row) or out.shape[1:] != row:
        raise ProfileError(f"{name}: expected shape [n{''.join(f', {r}' for r in row)}], found {list(out.shape)}")
    if out.flags.writeable:
        out = out.copy() if out is value or np.shares_memory(out, found) else out
        out.flags.writeable = False
    return out


def _lanes(value: Any, size: int) -> np.ndarray:
    try:
        raw = np.ascontiguousarray(value).reshape(-1)
        raw = raw.view(np.uint8)
    except (TypeError, ValueError) as e:
        raise ProfileError(f"lanes: expected bytes, found {type(value).__name__} ({e})") from None
    if raw.size != size:
        raise ProfileError(f"lanes: expected {size} bytes for this number of lanes and records, found {raw.size}")
    if raw.flags.writeable:
        raw = raw.copy()  # the device's buffer is used again by the next run
        raw.flags.writeable = False
    return raw


def _columns(
    table: str, found: Mapping[str, Any], wanted: Mapping[str, tuple[np.dtype[Any], tuple[int, ...], float]]
) -> dict[str, np.ndarray]:
    unknown = set(found) - set(wanted)
    if unknown:
        word = sorted(map(str, unknown))[0]
        raise ProfileError(f"{table}: unknown column {word!r}; {suggest(word, wanted)}")
    out = {k: _array(f"{table}[{k!r}]", v, *wanted[k][:2]) for k, v in found.items()}
    sizes = {k: len(v) for k, v in out.items()}
    n = max(sizes.values(), default=0)
    if len(set(sizes.values())) > 1:
        raise ProfileError(f"{table}: columns differ in length: {sizes}")
    for name, (dtype, row, default) in wanted.items():
        if name not in out:
            out[name] = _array(f"{table}[{name!r}]", np.full((n, *row), default, dtype), dtype, row)
    return {name: out[name] for name in wanted}


def _csr(
    word: str, found: Mapping[str, Any], n_tasks: int, n_events: int, more: Mapping[str, np.dtype[Any]]
) -> dict[str, np.ndarray]:
    begin, event = f"{word}_begin", f"{word}_event"
    unknown = set(found) - {begin, event, *more}
    if unknown:
        name = sorted(map(str, unknown))[0]
        raise ProfileError(f"{word}s: unknown column {name!r}; {suggest(name, (begin, event, *more))}")
    out = {
        begin: _array(begin, found.get(begin, np.zeros(n_tasks + 1, _I32)), _I32),
        event: _array(event, found.get(event, ()), _I32),
    }
    n = len(out[event])
    for name, dtype in more.items():
        out[name] = _array(name, found.get(name, np.zeros(n, dtype)), dtype)
        if len(out[name]) != n:
            raise ProfileError(f"{name}: expected {n} entries as in {event}, found {len(out[name])}")
    first = out[begin]
    if len(first) != n_tasks + 1 or first[0] != 0 or first[-1] != n or (np.diff(first) < 0).any():
        raise ProfileError(f"{begin}: expected {n_tasks + 1} rising offsets from 0 to {n}, found {len(first)}")
    _range(event, out[event], 0, n_events)
    return out


def _range(name: str, values: np.ndarray, low: int, high: int) -> None:
    if values.size and not (low <= values.min() and values.max() < high):
        raise ProfileError(f"{name}: expected indices in {low} … {high - 1}, found {values.min()} … {values.max()}")


def _operator(i: int, found: Any) -> dict[str, Any]:
    if not isinstance(found, Mapping) or not isinstance(found.get("name"), str):
        raise ProfileError(f"operators[{i}]: expected a dict with a name, found {found!r:.80}")
    layer = found.get("layer", -1)
    if layer is None:
        layer = -1
    return {**found, "op": str(found.get("op", "task")), "layer": _count(f"operators[{i}]['layer']", layer, -1, 32767)}


def _edge(i: int, found: Any, task_first: np.ndarray) -> dict[str, Any]:
    where = f"edges[{i}]"
    if not isinstance(found, Mapping) or not set(_EDGE_KEYS) <= set(found):
        raise ProfileError(f"{where}: expected {', '.join(_EDGE_KEYS)}, found {found!r:.80}")
    n_ops = len(task_first) - 1
    producer = _count(f"{where} producer", found["producer"], 0, n_ops - 1)
    consumer = _count(f"{where} consumer", found["consumer"], 0, n_ops - 1)
    tiles = [int(task_first[o + 1] - task_first[o]) for o in (producer, consumer)]
    begin, end = (_array(f"{where} {k}", found[k], _I32) for k in ("begin", "end"))
    if len(begin) != tiles[1] or len(end) != tiles[1]:
        raise ProfileError(
            f"{where}: expected one range per consumer tile ({tiles[1]}), found {len(begin)}, {len(end)}"
        )
    if len(begin) and not (begin.min() >= 0 and (begin <= end).all() and end.max() <= tiles[0]):
        raise ProfileError(f"{where}: ranges must lie within the producer's {tiles[0]} tiles")
    return {
        "producer": producer,
        "consumer": consumer,
        "tensor": str(found["tensor"]),
        "kind": str(found["kind"]),
        "lag": _count(f"{where} lag", found["lag"], 0, 1),
        "begin": begin,
        "end": end,
    }


def _plain(value: Any) -> Any:
    """What json cannot say by itself: NumPy scalars and arrays, paths, enums."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)


def _write(profile: Profile, f: BinaryIO) -> None:
    about = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "abi": abi.VERSION,
        "phases": {p.name: int(p) for p in abi.Phase},
        "kinds": {k.name: int(k) for k in abi.Kind},
        "roles": {r.name: int(r) for r in abi.Role},
    }
    edges = profile.edges
    texts: dict[str, Any] = {
        "about": about,
        "profile": {name: getattr(profile, name) for name in _SCALARS},
        "operators": profile.operators,
        "edges": [{k: e[k] for k in _EDGE_KEYS[:5]} for e in edges],
        "stamp": profile.stamp,
        "meta": profile.meta,
    }
    none = np.zeros(0, _I32)
    arrays: dict[str, np.ndarray] = {"lanes": profile.lanes, "task_first": profile.task_first}
    for table in ("tasks", "waits", "signals", "events"):
        arrays |= {f"{table}.{k}": v for k, v in getattr(profile, table).items()}
    for k in ("begin", "end"):
        arrays[f"edges.{k}"] = np.concatenate([none, *(e[k] for e in edges)])
    with zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED, compresslevel=5) as z:
        for name, value in texts.items():
            z.writestr(_entry(f"{name}.json"), json.dumps(value, default=_plain, indent=1))
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
            z.writestr(_entry(f"{name}.npy"), buffer.getbuffer())


def _entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)  # a fixed date: equal profiles give equal files
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def _read(f: BinaryIO, where: str) -> Profile:
    try:
        with zipfile.ZipFile(f) as z:
            entries = _entries(z, where)
            about = _json(entries, "about", dict, where)
            if about.get("format") != FORMAT:
                raise ProfileError(f"{where}: not an mpklab profile: its format is {about.get('format')!r:.40}")
            if about.get("version") != FORMAT_VERSION or about.get("abi") != abi.VERSION:
                raise ProfileError(
                    f"{where}: written as version {about.get('version')!r:.20} with record layout "
                    f"{about.get('abi')!r:.20}; this mpklab reads version {FORMAT_VERSION} with layout {abi.VERSION}"
                )
            return _assemble(entries, where)
    except ProfileError:
        raise
    except Exception as e:  # zipfile, zlib and numpy raise a dozen types for damaged input
        raise ProfileError(f"{where}: not a readable {SUFFIX} file: {type(e).__name__}: {e!s:.200}") from e


def _entries(z: zipfile.ZipFile, where: str) -> dict[str, bytes]:
    infos = z.infolist()
    if len(infos) > MAX_ENTRIES:
        raise ProfileError(f"{where}: {len(infos)} entries, expected at most {MAX_ENTRIES}")
    if sum(i.file_size for i in infos) > MAX_BYTES:
        raise ProfileError(f"{where}: unpacks to more than {MAX_BYTES >> 20} MiB")
    out: dict[str, bytes] = {}
    for info in infos:
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.filename in out:
            raise ProfileError(f"{where}: entry {info.filename!r:.60} is doubled or packed in an unknown way")
        if info.filename.endswith(".json") and info.file_size > MAX_JSON_BYTES:
            raise ProfileError(f"{where}: entry {info.filename!r:.60} is larger than {MAX_JSON_BYTES >> 20} MiB")
        out[info.filename] = z.read(info)
    return out


def _json(entries: Mapping[str, bytes], name: str, kind: type, where: str) -> Any:
    value = json.loads(_take(entries, f"{name}.json", where))
    if not isinstance(value, kind):
        raise ProfileError(f"{where}: {name}.json: expected a {kind.__name__}, found a {type(value).__name__}")
    return value


def _take(entries: Mapping[str, bytes], name: str, where: str) -> bytes:
    if name not in entries:
        raise ProfileError(f"{where}: not a complete profile: {name} is missing")
    return entries[name]


def _npy(entries: Mapping[str, bytes], name: str, where: str) -> np.ndarray:
    data = io.BytesIO(_take(entries, f"{name}.npy", where))
    np_format = np.lib.format
    if np_format.read_magic(data) != (1, 0):
        raise ProfileError(f"{where}: {name}.npy: expected npy version 1.0")
    shape, fortran, dtype = np_format.read_array_header_1_0(data, max_header_size=1000)
    if fortran or dtype.kind not in "iuf" or dtype.hasobject:
        raise ProfileError(f"{where}: {name}.npy: expected plain numbers in C order, found {dtype!s:.40}")
    rest = data.getbuffer()[data.tell() :]
    if any(s < 0 for s in shape) or math.prod(shape) * dtype.itemsize != len(rest):
        raise ProfileError(f"{where}: {name}.npy: shape {shape!s:.60} does not fit its {len(rest)} bytes")
    return np.frombuffer(rest, dtype).reshape(shape)


def _assemble(entries: Mapping[str, bytes], where: str) -> Profile:
    scalars = _json(entries, "profile", dict, where)
    tables: dict[str, dict[str, np.ndarray]] = {}
    for table in ("tasks", "waits", "signals", "events"):
        names = [n[len(table) + 1 : -4] for n in entries if n.startswith(f"{table}.") and n.endswith(".npy")]
        tables[table] = {n: _npy(entries, f"{table}.{n}", where) for n in names}
    task_first = _npy(entries, "task_first", where)
    edges, at = [], 0
    begin, end = _npy(entries, "edges.begin", where), _npy(entries, "edges.end", where)
    for e in _json(entries, "edges", list, where):
        consumer = _count("edge's consumer", e["consumer"], 0, len(task_first) - 2)
        n = int(task_first[consumer + 1]) - int(task_first[consumer])
        edges.append({**e, "begin": begin[at : at + n], "end": end[at : at + n]})
        at += n
    parts: dict[str, Any] = {
        "lanes": _npy(entries, "lanes", where),
        "operators": _json(entries, "operators", list, where),
        "edges": edges,
        "task_first": task_first,
        "stamp": _json(entries, "stamp", dict, where),
        "meta": _json(entries, "meta", dict, where),
        **tables,
        **{k: scalars[k] for k in _SCALARS},
    }
    return Profile(**parts)
