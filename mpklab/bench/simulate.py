"""The simulator beside the machine: costs fitted to one model's run predict another model, which is then run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import mpklab as mk
from mpklab import frames
from mpklab.bench._common import show, stamped, write_json
from mpklab.calibration import fit_costs
from mpklab.confidence import Interval
from mpklab.errors import MpkError
from mpklab.simulator import predict
from mpklab.timing import Prepared

MODES: dict[str, dict[str, Any]] = {
    "static": {},
    "round robin": {"policy": "round_robin"},
    "dynamic": {"mode": "dynamic"},
    "dynamic, per worker": {"mode": "dynamic", "policy": "per_worker"},
    "dynamic, early push": {"mode": "dynamic", "early_push": True},
    "hybrid, attention": {"mode": "hybrid", "dynamic": ("attention",)},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fit", default="smollm2-360m", help="the model whose run gives the costs (default: %(default)s)"
    )
    parser.add_argument("--predict", default="smollm2-135m", help="the model to predict (default: %(default)s)")
    parser.add_argument("--context", type=int, default=256, help="rows in the caches")
    parser.add_argument("--rounds", type=int, default=12, help="interleaved rounds")
    parser.add_argument("--iterations", type=int, default=16, help="decode steps in one launch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample here")


def main(args: argparse.Namespace) -> int:
    """Fit, predict, run; the quietest tenth of the iterations is what an idle machine would show."""
    made = stamped()
    known = prepare(args.fit, args.context, {})
    kernels = {mode: prepare(args.predict, args.context, choices) for mode, choices in MODES.items()}
    profiles, samples = [], {mode: [] for mode in kernels}  # type: ignore[var-annotated]
    for prepared in (known, *kernels.values()):
        prepared.launch(args.iterations)
    order = np.random.default_rng(0)
    for _ in range(args.rounds):
        profiles.append(known.launch(args.iterations, 2))
        for i in order.permutation(len(kernels)):
            mode = list(kernels)[i]
            samples[mode] += iterations(kernels[mode].launch(args.iterations, 1).profile)
    quietest = min(profiles, key=lambda outcome: outcome.seconds).profile
    if quietest is None:
        raise MpkError("the fitted run left no profile")
    costs = fit_costs(quietest)
    rows, results = [], {}
    for mode, prepared in kernels.items():
        said = predict(prepared.kernel.schedule, costs, iterations=4).iteration_ns / 1e9
        typical, quiet = Interval.of(samples[mode]), float(np.quantile(samples[mode], 0.1))
        rows.append((mode, f"{said * 1e3:.3f}", typical.text(3, 1e3), f"{quiet * 1e3:.3f}", f"{said / quiet:.3f}"))
        results[mode] = {"predicted_s": said, "measured_s": samples[mode]}
    headers = ("schedule", "predicted ms", "measured ms [95 %]", "quietest tenth", "predicted / quietest")
    notes = [f"costs {costs.source}", str(costs.to_pandas().round(2).to_string(index=False))]
    show(f"{args.predict}, predicted from {args.fit}", headers, rows, made, notes)
    write_json(args.json, made, costs=costs.to_json(), results=results)
    return 0


def iterations(profile: mk.Profile | None) -> list[float]:
    """Seconds from the end of each recorded iteration to the end of the next."""
    if profile is None:
        return []
    spans = frames.spans(profile)
    ends = spans[spans["phase"] == "iteration"].groupby("iteration")["end_ns"].max()
    return (ends.diff().dropna() / 1e9).tolist()


def prepare(name: str, context: int, choices: dict[str, Any]) -> Prepared:
    """A model's kernel on random weights, ready to be launched over and over."""
    model = mk.models.random(name)
    schedule = mk.assign(mk.lower(model.decode_graph(context=context)), **choices)
    return Prepared(mk.build(schedule, weights=model))
