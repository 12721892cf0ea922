"""Clocks held to the edges: where consumers seem to start too early by no more than the clocks' error, shift workers.

An edge from worker a to worker b says x_b - x_a >= signal - start for the shifts x: a system of difference constraints,
solved by shortest paths. Larger violations are left out of it and stand as violations.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from mpklab.frames.checks import ALWAYS, NEVER, grid, ranks, residual, signal_column
from mpklab.frames.records import OFFSETS, decode
from mpklab.frames.tables import ranges
from mpklab.profile import Profile

MAX_EDGES = 30_000_000  # single edges looked at; beyond this, iterations are left out evenly


def align(profile: Profile, limit_ns: float | None = None) -> Profile:
    """The profile with its workers' clocks shifted so that no edge is violated that was violated by `limit_ns` or less
    (default: the clocks' own error); the very same profile where nothing is, or where no such shifts exist.

    What was shifted stands in `meta["clock_offsets_ns"]`, by worker, and in the table that `alignment` gives.
    """
    table = alignment(profile, limit_ns)
    shift = table["offset_ns"].to_numpy()
    if not shift.any():
        return profile
    before = decode(profile).offsets
    return profile.with_meta(**{OFFSETS: (before + np.rint(shift).astype(np.int64)).tolist()})


def alignment(profile: Profile, limit_ns: float | None = None) -> pd.DataFrame:
    """The shifts that `align` makes, one row per worker: rank, worker, offset_ns · low_ns, high_ns: the smallest and the
    largest shift of this worker that the edges allow while no other worker moves (infinite without edges)."""
    limit = residual(profile) if limit_ns is None else float(limit_ns)
    workers = profile.n_workers
    n = profile.n_ranks * workers
    offset, low, high = np.zeros(n), np.full(n, -np.inf), np.full(n, np.inf)
    own = ranks(profile)
    for rank in own:
        base = rank * workers if profile.n_ranks > 1 else 0
        slack = _slack(profile, rank)
        part = slice(base, base + workers)
        high[part] = np.minimum(high[part], slack.min(1, initial=np.inf))
        low[part] = np.maximum(low[part], -slack.min(0, initial=np.inf))
        offset[part] = _shifts(np.where(slack < -limit, np.inf, slack), limit)
    index = np.arange(n)
    rank_of = index // workers if profile.n_ranks > 1 else np.full(n, own[0] if own else 0)
    return pd.DataFrame(
        {
            "rank": rank_of.astype(np.uint16),
            "worker": (index % workers).astype(np.uint16),
            "offset_ns": offset,
            "low_ns": low,
            "high_ns": high,
        }
    )


def _slack(profile: Profile, rank: int) -> np.ndarray:
    """[a, b]: the least time between a signal on worker a and the start of its consumer on worker b; inf without one."""
    n = profile.n_workers
    least = np.full(n * n, ALWAYS)
    cells, iterations = grid(profile, ("start_ns", "begin_ns", "signalled_ns", "worker"), rank)
    start, worker = cells["start_ns"], cells["worker"]
    single = sum(int((e["end"] - e["begin"]).sum()) for e in profile.edges)
    skip = max(1, -(-single * max(1, iterations.size) // MAX_EDGES))
    for e in profile.edges:
        counts = (e["end"] - e["begin"]).astype(np.int64)
        producer = ranges(e["begin"].astype(np.int64), counts) + profile.task_first[e["producer"]]
        consumer = np.repeat(np.arange(counts.size) + profile.task_first[e["consumer"]], counts)
        signal = cells[signal_column(profile, e)]
        for i in range(e["lag"], iterations.size, skip):
            sent, begun = signal[i - e["lag"], producer], start[i, consumer]
            both = (sent != NEVER) & (begun != NEVER)
            a, b = worker[i - e["lag"], producer[both]], worker[i, consumer[both]]
            np.minimum.at(least, a * n + b, begun[both] - sent[both])
    out = np.where(least == ALWAYS, np.inf, least.astype(float)).reshape(n, n)
    np.fill_diagonal(out, np.inf)
    return out


def _shifts(slack: np.ndarray, limit: float) -> np.ndarray:
    """x with x_a <= x_b + slack[a, b], in the middle of what is possible; zeros if there is none within the limit."""
    n = len(slack)
    if not (slack < 0).any():
        return np.zeros(n)
    upper, lower = np.zeros(n), np.zeros(n)
    for _ in range(n + 1):
        up = np.minimum(upper, (upper[None, :] + slack).min(1))
        down = np.maximum(lower, (lower[:, None] - slack).max(0))
        if (up == upper).all() and (down == lower).all():
            middle = np.ceil((upper + lower) / 2)  # whole ns keep what they satisfy: all slacks are whole
            return middle if np.abs(middle).max() <= limit else np.zeros(n)
        upper, lower = up, down
    return np.zeros(n)  # a circle of edges that no clock could satisfy
