"""What handing tasks out at run time cost: pushing them, finding one, taking it and laying it out, from the records."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mpklab import abi, recipe
from mpklab.analysis.idle import TURN_NS
from mpklab.analysis.observed import Observed
from mpklab.frames import NEVER, decode, records
from mpklab.profile import Profile
from mpklab.simulator import Costs

MIN_POPS, MANY_POPS = 5, 16  # fewer say nothing of a pool; so many of one push, how pops hold each other up
LOAD, RING, LOAD_WAIT = (int(p) for p in (abi.Phase.load, abi.Phase.ring, abi.Phase.load_wait))
LONG_AGO_NS = 1000  # what was pushed so long ago lay there for whoever looked


def cells(profile: Profile, seen: Observed, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of spans `at` those that lie in the grid: their indices, rows and tasks."""
    d = decode(profile)
    row = d.iteration[at].astype(np.int64) - seen.iterations[0]
    task = d.task[at].astype(np.int64)
    fine = (row >= 0) & (row < seen.iterations.size) & (task >= 0) & (task < profile.n_tasks)
    return at[fine], row[fine], task[fine]


def top(profile: Profile, seen: Observed) -> np.ndarray:
    """The spans of this rank's workers that lie in no other, lane by lane in order of time."""
    d = decode(profile)
    own = (d.lanes.role[d.lane] == records.COMPUTE) & (d.lanes.rank[d.lane] == seen.rank)
    return np.nonzero(own & (d.depth == 0) & (d.chain >= 0))[0]


def turns(profile: Profile, seen: Observed) -> np.ndarray:
    """[iteration, task]: what passed between a task's first record and the worker's record before, of pops too."""
    d, flat = decode(profile), top(profile, seen)
    out = np.zeros(seen.issue.shape)
    if flat.size < 2:
        return out
    lane, begin, end = d.lane[flat], d.begin_ns[flat], d.end_ns[flat]
    gap = np.clip(np.r_[0, begin[1:] - end[:-1]] * np.r_[False, lane[1:] == lane[:-1]], 0, TURN_NS)
    gap += np.r_[0, gap[:-1]] * np.r_[False, d.phase[flat][:-1] == records.POP]
    i, row, task = cells(profile, seen, flat)
    opens = d.phase[i] == records.FETCH
    out[row[opens], task[opens]] = gap[np.searchsorted(flat, i[opens])]
    return out


def own_pushes(profile: Profile, seen: Observed) -> np.ndarray:
    """[iteration, task]: how long a task's worker handed out others."""
    d, flat = decode(profile), top(profile, seen)
    out = np.zeros(seen.issue.shape)
    i, row, task = cells(profile, seen, flat[d.phase[flat] == records.PUSH])
    np.add.at(out, (row, task), (d.end_ns - d.begin_ns)[i])
    return out


