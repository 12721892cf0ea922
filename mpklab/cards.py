"""What a cell says of each value, as label and text: the facts behind the cards that present.py shows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mpklab import analysis, frames
from mpklab.analysis.idle import CLASSES
from mpklab.schedule import task_seconds
from mpklab.simulator import predict
from mpklab.simulator.costs import traffic

if TYPE_CHECKING:
    from mpklab.graph import Graph
    from mpklab.profile import Profile
    from mpklab.run import Generation, Kernel
    from mpklab.schedule import Schedule
    from mpklab.tasks import TaskGraph

Rows = list[tuple[str, str]]
MOST_PREDICTED = 20_000  # tasks; a card should not take longer than a blink
USEFUL = ("execute", "gather", "recording")  # classes of a worker's time that are no bubbles


def graph(value: Graph) -> Rows:
    flops, moved = value.cost
    return [
        ("operators", str(len(value.operators))),
        ("parameters", f"{_parameters(value):,} in {value.weight_bytes() / 1e6:,.1f} MB"),
        ("a step", f"{flops / 1e9:.3f} GFLOP, {moved / 1e6:,.1f} MB"),
        ("dims", ", ".join(f"{d} ≤ {d.max}" for d in value.dims) or "none"),
    ]


def tasks(value: TaskGraph) -> Rows:
    each: dict[str, list[int]] = {}
    for i, o in enumerate(value.operators):
        each.setdefault(o.op, []).append(i)
    count = np.diff(value.first)
    moved = np.add.reduceat(value.bytes, value.first[:-1]) if len(value) else np.zeros(len(count))
    tiles = []
    for kind, some in sorted(each.items(), key=lambda item: -int(count[item[1]].sum())):
        low, high = int(count[some].min()), int(count[some].max())
        size = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        tiles.append(f"{kind} {len(some)} × {size} tiles, {moved[some].sum() / 1e6:,.1f} MB")
    return [
        ("tasks", f"{len(value):,}"),
        ("by operator", "; ".join(tiles)),
        ("events", f"{len(value.need):,} with {len(value.wait_event):,} waits and {len(value.signal_event):,} signals"),
        ("implied edges", f"{sum(e.count for e in value.edges):,} in {len(value.edges):,} sets"),
        ("a step", f"{value.bytes.sum() / 1e6:,.1f} MB, {value.flops.sum() / 1e9:.3f} GFLOP"),
        ("machine", str(value.machine)),
    ]


def schedule(value: Schedule) -> Rows:
    rows = [("policy", f"{value.mode}, {value.policy}"), ("workers", str(value.workers))]
    seconds = task_seconds(value.tasks)
    if (value.worker >= 0).all():
        load = np.bincount(value.worker, weights=seconds, minlength=value.workers)
        rows.append(
            (
                "load per worker",
                f"{load.min() * 1e6:,.1f} to {load.max() * 1e6:,.1f} µs estimated, {load.max() / load.mean():.3f} × the mean",
            )
        )
    else:
        rows.append(("load per worker", "decided at run time"))
    if len(value.tasks) <= MOST_PREDICTED:
        told = predict(value)
        rows.append(("predicted makespan", f"{told.iteration_ns / 1e3:,.1f} µs an iteration, by {told.costs.source}"))
    else:
        rows.append(("predicted makespan", f"mk.predict(schedule) says, in seconds for {len(value.tasks):,} tasks"))
    machine = value.tasks.machine
    moved = sum(part.sum() for part in traffic(value.tasks))  # activations stay in caches
    peak = machine.peak_f32 if machine.backend == "cpu" else machine.peak_bf16
    rows.append(
        (
            "bounds",
            f"memory {moved / machine.bandwidth * 1e6:,.1f} µs at {machine.bandwidth / 1e9:,.0f} GB/s, "
            f"flops {value.tasks.flops.sum() / peak * 1e6:,.1f} µs",
        )
    )
    rows.append(("verified", "✓" if value.verified else "not yet"))
    return rows


def kernel(value: Kernel) -> Rows:
    library = value.library()
    rows = [
        ("compiler", library.compiler.rpartition("/")[2]),
        ("built in", f"{library.seconds:.2f} s"),
        ("cache", "hit" if library.cached else "miss: compiled now"),
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
    rows = [("text", value.text or "(token ids only)"), ("tokens", f"{len(value.tokens)} in {value.seconds:.3f} s")]
    spread = "; profile=1 records its spread"
    if value.profile is not None and value.profile.level:
        ms = analysis.iterations(value.profile)["dur_ns"].to_numpy(float) / 1e6
        if len(ms) > 1:
            spread = f"; recorded: median {np.median(ms):.2f} ms, {ms.min():.2f} to {ms.max():.2f}"
    rows.append(("a token", f"{each:.2f} ms on average{spread}"))
    rows.append(("prompt", f"{value.prefill_seconds:.3f} s"))
    return rows


def profile(value: Profile) -> Rows:
    idle = analysis.bubbles(value)
    total = float(idle["makespan_ns"].sum())
    lost = sorted(((float(idle[c].sum()), c) for c in CLASSES if c in idle and c not in USEFUL), reverse=True)[:3]
    makespan = float(idle["makespan_ns"].max()) if len(idle) else 0.0
    best = analysis.bounds(value).iloc[0]
    rows = [
        ("health", str(frames.verdict(value))),
        ("makespan", f"{makespan / 1e6:.3f} ms ± {frames.residual(value):,.0f} ns"),
        ("efficiency", f"{best['share']:.1%} of the best bound, {best['bound']}: {best['why']}"),
    ]
    rows += [(f"bubble: {c}", f"{ns / total:.1%} of worker time: {CLASSES[c]}") for ns, c in lost if ns]
    found = analysis.explain(value, top=1, gains=False)  # replays would take a second
    if len(found):
        rows.append(("first finding", str(found.iloc[0]["finding"])))
    return rows


def _parameters(value: Graph) -> int:
    """Numbers in the graph's weights: of a merged weight its parts, and not the table of rotations, which is computed."""
    computed = {o.operands["rope"] for o in value.operators if "rope" in o.operands}
    weights = (t for t in value.tensors.values() if t.role == "weight" and not t.parts and t.name not in computed)
    return sum(math.prod(t.type.sizes) for t in weights)


CARDS: dict[str, Any] = {
    "Graph": graph,
    "TaskGraph": tasks,
    "Schedule": schedule,
    "Kernel": kernel,
    "Generation": generation,
    "Profile": profile,
}
