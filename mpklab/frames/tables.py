"""The tables that plots and analyses read: spans, tasks, events, workers, operators and edges of a profile."""

from __future__ import annotations

import re
import weakref
from typing import Any

import numpy as np
import pandas as pd

from mpklab import abi
from mpklab.errors import ProfileError, suggest
from mpklab.frames import accuracy, records
from mpklab.frames.records import Decoded, decode
from mpklab.profile import Profile

LAYER = re.compile(r"^(layers?|blocks?)?[._]?\d+[._]")
ROLES = tuple(r.name for r in abi.Role)


def spans(profile: Profile) -> pd.DataFrame:
    """One row per recorded interval, ordered by lane, then by begin.

    rank, worker u16 · sm i32 (-1 unknown) · role, phase category · iteration i32 (-1 unknown) · task i32 (-1 none) ·
    op category (operator name) · kind category (operator kind) · layer i16 (-1 none) · event i32 (-1 none) · begin_ns,
    end_ns i64 since the profile's first stamp · dur_ns i64 · error_ns f32: error bar of dur_ns, both of whose stamps are
    of one clock (`accuracy.error`; NaN without anchors); times of two lanes compare to `health`'s residual_ns of both ·
    truncated (its end was not recorded)
    """
    d = decode(profile)
    lanes = d.lanes
    columns: dict[str, Any] = {
        "rank": lanes.rank.astype(np.uint16)[d.lane],
        "worker": lanes.worker.astype(np.uint16)[d.lane],
        "sm": lanes.sm[d.lane],
        "role": category(lanes.role.astype(np.int8)[d.lane], role_names(profile)),
        "phase": category(d.phase.astype(np.int8) - 1, records.PHASES),
        "iteration": d.iteration,
        "task": d.task,
        **operator_columns(profile, d.task),
        "event": d.event,
        "begin_ns": d.begin_ns,
        "end_ns": d.end_ns,
        "dur_ns": d.end_ns - d.begin_ns,
        "error_ns": accuracy.error(profile, d.lane, d.end_ns - d.begin_ns).astype(np.float32),
        "truncated": d.truncated,
    }
    return pd.DataFrame(columns, copy=False)


_tasks: weakref.WeakKeyDictionary[Profile, pd.DataFrame] = weakref.WeakKeyDictionary()


def tasks(profile: Profile) -> pd.DataFrame:
    """One row per task that ran, per iteration; ordered by begin.

    iteration, task i32 · op, kind category · layer i16 · tile0 … tile3 i32 (meaning fixed by the operator) · rank,
    worker u16 · wait_ns: waits for events, together · begin_ns, end_ns, dur_ns: the operator itself (`execute`) ·
    bytes moved, flops done (f64, as the operator declares) · fetch_ns, gather_ns, signal_ns: the other phases ·
    issue_ns: the worker took the task up; start_ns: its waits were over; signalled_ns: its execution was over and its
    signals began; done_ns: they were out. Below level 2 issue = start = begin and signalled = done = end.
    truncated: it was still running when the record ends · error_ns f32: error bar of dur_ns (`accuracy.error`); that of a
    time against another worker's is `lane_error`. Times in ns since the profile's first stamp.
    """
    found = _tasks.get(profile)
    if found is None:
        found = _tasks[profile] = _task_table(profile, decode(profile))
    return found.copy(deep=False)


