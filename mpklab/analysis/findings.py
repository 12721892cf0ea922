"""The findings that cost most, in plain sentences: where worker time went, through whose fault, and what it rests on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mpklab import abi
from mpklab.analysis.handoffs import waits
from mpklab.analysis.idle import CLASSES, Pieces, pieces
from mpklab.analysis.limits import positive
from mpklab.analysis.load import imbalance
from mpklab.analysis.observed import ALWAYS, observe
from mpklab.analysis.rates import roofline
from mpklab.analysis.replay import Measured, flat, measured, prefetched, replayed, scaled
from mpklab.errors import MpkError, ProfileError
from mpklab.frames import NEVER, decode, health, records, residual
from mpklab.frames.tables import family
from mpklab.profile import Profile

_CODE = {name: i for i, name in enumerate(CLASSES)}
WAITING = ("producer", "blocked", "starved", "ready_elsewhere", "latency")
SLOW = 1.15  # a worker is slow when its tiles take this many times the median of their operators
MANY_TASKS = 50_000  # beyond this many, replays take seconds
TRUSTED = 0.2  # a replay further off than this share predicts nothing
AT_LIMIT = 0.9  # of the memory's bandwidth: little makes an operator there faster
FEW = 0.5  # an operator has few tiles when they leave half of the workers or more without one


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence, the worker time it is about, the tasks it rests on, and what would help: said, and replayed."""

    kind: str
    sentence: str
    cost_ns: int
    tasks: tuple[int, ...]
    remedy: str = ""
    replay: Callable[[Measured], float] | None = None


def explain(profile: Profile, top: int = 5, gains: bool | None = None) -> pd.DataFrame:
    """The `top` findings that cost most worker time, largest first.

    kind: slow_worker, few_tiles, late_pages, order, handoff, handout, waits, ramp, fetch, recording, remote, lost (handout:
    tasks that are handed out at run time lay ready before a worker had them) · finding: a sentence · cost_ns: worker time
    lost to it · share: of all worker time · tasks: ids it rests on (the most costly, at most 32) · remedy, gain_ns: what
    would help, and by how much the recorded iterations would be shorter for it as `what_if` predicts (NaN where it
    cannot; `gains=False` leaves it out, the default for very large recordings) · error_ns: how far the replay of the
    recording as it is misses it; the sentence states no gain that is smaller, and where it misses by more than a fifth
    the first one says that nothing is predicted.
    No worker time counts for two findings: the more specific cause takes it. A sentence says ± what the clocks may have
    added to all that it sums up, where that shows. ProfileError for a `top` below 1.
    """
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise ProfileError(f"explain: top is how many findings to give, from 1, not {top!r}")
    p = pieces(profile)
    total = max(1, int(p.ns.sum()))
    found: list[Finding] = []
    free = np.isin(p.kind, [_CODE[c] for c in WAITING])
    for look in (_slow_workers, _few_tiles, _late_pages, _order, _handoffs, _handouts, _waits):
        free = look(profile, p, free, total, found)
    found += _rest(profile, p, total)
    found = sorted((f for f in found if f.cost_ns > 0), key=lambda f: -f.cost_ns)[:top]
    gain, error = _gains(profile, found, gains)
    sentences = [_with_gain(f, g, error, p.makespan_ns) for f, g in zip(found, gain, strict=True)]
    if not np.isnan(error) and error > TRUSTED * p.makespan_ns:
        better = ", so record level 2, which has the waits" if profile.level < 2 else ""
        sentences[0] += f" What a remedy saves is not predicted: the replay is {say_ns(error)} off{better}."
    return pd.DataFrame(
        {
            "kind": [f.kind for f in found],
            "finding": sentences,
            "cost_ns": np.array([f.cost_ns for f in found], np.int64),
            "share": [f.cost_ns / total for f in found],
            "tasks": [list(f.tasks) for f in found],
            "remedy": [f.remedy for f in found],
            "gain_ns": gain,
            "error_ns": error,
        }
    )


def _gains(profile: Profile, found: list[Finding], wanted: bool | None) -> tuple[np.ndarray, float]:
    """What each remedy saves against the replay of the recording as it is, and how far that is off."""
    gain = np.full(len(found), np.nan)
    if wanted is False or (wanted is None and profile.n_tasks > MANY_TASKS) or not found:
        return gain, float("nan")
    try:
        m = measured(profile)
        base = m.run()
    except MpkError:  # what is incomplete is not replayed
        return gain, float("nan")
    error = abs(base - m.makespan_ns)
    if error > TRUSTED * pieces(profile).makespan_ns:
        return gain, error
    for i, f in enumerate(found):
        if f.replay is not None:
            try:
                gain[i] = max(0.0, base - f.replay(m))
            except MpkError:
                continue
    return gain, error


