"""What a recording of a GPU tells of its loads, so that the engine can load the same weights under another schedule."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mpklab import recipe
from mpklab.profile import Profile
from mpklab.simulator import Costs, Program, Work, run, traffic

# What the consumers of one worker of a GPU get through, in shares of the bandwidth: 540 KB more in the larger tiles of o_proj
# and down_proj took them 7.8 µs (one H200, Qwen3-0.6B in tiles of 64 rows, level 3).
RING = 2.0
SETTLED = 3  # rounds after which what tasks take beyond their loads no longer changes


@dataclass(frozen=True, slots=True, eq=False)
class Streams:
    """What the loaders of a GPU's workers bring, and what its consumers take for it.

    some: bool[n], tasks whose weights a loader brings · ahead f64[n]: their bytes · compute, overhead f64[iterations, n]:
    ns that a consumer takes once all is there, and what a task took in the recorded schedule beyond both · rate: bytes per ns
    that a worker's consumers get through · crowding: `Timeline.crowding` of the recorded schedule.
    """

    some: np.ndarray
    ahead: np.ndarray
    compute: np.ndarray
    overhead: np.ndarray
    rate: float
    crowding: tuple[float, float]

    def loaded(self, work: Work, part: np.ndarray | float = 1.0) -> Work:
        """Work whose streaming tasks take as long as their bytes do; `part`: of each task, what is left of it."""
        return replace(
            work,
            execute=np.where(self.some, np.nan, work.execute),
            ahead=self.ahead * np.atleast_2d(part + np.zeros(self.some.size)).mean(0),
            compute=self.compute * part,
            overhead=self.overhead * part,
        )


def streams_of(profile: Profile, program: Program, work: Work, costs: Costs, iterations: int) -> Streams | None:
    """What a recording of a GPU tells of the loads of its tasks; None without a loader, or where the recipe is unknown.

    A consumer takes no longer than the task took, nor than its rate says; the engine loads the recorded
    schedule, and what a task took beyond that is its own.
    """
    if not costs.ring_bytes or recipe.machine_of(profile) is None:
        return None
    ahead, _ = traffic(recipe.schedule_of(profile).tasks)
    took = np.atleast_2d(work.execute)
    some = (ahead > 0) & (took > 0).all(0)
    if not some.any():
        return None
    ahead = np.where(some, ahead, 0.0)
    rate = RING * costs.bandwidth / profile.n_workers / 1e9
    compute = np.where(some, np.minimum(took, ahead / rate), 0.0)
    streams = Streams(some, ahead, compute, np.zeros_like(compute), rate, (0.0, 0.0))
    for _ in range(SETTLED):
        timeline = run(program, streams.loaded(work), costs, iterations)
        own = streams.overhead + took - (timeline.end - timeline.begin)
        streams = replace(streams, overhead=np.where(some, np.maximum(0.0, own), 0.0), crowding=timeline.crowding)
    return streams
