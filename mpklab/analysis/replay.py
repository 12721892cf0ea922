"""`what_if`: the measured tasks once more, under other schedules, worker counts, durations and hand-offs.

The engine is the simulator's. It gets the measured executions and one figure for each kind of hand-off, never the
measured waits; what it makes of the measured schedule itself tells how far its other answers can be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import pandas as pd

from mpklab import recipe
from mpklab.analysis.cuts import cut
from mpklab.analysis.handoffs import waits
from mpklab.analysis.handouts import issues, own_pushes, pools, turns
from mpklab.analysis.idle import publication
from mpklab.analysis.observed import Observed, observe
from mpklab.analysis.streams import KINDS, MIN_WAITS, Streams, alike, streams_of
from mpklab.errors import MpkError, ProfileError, suggest
from mpklab.frames import NEVER, decode, records
from mpklab.frames.tables import family
from mpklab.profile import Profile
from mpklab.schedule import POLICIES, Schedule, assign
from mpklab.simulator import Costs, Program, Work, loads, run
from mpklab.tasks.handoffs import choose_handoffs

MAX_INSTANCES = 200_000  # tasks × iterations that one replay walks through
MAX_WAITS = 20_000  # more are thinned out
DYNAMIC, STATIC = "dynamic mode", "static mode"
# By how much predictions were off at most that were run afterwards, by what they change (six models on H200s,
# profiles/LOG.md); what a change of hand-offs does was never recorded on both sides. static: queues, from a recording of
# a pool, against runs without recording.
OFF = {"policy": 0.08, "workers": 0.04, "mode": 0.04, "static": 0.18, "tiles": 0.05, "handoff": 0.03}
HANDED_OVER = 0.8  # an event that happened so many hand-offs ago is seen at the first look
FEW_LOOKS = 100  # of fewer the middle may be that of a few tasks which something held up


@dataclass(frozen=True, eq=False)
class Measured:
    """What a recording gives the engine: its program, the work of each task and what hand-offs cost."""

    profile: Profile
    program: Program
    work: Work
    costs: Costs
    makespan_ns: int
    iterations: int
    recorded: Program
    rank: int
    other: Streams | None = None  # of tiles that were not recorded

    @cached_property
    def streams(self) -> Streams | None:
        """What loaders bring; None on a CPU, or where the recording does not say it."""
        return self.other or streams_of(self.profile, self.rank, self.recorded, self.work, self.costs, self.iterations)

    def run(
        self,
        program: Program | None = None,
        work: Work | None = None,
        costs: Costs | None = None,
        loads: bool = True,
    ) -> float:
        """The makespan in ns. Under another schedule of a GPU the weights are loaded once more, by the engine's memory
        (not where `loads` is false: then all is there)."""
        chosen, todo, figures = program or self.program, work or self.work, costs or self.costs
        streams = self.streams if loads and chosen is not self.recorded else None
        if streams is None:
            return run(chosen, todo, figures, self.iterations).makespan_ns
        with np.errstate(invalid="ignore"):
            todo = streams.loaded(todo, np.where(self.work.execute > 0, todo.execute / self.work.execute, 1.0))
        timeline = run(chosen, todo, figures, self.iterations)
        for _ in range(3):  # how crowded memory is depends on how long all takes
            timeline = run(chosen, *streams.quieter(todo, figures, timeline), self.iterations)
        return timeline.makespan_ns * streams.scale


def measured(profile: Profile, rank: int | None = None) -> Measured:
    """The engine's input; ProfileError where a recording is too incomplete to be replayed."""
    seen = next((s for s in observe(profile) if (rank is None or s.rank == rank) and s.iterations.size), None)
    if seen is None or not profile.n_tasks or not (seen.begin != NEVER).any():
        raise ProfileError("nothing to replay: the profile holds no task that ran")
    if not profile.waits["wait_event"].size and profile.edges:
        raise ProfileError("nothing to replay: the profile holds edges, but not who waits for which event")
    ran = (seen.end != NEVER) & (seen.begin != NEVER)
    if ran.mean() < 0.9:
        raise ProfileError(
            f"only {100 * ran.mean():.0f} % of the tasks were recorded to their end; a replay needs 90 % (record with more room)"
        )
    most = max(1, MAX_INSTANCES // profile.n_tasks)
    rows = slice(0, min(seen.iterations.size, most))
    known = seen.begin != NEVER

    def phase(some: np.ndarray, ns: np.ndarray) -> np.ndarray:
        """Per iteration and task, where it was recorded; else the task's median."""
        values = np.where(some, ns, np.nan)[rows].astype(float)
        return np.where(np.isnan(values), _medians(values), values)

    waited = known & (seen.start != NEVER)
    stated = Costs.of_profile(profile)
    work = Work.given(
        phase(ran, seen.end - seen.begin),
        fetch=phase(known, seen.fetch + turns(profile, seen)),
        gather=phase(waited, seen.begin - seen.start),
        signal=phase(ran & (seen.done != NEVER), seen.done - seen.end - own_pushes(profile, seen)),
        load=_loads(profile, seen, stated),
    )
    last = min(seen.iterations.size, most) - 1
    whole = int(seen.done[rows].max()) - _first(profile)
    costs = _costs(profile, seen, stated)
    recorded = Program.of_profile(profile)
    return Measured(profile, recorded, work, costs, whole, last + 1, recorded, seen.rank)


def _loads(profile: Profile, seen: Observed, costs: Costs) -> np.ndarray:
    """Per task, how long a loader issues its copies: its median where that was recorded (level 3) and the loader did not
    run ahead, as it does through static queues."""
    stated = loads(profile.tasks["bytes"].astype(float), costs)
    recorded = issues(profile, seen) if (profile.tasks["worker"] < 0).any() else None
    if recorded is None:
        return stated
    some = ~np.isnan(recorded).all(0) & ~np.isnan(stated)
    return np.where(some, _medians(recorded), stated)


def _first(profile: Profile) -> int:
    d = decode(profile)
    compute = d.lanes.role[d.lane] == records.COMPUTE
    return int(d.begin_ns[compute].min()) if compute.any() else 0


def _medians(values: np.ndarray) -> np.ndarray:
    """Column medians; 0 for columns without a value."""
    out = np.zeros(values.shape[1])
    some = ~np.isnan(values).all(0)
    if some.any():
        out[some] = np.nanmedian(values[:, some], 0)
    return out


def _costs(profile: Profile, seen: Observed, costs: Costs) -> Costs:
    """One figure per kind of hand-off: the mean latency, so that rare long ones weigh what they cost in all. What the
    recording does not show (pools in a static one) stays as the machine's figures say."""
    look, handoffs = _looks(profile, seen, costs.handoff_ns)
    handoff = handoffs["counter"]
    w = waits(profile)
    happened = w["happened_ns"].where(w["happened_ns"] != NEVER, w["begin_ns"])
    past = (w["rank"] == seen.rank) & (w["begin_ns"] - happened > 2 * handoff)
    further = w.loc[past & w.duplicated(["iteration", "task"]), "dur_ns"]
    d = decode(profile)
    steps = np.nonzero((d.phase == records.STEP) & (d.lanes.rank[d.lane] == seen.rank))[0]
    published, by = publication(profile, seen)
    step = handoff
    if steps.size and published.size:
        row = d.iteration[steps].astype(np.int64) - seen.iterations[0] - 1
        fine = (row >= 0) & (row < published.size)
        row, steps = row[fine], steps[fine]
        given = np.where(published[row] == NEVER, NEVER, seen.done[row, by[row]])
        real = (given != NEVER) & (given > d.begin_ns[steps])
        if real.any():
            step = float(np.maximum(0, d.end_ns[steps] - given)[real].mean())
    return replace(
        costs,
        handoff_ns={**handoffs, "worker": 0.0},
        wait_ns=look,
        more_wait_ns=float(further.median()) if len(further) else 0.0,
        step_ns=step,
        **cast(Any, pools(profile, seen, costs)),
        source="measured",
    )


def _past(behind: np.ndarray, handoff: float) -> np.ndarray:
    """Waits that began long after their event: at least so many hand-offs, or, of few such, those that began last."""
    past = behind > HANDED_OVER * max(1.0, handoff)
    if past.sum() < FEW_LOOKS:
        past |= behind > max(HANDED_OVER / 2 * handoff, np.sort(behind)[-min(FEW_LOOKS, behind.size)])
    return past


def _quickest(dur: np.ndarray) -> float:
    """What looks take in the middle; one that took more than twice the quickest tenth was held up by something else."""
    return float(np.median(dur[dur <= 2 * np.quantile(dur, 0.1)]))


def _looks(profile: Profile, seen: Observed, stated: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """How long one look at an event takes, and a hand-off of each kind; `stated` where no wait tells.

    A look is what a task's first wait takes whose event happened long ago. Other first waits end with the first look
    that ends some time after the event: the time under which they are as long as they were, on average.
    """
    w = waits(profile)
    w = w[(w["rank"] == seen.rank) & (w["done_ns"] != NEVER) & ~w.duplicated(["iteration", "task"])]
    late = (w["latency_ns"] - w["publish_ns"])[w["waited"]]
    if min(len(late), len(w) - len(late)) < MIN_WAITS:  # too few of those who waited, or of those who only looked
        looked = w.loc[~w["waited"], "dur_ns"]
        look = float(looked.median()) if len(looked) else 0.0
        means = {name: late[w["words"] == words].mean() for name, words in KINDS.items()}
        return look, {name: float(ns) if ns == ns else stated.get(name, 0.0) for name, ns in means.items()}
    w = w.iloc[:: max(1, len(w) // MAX_WAITS)]
    behind = (w["begin_ns"] - w["done_ns"]).to_numpy(float)  # signals themselves are replayed
    dur, by_words = w["dur_ns"].to_numpy(float), w["words"].to_numpy()
    keep = dur <= np.quantile(dur + np.minimum(behind, 0), 0.999) - np.minimum(behind, 0)
    behind, dur, by_words = behind[keep], dur[keep], by_words[keep]

    past = _past(behind, float(late.mean()))
    look = _quickest(dur[past]) if past.sum() >= MIN_WAITS else 0.0

    def handoff(behind: np.ndarray, dur: np.ndarray) -> float:
        low, high = 0.0, max(1.0, float(np.quantile(behind + dur, 0.99)))
        for _ in range(24):
            visible = (low + high) / 2
            rest = np.maximum(visible - behind, 0.0)
            after = look * np.maximum(1.0, np.ceil(rest / look)) if look else rest
            low, high = (visible, high) if after.mean() < dur.mean() else (low, visible)
        return round(float(high + look / 2), 3)

    out = {}
    for name, words in KINDS.items():
        mine = ~past & (by_words == words)
        if mine.sum() >= MIN_WAITS:
            out[name] = handoff(behind[mine], dur[mine])
    return look, alike(out, stated) if out else dict.fromkeys(KINDS, handoff(behind[~past], dur[~past]))


def what_if(
    profile: Profile,
    *,
    policy: str | Callable[..., Any] | None = None,
    workers: int | None = None,
    mode: str | None = None,
    queues: Sequence[Sequence[int]] | pd.DataFrame | None = None,
    tiles: Mapping[str, int] | None = None,
    faster: Mapping[str, float] | None = None,
    handoff_ns: float | None = None,
    handoff: str | None = None,
    prefetch: bool = False,
    top: int = 8,
) -> pd.DataFrame:
    """How long the recorded iterations would have taken. All changes that are given apply together; without any, a table
    of single ones: hand-offs for free, pages always there, tasks handed out at run time (or, where they were, put into
    queues), and each operator (layers together) twice as fast, largest gain first.

    policy: a name of `mk.schedule.POLICIES` or a function (needs the profile's recipe); where tasks were handed out at run
    time it means static queues, unless mode="dynamic" is given too · workers: how many; tasks that were all handed out
    still are · mode: "dynamic" or "static", which makes queues by the recorded policy, or by `assign`'s default where
    that is none of `mk.schedule.POLICIES` (needs the recipe) · queues: task ids per worker, or a table with worker,
    position and task · tiles: other tile sizes, by operator or kind as `lower` takes them (with a policy's name or workers
    alone) · faster: how many times faster, by operator name, kind, or name without layer · handoff_ns: every hand-off
    takes this long · handoff: "counter" or "data", how outputs are handed over where they can be, as `lower` takes it
    (needs the recipe) · prefetch: no consumer ever waits for a page (needs level 3).
    change · makespan_ns · gain_ns: against the replay of the recorded schedule · gain: as a share of it · error: how far,
    as a share too, such predictions were off at most when they were run on a GPU, and no less than the replay itself is;
    NaN where none was run. The first two rows are the measurement itself and that replay; the second's gain is how far
    it is off, its own error. What a recording itself costs is part of all: ask recordings of level 2 rather than 3, where
    a short step is a tenth longer than without. A kind of hand-off that the recording does not show takes as many times
    what the other does as the machine's figures say, and what it says itself where a pool alone was recorded; how words
    keep those busy who poll them is not modelled. ProfileError for what cannot be asked of this recording.
    """
    _check(handoff_ns, faster)
    m = measured(profile)
    base = m.run()
    rows: list[tuple[str, float, float]] = [
        ("measured", float(m.makespan_ns), 0.0),
        ("replayed as recorded", base, m.makespan_ns - base),
    ]
    asked = [policy is not None or workers is not None or mode is not None or queues is not None]
    asked += [faster is not None, handoff_ns is not None, prefetch]
    asked[0] |= handoff is not None
    unpooled = False
    if tiles and (mode is not None or queues is not None or handoff or any(asked[1:]) or callable(policy)):
        raise ProfileError("tiles can be changed together with a policy's name or the number of workers alone")
    if tiles or any(asked):
        if tiles:
            made = cut(m, tiles, str(policy) if policy else None, workers).run()
        else:
            chosen = program(m, policy, workers, mode, queues, handoff) if asked[0] else m.program
            unpooled = bool(m.program.pooled.any() and not chosen.pooled.any())
            work, costs = _moved(m, chosen)
            work = _faster(m, work, faster or {})
            work = prefetched(m, work) if prefetch else work
            costs = costs if handoff_ns is None else flat(costs, float(handoff_ns))
            made = m.run(chosen, work, costs, loads=not prefetch)
        said = [
            ", ".join(f"{name} in tiles of {size}" for name, size in (tiles or {}).items()),
            f"policy {getattr(policy, '__name__', policy)}" if policy is not None else "",
            f"{workers} workers" if workers is not None else "",
            f"{mode} mode" if mode is not None else STATIC if unpooled else "",
            "other queues" if queues is not None else "",
            *(f"{name} {factor:g}× faster" for name, factor in (faster or {}).items()),
            f"hand-offs of {handoff_ns:g} ns" if handoff_ns is not None else "",
            f"hand-offs by {'words' if handoff == 'data' else 'counters'}" if handoff is not None else "",
            "pages always there" if prefetch else "",
        ]
        rows.append((", ".join(s for s in said if s), made, base - made))
    else:
        rows += _single_changes(m, base, top)
    ns = np.array([r[1] for r in rows])
    gain = np.array([r[2] for r in rows])
    share = gain / np.where(np.arange(len(rows)) <= 1, max(1.0, m.makespan_ns), max(1.0, base))
    changed = {"policy": policy, "workers": workers, "mode": mode, "tiles": tiles, "handoff": handoff}
    changed["static"] = unpooled or None
    # Nobody has run a pool of fewer workers, or one in other queues, beside a recorded pool.
    unknown = queues is not None or any(asked[1:]) or bool(m.program.pooled.any() and not unpooled)
    far = float("nan") if unknown else max([OFF[name] for name, value in changed.items() if value is not None] or [0])
    error = [float("nan"), abs(share[1])]
    for change in [r[0] for r in rows[2:]]:
        most = far if tiles or any(asked) else {DYNAMIC: OFF["mode"], STATIC: OFF["static"]}.get(change, float("nan"))
        error.append(max(most, error[1]) if most == most else most)
    return pd.DataFrame(
        {"change": [r[0] for r in rows], "makespan_ns": ns, "gain_ns": gain, "gain": share, "error": error}
    )


def _single_changes(m: Measured, base: float, top: int) -> list[tuple[str, float, float]]:
    runs: list[tuple[str, float]] = [("hand-offs for free", m.run(costs=flat(m.costs, 0.0)))]
    if _page_waits(m) is not None:
        runs.append(("pages always there", m.run(work=prefetched(m, m.work))))
    if (m.profile.tasks["worker"] >= 0).all():
        runs.append((DYNAMIC, replayed(m, mode="dynamic")))
    else:
        with suppress(ProfileError):  # without a recipe there is nothing to make queues from
            runs.append((STATIC, replayed(m, mode="static")))
    spent: dict[str, float] = {}
    for o, ns in zip(m.profile.operators, _per_operator(m), strict=True):
        spent[family(str(o["name"]))] = spent.get(family(str(o["name"])), 0.0) + ns
    for name in sorted(spent, key=lambda n: -spent[n])[:top]:
        runs.append((f"{name} 2× faster", m.run(work=_faster(m, m.work, {name: 2.0}))))
    out = [(name, ns, base - ns) for name, ns in runs]
    return sorted(out, key=lambda r: -r[2])


def replayed(m: Measured, **changes: Any) -> float:
    """The makespan of the recorded tasks under another schedule; see `program`."""
    made = program(m, *(changes.get(name) for name in ("policy", "workers", "mode", "queues")))
    return m.run(made, *_moved(m, made))


def _moved(m: Measured, made: Program) -> tuple[Work, Costs]:
    """The measured work and costs, with signals that take as long as they do where tasks are handed out, or are not. No
    hand-off to a queue shows where all came from a pool: there the machine's figures stand for them."""
    change = int(made.pooled.any()) - int(m.program.pooled.any())
    if not change:
        return m.work, m.costs
    work = replace(m.work, signal=np.maximum(0.0, m.work.signal + change * m.costs.pool_signal_ns))
    machine = recipe.machine_of(m.profile)
    if not m.program.pooled.all() or made.pooled.any() or machine is None:
        return work, m.costs
    return work, replace(m.costs, handoff_ns={**Costs.of(machine).handoff_ns, "worker": 0.0})


def _per_operator(m: Measured) -> np.ndarray:
    ns = m.work.execute.sum(0)
    return np.bincount(m.profile.tasks["operator"], weights=ns, minlength=len(m.profile.operators))


def flat(costs: Costs, ns: float) -> Costs:
    """The same costs with every hand-off at one figure."""
    wait = min(costs.wait_ns, ns)
    return replace(costs, handoff_ns={"counter": ns, "data": ns, "worker": 0.0}, step_ns=ns, wait_ns=wait)


def _check(handoff_ns: Any, faster: Any) -> None:
    """Raises ProfileError for what no replay can be asked for."""
    number = isinstance(handoff_ns, int | float) and not isinstance(handoff_ns, bool)
    if handoff_ns is not None and not (number and np.isfinite(handoff_ns) and handoff_ns >= 0):
        raise ProfileError(f"handoff_ns: expected a time in ns from 0, found {handoff_ns!r}")
    if faster is not None and not isinstance(faster, Mapping):
        raise ProfileError(f'faster: expected factors by operator, such as {{"attention": 2.0}}, found {faster!r}')


def _faster(m: Measured, work: Work, faster: Mapping[str, float]) -> Work:
    factor = np.ones(m.profile.n_tasks)
    for name, times in faster.items():
        if not (isinstance(times, int | float) and np.isfinite(times) and times > 0):
            raise ProfileError(f"faster: expected a positive factor for {name!r}, found {times!r}")
        hit = np.array([name in (o["name"], o["op"], family(str(o["name"]))) for o in m.profile.operators], bool)
        if not hit.any():
            known = {str(w) for o in m.profile.operators for w in (o["name"], o["op"], family(str(o["name"])))}
            raise ProfileError(f"faster: no operator, kind or family is called {name!r}; {suggest(name, known)}")
        factor[hit[m.profile.tasks["operator"]]] *= times
    return replace(work, execute=work.execute / factor)


def scaled(m: Measured, factor: np.ndarray) -> Work:
    """The measured work with every task's execution multiplied by its factor."""
    return replace(m.work, execute=m.work.execute * factor)


def _page_waits(m: Measured) -> np.ndarray | None:
    """Per task, the typical time that its consumers stood before pages; None where that was not recorded."""
    d = decode(m.profile)
    some = np.nonzero((d.phase == records.OPERAND) & (d.task >= 0) & (d.lanes.role[d.lane] == records.COMPUTE))[0]
    if not some.size:
        return None
    ns = np.bincount(d.task[some], weights=(d.end_ns - d.begin_ns)[some], minlength=m.profile.n_tasks)
    return ns / max(1, np.unique(d.iteration[some]).size)


def prefetched(m: Measured, work: Work) -> Work:
    """The work without what consumers waited for pages."""
    stood = _page_waits(m)
    if stood is None:
        raise ProfileError("prefetch: what consumers wait for pages is recorded at level 3 only")
    return replace(work, execute=np.maximum(work.execute - stood, 0.0))


def _handed_over(profile: Profile, kind: str) -> Schedule:
    """The recorded schedule with outputs handed over by counters alone, or by words where they can be."""
    recorded = recipe.schedule_of(profile)
    tasks, plan = recorded.tasks, recorded.tasks.plan
    handoffs = choose_handoffs(tasks.graph, tasks.machine, plan.tilings, plan.settings, kind)
    made = replace(recorded, tasks=replace(tasks, plan=replace(plan, handoffs=handoffs)))
    if kind == "data" and not made.by_words.any():
        raise ProfileError("handoff: no output of this schedule can be handed over by words")
    return made


def program(
    m: Measured,
    policy: str | Callable[..., Any] | None,
    workers: int | None,
    mode: str | None,
    queues: Sequence[Sequence[int]] | pd.DataFrame | None,
    handoff: str | None = None,
) -> Program:
    """The recorded tasks under another schedule; see `what_if` for what a change means where a pool was recorded."""
    made = m.program
    pooled = bool(made.pooled.any())
    if handoff is not None and (mode == "dynamic" or pooled):
        raise ProfileError("handoff: where tasks are handed out at run time every event is counted")
    if mode not in (None, "static", "dynamic"):
        raise ProfileError(f"mode: {suggest(str(mode), ('static', 'dynamic'))}")
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or not 0 < workers < 1 << 16):
        raise ProfileError(f"workers: expected a count from 1, found {workers!r}")
    count = m.profile.n_workers if workers is None else workers
    try:
        recorded = _handed_over(m.profile, handoff) if handoff is not None else None
        if recorded is not None:
            words = frozenset(np.flatnonzero(recorded.by_words[recorded.tasks.event_producer]).tolist())
            if words != made.words:
                made = replace(made, words=words).as_static(cast(Any, made.queues))
        if queues is not None:
            if isinstance(queues, pd.DataFrame):
                by: Any = queues.sort_values(["worker", "position"]).groupby("worker")["task"]
                lists = {int(w): [int(t) for t in tasks] for w, tasks in by}
                count = max(count, max(lists, default=-1) + 1) if workers is None else count
                queues = [lists.get(w, []) for w in range(count)]
            made = made.as_static(queues)
        elif policy is not None or (mode == "static" if pooled else workers is not None and mode != "dynamic"):
            recorded = recorded or recipe.schedule_of(m.profile)
            own = recorded.policy if not pooled or recorded.policy in POLICIES else None
            made = Program.of_schedule(assign(recorded.tasks, policy=policy or own, workers=count))
        elif workers is not None and mode is None:
            if not made.pooled.all():
                raise ProfileError(
                    f"workers: part of the tasks were handed out at run time; say mode='static' or mode='dynamic' for {workers}"
                )
            made = made.as_dynamic(count, made.handout)
        if mode == "dynamic":
            # As `assign` has it: a loader takes a task while its worker computes.
            ahead = replace(made.handout, pop_ahead=int(m.costs.ring_bytes > 0))
            made = made.as_dynamic(count, m.program.handout if pooled else ahead)
    except ProfileError:
        raise
    except MpkError as error:
        raise ProfileError(f"this schedule cannot be replayed: {error}") from error
    return made
