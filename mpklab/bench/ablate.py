"""What each choice is worth on a GPU: the same model with one thing changed, interleaved in one run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mpklab as mk
from mpklab import device, stamp
from mpklab.bench._common import show, write_json
from mpklab.bench.decode import TWO_BLOCKS, Bandwidth, stepping
from mpklab.codegen import device_settings
from mpklab.confidence import Interval
from mpklab.errors import EnvError, MpkError, suggest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="qwen3-0.6b", help="(default: %(default)s)")
    add("--batch", type=int, default=1, help="sequences at once (default: %(default)s)")
    add("--context", type=int, default=512, help="rows in the cache (default: %(default)s)")
    add("--rounds", type=int, default=20, help="interleaved rounds (default: %(default)s)")
    add("--steps", type=int, default=16, help="decode steps in one sample (default: %(default)s)")
    add("--only", help="names of changes, comma-separated; the baseline always runs")
    add("--json", type=Path, metavar="FILE", help="write every sample here")


@dataclass
class Change:
    """One thing that differs from the baseline: how its schedule is made, how it is launched, what the loader may do."""

    make: Callable[[], Any]
    launch: str = "persistent"
    prefetch: bool = True
    ms: list[float] = field(default_factory=list)


def changes(graph: Any, machine: Any) -> dict[str, Change]:
    """Every change by name, the baseline first."""
    plan = mk.choose_plan(graph, machine)
    passes, settings = plan.passes, device_settings(plan.settings)

    def lowered(**choices: Any) -> Callable[[], Any]:
        return lambda: mk.assign(mk.lower(graph, machine, **choices))

    def assigned(**choices: Any) -> Callable[[], Any]:
        return lambda: mk.assign(mk.lower(graph, machine), **choices)

    def without(name: str) -> Callable[[], Any]:
        return lowered(passes=tuple(p for p in passes if p.split(":")[0] != name))

    def pieces(text: str) -> Callable[[], Any]:
        return lowered(passes=tuple(text if p.startswith("split_attention") else p for p in passes))

    fewer = mk.Machine.cuda(machine.workers - machine.workers // 33)
    warps = 24 - settings["consumer_warps"]
    return {
        "baseline": Change(lowered()),
        # Hand-offs: what one persistent kernel is for.
        "one barrier between operators": Change(lowered(barriers=True)),
        f"handed over by {'counters' if plan.handoffs else 'words'}": Change(
            lowered(handoff="counter" if plan.handoffs else "data")
        ),
        "one kernel per operator": Change(lowered(), launch="per_operator"),
        "one kernel per operator: two blocks an SM": Change(lowered(**TWO_BLOCKS), launch="per_operator"),
        "one kernel per operator: nothing loaded before the wait": Change(
            lowered(), launch="per_operator", prefetch=False
        ),
        # The loader.
        "prefetch off": Change(lowered(), prefetch=False),
        "nothing ahead to the L2": Change(lowered(l2_bytes=0)),
        "one page in flight": Change(lowered(in_flight=1)),
        "three pages in flight": Change(lowered(in_flight=3)),
        "every page in flight": Change(lowered(in_flight=settings["pages"])),
        f"{warps} consumer warps": Change(lowered(consumer_warps=warps)),
        # Tiles and places.
        "fixed 64-row tiles": Change(lowered(tiles={"linear": 64})),
        "round robin": Change(assigned(policy="round_robin")),
        "zigzag": Change(assigned(policy="zigzag")),
        "one SM in 33 left to schedulers": Change(lambda: mk.assign(mk.lower(graph, fewer))),
        "dynamic: one queue": Change(assigned(mode="dynamic")),
        "dynamic: one queue and early push": Change(assigned(mode="dynamic", early_push=True)),
        "hybrid: attention handed out": Change(assigned(mode="hybrid", dynamic=("attention",))),
        # What is fused, and how attention is cut.
        "rms_norm on its own": Change(without("fuse_norm")),
        "silu_mul on its own": Change(without("fuse_silu_mul")),
        "residual add on its own": Change(without("fuse_residual")),
        "attention merge on its own": Change(without("fuse_merge")),
        "argmax on its own": Change(without("fuse_argmax")),
        "4 pieces of the context": Change(pieces("split_attention:4:16")),
        "16 pieces of the context": Change(pieces("split_attention:16:16")),
        "pieces in float32": Change(lowered(passes=tuple(p.removesuffix(":16") for p in passes))),
    }


def _built(change: Change, model: Any) -> Any:
    kernel = mk.build(change.make(), weights=model, launch=change.launch)
    kernel.prefetch = change.prefetch
    return kernel


@torch.inference_mode()
def main(args: argparse.Namespace) -> int:
    """Build every change, take turns, print what each costs."""
    if not torch.cuda.is_available():
        raise EnvError("bench ablate needs a CUDA device")
    machine = mk.Machine.cuda()
    model = mk.models.random(args.model, device="cuda")
    graph = model.decode_graph(batch=args.batch, context=args.context + 16)
    every = changes(graph, machine)
    wanted = ["baseline", *args.only.split(",")] if args.only else list(every)
    for name in wanted:
        if name not in every:
            raise MpkError(f"no change is called {name!r}: {suggest(name, every)}")
    limit = Bandwidth()
    runs: dict[str, Callable[[], float]] = {}
    notes: list[str] = []
    seen: set[tuple[Any, ...]] = set()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the compiler takes seconds for each
        built = {name: pool.submit(_built, every[name], model) for name in wanted}
    for name in wanted:
        try:
            kernel = built[name].result()
            key = (kernel.schedule.hash, kernel.schedule.tasks.plan.hash, kernel.launch, kernel.prefetch)
            if key in seen:
                notes.append(f"{name}: that is what the plan has already")
                continue
            run = stepping(kernel, args.batch, args.context, args.steps)
            run()
        except MpkError as error:
            notes.append(f"{name}: {str(error).splitlines()[0]}")
            continue
        seen.add(key)
        runs[name] = run
    read = []
    rng = np.random.default_rng(0)
    for _ in range(args.rounds):
        read.append(limit.tb_per_s())
        for name in rng.permutation(list(runs)):
            every[str(name)].ms.append(runs[str(name)]())
    base = every["baseline"].ms
    made = stamp.collect(device={"name": torch.cuda.get_device_name(), **device.facts()}, model=args.model)
    results: list[dict[str, Any]] = [
        {
            "name": name, "ms": every[name].ms, "median": Interval.of(every[name].ms),
            "ratio": Interval.of([a / b for a, b in zip(every[name].ms, base, strict=True)]),
        }
        for name in runs
    ]  # fmt: skip
    show(
        f"{args.model}, batch {args.batch}, context {args.context}, medians of {args.rounds} rounds of {args.steps} steps",
        ("what is changed", "ms a token [95 %]", "its time ÷ the baseline's"),
        [(r["name"], r["median"].text(4), "" if r["name"] == "baseline" else r["ratio"].text(3)) for r in results],
        made,
        [f"read bandwidth {Interval.of(read).text(3)} TB/s, {made['device'].get('name')}", *notes],
    )
    settings = {k: getattr(args, k) for k in ("model", "batch", "context", "rounds", "steps")}
    write_json(args.json, made, settings=settings, results=results, read_tb_per_s=read, notes=notes)
    return 0
