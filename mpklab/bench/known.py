"""Known answers: a delay, three defects and changed schedules are put into real runs, and the analyses must find them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mpklab as mk
from mpklab.analysis import blame, explain, waits, what_if
from mpklab.analysis.idle import CLASSES, pieces
from mpklab.analysis.observed import protocol
from mpklab.analysis.replay import measured
from mpklab.bench._common import show, stamped, write_json
from mpklab.bench.decode import reset, start
from mpklab.codegen import Delay
from mpklab.confidence import RESAMPLES, Interval
from mpklab.frames import residual, tasks
from mpklab.frames.tables import family
from mpklab.profile import Profile, Window
from mpklab.run import Kernel

DELAY_NS = 5000
WINDOW = Window(skip=2, record=4, level=2)
_CODE = {name: i for i, name in enumerate(CLASSES)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a name; default: smollm2-135m on a CPU, qwen3-0.6b on a GPU; random weights")
    parser.add_argument("--layers", type=int, help="only the first layers")
    parser.add_argument("--context", type=int, default=512, help="rows in the cache")
    parser.add_argument(
        "--handoff", choices=("counter", "data"), help="how outputs are handed over; default: the plan's"
    )
    parser.add_argument("--rounds", type=int, default=20, help="interleaved rounds")
    parser.add_argument("--steps", type=int, default=16, help="decode steps in one launch, timed without recording")
    parser.add_argument("--only", choices=("delays", "defects", "changes"), help="one of the three parts")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="keep one recording of each kernel")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample here")


@dataclass(frozen=True)
class Subject:
    """A kernel that can be launched again and again from the same state."""

    kernel: Kernel
    context: int
    steps: int
    session: Any

    @staticmethod
    def of(kernel: Kernel, context: int, steps: int) -> Subject:
        return Subject(kernel, context, steps, start(kernel, 1, context, steps))

    def run(self, profile: Window | int = 0) -> tuple[float, Profile | None]:
        """Seconds a step, and the recording."""
        reset(self.session, self.context - self.steps)
        outcome = self.session.launch(self.steps, profile=profile)
        return outcome.seconds / self.steps, outcome.profile

    def recorded(self, profile: Window | int) -> Profile:
        found = self.run(profile)[1]
        assert found is not None
        return found


@torch.inference_mode()
def main(args: argparse.Namespace) -> int:
    """0 when every answer is found."""
    made = stamped()
    machine = mk.Machine.detect()
    on = "cuda" if machine.backend == "cuda" else "cpu"
    name = args.model or ("qwen3-0.6b" if on == "cuda" else "smollm2-135m")
    model = mk.models.random(name, device=on, **({"layers": args.layers} if args.layers else {}))
    graph = model.decode_graph(context=args.context + 16)
    lowered = mk.lower(graph, machine, handoff=args.handoff)

    def subject(schedule: Any, **more: Any) -> Subject:
        kernel = mk.build(schedule, weights=model)
        if more:
            kernel = replace(kernel, _libraries={}, **more)
        return Subject.of(kernel, args.context, args.steps)

    base = subject(mk.assign(lowered))
    base.run()
    where = f"{name} on {machine.name}, {machine.workers} workers"
    parts: dict[str, Callable[[], tuple[str, list[str], list[list[object]], bool]]] = {
        "delays": lambda: delays(base, subject, args),
        "defects": lambda: defects(base, subject, args),
        "changes": lambda: changes(base, subject, args),
    }
    results, fine = {}, True
    for part, run in parts.items():
        if args.only in (None, part):
            title, headers, rows, ok = run()
            show(f"{title} · {where}", headers, rows, made)
            results[part] = [dict(zip(headers, map(str, row), strict=True)) for row in rows]
            fine &= ok
    write_json(args.json, made, **results)
    return 0 if fine else 1


def _keep(profile: Profile, name: str, args: argparse.Namespace) -> None:
    if args.save is not None:
        args.save.mkdir(parents=True, exist_ok=True)
        profile.save(args.save / name.replace(" ", "_"))


# --- one task, 5 µs later ---


def symptoms(profile: Profile, operator: str, task: int) -> dict[str, list[float]]:
    """What a delay of one task may move, in ns per recorded iteration: how long it runs; per other worker that waits for
    its operator, the time while it runs and until its signal is seen; on the path of blame, its execution, and its signals
    or what tasks that wait for its operator wait for them; the hand-off itself."""
    ops = [i for i, o in enumerate(profile.operators) if o["name"] == operator]
    mine = np.append(np.isin(profile.tasks["operator"], ops), False)
    p, t, w, path = pieces(profile), tasks(profile), waits(profile), blame(profile)
    out: dict[str, list[float]] = {name: [] for name in MOVED["signals"]}
    inside = t["iteration"].unique()[1:]  # the first may begin anywhere
    caused = mine[np.where(p.cause < profile.n_tasks, p.cause, -1)]
    waiters = np.zeros(profile.n_tasks + 1, bool)  # the last stands for no task
    rules = protocol(profile)
    told = rules.signal_event[mine[rules.signal_task]]
    waiters[rules.wait_task[np.isin(rules.wait_event, told)]] = True
    theirs = waiters[path["task"].to_numpy()]
    for it in inside:
        own = t[(t["iteration"] == it) & (t["task"] == task)]
        out["execute"].append(float(own["dur_ns"].sum()))
        of_class = {}
        for name in ("producer", "latency"):
            some = caused & (p.iteration == it) & (p.kind == _CODE[name])
            of_class[name] = np.bincount(p.worker[some], p.ns[some], p.n_workers)
        there = (of_class["producer"] + of_class["latency"]) > 0
        there[own["worker"]] = False  # who is late waits for nobody
        for name, ns in of_class.items():
            out[name].append(float(np.median(ns[there])) if there.any() else np.nan)
        here = path["iteration"] == it
        runs = here & (path["op"] == operator) & (path["segment"] == "execute")
        out["path runs"].append(float(path.loc[runs, "dur_ns"].sum()))
        # The path leads through who waits, or through the late worker itself where that goes on first.
        held_up = theirs & (path["segment"] == "latency") | (path["op"] == operator) & (path["segment"] == "signal")
        out["path waits"].append(float(path.loc[here & held_up, "dur_ns"].sum()))
        late = w[(w["iteration"] == it) & mine[w["producer"]]]
        out["handoff"].append(float(late["latency_ns"].median()))
    return out


# What a delay in the execution moves, and one before the signals.
MOVED = {
    "execution": {"execute": 1, "producer": 1, "latency": 0, "path runs": 1, "path waits": 0, "handoff": 0},
    "signals": {"execute": 0, "producer": 0, "latency": 1, "path runs": 0, "path waits": 1, "handoff": 1},
}
# The same of an operator whose words say themselves when they are there. Both delays come after the last of them is
# stored, and no signal is awaited: no other worker waits for longer. But the late worker's own next task begins later,
# and others wait for that one; so the path of blame leads through the delay as before. That `producer` and `latency`
# find what does hold others up is shown by the same with --handoff counter.
MOVED_BY_WORDS = {
    "execution": MOVED["execution"] | {"producer": 0},
    "signals": MOVED["signals"] | {"latency": 0, "handoff": 0},
}


def delays(base: Subject, subject: Any, args: argparse.Namespace) -> tuple[str, list[str], list[list[object]], bool]:
    """One task of the first operator, for which all workers wait, takes 5 µs longer, from 5 µs to 10: the first take up
    what it ended before the last of its operator, and before anybody looked."""
    schedule = base.kernel.schedule
    index = next(i for i, o in enumerate(schedule.tasks.operators) if o.op == "embedding")
    operator, by_words = schedule.tasks.operators[index], bool(schedule.by_words[index])
    own = schedule.tasks.tasks_of(operator.name)
    task = int(own[len(own) // 2])
    subjects = {
        f"{where} {times}": subject(schedule, delay=Delay(times * DELAY_NS, task=task, signals=where == "signals"))
        for where in MOVED
        for times in (1, 2)
    }
    seen: dict[str, dict[str, list[float]]] = {name: {} for name in subjects}
    error = look = 0.0
    rng = np.random.default_rng(0)
    for r in range(-1, args.rounds):
        for name in rng.permutation(list(subjects)):
            profile = subjects[str(name)].recorded(WINDOW)
            if r < 0:
                _keep(profile, f"delay {name}", args)
                look = max(look, measured(profile).costs.wait_ns)
                continue
            error = max(error, residual(profile))
            for what, values in symptoms(profile, operator.name, task).items():
                seen[str(name)].setdefault(what, []).extend(values)
    rows: list[list[object]] = []
    fine = True
    for where, moved in (MOVED_BY_WORDS if by_words else MOVED).items():
        for what, times in moved.items():  # the error bar: of the medians, of clocks, of the looks that end a wait
            shift, half = _shift(seen[f"{where} 1"][what], seen[f"{where} 2"][what])
            own_clock = what in ("execute", "path runs")
            bar = GRAIN_NS + float(np.hypot(half, 0.0 if own_clock else np.hypot(error, look / 2)))
            ok = abs(shift - times * DELAY_NS) <= bar
            fine &= ok
            rows.append([where, what, times * DELAY_NS, f"{shift:.0f} ± {bar:.0f}", "yes" if ok else "NO"])
    title = f"{operator.name} #{task - int(own[0])} of {len(own)}, handed over by {'words' if by_words else 'counters'}"
    title += f", late by 5 and by 10 µs, {args.rounds} rounds"
    return title, ["delay in", "moves", "by ns", "found ns", "within"], rows, fine


GRAIN_NS = 100  # the delay's own clock ticks and is read: it lasts up to so much longer than asked for


def _shift(before: list[float], after: list[float]) -> tuple[float, float]:
    """Difference of the medians, and half of its bootstrap 95 % interval."""
    rng = np.random.default_rng(0)
    a, b = (np.array(x, float)[np.isfinite(x)] for x in (before, after))
    if not (a.size and b.size):
        return float("nan"), float("nan")
    many = [np.median(x[rng.integers(0, x.size, (RESAMPLES, x.size))], axis=1) for x in (a, b)]
    low, high = np.percentile(many[1] - many[0], [2.5, 97.5])
    return float(np.median(b) - np.median(a)), float(high - low) / 2


# --- three defects ---


def heaviest(schedule: Any) -> str:
    """The name, without layer, of the operators that read most, but for the last ones, which have no layer."""
    sums: dict[str, float] = {}
    for i, o in enumerate(schedule.tasks.operators):
        if o.op == "linear" and o.layer is not None:
            some = slice(int(schedule.tasks.first[i]), int(schedule.tasks.first[i + 1]))
            sums[family(o.name)] = sums.get(family(o.name), 0.0) + float(schedule.tasks.bytes[some].sum())
    return max(sums, key=lambda name: sums[name])


def defects(base: Subject, subject: Any, args: argparse.Namespace) -> tuple[str, list[str], list[list[object]], bool]:
    """A slow worker, an operator in one tile, nothing loaded ahead: each must be what `explain` says first."""
    schedule = base.kernel.schedule
    lowered, machine, graph = schedule.tasks, schedule.tasks.machine, schedule.tasks.graph.origin
    typical = int(tasks(base.recorded(WINDOW))["dur_ns"].median())
    slow = schedule.workers // 2
    name = heaviest(schedule)
    one = {o.name: 1 << 20 for o in schedule.tasks.operators if family(o.name) == name}
    level = 3 if machine.backend == "cuda" else 2
    planted: dict[str, tuple[Subject, str, str]] = {
        f"worker {slow}: {typical} ns more a task": (
            subject(schedule, delay=Delay(typical, worker=slow)),
            "slow_worker",
            f"Worker {slow} ",
        ),
        f"{name} in one tile": (
            subject(mk.assign(mk.lower(graph, machine, tiles=one, handoff=args.handoff))),
            "few_tiles",
            f"{name} is cut into 1 tile ",
        ),
    }
    if level == 3:
        planted["prefetch off"] = (subject(schedule, prefetch=False), "late_pages", "Consumers wait ")
    else:  # on a CPU nothing is lost without it: whoever waits leaves the bandwidth to the others
        planted[f"{name} on one worker"] = (subject(mk.assign(lowered, policy=_lopsided(lowered, name))), "waits",
            "Workers wait ")  # fmt: skip
    rows: list[list[object]] = []
    fine = True
    for what, (s, kind, begins) in planted.items():
        s.run()
        found = [s.recorded(replace(WINDOW, level=level)) for _ in range(5)]
        _keep(found[0], what, args)
        first = [explain(p, gains=False).iloc[0] for p in found]
        right = sum(
            str(f["kind"]) == kind
            and str(f["finding"]).startswith(begins)
            and (kind != "waits" or name in f["finding"])
            for f in first
        )
        fine &= right > len(found) // 2
        rows.append([what, f"{right} of {len(found)}", f"{first[0]['kind']}: {first[0]['finding']}"])
    return "planted defects: first in explain", ["planted", "first", "said"], rows, fine


def _lopsided(lowered: Any, name: str) -> Any:
    """A policy that leaves all tiles of some operators to the first worker."""
    usual = mk.assign(lowered).worker
    heavy = np.array([family(o.name) == name for o in lowered.operators])[lowered.operator_of]
    return lambda tasks, workers: np.where(heavy, 0, usual)


# --- changed schedules ---


def changes(base: Subject, subject: Any, args: argparse.Namespace) -> tuple[str, list[str], list[list[object]], bool]:
    """Each change predicted from a recording of the base, then run; interleaved, without recording."""
    schedule = base.kernel.schedule
    lowered, machine, graph = schedule.tasks, schedule.tasks.machine, schedule.tasks.graph.origin
    fewer = max(1, schedule.workers // 2)
    rows_of = {"linear": 64 if machine.backend == "cuda" else 4 * _rows(schedule)}
    asked: dict[str, tuple[Subject, Mapping[str, Any]]] = {
        "policy zigzag": (subject(mk.assign(lowered, policy="zigzag")), {"policy": "zigzag"}),
        "policy round_robin": (subject(mk.assign(lowered, policy="round_robin")), {"policy": "round_robin"}),
        f"{fewer} workers": (subject(mk.assign(lowered, workers=fewer)), {"workers": fewer}),
        "dynamic": (subject(mk.assign(lowered, "dynamic")), {"mode": "dynamic"}),
        f"linear in tiles of {rows_of['linear']}": (
            subject(mk.assign(mk.lower(graph, machine, tiles=rows_of, handoff=args.handoff))),
            {"tiles": rows_of},
        ),
    }
    ms: dict[str, list[float]] = {name: [] for name in ("base", *asked)}
    recorded: list[tuple[float, Profile]] = []
    rng = np.random.default_rng(0)
    for r in range(-1, args.rounds):
        for name in rng.permutation(list(ms)):
            s = base if name == "base" else asked[str(name)][0]
            seconds = s.run()[0]
            if r >= 0:
                ms[str(name)].append(seconds * 1e3)
        seconds, profile = base.run(WINDOW)
        if r >= 0 and profile is not None:
            recorded.append((seconds, profile))
    # The recording of a typical launch, not of one that something else held up.
    recorded.sort(key=lambda pair: pair[0])
    some = [profile for _, profile in recorded[len(recorded) // 4 :: max(1, len(recorded) // 6)][:3]]
    _keep(some[0], "changes_base", args)
    rows: list[list[object]] = []
    errors, signs = [], True
    for name, (_, change) in asked.items():
        tables = [what_if(p, **change) for p in some]
        predicted = float(np.median([1 - table["gain"].iloc[-1] for table in tables]))
        own = float(np.median([table["gain"].iloc[1] for table in tables]))
        ratio = np.array(ms[name]) / np.array(ms["base"])
        run = Interval.of(ratio)
        real = run.median
        parts = run.low > 1 or run.high < 1
        right = not parts or (predicted > 1) == (real > 1)
        signs &= right
        errors.append(abs(predicted / real - 1))
        rows.append(
            [name, f"{predicted:.3f} ×", run.text(3, unit=" ×"), f"{100 * (predicted / real - 1):+.1f} %",
             ("yes" if right else "NO") if parts else "too close", f"{100 * own:+.2f} %"]
        )  # fmt: skip
    middle = float(np.median(errors))
    rows.append(["median error", "", "", f"{100 * middle:.1f} %", "", ""])
    title = f"what_if, then run: base {np.median(ms['base']):.4f} ms a step, {args.rounds} rounds"
    headers = ["change", "predicted", "run, 95 %", "error", "sign", "replay off by"]
    return title, headers, rows, signs and middle <= 0.05


def _rows(schedule: Any) -> int:
    """How many rows a tile of the heaviest operator has now."""
    name = next(o.name for o in schedule.tasks.operators if family(o.name) == heaviest(schedule))
    words = schedule.tasks.words[schedule.tasks.tasks_of(name)[0]]
    return max(1, int(words[1] - words[0]))
