"""Decode on CPU threads: this kernel, transformers, torch.compile and the memory's own limit, interleaved in one run."""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpklab import env, models
from mpklab.bench._common import load_now, show, stamped, write_json
from mpklab.builder import compile_source
from mpklab.codegen import Source
from mpklab.confidence import Interval
from mpklab.dims import Dim
from mpklab.errors import EnvError, MpkError
from mpklab.machine import Machine
from mpklab.models import Model
from mpklab.models.catalog import SHIPPED
from mpklab.run import Kernel, build
from mpklab.schedule import assign
from mpklab.tasks import lower

DTYPES = ("bfloat16", "float32")
REST_S = 0.05  # between contenders: torch's threads spin for a while after their last work
READS = 3  # passes over the buffer in a round; the best counts, as other programs only ever slow one down
BUFFER_BYTES = 256 << 20
HUGE_PAGES = 14  # MADV_HUGEPAGE
QUIET = 0.05  # other programs' share of the CPUs in a round that counts as left alone
BATCHES = (1, 2, 3, 4)


@dataclass
class Contender:
    """Something that makes tokens: `run(count)` makes so many from the same state each time; seconds a token."""

    name: str
    dtype: str
    bytes: float  # read from memory for a token
    run: Callable[[], float]
    seconds: list[float] = field(default_factory=list)
    share: list[float] = field(default_factory=list)  # of the bandwidth of the same round


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="smollm2-135m", help="a name, a GGUF file or a folder; weights are made up where none ship")
    add("--workers", type=int, metavar="N", help="threads of everything (default: the physical cores at hand)")
    add("--policy", default="locality", help="(default: %(default)s)")
    add("--prompt", type=int, default=128, metavar="N", help="tokens in the cache to begin with (default: %(default)s)")
    add("--tokens", type=int, default=32, metavar="N", help="tokens a round (default: %(default)s)")
    add("--rounds", type=int, default=12, metavar="N", help="interleaved rounds (default: %(default)s)")
    add("--no-compile", action="store_true", help="without torch.compile, which takes minutes to get ready")
    add("--no-peers", action="store_true", help="this kernel and the bandwidth alone")
    add("--batch", action="store_true", help="also one kernel for every batch up to 4 beside one built for 1")
    add("--json", type=Path, metavar="FILE", help="write every sample into this file")


def main(args: argparse.Namespace) -> int:
    """Get everything ready, take turns, print the table."""
    for name in ("prompt", "tokens", "rounds"):
        if getattr(args, name) < 1:
            raise MpkError(f"--{name} should be at least 1, not {getattr(args, name)}")
    made, load_before = stamped(), load_now()
    machine = Machine.cpu(args.workers)
    torch.set_num_threads(machine.workers)
    reader = Reader(machine)
    ready: dict[str, float] = {}
    contenders: list[Contender] = []
    notes: list[str] = []
    ids: list[int] = []
    for dtype in DTYPES:
        say(f"{dtype}: kernel")
        model = models.load(args.model, dtype=dtype) if _real(args.model) else models.random(args.model, dtype=dtype)
        ids = ids or [random.Random(0).randrange(model.config.vocab) for _ in range(args.prompt)]
        kernel = make(model, args, machine, 1)
        contenders.append(Contender("mpklab", dtype, bytes_per_token(model, args), timed(kernel, [ids], args.tokens)))
        if args.batch and dtype == "bfloat16":
            contenders += batched(model, args, machine, ids)
        if args.no_peers:
            continue
        say(f"{dtype}: transformers")
        try:
            module = model.to_transformers(dtype)
        except EnvError as error:
            notes.append(str(error))
            continue
        contenders.append(
            Contender("transformers eager", dtype, bytes_per_token(model, args), eager(module, ids, args.tokens))
        )
        if args.no_compile:
            continue
        say(f"{dtype}: torch.compile")
        begin = time.perf_counter()
        try:
            run = compiled(module, ids, args.tokens)
        except Exception as error:  # whatever torch's compiler stumbles over, the others are still worth a table
            notes.append(
                f"torch.compile of transformers, {dtype}: {type(error).__name__}: {str(error).splitlines()[0]}"
            )
            continue
        ready[dtype] = time.perf_counter() - begin
        contenders.append(Contender("transformers torch.compile", dtype, bytes_per_token(model, args), run))
    with no_recompilation() if ready else contextlib.nullcontext():
        bandwidth, others = take_turns(contenders, reader, args.rounds)
    if len(quiet := [i for i, share in enumerate(others) if share < QUIET]) >= 3 and max(others) >= QUIET:
        shares = ", ".join(
            f"{c.name} {c.dtype} {np.median([c.seconds[i] for i in quiet]) * 1e3:.2f} ms, "
            f"{np.median([c.share[i] for i in quiet]):.1%}"
            for c in contenders
            if c.name == "mpklab"
        )
        notes.append(f"in the {len(quiet)} rounds that others left alone (under {QUIET:.0%}): {shares}")
    print_result(args, contenders, bandwidth, others, ready, made, load_before, reader, notes)
    return 0


