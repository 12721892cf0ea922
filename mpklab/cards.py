"""What a cell says of each value, as label and text: the facts behind the cards that present.py shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mpklab import analysis, frames
from mpklab.analysis.idle import CLASSES
from mpklab.schedule import task_seconds

if TYPE_CHECKING:
    from mpklab.graph import Graph
    from mpklab.profile import Profile
    from mpklab.run import Generation, Kernel
    from mpklab.schedule import Schedule
    from mpklab.tasks import TaskGraph

Rows = list[tuple[str, str]]
USEFUL = ("execute", "gather", "recording")  # classes of a worker's time that are no bubbles


def graph(value: Graph) -> Rows:
    flops, moved = value.cost
    return [
        ("operators", str(len(value.operators))),
        ("weights", f"{value.weight_bytes() / 1e6:,.1f} MB"),
        ("a step", f"{flops / 1e9:.3f} GFLOP, {moved / 1e6:,.1f} MB"),
        ("dims", ", ".join(f"{d} ≤ {d.max}" for d in value.dims) or "none"),
    ]


def tasks(value: TaskGraph) -> Rows:
    kinds: dict[str, int] = {}
    for o, count in zip(value.operators, np.diff(value.first), strict=True):
        kinds[o.op] = kinds.get(o.op, 0) + int(count)
    return [
        ("tasks", f"{len(value):,}: " + ", ".join(f"{n:,} {k}" for k, n in sorted(kinds.items(), key=lambda x: -x[1]))),
        ("events", f"{len(value.need):,} with {len(value.wait_event):,} waits and {len(value.signal_event):,} signals"),
        ("implied edges", f"{sum(e.count for e in value.edges):,} in {len(value.edges):,} sets"),
        ("a step", f"{value.bytes.sum() / 1e6:,.1f} MB, {value.flops.sum() / 1e9:.3f} GFLOP"),
        ("machine", str(value.machine)),
    ]


def schedule(value: Schedule) -> Rows:
    rows = [("policy", f"{value.mode}, {value.policy}"), ("workers", str(value.workers))]
    if (value.worker >= 0).all():
        seconds = np.bincount(value.worker, weights=task_seconds(value.tasks), minlength=value.workers)
        load = f"{seconds.min() * 1e6:,.1f} to {seconds.max() * 1e6:,.1f} µs, {seconds.max() / seconds.mean():.3f} × the mean"
        rows.append(("estimated load", load))
    machine = value.tasks.machine
    bound = value.tasks.bytes.sum() / machine.bandwidth
    rows.append(("memory bound", f"{bound * 1e6:,.1f} µs at {machine.bandwidth / 1e9:,.0f} GB/s"))
    rows.append(("verified", "✓" if value.verified else "not yet"))
    return rows


def kernel(value: Kernel) -> Rows:
    library = value.library()
    rows = [
        ("compiler", library.compiler.rpartition("/")[2]),
        ("built in", f"{library.seconds:.2f} s{', from the cache' if library.cached else ''}"),
        ("folder", str(library.folder)),
    ]
    used = value.resources
    if used:
        rows.append(("registers", f"{used.get('registers', 0)} a thread"))
        rows.append(
            ("spills", f"{used.get('spill_store_bytes', 0)} bytes stored, {used.get('spill_load_bytes', 0)} loaded")
        )
        rows.append(("shared memory", f"{used.get('static_shared_bytes', 0):,} bytes beside the ring"))
    return rows


def generation(value: Generation) -> Rows:
    each = value.seconds * 1e3 / len(value.tokens) if value.tokens else float("nan")
    rows = [("tokens", f"{len(value.tokens)} in {value.seconds:.3f} s, {each:.2f} ms each")]
    rows.append(("prompt", f"{value.prefill_seconds:.3f} s"))
    if value.profile is not None and value.profile.level:
        steps = (
            frames.spans(value.profile)
            .query("phase == 'iteration'")
            .groupby("iteration")
            .agg({"begin_ns": "min", "end_ns": "max"})
        )
        ms = (steps["end_ns"] - steps["begin_ns"]) / 1e6
        if len(ms) > 1:
            rows.append(("recorded steps", f"median {ms.median():.2f} ms, {ms.min():.2f} to {ms.max():.2f}"))
    return rows


def profile(value: Profile) -> Rows:
    idle = analysis.bubbles(value)
    total = float(idle["makespan_ns"].sum())
    lost = sorted(((float(idle[c].sum()), c) for c in CLASSES if c in idle and c not in USEFUL), reverse=True)[:3]
    rows = [
        ("health", str(frames.verdict(value))),
        ("makespan", f"{float(idle['makespan_ns'].max()) / 1e6:.3f} ms"),
        ("efficiency", f"{analysis.efficiency(value):.1%} of the best bound"),
    ]
    rows += [(f"bubble: {c}", f"{ns / total:.1%} of worker time: {CLASSES[c]}") for ns, c in lost]
    found = analysis.explain(value)
    if len(found):
        rows.append(("first finding", str(found.iloc[0]["finding"])))
    return rows


CARDS: dict[str, Any] = {
    "Graph": graph,
    "TaskGraph": tasks,
    "Schedule": schedule,
    "Kernel": kernel,
    "Generation": generation,
    "Profile": profile,
}
