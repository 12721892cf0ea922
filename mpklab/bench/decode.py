"""Decode on a GPU: the megakernel beside what one would use instead, interleaved in one run, and the memory's own limit."""

from __future__ import annotations

import argparse
import contextlib
import gc
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mpklab as mk
from mpklab import device, env, stamp
from mpklab.bench._common import show, write_json
from mpklab.bench.torch_decoder import Decoder
from mpklab.confidence import Interval
from mpklab.errors import EnvError, MpkError, suggest

Call = Callable[[], Any]

# What is measured besides the megakernel, by the name that --peers takes.
PEERS = {
    "operators": "the same tasks, one kernel per operator in a CUDA graph with programmatic dependent launch",
    "compile": 'a hand-written decoder under torch.compile(mode="reduce-overhead")',
    "autotune": 'the same with mode="max-autotune"',
    "graph": "the same decoder, not compiled, in a CUDA graph",
    "eager": "transformers as it comes, with its growing cache",
}
# With these, two blocks of an operator share an SM: the next operator's first pages load before this one's have ended.
TWO_BLOCKS = {"consumer_warps": 8, "pages": 3, "in_flight": 3}
EAGER_STEPS = 4  # of transformers in a sample: it is slow enough to be told apart


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--models", default="qwen3-0.6b,qwen3-1.7b,llama-3.2-1b,qwen3-8b", help="names, comma-separated")
    add("--batch", default="1", help="sequences at once, comma-separated (default: %(default)s)")
    add("--context", default="512", help="rows in the cache, comma-separated (default: %(default)s)")
    add("--peers", default="operators,compile,graph", help=f"any of {', '.join(PEERS)} (default: %(default)s)")
    add("--rounds", type=int, default=20, help="interleaved rounds (default: %(default)s)")
    add("--steps", type=int, default=16, help="decode steps in one sample (default: %(default)s)")
    add("--compile-limit", type=float, default=240.0, metavar="S", help="give up a torch.compile that takes longer")
    add("--layers", type=int, default=None, help="only the first layers, without torch's peers")
    add("--policy", default="locality", help="(default: %(default)s)")
    add("--setting", action="append", default=[], metavar="NAME=N", help="a kernel setting, as in a plan")
    add("--splits", default=None, help="pieces of the context per head, N or N:16 for pieces in 16 bits")
    add("--no-prefetch", action="store_true", help="the loader waits for the task's events")
    add("--profile", metavar="FILE", help="save a recording of the last configuration")
    add("--level", type=int, default=2, help="recording level of --profile")
    add("--json", type=Path, metavar="FILE", help="write every sample here")


@dataclass
class Contender:
    """Something that decodes: `run` gives the milliseconds of one step. `share` is of the bandwidth read in its round."""

    name: str
    run: Callable[[], float]
    ms: list[float] = field(default_factory=list)
    share: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """One configuration's contenders, the megakernel first. `bytes` are a step's: weights, and cache rows so far."""

    model: str
    batch: int
    context: int
    bytes: float
    ready_s: float
    error: float
    contenders: list[Contender]
    read: list[float]
    notes: list[str]

    def results(self) -> list[dict[str, Any]]:
        """A row for each contender: every sample, its medians and the ratio of its time to the megakernel's."""
        mine = self.contenders[0].ms
        return [
            {
                "model": self.model, "batch": self.batch, "context": self.context, "name": c.name, "ms": c.ms,
                "median": Interval.of(c.ms), "tb_per_s": self.bytes / np.median(c.ms) / 1e9, "bytes": self.bytes,
                "share": Interval.of(c.share), "ratio": Interval.of([a / b for a, b in zip(c.ms, mine, strict=True)]),
                "read_tb_per_s": self.read, "logits_differ": self.error, "graph_to_kernel_s": self.ready_s,
            }
            for c in self.contenders
        ]  # fmt: skip


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
        count = self.buffer.nbytes // 16
        return timed(lambda: self.run((blocks * self.sms, 512), self.buffer.data_ptr(), count, self.sink.data_ptr()))

    def tb_per_s(self) -> float:
        """TB/s of one reading."""
        return self.buffer.nbytes / self._ms(self.blocks) / 1e9