def _task_table(profile: Profile, d: Decoded) -> pd.DataFrame:
    compute = d.lanes.role[d.lane] == records.COMPUTE
    at = np.nonzero((d.phase == records.EXECUTE) & compute & (d.task >= 0))[0]
    at = at[np.argsort(d.begin_ns[at], kind="stable")]
    flat = np.nonzero(compute & (d.depth == 0) & (d.chain >= 0))[0]
    dur = d.end_ns - d.begin_ns
    # A unit is what one task does in one go: neighbours of one chain that belong to the same task.
    new = np.r_[True, (d.chain[flat[1:]] != d.chain[flat[:-1]]) | (d.task[flat[1:]] != d.task[flat[:-1]])]
    unit = np.cumsum(new) if flat.size else np.zeros(0, np.int64)
    n_units = int(unit.max(initial=0)) + 1
    unit_of = np.zeros(d.phase.size, np.int64)  # unit 0: none
    unit_of[flat] = unit
    mine = unit_of[at]

    def total(phase: int) -> np.ndarray:
        some = flat[d.phase[flat] == phase]
        out: np.ndarray = np.bincount(unit_of[some], weights=dur[some], minlength=n_units)
        return np.where(mine > 0, out[mine], 0).astype(np.int64)

    issue = np.full(n_units, np.iinfo(np.int64).max)
    done = np.full(n_units, np.iinfo(np.int64).min)
    start = np.full(n_units, np.iinfo(np.int64).max)
    np.minimum.at(issue, unit, d.begin_ns[flat])
    np.maximum.at(done, unit, d.end_ns[flat])
    begun = flat[(d.phase[flat] == records.EXECUTE) | (d.phase[flat] == records.GATHER)]
    np.minimum.at(start, unit_of[begun], d.begin_ns[begun])
    task = d.task[at]
    known = task < profile.n_tasks
    safe = np.where(known, task, 0)
    has = profile.n_tasks > 0
    columns: dict[str, Any] = {
        "iteration": d.iteration[at],
        "task": task,
        **operator_columns(profile, task),
        **{f"tile{i}": profile.tasks["tile"][safe, i] if has else np.zeros(at.size, np.int32) for i in range(4)},
        "rank": d.lanes.rank.astype(np.uint16)[d.lane[at]],
        "worker": d.lanes.worker.astype(np.uint16)[d.lane[at]],
        "wait_ns": total(records.WAIT),
        "begin_ns": d.begin_ns[at],
        "end_ns": d.end_ns[at],
        "dur_ns": dur[at],
        "bytes": profile.tasks["bytes"][safe] if has else np.zeros(at.size),
        "flops": profile.tasks["flops"][safe] if has else np.zeros(at.size),
        "fetch_ns": total(records.FETCH),
        "gather_ns": total(records.GATHER),
        "signal_ns": total(records.SIGNAL),
        "issue_ns": np.minimum(issue[mine], d.begin_ns[at]),
        "start_ns": np.minimum(start[mine], d.begin_ns[at]),
        "signalled_ns": d.end_ns[at],
        "done_ns": np.maximum(done[mine], d.end_ns[at]),
        "truncated": d.truncated[at],
        "error_ns": accuracy.error(profile, d.lane[at], dur[at]).astype(np.float32),
    }
    return pd.DataFrame(columns, copy=False)


def lane_error(d: Decoded) -> np.ndarray:
    """Per lane, the error bar of the time between two stamps of such lanes, in ns (NaN without anchors): the root of the
    sum of two residuals squared. Between stamps of the same lane it is less: see `accuracy.error`."""
    out: np.ndarray = np.sqrt(2) * d.fit.residual_ns
    return out


def events(profile: Profile) -> pd.DataFrame:
    """One row per event and iteration in which it was signalled.

    iteration, event i32 · op category (the operator that signals it; none: several) · need i32 (-1: run time) ·
    signals: how many were recorded · first_ns, happened_ns: first and last of them · last_task: who sent the last ·
    waiters: tasks that wait for it · error_ns: error bar of the time from first_ns to happened_ns, which two workers'
    clocks may have told (`accuracy.error`)
    """
    t = tasks(profile)
    begin, event = profile.signals["signal_begin"], profile.signals["signal_event"]
    known = t["task"].to_numpy() < profile.n_tasks
    rows = np.nonzero(known)[0] if event.size else np.zeros(0, np.int64)
    task = t["task"].to_numpy()[rows]
    counts = (begin[task + 1] - begin[task]) if rows.size else np.zeros(0, np.int64)
    row = np.repeat(rows, counts)
    which = event[ranges(begin[task], counts)] if rows.size else np.zeros(0, np.int32)
    frame = pd.DataFrame(
        {
            "iteration": t["iteration"].to_numpy()[row],
            "event": which,
            "time": t["signalled_ns"].to_numpy()[row],
            "task": t["task"].to_numpy()[row],
            "lane": lane_of(profile, t)[row],
        }
    ).sort_values("time", kind="stable")
    grouped = frame.groupby(["iteration", "event"], sort=True)
    out = grouped.agg(
        signals=("time", "size"),
        first_ns=("time", "min"),
        happened_ns=("time", "max"),
        last_task=("task", "last"),
        lane=("lane", "first"),
        other=("lane", "last"),
    ).reset_index()
    ids = out["event"].to_numpy(np.int64)
    waiters = np.bincount(profile.waits["wait_event"], minlength=profile.n_events)
    names, codes = _names([str(o["name"]) for o in profile.operators])
    producer = profile.events["producer_operator"][ids]
    op = np.where(producer >= 0, codes[producer] if codes.size else -1, -1)
    out = out.astype({"iteration": np.int32, "event": np.int32, "last_task": np.int32})
    out["op"] = category(op.astype(np.int32), names)
    out["need"] = profile.events["need"][ids]
    out["waiters"] = waiters[ids].astype(np.int64)
    ns, lane, other = (out[name].to_numpy(np.int64) for name in ("happened_ns", "lane", "other"))
    out["error_ns"] = accuracy.error(profile, lane, ns - out["first_ns"].to_numpy(np.int64), other)
    columns = [
        "iteration",
        "event",
        "op",
        "need",
        "signals",
        "first_ns",
        "happened_ns",
        "last_task",
        "waiters",
        "error_ns",
    ]
    return out[columns]


