"""`fit_costs`: the simulator's cost model from a measured profile, so that what one run showed predicts another."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mpklab import abi, frames, recipe
from mpklab.errors import MpkError, ProfileError
from mpklab.profile import Profile
from mpklab.simulator import Costs, KindCost, Program, flavour

F64 = npt.NDArray[np.float64]
LONG_AGO_NS = 10_000  # an event that happened so long ago has been seen, if nothing is known of the machine
MIN_WAITS = 5  # fewer say nothing of a hand-off
SPREAD = 1.5  # sizes of a kind must differ by this factor for its overhead and rate to be told apart


def fit_costs(profile: Profile, skip: int = 1) -> Costs:
    """Overhead and rate of each operator kind, and the latency of each kind of hand-off, as medians over a profile.

    The first `skip` iterations are left out where there are more. What a profile does not show (a kind of hand-off that
    nobody waited for, pushes of a static run) stays as the machine's figures say. Needs level 2 for hand-offs; with
    level 1 those stay too. Where a loader runs ahead, the tasks that it can hold show a worker's own rate, and the
    bandwidth stays the machine's. ProfileError when no task of the profile ended.
    """
    table = frames.tasks(profile)
    table = table[~table["truncated"]]
    first = table["iteration"].min()
    if table["iteration"].nunique() > skip:
        table = table[table["iteration"] >= first + skip]
    if table.empty:
        raise ProfileError("no task of this profile ended, so there is nothing to fit costs to")
    base = _base(profile)
    kinds, rate = _kinds(table.assign(flavour=_flavours(profile, table)), base, profile.n_workers)
    costs = replace(
        base,
        kinds=kinds,
        default=KindCost(ns_per_byte=1 / rate if rate else 0.0),
        fetch_ns=float(table["fetch_ns"].median()) + _gap(table),
        signal_ns=float(table["signal_ns"].median()),
        source=f"fitted to {len(table)} tasks of {profile.meta.get('graph', 'a profile')}",
    )
    if rate and not base.ring_bytes:
        costs = costs.replaced(worker_bandwidth=rate * 1e9, bandwidth=rate * 1e9 * _together(table))
    return _with_latencies(costs, profile, table) if profile.level >= 2 else costs


def _flavours(profile: Profile, table: pd.DataFrame) -> pd.Series:
    """Each task's `simulator.flavour`, as far as the profile's recipe tells; else its kind."""
    names = {str(o["name"]): str(o["op"]) for o in profile.operators}
    with contextlib.suppress(MpkError):  # kinds do where there is no recipe
        names |= {o.name: flavour(o) for o in recipe.schedule_of(profile).tasks.operators}
    return table["op"].astype(str).map(names)


def _base(profile: Profile) -> Costs:
    """What the machine's figures say."""
    machine = recipe.machine_of(profile)
    return Costs.of(machine, profile.meta[recipe.KEY]["plan"]["settings"]) if machine else Costs()


