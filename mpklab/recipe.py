"""What a profile keeps of the schedule that it recorded: its tables for analyses, and all that makes it again."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpklab.errors import ProfileError
from mpklab.graph import Graph
from mpklab.machine import Machine
from mpklab.profile import Profile
from mpklab.schedule import Schedule
from mpklab.tasks import Plan, lower

KEY = "recipe"  # in Profile.meta


def tables(schedule: Schedule) -> dict[str, Any]:
    """Operators, tasks, waits, signals, events and edges as `Profile.from_parts` takes them."""
    tasks = schedule.tasks
    return {
        "operators": [
            {"name": o.name, "op": o.op, "layer": -1 if o.layer is None else o.layer} for o in tasks.operators
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
    graph: Graph = tasks.graph
    while graph.parent is not None:
        graph = graph.parent
    return {
        "graph": tasks.graph.name,
        "backend": tasks.machine.backend,
        "mode": schedule.mode,
        "policy": schedule.policy,
        "workers": schedule.workers,
        **{k: v for k, v in tasks.graph.meta.items() if isinstance(v, str | int | float)},
        KEY: {"graph": graph.to_json(), "plan": tasks.plan.to_json(), "machine": tasks.machine.to_json()},
    }


def hashes(schedule: Schedule) -> dict[str, str]:
    """Of graph, plan and schedule, as a stamp keeps them."""
    tasks = schedule.tasks
    return {"graph": tasks.graph.hash, "plan": tasks.plan.hash, "schedule": schedule.hash}


def schedule_of(profile: Profile) -> Schedule:
    """The schedule that a profile recorded, lowered again from its recipe; ProfileError when it has none that fits."""
    found = profile.meta.get(KEY)
    if not isinstance(found, dict):
        raise ProfileError(
            "the profile holds no recipe (graph, plan and machine), so its schedule cannot be made again"
        )
    try:
        machine = {**found["machine"], "capability": tuple(found["machine"]["capability"])}
        machine["cpus"] = tuple(machine.get("cpus", ()))
        tasks = lower(Graph.from_json(found["graph"]), Machine(**machine), Plan.from_json(found["plan"]))
        mode, policy = str(profile.meta["mode"]), str(profile.meta["policy"])
    except (KeyError, TypeError) as error:
        raise ProfileError(f"the profile's recipe is not complete: {error!r}") from error
    worker, position = (profile.tasks[name].astype(np.int64) for name in ("worker", "position"))
    if len(worker) != len(tasks):
        raise ProfileError(
            f"the profile has {len(worker)} tasks, but its recipe now makes {len(tasks)}: this version lowers differently"
        )
    return Schedule(tasks, mode, policy, profile.n_workers, worker, position)
