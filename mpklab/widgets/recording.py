"""What a recording adds to its spans for a picture: why workers idled, when tasks were ready, bounds, paths, and what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpklab.abi import Clock
from mpklab.analysis import blame, critical_path
from mpklab.analysis import bounds as limits
from mpklab.analysis.idle import NAMES, pieces
from mpklab.analysis.observed import ALWAYS, observe
from mpklab.errors import MpkError
from mpklab.frames import NEVER, accuracy, decode, health, verdict
from mpklab.frames import spans as spans_of
from mpklab.recipe import schedule_of
from mpklab.widgets.raster import counted
from mpklab.widgets.task_dag import TaskDag, task_dag
from mpklab.widgets.timeline import Timeline, timeline

if TYPE_CHECKING:
    import pandas as pd

    from mpklab.schedule import Schedule


def profile_timeline(profile: Any, other: Any = None, **options: Any) -> Timeline:
    """The timeline of a recording with all that it knows; `other` is a second one, drawn below on its own zero of time.

    Options as for `timeline`; what is given wins over what the recording says.
    """
    from pandas.api.types import union_categoricals

    runs = [profile] if other is None else [profile, other]
    spans = [spans_of(run) for run in runs]
    idle, cause = zip(*(idle_classes(run, frame) for run, frame in zip(runs, spans, strict=True)), strict=True)
    known: dict[str, Any] = {
        "error_ns": np.concatenate([accuracy.per_lane(run)[decode(run).lane] for run in runs]),
        "place": "SM" if on_gpu(profile) else "CPU",
        "workers": thread_names(runs),
        "notes": notes_of(profile, other),
        "bounds": bounds_of(profile),
        "other_bounds": {} if other is None else bounds_of(other),
        "classes": {"class": union_categoricals(list(idle)), "waits for": union_categoricals(list(cause))},
        "ready_ns": np.concatenate([ready_times(run, frame) for run, frame in zip(runs, spans, strict=True)])
        if any(run.edges for run in runs)
        else None,
    }
    return timeline(*spans, **{**known, **options})


def profile_dag(profile: Any, **options: Any) -> TaskDag:
    """The task graph of a recording, coloured by what was measured, with its critical path and its path of blame."""
    known = {"paths": paths_of(profile), "notes": notes_of(profile)}
    return task_dag(profile, **{**known, **options})


def on_gpu(profile: Any) -> bool:
    """Whether the column `sm` counts a GPU's processors rather than a host's."""
    return bool((profile.headers()["clock_unit"] == Clock.sm_cycles).all())


def thread_names(runs: list[Any]) -> dict[int, str]:
    """What another tool called the workers, where all recordings agree on it."""
    first, *rest = (run.meta.get("threads") for run in runs)
    if not isinstance(first, dict) or any(names != first for names in rest):
        return {}
    return {int(w): str(name) for w, name in first.items() if str(w).isdecimal()}


def bounds_of(profile: Any) -> dict[str, float]:
    """Each lower bound on the makespan in nanoseconds."""
    known = limits(profile)
    return {str(b): float(ns) for b, ns in zip(known["bound"], known["ns"], strict=True) if b != "measured"}


def schedule_or_none(profile: Any) -> Schedule | None:
    """The schedule that was recorded, where the recording still says how it was made."""
    try:
        return schedule_of(profile)
    except MpkError:
        return None


def idle_classes(profile: Any, spans: pd.DataFrame) -> tuple[Any, Any]:
    """For every span of a compute lane the class of `analysis.bubbles` that holds most of its time, missing elsewhere; and
    for those that wait, the kind of operator that they wait for."""
    import pandas as pd

    cut = pieces(profile, 0.0)
    key = cut.worker.astype(np.int64) << 44 | cut.begin_ns
    order = np.lexsort((cut.ns, key))
    last = np.r_[key[order][1:] != key[order][:-1], np.ones(min(1, len(key)), bool)]  # the largest piece of each record
    largest = order[last]
    key, kind, cause = key[largest], cut.kind[largest], cut.cause[largest]
    worker = spans["rank"].to_numpy(np.int64) * profile.n_workers + spans["worker"].to_numpy(np.int64)
    wanted = worker << 44 | spans["begin_ns"].to_numpy(np.int64)
    at = np.minimum(np.searchsorted(key, wanted), max(0, len(key) - 1))
    own = np.asarray((spans["role"] == "compute") & (spans["phase"] != "iteration"))
    known = own & (key[at] == wanted) if len(key) else np.zeros(len(spans), bool)
    codes = np.where(known, kind[at] if len(key) else -1, -1)
    names = np.array([*NAMES, None], object)
    kinds = sorted({str(o["op"]) for o in profile.operators})
    of_operator = np.array([kinds.index(str(o["op"])) for o in profile.operators] + [-1], np.int64)
    waits = known & np.asarray(spans["phase"] == "wait")
    task = np.where(waits, cause[at] if len(key) else -1, -1)
    operator = np.append(profile.tasks["operator"].astype(np.int64), -1)[task]
    found = pd.Categorical.from_codes(of_operator[operator], pd.Index(kinds))
    return pd.Categorical(names[codes], categories=list(NAMES)), found.remove_unused_categories()


def ready_times(profile: Any, spans: pd.DataFrame) -> NDArray[np.float64]:
    """For every span of execution when its task's last event had happened, in nanoseconds; NaN where that is not known,
    as in a recording that has no edges."""
    found = np.full(len(spans), np.nan)
    if not profile.edges:
        return found
    rank, task = spans["rank"].to_numpy(np.int64), spans["task"].to_numpy(np.int64)
    iteration = spans["iteration"].to_numpy(np.int64)
    execute = np.asarray(spans["phase"] == "execute") & (task >= 0) & (task < profile.n_tasks)
    for seen in observe(profile):
        some = np.flatnonzero(execute & (rank == seen.rank) & np.isin(iteration, seen.iterations))
        ready = seen.ready[np.searchsorted(seen.iterations, iteration[some]), task[some]]
        told = (ready != ALWAYS) & (ready != NEVER)
        found[some[told]] = ready[told]
    return found


def paths_of(profile: Any) -> dict[str, list[int]]:
    """The critical path and the path of blame through the middle recorded iteration, as task ids in order of time."""
    found: dict[str, list[int]] = {}
    for name, frame in (("critical path", critical_path(profile)), ("path of blame", blame(profile))):
        rows = frame[frame["task"] >= 0]
        numbers = np.unique(rows["iteration"].to_numpy())
        if len(numbers):
            inside = rows.loc[rows["iteration"] == numbers[len(numbers) // 2], "task"]
            found[name] = list(dict.fromkeys(inside.tolist()))
    return found


def notes_of(profile: Any, other: Any = None) -> list[str]:
    """The health of a recording, and in one sentence what is missing and why where the run did not end as it should."""
    if other is not None:
        return [f"{name}: {note}" for name, run in (("this", profile), ("other", other)) for note in notes_of(run)]
    return [verdict(profile), *dropped(profile), *unfinished(profile)]


def dropped(profile: Any) -> list[str]:
    """A sentence for records that found no room in their lane."""
    found = health(profile)
    lost = int(found["dropped"].sum())
    if not lost:
        return []
    end = "its last" if found["wrapped"].any() else "the first"
    return [
        f"{counted(lost, 'record')} had no room, because a lane keeps {end} {profile.lane_capacity:,}: empty stretches may hold "
        "work, and fewer iterations in a Window would fit."
    ]


def unfinished(profile: Any) -> list[str]:
    """A sentence for a run that stopped inside an iteration: tasks that never ended though no record was dropped."""
    spans = spans_of(profile)
    if not len(spans):
        return [] if profile.level == 0 else ["Nothing was recorded: the run ended before any worker wrote a record."]
    last = int(spans["iteration"].max())
    ran = spans[
        (spans["phase"] == "execute") & (spans["task"] >= 0) & (spans["iteration"] == last) & ~spans["truncated"]
    ]
    ended, expected = len(ran[["rank", "task"]].drop_duplicates()), profile.n_tasks * spans["rank"].nunique()
    if ended >= expected or int(health(profile)["dropped"].sum()):  # what was dropped, the health line tells
        return []
    return [
        f"Iteration {last} stops after {ended:,} of {expected:,} tasks: the run failed or was interrupted there, so what "
        "would follow is not in the recording."
    ]
