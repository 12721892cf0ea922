"""What tasks and hand-offs cost: a small model per operator kind, from a machine's figures or fitted to a profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mpklab import recipe
from mpklab.errors import ScheduleError, suggest
from mpklab.graph import Operator
from mpklab.machine import Machine
from mpklab.ops import REGISTRY, Box
from mpklab.ops.base import ITEM_BYTES
from mpklab.profile import Profile
from mpklab.tasks import TaskGraph

F64 = npt.NDArray[np.float64]
# A worker's own arithmetic keeps up with this multiple of its share of the bandwidth (one H200, batch 1).
KEEPS_UP = 1.2
# From asking for a page of 32 KB to having it, where nobody else loads: with two on their way a worker gets 66 GB/s. Of 33, 66
# and 132 workers that stream each gets 63, 54.5 and 34: the cube root of the sum of cubes of both limits, where all could have
# 1.05 times what 132 get (logits of Llama-3.2-1B and Qwen3-8B on an H200, profiles/LOG.md).
PAGE_NS, PAGE_BYTES = 984.0, 32768
BEND, MORE = 3.0, 1.05
# Pools of a GPU, in hand-offs (recordings of Qwen3-0.6B on two H200s, profiles/LOG.md): a warp pushes 32 tasks side by
# side; a loader finds one, takes it, with early push says so, and lays it out; a signal that may hand out tasks is waited
# for. Loaders that never leave the pool take turns by addition; others compete, one after the other.
HANDOUT, PUSH, QUEUE, ROUND, SEEK, POP, LAYOUT, ISSUE, PROMISE, SERIAL, POOL_SIGNAL = (
    0.97, 0.024, 0.55, 0.70, 1.49, 0.065, 0.89, 0.34, 0.94, 0.30, 0.95
)  # fmt: skip


# By words, in hand-offs by counters: 13 µs less a step of Qwen3-0.6B, where 113 hand-offs follow each other (one H200).
WORDS = 0.9


@dataclass(frozen=True, slots=True)
class KindCost:
    """One operator kind: overhead_ns + max(flops · ns_per_flop, bytes · ns_per_byte, the shared bandwidth), after gather_ns.

    ns_per_byte is what one worker needs however idle memory is; the shared bandwidth adds what the others take. spread
    is the standard deviation of the logarithm of a task's own time: the slowest of many is what others wait for.
    """

    overhead_ns: float = 0.0
    ns_per_byte: float = 0.0
    ns_per_flop: float = 0.0
    gather_ns: float = 0.0
    spread: float = 0.0


@dataclass(frozen=True, slots=True)
class Costs:
    """Everything the engine must know beside the schedule. Times in ns, rates in bytes/s.

    kinds: by `flavour` of operator or by its kind; `default` for the others · fetch_ns, signal_ns per task · wait_ns: one
    look at an event, as a task's first wait takes at least; more_wait_ns: each further one · handoff_ns: from the last
    signal to the waiting worker, by abi.Handoff name · step_ns: likewise for StepControl · handout_ns to hand out
    anything and push_ns for each task, queue_ns until it can be popped, pop_ns to take it, serial_ns for which one pop
    keeps the others of its queue waiting, pool_signal_ns by which signals take longer where tasks are handed out · for
    early push, promise_ns to say that a task was popped · where a loader pops, round_ns from one look for a task to
    the next while it finds none, seek_ns until it sees what was there before it came, issue_ns for the first of its copies ·
    layout_ns: from one task that a loader has to the next, and until its worker knows of it · bandwidth of all workers
    together, worker_bandwidth of one alone, bend: how sharply the one limit takes over from the other (infinite: at
    once) · ring_bytes that a worker's loader may run ahead (0: no loader) · source: where the figures come from.
    """

    kinds: Mapping[str, KindCost] = field(default_factory=dict)
    default: KindCost = field(default_factory=KindCost)
    fetch_ns: float = 0.0
    wait_ns: float = 0.0
    more_wait_ns: float = 0.0
    signal_ns: float = 0.0
    handoff_ns: Mapping[str, float] = field(default_factory=dict)
    step_ns: float = 0.0
    handout_ns: float = 0.0
    push_ns: float = 0.0
    queue_ns: float = 0.0
    pop_ns: float = 0.0
    serial_ns: float = 0.0
    pool_signal_ns: float = 0.0
    promise_ns: float = 0.0
    round_ns: float = 0.0
    seek_ns: float = 0.0
    layout_ns: float = 0.0
    issue_ns: float = 0.0
    bandwidth: float = float("inf")
    worker_bandwidth: float = float("inf")
    bend: float = float("inf")
    ring_bytes: float = 0.0
    source: str = ""

    @staticmethod
    def of(machine: Machine, settings: Mapping[str, int] | None = None) -> Costs:
        """A first guess from a machine's rates and latencies; `settings` are those of a plan (pages, prefetch)."""
        handoff, overhead = machine.handoff_s * 1e9, machine.task_overhead_s * 1e9
        chosen = dict(settings or {})
        ring = 0.0
        if machine.backend == "cuda":
            pages = chosen.get("pages", 0) * chosen.get("page_bytes", 0)
            ring = float(pages or machine.shared_bytes // PAGE_BYTES * PAGE_BYTES - PAGE_BYTES)
        share = machine.bandwidth / machine.workers
        alone = share if machine.backend == "cpu" else 2 * share
        if machine.backend == "cuda" and chosen.get("in_flight"):
            alone = chosen["in_flight"] * chosen.get("page_bytes", PAGE_BYTES) / PAGE_NS * 1e9
        pools = {
            "handout": 0.0,
            "push": overhead / 4,
            "queue": handoff / 2,
            "pop": overhead,
            "serial": overhead / 8,
            "pool_signal": 0.0,
            "promise": 0.0,
            "round": 0.0,
            "seek": 0.0,
            "layout": 0.0,
            "issue": 0.0,
        }
        if machine.backend == "cuda":
            figures = {"handout": HANDOUT, "push": PUSH, "queue": QUEUE, "pop": POP, "serial": SERIAL}
            figures |= {
                "pool_signal": POOL_SIGNAL,
                "promise": PROMISE,
                "round": ROUND,
                "seek": SEEK,
                "layout": LAYOUT,
                "issue": ISSUE,
            }
            pools = {name: figure * handoff for name, figure in figures.items()}
        kind = KindCost(
            ns_per_flop=1e9 * machine.workers / machine.peak_f32,
            ns_per_byte=1e9 / (share * KEEPS_UP) if machine.backend == "cuda" else 0.0,
        )
        return Costs(
            default=kind,
            fetch_ns=overhead / 2,
            signal_ns=overhead / 2,
            handoff_ns={"counter": handoff, "data": WORDS * handoff, "worker": 0.0},
            step_ns=handoff,
            handout_ns=pools["handout"],
            push_ns=pools["push"],
            queue_ns=pools["queue"],
            pop_ns=pools["pop"],
            serial_ns=pools["serial"],
            pool_signal_ns=pools["pool_signal"],
            promise_ns=pools["promise"],
            round_ns=pools["round"],
            seek_ns=pools["seek"],
            layout_ns=pools["layout"],
            issue_ns=pools["issue"],
            bandwidth=machine.bandwidth * (MORE if machine.backend == "cuda" else 1),
            worker_bandwidth=alone,
            bend=BEND if machine.backend == "cuda" else float("inf"),
            ring_bytes=ring,
            source=f"machine {machine.name}",
        )

    @staticmethod
    def of_profile(profile: Profile) -> Costs:
        """What the machine's figures say of a kernel that was recorded; nothing costs anything without a recipe."""
        machine = recipe.machine_of(profile)
        costs = Costs.of(machine, recipe.settings_of(profile)) if machine else Costs()
        return replace(costs, ring_bytes=0.0) if profile.meta.get("prefetch") is False else costs

    def rate(self, streams: int) -> float:
        """Bytes/s of each of so many workers that load at once."""
        low, high = sorted((self.worker_bandwidth, self.bandwidth / streams))
        return low if np.isinf(high) else low / (1 + (low / high) ** self.bend) ** (1 / self.bend)

    def kind(self, operator: Operator) -> KindCost:
        """The costs of an operator: those of its flavour, else of its kind."""
        return self.kinds.get(flavour(operator)) or self.kinds.get(operator.op, self.default)

    def replaced(self, **changes: Any) -> Costs:
        """The same costs with some fields changed; a change of handoff_ns or kinds keeps what it does not name."""
        for name in changes:
            if name not in Costs.__dataclass_fields__:
                raise ScheduleError(f"costs have no {name!r}: {suggest(name, Costs.__dataclass_fields__)}")
        for name in ("handoff_ns", "kinds"):
            if name in changes:
                changes[name] = {**getattr(self, name), **changes[name]}
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        out = asdict(self)  # JSON has no infinity
        return {k: None if v == float("inf") else v for k, v in out.items()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Costs:
        """The costs that `to_json` described; ScheduleError when it is not that."""
        try:
            plain: dict[str, Any] = {k: float("inf") if v is None else v for k, v in data.items()}
            plain["kinds"] = {k: KindCost(**v) for k, v in plain["kinds"].items()}
            plain["default"] = KindCost(**plain["default"])
            return Costs(**plain)
        except (KeyError, TypeError, AttributeError) as error:
            raise ScheduleError(f"not a description of costs: {error!r}") from error

    def to_pandas(self) -> Any:
        """One row per operator kind: overhead_ns, gb_per_s and gflop_per_s of one worker, gather_ns, spread."""
        import pandas as pd

        rows = {**self.kinds, "(others)": self.default}
        with np.errstate(divide="ignore"):
            return pd.DataFrame(
                {
                    "kind": list(rows),
                    "overhead_ns": [c.overhead_ns for c in rows.values()],
                    "gb_per_s": 1 / np.array([c.ns_per_byte for c in rows.values()]),
                    "gflop_per_s": 1 / np.array([c.ns_per_flop for c in rows.values()]),
                    "gather_ns": [c.gather_ns for c in rows.values()],
                    "spread": [c.spread for c in rows.values()],
                }
            )


@dataclass(frozen=True, slots=True)
class Work:
    """What each task does, in arrays over task ids, in ns and bytes.

    execute: its duration where that is given, NaN where it follows from the rest: it ends overhead after both its
    `compute` time and its bytes are there. Times may have a row per iteration. `ahead` bytes may be loaded before
    the task's events happen (by a loader, if there is one); `behind` bytes only afterwards. `load`: how long a loader
    that takes tasks from pools issues a task's copies; NaN: as long as it runs, for it holds more than the ring.
    """

    execute: F64
    fetch: F64
    gather: F64
    signal: F64
    overhead: F64
    compute: F64
    ahead: F64
    behind: F64
    load: F64

    @staticmethod
    def given(execute: F64, fetch: Any = 0.0, gather: Any = 0.0, signal: Any = 0.0, load: Any = 0.0) -> Work:
        """Work of known durations: nothing is shared, nothing is loaded ahead."""
        execute = np.asarray(execute, np.float64)
        n = execute.shape[-1]
        rest = [np.asarray(x, np.float64) + np.zeros(n) for x in (fetch, gather, signal, load)]
        none = np.zeros(n)
        return Work(execute, rest[0], rest[1], rest[2], none, none, none, none, rest[3])


def flavour(operator: Operator) -> str:
    """An operator's kind and the optional operands it has: `linear+norm_weight` costs other than `linear`."""
    optional = [p.name for p in REGISTRY.ops[operator.op].operands if p.optional and p.name in operator.operands]
    return "+".join([operator.op, *optional])


def work(tasks: TaskGraph, costs: Costs, iterations: int = 1, seed: int = 0) -> Work:
    """The work of a task graph under a cost model; where times spread, each iteration draws its own."""
    kinds = [costs.kind(o) for o in tasks.operators]
    o = tasks.operator_of

    def column(name: str) -> F64:
        return np.array([getattr(k, name) for k in kinds], np.float64)[o]

    ahead, behind = traffic(tasks)
    n = len(tasks)
    spread = column("spread")
    drawn_factor: Any = 1.0
    if spread.any():
        drawn_factor = np.exp(spread * np.random.default_rng(seed).standard_normal((iterations, n)))
    return Work(
        execute=np.full(n, np.nan),
        fetch=np.full(n, costs.fetch_ns),
        gather=column("gather_ns"),
        signal=np.full(n, costs.signal_ns),
        overhead=column("overhead_ns") * drawn_factor,
        compute=np.maximum(tasks.flops * column("ns_per_flop"), tasks.bytes * column("ns_per_byte")) * drawn_factor,
        ahead=ahead,
        behind=behind,
        load=loads(ahead, costs),
    )


def loads(ahead: F64, costs: Costs) -> F64:
    """`Work.load` of tasks that stream so many bytes, where nothing else is known: at what one worker alone gets."""
    return np.where(ahead <= costs.ring_bytes, costs.issue_ns + ahead / costs.worker_bandwidth * 1e9, np.nan)


def traffic(tasks: TaskGraph) -> tuple[F64, F64]:
    """Bytes of each task that come from memory: weights, which no task writes, and state such as caches.

    Activations are left out: what one task just wrote another finds in a cache.
    """
    weights, state = np.zeros(len(tasks)), np.zeros(len(tasks))
    seen: dict[str, F64] = {}
    for i, operator in enumerate(tasks.operators):
        rules = REGISTRY.ops[operator.op]
        rows = slice(int(tasks.first[i]), int(tasks.first[i + 1]))
        roles = {k: tasks.graph.tensors[v].role for k, v in operator.operands.items()}
        streamed = {p.name: roles[p.name] for p in rules.operands if p.streamed and p.name in roles}
        if "weight" in streamed.values():
            node, tiling = tasks.graph.node(operator), tasks.plan.tilings[operator.name]
            key = f"{operator.op} {sorted((k, str(t), roles[k]) for k, t in node.types.items())} {sorted(operator.attrs.items())} {tiling}"
            if key not in seen:
                boxes = [b for b in rules.tiles(node, tiling).reads if streamed.get(b.operand) == "weight"]
                item = {b.operand: ITEM_BYTES[node.types[b.operand].dtype] for b in boxes}
                seen[key] = sum((_volume(b) * item[b.operand] for b in boxes), np.zeros(rows.stop - rows.start))
            weights[rows] = np.minimum(seen[key], tasks.bytes[rows])
        if "state" in streamed.values():
            state[rows] = tasks.bytes[rows] - weights[rows]
    return weights, state


def _volume(box: Box) -> F64:
    out = np.ones(1)
    for axis in box.ranges:
        out = out * (np.asarray(axis.hi, np.float64) - axis.lo)
    return out


def drawn(durations: Any, tasks: TaskGraph, iterations: int, seed: int) -> F64:
    """Durations as f64[iterations or 1, tasks], NaN where none is given.

    `durations`: ns per task (also one row per iteration), or by operator name or kind one number or a list of samples,
    from which each task of each iteration draws.
    """
    n = len(tasks)
    if not isinstance(durations, Mapping):
        given = np.asarray(durations, np.float64)
        if given.shape not in ((n,), (iterations, n)):
            raise ScheduleError(
                f"durations must have shape [{n}] or [{iterations}, {n}] (one per task), not {list(given.shape)}"
            )
        return np.atleast_2d(given)
    names = {o.name for o in tasks.operators} | {o.op for o in tasks.operators}
    for name in durations:
        if name not in names:
            raise ScheduleError(f"durations: no operator or kind {name!r}: {suggest(str(name), names)}")
    rng = np.random.default_rng(seed)
    out = np.full((iterations, n), np.nan)
    for i, o in enumerate(tasks.operators):
        samples = durations.get(o.name, durations.get(o.op))
        if samples is not None:
            rows = slice(int(tasks.first[i]), int(tasks.first[i + 1]))
            out[:, rows] = rng.choice(
                np.atleast_1d(np.asarray(samples, np.float64)), (iterations, rows.stop - rows.start)
            )
    return out
