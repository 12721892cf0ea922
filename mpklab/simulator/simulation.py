"""`simulate`: the timeline that a schedule would have, before anything is compiled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from mpklab import recipe
from mpklab.machine import Machine
from mpklab.profile import Profile
from mpklab.schedule import Drain, Handout, Schedule
from mpklab.simulator import spans
from mpklab.simulator.costs import Costs, drawn, work
from mpklab.simulator.engine import Timeline, run
from mpklab.simulator.program import Program


@dataclass(frozen=True, eq=False)
class Simulation:
    """A predicted run: `spans()` and `to_profile()` give it in the forms that a recorded one has."""

    schedule: Schedule
    costs: Costs
    timeline: Timeline

    @property
    def makespan_ns(self) -> float:
        return self.timeline.makespan_ns

    @property
    def iteration_ns(self) -> float:
        """The time each further iteration takes."""
        return self.timeline.iteration_ns

    @cached_property
    def _spans(self) -> spans.Spans:
        return spans.collect(self.timeline)

    def spans(self) -> pd.DataFrame:
        """One row per phase, in the columns of `frames.spans`."""
        tasks = self.schedule.tasks
        names = [(o.name, o.op, -1 if o.layer is None else o.layer) for o in tasks.operators]
        return spans.frame(self._spans, names, tasks.operator_of)

    def to_profile(self) -> Profile:
        """The profile that a run with this timeline would leave at level 2."""
        schedule = self.schedule
        workers = self.timeline.program.n_workers
        return Profile.from_parts(
            spans.lanes(self._spans, workers),
            workers,
            level=2,
            clock_hz=1e9,
            **recipe.tables(schedule),
            stamp={"simulated": True, "costs": self.costs.source, "hashes": recipe.hashes(schedule)},
            meta={**recipe.meta(schedule), "seconds": self.makespan_ns / 1e9, "costs": self.costs.to_json()},
        )

    def __str__(self) -> str:
        return (
            f"Simulation of {self.schedule.mode}/{self.schedule.policy} on {self.schedule.workers} workers: "
            f"{self.iteration_ns / 1e6:.3f} ms an iteration ({self.costs.source})"
        )


def predict(
    schedule: Schedule,
    costs: Costs | None = None,
    *,
    machine: Machine | None = None,
    durations: Any = None,
    iterations: int = 1,
    seed: int = 0,
    mode: str | None = None,
    handout: Handout | None = None,
) -> Simulation:
    """Simulate a schedule; see `simulate`."""
    tasks = schedule.tasks
    costs = costs or Costs.of(machine or tasks.machine, tasks.plan.settings)
    todo = work(tasks, costs, iterations, seed)
    if durations is not None:
        todo = replace(todo, execute=drawn(durations, tasks, iterations, seed))
    program = Program.of_schedule(schedule, mode, handout)
    if program.pooled.any():
        todo = replace(todo, signal=todo.signal + costs.pool_signal_ns)
    if (mode or schedule.mode) != schedule.mode:
        # Played in another mode: what is known of it goes into the profile, where a run in that mode would put it.
        if program.handout.priority != "fifo":
            known = (
                np.nanmedian(todo.execute, 0)
                if durations is not None
                else np.atleast_2d(todo.compute + todo.overhead).mean(0)
            )
            program = program.with_priorities(np.nan_to_num(known))
        nowhere = np.full(len(tasks), -1, np.int64)
        drains = ((Drain(0),),) * schedule.workers
        schedule = replace(
            schedule,
            mode=str(mode),
            worker=nowhere,
            position=nowhere,
            handout=program.handout,
            home=program.home,
            drains=drains,
        )
    return Simulation(schedule, costs, run(program, todo, costs, iterations))


def simulate(
    schedule: Schedule,
    costs: Costs | None = None,
    *,
    machine: Machine | None = None,
    durations: Any = None,
    iterations: int = 1,
    seed: int = 0,
    mode: str | None = None,
    handout: Handout | None = None,
) -> pd.DataFrame:
    """The spans that a schedule would leave, in the columns of `frames.spans`, without compiling or running anything.

    `costs` default to what the machine's figures give (`machine`: another than the tasks were lowered for).
    `durations` replace the cost model's: ns per task, or by operator name or kind one number or samples to draw from;
    `seed` decides what is drawn, also of times that spread. `mode` and `handout` play a static schedule as if its tasks
    were handed out at run time.
    """
    return predict(
        schedule,
        costs,
        machine=machine,
        durations=durations,
        iterations=iterations,
        seed=seed,
        mode=mode,
        handout=handout,
    ).spans()