def timed(function: Call, times: int = 1) -> float:
    """Milliseconds of a call between two device events: of one of `times` calls in a row, as a token loop makes them."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / times


# --- this kernel ---


def start(kernel: Any, batch: int, context: int, steps: int) -> Any:
    """A session whose caches hold random rows below the position, so that a step costs what it costs in use."""
    session = kernel.new_session()
    graph = kernel.graph
    generator = torch.Generator(device=session.device).manual_seed(1)
    for name in graph.tensors:
        if name.endswith("_cache"):
            session.tensors[name].normal_(0, 1, generator=generator)
    o = graph.operands_of("advance")
    eos = graph.tensors[o["eos"]].type.sizes
    session.bind(
        {
            o["eos"]: torch.full(eos, -1, dtype=torch.int32, device=session.device),
            o["limit"]: torch.full((batch,), 1 << 30, dtype=torch.int32, device=session.device),
        }
    )
    reset(session, context - steps)
    return session


def reset(session: Any, position: int) -> None:
    """Put every sequence back to a position."""
    o, t = session.kernel.graph.operands_of("advance"), session.tensors
    t[o["token"]].fill_(7)
    t[o["position"]].fill_(position)
    t[o["done"]].zero_()


def stepping(kernel: Any, batch: int, context: int, steps: int) -> Callable[[], float]:
    """A call that runs some steps in one launch, from the same state each time, and returns milliseconds a step."""
    session = start(kernel, batch, context, steps)

    def run() -> float:
        reset(session, context - steps)
        return float(session.launch(steps).seconds * 1e3 / steps)

    return run


def schedule(graph: Any, args: argparse.Namespace, **settings: int) -> Any:
    """The model's graph as the command line wants it cut and assigned."""
    machine = mk.Machine.cuda()
    settings = {**{k: int(v) for k, v in (s.split("=") for s in args.setting)}, **settings}
    passes = None
    if args.splits:
        passes = tuple(
            f"split_attention:{args.splits}" if p.startswith("split_attention") else p
            for p in mk.choose_plan(graph, machine).passes
        )
    return mk.assign(mk.lower(graph, machine, passes=passes, **settings), policy=args.policy)


# --- the peers ---


def in_a_graph(decoder: Decoder, token: torch.Tensor, pos: torch.Tensor) -> Call:
    """The decoder's step captured, as a call that replays it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            decoder(token, pos)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decoder(token, pos)
    return graph.replay


def compiled(decoder: Decoder, mode: str, token: torch.Tensor, pos: torch.Tensor, limit_s: float) -> Call:
    """The decoder under torch.compile, compiled and captured; EnvError where that takes too long."""
    fast = torch.compile(decoder, mode=mode, fullgraph=True)
    with time_limit(limit_s):
        for _ in range(3):
            fast(token, pos)
        torch.cuda.synchronize()
    return lambda: fast(token, pos)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """EnvError in whatever runs longer; for the main thread of a Unix process."""

    def late(*_: object) -> None:
        raise EnvError(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def eager(model: Any, batch: int, context: int) -> Callable[[], float]:
    """transformers' own step: milliseconds of one, from a cache filled by its own prefill."""
    module = model.to_transformers("bfloat16")
    length = context - EAGER_STEPS
    ids = torch.randint(0, model.config.vocab, (batch, length), device="cuda")
    filled = module(input_ids=ids, use_cache=True, logits_to_keep=1)
    cache, first = filled.past_key_values, filled.logits[:, -1:].argmax(-1)

    def run() -> float:
        token = first

        def step() -> None:
            nonlocal token
            token = module(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)

        ms = timed(step, EAGER_STEPS)
        cache.crop(-EAGER_STEPS)
        return ms

    return run


def agreement(session: Any, decoder: Decoder, token: Any, pos: Any, position: int) -> float:
    """Relative difference of one step's logits to the torch decoder's on the same caches: printed beside the times."""
    for i, layer in enumerate(decoder.layers):
        layer.k_cache.copy_(session.tensors[f"layer{i}.k_cache"])
        layer.v_cache.copy_(session.tensors[f"layer{i}.v_cache"])
    reset(session, position)
    session.launch(1)
    mine = session.tensors["logits"].float()
    _, theirs = decoder(token, pos)
    return float((mine - theirs.float()).norm() / theirs.float().norm())


def contenders(
    args: argparse.Namespace, model: Any, graph: Any, batch: int, context: int, notes: list[str]
) -> tuple[list[Contender], float]:
    """Every peer that was asked for, ready to run, and how far the torch decoder's logits are from this kernel's."""
    wanted = [p for p in args.peers.split(",") if p]
    for p in wanted:
        if p not in PEERS:
            raise MpkError(f"unknown peer {p!r}: {suggest(p, PEERS)}")
    found: list[Contender] = []
    if "operators" in wanted:
        plans = {"one kernel per operator": {}, "the same, two blocks an SM": TWO_BLOCKS}

        def built(settings: dict[str, int]) -> Any:
            return mk.build(schedule(graph, args, **settings), weights=model, launch="per_operator")

        with ThreadPoolExecutor() as pool:
            for name, kernel in zip(plans, pool.map(built, plans.values()), strict=True):
                found.append(Contender(name, stepping(kernel, batch, context, args.steps)))
    if args.layers is not None:
        return found, float("nan")
    position = context - args.steps
    decoder = Decoder(model, batch, context + 16)
    token, pos = torch.full((batch, 1), 7, device="cuda"), torch.tensor([position], device="cuda")
    kernel = mk.build(schedule(graph, args), weights=model)
    error = agreement(start(kernel, batch, context, args.steps), decoder, token, pos, position)
    modes = {
        "compile": ("torch.compile", "reduce-overhead"),
        "autotune": ("torch.compile max-autotune", "max-autotune"),
    }
    for peer, (name, mode) in modes.items():
        if peer not in wanted:
            continue
        say(f"{model.name}, batch {batch}, context {context}: {name}")
        begin = time.perf_counter()
        try:
            step = compiled(decoder, mode, token, pos, args.compile_limit)
        except Exception as problem:  # whatever torch's compiler stumbles over, the others are still worth a table
            notes.append(f"{name}: {type(problem).__name__}: {str(problem).splitlines()[0]}")
            continue
        notes.append(f"{name} took {time.perf_counter() - begin:.0f} s to get ready")
        found.append(Contender(name, lambda step=step: timed(step, args.steps)))  # type: ignore[misc]
    if "graph" in wanted:
        replay = in_a_graph(decoder, token, pos)
        found.append(Contender("CUDA graph", lambda: timed(replay, args.steps)))
    if "eager" in wanted:
        found.append(Contender("transformers eager", eager(model, batch, context)))
    return found, error


