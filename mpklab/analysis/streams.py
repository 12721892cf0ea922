"""What a recording of a GPU tells of its loads, and of what queues behind them, so that the engine can load the same
weights under another schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mpklab import recipe
from mpklab.analysis.handoffs import waits
from mpklab.errors import ProfileError
from mpklab.frames import NEVER
from mpklab.frames.tables import family
from mpklab.profile import Profile
from mpklab.simulator import Costs, Program, Timeline, Work, run, traffic

# What the consumers of one worker of a GPU get through, in shares of the bandwidth, beyond what a task takes however small
# (which the cost model spreads over the bytes): 540 KB more in the larger tiles of o_proj and down_proj took them 7.8 µs
# (one H200, Qwen3-0.6B in tiles of 64 rows, level 3).
RING = 2.0
SETTLED = 3  # rounds after which what tasks take beyond their loads no longer changes
QUIET = 0.05  # the part of an operator's tasks, and of hand-offs, that nothing was in the way of
MIN_WAITS = 5  # fewer say nothing of hand-offs
KINDS = {"counter": False, "data": True}  # by abi.Handoff name: whether words say themselves when they are there


@dataclass(frozen=True, slots=True, eq=False)
class Streams:
    """What the loaders of a GPU's workers bring, what its consumers take for it, and what both keep waiting.

    some: bool[n], tasks whose weights a loader brings · ahead f64[n]: their bytes · compute, overhead f64[iterations, n]:
    ns that a consumer takes once all is there, and what a task took in the recorded schedule beyond both · rate: bytes per ns
    that a worker's consumers get through · quiet: by phase, f64[n], what its like take where nothing is in their way;
    quiet_handoff_ns: the same of hand-offs, by abi.Handoff name · crowding: `Timeline.crowding` of the recorded
    schedule · scale: its makespan from the measured executions, by that from its loads.
    """

    some: np.ndarray
    ahead: np.ndarray
    compute: np.ndarray
    overhead: np.ndarray
    rate: float
    quiet: Mapping[str, np.ndarray]
    quiet_handoff_ns: Mapping[str, float]
    crowding: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0

    def loaded(self, work: Work, part: np.ndarray | float = 1.0) -> Work:
        """Work whose streaming tasks take as long as their bytes do; `part`: of each task, what is left of it."""
        return replace(
            work,
            execute=np.where(self.some, np.nan, work.execute),
            ahead=self.ahead * np.broadcast_to(part, self.compute.shape).mean(0),
            compute=self.compute * part,
            overhead=self.overhead * part,
        )

    def quieter(self, work: Work, costs: Costs, timeline: Timeline) -> tuple[Work, Costs]:
        """The same where less is loaded, as in `timeline`: what accesses and hand-offs take beyond quiet ones, queueing
        behind the bytes under way, goes with how crowded memory is when tasks begin, and when events happen."""
        pairs = zip(timeline.crowding, self.crowding, strict=True)
        access, handoff = (min(1.0, now / recorded) if recorded else 1.0 for now, recorded in pairs)
        phases = {}
        for name, values in self.quiet.items():
            taken = getattr(work, name)
            quiet = np.fmin(taken, values)
            phases[name] = quiet + (taken - quiet) * access
        handoffs = dict(costs.handoff_ns)
        for name, ns in self.quiet_handoff_ns.items():
            handoffs[name] = min(handoffs[name], ns + (handoffs[name] - ns) * handoff)
        return replace(work, **phases), replace(costs, handoff_ns=handoffs)


def streams_of(
    profile: Profile, rank: int, program: Program, work: Work, costs: Costs, iterations: int
) -> Streams | None:
    """What a recording of a GPU tells of the loads of its tasks; None without a loader, or where the recipe is unknown.

    A consumer takes no longer than the task took, nor than its rate says; the engine loads the recorded
    schedule, and what a task took beyond that is its own.
    """
    machine = recipe.machine_of(profile)
    if not costs.ring_bytes or machine is None:
        return None
    try:
        ahead, _ = traffic(recipe.schedule_of(profile).tasks)
    except ProfileError:
        return None
    took = np.atleast_2d(work.execute)
    some = (ahead > 0) & (took > 0).all(0)
    if not some.any():
        return None
    ahead = np.where(some, ahead, 0.0)
    rate = RING * costs.bandwidth / machine.workers / 1e9
    compute = np.where(some, np.minimum(took, ahead / rate), 0.0)
    streams = Streams(some, ahead, compute, np.zeros_like(compute), rate, {}, _quiet_handoffs(profile, rank, costs))
    for _ in range(SETTLED):
        timeline = run(program, streams.loaded(work), costs, iterations)
        own = streams.overhead + took - (timeline.end - timeline.begin)
        streams = replace(streams, overhead=np.where(some, np.maximum(0.0, own), 0.0))
    timeline = run(program, streams.loaded(work), costs, iterations)
    return replace(
        streams,
        quiet=_quiet(profile, streams.loaded(work)),
        crowding=timeline.crowding,
        scale=run(program, work, costs, iterations).makespan_ns / timeline.makespan_ns,
    )


def _quiet(profile: Profile, work: Work) -> dict[str, np.ndarray]:
    """The shortest that tasks of an operator's name take, by phase; NaN for executions that follow from loads."""
    names, of = np.unique([family(str(o["name"])) for o in profile.operators], return_inverse=True)
    mine = of[profile.tasks["operator"]]
    out = {}
    for name in ("fetch", "gather", "execute", "overhead"):
        values = getattr(work, name)
        least = np.array(
            [np.quantile(values[..., mine == i], QUIET) if (mine == i).any() else 0 for i in range(len(names))]
        )
        out[name] = least[mine]
    return out


def _quiet_handoffs(profile: Profile, rank: int, costs: Costs) -> dict[str, float]:
    """The shortest that hand-offs of each kind take; the mean over where in a look they fall."""
    w = waits(profile)
    w = w[(w["rank"] == rank) & w["waited"] & (w["done_ns"] != NEVER) & ~w.duplicated(["iteration", "task"])]
    late = w["latency_ns"] - w["publish_ns"]
    shown = {name: late[w["words"] == words] for name, words in KINDS.items()}
    out = {name: float(ns.quantile(QUIET)) + costs.wait_ns / 2 for name, ns in shown.items() if len(ns) >= MIN_WAITS}
    return out and alike(out, costs.handoff_ns)


def alike(shown: Mapping[str, float], stated: Mapping[str, float]) -> dict[str, float]:
    """Figures of all kinds of hand-off: one that is not shown is to one that is as it is by the stated figures."""
    name, ns = next(iter(shown.items()))
    times = {kind: stated[kind] / stated[name] if stated.get(kind) and stated.get(name) else 1.0 for kind in KINDS}
    return {kind: shown.get(kind, round(ns * times[kind], 3)) for kind in KINDS}
