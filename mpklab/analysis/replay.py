"""`what_if`: the measured tasks once more, under other schedules, worker counts, durations and hand-offs.

The engine is the simulator's. It gets the measured executions and one figure for each kind of hand-off, never the
measured waits; what it makes of the measured schedule itself tells how far its other answers can be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mpklab.analysis.handoffs import waits
from mpklab.analysis.idle import publication
from mpklab.analysis.observed import Observed, observe
from mpklab.errors import MpkError, ProfileError, suggest
from mpklab.frames import NEVER, decode, records
from mpklab.frames.tables import family
from mpklab.profile import Profile

if TYPE_CHECKING:
    from mpklab.simulator import Costs, Program, Work

MAX_INSTANCES = 200_000  # tasks × iterations that one replay walks through


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What a recording gives the engine: its program, the work of each task and what hand-offs cost."""

    profile: Profile
    program: Program
    work: Work
    costs: Costs
    makespan_ns: int
    iterations: int

    def run(self, program: Program | None = None, work: Work | None = None, costs: Costs | None = None) -> float:
        """The makespan in ns."""
        from mpklab.simulator import run

        return run(program or self.program, work or self.work, costs or self.costs, self.iterations).makespan_ns


def measured(profile: Profile, rank: int | None = None) -> Measured:
    """The engine's input; ProfileError where a recording is too incomplete to be replayed."""
    from mpklab.simulator import Costs, Program, Work

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
    execute = np.where(ran, seen.end - seen.begin, np.nan)[rows].astype(float)
    typical = _medians(execute)
    execute = np.where(np.isnan(execute), typical, execute)
    known = seen.begin != NEVER

    def phase(begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        fine = known & (begin != NEVER) & (end != NEVER)
        return np.asarray(_medians(np.where(fine, end - begin, np.nan).astype(float)))

    work = Work.given(
        execute,
        fetch=_medians(np.where(known, seen.fetch, np.nan).astype(float)),
        gather=phase(seen.start, seen.begin),
        signal=phase(seen.end, seen.done),
    )
    last = min(seen.iterations.size, most) - 1
    whole = int(seen.done[rows].max()) - _first(profile)
    return Measured(profile, Program.of_profile(profile), work, _costs(profile, seen, Costs()), whole, last + 1)


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
    """One figure per kind of hand-off: the mean latency, so that rare long ones weigh what they cost in all."""
    w = waits(profile)
    w = w[w["rank"] == seen.rank]
    late = (w["latency_ns"] - w["publish_ns"])[w["waited"]]
    handoff = float(late.mean()) if len(late) else 0.0
    # What a wait costs whose event lies so far back that its signal has long been seen.
    past = (w["happened_ns"] != NEVER) & (
        w["begin_ns"] - w["happened_ns"].where(w["happened_ns"] != NEVER, 0) > 2 * handoff
    )
    looked = w.loc[past, "dur_ns"]
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
    dur = d.end_ns - d.begin_ns
    push, pop = dur[d.phase == records.PUSH], dur[d.phase == records.POP]
    return replace(
        costs,
        handoff_ns={"counter": handoff, "data": handoff, "worker": 0.0},
        wait_ns=float(looked.median()) if len(looked) else 0.0,
        step_ns=step,
        push_ns=float(np.median(push)) if push.size else handoff / 4,
        queue_ns=handoff,
        pop_ns=float(np.quantile(pop, 0.1)) if pop.size else handoff / 2,
        source="measured",
    )


def what_if(
    profile: Profile,
    *,
    policy: str | Callable[..., Any] | None = None,
    workers: int | None = None,
    mode: str | None = None,
    queues: Sequence[Sequence[int]] | pd.DataFrame | None = None,
    faster: Mapping[str, float] | None = None,
    handoff_ns: float | None = None,
    prefetch: bool = False,
    top: int = 8,
) -> pd.DataFrame:
    """How long the recorded iterations would have taken. All changes that are given apply together; without any, a table
    of single ones: hand-offs for free, pages always there, tasks handed out at run time, and each operator (layers
    together) twice as fast, largest gain first.

    policy: a name of `mk.schedule.POLICIES` or a function (needs the profile's recipe) · workers: how many · mode:
    "dynamic" or "static" · queues: task ids per worker, or a table with worker, position and task · faster: how many
    times faster, by operator name, kind, or name without layer · handoff_ns: every hand-off takes this long · prefetch:
    no consumer ever waits for a page (needs level 3).
    change · makespan_ns · gain_ns: against the replay of the recorded schedule · gain: as a share of it. The first two
    rows are the measurement itself and that replay; the second's gain is how far it is off, its own error.
    """
    m = measured(profile)
    base = m.run()
    rows: list[tuple[str, float, float]] = [
        ("measured", float(m.makespan_ns), 0.0),
        ("replayed as recorded", base, m.makespan_ns - base),
    ]
    asked = [policy is not None or workers is not None or mode is not None or queues is not None]
    asked += [faster is not None, handoff_ns is not None, prefetch]
    if any(asked):
        chosen = program(m, policy, workers, mode, queues) if asked[0] else m.program
        work = _faster(m, m.work, faster or {})
        work = prefetched(m, work) if prefetch else work
        costs = m.costs if handoff_ns is None else flat(m.costs, float(handoff_ns))
        made = m.run(chosen, work, costs)
        said = [
            f"policy {getattr(policy, '__name__', policy)}" if policy is not None else "",
            f"{workers} workers" if workers is not None else "",
            f"{mode} mode" if mode is not None else "",
            "other queues" if queues is not None else "",
            *(f"{name} {factor:g}× faster" for name, factor in (faster or {}).items()),
            f"hand-offs of {handoff_ns:g} ns" if handoff_ns is not None else "",
            "pages always there" if prefetch else "",
        ]
        rows.append((", ".join(s for s in said if s), made, base - made))
    else:
        rows += _single_changes(m, base, top)
    ns = np.array([r[1] for r in rows])
    gain = np.array([r[2] for r in rows])
    share = gain / np.where(np.arange(len(rows)) <= 1, max(1.0, m.makespan_ns), max(1.0, base))
    return pd.DataFrame({"change": [r[0] for r in rows], "makespan_ns": ns, "gain_ns": gain, "gain": share})


def _single_changes(m: Measured, base: float, top: int) -> list[tuple[str, float, float]]:
    runs: list[tuple[str, float]] = [("hand-offs for free", m.run(costs=flat(m.costs, 0.0)))]
    if _page_waits(m) is not None:
        runs.append(("pages always there", m.run(work=prefetched(m, m.work))))
    if (m.profile.tasks["worker"] >= 0).all():
        runs.append(("dynamic mode", m.run(program(m, None, None, "dynamic", None))))
    spent: dict[str, float] = {}
    for o, ns in zip(m.profile.operators, _per_operator(m), strict=True):
        spent[family(str(o["name"]))] = spent.get(family(str(o["name"])), 0.0) + ns
    for name in sorted(spent, key=lambda n: -spent[n])[:top]:
        runs.append((f"{name} 2× faster", m.run(work=_faster(m, m.work, {name: 2.0}))))
    out = [(name, ns, base - ns) for name, ns in runs]
    return sorted(out, key=lambda r: -r[2])


def _per_operator(m: Measured) -> np.ndarray:
    ns = m.work.execute.sum(0)
    return np.bincount(m.profile.tasks["operator"], weights=ns, minlength=len(m.profile.operators))


def flat(costs: Costs, ns: float) -> Costs:
    """The same costs with every hand-off at one figure."""
    wait = min(costs.wait_ns, ns)
    return replace(costs, handoff_ns={"counter": ns, "data": ns, "worker": 0.0}, step_ns=ns, wait_ns=wait)


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


def program(
    m: Measured,
    policy: str | Callable[..., Any] | None,
    workers: int | None,
    mode: str | None,
    queues: Sequence[Sequence[int]] | pd.DataFrame | None,
) -> Program:
    """The recorded tasks under another schedule."""
    made = m.program
    if mode not in (None, "static", "dynamic"):
        raise ProfileError(f"mode: {suggest(str(mode), ('static', 'dynamic'))}")
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or not 0 < workers < 1 << 16):
        raise ProfileError(f"workers: expected a count from 1, found {workers!r}")
    count = m.profile.n_workers if workers is None else workers
    try:
        if queues is not None:
            if isinstance(queues, pd.DataFrame):
                by: Any = queues.sort_values(["worker", "position"]).groupby("worker")["task"]
                lists = {int(w): [int(t) for t in tasks] for w, tasks in by}
                count = max(count, max(lists, default=-1) + 1) if workers is None else count
                queues = [lists.get(w, []) for w in range(count)]
            made = made.as_static(queues)
        elif policy is not None or (workers is not None and mode != "dynamic"):
            from mpklab.recipe import schedule_of
            from mpklab.schedule import assign
            from mpklab.simulator import Program as Made

            recorded = schedule_of(m.profile)
            schedule = assign(recorded.tasks, policy=policy or recorded.policy, workers=count)
            made = Made.of_schedule(schedule)
        if mode == "dynamic":
            made = made.as_dynamic(count)
    except ProfileError:
        raise
    except MpkError as error:
        raise ProfileError(f"this schedule cannot be replayed: {error}") from error
    return made