# --- the run ---


@torch.inference_mode()
def one(args: argparse.Namespace, name: str, batch: int, context: int, limit: Bandwidth) -> Outcome:
    """One model, batch and context: get everything ready, then take turns."""
    say(f"{name}, batch {batch}, context {context}")
    model = mk.models.random(name, device="cuda")
    begin = time.perf_counter()
    graph = model.decode_graph(batch=batch, context=context + 16, layers=args.layers)
    kernel = mk.build(schedule(graph, args), weights=model)
    kernel.prefetch = not args.no_prefetch
    ready = time.perf_counter() - begin
    notes: list[str] = []
    peers, error = contenders(args, model, graph, batch, context, notes)
    everyone = [Contender("mpklab", stepping(kernel, batch, context, args.steps)), *peers]
    for c in everyone:
        for _ in range(2):
            c.run()
    read = []
    rng = np.random.default_rng(0)
    for _ in range(args.rounds):
        read.append(limit.tb_per_s())
        for i in rng.permutation(len(everyone)):
            everyone[i].ms.append(everyone[i].run())
    if args.profile:
        session = start(kernel, batch, context, args.steps)
        session.launch(args.steps, profile=args.level).profile.save(args.profile)
    moved = bytes_per_step(kernel.graph, model.config, batch, context - args.steps // 2)
    for c in everyone:
        c.share = [moved / ms / 1e9 / tb for ms, tb in zip(c.ms, read, strict=True)]
    return Outcome(name, batch, context, moved, ready, error, everyone, read, notes)


def bytes_per_step(graph: Any, config: Any, batch: int, rows: int) -> float:
    """What a step must read: every weight once (a row of an untied embedding), and the cache's rows of every sequence."""
    weights = graph.weight_bytes() - (0 if config.tied else graph.tensors["embed.weight"].bytes)
    layers = sum(1 for t in graph.tensors if t.endswith("k_cache"))
    return float(weights + 2 * batch * layers * config.kv_heads * config.head_dim * 2 * rows)


HEADERS = ("what", "ms a token [95 %]", "TB/s", "% of the read bandwidth", "its time ÷ mpklab's")


def rows(outcome: Outcome) -> list[Sequence[object]]:
    """The table of one configuration."""
    return [
        (
            r["name"], r["median"].text(4), f"{r['tb_per_s']:.3f}", r["share"].text(1, 100),
            "" if r["name"] == "mpklab" else r["ratio"].text(3),
        )
        for r in outcome.results()
    ]  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Every model × batch × context in turn, a table each, everything into one file."""
    if not torch.cuda.is_available():
        raise EnvError("bench decode needs a CUDA device; `mpklab bench cpu` runs on this machine")
    limit = Bandwidth()
    made = stamp.collect(device={"name": torch.cuda.get_device_name(), **device.facts()})
    outcomes: list[Outcome] = []
    skipped: list[str] = []
    for name in args.models.split(","):
        for batch in map(int, args.batch.split(",")):
            for context in map(int, args.context.split(",")):
                try:
                    outcome = one(args, name, batch, context, limit)
                except (MpkError, torch.OutOfMemoryError) as error:
                    skipped.append(f"{name}, batch {batch}, context {context}: {str(error).splitlines()[0]}")
                    print(skipped[-1], flush=True)
                    continue
                finally:
                    torch._dynamo.reset()
                    gc.collect()
                    torch.cuda.empty_cache()
                outcomes.append(outcome)
                title = (
                    f"{name}, batch {batch}, context {context}: {outcome.bytes / 1e9:.3f} GB a step, "
                    f"medians of {args.rounds} rounds of {args.steps} steps"
                )
                words = [
                    f"read bandwidth {Interval.of(outcome.read).text(3)} TB/s; logits differ from torch's by "
                    f"{outcome.error:.1e}; from graph to kernel {outcome.ready_s:.2f} s",
                    f"{made['device'].get('name')}, driver {made['device'].get('driver_version')}",
                ]
                show(title, HEADERS, rows(outcome), made, [*words, *outcome.notes])
                print(flush=True)
    settings = {k: v for k, v in vars(args).items() if isinstance(v, int | float | str | list | None)}
    results = [row for outcome in outcomes for row in outcome.results()]
    write_json(args.json, made, settings=settings, results=results, skipped=skipped)
    return 0 if outcomes else 1


def say(text: str) -> None:
    if env.show_progress():
        print(f"  {text}", file=sys.stderr, flush=True)
