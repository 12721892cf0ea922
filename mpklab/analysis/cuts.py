"""The recorded operators in other tiles: what each new task would take, from those that the recording shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mpklab import recipe
from mpklab.errors import MpkError, ProfileError
from mpklab.schedule import assign
from mpklab.simulator import Program, traffic
from mpklab.tasks import lower

if TYPE_CHECKING:
    from mpklab.analysis.replay import Measured

FEW = 3  # points through which a line may be laid


def cut(m: Measured, tiles: Mapping[str, int], policy: str | None = None, workers: int | None = None) -> Measured:
    """What a recording of the same graph with other tiles would give the engine; `tiles` as `lower` takes them.

    A tile that holds r times the bytes of a recorded one of its operator takes r times as long, beyond what an operator
    of its kind takes however small. On a GPU what a tile has more is read at the rate of a worker's consumers, once the
    engine has loaded it. Of tiles that one tile became only the first is fetched as late as that was.
    """
    recorded = recipe.schedule_of(m.profile)
    if recorded.mode != "static":
        raise ProfileError("tiles: the recorded tasks were handed out at run time; record a static run to cut it anew")
    try:
        settings: Any = recipe.settings_of(m.profile)
        made = lower(recorded.tasks.graph.origin, recorded.tasks.machine, tiles=dict(tiles), **settings)
        schedule = assign(made, policy=policy or recorded.policy, workers=workers or m.profile.n_workers)
    except MpkError as error:
        raise ProfileError(f"tiles: these operators cannot be cut so: {error}") from error
    first_of = {str(o["name"]): i for i, o in enumerate(m.profile.operators)}
    missing = [o.name for o in made.operators if o.name not in first_of]
    if missing:
        raise ProfileError(f"tiles: the recording holds no {missing[0]}; it was lowered with other passes than these")
    source = np.zeros(len(made), np.int64)
    for i, o in enumerate(made.operators):
        old = m.profile.task_first[first_of[o.name] : first_of[o.name] + 2].astype(np.int64)
        new = np.arange(made.first[i + 1] - made.first[i])
        source[made.first[i] : made.first[i + 1]] = old[0] + new * (old[1] - old[0]) // max(1, new.size)
    size, before = made.bytes, m.profile.tasks["bytes"][source]
    took = m.work.execute[:, source]
    if m.streams:
        execute = np.maximum(took / 4, took + (size - before) / m.streams.rate)
    else:
        fixed = np.minimum(_fixed(m)[m.profile.tasks["operator"][source]], took)
        execute = fixed + (took - fixed) * np.where(before > 0, size / np.maximum(before, 1.0), 1.0)
    fetch = m.work.fetch[..., source]
    again = np.r_[False, source[1:] == source[:-1]]
    work = replace(
        m.work,
        execute=execute,
        fetch=np.where(again, np.minimum(fetch, np.median(m.work.fetch)), fetch),
        **{name: getattr(m.work, name)[..., source] for name in ("gather", "signal")},
        **{name: np.zeros(len(made)) for name in ("overhead", "compute", "ahead", "behind", "load")},
    )
    made_program = Program.of_schedule(schedule)
    if m.streams is None:
        return replace(m, program=made_program, work=work, costs=replace(m.costs, ring_bytes=0.0))
    ahead, _ = traffic(made)
    held = m.streams.ahead[source]
    grown = np.where(held > 0, ahead / np.maximum(held, 1.0), 0.0)
    # A tile that takes longer for its size does so quietly too.
    longer = execute.mean(0) / np.maximum(took.mean(0), 1.0)
    streams = replace(
        m.streams,
        some=m.streams.some[source],
        ahead=ahead,
        compute=m.streams.compute[:, source] * grown,
        overhead=m.streams.overhead[:, source] * np.minimum(1.0, grown),
        quiet={k: v[source] * (longer if k == "execute" else 1.0) for k, v in m.streams.quiet.items()},
    )
    return replace(m, program=made_program, work=work, other=streams)


def _fixed(m: Measured) -> np.ndarray:
    """Per operator, ns that a task of its kind takes however small: where a line through its sizes begins."""
    operator = m.profile.tasks["operator"]
    count = np.maximum(1, np.bincount(operator, minlength=len(m.profile.operators)))
    ns = np.bincount(operator, np.median(m.work.execute, 0), len(m.profile.operators)) / count
    size = np.bincount(operator, m.profile.tasks["bytes"], len(m.profile.operators)) / count
    kinds = np.array([str(o["op"]) for o in m.profile.operators])
    out = np.zeros(len(kinds))
    for kind in np.unique(kinds):
        mine = np.nonzero(kinds == kind)[0]
        sizes = np.unique(np.round(size[mine]))
        if sizes.size < FEW:
            continue
        medians = np.array([np.median(ns[mine][np.round(size[mine]) == s]) for s in sizes])
        i, j = np.triu_indices(sizes.size, 1)
        slope = max(0.0, float(np.median((medians[j] - medians[i]) / (sizes[j] - sizes[i]))))
        out[kinds == kind] = max(0.0, float(np.median(medians - slope * sizes)))
    return out
