"""What drawing a token costs: the greedy step beside steps under several rules, in turns, and how many tokens survive."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

import mpklab as mk
from mpklab.bench._common import show, stamped, write_json
from mpklab.confidence import Interval
from mpklab.errors import EnvError

PROMPT = [5, 9, 20, 17]
CASES: dict[str, dict[str, float]] = {
    "greedy": {},
    "greedy, again": {},  # what two equal ones differ by
    "temperature 0.8": {"temperature": 0.8},
    "top-k 50": {"temperature": 1.0, "top_k": 50},
    "0.6, top-k 20, top-p 0.95": {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
    "the same, penalty 1.1": {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1},
    "min-p 0.05": {"temperature": 1.0, "min_p": 0.05},
    "top-p 0.5": {"temperature": 1.0, "top_p": 0.5},
    "top-p 0.9": {"temperature": 1.0, "top_p": 0.9},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="smollm2-135m", help="a name; random weights, hence flat logits, unless it is smollm2-135m")
    add("--context", type=int, default=512, help="rows of the cache (default: %(default)s)")
    add("--steps", type=int, default=200, help="decode steps of one launch (default: %(default)s)")
    add("--rounds", type=int, default=8, help="(default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write every sample here")


def main(args: argparse.Namespace) -> int:
    """Microseconds a step by the kernel's own clock, from the fifth token on; each round in an order of its own."""
    if args.rounds < 1 or not 1 <= args.steps <= args.context - len(PROMPT):
        raise EnvError(
            f"bench sample needs a round and from 1 to {args.context - len(PROMPT)} steps in a context of {args.context}"
        )
    machine, made = mk.Machine.detect(), stamped()
    on = "cuda" if machine.backend == "cuda" else "cpu"
    real = args.model == "smollm2-135m"
    model = mk.models.load(args.model) if real else mk.models.random(args.model, device=on, eos=())
    kernel = mk.build(mk.assign(mk.lower(model.decode_graph(context=args.context), machine)), weights=model)
    samples: dict[str, list[float]] = {name: [] for name in CASES}
    rng, names = np.random.default_rng(0), list(CASES)
    for r in range(-1, args.rounds):
        for name in rng.permutation(names):
            answer = kernel.generate(PROMPT, args.steps, **CASES[name])
            if r >= 0:
                samples[name].append(answer.seconds / len(answer.tokens) * 1e6)
    base = np.array(samples["greedy"])
    rows = []
    for name, values in samples.items():
        more = Interval.of(np.array(values) - base)
        rows.append((name, Interval.of(values).text(), more.text(), kept(kernel, CASES[name])))
    show(
        f"{args.model} on {machine.name}, {args.rounds} rounds of {args.steps} steps, medians with 95 % intervals",
        ("rules", "µs a step", "more than greedy", "tokens that survive the last step"),
        rows,
        made,
    )
    write_json(args.json, made, samples=samples)
    return 0


def kept(kernel: Any, rules: dict[str, float]) -> str:
    """How many tokens passed the filters in the last of eight steps."""
    if not rules:
        return "–"
    session = kernel.open_session(**rules)
    kernel.generate(PROMPT, 8, session=session, **rules)
    cut = float(session.tensors["next_token.cut"][0])
    logits = session.tensors["logits"][0]
    return f"{int((logits / rules['temperature'] >= cut).sum()) if cut > -math.inf else len(logits):,}"