def issues(profile: Profile, seen: Observed) -> np.ndarray | None:
    """[iteration, task]: how long the loader issued a task's copies, without its waits for room and for events; NaN where
    that was not recorded, None where nothing was."""
    d = decode(profile)
    mine = (d.lanes.role[d.lane] != records.COMPUTE) & (d.lanes.rank[d.lane] == seen.rank)
    ns = (d.end_ns - d.begin_ns).astype(float)
    out = np.full(seen.issue.shape, np.nan)
    at, row, task = cells(profile, seen, np.nonzero(mine & (d.phase == LOAD))[0])
    if not at.size:
        return None
    out[row, task] = ns[at]
    at, row, task = cells(profile, seen, np.nonzero(mine & np.isin(d.phase, (RING, LOAD_WAIT)))[0])
    np.add.at(out, (row, task), -ns[at])
    return np.maximum(out, 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class _Pushes:
    """Per [iteration, task]: begin and end of the push that made a task poppable (NaN unknown), how many went with it,
    and the worker whose loader pushed it (-1: nobody's loader)."""

    begin: np.ndarray
    end: np.ndarray
    together: np.ndarray
    loader: np.ndarray


def _pushes(profile: Profile, seen: Observed) -> tuple[_Pushes, np.ndarray, np.ndarray] | None:
    """The pushes by task; and of each push that made any task poppable how many, and how long it took."""
    d, rules = decode(profile), seen.protocol
    at = np.nonzero((d.phase == records.PUSH) & (d.event >= 0) & (d.lanes.rank[d.lane] == seen.rank))[0]
    row = d.iteration[at].astype(np.int64) - seen.iterations[0]
    at, row = at[(row >= 0) & (row < seen.iterations.size)], row[(row >= 0) & (row < seen.iterations.size)]
    waits_now = np.nonzero((rules.wait_lag == 0) & (profile.tasks["worker"][rules.wait_task] < 0))[0]
    if not (at.size and waits_now.size):
        return None
    shape = (seen.iterations.size, rules.n_events)
    begin, end, loader = np.full(shape, -np.inf), np.full(shape, -np.inf), np.full(shape, -1)
    begin[row, d.event[at]], end[row, d.event[at]] = d.begin_ns[at], d.end_ns[at]
    by_loader = d.lanes.role[d.lane[at]] != records.COMPUTE
    loader[row, d.event[at]] = np.where(by_loader, d.lanes.worker[d.lane[at]], -1)
    # The push that made a task poppable is the last of those for its events.
    by_task = np.full(seen.issue.shape, -1)
    for i, times in enumerate(begin[:, rules.wait_event[waits_now]]):
        order = np.argsort(times, kind="stable")
        order = order[np.isfinite(times[order])]
        by_task[i, rules.wait_task[waits_now[order]]] = rules.wait_event[waits_now[order]]
        # A record names the first of the events that a push was for: what may have waited for another is not known.
        by_task[i, rules.wait_task[waits_now[~np.isfinite(times)]]] = -1
    rows, tasks = np.nonzero(by_task >= 0)
    count = np.zeros(shape)
    np.add.at(count, (rows, by_task[rows, tasks]), 1)
    sent = count > 0
    if not sent.any():
        return None

    def by_tasks(values: np.ndarray, nothing: float) -> np.ndarray:
        grid = np.full(seen.issue.shape, nothing, values.dtype)
        grid[rows, tasks] = values[rows, by_task[rows, tasks]]
        return grid

    found = _Pushes(by_tasks(begin, np.nan), by_tasks(end, np.nan), by_tasks(count, np.nan), by_tasks(loader, -1))
    return found, count[sent], end[sent] - begin[sent]


def _slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and offset of a line through medians of y by x, neither negative."""
    medians = pd.Series(y).groupby(x).median()
    x, y = medians.index.to_numpy(float), medians.to_numpy(float)
    slope = max(0.0, float(np.polyfit(x, y, 1)[0])) if x.size > 1 else 0.0
    fixed = float(np.median(y - slope * x))
    return (slope, fixed) if x.size > 1 and fixed >= 0 else (float(np.median(y / x)), 0.0)


def pools(profile: Profile, seen: Observed, stated: Costs) -> dict[str, float]:
    """What handing tasks out, finding one and taking it cost, as far as records of pushes and pops tell; what they leave
    open is as stated."""
    found = _pushes(profile, seen)
    if found is None:
        return {}
    push, count, took = found
    if stated.ring_bytes and count.max() <= MANY_POPS:  # the pushes' warp takes so few side by side
        fixed, each = max(0.0, float(np.median(took)) - stated.push_ns), stated.push_ns
    else:
        each, fixed = _slope(count, took)
    out = {"handout_ns": fixed, "push_ns": each}
    there = push.begin + fixed + each * (push.together + 1) / 2
    d, flat = decode(profile), top(profile, seen)
    at = np.nonzero((d.phase[flat[:-1]] == records.POP) & (d.lane[flat[1:]] == d.lane[flat[:-1]]))[0]
    given, row, task = cells(profile, seen, flat[at + 1])
    pop = flat[np.searchsorted(flat, given) - 1]
    looked, known = np.full(seen.issue.shape, np.nan), np.full(seen.issue.shape, np.nan)
    looked[row, task], known[row, task] = d.begin_ns[pop], d.end_ns[pop]
    if not stated.ring_bytes:
        return {**out, **_by_workers(looked, known, push, there, each)}
    return {**out, **_by_loaders(profile, seen, stated, looked, known, push, there)}


def _by_workers(
    looked: np.ndarray, known: np.ndarray, push: _Pushes, there: np.ndarray, each: float
) -> dict[str, float]:
    """Workers that pop themselves: those that stood there, and those for whom a task lay there."""
    idle = looked < push.begin
    if idle.sum() < MIN_POPS:
        return {}
    which = np.unique(push.begin[idle], return_inverse=True)[1].reshape(-1)
    groups = pd.Series(known[idle]).groupby(which)
    spread, size = groups.max() - groups.min(), groups.size()
    many = size >= MANY_POPS
    serial = float((spread[many] / (size[many] - 1)).median()) if many.any() else 0.0
    queued = size.to_numpy()[which] / 2 * max(0.0, serial - each)
    taken = max(0.0, float((known[idle] - there[idle] - queued).mean()))
    lay = push.end + 2 * taken < looked
    found = float(np.median((known - looked)[lay])) if lay.sum() >= MIN_POPS else taken / 2
    return {"serial_ns": serial, "pop_ns": min(found, taken), "queue_ns": max(0.0, taken - found)}


def _by_loaders(
    profile: Profile,
    seen: Observed,
    stated: Costs,
    looked: np.ndarray,
    known: np.ndarray,
    push: _Pushes,
    there: np.ndarray,
) -> dict[str, float]:
    """Loaders that pop: a pop's record ends when the task is known, and begins when the worker, not its loader, was free."""
    d = decode(profile)
    mine = (d.lanes.role[d.lane] != records.COMPUTE) & (d.phase == LOAD) & (d.lanes.rank[d.lane] == seen.rank)
    at, row, task = cells(profile, seen, np.nonzero(mine)[0])
    free = looked
    stood = known - looked > LONG_AGO_NS / 5
    if at.size:
        begun, ended = np.full(known.shape, np.nan), np.full(known.shape, np.nan)
        begun[row, task], ended[row, task] = d.begin_ns[at], d.end_ns[at]
        late = float(np.nanmedian((begun - known)[stood])) if stood.any() else 0.0
        known = np.where(stood, known, begun - late)
        handout = recipe.handed_out(profile)[0]
        ahead = 1 if handout is None else handout.pop_ahead
        free = _free(seen, np.where(np.isnan(ended), known, ended), ahead)
    idle = (free < push.begin) & (push.loader != seen.worker) & ~np.isnan(known)
    out: dict[str, float] = {}
    own = (push.loader >= 0).any()
    layout = stated.layout_ns
    if own:
        # A loader lays out its own task right after it has pushed others.
        ends = np.unique(np.stack([push.loader[push.loader >= 0], push.end[push.loader >= 0]]), axis=1)
        laid = [_next(known[seen.worker == w], end) for w, end in ends.T]
        layout = float(np.nanmedian(laid)) if np.isfinite(laid).sum() >= MIN_POPS else layout
        out["layout_ns"] = layout
    early = stated.promise_ns if own else 0.0
    # Tasks of one queue, in the order in which they were taken: those that lay there while others were taken queued.
    order = np.argsort(known, axis=None)
    order = order[np.isfinite(known.ravel()[order]) & np.isfinite(push.end.ravel()[order])]
    queued = np.zeros(known.size, bool)
    usual = stated.queue_ns + stated.pop_ns + layout + early
    times, over = known.ravel()[order], push.end.ravel()[order]
    queued[order[1:]] = times[:-1] > over[1:] + usual
    competing = bool((profile.tasks["worker"] >= 0).any())
    if competing and queued.sum() >= MIN_POPS:
        out["serial_ns"] = float(np.diff(times)[queued[order[1:]]].mean())
    idle &= ~queued.reshape(known.shape) | (not competing)
    turn = stated.round_ns
    few = idle & (push.together <= MANY_POPS)
    if few.sum() >= MANY_POPS:  # whoever looks every so often sees what came in between evenly spread
        low, high = np.quantile((known - there)[few], [0.25, 0.75])
        turn = out["round_ns"] = float(2 * (high - low))
    if idle.sum() >= MIN_POPS:
        taken = float((known - there)[idle].mean()) - layout - early
        out["queue_ns"] = max(0.0, taken - turn / 2 - stated.pop_ns)
    lay = (free > push.end + LONG_AGO_NS) & (push.loader != seen.worker) & ~queued.reshape(known.shape)
    if at.size and lay.sum() >= MIN_POPS:
        out["seek_ns"] = max(0.0, float(np.median((known - free)[lay])) - stated.pop_ns - layout - early)
    return out


def _next(times: np.ndarray, after: float) -> float:
    """From a moment until the first of some times behind it; NaN where there is none."""
    behind = times[times >= after]
    return float(behind.min() - after) if behind.size else float("nan")


def _free(seen: Observed, loaded: np.ndarray, ahead: int) -> np.ndarray:
    """[iteration, task]: when the loader that took a task was free to: the one before was loaded, and the one behind
    which it may take so many ahead had ended."""
    out = np.full(loaded.shape, np.nan)
    for i in range(len(loaded)):
        order = np.lexsort((seen.issue[i], seen.worker[i]))
        order = order[seen.issue[i, order] != NEVER]
        worker = seen.worker[i, order]
        for back, times in ((1, loaded[i]), (ahead + 1, seen.done[i].astype(float))):
            same = np.nonzero(worker[back:] == worker[:-back])[0]
            out[i, order[same + back]] = np.fmax(out[i, order[same + back]], times[order[same]])
    return out
