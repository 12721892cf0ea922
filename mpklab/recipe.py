"""What a profile keeps of the schedule that it recorded: its tables for analyses, and all that makes it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from mpklab.errors import EnvError, ProfileError
from mpklab.graph import Graph
from mpklab.machine import Machine
from mpklab.profile import Profile
from mpklab.schedule import Drain, Handout, Schedule
from mpklab.tasks import Plan, lower

KEY = "recipe"  # in Profile.meta


def tables(schedule: Schedule) -> dict[str, Any]:
    """Operators, tasks, waits, signals, events and edges as `Profile.from_parts` takes them."""
    tasks = schedule.tasks
    return {
        "operators": [
            {
                "name": o.name,
                "op": o.op,
                "layer": -1 if o.layer is None else o.layer,
                **({"handoff": "data"} if words else {}),
            }
            for o, words in zip(tasks.operators, schedule.by_words, strict=True)
        ],
        "tasks": {
            "operator": tasks.operator_of,
            "tile": tasks.words,
            "worker": schedule.worker,
            "position": schedule.position,
            "bytes": tasks.bytes,
            "flops": tasks.flops,
        },
        "waits": {"wait_begin": tasks.wait_first, "wait_event": tasks.wait_event, "wait_lag": tasks.wait_lag},
        "signals": {"signal_begin": tasks.signal_first, "signal_event": tasks.signal_event},
        "events": {"need": tasks.need, "producer_operator": tasks.event_producer},
        "edges": [
            {
                "producer": e.producer,
                "consumer": e.consumer,
                "tensor": e.tensor,
                "kind": e.kind,
                "lag": e.lag,
                "begin": e.begin,
                "end": e.end,
            }
            for e in tasks.edges
        ],
    }


def meta(schedule: Schedule) -> dict[str, Any]:
    """What the schedule is called, and its recipe: the graph as it was given, the plan and the machine."""
    tasks = schedule.tasks
    made: dict[str, Any] = {
        "graph": tasks.graph.origin.to_json(),
        "plan": tasks.plan.to_json(),
        "machine": tasks.machine.to_json(),
    }
    if schedule.handout is not None and schedule.home is not None:
        made["handout"], made["home"] = asdict(schedule.handout), schedule.home.tolist()
        made["drains"] = [[[d.position, d.event] for d in row] for row in schedule.drains]
    return {
        "graph": tasks.graph.name,
        "backend": tasks.machine.backend,
        "mode": schedule.mode,
        "policy": schedule.policy,
        "workers": schedule.workers,
        **_rates(tasks.graph, tasks.machine),
        **{k: v for k, v in tasks.graph.meta.items() if isinstance(v, str | int | float)},
        KEY: made,
    }


def _rates(graph: Graph, machine: Machine) -> dict[str, float]:
    """What bounds are taken from: a GPU's bandwidth, and its peak for the type of most weights. A CPU's are guesses."""
    if machine.backend != "cuda":
        return {}
    sizes = {"bfloat16": 0, "float32": 0}
    for tensor in graph.tensors.values():
        if tensor.role == "weight" and tensor.dtype in sizes:
            sizes[tensor.dtype] += tensor.bytes
    peak = machine.peak_f32 if sizes["float32"] > sizes["bfloat16"] else machine.peak_bf16
    return {"bandwidth_gbps": machine.bandwidth / 1e9, "peak_tflops": peak / 1e12}


def hashes(schedule: Schedule) -> dict[str, str]:
    """Of graph, plan and schedule, as a stamp keeps them."""
    tasks = schedule.tasks
    return {"graph": tasks.graph.hash, "plan": tasks.plan.hash, "schedule": schedule.hash}


def by_words(profile: Profile) -> npt.NDArray[np.bool_]:
    """Per operator, whether its outputs were handed over by their own words; not so where the profile does not say."""
    return np.array([o.get("handoff") == "data" for o in profile.operators], bool)


def events_by_words(profile: Profile) -> npt.NDArray[np.bool_]:
    """Per event, whether nobody counts it: its producer's words say themselves when they are there."""
    producer = profile.events["producer_operator"]
    found: npt.NDArray[np.bool_] = np.append(by_words(profile), False)[producer]
    return found


def machine_of(profile: Profile) -> Machine | None:
    """The machine that a profile's tasks were lowered for, where its recipe says."""
    found = profile.meta.get(KEY)
    if not isinstance(found, Mapping) or not isinstance(found.get("machine"), Mapping):
        return None
    try:
        return Machine.from_json(found["machine"])
    except EnvError as error:
        raise ProfileError(f"the profile's recipe describes no machine: {error}") from error


def settings_of(profile: Profile) -> dict[str, int]:
    """The kernel settings of a profile's plan; none where it has no recipe."""
    found = profile.meta.get(KEY)
    plan = found.get("plan") if isinstance(found, Mapping) else None
    chosen = plan.get("settings") if isinstance(plan, Mapping) else None
    return {str(k): int(v) for k, v in chosen.items()} if isinstance(chosen, Mapping) else {}


def handed_out(
    profile: Profile,
) -> tuple[Handout | None, npt.NDArray[np.int64] | None, tuple[tuple[Drain, ...], ...]]:
    """How tasks reached workers at run time, as `Schedule` keeps it; None, None and () for queues alone."""
    found = profile.meta.get(KEY)
    if not isinstance(found, Mapping) or "handout" not in found:
        return None, None, ()
    try:
        drains = tuple(tuple(Drain(int(p), int(e)) for p, e in row) for row in found["drains"])
        return Handout(**found["handout"]), np.array(found["home"], np.int64), drains
    except (KeyError, TypeError, ValueError) as error:
        raise ProfileError(f"the profile's recipe is not complete: {error!r}") from error


def schedule_of(profile: Profile) -> Schedule:
    """The schedule that a profile recorded, lowered again from its recipe; ProfileError when it has none that fits."""
    found, machine = profile.meta.get(KEY), machine_of(profile)
    if machine is None or not isinstance(found, Mapping):
        raise ProfileError(
            "the profile holds no recipe (graph, plan and machine), so its schedule cannot be made again"
        )
    try:
        tasks = lower(Graph.from_json(found["graph"]), machine, Plan.from_json(found["plan"]))
        mode, policy = str(profile.meta["mode"]), str(profile.meta["policy"])
    except (KeyError, TypeError) as error:
        raise ProfileError(f"the profile's recipe is not complete: {error!r}") from error
    worker, position = (profile.tasks[name].astype(np.int64) for name in ("worker", "position"))
    if len(worker) != len(tasks):
        raise ProfileError(
            f"the profile has {len(worker)} tasks, but its recipe now makes {len(tasks)}: this version lowers differently"
        )
    return Schedule(tasks, mode, policy, profile.n_workers, worker, position, *handed_out(profile))