def _scaling(factor: np.ndarray) -> Callable[[Measured], float]:
    """The replay in which every task's execution takes so many times as long."""
    return lambda m: m.run(work=scaled(m, factor))


def _with_gain(f: Finding, gain: float, error: float, makespan_ns: int) -> str:
    if not gain > max(0.0, error):
        return f.sentence
    saved = f"{say_ns(gain)} ± {say_ns(error)} ({100 * gain / max(1, makespan_ns):.1f} %)"
    return f"{f.sentence} {f.remedy} is predicted to save {saved}."


def say_ns(ns: float) -> str:
    """A time as people say it: 412 ns, 3.6 µs, 1.24 ms."""
    for limit, unit in ((1e3, "ns"), (1e6, "µs"), (1e9, "ms")):
        if abs(ns) < limit:
            return f"{ns / (limit / 1e3):.3g} {unit}"
    return f"{ns / 1e9:.3g} s"


def _said(profile: Profile, cost: int, count: int) -> str:
    """A sum of so many times, each off by the clocks' error bar for itself, with its own where that is 1 % or more."""
    error = residual(profile) * np.sqrt(count)
    return f"{say_ns(cost)} ± {say_ns(float(f'{error:.2g}'))}" if error >= 0.01 * cost else say_ns(cost)


def _families(profile: Profile) -> tuple[list[str], np.ndarray]:
    """Names of families, and the family of each task; -1 for a task without one, which is also the last entry's."""
    code, names = pd.factorize(np.array([family(str(o["name"])) for o in profile.operators], object))
    of_task = code[profile.tasks["operator"]] if profile.n_tasks else np.zeros(0, np.int64)
    return [str(n) for n in names], np.append(of_task, -1)


def _known(profile: Profile, task: np.ndarray) -> np.ndarray:
    return np.where(task < profile.n_tasks, task, -1)


def _costly(task: np.ndarray, ns: np.ndarray, most: int = 32) -> tuple[int, ...]:
    """The tasks with the largest sums."""
    fine = task >= 0
    ids, where = np.unique(task[fine], return_inverse=True)
    sums = np.bincount(where, weights=ns[fine], minlength=ids.size)
    return tuple(int(i) for i in ids[np.argsort(-sums, kind="stable")[:most]])


def _share(ns: float, total: int) -> str:
    return f"{100 * ns / total:.1f} % of worker time"


