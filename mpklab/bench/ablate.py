"""What each choice is worth on a GPU: the same model with one thing changed, interleaved in one run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mpklab as mk
from mpklab import device, stamp
from mpklab.bench.decode import Bandwidth, reset, start
from mpklab.errors import EnvError, MpkError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="qwen3-0.6b")
    parser.add_argument("--context", type=int, default=512, help="rows in the cache")
    parser.add_argument("--rounds", type=int, default=20, help="interleaved rounds")
    parser.add_argument("--steps", type=int, default=16, help="decode steps in one launch")
    parser.add_argument("--only", help="names of changes, comma-separated; the baseline always runs")
    parser.add_argument("--json", metavar="FILE", help="write every sample here")


def changes(graph: Any, machine: Any) -> dict[str, Callable[[], Any]]:
    """Each change as a call that makes its schedule; only what it names differs from the baseline."""
    passes = mk.choose_plan(graph, machine).passes

    def without(*names: str) -> tuple[str, ...]:
        return tuple(p for p in passes if p.split(":")[0] not in names)

    def pieces(text: str) -> tuple[str, ...]:
        return tuple(text if p.startswith("split_attention") else p for p in passes)

    def lowered(**choices: Any) -> Any:
        return mk.assign(mk.lower(graph, machine, **choices))

    return {
        "baseline": lambda: lowered(),
        "prefetch off": lambda: lowered(),
        "fixed 64-row tiles": lambda: lowered(tiles={"linear": 64}),
        "round robin": lambda: mk.assign(mk.lower(graph, machine), policy="round_robin"),
        "zigzag": lambda: mk.assign(mk.lower(graph, machine), policy="zigzag"),
        "rms_norm on its own": lambda: lowered(passes=without("fuse_norm")),
        "silu_mul on its own": lambda: lowered(passes=without("fuse_silu_mul")),
        "residual add on its own": lambda: lowered(passes=without("fuse_residual")),
        "attention merge on its own": lambda: lowered(passes=without("fuse_merge")),
        "argmax on its own": lambda: lowered(passes=without("fuse_argmax")),
        "4 pieces of the context": lambda: lowered(passes=pieces("split_attention:4:16")),
        "16 pieces of the context": lambda: lowered(passes=pieces("split_attention:16:16")),
        "pieces in float32": lambda: lowered(passes=tuple(p.removesuffix(":16") for p in passes)),
        "8 consumer warps": lambda: lowered(consumer_warps=8),
        "every page in flight": lambda: lowered(in_flight=6),
        "nothing ahead to the L2": lambda: lowered(l2_bytes=0),
        "one SM in 33 left to schedulers": lambda: mk.assign(
            mk.lower(graph, mk.Machine.cuda(machine.workers - machine.workers // 33))
        ),
    }


@torch.inference_mode()
def main(args: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        raise EnvError("bench ablate needs a CUDA device")
    machine = mk.Machine.cuda()
    model = mk.models.random(args.model, device="cuda")
    graph = model.decode_graph(context=args.context + 16)
    limit = Bandwidth()
    wanted = {"baseline", *args.only.split(",")} if args.only else None
    runs: dict[str, Callable[[], float]] = {}
    for name, make in changes(graph, machine).items():
        if wanted is not None and name not in wanted:
            continue
        try:
            kernel = mk.build(make(), weights=model)
            kernel.prefetch = name != "prefetch off"
            runs[name] = _timed(kernel, args)
            runs[name]()
        except MpkError as error:
            print(f"{name}: {str(error).splitlines()[0]}")
            runs.pop(name, None)
    samples: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    for r in range(args.rounds):
        for name in rng.permutation(list(runs)):
            samples.append({"what": str(name), "round": r, "ms": runs[str(name)]()})
        samples.append({"what": "read", "round": r, "tb_per_s": limit.tb_per_s()})
    made = stamp.collect(device={"name": torch.cuda.get_device_name(), **device.facts()}, model=args.model)
    if args.json:
        Path(args.json).write_text(json.dumps({"stamp": made, "samples": samples}, indent=1))
    base = np.array([s["ms"] for s in samples if s["what"] == "baseline"])
    read = np.median([s["tb_per_s"] for s in samples if "tb_per_s" in s])
    print(f"{args.model}, batch 1, context {args.context}, {made['device'].get('name')}; read limit {read:.3f} TB/s")
    for name in runs:
        ms = np.array([s["ms"] for s in samples if s["what"] == name])
        low, middle, high = np.percentile(ms, [5, 50, 95])
        print(f"  {name:34} {middle:8.4f} ms [{low:.4f}, {high:.4f}]  {middle / np.median(base):6.3f} × the baseline")
    return 0


def _timed(kernel: Any, args: argparse.Namespace) -> Callable[[], float]:
    """A call that runs some steps in one launch and returns milliseconds a step."""
    session = start(kernel, 1, args.context, args.steps)
    operands = next(o for o in kernel.graph.operators if o.op == "advance").operands

    def run() -> float:
        reset(session, operands, args.context - args.steps)
        return float(session.launch(args.steps).seconds * 1e3 / args.steps)

    return run
