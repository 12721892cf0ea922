"""From signal to notice: how long it took waiting workers to see that what they waited for had happened."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mpklab.analysis.observed import awaited, observe
from mpklab.errors import ProfileError, suggest
from mpklab.frames import NEVER, accuracy, decode, records, residual
from mpklab.frames.tables import operator_columns
from mpklab.profile import Profile


def waits(profile: Profile) -> pd.DataFrame:
    """One row per recorded wait: rank, worker, iteration, task, event, begin_ns, end_ns, dur_ns · producer: the task that
    signalled last (-1 unknown), by words the last that had ended when the wait did · happened_ns, done_ns: when it began
    to, and had (NEVER unknown) · words: these say themselves when they are there, and a task's last record stands for all
    that it waits for · waited: the worker was there before the signal was out · latency_ns: from happened_ns to the end
    of the wait (NaN unless waited) · publish_ns: of that, the producer's signal phase · error_ns f32: error bar of dur_ns,
    which one clock told (`frames.accuracy.error`); that of latency_ns, which two may have, is the one in `handoff`.
    """
    d = decode(profile)
    at = np.nonzero((d.phase == records.WAIT) & (d.lanes.role[d.lane] == records.COMPUTE) & ~d.truncated)[0]
    task, event, begin, end = d.task[at], d.event[at], d.begin_ns[at], d.end_ns[at]
    producer = np.full(at.size, -1, np.int32)
    happened = np.full(at.size, NEVER, np.int64)
    done = np.full(at.size, NEVER, np.int64)
    words = np.zeros(at.size, bool)
    for seen in observe(profile):
        mine = d.lanes.rank[d.lane[at]] == seen.rank
        when, sender, row, wait = awaited(profile, seen, at[mine])
        producer[mine], happened[mine] = sender, when
        if seen.done.size:
            done[mine] = np.where(sender >= 0, seen.done[np.maximum(row, 0), np.maximum(sender, 0)], NEVER)
        if seen.protocol.wait_task.size:
            words[mine] = (wait >= 0) & seen.protocol.words[seen.protocol.wait_event[wait]]
    waited = (happened != NEVER) & (np.maximum(happened, done) > begin)
    some = waited & (happened <= end)
    latency = np.where(waited, np.maximum(0, end - np.where(waited, happened, end)), np.nan)
    publish = np.where(some & (done != NEVER), np.minimum(done, end) - happened, np.where(waited, 0.0, np.nan))
    return pd.DataFrame(
        {
            "rank": d.lanes.rank[d.lane[at]].astype(np.uint16),
            "worker": d.lanes.worker[d.lane[at]].astype(np.uint16),
            "iteration": d.iteration[at],
            "task": task,
            "event": event,
            "begin_ns": begin,
            "end_ns": end,
            "dur_ns": end - begin,
            "producer": producer,
            "happened_ns": happened,
            "done_ns": done,
            "words": words,
            "waited": waited,
            "latency_ns": latency,
            "publish_ns": np.maximum(publish, 0),
            "error_ns": accuracy.error(profile, d.lane[at], end - begin).astype(np.float32),
        }
    )


def handoff(profile: Profile, by: str = "op") -> pd.DataFrame:
    """Signal-to-notice latency, one row per pair of operators (`by="op"`), pair of operator kinds ("kind") or event.

    producer, consumer (or event) · waits: recorded · waited: those where the worker was there before the signal was out ·
    median_ns, p10_ns, p90_ns, p99_ns, max_ns of the latency of these, from the end of the producer's execution to the
    end of the consumer's wait · publish_ns: median of the part the producer's signal phase took · check_ns: median
    length of the other waits, whose event had happened before · error_ns: error bar of one latency.
    """
    if by not in ("op", "kind", "event"):
        raise ProfileError(f"handoff(by={by!r}): {suggest(by, ('op', 'kind', 'event'))}")
    w = waits(profile)
    if by == "event":
        keys: dict[str, Any] = {"event": w["event"].to_numpy()}
    else:
        column = "kind" if by == "kind" else "op"
        keys = {
            "producer": operator_columns(profile, w["producer"].to_numpy())[column],
            "consumer": operator_columns(profile, w["task"].to_numpy())[column],
        }
    frame = pd.DataFrame(
        {
            **keys,
            "latency": w["latency_ns"].to_numpy(),
            "publish": w["publish_ns"].to_numpy(),
            "check": np.where(w["waited"], np.nan, w["dur_ns"]),
        }
    )
    groups = frame.groupby(list(keys), observed=True, sort=True, dropna=False)
    latency = groups["latency"]
    out = pd.DataFrame(
        {
            "waits": groups.size(),
            "waited": latency.count(),
            "median_ns": latency.median(),
            "p10_ns": latency.quantile(0.1),
            "p90_ns": latency.quantile(0.9),
            "p99_ns": latency.quantile(0.99),
            "max_ns": latency.max(),
            "publish_ns": groups["publish"].median(),
            "check_ns": groups["check"].median(),
        }
    ).reset_index()
    out["error_ns"] = residual(profile)
    return out
