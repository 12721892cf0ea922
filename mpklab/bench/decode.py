"""Decode on a GPU: the megakernel beside what one would use instead, interleaved in one run, and the memory's own limit."""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mpklab as mk
from mpklab import device, env, stamp
from mpklab.bench.torch_decoder import Decoder
from mpklab.errors import EnvError, MpkError

PEERS = ("compile", "autotune", "graph", "eager")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models", default="qwen3-0.6b,qwen3-1.7b,llama-3.2-1b,qwen3-8b", help="names, comma-separated"
    )
    parser.add_argument("--batch", default="1", help="sequences at once, comma-separated")
    parser.add_argument("--context", default="512", help="rows in the cache, comma-separated")
    parser.add_argument("--peers", default="compile,graph", help=f"any of {', '.join(PEERS)}; none for none")
    parser.add_argument("--rounds", type=int, default=20, help="interleaved rounds")
    parser.add_argument("--steps", type=int, default=16, help="decode steps in one launch of the megakernel")
    parser.add_argument("--layers", type=int, default=None, help="only the first layers")
    parser.add_argument("--policy", default="locality")
    parser.add_argument(
        "--setting", action="append", default=[], metavar="NAME=N", help="a kernel setting, as in a plan"
    )
    parser.add_argument(
        "--splits", default=None, help="pieces of the context per head, N or N:16 for pieces in 16 bits"
    )
    parser.add_argument("--no-prefetch", action="store_true", help="the loader waits for the task's events")
    parser.add_argument("--profile", metavar="FILE", help="save a recording of the last configuration")
    parser.add_argument("--level", type=int, default=2, help="recording level of --profile")
    parser.add_argument("--json", metavar="FILE", help="write every sample here")


