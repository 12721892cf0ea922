"""A roofline without counters: bytes and flops that operators declare, over the time that was measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mpklab.analysis.intervals import Union
from mpklab.analysis.limits import positive
from mpklab.analysis.load import moving, utilisation
from mpklab.errors import ProfileError, suggest
from mpklab.frames import tasks
from mpklab.profile import Profile


def roofline(
    profile: Profile,
    by: str = "op",
    bandwidth_gbps: float | None = None,
    peak_tflops: float | None = None,
    bins: int = 200,
) -> pd.DataFrame:
    """Rates reached, one row per operator ("op"), operator kind ("kind") or bin of time ("time").

    op or kind · tasks: runs recorded · bytes, flops: of all of them · busy_ns: their time together · span_ns: that of at
    least one of them · gbps, tflops: over span_ns, so what the device reached · worker_gbps: over busy_ns, so what one
    worker reached · intensity: flops per byte · share: of the bandwidth or of the peak, whichever it is nearer to; NaN
    without either · limit: "bytes" or "flops" accordingly. By time: begin_ns, end_ns, gbps, tflops, share.

    A task's time is its execution. Where a loader brings its weights before that, as on a GPU, it begins with the end of
    the task before on the same worker, waits included, for its bytes could move since then (`mpklab.analysis.load.moving`
    has the reasons); over its execution alone, rates could be beyond the hardware's.
    """
    bandwidth = positive(bandwidth_gbps, profile.meta.get("bandwidth_gbps"))
    peak = positive(peak_tflops, profile.meta.get("peak_tflops"))
    if by == "time":
        out = utilisation(profile, bins)[["begin_ns", "end_ns", "gbps", "tflops"]]
        return _shares(out, bandwidth * profile.n_ranks, peak * profile.n_ranks)
    if by not in ("op", "kind"):
        raise ProfileError(f"roofline(by={by!r}): {suggest(by, ('op', 'kind', 'time'))}")
    t = tasks(profile)
    t["since_ns"] = moving(profile, t)
    rows: list[dict[str, Any]] = []
    for name, g in t.groupby(by, observed=True, sort=False):
        begin, end = g["since_ns"].to_numpy(), g["end_ns"].to_numpy()
        rows.append(
            {
                by: str(name),
                "tasks": len(g),
                "bytes": float(g["bytes"].sum()),
                "flops": float(g["flops"].sum()),
                "busy_ns": int((end - begin).sum()),
                "span_ns": Union(begin, end).length,
            }
        )
    columns = [by, "tasks", "bytes", "flops", "busy_ns", "span_ns"]
    out = pd.DataFrame(rows, columns=columns)
    span = out["span_ns"].where(out["span_ns"] > 0)
    out["gbps"] = out["bytes"] / span
    out["tflops"] = out["flops"] / span / 1e3
    out["worker_gbps"] = out["bytes"] / out["busy_ns"].where(out["busy_ns"] > 0)
    out["intensity"] = out["flops"] / out["bytes"].where(out["bytes"] > 0)
    return _shares(out, bandwidth * profile.n_ranks, peak * profile.n_ranks)


def _shares(out: pd.DataFrame, bandwidth: float, peak: float) -> pd.DataFrame:
    out = out.copy()
    none = np.full(len(out), np.nan)
    by_bytes = out["gbps"].to_numpy(float) / bandwidth if bandwidth else none
    by_flops = out["tflops"].to_numpy(float) / peak if peak else none
    nearer = np.fmax(by_bytes, by_flops)
    out["share"] = nearer
    out["limit"] = np.where(np.isnan(nearer), "", np.where(nearer == by_flops, "flops", "bytes"))
    return out
