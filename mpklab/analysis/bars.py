"""Error bars of the sums that `bubbles`, `blame` and `bounds` give: what the clocks may have added to each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mpklab.analysis.idle import BY_TASK, NAMES, NO_TASK, bubbles, pieces
from mpklab.analysis.paths import critical_path
from mpklab.frames import accuracy, decode, operators, residual, tasks
from mpklab.frames.records import COMPUTE
from mpklab.frames.tables import family, lane_error, operator_columns
from mpklab.profile import Profile

# Classes whose begin and end one worker's clock tells; where the others end, other workers' stamps say.
ONE_CLOCK = ("execute", "gather", "fetch", "signal", "recording", "unexplained")


def of_bubbles(profile: Profile, by: str = "worker") -> pd.DataFrame:
    """Error bars, in ns, of every figure in `bubbles(profile, by)`: its rows and its columns from execute to makespan_ns.

    Pieces at one time by SMs of one clock are off alike, all others independently (`accuracy.summed`). A worker's makespan
    is one time between two clocks, and that of all the same for each.
    """
    table, p = bubbles(profile, by), pieces(profile)
    lane = p.worker.astype(np.int64) * profile.lanes_per_worker + COMPUTE
    inside = np.isin(p.kind, [NAMES.index(name) for name in ONE_CLOCK])
    one = np.where(inside, accuracy.error(profile, lane, p.ns), lane_error(decode(profile))[lane])
    row = _rows(profile, by, table)
    n, k = len(table), len(NAMES)
    kept = row >= 0
    sums = accuracy.summed(profile, one[kept], row[kept] * k + p.kind[kept], lane[kept], n * k).reshape(n, k)
    out = pd.DataFrame(sums, columns=list(NAMES), index=table.index)
    whole = residual(profile) * (p.n_workers if by == "all" else 1)
    out["makespan_ns"] = whole if by in ("all", "worker") else np.sqrt((sums**2).sum(1))
    return out


def _rows(profile: Profile, by: str, table: pd.DataFrame) -> np.ndarray:
    """The row of `table` to which each piece belongs."""
    p = pieces(profile)
    if by in ("all", "worker"):
        return np.zeros(p.worker.size, np.int64) if by == "all" else p.worker.astype(np.int64)
    if by not in BY_TASK:
        return np.asarray(pd.Index(table[by]).get_indexer(pd.Index(p.iteration)), np.int64)
    columns = operator_columns(profile, (p.cause if by.startswith("cause") else p.task).astype(np.int32))
    if by == "layer":
        return np.asarray(pd.Index(table[by]).get_indexer(pd.Index(columns["layer"])), np.int64)
    op = columns["op"]
    names: Sequence[str] = [family(str(x)) if by.endswith("family") else str(x) for x in op.categories]
    place = pd.Index(table[by]).get_indexer(pd.Index([*names, NO_TASK], dtype=object))
    return np.asarray(place[op.codes], np.int64)  # the last entry answers for -1


def of_bounds(profile: Profile) -> dict[str, float]:
    """Error bars, in ns, of those rows of `bounds` that rest on the clocks, for all recorded iterations: work, path and
    measured. Operators are taken to be off independently, and so are the tasks of the path."""
    t, path = tasks(profile), critical_path(profile)
    lane = t["rank"].to_numpy(np.int64) if profile.n_ranks > 1 else np.zeros(len(t), np.int64)
    lane = (lane * profile.n_workers + t["worker"].to_numpy(np.int64)) * profile.lanes_per_worker + COMPUTE
    ran = pd.Series(lane, index=pd.MultiIndex.from_arrays([t["iteration"], t["task"]]))
    ran = ran[~ran.index.duplicated()]
    on = ran.reindex(pd.MultiIndex.from_arrays([path["iteration"], path["task"]])).fillna(0).to_numpy(np.int64)
    steps = accuracy.error(profile, on, path["dur_ns"].to_numpy())
    return {
        "work": float(np.sqrt((operators(profile)["error_ns"] ** 2).sum())) / (profile.n_ranks * profile.n_workers),
        "path": float(np.sqrt((steps**2).sum())),
        "measured": residual(profile),
    }
