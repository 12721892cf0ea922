"""Error bars of the sums that `bubbles`, `blame` and `bounds` give: what the clocks may have added to each."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mpklab.analysis.idle import NAMES, pieces, placed
from mpklab.analysis.paths import critical_path
from mpklab.frames import accuracy, decode, operators, residual, tasks
from mpklab.frames.records import COMPUTE
from mpklab.frames.tables import lane_error, lane_of
from mpklab.profile import Profile

# Classes whose begin and end one worker's clock tells; where the others end, other workers' stamps say.
ONE_CLOCK = ("execute", "gather", "fetch", "signal", "recording", "unexplained")


def of_bubbles(profile: Profile, by: str = "worker") -> pd.DataFrame:
    """Error bars, in ns, of every figure in `bubbles(profile, by)`: its rows and its columns from execute to makespan_ns.

    Pieces at one time by SMs of one clock are off alike, all others independently (`accuracy.summed`). A worker's makespan
    is one time between two clocks, and that of all the same for each.
    """
    (table, row), p = placed(profile, by), pieces(profile)
    lane = p.worker.astype(np.int64) * profile.lanes_per_worker + COMPUTE
    inside = np.isin(p.kind, [NAMES.index(name) for name in ONE_CLOCK])
    one = np.where(inside, accuracy.error(profile, lane, p.ns), lane_error(decode(profile))[lane])
    n, k = len(table), len(NAMES)
    sums = accuracy.summed(profile, one, row.astype(np.int64) * k + p.kind, lane, n * k).reshape(n, k)
    out = pd.DataFrame(sums, columns=list(NAMES), index=table.index)
    whole = residual(profile) * (p.n_workers if by == "all" else 1)
    out["makespan_ns"] = whole if by in ("all", "worker") else np.sqrt((sums**2).sum(1))
    return out


def of_bounds(profile: Profile) -> dict[str, float]:
    """Error bars, in ns, of those rows of `bounds` that rest on the clocks, for all recorded iterations: work, path and
    measured. Operators are taken to be off independently, and so are the tasks of the path."""
    t, path = tasks(profile), critical_path(profile)
    ran = pd.Series(lane_of(profile, t), index=pd.MultiIndex.from_arrays([t["iteration"], t["task"]]))
    ran = ran[~ran.index.duplicated()]
    on = ran.reindex(pd.MultiIndex.from_arrays([path["iteration"], path["task"]])).fillna(0).to_numpy(np.int64)
    steps = accuracy.error(profile, on, path["dur_ns"].to_numpy())
    return {
        "work": float(np.sqrt((operators(profile)["error_ns"] ** 2).sum())) / (profile.n_ranks * profile.n_workers),
        "path": float(np.sqrt((steps**2).sum())),
        "measured": residual(profile),
    }