class Bandwidth:
    """Reads a buffer much larger than the L2 with every SM; the best of a few block counts is the limit."""

    def __init__(self, size: int = 4 << 30):
        self.buffer = torch.randint(0, 1 << 30, (size // 4,), dtype=torch.int32, device="cuda")
        self.sink = torch.zeros(1, dtype=torch.int32, device="cuda")
        folder = env.private_folder(env.cache_folder() / "bench")
        source = (env.csrc_folder() / "read.cu").read_text()
        cubin, _ = device.compile_cubin(source, device.architecture(), "nvrtc", folder)
        self.run = device.plain_kernel(cubin, "mpk_read")
        self.sms = torch.cuda.get_device_properties(0).multi_processor_count
        self.blocks = min((2, 4, 8), key=lambda b: self._ms(b))

    def _ms(self, blocks: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        count = self.buffer.nbytes // 16
        begin.record()
        self.run((blocks * self.sms, 512), self.buffer.data_ptr(), count, self.sink.data_ptr())
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def tb_per_s(self) -> float:
        return self.buffer.nbytes / self._ms(self.blocks) / 1e9


def timed(function: Callable[[], Any]) -> float:
    """Milliseconds between two device events around a call."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def peers(names: list[str], decoder: Decoder, token: torch.Tensor, pos: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Each peer as a call that makes one step; compiling and capturing happen here."""
    out: dict[str, Callable[[], Any]] = {}
    if "eager" in names:
        out["torch eager"] = lambda: decoder(token, pos)
    if "graph" in names:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                decoder(token, pos)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            decoder(token, pos)
        out["CUDA graph"] = graph.replay
    for name, mode, label in (
        ("compile", "reduce-overhead", "torch.compile"),
        ("autotune", "max-autotune", "torch.compile max-autotune"),
    ):
        if name in names:
            compiled = torch.compile(decoder, mode=mode, fullgraph=True)
            for _ in range(3):
                compiled(token, pos)
            out[label] = partial(compiled, token, pos)
    return out


def start(kernel: Any, batch: int, context: int, steps: int) -> Any:
    """A session whose caches hold random rows below the position, so that a step costs what it costs in use."""
    session = kernel.new_session()
    graph = kernel.graph
    generator = torch.Generator(device=session.device).manual_seed(1)
    for name in graph.tensors:
        if name.endswith("_cache"):
            session.tensors[name].normal_(0, 1, generator=generator)
    o = next(x for x in graph.operators if x.op == "advance").operands
    eos = graph.tensors[o["eos"]].type.sizes
    session.bind(
        {
            o["eos"]: torch.full(eos, -1, dtype=torch.int32, device=session.device),
            o["limit"]: torch.full((batch,), 1 << 30, dtype=torch.int32, device=session.device),
        }
    )
    reset(session, o, context - steps)
    return session


def reset(session: Any, o: Any, position: int) -> None:
    t = session.tensors
    t[o["token"]].fill_(7)
    t[o["position"]].fill_(position)
    t[o["done"]].zero_()


@torch.inference_mode()
def one(args: argparse.Namespace, name: str, batch: int, context: int, limit: Bandwidth) -> list[dict[str, Any]]:
    settings = {k: int(v) for k, v in (s.split("=") for s in args.setting)}
    model = mk.models.random(name, device="cuda")
    begin = time.perf_counter()
    rows = context + 16
    graph = model.decode_graph(batch=batch, context=rows, layers=args.layers)
    machine = mk.Machine.cuda()
    passes = None
    if args.splits:
        passes = tuple(
            f"split_attention:{args.splits}" if p.startswith("split_attention") else p
            for p in mk.choose_plan(graph, machine).passes
        )
    tasks = mk.lower(graph, machine, passes=passes, **settings)
    kernel = mk.build(mk.assign(tasks, policy=args.policy), weights=model)
    kernel.prefetch = not args.no_prefetch
    ready = time.perf_counter() - begin
    session = start(kernel, batch, context, args.steps)
    o = next(x for x in kernel.graph.operators if x.op == "advance").operands
    decoder = Decoder(model, batch, rows) if args.layers is None else None
    token = torch.full((batch, 1), 7, device="cuda")
    pos = torch.tensor([context - args.steps], device="cuda")
    error = agreement(session, o, decoder, token, pos, context - args.steps) if decoder is not None else float("nan")

    def mega() -> float:
        reset(session, o, context - args.steps)
        return session.launch(args.steps).seconds * 1e3 / args.steps

    others = peers([p for p in args.peers.split(",") if p], decoder, token, pos) if decoder is not None else {}
    for _ in range(3):
        mega()
        for f in others.values():
            timed(f)
    samples: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    moved = tasks.graph.weight_bytes() - (0 if model.config.tied else tasks.graph.tensors["embed.weight"].bytes)
    for r in range(args.rounds):
        runs: dict[str, Callable[[], float]] = {
            "mpklab": mega,
            **{k: partial(timed, f) for k, f in others.items()},
        }
        for label in rng.permutation(list(runs)):
            samples.append({"what": str(label), "round": r, "ms": runs[str(label)]()})
        samples.append({"what": "read", "round": r, "tb_per_s": limit.tb_per_s()})
    for s in samples:
        s |= {
            "model": name,
            "batch": batch,
            "context": context,
            "weight_bytes": moved,
            "build_s": ready,
            "error": error,
        }
    if args.profile:
        reset(session, o, context - args.steps)
        outcome = session.launch(args.steps, profile=args.level)
        outcome.profile.save(args.profile)
    return samples


def agreement(session: Any, o: Any, decoder: Decoder, token: Any, pos: Any, position: int) -> float:
    """Relative difference of one step's logits to the torch decoder's on the same caches: printed beside the times."""
    for i, layer in enumerate(decoder.layers):
        layer.k_cache.copy_(session.tensors[f"layer{i}.k_cache"])
        layer.v_cache.copy_(session.tensors[f"layer{i}.v_cache"])
    reset(session, o, position)
    session.launch(1)
    mine = session.tensors["logits"].float()
    _, theirs = decoder(token, pos)
    return float((mine - theirs.float()).norm() / theirs.float().norm())


def summary(samples: list[dict[str, Any]]) -> list[str]:
    """Medians as text, the ratio to each peer and the share of the read bandwidth."""
    lines = []
    keys = sorted({(s["model"], s["batch"], s["context"]) for s in samples}, key=str)
    for key in keys:
        rows = [s for s in samples if (s["model"], s["batch"], s["context"]) == key]
        read = float(np.median([s["tb_per_s"] for s in rows if s["what"] == "read"]))
        mine = float(np.median([s["ms"] for s in rows if s["what"] == "mpklab"]))
        lines.append(
            f"{key[0]}  batch {key[1]}  context {key[2]}  weights {rows[0]['weight_bytes'] / 1e9:.3f} GB  "
            f"read limit {read:.3f} TB/s  logits differ {rows[0]['error']:.2e}  graph to kernel {rows[0]['build_s']:.2f} s"
        )
        for what in sorted({s["what"] for s in rows if "ms" in s}, key=lambda w: (w != "mpklab", w)):
            ms = np.array([s["ms"] for s in rows if s["what"] == what])
            low, middle, high = np.percentile(ms, [5, 50, 95])
            rate = rows[0]["weight_bytes"] / middle / 1e9
            lines.append(
                f"  {what:28} {middle:8.4f} ms [{low:.4f}, {high:.4f}]  {rate:6.3f} TB/s  {rate / read:6.1%} of the limit"
                f"  mpklab is {middle / mine:.3f} ×"
            )
    return lines


def main(args: argparse.Namespace) -> int:
    if not torch.cuda.is_available():
        raise EnvError("bench decode needs a CUDA device; `mpklab bench cpu` runs on this machine")
    limit = Bandwidth()
    samples: list[dict[str, Any]] = []
    made = stamp.collect(device={"name": torch.cuda.get_device_name(), **device.facts()})
    for name in args.models.split(","):
        for batch in map(int, args.batch.split(",")):
            for context in map(int, args.context.split(",")):
                try:
                    samples += one(args, name, batch, context, limit)
                except MpkError as error:
                    print(f"{name} batch {batch} context {context}: {error}", flush=True)
                    continue
                finally:
                    torch._dynamo.reset()
                    gc.collect()
                    torch.cuda.empty_cache()
                print(
                    "\n".join(summary([s for s in samples if s["model"] == name and s["batch"] == batch])), flush=True
                )
    if args.json:
        Path(args.json).write_text(json.dumps({"stamp": made, "samples": samples}, indent=1))
    print(
        "\n".join(
            ["", f"{made['device'].get('name')}, driver {made['device'].get('driver_version')}", *summary(samples)]
        )
    )
    return 0 if samples else 1