def lane_of(profile: Profile, t: pd.DataFrame) -> np.ndarray:
    """The compute lane of each row of `tasks`."""
    rank = t["rank"].to_numpy(np.int64) if profile.n_ranks > 1 else 0
    lane: np.ndarray = (rank * profile.n_workers + t["worker"].to_numpy(np.int64)) * profile.lanes_per_worker
    return lane + records.COMPUTE


def workers(profile: Profile) -> pd.DataFrame:
    """One row per worker: rank, worker, sm (-1 unknown), tasks run, first_ns and last_ns of its compute lane, execute_ns,
    wait_ns and step_ns (waiting for the next iteration) together, records kept and dropped over its lanes; error_ns: error
    bar of the three sums together, and so more than that of each: of its parts in squares (`accuracy.summed`)."""
    d = decode(profile)
    lanes = d.lanes
    n = lanes.rank.size
    compute = lanes.role == records.COMPUTE
    dur = (d.end_ns - d.begin_ns).astype(np.float64)

    def total(phase: int) -> np.ndarray:
        some = (d.phase == phase) & (d.depth == 0)
        out: np.ndarray = np.bincount(d.lane[some], weights=dur[some], minlength=n)
        return out.astype(np.int64)

    part = np.nonzero(np.isin(d.phase, (records.EXECUTE, records.WAIT, records.STEP)) & (d.depth == 0))[0]
    lane = d.lane[part]
    error_ns = accuracy.summed(profile, accuracy.error(profile, lane, dur[part]), lane, lane, n)
    first = np.full(n, np.iinfo(np.int64).max)
    np.minimum.at(first, d.lane, d.begin_ns)
    used = np.bincount(d.lane, minlength=n) > 0
    per_worker = (
        lanes.kept.reshape(-1, profile.lanes_per_worker).sum(1),
        lanes.dropped.reshape(-1, profile.lanes_per_worker).sum(1),
    )
    return pd.DataFrame(
        {
            "rank": lanes.rank[compute].astype(np.uint16),
            "worker": lanes.worker[compute].astype(np.uint16),
            "sm": lanes.sm[compute],
            "tasks": np.bincount(d.lane[d.phase == records.EXECUTE], minlength=n)[compute],
            "first_ns": np.where(used, first, 0)[compute],
            "last_ns": lanes.last_ns[compute],
            "execute_ns": total(records.EXECUTE)[compute],
            "wait_ns": total(records.WAIT)[compute],
            "step_ns": total(records.STEP)[compute],
            "kept": per_worker[0],
            "dropped": per_worker[1],
            "error_ns": error_ns[compute],
        }
    )


def operators(profile: Profile) -> pd.DataFrame:
    """One row per operator of the graph: op (name), kind, layer, tiles (its tasks), bytes and flops of all its tasks per
    iteration, runs recorded, and median_ns, total_ns of their execution; error_ns: error bar of total_ns, where runs
    at one time by SMs of one clock are off alike and others independently (`accuracy.summed`); median_error_ns: that of the
    typical run, which their median does not exceed."""
    t = tasks(profile)
    n = len(profile.operators)
    known = t["task"].to_numpy() < profile.n_tasks
    operator = profile.tasks["operator"][t["task"].to_numpy()[known]] if profile.n_tasks else np.zeros(0, np.int32)
    dur, error_ns = t["dur_ns"].to_numpy()[known], t["error_ns"].to_numpy(float)[known]
    medians = pd.DataFrame({"dur": dur, "error": error_ns}).groupby(operator).median().reindex(range(n))
    return pd.DataFrame(
        {
            "op": [str(o["name"]) for o in profile.operators],
            "kind": pd.Categorical([o["op"] for o in profile.operators]),
            "layer": np.array([o["layer"] for o in profile.operators], np.int16),
            "tiles": np.diff(profile.task_first),
            "bytes": np.bincount(profile.tasks["operator"], weights=profile.tasks["bytes"], minlength=n),
            "flops": np.bincount(profile.tasks["operator"], weights=profile.tasks["flops"], minlength=n),
            "runs": np.bincount(operator, minlength=n),
            "median_ns": medians["dur"].to_numpy(float),
            "total_ns": np.bincount(operator, weights=dur, minlength=n).astype(np.int64),
            "median_error_ns": medians["error"].to_numpy(float),
            "error_ns": accuracy.summed(profile, error_ns, operator, lane_of(profile, t)[known], n),
        }
    )