def _slow_workers(profile: Profile, p: Pieces, free: np.ndarray, total: int, out: list[Finding]) -> np.ndarray:
    """Workers whose tiles take longer than the same operators' tiles elsewhere, and who then keep others waiting."""
    table = imbalance(profile, "worker")
    slow = table[(table["slowdown"] > SLOW) & (table["tasks"] >= 3)]
    if slow.empty or len(slow) > max(1, len(table) // 3) or len(table) < 2:
        return free
    rows: Any = slow.itertuples(index=False)
    for row in rows:
        at = int(row.rank) * profile.n_workers * (profile.n_ranks > 1) + int(row.worker)
        ran = np.zeros(profile.n_tasks + 1, bool)
        mine = (p.worker == at) & (p.kind == _CODE["execute"]) & (p.task >= 0)
        ran[_known(profile, p.task[mine])] = True
        ran[-1] = False
        waited = free & (p.worker != at) & (p.cause >= 0) & ran[_known(profile, p.cause)]
        cost = int(p.ns[waited].sum())
        out.append(
            Finding(
                "slow_worker",
                f"Worker {row.worker} takes {row.slowdown:.2f} times as long as the others for the same tiles; others "
                f"wait {_said(profile, cost, int(waited.sum()))} for it, {_share(cost, total)}.",
                cost,
                _costly(p.cause[waited], p.ns[waited]),
                "Bringing it to the others' pace",
                _scaling(np.where(ran[:-1], 1 / row.slowdown, 1.0)),
            )
        )
        free = free & ~waited
    return free


def _few_tiles(profile: Profile, p: Pieces, free: np.ndarray, total: int, out: list[Finding]) -> np.ndarray:
    """Operators cut into so few tiles that most workers can only wait for them."""
    workers = profile.n_workers
    tiles = np.diff(profile.task_first)
    few = (tiles > 0) & (tiles <= FEW * workers)
    if not few.any() or workers < 2:
        return free
    names, of_task = _families(profile)
    in_few = np.append(few[profile.tasks["operator"]], False)
    cause = _known(profile, p.cause)
    taken = free & in_few[cause] & ~np.isin(p.kind, [_CODE["latency"], _CODE["blocked"]])
    for f in np.unique(of_task[cause[taken]]):
        mine = taken & (of_task[cause] == f)
        cost = int(p.ns[mine].sum())
        count = int(tiles[profile.tasks["operator"][cause[mine]]].max())
        out.append(
            Finding(
                "few_tiles",
                f"{names[int(f)]} is cut into {count} tile{'s' * (count != 1)} for {workers} workers; the others wait "
                f"{_said(profile, cost, int(mine.sum()))} for it, {_share(cost, total)}.",
                cost,
                _costly(p.cause[mine], p.ns[mine]),
                f"Spreading it over all {workers} workers",
                _scaling(np.where(of_task[:-1] == f, count / workers, 1.0)),
            )
        )
    return free & ~taken


def _late_pages(profile: Profile, p: Pieces, free: np.ndarray, total: int, out: list[Finding]) -> np.ndarray:
    """Time that consumers stood before pages that had not arrived (level 3), and loads that did not run ahead."""
    d = decode(profile)
    pages = (d.phase == records.OPERAND) & (d.lanes.role[d.lane] == records.COMPUTE)
    cost = int((d.end_ns - d.begin_ns)[pages].sum())
    if not cost:
        return free
    loads = np.nonzero((d.phase == int(abi.Phase.load)) & (d.task >= 0))[0]
    ahead = ""
    if loads.size:
        starts = pd.Series(d.begin_ns[loads]).groupby([d.iteration[loads], d.task[loads]]).min()
        runs = np.nonzero((d.phase == records.EXECUTE) & (d.task >= 0))[0]
        begins = pd.Series(d.begin_ns[runs]).groupby([d.iteration[runs], d.task[runs]]).min()
        lead = (begins - starts).dropna()
        if len(lead):
            ahead = f"; loads begin a median of {say_ns(float(lead.median()))} before the task computes"
    out.append(
        Finding(
            "late_pages",
            f"Consumers wait {_said(profile, cost, int(pages.sum()))} for pages to arrive, {_share(cost, total)}{ahead}.",
            cost,
            _costly(d.task[pages], (d.end_ns - d.begin_ns)[pages]),
            "Loading far enough ahead",
            lambda m: m.run(work=prefetched(m, m.work)),
        )
    )
    return free


def _order(profile: Profile, p: Pieces, free: np.ndarray, total: int, out: list[Finding]) -> np.ndarray:
    """Waits at the head of a queue that held something ready."""
    blocked = free & (p.kind == _CODE["blocked"])
    cost = int(p.ns[blocked].sum())
    if cost:
        names, of_task = _families(profile)
        by = np.bincount(of_task[_known(profile, p.task[blocked])] + 1, weights=p.ns[blocked])
        head = int(by.argmax()) - 1
        most = f", most of it before {names[head]}" if head >= 0 else ""
        out.append(
            Finding(
                "order",
                f"Workers wait {_said(profile, cost, int(blocked.sum()))} at the head of their queue while a later task of the "
                f"same queue is ready{most}: {_share(cost, total)} that another order would use.",
                cost,
                _costly(p.task[blocked], p.ns[blocked]),
                "Handing tasks out at run time",
                lambda m: replayed(m, mode="dynamic"),
            )
        )
    return free & ~blocked


def _handoffs(profile: Profile, p: Pieces, free: np.ndarray, total: int, out: list[Finding]) -> np.ndarray:
    """Signals given and not seen yet."""
    late = free & (p.kind == _CODE["latency"])
    cost = int(p.ns[late].sum())
    if cost:
        seen = waits(profile)
        seen = seen[seen["waited"]].sort_values("latency_ns", ascending=False)
        ns = seen["latency_ns"].to_numpy()
        typical = f"{np.median(ns):.0f} ± {residual(profile):.0f} ns" if ns.size else "unknown time"
        slowest = f", the slowest hundredth {say_ns(float(np.quantile(ns, 0.99)))} and more" if ns.size >= 100 else ""
        out.append(
            Finding(
                "handoff",
                f"Signals take a median of {typical} to be noticed by the {ns.size} waits that stood before them{slowest}; "
                f"with the waits that only had to look, {_share(cost, total)}.",
                cost,
                _costly(p.task[late], p.ns[late]),
                "Doing without them",
                lambda m: m.run(costs=flat(m.costs, 0.0)),
            )
        )
    return free & ~late


def _handouts(profile: Profile, p: Pieces, free: np.ndarray, total: int, out: list[Finding]) -> np.ndarray:
    """Tasks of a pool that were ready before anybody had them, and what else nobody is to be blamed for."""
    pooled = profile.tasks["worker"] < 0
    taken = free & (p.cause < 0)
    lay = taken & (p.kind == _CODE["ready_elsewhere"])
    if not (pooled.any() and lay.any()):
        return free
    ready, nothing = int(p.ns[lay].sum()), int(p.ns[taken & ~lay].sum())
    late = np.zeros(profile.n_tasks)
    for seen in observe(profile):
        some = pooled & (seen.issue != NEVER) & (seen.ready != ALWAYS) & (seen.ready < seen.issue)
        late += np.where(some, seen.issue - np.where(some, seen.ready, 0), 0).sum(0)
    more = f"; for {say_ns(nothing)} more none was ready" if nothing else ""
    out.append(
        Finding(
            "handout",
            f"Tasks lay ready for {_said(profile, ready, int(lay.sum()))} of worker time before a worker had "
            f"them{more}: {_share(ready + nothing, total)}.",
            ready + nothing,
            _costly(np.flatnonzero(late), late[late > 0]),
            "Making queues beforehand",
            lambda m: replayed(m, mode="static"),
        )
    )
    return free & ~taken


def _shares(profile: Profile) -> dict[str, float]:
    """Per operator, layers together: what its bytes reach of the memory's bandwidth; empty where that is not known."""
    rates = roofline(profile)
    by = rates.groupby(rates["op"].map(lambda name: family(str(name))))[["bytes", "span_ns"]].sum()
    gbps = positive(profile.meta.get("bandwidth_gbps")) * profile.n_ranks
    return {str(n): float(b / ns / gbps) for n, b, ns in by[by["span_ns"] > 0].itertuples()} if gbps else {}


def _waits(profile: Profile, p: Pieces, free: np.ndarray, total: int, out: list[Finding]) -> np.ndarray:
    """What is left of waiting, by the operator that was waited for."""
    names, of_task = _families(profile)
    cause = of_task[_known(profile, p.cause)]
    shares = _shares(profile)
    for f in np.unique(cause[free]):
        mine = free & (cause == f)
        cost = int(p.ns[mine].sum())
        if f < 0:
            sentence = f"Workers have nothing to do for {_said(profile, cost, int(mine.sum()))}, {_share(cost, total)}."
        else:
            running = int(p.ns[mine & (p.kind == _CODE["producer"])].sum())
            ops = profile.tasks["operator"][p.cause[mine]]
            count = np.unique(ops).size
            where = f" ({count} operators of this name)" if count > 1 else ""
            percent = round(100 * running / max(1, cost))
            rest = ", for the rest it had not begun" if percent < 100 else ""
            sentence = (
                f"Workers wait {_said(profile, cost, int(mine.sum()))} for {names[int(f)]}{where}, {_share(cost, total)}; for "
                f"{percent} % of that it was running{rest}."
            )
        share = shares.get(names[int(f)], 0.0) if f >= 0 else 0.0
        remedy = "Making it twice as fast" if f >= 0 else ""
        if share >= AT_LIMIT:
            sentence = f"{sentence[:-1]}; its bytes come at {100 * share:.0f} % of the memory's bandwidth already."
            remedy = ""
        elif share > 0.5:
            remedy = "Bringing its bytes in at the memory's bandwidth"
        replay = _scaling(np.where(of_task[:-1] == f, max(0.5, share), 1.0))
        told = _costly(p.cause[mine], p.ns[mine])
        out.append(Finding("waits", sentence, cost, told, remedy, replay if remedy else None))
    return free & False


def _rest(profile: Profile, p: Pieces, total: int) -> list[Finding]:
    """Everything that is not waiting: ends of the run, descriptors, recording, lost records."""

    def cost(*names: str) -> int:
        return int(p.ns[np.isin(p.kind, [_CODE[n] for n in names])].sum())

    said: list[tuple[str, Callable[[int], str], tuple[str, ...]]] = [
        ("ramp", lambda c: f"Workers stand at the beginning and the end for {say_ns(c)}, {{}}.", ("ramp", "tail")),
        ("fetch", lambda c: f"Reading descriptors and giving signals takes {say_ns(c)}, {{}}.", ("fetch", "signal")),
        ("recording", lambda c: f"Recording itself takes {say_ns(c)}, {{}}.", ("recording",)),
        ("remote", lambda c: f"Workers wait {say_ns(c)} for other devices, {{}}.", ("remote",)),
    ]
    out = []
    for kind, sentence, names in said:
        c = cost(*names)
        codes = [_CODE[n] for n in names]
        tasks = _costly(p.task[np.isin(p.kind, codes)], p.ns[np.isin(p.kind, codes)])
        out.append(Finding(kind, sentence(c).format(_share(c, total)), c, tasks))
    lost = cost("unexplained")
    h = health(profile)
    dropped = int(h["dropped"].sum())
    why = f"; {dropped} records were dropped" if dropped else ""
    if lost:
        what = "is not explained" if profile.edges else "lies between spans, and without edges nothing says what for"
        out.append(Finding("lost", f"{say_ns(lost)} {what}, {_share(lost, total)}{why}.", lost, ()))
    return out