def take_turns(contenders: list[Contender], reader: Reader, rounds: int) -> tuple[list[float], list[float]]:
    """Every contender and the bandwidth once a round, in another order each.

    Returns by round the bytes a second, and the share of the CPUs' time that other programs took.
    """
    bandwidth, others = [], []
    for c in contenders:
        c.run()  # the first time finds memory and threads cold
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}, load {load_now():.1f}")
        order = list(contenders)
        random.Random(number).shuffle(order)
        before = cpu_seconds()
        bandwidth.append(reader.bytes_per_second())
        for c in order:
            time.sleep(REST_S)
            c.seconds.append(c.run())
        bandwidth[-1] = max(bandwidth[-1], reader.bytes_per_second())
        mine, busy, whole = (b - a for a, b in zip(before, cpu_seconds(), strict=True))
        others.append(max(0.0, busy - mine) / whole if whole else float("nan"))
        for c in contenders:
            c.share.append(c.bytes / c.seconds[-1] / bandwidth[-1])
    return bandwidth, others


def cpu_seconds() -> tuple[float, float, float]:
    """This process's CPU seconds, everybody's, and all there were; zeros for the last two where they are not told."""
    t = os.times()
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except (OSError, ValueError):
        return t.user + t.system, 0.0, 0.0
    a_second = os.sysconf("SC_CLK_TCK")
    idle = ticks[3] + ticks[4]
    return t.user + t.system, (sum(ticks) - idle) / a_second, sum(ticks) / a_second


# --- contenders ---


def make(model: Model, args: argparse.Namespace, machine: Machine, batch: Any) -> Kernel:
    graph = model.decode_graph(batch=batch, context=args.prompt + args.tokens + 1)
    return build(assign(lower(graph, machine), policy=args.policy), weights=model)


def timed(kernel: Kernel, prompts: list[list[int]], tokens: int) -> Callable[[], float]:
    """One launch of so many steps, timed from outside, thread starts included: seconds a step.

    Every call starts from the same state, and nothing ends early.
    """
    names = kernel.graph.operands_of("advance")
    session = kernel.session_for(*prompts, max_new_tokens=tokens + 1)
    t = session.tensors
    t[names["eos"]].fill_(-1)
    before = {k: t[names[k]].clone() for k in ("token", "position", "done")}
    first = kernel.graph.tensors[names["token"]].shape[0]
    dims = {} if isinstance(first, int) else {str(first): len(prompts)}

    def run() -> float:
        for k, value in before.items():
            t[names[k]].copy_(value)
        begin = time.perf_counter()
        outcome = session.launch(tokens, dims=dims)
        seconds = time.perf_counter() - begin
        if outcome.iterations != tokens:
            raise MpkError(f"the kernel made {outcome.iterations} tokens of {tokens}")
        return seconds / tokens

    return run


