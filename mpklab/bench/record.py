"""What recording costs: the same kernel at levels 0 to 3, interleaved in one run, outputs compared.

A level is a kernel of its own, whose code lies elsewhere: that alone can make a step slower or faster. So each is also run
with its window closed, when it records nothing: what the records themselves cost is the difference to that.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mpklab as mk
from mpklab import stamp
from mpklab.analysis import blame
from mpklab.bench._common import show, write_json
from mpklab.bench.decode import reset, start
from mpklab.confidence import median_ratio
from mpklab.frames import spans
from mpklab.profile import Window
from mpklab.simulator import Costs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2-135m", help="a name; random weights unless it is smollm2-135m")
    parser.add_argument("--context", type=int, default=512, help="rows in the cache")
    parser.add_argument("--rounds", type=int, default=30, help="interleaved rounds")
    parser.add_argument("--steps", type=int, default=16, help="decode steps in one launch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample here")


@torch.inference_mode()
def main(args: argparse.Namespace) -> int:
    """Take turns, print what each level adds and what its records say they cost."""
    machine = mk.Machine.detect()
    on = "cuda" if machine.backend == "cuda" else "cpu"
    model = mk.models.load(args.model) if args.model == "smollm2-135m" else mk.models.random(args.model, device=on)
    graph = model.decode_graph(context=args.context + 16)
    kernel = mk.build(mk.assign(mk.lower(graph, machine)), weights=model)
    session = start(kernel, 1, args.context, args.steps)
    arms = [(0, False), *((level, recording) for level in (1, 2, 3) for recording in (False, True))]
    logits: dict[tuple[int, bool], torch.Tensor] = {}
    counts: dict[int, tuple[float, float]] = {}
    samples: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    for r in range(-2, args.rounds):
        for level, recording in (arms[i] for i in rng.permutation(len(arms))):
            reset(session, args.context - args.steps)
            outcome = session.launch(args.steps, profile=Window(skip=0 if recording else args.steps, level=level))
            if r >= 0:
                ms = outcome.seconds * 1e3 / args.steps
                samples.append({"level": level, "recording": recording, "round": r, "ms": ms})
            else:
                logits[level, recording] = session.tensors["logits"].clone()
                if recording and outcome.profile is not None:
                    counts[level] = estimate(outcome.profile, args.steps)
    made = stamp.collect(device=kernel.device_facts(), model=args.model)
    write_json(args.json, made, samples=samples)
    ms_of = {arm: np.array([s["ms"] for s in samples if (s["level"], s["recording"]) == arm]) for arm in arms}
    base = float(np.median(ms_of[0, False]))
    plain = logits[0, False].view(torch.int32)
    rows: list[list[object]] = [[0, f"{base:.4f}", "", "", "", "", "", "identical"]]
    for level in (1, 2, 3):
        without, recorded = ms_of[level, False], ms_of[level, True]
        records, ns = counts[level]
        each = (np.median(recorded) - np.median(without)) * 1e6 / max(1.0, records)
        same = all(torch.equal(logits[level, recording].view(torch.int32), plain) for recording in (False, True))
        row = [level, f"{np.median(recorded):.4f}", _added(recorded, ms_of[0, False]), _added(recorded, without)]
        row += [f"{ns / (base * 1e6):+.2%}" if ns else "–", f"{records:.0f}", f"{each:.0f}"]
        rows.append([*row, "identical" if same else "DIFFER"])
    headers = ["level", "ms a step", "adds, 95 %", "its records", "counted", "records", "ns each", "outputs"]
    show(f"{args.model} on {machine.name}, {args.rounds} rounds of {args.steps} steps", headers, rows, made)
    return 0


def _added(some: np.ndarray, to: np.ndarray) -> str:
    middle, low, high = median_ratio(some, to)
    return f"{middle - 1:+.2%} [{low - 1:+.2%}, {high - 1:+.2%}]"


def estimate(profile: mk.Profile, steps: int) -> tuple[float, float]:
    """Records that hold a step up, and the ns that they cost, as the profile states.

    Those are the records of the tasks on the path of blame: what others write they write while they would wait. While a
    task streams more than a ring holds, its consumers wait for pages, and what they record of that costs nothing.
    """
    path = blame(profile)
    on_path = path.loc[path["segment"] == "execute", ["rank", "iteration", "task"]].drop_duplicates()
    s = spans(profile)
    s = s[(s["role"] == "compute") & (s["task"] >= 0)].merge(on_path, on=["rank", "iteration", "task"])
    ring = Costs.of_profile(profile).ring_bytes
    streams = profile.tasks["bytes"][s["task"]] > ring
    pages = (s["phase"] == "operand").to_numpy()
    spans_on_path = int((~pages).sum()) + 2 * int((pages & ~streams).sum())
    # A task's spans follow each other, each one record; the end is one more, and, from level 2 on, a clock anchor.
    records = (spans_on_path + (2 if profile.level >= 2 else 1) * len(on_path)) / steps
    return records, records * float(profile.meta.get("record_ns", 0.0))
