"""How far a profile can be trusted: records lost, clocks off, consumers that seem to start before their producers."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mpklab.frames import tables
from mpklab.frames.records import decode
from mpklab.profile import Profile

NEVER, ALWAYS = int(np.iinfo(np.int64).min), int(np.iinfo(np.int64).max)
MAX_CELLS = 1 << 28  # iterations × tasks of a grid
CELLS_PER_RUN, FEW_CELLS = 64, 1 << 20  # for each task that ran; as many are never too many
WHOLE = 0.75  # of what the typical iteration holds: an iteration with fewer is damage if it also lies apart


def grid(profile: Profile, columns: Sequence[str], rank: int | None = None) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns of `tasks` as i64[iteration, task], NEVER where a task did not run, or did not end; and the
    iterations of the rows.

    Iterations that are missing between others keep a row, so that lag 1 is one row up. Those that lie apart from all
    others, as damaged numbers do, have none; `health` counts their tasks as stray.
    """
    t = tables.tasks(profile)
    use, low, high = _placed(profile, t, rank)
    iteration, task = t["iteration"].to_numpy(), t["task"].to_numpy()
    out = {name: np.full((high - low, profile.n_tasks), NEVER, np.int64) for name in columns}
    for name, cells in out.items():
        some = use & ~t["truncated"].to_numpy() if name in ("end_ns", "signalled_ns", "done_ns") else use
        cells[iteration[some] - low, task[some]] = t[name].to_numpy()[some]
    return out, np.arange(low, high)


def _placed(profile: Profile, t: pd.DataFrame, rank: int | None) -> tuple[np.ndarray, int, int]:
    """Which rows of `tasks` have a place in a grid, and the iterations low … high - 1 that it spans."""
    iteration, task = t["iteration"].to_numpy(), t["task"].to_numpy()
    use = (task < profile.n_tasks) & (iteration >= 0)
    if rank is not None:
        use &= t["rank"].to_numpy() == rank
    if not use.any():
        return use, 0, 0
    numbers, counts = np.unique(iteration[use], return_counts=True)
    most = min(MAX_CELLS, CELLS_PER_RUN * int(counts.sum()) + FEW_CELLS) // profile.n_tasks
    low, high = _bulk(numbers.astype(np.int64), counts, max(1, most))
    return use & (iteration >= low) & (iteration < high), low, high