def edges(profile: Profile) -> pd.DataFrame:
    """One row per edge set: producer, consumer (operator names), tensor, kind (raw, war, waw), lag (0: this iteration,
    1: the one before), tiles: consumer tiles it binds, edges: single edges it stands for."""
    names = [str(o["name"]) for o in profile.operators]
    return pd.DataFrame(
        {
            "producer": pd.Categorical([names[e["producer"]] for e in profile.edges]),
            "consumer": pd.Categorical([names[e["consumer"]] for e in profile.edges]),
            "tensor": [e["tensor"] for e in profile.edges],
            "kind": pd.Categorical([e["kind"] for e in profile.edges]),
            "lag": np.array([e["lag"] for e in profile.edges], np.int8),
            "tiles": np.array([np.count_nonzero(e["end"] > e["begin"]) for e in profile.edges], np.int64),
            "edges": np.array([(e["end"] - e["begin"]).sum() for e in profile.edges], np.int64),
        }
    )


def query(profile: Profile, expression: str, table: str = "spans") -> pd.DataFrame:
    """The rows of a table (spans, tasks, events, workers, operators, edges) for which a pandas expression holds;
    ProfileError for one that pandas cannot read or that names no column."""
    made = {
        "spans": spans,
        "tasks": tasks,
        "events": events,
        "workers": workers,
        "operators": operators,
        "edges": edges,
    }
    if table not in made:
        raise ProfileError(f"query: no table is called {table!r}; {suggest(table, made)}")
    found = made[table](profile)
    try:
        return found.query(expression)
    except (NameError, SyntaxError, TypeError, ValueError) as error:
        raise ProfileError(f"query: {error}; the columns of {table} are {', '.join(found.columns)}") from error


def ranges(begin: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The indices begin[i] … begin[i] + counts[i] of all i, one after the other."""
    total = int(counts.sum())
    if not total:
        return np.zeros(0, np.int64)
    offset = np.repeat(begin - np.r_[0, np.cumsum(counts)[:-1]], counts)
    return np.arange(total) + offset


def family(name: str) -> str:
    """An operator's name without its layer: layer3.qkv_proj and layer4.qkv_proj are one family."""
    return LAYER.sub("", name)


def role_names(profile: Profile) -> tuple[str, ...]:
    return ROLES + tuple(f"role{i}" for i in range(len(ROLES), profile.lanes_per_worker))


def category(codes: np.ndarray, names: tuple[str, ...] | list[str]) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, categories=pd.Index(names, dtype=object))


def _names(found: list[str]) -> tuple[list[str], np.ndarray]:
    """Distinct names in order, and for each given name its place among them."""
    place: dict[str, int] = {}
    codes = np.array([place.setdefault(name, len(place)) for name in found], np.int32)
    return list(place), codes


def operator_columns(profile: Profile, task: np.ndarray) -> dict[str, Any]:
    """op, kind and layer of tasks; none for -1 and for ids beyond the table."""
    ops = profile.operators
    out: dict[str, Any] = {}
    n_tasks = profile.n_tasks
    operator = np.append(profile.tasks["operator"], np.int32(-1))  # the last entry answers for -1
    which = operator[np.where(task < n_tasks, task, -1)]
    for column, key in (("op", "name"), ("kind", "op")):
        names, codes = _names([str(o[key]) for o in ops])
        table = np.append(codes, -1)
        small = np.int8 if len(names) < 127 else np.int16 if len(names) < 32767 else np.int32
        out[column] = category(table.astype(small)[which], names)
    out["layer"] = np.append(np.array([o["layer"] for o in ops], np.int16), np.int16(-1))[which]
    return out