def _kinds(table: pd.DataFrame, base: Costs, workers: int) -> tuple[dict[str, KindCost], float]:
    """Costs by kind and by flavour, and the best rate in bytes per ns at which one worker streams."""
    points = table.groupby(["kind", "flavour", "bytes"], observed=True).agg(
        dur=("dur_ns", "median"), gather=("gather_ns", "median"), n=("dur_ns", "size")
    )
    points = points.reset_index()
    rates: dict[str, float] = {}  # ns per byte, of kinds that have tasks of several sizes
    for kind, rows in points.groupby("kind", observed=True):
        small = rows[rows["bytes"] <= base.ring_bytes]
        for some in (small, rows):
            size = some["bytes"].to_numpy(float)
            if len(size) and size.min() > 0 and size.max() >= SPREAD * size.min():
                rates[str(kind)] = _line(size, some["dur"].to_numpy(float), some["n"].to_numpy(float))[1]
                break
    known = [slope for slope in rates.values() if slope > 0]
    best = 1 / min(known) if known else float((points["bytes"] / points["dur"].clip(lower=1)).max())
    spreads = _spreads(table)
    made: dict[str, KindCost] = {}
    for by in ("kind", "flavour"):
        for name, rows in points.groupby(by, observed=True):
            size, dur, n = (rows[c].to_numpy(float) for c in ("bytes", "dur", "n"))
            # One size says nothing of the split; what the best rate does not explain counts as overhead.
            own = float(np.median(dur / np.maximum(size, 1)))
            slope = rates.get(str(rows["kind"].iloc[0]), min(own, 1 / best) if best else 0.0)
            # What a ring cannot hold comes at the bandwidth's pace, which the simulator adds by itself.
            pace = np.where(size > base.ring_bytes, 1e9 / base.rate(workers), 0.0) if base.ring_bytes else 0.0
            made[str(name)] = KindCost(
                overhead_ns=max(0.0, _median(dur - np.maximum(slope, pace) * size, n)),
                ns_per_byte=slope,
                gather_ns=_median(rows["gather"].to_numpy(float), n),
                spread=spreads[str(rows["kind"].iloc[0])],
            )
    return made, best


def _spreads(table: pd.DataFrame) -> dict[str, float]:
    """By kind, how far durations of equal tasks scatter: the middle half's logarithms, as if they were normal."""
    typical = table.groupby(["flavour", "bytes"], observed=True)["dur_ns"].transform("median").clip(lower=1)
    scatter = pd.Series(np.log(table["dur_ns"].clip(lower=1) / typical)).groupby(table["kind"].astype(str))
    wide = (scatter.quantile(0.75) - scatter.quantile(0.25)) / 1.349
    return {str(kind): float(value) for kind, value in wide.items()}


def _line(x: F64, y: F64, weight: F64) -> tuple[float, float]:
    """Overhead and slope through medians (Theil and Sen), neither of them negative."""
    i, j = np.triu_indices(len(x), 1)
    some = x[i] != x[j]
    i, j = i[some], j[some]
    slope = max(0.0, _median((y[j] - y[i]) / (x[j] - x[i]), np.abs(x[j] - x[i]) * np.sqrt(weight[i] * weight[j])))
    overhead = _median(y - slope * x, weight)
    if overhead < 0:
        return 0.0, _median(y / x, weight * x)
    return overhead, slope


def _median(values: F64, weight: F64) -> float:
    """The weighted median."""
    order = np.argsort(values)
    total = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def _gap(table: pd.DataFrame) -> float:
    """What a worker does between two tasks beside recorded phases."""
    rows = table.sort_values(["rank", "worker", "issue_ns"])
    gap = rows["issue_ns"].to_numpy()[1:] - rows["done_ns"].to_numpy()[:-1]
    same = (
        rows[["rank", "worker", "iteration"]].to_numpy()[1:] == rows[["rank", "worker", "iteration"]].to_numpy()[:-1]
    ).all(1)
    return float(np.median(gap[same].clip(0))) if same.any() else 0.0


def _together(table: pd.DataFrame) -> int:
    """How many workers were seen streaming at once for more than a tenth of the time that any did.

    Those that move at least a tenth of the largest task's bytes count. The fitted rates hold for so many.
    """
    heavy = table[table["bytes"] >= table["bytes"].max() / 10]
    times = np.concatenate([heavy["begin_ns"].to_numpy(), heavy["end_ns"].to_numpy()])
    order = np.argsort(times, kind="stable")
    active = np.cumsum(np.where(order < len(heavy), 1, -1))[:-1]
    at_level = np.bincount(np.maximum(active, 0), weights=np.diff(times[order]))
    at_level[0] = 0
    at_least = at_level[::-1].cumsum()[::-1]
    return max(1, int(np.flatnonzero(at_least >= at_level.sum() / 10)[-1]))