def _bulk(numbers: np.ndarray, counts: np.ndarray, most: int) -> tuple[int, int]:
    """The iterations low … high - 1, at most so many, among which those lie that hold most tasks.

    From the iteration of the task in the middle, both ways, as far as no gap is wider than there are iterations at all;
    but what lies beyond any gap counts only if some iteration there is nearly whole.
    """
    middle = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
    gaps = np.diff(numbers)
    wide = np.nonzero(gaps > numbers.size)[0]
    before = wide[wide < middle].max(initial=-1) + 1
    after = wide[wide >= middle].min(initial=numbers.size - 1)
    part = slice(before, after + 1)
    run = np.r_[0, np.cumsum(gaps > 1)][part]
    whole = run[counts[part] >= WHOLE * np.median(counts[part])]
    kept = numbers[part][(run >= whole.min()) & (run <= whole.max())]
    low, high = int(kept[0]), int(kept[-1]) + 1
    if high - low > most:
        low = max(low, min(int(numbers[middle]) - most // 2, high - most))
        high = low + most
    return low, high


def ranks(profile: Profile) -> list[int]:
    """The ranks that have lanes in a profile."""
    return np.unique(decode(profile).lanes.rank).tolist()


def range_max(values: np.ndarray, begin: np.ndarray, end: np.ndarray, empty: int = NEVER) -> np.ndarray:
    """The largest of values[..., begin:end] for each range; equal ranges are looked at once."""
    pairs, back = np.unique(np.stack([begin, end], 1), axis=0, return_inverse=True)
    some = pairs[:, 1] > pairs[:, 0]
    out = np.full((*values.shape[:-1], len(pairs)), empty, np.int64)
    if some.any():
        padded = np.concatenate([values, np.full((*values.shape[:-1], 1), empty, np.int64)], -1)
        out[..., some] = np.maximum.reduceat(padded, pairs[some].reshape(-1), axis=-1)[..., ::2]
    return out[..., back.reshape(-1)]


_causality: weakref.WeakKeyDictionary[Profile, tuple[pd.DataFrame, np.ndarray]] = weakref.WeakKeyDictionary()


def causality(profile: Profile) -> pd.DataFrame:
    """One row per edge set: does every consumer start after its producers began to signal?

    producer, consumer, tensor, kind, lag · edges: single edges looked at (both sides recorded) · violations: those whose
    consumer started first · worst_ns: by how much at most, 0 if none · slack_ns: the least time between signal and
    start. A start is the end of the consumer's waits, a signal the end of the producer's execution, or its begin where
    words are handed over one by one meanwhile: bounds that hold for any clock, so a violation means clocks that
    disagree, or a race.
    """
    return _check(profile)[0].copy(deep=False)


def _check(profile: Profile) -> tuple[pd.DataFrame, np.ndarray]:
    found = _causality.get(profile)
    if found is None:
        found = _causality[profile] = _causality_of(profile)
    return found


def _causality_of(profile: Profile) -> tuple[pd.DataFrame, np.ndarray]:
    out = tables.edges(profile).drop(columns=["tiles", "edges"])
    sums = np.zeros((len(profile.edges), 2), np.int64)
    least = np.full(len(profile.edges), ALWAYS)
    per_lane = np.zeros(profile.n_lanes, np.int64)
    for rank in ranks(profile):
        cells, _ = grid(profile, ("start_ns", "begin_ns", "signalled_ns", "worker"), rank)
        bad = np.zeros(cells["worker"].shape, bool)
        for i, edge in enumerate(profile.edges):
            signal = cells[signal_column(profile, edge)]
            edges, violations, gap = _check_edge(profile, edge, cells["start_ns"], signal, bad)
            sums[i] += edges, violations
            least[i] = min(least[i], gap)
        lane = cells["worker"][bad] + (rank * profile.n_workers if profile.n_ranks > 1 else 0)
        per_lane += np.bincount(lane * profile.lanes_per_worker, minlength=profile.n_lanes)
    out["edges"], out["violations"] = sums[:, 0], sums[:, 1]
    out["worst_ns"] = np.maximum(0, -least)
    out["slack_ns"] = np.where(least == ALWAYS, np.nan, least.astype(float))
    return out, per_lane


def signal_column(profile: Profile, edge: dict[str, Any]) -> str:
    """The column of `tasks` before which no consumer of an edge set can have started."""
    words = profile.operators[edge["producer"]].get("handoff") == "data"
    return "begin_ns" if words and edge["kind"] == "raw" else "signalled_ns"


def _check_edge(
    profile: Profile, edge: dict[str, Any], start: np.ndarray, signal: np.ndarray, bad: np.ndarray
) -> tuple[int, int, int]:
    """Edges looked at, those violated, and the least time between a signal and a start; marks consumers in `bad`."""
    first, lag = profile.task_first, edge["lag"]
    c = slice(int(first[edge["consumer"]]), int(first[edge["consumer"] + 1]))
    p = slice(int(first[edge["producer"]]), int(first[edge["producer"] + 1]))
    n = max(0, len(start) - lag)
    start, signal, bad = start[lag:, c][:n], signal[:n, p], bad[lag:, c][:n]
    begin, end = edge["begin"], edge["end"]
    begun = start != NEVER
    sent = np.concatenate([np.zeros((n, 1), np.int64), np.cumsum(signal != NEVER, 1)], 1)
    edges = int((sent[:, end] - sent[:, begin])[begun].sum())
    latest = range_max(signal, begin, end)
    checked = begun & (latest != NEVER)
    gap = np.where(checked, start - np.where(checked, latest, 0), ALWAYS)
    late = gap < 0
    bad |= late
    pairs = np.argwhere(late)[:100_000].tolist()
    violations = sum(int((signal[i, begin[j] : end[j]] > start[i, j]).sum()) for i, j in pairs)
    return edges, violations, int(gap.min(initial=ALWAYS))


def health(profile: Profile) -> pd.DataFrame:
    """One row per lane: what it kept and how well its clock fits.

    rank, worker, role, sm · valid: its header is one · written, kept, dropped: records · wrapped: a ring that turned ·
    unmatched_begins, unmatched_ends · unknown: records that name nothing known · backward: stamps earlier than the one
    before · stray: tasks whose iteration lies apart from all others, as a damaged number does: left out of what joins tasks
    by iteration · anchors: readings of the global timer · clock_hz: its mean · residual_ns: what the fit leaves at the
    anchors and may miss between them, the error bar of times compared across workers · residual_max_ns · aligned_ns:
    by how much `align` moved it · violations: tasks of this lane that started before a producer's signal (see
    `causality`)
    """
    d = decode(profile)
    lanes = d.lanes
    return pd.DataFrame(
        {
            "rank": lanes.rank,
            "worker": lanes.worker,
            "role": tables.category(lanes.role.astype(np.int8), tables.role_names(profile)),
            "sm": lanes.sm,
            "valid": lanes.valid,
            "written": lanes.written,
            "kept": lanes.kept,
            "dropped": lanes.dropped,
            "wrapped": lanes.wrapped,
            "unmatched_begins": lanes.unmatched_begins,
            "unmatched_ends": lanes.unmatched_ends,
            "unknown": lanes.unknown,
            "backward": lanes.backward,
            "stray": _stray(profile),
            "anchors": d.fit.anchors,
            "clock_hz": 1e9 / d.fit.ns_per_cycle,
            "residual_ns": d.fit.residual_ns,
            "residual_max_ns": d.fit.residual_max_ns,
            "aligned_ns": np.repeat(d.offsets, profile.lanes_per_worker),
            "violations": _check(profile)[1],
        }
    )


def _stray(profile: Profile) -> np.ndarray:
    """Per lane, tasks whose iteration has no row in the grid of their rank."""
    t = tables.tasks(profile)
    known = (t["task"].to_numpy() < profile.n_tasks) & (t["iteration"].to_numpy() >= 0)
    for rank in ranks(profile):
        known &= ~_placed(profile, t, rank)[0]
    return np.bincount(tables.lane_of(profile, t)[known], minlength=profile.n_lanes)


def residual(profile: Profile) -> float:
    """The error bar of a time compared between two workers, in ns: the typical lane's (`tables.lane_error`); 0 without
    anchors. What analyses state as `error_ns` is this, of one duration, unless they say otherwise."""
    rest = tables.lane_error(decode(profile))
    rest = rest[np.isfinite(rest)]
    return float(np.median(rest)) if rest.size else 0.0


def verdict(profile: Profile) -> str:
    """The health of a profile in a sentence or two."""
    h: Any = health(profile)
    c = causality(profile)
    kept, written = int(h["kept"].sum()), int(h["written"].sum())
    said = [f"{kept} of {written} records kept"]
    if kept < written:
        worst = h.loc[h["dropped"].idxmax()]
        said[0] += f" ({written - kept} dropped, most in worker {worst['worker']}'s {worst['role']} lane)"
    odd = {name: int(h[name].sum()) for name in ("unmatched_begins", "unmatched_ends", "unknown", "backward")}
    said += [f"{count} {name.replace('_', ' ')}" for name, count in odd.items() if count]
    if stray := int(h["stray"].sum()):
        said.append(f"{stray} stray tasks, whose iterations lie apart from all others")
    if np.isfinite(h["residual_ns"]).any():
        said.append(f"clocks agree to {residual(profile):.0f} ns")
    bad, checked = int(c["violations"].sum()), int(c["edges"].sum())
    if checked:
        said.append(f"{bad} of {checked} edges violate causality")
        if bad:
            worst, error = int(c["worst_ns"].max()), residual(profile)
            within = f", within the clocks' {error:.0f} ns" if worst <= error else ", more than the clocks explain"
            said[-1] += f", by at most {worst} ns{within}"
    return "; ".join(said)