def batched(model: Model, args: argparse.Namespace, machine: Machine, ids: list[int]) -> list[Contender]:
    """One kernel for a batch of 1 to 4, with each number of live sequences; a step, not a token."""
    kernel = make(model, args, machine, Dim("batch", max=max(BATCHES)))
    moved = bytes_per_token(model, args)
    return [
        Contender(
            f"mpklab, batch {n} of at most {max(BATCHES)}", "bfloat16", moved, timed(kernel, [ids] * n, args.tokens)
        )
        for n in BATCHES
    ]


@torch.inference_mode()
def eager(module: Any, ids: list[int], tokens: int) -> Callable[[], float]:
    """transformers as it comes: a growing cache, one forward a token. Its copy for the next round is not timed."""
    prompt = torch.tensor([ids])
    filled = module(input_ids=prompt, use_cache=True, logits_to_keep=1)
    first = filled.logits[:, -1].argmax(-1, keepdim=True)

    @torch.inference_mode()
    def run() -> float:
        cache, token = copy.deepcopy(filled.past_key_values), first
        begin = time.perf_counter()
        for _ in range(tokens):
            answer = module(input_ids=token, past_key_values=cache, use_cache=True)
            token = answer.logits[:, -1].argmax(-1, keepdim=True)
        return (time.perf_counter() - begin) / tokens

    return run


