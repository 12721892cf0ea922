"""`time`: kernels and plain functions beside each other, interleaved in random order, every sample kept."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch

from mpklab import stamp
from mpklab.confidence import median_ratio
from mpklab.errors import RunError, answers_slips, suggest
from mpklab.graph import Graph, Tensor
from mpklab.profile import Window
from mpklab.reference.execute import TORCH_DTYPES
from mpklab.reference.functions import dealt
from mpklab.run import Kernel, Outcome, Session

NEVER_STOP = 1 << 30


@dataclass(frozen=True, slots=True)
class Ratio:
    """The ratio of two medians with its bootstrap 95 % interval."""

    a: str
    b: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.a} / {self.b} = {self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def __float__(self) -> float:
        return self.value


@dataclass(eq=False)
class Prepared:
    """A kernel that can be launched over and over from the same state, with values of its own where none are given.

    Inputs, and weights that nobody gave, are random from (seed, name): kernels of one graph get the same. A decode step
    starts at `position` (default: half the context) of caches that hold random rows, and meets no end token. Caches
    keep what launches appended, which equal launches append again; all other state is put back.
    """

    kernel: Kernel
    seed: int = 0
    position: int | None = None
    dims: Mapping[str, int] | None = None
    session: Session = field(init=False)
    _state: dict[str, torch.Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.session = session = Session(self.kernel)
        graph = self.kernel.graph
        values = {
            t.name: self._value(graph, t)
            for t in graph.tensors.values()
            if t.role in ("input", "weight") and t.name not in session.tensors and _is_used(graph, t.name)
        }
        session.bind(values)
        caches = _caches(graph)
        for name in caches:
            session.tensors[name].copy_(random_value(graph.tensors[name], self.seed, session.device))
        self._start_decode(graph)
        self._state = {
            t.name: session.tensors[t.name].clone()
            for t in graph.tensors.values()
            if t.role == "state" and t.name not in caches
        }

    def launch(self, iterations: int, profile: int | Window = 0) -> Outcome:
        """Put the state back and run; RunError when a decode step would run past its context."""
        context = self.kernel.graph.meta.get("context")
        if context is not None and not 0 <= self._begin() < int(context) - iterations:
            raise RunError(
                f"{iterations} iterations from position {self._begin()} do not fit the context of {context}: ask for fewer, "
                "or another position"
            )
        for name, value in self._state.items():
            self.session.tensors[name].copy_(value)
        return self.session.launch(iterations, dims=self.dims, profile=profile)

    def results(self) -> dict[str, torch.Tensor]:
        """The outputs of the last launch, and its state."""
        names = [n for n, t in self.kernel.graph.tensors.items() if t.role in ("output", "state")]
        return {n: self.session.tensors[n] for n in names}

    def _begin(self) -> int:
        context = int(self.kernel.graph.meta.get("context", 0))
        return context // 2 if self.position is None else self.position

    def _value(self, graph: Graph, t: Tensor) -> torch.Tensor:
        if t.parts:
            return torch.cat(dealt([self._value(graph, graph.tensors[p]) for p in t.parts], t.groups))
        return random_value(t, self.seed, self.session.device)

    def _start_decode(self, graph: Graph) -> None:
        """Every sequence at the position, not done, with no token that ends it."""
        o = graph.operands_of("advance")
        if not o:
            return
        t = self.session.tensors
        t[o["position"]].fill_(self._begin())
        t[o["token"]].fill_(1)
        t[o["done"]].zero_()
        t[o["eos"]].fill_(-1)
        t[o["limit"]].fill_(NEVER_STOP)


@answers_slips(RunError)
def time(
    what: Mapping[str, Kernel | Prepared | Session | Callable[[], Any]],
    rounds: int = 30,
    warmup: int = 3,
    *,
    iterations: int = 8,
    position: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """One row per sample: name, round, order (place within its round), ms.

    After `warmup` calls of each, every round runs all of them once in a random order. A kernel's ms is per iteration,
    by its own clock, of launches of so many `iterations` (see `Prepared` for what it runs on; a Session is launched as
    it stands); a function's is the wall time of one call, with the GPU's work done at both ends. `ratio` compares two.
    What was measured with and on is in `.attrs["stamp"]`. RunError for what cannot be timed so.
    """
    if not what:
        raise RunError("time needs something to run: {'name': kernel or function, …}")
    if rounds < 1 or warmup < 0:
        raise RunError(f"time needs at least one round and no negative warm-up, not rounds={rounds}, warmup={warmup}")
    calls = {name: _call(name, thing, iterations, position, seed) for name, thing in what.items()}
    for call in calls.values():
        for _ in range(warmup):
            call()
    rng = np.random.default_rng(seed)
    names = list(calls)
    rows: list[tuple[str, int, int, float]] = []
    for number in range(rounds):
        for order, i in enumerate(rng.permutation(len(names))):
            rows.append((names[i], number, order, calls[names[i]]() * 1e3))
    table = pd.DataFrame(rows, columns=["name", "round", "order", "ms"])
    kernels = [thing if isinstance(thing, Kernel) else getattr(thing, "kernel", None) for thing in what.values()]
    first = next((kernel for kernel in kernels if isinstance(kernel, Kernel)), None)
    table.attrs["stamp"] = stamp.collect(
        device=first.device_facts() if first else None,
        hashes={name: k.schedule.hash for name, k in zip(what, kernels, strict=True) if isinstance(k, Kernel)},
        seeds=[seed],
    )
    return table


def _call(name: str, thing: Any, iterations: int, position: int | None, seed: int) -> Callable[[], float]:
    """A function that runs the thing once and says how many seconds that took."""
    if isinstance(thing, Kernel):
        thing = Prepared(thing, seed, position)
    if isinstance(thing, Prepared | Session):

        def launch() -> float:
            outcome = thing.launch(iterations)
            if outcome.iterations < 1:
                raise RunError(f"{name} stopped before its first iteration: put its state back between launches")
            return float(outcome.seconds) / int(outcome.iterations)

        return launch
    if not callable(thing):
        raise RunError(
            f"{name} is a {type(thing).__name__}; time takes kernels, sessions and functions without arguments"
        )

    def call() -> float:
        on_gpu = torch.cuda.is_initialized()
        if on_gpu:
            torch.cuda.synchronize()
        begin = perf_counter()
        thing()
        if on_gpu:
            torch.cuda.synchronize()
        return perf_counter() - begin

    return call


@answers_slips(RunError)
def ratio(samples: pd.DataFrame, a: str, b: str, *, column: str = "name", seed: int = 0) -> Ratio:
    """The ratio of the medians of a and b. Rounds are drawn as wholes, so that what both met in one round stays together.

    `samples` has the columns name (or `column`), round and ms; rounds that lack one of the two are left out.
    """
    names = samples[column].unique().tolist()
    for name in (a, b):
        if name not in names:
            raise RunError(f"no samples of {name!r}: {suggest(str(name), map(str, names))}")
    table = samples[samples[column].isin([a, b])].pivot_table(index="round", columns=column, values="ms").dropna()
    if table.empty:
        raise RunError(f"{a} and {b} share no round, so they cannot be compared")
    return Ratio(str(a), str(b), *median_ratio(table[a].to_numpy(float), table[b].to_numpy(float), seed))


def random_value(t: Tensor, seed: int, device: str) -> torch.Tensor:
    """Random numbers, or zeros of integers, fixed by seed and name; made on the CPU, so that every machine has the same."""
    dtype, sizes = TORCH_DTYPES[t.dtype], t.type.sizes
    if not dtype.is_floating_point:
        return torch.zeros(sizes, dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {t.name}".encode()))
    scale = sizes[-1] ** -0.5 if t.role == "weight" and len(sizes) > 1 else 1.0
    return (torch.randn(sizes, generator=generator) * scale).to(dtype).to(device)


def random_weights(graph: Graph, seed: int, device: str) -> dict[str, torch.Tensor]:
    """A value for every weight of a graph, to be shared by the kernels made of it; the same as `Prepared` would take."""
    return {t.name: random_value(t, seed, device) for t in graph.tensors.values() if t.role == "weight" and not t.parts}


def _is_used(graph: Graph, name: str) -> bool:
    return any(name in o.operands.values() for o in graph.operators)


def _caches(graph: Graph) -> list[str]:
    found = {o.operands[k] for o in graph.operators for k in ("k_cache", "v_cache") if k in o.operands}
    return sorted(found)