def _with_latencies(costs: Costs, profile: Profile, table: pd.DataFrame) -> Costs:
    """Hand-offs from waits that outlasted their event, polls from waits that found it over."""
    spans = frames.spans(profile)
    spans = spans[~spans["truncated"] & (spans["iteration"] >= int(table["iteration"].min()))]
    program = Program.of_profile(profile)
    cells, iterations = frames.grid(profile, ("done_ns",))
    done = cells["done_ns"]
    waits = spans[(spans["phase"] == "wait") & (spans["task"] >= 0) & (spans["event"] >= 0)]
    row = waits["iteration"].to_numpy(np.int64) - (int(iterations[0]) if iterations.size else 0)
    lag, kind = _waits_of(program, waits["task"].to_numpy(np.int64), waits["event"].to_numpy(np.int64))
    from_row = row - lag
    happened = _happened(program, done)
    known = (lag >= 0) & (from_row >= 0) & (from_row < len(done))
    when = np.where(known, happened[np.where(known, from_row, 0), waits["event"].to_numpy()], frames.NEVER)
    begin, end = waits["begin_ns"].to_numpy(), waits["end_ns"].to_numpy()
    known &= when != frames.NEVER
    changes: dict[str, Any] = {"handoff_ns": {}}
    dur = end - begin
    known &= kind != int(abi.Handoff.worker)  # nothing is handed over
    long_ago = 4 * costs.handoff_ns.get("counter", LONG_AGO_NS / 4)
    over = known & (begin - when > long_ago)
    if over.any():
        changes["wait_ns"] = float(np.median(dur[over]))
    looked = changes.get("wait_ns", costs.wait_ns)
    for h in (abi.Handoff.counter, abi.Handoff.data):
        mine = known & (kind == int(h)) & (end >= when)
        some = mine & (begin < when)
        if some.sum() < MIN_WAITS:  # all come at the same moment: those that begin right after it tell as much
            some = mine & (begin < when + long_ago / 4) & (dur > 2 * looked)
        if some.sum() >= MIN_WAITS:
            changes["handoff_ns"][h.name] = float(np.median((end - when)[some]))
    steps = spans[spans["phase"] == "step"]
    if program.step_task >= 0 and len(steps):
        before = steps["iteration"].to_numpy(np.int64) - int(iterations[0]) - 1
        opened = np.where(before >= 0, done[np.maximum(before, 0), program.step_task], frames.NEVER)
        begin, end = steps["begin_ns"].to_numpy(), steps["end_ns"].to_numpy()
        some = (opened != frames.NEVER) & (begin < opened) & (end >= opened)
        if some.any():
            changes["step_ns"] = float(np.median((end - opened)[some]))
    pops = spans.loc[spans["phase"] == "pop", "dur_ns"]
    if len(pops):
        changes["pop_ns"] = float(pops.quantile(0.1))  # most of a pop is waiting for something to pop
    return costs.replaced(**changes)


def _happened(program: Program, done: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """When each event's last signal was out, i64[iteration, event]."""
    out = np.full((len(done), len(program.need)), frames.NEVER, np.int64)
    signaller = np.repeat(np.arange(program.n_tasks), np.diff(program.signal_first))
    for i, row in enumerate(done):
        np.maximum.at(out[i], program.signal_event, row[signaller])
    return out


def _waits_of(
    program: Program, task: npt.NDArray[np.int64], event: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Lag and hand-off kind of the wait that each (task, event) stands for; -1 where there is none."""
    events = max(1, len(program.need))
    owner = np.repeat(np.arange(program.n_tasks), np.diff(program.wait_first))
    keys = owner * events + program.wait_event
    order = np.argsort(keys, kind="stable")
    wanted = task * events + event
    if not keys.size:
        return np.full(task.shape, -1), np.full(task.shape, -1)
    at = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), keys.size - 1)]
    found = keys[at] == wanted
    return np.where(found, program.wait_lag[at], -1), np.where(found, program.handoff[at].astype(np.int64), -1)
