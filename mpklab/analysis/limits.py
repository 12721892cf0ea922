"""How far the run was from what was possible: bounds that no schedule on this machine can beat, and the efficiency."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mpklab.analysis.observed import graph_protocol, observe
from mpklab.analysis.paths import durations, earliest
from mpklab.frames import decode, records
from mpklab.profile import Profile


def bounds(profile: Profile, bandwidth_gbps: float | None = None, peak_tflops: float | None = None) -> pd.DataFrame:
    """One row per lower bound on the time of the recorded iterations, largest first, then the measured makespan.

    bound: work (measured durations over workers), path (the critical path with free hand-offs), bytes (bytes over
    bandwidth), flops (flops over peak), measured · ns: for all recorded iterations · iteration_ns: per iteration ·
    share: of the measured time; the largest bound's share is the efficiency · binds: whether it is that one · why.
    Bandwidth (GB/s) and peak (TFLOP/s) come from the profile's meta unless given; without them those bounds are absent.
    """
    d = decode(profile)
    compute = d.lanes.role[d.lane] == records.COMPUTE
    measured = int(d.end_ns[compute].max() - d.begin_ns[compute].min()) if compute.any() else 0
    workers = profile.n_ranks * profile.n_workers
    n = max((seen.iterations.size for seen in observe(profile)), default=0)
    work = path = total_bytes = total_flops = 0.0
    for seen in observe(profile):
        dur = durations(seen)
        work += float(dur.sum())
        if dur.size:
            path = max(path, float(earliest(graph_protocol(profile), dur)[0].max()))
        ran = (dur > 0).sum(0)
        total_bytes += float(ran @ profile.tasks["bytes"])
        total_flops += float(ran @ profile.tasks["flops"])
    rows: list[tuple[str, float, str]] = [
        ("work", work / workers, f"the measured work spread evenly over {workers} workers"),
        ("path", path, "the longest path through the graph, with hand-offs for free"),
    ]
    rate = positive(bandwidth_gbps, profile.meta.get("bandwidth_gbps"))
    if rate and total_bytes:
        rows.append(("bytes", total_bytes / rate / profile.n_ranks, f"{total_bytes / 1e9:.3g} GB at {rate:.4g} GB/s"))
    peak = positive(peak_tflops, profile.meta.get("peak_tflops"))
    if peak and total_flops:
        rows.append(
            (
                "flops",
                total_flops / peak / 1e3 / profile.n_ranks,
                f"{total_flops / 1e9:.3g} GFLOP at {peak:.4g} TFLOP/s",
            )
        )
    rows.sort(key=lambda r: -r[1])
    rows.append(("measured", float(measured), "from the first record to the last"))
    ns = np.array([r[1] for r in rows])
    return pd.DataFrame(
        {
            "bound": [r[0] for r in rows],
            "ns": ns,
            "iteration_ns": ns / max(1, n),
            "share": ns / measured if measured else np.full(len(rows), np.nan),
            "binds": [i == 0 for i in range(len(rows))],
            "why": [r[2] for r in rows],
        }
    )


def efficiency(profile: Profile, bandwidth_gbps: float | None = None, peak_tflops: float | None = None) -> float:
    """The best bound over the measured time: 1 is perfect, NaN an empty recording."""
    return float(bounds(profile, bandwidth_gbps, peak_tflops)["share"].iloc[0])


def positive(*values: Any) -> float:
    for value in values:
        if isinstance(value, int | float) and np.isfinite(value) and value > 0:
            return float(value)
    return 0.0
