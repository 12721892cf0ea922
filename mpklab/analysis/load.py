"""How the machine was filled: workers busy over time, what ran at the same time as what, and who had more to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mpklab import abi, recipe
from mpklab.analysis.intervals import apart, binned
from mpklab.errors import MpkError, ProfileError, suggest
from mpklab.frames import decode, records, spans, tasks
from mpklab.frames.tables import lane_of
from mpklab.profile import Profile
from mpklab.simulator import Costs, traffic

SHOWN = ("execute", "gather", "fetch", "signal", "wait", "step", "pop", "push")
COMMUNICATION = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send", "receive")
FEW_WORKERS = 16  # so few are each held against the others, more against all


def utilisation(profile: Profile, bins: int = 200) -> pd.DataFrame:
    """How many workers did what, over time: begin_ns, end_ns of each bin; then the mean number of workers in execute,
    gather, fetch, signal, wait, step, pop, push (phases of compute lanes) and in none of them (`other`); busy: the share
    of workers in execute or gather; gbps, tflops: bytes and flops of the tasks that ran, spread evenly over their time,
    bytes over that in which they could move (`moving`)."""
    edges = bin_edges(profile, bins)
    d = decode(profile)
    flat = (d.lanes.role[d.lane] == records.COMPUTE) & (d.depth == 0) & (d.chain >= 0)
    width = np.diff(edges)
    safe = np.where(width > 0, width, 1)
    out: dict[str, Any] = {"begin_ns": edges[:-1], "end_ns": edges[1:]}
    total = np.zeros(width.size)
    for name in SHOWN:
        some = flat & (d.phase == int(abi.Phase[name]))
        out[name] = binned(d.begin_ns[some], d.end_ns[some], edges) / safe
        total += out[name]
    workers = profile.n_ranks * profile.n_workers
    out["other"] = np.maximum(0, workers - total)
    out["busy"] = (out["execute"] + out["gather"]) / workers
    out |= _rates(profile, edges)
    return pd.DataFrame(out)


def bin_edges(profile: Profile, bins: int) -> np.ndarray:
    """Edges of equal bins over the recording."""
    if bins < 1 or bins > 1_000_000:
        raise ProfileError(f"bins: expected 1 to 1000000, found {bins}")
    d = decode(profile)
    compute = d.lanes.role[d.lane] == records.COMPUTE
    low, high = (d.begin_ns[compute].min(), d.end_ns[compute].max()) if compute.any() else (0, 1)
    return np.linspace(float(low), float(max(high, low + 1)), bins + 1)


def _rates(profile: Profile, edges: np.ndarray) -> dict[str, np.ndarray]:
    t = tasks(profile)
    begin, end = t["begin_ns"].to_numpy(), np.maximum(t["end_ns"].to_numpy(), t["begin_ns"].to_numpy() + 1)
    moved = moving(profile, t)
    width = np.diff(edges)
    safe = np.where(width > 0, width, 1)
    return {
        "gbps": binned(moved, end, edges, t["bytes"].to_numpy() / (end - moved)) / safe,
        "tflops": binned(begin, end, edges, t["flops"].to_numpy() / (end - begin)) / safe / 1e3,
    }


def moving(profile: Profile, t: pd.DataFrame) -> np.ndarray:
    """From when on the bytes of each row of `tasks` could move, in ns: until its end, they did.

    Where nothing is loaded ahead, as on a CPU, since the execution began. A GPU's loader brings weights while their task
    still waits for its inputs, so a rate over the execution alone could be beyond what memory gives. What a worker's
    loader brings comes one task after the other: a task's share of that time begins with the end of the worker's task
    before (of the first, with its lane's first record). Some bytes come sooner still, as far as pages are free, but as
    much of this task's time goes to the task behind it. For which tasks a loader brings most bytes is the recipe's to
    say; for all, where it no longer fits.
    """
    begin = t["begin_ns"].to_numpy()
    loaded = _loaded(profile)
    if not loaded.any() or not len(t):
        return begin
    d = decode(profile)
    first = np.full(profile.n_lanes, np.iinfo(np.int64).max)
    np.minimum.at(first, d.lane, d.begin_ns)
    lane = lane_of(profile, t)
    order = np.argsort(lane, kind="stable")  # rows come by begin
    same = np.r_[False, lane[order[1:]] == lane[order[:-1]]]
    since = np.empty_like(begin)
    since[order] = np.where(same, np.r_[0, t["end_ns"].to_numpy()[order[:-1]]], first[lane[order]])
    task = t["task"].to_numpy()
    mine = (task < profile.n_tasks) & loaded[np.where(task < profile.n_tasks, task, 0)]
    return np.where(mine, np.minimum(since, begin), begin)


def _loaded(profile: Profile) -> np.ndarray:
    """bool[n_tasks]: a loader runs ahead for this task, and most of its bytes from memory are those that it brings."""
    none = np.zeros(profile.n_tasks, bool)
    try:
        if not Costs.of_profile(profile).ring_bytes:
            return none
    except MpkError:  # a damaged recipe
        return none
    try:
        weights, state = traffic(recipe.schedule_of(profile).tasks)
    except MpkError:
        return ~none
    return np.asarray(weights > state)


def overlap(
    profile: Profile,
    a: str | Mapping[str, Any] | None = None,
    b: str | Mapping[str, Any] | None = None,
    within: str = "worker",
) -> pd.DataFrame:
    """How much of the time of `a` is also time of `b`.

    A selection is a phase, an operator kind or an operator's name, or a mapping of columns of `spans` to a value or a
    list of values. `within="worker"` compares a worker with itself (does its loader work while it computes?),
    "device" compares all workers together (does any worker …?).
    a, b, within · a_ns, b_ns: time of each, overlapping parts counted once per worker (or once per device) · both_ns ·
    a_covered, b_covered: both over each. Without selections: loading against executing, communication against
    computation, and each operator kind against each other on the device, where there are any.
    """
    s = spans(profile)
    if a is not None and b is not None:
        pairs = [(a, b, within)]
    elif a is None and b is None:
        pairs = _pairs(s)
    else:
        raise ProfileError("overlap: expected two selections or none")
    rows = []
    for x, y, where in pairs:
        if where not in ("worker", "device"):
            raise ProfileError(f"overlap(within={where!r}): {suggest(where, ('worker', 'device'))}")
        first, second = (_union(s[_mask(s, sel)], where == "worker") for sel in (x, y))
        both = first.common(second)
        rows.append((_say(x), _say(y), where, first.length, second.length, both))
    out = pd.DataFrame(rows, columns=["a", "b", "within", "a_ns", "b_ns", "both_ns"])
    out["a_covered"] = out["both_ns"] / out["a_ns"].where(out["a_ns"] > 0)
    out["b_covered"] = out["both_ns"] / out["b_ns"].where(out["b_ns"] > 0)
    return out


def _pairs(s: pd.DataFrame) -> list[tuple[Any, Any, str]]:
    pairs: list[tuple[Any, Any, str]] = []
    phases = set(s["phase"].unique())
    if "load" in phases:
        pairs.append(("load", "execute", "worker"))
    kinds = sorted(str(k) for k in s.loc[s["phase"] == "execute", "kind"].dropna().unique())
    talk = [k for k in kinds if k in COMMUNICATION]
    if talk:
        rest = [k for k in kinds if k not in COMMUNICATION]
        pairs.append(({"phase": "execute", "kind": talk}, {"phase": "execute", "kind": rest}, "device"))
    pairs += [(x, y, "device") for i, x in enumerate(kinds) for y in kinds[i + 1 :]]
    return pairs


def _union(s: pd.DataFrame, per_worker: bool) -> Any:
    lane = s["rank"].to_numpy(np.int64)
    if per_worker:
        lane = lane << 16 | s["worker"].to_numpy(np.int64)
    return apart(np.unique(lane, return_inverse=True)[1], s["begin_ns"].to_numpy(), s["end_ns"].to_numpy())


def _mask(s: pd.DataFrame, selection: str | Mapping[str, Any]) -> np.ndarray:
    if isinstance(selection, str):
        if selection in records.PHASES:
            return np.asarray(s["phase"] == selection)
        for column in ("kind", "op"):
            if selection in s[column].cat.categories:
                return np.asarray((s[column] == selection) & (s["phase"] == "execute"))
        known = [*records.PHASES, *s["kind"].cat.categories, *s["op"].cat.categories]
        raise ProfileError(f"overlap: nothing is called {selection!r}; {suggest(selection, map(str, known))}")
    mask = np.ones(len(s), bool)
    for column, value in selection.items():
        if column not in s.columns:
            raise ProfileError(f"overlap: spans have no column {column!r}; {suggest(column, map(str, s.columns))}")
        values = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
        mask &= np.asarray(s[column].isin(values))
    return mask


def _say(selection: str | Mapping[str, Any]) -> str:
    if isinstance(selection, str):
        return selection
    return " & ".join(f"{k}={v if isinstance(v, str) else '|'.join(map(str, v))}" for k, v in selection.items())


def imbalance(profile: Profile, by: str = "op") -> pd.DataFrame:
    """How evenly work lay, one row per operator ("op") or worker ("worker"), over all recorded iterations.

    By operator: op, kind, layer, tiles and workers per iteration · mean_ns, max_ns: a tile's execution · ratio: largest
    over mean of the time per worker that took part · tail_ns: from the moment half of its tiles had ended to the last ·
    lost_ns: workers × (largest − mean) per iteration, what evenness would have saved at most. Medians over iterations.
    By worker: rank, worker, tasks, execute_ns, share (of the mean worker's), slowdown: how many times as long as on the
    other workers its tiles take, byte for byte: the median over its time, so that a single long one does not make it.
    """
    t = tasks(profile)
    if by == "worker":
        return _by_worker(t)
    if by != "op":
        raise ProfileError(f"imbalance(by={by!r}): {suggest(by, ('op', 'worker'))}")
    operator = _operator_of(profile, t)
    frame = pd.DataFrame(
        {
            "operator": operator,
            "iteration": t["iteration"].to_numpy(),
            "who": t["rank"].to_numpy(np.int64) << 16 | t["worker"].to_numpy(np.int64),
            "dur": t["dur_ns"].to_numpy(),
            "end": t["end_ns"].to_numpy(),
        }
    )[operator >= 0]
    keys = ["operator", "iteration"]
    per_worker = frame.groupby([*keys, "who"])["dur"].sum().groupby(keys)
    groups = frame.groupby(keys)
    each = pd.DataFrame(
        {
            "tiles": groups.size(),
            "workers": per_worker.size(),
            "mean_ns": groups["dur"].mean(),
            "max_ns": groups["dur"].max(),
            "largest": per_worker.max(),
            "mean": per_worker.mean(),
            "tail_ns": groups["end"].max() - groups["end"].median(),
        }
    )
    each["ratio"] = each["largest"] / each["mean"].where(each["mean"] > 0)
    each["lost_ns"] = (each["largest"] - each["mean"]) * each["workers"]
    out = each.groupby("operator").median().drop(columns=["largest", "mean"]).reset_index()
    index = out.pop("operator").to_numpy(np.int64)
    ops = profile.operators
    out.insert(0, "op", [str(ops[i]["name"]) for i in index])
    out.insert(1, "kind", [str(ops[i]["op"]) for i in index])
    out.insert(2, "layer", [int(ops[i]["layer"]) for i in index])
    return out.sort_values("lost_ns", ascending=False, kind="stable", ignore_index=True)


def _operator_of(profile: Profile, t: pd.DataFrame) -> np.ndarray:
    task = t["task"].to_numpy()
    operator = np.append(profile.tasks["operator"], np.int32(-1))
    return np.asarray(operator[np.where(task < profile.n_tasks, task, -1)])


def _by_worker(t: pd.DataFrame) -> pd.DataFrame:
    size = t["bytes"].where(t["bytes"] > 0, 1.0)
    who = t["rank"].astype(np.int64) * (1 << 16) + t["worker"]
    op = t["op"].cat.codes
    pace = (t["dur_ns"] / size).groupby([op, who]).median().unstack()
    others = pace.to_numpy(float)
    if 1 < others.shape[1] <= FEW_WORKERS:  # of few, each is a large part of the median that it is held against
        others = np.stack([_median_of(np.delete(others, i, 1)) for i in range(others.shape[1])], 1)
    else:
        others = np.repeat(_median_of(others)[:, None], others.shape[1], 1)
    typical = others[pace.index.get_indexer(pd.Index(op)), pace.columns.get_indexer(pd.Index(who))]
    frame = pd.DataFrame(
        {"rank": t["rank"], "worker": t["worker"], "execute_ns": t["dur_ns"], "expected": typical * size}
    )
    keys = ["rank", "worker"]
    out = frame.groupby(keys).agg(tasks=("execute_ns", "size"), execute_ns=("execute_ns", "sum")).reset_index()
    out["share"] = out["execute_ns"] / out["execute_ns"].mean()
    known = frame[frame["expected"] > 0]
    known = known.assign(times=known["execute_ns"] / known["expected"]).sort_values("times")
    part = known.groupby(keys)["expected"].cumsum() / known.groupby(keys)["expected"].transform("sum")
    slowdown = known[part >= 0.5].groupby(keys)["times"].first()
    out["slowdown"] = slowdown.reindex(pd.MultiIndex.from_frame(out[keys])).to_numpy()
    return out.sort_values("slowdown", ascending=False, kind="stable", ignore_index=True)


def _median_of(values: np.ndarray) -> np.ndarray:
    """Row medians; NaN for rows without a value."""
    out = np.full(len(values), np.nan)
    some = ~np.isnan(values).all(1) if values.shape[1] else np.zeros(len(values), bool)
    out[some] = np.nanmedian(values[some], 1)
    return out