def compiled(module: Any, ids: list[int], tokens: int) -> Callable[[], float]:
    """One step under torch.compile: static cache, the whole graph, and an error where anything is compiled again."""
    from transformers import StaticCache

    cache = StaticCache(config=module.config, max_cache_len=len(ids) + tokens + 1)

    def step(token: torch.Tensor) -> torch.Tensor:
        answer = module(input_ids=token, past_key_values=cache, use_cache=True)
        return answer.logits[:, -1].argmax(-1, keepdim=True)

    with torch.inference_mode():
        first = module(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
    lengths = [layer.cumulative_length for layer in cache.layers]
    # Compiled code is kept by code object: one of its own, or the second dtype would count as compiling again.
    step.__code__ = step.__code__.replace(co_name=f"step_{module.dtype}".replace(".", "_"))
    fast = torch.compile(step, fullgraph=True, dynamic=False)

    def rewind() -> None:
        for length in lengths:
            length.fill_(len(ids))

    @torch.inference_mode()
    def run(count: int = tokens) -> float:
        rewind()
        token = first
        begin = time.perf_counter()
        for _ in range(count):
            token = fast(token)
        return (time.perf_counter() - begin) / count

    with torch._inductor.config.patch(force_disable_caches=True):  # or the time to compile would be yesterday's
        run(2)
    return run


def no_recompilation() -> contextlib.AbstractContextManager[Any]:
    """torch raises where it would compile anything again."""
    return torch._dynamo.config.patch(error_on_recompile=True)


def bytes_per_token(model: Model, args: argparse.Namespace) -> float:
    """What a token must read: every weight once (one row of an untied embedding), and the cache's rows so far."""
    config = model.config
    item = 2 if config.dtype == "bfloat16" else 4
    weights = model.parameters - (0 if config.tied else config.vocab * config.hidden)
    rows = args.prompt + (args.tokens + 1) / 2
    return item * (weights + 2 * config.layers * config.kv_heads * config.head_dim * rows)


# --- the limit ---


class Reader:
    """Reads a buffer of the system's huge pages with one thread a worker, compiled from csrc/read.cpp."""

    def __init__(self, machine: Machine):
        self.workers = machine.workers
        library = compile_source(Source((env.csrc_folder() / "read.cpp").read_text(), "cpu"))
        self._read = ctypes.CDLL(str(library.file)).mpk_read
        self._read.restype = ctypes.c_double
        self._read.argtypes = [ctypes.c_void_p, ctypes.c_ulong, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
        self._cpus = np.array(machine.cpus, np.int32) if machine.cpus else None
        self._sink = np.zeros(1, np.uint32)

    @cached_property
    def _buffer(self) -> torch.Tensor:
        buffer = torch.empty(BUFFER_BYTES, dtype=torch.uint8)
        page = 4096
        begin = -(-buffer.data_ptr() // page) * page
        madvise = getattr(ctypes.CDLL(None), "madvise", None)
        if madvise is not None and sys.platform == "linux":  # advice: without it the limit is a little lower
            madvise(ctypes.c_void_p(begin), ctypes.c_size_t(BUFFER_BYTES - page), HUGE_PAGES)
        return buffer.fill_(1)

    def bytes_per_second(self) -> float:
        cpus = None if self._cpus is None else self._cpus.ctypes.data
        seconds = [
            self._read(self._buffer.data_ptr(), BUFFER_BYTES, self.workers, cpus, self._sink.ctypes.data)
            for _ in range(READS)
        ]
        if min(seconds) <= 0:
            raise EnvError(f"the system did not give the reader its {self.workers} threads")
        return BUFFER_BYTES / min(seconds)


# --- the table ---


def print_result(
    args: argparse.Namespace,
    contenders: list[Contender],
    bandwidth: list[float],
    others: list[float],
    ready: dict[str, float],
    made: dict[str, Any],
    load_before: float,
    reader: Reader,
    notes: list[str],
) -> None:
    mine = {c.dtype: c for c in contenders if c.name == "mpklab"}
    rows, results = [], []
    for c in contenders:
        times, share = Interval.of(c.seconds), Interval.of(c.share)
        ratio = Interval.of([a / b for a, b in zip(c.seconds, mine[c.dtype].seconds, strict=True)])
        rows.append(
            (
                c.name, c.dtype, times.text(2, 1e3), f"{c.bytes / times.median / 1e9:.1f}", share.text(1, 100),
                "" if c.name == "mpklab" else ratio.text(3 if "batch" in c.name else 2),
            )
        )  # fmt: skip
        results.append(
            {
                "name": c.name, "dtype": c.dtype, "bytes": c.bytes, "seconds": c.seconds, "share": c.share,
                "median": times, "share_median": share, "ratio": ratio,
            }
        )  # fmt: skip
    limit = Interval.of(bandwidth)
    headers = ("what", "dtype", "ms a token", "GB/s", "% of bandwidth", "× mpklab's time")
    title = f"{args.model}, {args.prompt} tokens in the cache, {args.tokens} a round, medians of {args.rounds} rounds [95 %]"
    words = [
        f"read bandwidth {limit.text(1, 1e-9)} GB/s: {reader.workers} threads of csrc/read.cpp over "
        f"{BUFFER_BYTES >> 20} MiB, before and after each round; "
        f"load {load_before:.1f} before, {load_now():.1f} at the end (its own threads count); other programs took "
        f"{np.mean(others):.0%} of the CPUs, {min(others):.0%} to {max(others):.0%} of a round"
    ]
    if ready:
        compile_times = ", ".join(f"{dtype} {seconds:.0f} s" for dtype, seconds in ready.items())
        words.append(f"torch.compile took {compile_times}, which is not in the table; nothing was compiled again")
    show(title, headers, rows, made, [*words, *notes])
    keys = ("model", "policy", "prompt", "tokens", "rounds")
    write_json(
        args.json, made, settings={k: getattr(args, k) for k in keys}, workers=reader.workers, bandwidth=bandwidth, others=others,
        compile_seconds=ready, load=[load_before, load_now()], results=results, notes=notes,
    )  # fmt: skip


def say(text: str) -> None:
    if env.show_progress():
        print(f"  {text}", file=sys.stderr, flush=True)


def _real(name: str) -> bool:
    return name.lower() in SHIPPED or Path(name).exists()
