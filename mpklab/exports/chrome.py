"""Chrome's trace event format: one complete event per span, a process per rank, a thread per lane."""

from __future__ import annotations

import json

import numpy as np

from mpklab.frames import decode, spans
from mpklab.profile import Profile


def chrome_trace(profile: Profile) -> str:
    """The JSON text. Times are microseconds, as the format wants; names are escaped by the JSON writer."""
    s = spans(profile)
    d = decode(profile)
    lanes = d.lanes
    phase = s["phase"].astype(object).to_numpy()
    op = s["op"].astype(object).to_numpy()
    name = np.where(phase == "execute", op, phase)
    said = {n: json.dumps(str(n)) for n in {*name.tolist(), *phase.tolist()}}
    meta = []
    for rank in np.unique(lanes.rank).tolist():
        meta.append({"ph": "M", "pid": rank, "name": "process_name", "args": {"name": f"rank {rank}"}})
    roles = s["role"].cat.categories
    for lane in np.nonzero(lanes.kept)[0].tolist():
        sm = f" (SM {lanes.sm[lane]})" if lanes.sm[lane] >= 0 else ""
        place = {"ph": "M", "pid": int(lanes.rank[lane]), "tid": lane}
        label = f"worker {lanes.worker[lane]}{sm} {roles[lanes.role[lane]]}"
        meta.append({**place, "name": "thread_name", "args": {"name": label}})
        meta.append({**place, "name": "thread_sort_index", "args": {"sort_index": lane}})
    columns = zip(
        name.tolist(),
        phase.tolist(),
        s["rank"].tolist(),
        d.lane.tolist(),
        s["begin_ns"].tolist(),
        s["dur_ns"].tolist(),
        s["task"].tolist(),
        s["iteration"].tolist(),
        s["event"].tolist(),
        strict=True,
    )
    events = [
        f'{{"ph":"X","name":{said[n]},"cat":{said[c]},"pid":{pid},"tid":{tid},"ts":{begin / 1000:.3f},'
        f'"dur":{dur / 1000:.3f},"args":{{"task":{task},"iteration":{iteration},"event":{event}}}}}'
        for n, c, pid, tid, begin, dur, task, iteration, event in columns
    ]
    about = {"displayTimeUnit": "ns", "otherData": {"producer": "mpklab", "version": 1}}
    lines = [json.dumps(m) for m in meta] + events
    return json.dumps(about)[:-1] + ', "traceEvents": [\n' + ",\n".join(lines) + "\n]}\n"
