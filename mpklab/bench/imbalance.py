"""A planted imbalance: some tiles take ten times as long; round robin and handing out, foretold, then run."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

import mpklab as mk
from mpklab.bench._common import show, stamped, write_json
from mpklab.codegen import Delay
from mpklab.confidence import Interval
from mpklab.frames import tasks as task_table
from mpklab.run import Kernel
from mpklab.schedule import Schedule
from mpklab.simulator import predict
from mpklab.tasks import TaskGraph
from mpklab.timing import Prepared, random_weights

TILES_A_WORKER, ROWS, COLUMNS = 8, 64, 4096
TIMES = 10
MODES: dict[str, dict[str, str]] = {"round robin": {"policy": "round_robin"}, "dynamic": {"mode": "dynamic"}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=60, help="interleaved rounds (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=20, help="iterations in one launch (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample here")


@dataclass(frozen=True)
class Planted:
    """One operator whose `slow` tasks, all of which round robin deals to worker 0, are held up by `late_ns`; of each mode
    the kernel, ready to be launched, and the ns of an iteration that the simulator foretells."""

    tasks: TaskGraph
    slow: npt.NDArray[np.int64]
    late_ns: int
    kernels: dict[str, Prepared]
    said_ns: dict[str, float]


def main(args: argparse.Namespace) -> int:
    """What was foretold beside what was measured, of which the quietest tenth is what an idle machine would show; 0 whatever
    it says."""
    made = stamped()
    planted = plant(mk.Machine.detect())
    samples = mk.time(planted.kernels, rounds=args.rounds, iterations=args.iterations)
    said = {name: ns / 1e6 for name, ns in planted.said_ns.items()}
    rows, quiet = [], {}
    for name in MODES:
        ms = samples.loc[samples["name"] == name, "ms"]
        quiet[name] = float(ms.quantile(0.1))
        typical = Interval.of(ms.to_numpy()).text(3)
        rows.append((name, f"{said[name]:.3f}", typical, f"{quiet[name]:.3f}", f"{said[name] / quiet[name]:.3f}"))
    a, b = MODES
    found = mk.ratio(samples, a, b)
    notes = [
        f"{a} / {b}: predicted {said[a] / said[b]:.3f}, measured {found.value:.3f} [{found.low:.3f}, {found.high:.3f}], "
        f"of the quietest tenths {quiet[a] / quiet[b]:.3f}"
    ]
    n, workers = len(planted.tasks), planted.tasks.machine.workers
    title = f"{len(planted.slow)} of {n} tiles {TIMES} times as long (+ {planted.late_ns:,} ns), {workers} workers, {args.rounds} rounds"
    headers = ("schedule", "predicted ms", "measured ms [95 %]", "quietest tenth", "predicted / quietest")
    show(title, headers, rows, made, notes)
    write_json(args.json, made, predicted_ns=planted.said_ns, samples=samples.to_dict("list"))
    return 0


def plant(machine: mk.Machine, late_ns: int | None = None) -> Planted:
    """Even tiles are run once, for what one of them takes; the imbalance is foretold from that before it is planted.

    `late_ns`: by how much slow tiles are held up; default: so much that they take `TIMES` times as long.
    """
    tasks = lowered(machine)
    schedules = {name: mk.assign(tasks, **choices) for name, choices in MODES.items()}
    weights = random_weights(tasks.graph, 0, "cuda" if machine.backend == "cuda" else "cpu")
    even = mk.build(schedules["round robin"], weights=weights)
    usual = typical_ns(even)
    slow = np.flatnonzero(schedules["round robin"].worker == 0)
    late = Delay(late_ns or int((TIMES - 1) * np.median(usual)), task=tuple(slow.tolist()))
    foretold = usual.copy()
    foretold[slow] += late.ns
    return Planted(
        tasks,
        slow,
        late.ns,
        {name: Prepared(delayed(mk.build(s, weights=weights), late)) for name, s in schedules.items()},
        {name: predicted(s, foretold) for name, s in schedules.items()},
    )


def lowered(machine: mk.Machine) -> TaskGraph:
    """A linear in so many tiles for each worker."""
    g = mk.GraphBuilder("uneven")
    weight = g.weight("w", (ROWS * TILES_A_WORKER * machine.workers, COLUMNS))
    g.linear("y", x=g.input("x", (1, COLUMNS)), weight=weight, role="output")
    return mk.lower(g.build(), machine, tiles={"linear": ROWS}, passes=())


def typical_ns(kernel: Kernel) -> npt.NDArray[np.float64]:
    """The median ns of each task over the iterations of one launch."""
    profile = Prepared(kernel).launch(50, 1).profile
    assert profile is not None
    found = task_table(profile)
    return found.groupby("task")["dur_ns"].median().to_numpy(float)


def delayed(kernel: Kernel, late: Delay) -> Kernel:
    """The same kernel with the hook compiled in."""
    return replace(kernel, delay=late, _libraries={})


def predicted(schedule: Schedule, ns: npt.NDArray[np.float64]) -> float:
    """Ns of an iteration whose tasks take so long."""
    return predict(schedule, durations=ns, iterations=4).iteration_ns
