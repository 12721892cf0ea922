"""What stands between a graph and a kernel: seconds to lower, assign, verify and pack, and how they grow with tasks."""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mpklab import stamp
from mpklab.codegen import pack
from mpklab.graph import Graph
from mpklab.machine import Machine
from mpklab.models.catalog import named
from mpklab.models.decoder import decode_graph
from mpklab.schedule import POLICIES, assign
from mpklab.tasks import lower
from mpklab.verifier import verify

T = TypeVar("T")
STAGES = ("lower", "assign", "verify", "pack")
HEAD = f"{'what':30} {'tasks':>8} {'events':>7} {'waits':>8} {'implied edges':>14} " + " ".join(
    f"{f'{s} s':>9}" for s in (*STAGES, "all")
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="qwen3-8b", help="its shapes; weights are not needed")
    parser.add_argument("--machine", default="h200", help="a GPU that need not be there")
    parser.add_argument("--policy", default="locality", help=f"one of {', '.join(POLICIES)}")
    parser.add_argument("--context", type=int, default=4096, help="rows in the cache")
    parser.add_argument("--rounds", type=int, default=3, help="times each row is measured; the best counts")
    parser.add_argument("--most", type=int, default=100_000, help="tasks of the largest row of the growth table")
    parser.add_argument("--json", metavar="FILE", help="write every sample here")


def main(args: argparse.Namespace) -> int:
    machine = Machine.named(args.machine)
    config = named(args.model)
    samples: list[dict[str, Any]] = []

    def graph(layers: int | None = None) -> Graph:
        return decode_graph(config, context=args.context, layers=layers)

    print(HEAD)
    name = f"{config.name}, {machine.workers} workers"
    samples.append(measure(name, graph(), machine, args.policy, args.rounds))
    show(samples[-1])
    print(f"\ngrowth, from few layers in large tiles to all {config.layers} in small ones:")
    for layers, tiles in growth(config.layers, samples[0]["tasks"], config.hidden, args.most):
        name = f"{layers} layers, " + (f"tiles of {tiles['linear']}" if tiles else "a tile a worker")
        samples.append(measure(name, graph(layers), machine, args.policy, args.rounds, tiles))
        show(samples[-1])
    if args.json:
        with open(Path(args.json), "w") as f:
            json.dump(
                {"stamp": stamp.collect(), "machine": machine.name, "policy": args.policy, "rows": samples}, f, indent=1
            )
        print(f"samples in {args.json}")
    return 0


def growth(layers: int, tasks: int, hidden: int, most: int) -> list[tuple[int, dict[str, int]]]:
    """Layers and tile sizes for about 10³, 10³·⁵, … up to `most` tasks: first more layers, then smaller tiles."""
    rows: list[tuple[int, dict[str, int]]] = []
    target = 1000.0
    while target <= most * 1.01:
        if target <= tasks:
            rows.append((max(1, round(layers * target / tasks)), {}))
        else:
            # One layer of a decoder has about nine times `hidden` rows of weights when its MLP is three times as wide.
            rows.append((layers, {"linear": max(1, round(layers * 6.5 * hidden / target))}))
        target *= 10**0.5
    return rows


def measure(
    name: str, graph: Graph, machine: Machine, policy: str, rounds: int, tiles: dict[str, int] | None = None
) -> dict[str, Any]:
    """Sizes and the best seconds of each stage."""
    best = dict.fromkeys(STAGES, float("inf"))

    def timed(stage: str, call: Callable[..., T], *values: Any, **keywords: Any) -> T:
        begin = time.perf_counter()
        value = call(*values, **keywords)
        best[stage] = min(best[stage], time.perf_counter() - begin)
        return value

    for _ in range(max(1, rounds)):
        gc.collect()
        tasks = timed("lower", lower, graph, machine, tiles=tiles)
        schedule = timed("assign", assign, tasks, policy=policy)
        proved = timed("verify", verify, schedule)
        timed("pack", pack, proved)
    return {
        "name": name,
        "tasks": len(tasks),
        "events": len(tasks.need),
        "waits": len(tasks.wait_event),
        "edges": sum(e.count for e in tasks.edges),
        **{f"{stage}_s": best[stage] for stage in STAGES},
        "all_s": sum(best.values()),
    }


def show(row: dict[str, Any]) -> None:
    seconds = " ".join(f"{row[f'{s}_s']:9.3f}" for s in (*STAGES, "all"))
    print(
        f"{row['name']:30} {row['tasks']:8,} {row['events']:7,} {row['waits']:8,} {row['edges']:14,} {seconds}",
        flush=True,
    )
