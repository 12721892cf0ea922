"""The whole chain in one call, showing its stages while it works."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpklab import models
from mpklab.dims import Extent
from mpklab.errors import MpkError, ScheduleError, answers_slips, suggest
from mpklab.graph import Graph
from mpklab.machine import Machine
from mpklab.models import Model
from mpklab.progress import Progress, Report
from mpklab.run import Kernel, build
from mpklab.schedule import MODES, POLICIES, POOLS, assign
from mpklab.tasks import Plan, lower
from mpklab.verifier import verify


@answers_slips(MpkError)
def compile(
    what: str | Model | Graph,
    *,
    machine: Machine | None = None,
    mode: str = "static",
    policy: Any = None,
    handout: Mapping[str, Any] | None = None,
    batch: Extent | None = None,
    context: int | None = None,
    layers: int | None = None,
    dtype: str | None = None,
    sampling: bool | None = None,
    workers: int | None = None,
    plan: Plan | None = None,
    tiles: Mapping[str, int] | None = None,
    passes: tuple[str, ...] | None = None,
    compiler: str | None = None,
    report: Report | None = None,
) -> Kernel:
    """A name, a Model or a Graph to a running kernel: load, graph, lower, assign, verify, build.

    `mode`, `policy` and what `handout` holds besides (dynamic, pool, early_push, pop_ahead, priority) go to `assign`.
    `report(stage, seconds, value)` is told of every finished stage; by default the stages show themselves while they
    work (MPKLAB_PROGRESS=0 silences them). `workers` overrides the machine's. batch (default 1), context (1024, or what the
    model allows), layers (all) and sampling (False: the likeliest token) shape the decode graph, dtype (bfloat16) is what
    weights are loaded in; what the given Model or Graph has decided already cannot be asked for again. What a stage refuses
    is that stage's error (ModelError, LowerError, ScheduleError, BuildError …), all of them MpkError.
    """
    asked = {"batch": batch, "context": context, "layers": layers, "dtype": dtype, "sampling": sampling}
    choices = {name: value for name, value in asked.items() if value is not None}
    shape: dict[str, Any] = {name: value for name, value in choices.items() if name != "dtype"}
    late = choices if isinstance(what, Graph) else choices.keys() - shape if isinstance(what, Model) else ()
    for name in late:
        kind = type(what).__name__
        raise MpkError(f"{name}={choices[name]!r} comes too late: the {kind} has it decided, so choose it there")
    if mode not in MODES:  # before the minutes that a large model takes
        raise ScheduleError(f"unknown mode {mode!r}: {suggest(mode, MODES)}")
    policies = [*POOLS, *POLICIES] if mode == "dynamic" else list(POLICIES)
    if isinstance(policy, str) and policy not in policies:
        raise ScheduleError(f"unknown policy {policy!r}: {suggest(policy, policies)}")
    chosen = machine or Machine.detect()
    with Progress(report) as shown:
        model = None
        if isinstance(what, Graph):
            graph = what
        else:
            if isinstance(what, Model):
                model = what
            else:
                with shown.stage("model") as now:
                    model = models.load(what, dtype=dtype or "bfloat16")
                    now.say(repr(model))
            with shown.stage("graph") as now:
                graph = model.decode_graph(**{"context": min(1024, model.config.max_position), **shape})
                now.say(graph)
        with shown.stage("tasks") as now:
            tasks = lower(graph, chosen, plan, tiles=tiles, passes=passes)
            now.say(tasks)
        with shown.stage("schedule") as now:
            schedule = assign(tasks, mode=mode, policy=policy, workers=workers, **(handout or {}))
            now.say(schedule)
        with shown.stage("verify") as now:
            schedule = verify(schedule)
            now.say(f"{len(tasks.edges)} edge sets hold for {len(tasks)} tasks on {schedule.workers} workers")
        with shown.stage("build") as now:
            kernel = build(schedule, compiler=compiler, weights=model)
            now.say(kernel)
    return kernel
