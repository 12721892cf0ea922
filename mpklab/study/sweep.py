"""`Study`: runs or predicts every combination of knobs, interleaved, and keeps a row of each round, failures included."""

from __future__ import annotations

import datetime
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from mpklab import models, stamp
from mpklab.analysis import bounds, bubbles
from mpklab.analysis.idle import NAMES
from mpklab.confidence import median_ratio
from mpklab.errors import EnvError, MpkError, ProfileError, RunError, suggest
from mpklab.graph import Graph
from mpklab.machine import Machine
from mpklab.models import Model
from mpklab.profile import Profile
from mpklab.progress import Progress
from mpklab.schedule import Schedule
from mpklab.simulator import Costs, predict
from mpklab.study.knobs import KNOBS, Bench, Configuration, combinations, text
from mpklab.study.rows import Rows
from mpklab.timing import Prepared, Ratio, random_weights

Report = Callable[[int, int, dict[str, Any]], None]
KEEP = ("first", "all", "none")
WARMUP = 1  # launches of each kernel before anything is timed
SHARES = tuple(f"share_{name}" for name in NAMES)
COLUMNS = (
    "run", "config", "round", "order", "how", "graph", *KNOBS, "iterations", "ms", "bound_ms", "bound", "efficiency",
    *SHARES, "tokens_equal", "outputs_equal", "error", "plan", "schedule", "tokens", "outputs", "level", "seed", "position",
    "device", "place", "commit", "created",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Sweep:
    """What the rounds of one sweep share."""

    iterations: int
    position: int | None
    seed: int
    level: int
    bandwidth_gbps: float | None
    keep: str
    costs: Costs | None


class Study:
    """A folder of results: `sweep` adds to it, `frame` reads it.

    Killed in mid-sweep and started again with the same call, only the missing rounds run. Rows of another machine's
    folder may be copied in.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._rows = Rows(Path(folder))

    @property
    def folder(self) -> Path:
        """Where the rows are kept."""
        return self._rows.folder

    # --- running ---

    def sweep(
        self,
        what: str | Model | Graph,
        *,
        rounds: int = 20,
        profile: int = 1,
        simulate: bool = False,
        iterations: int = 8,
        position: int | None = None,
        context: int | None = None,
        batch: Any = None,
        layers: int | None = None,
        seed: int = 0,
        costs: Costs | None = None,
        bandwidth_gbps: float | None = None,
        keep: str = "first",
        report: Report | None = None,
        **knobs: Any,
    ) -> pd.DataFrame:
        """Run (or, with `simulate`, predict once) every combination of the knobs and return this sweep's rows.

        Knobs, each one value or a list: machine, tiles, passes, mode, policy, workers, dynamic, pool, early_push,
        pop_ahead, priority, prefetch. All configurations take one launch of `iterations` in each round, in an order of
        its own; `profile` is the level at which those are recorded (0: no bounds but bytes, no bubble shares), `keep`
        which profiles stay ("first" round, "all", "none"). A decode step starts at `position` (half the context) on a
        model's own weights, or on random ones. `costs` (default: the machine's figures) are the simulator's.
        """
        if rounds < 1 or iterations < 1:
            raise MpkError(f"a sweep needs at least one round and one iteration, not {rounds} and {iterations}")
        if keep not in KEEP:
            raise MpkError(f"keep must be {', '.join(KEEP)}, not {keep!r}: {suggest(keep, KEEP)}")
        graph, model = _graph_of(what, context, batch, layers)
        machines = knobs.get("machine")
        if machines is None:
            machines = knobs["machine"] = Machine.detect()
        first = machines[0] if isinstance(machines, list | tuple) else machines
        shared = _Sweep(iterations, position, seed, 2 if simulate else profile, bandwidth_gbps, keep, costs)
        setting = {
            "graph": graph.hash,
            "how": "predicted" if simulate else "measured",
            "device": "" if simulate else _device(first),
            "iterations": iterations,
            "position": position,
            "seed": seed,
            "level": shared.level,
            "costs": str(costs.to_json()) if simulate and costs else "",
        }
        configurations = combinations(knobs, setting)
        done = {row["run"] for row in self._rows if row.get("place") == self._rows.place}
        rounds = 1 if simulate else rounds
        missing = [(number, c) for number in range(rounds) for c in configurations if c.run(number) not in done]
        total, left = rounds * len(configurations), len(missing)
        made, begin = 0, time.perf_counter()

        def add(c: Configuration, number: int, row: dict[str, Any]) -> None:
            nonlocal made
            head = {
                "run": c.run(number),
                "config": c.id,
                "round": number,
                "order": made,
                "how": setting["how"],
                "graph": graph.name,
                **c.texts,
                **{k: setting[k] for k in ("iterations", "position", "seed", "level", "device")},
                "commit": stamp.commit(),
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            }
            made += 1
            self._rows.append({**head, **row})
            rest = (time.perf_counter() - begin) / made * (left - made)
            result = row["error"] if row.get("error") else f"{row['ms']:.3f} ms"
            stage.say(f"{total - left + made} of {total} rows, {result}, {rest:.0f} s left")
            if report is not None:
                report(total - left + made, total, {**head, **row})

        with Progress(quiet=report is not None) as progress, progress.stage("sweep") as stage:
            try:
                if simulate:
                    bench = Bench(graph, None)
                    for number, c in missing:
                        add(c, number, _caught(self._predicted, bench, c, number, shared))
                elif missing:
                    self._measure(graph, model, missing, shared, add)
            finally:
                self._rows.close()
        table = self.frame
        return table[table["config"].isin([c.id for c in configurations])].reset_index(drop=True)

    def _measure(
        self,
        graph: Graph,
        model: Model | None,
        missing: list[tuple[int, Configuration]],
        shared: _Sweep,
        add: Callable[[Configuration, int, dict[str, Any]], None],
    ) -> None:
        """Build what has rounds to run, warm it up, and take the rounds in turn."""
        machine = missing[0][1].values["machine"]
        weights = model if model is not None and model.weights is not None else None
        bench = Bench(
            graph, weights or random_weights(graph, shared.seed, "cuda" if machine.backend == "cuda" else "cpu")
        )
        ready: dict[str, Prepared | dict[str, Any]] = {}
        for _, c in missing:
            if c.id not in ready:
                found = _caught(self._prepared, bench, c, shared)
                ready[c.id] = found.get("prepared", found)
        for number in sorted({number for number, _ in missing}):
            turn = [c for n, c in missing if n == number]
            for i in np.random.default_rng([shared.seed, number]).permutation(len(turn)):
                c = turn[i]
                prepared = ready[c.id]
                if isinstance(prepared, dict):
                    add(c, number, prepared)
                else:
                    add(c, number, _caught(self._measured, prepared, c, number, shared))

    def _prepared(self, bench: Bench, c: Configuration, shared: _Sweep) -> dict[str, Any]:
        prepared = Prepared(bench.kernel(c), shared.seed, shared.position)
        for _ in range(WARMUP):
            prepared.launch(shared.iterations, shared.level)
        return {"prepared": prepared}

    def _measured(self, prepared: Prepared, c: Configuration, number: int, shared: _Sweep) -> dict[str, Any]:
        outcome = prepared.launch(shared.iterations, shared.level)
        if outcome.iterations < shared.iterations:
            raise RunError(f"the kernel stopped after {outcome.iterations} of {shared.iterations} iterations")
        row = self._judged(
            prepared.kernel.schedule,
            outcome.profile,
            outcome.seconds / shared.iterations * 1e3,
            c.run(number),
            number,
            shared,
        )
        results = prepared.results()
        small = {k: v for k, v in results.items() if not k.endswith("_cache")}
        tokens = [k for o in prepared.kernel.graph.operators for k in [o.operands.get("generated")] if k]
        row["outputs"] = _digest(small)
        row["tokens"] = _digest({k: small[k] for k in tokens}) if tokens else None
        return row

    def _predicted(self, bench: Bench, c: Configuration, number: int, shared: _Sweep) -> dict[str, Any]:
        schedule = bench.schedule(c)
        costs = shared.costs or Costs.of(schedule.tasks.machine, schedule.tasks.plan.settings)
        if c.values.get("prefetch") is False:
            costs = costs.replaced(ring_bytes=0.0)
        simulation = predict(schedule, costs, iterations=shared.iterations)
        ms = simulation.makespan_ns / shared.iterations / 1e6
        return self._judged(schedule, simulation.to_profile(), ms, c.run(number), number, shared)

    def _judged(
        self, schedule: Schedule, profile: Profile | None, ms: float, run: str, number: int, shared: _Sweep
    ) -> dict[str, Any]:
        """A row's figures: time, the bound that binds and how near it is, where the time of the workers went."""
        tasks = schedule.tasks
        row: dict[str, Any] = {"ms": ms, "plan": tasks.plan.hash, "schedule": schedule.hash, "error": None}
        if profile is not None:
            if shared.keep == "all" or (shared.keep == "first" and number == 0):
                profile.save(self._rows.profile_path(run))
            table = bounds(profile, shared.bandwidth_gbps)
            best = table[table["binds"]].iloc[0]
            row |= {"bound": str(best["bound"]), "bound_ms": float(best["iteration_ns"]) / 1e6}
            classes = bubbles(profile, by="all").iloc[0]
            whole = float(classes["makespan_ns"]) or 1.0
            row |= {share: float(classes[name]) / whole for share, name in zip(SHARES, NAMES, strict=True)}
        elif shared.bandwidth_gbps:
            row |= {"bound": "bytes", "bound_ms": float(tasks.bytes.sum()) / shared.bandwidth_gbps / 1e6}
        if row.get("bound_ms"):
            row["efficiency"] = row["bound_ms"] / ms
        return row

    # --- reading ---

    @property
    def frame(self) -> pd.DataFrame:
        """One row per configuration and round, in the order in which they were made.

        run, config (their ids), round, order (place among all rows of its sweep) · how: measured or predicted · graph and
        the knobs · iterations, ms (per iteration; NaN for a failure) · bound_ms, bound (which), efficiency · share_…: of
        the workers' time, by class of `bubbles` · tokens_equal, outputs_equal: the same bits as the graph's first
        result; outputs only among configurations of one plan, since other tiles add in another order · error: why there
        is no result · plan, schedule, tokens, outputs (hashes), level, seed, position, device, place, commit, created.
        """
        table = pd.DataFrame(list(self._rows)).reindex(columns=list(COLUMNS))
        for name in ("ms", "bound_ms", "efficiency", *SHARES):
            table[name] = table[name].astype(float)
        table = table.sort_values(["created", "order"], kind="stable", ignore_index=True)
        alike = ["graph", "iterations", "position", "seed"]
        table["tokens_equal"] = _as_first(table, "tokens", alike)
        table["outputs_equal"] = _as_first(table, "outputs", [*alike, "plan"])
        return table

    @property
    def summary(self) -> pd.DataFrame:
        """One row per configuration, fastest first: its knobs, ms (median), low and high (of the middle 90 %), rounds, failures."""
        table = self.frame
        grouped = table.groupby("config", sort=False)
        out = grouped[["how", "graph", *KNOBS, "iterations", "bound", "error"]].first()
        out["ms"] = grouped["ms"].median()
        out["low_ms"], out["high_ms"] = grouped["ms"].quantile(0.05), grouped["ms"].quantile(0.95)
        out["efficiency"] = grouped["efficiency"].median()
        out["rounds"], out["failures"] = grouped["ms"].count(), grouped["error"].count()
        some = [k for k in KNOBS if out[k].notna().any()]
        columns = [
            "how",
            "graph",
            *some,
            "ms",
            "low_ms",
            "high_ms",
            "bound",
            "efficiency",
            "rounds",
            "failures",
            "error",
        ]
        return out[columns].sort_values("ms", kind="stable").reset_index()

    def best(self, how: str = "measured", **knobs: Any) -> pd.Series:
        """The configuration with the lowest median time, among those with these knobs; a row of `summary`."""
        table = self.summary
        table = table[(table["how"] == how) & table["ms"].notna()]
        for name, value in knobs.items():
            if name not in table:
                raise MpkError(f"no configuration differs in {name!r}: {suggest(name, KNOBS)}")
            table = table[table[name] == text(value)]
        if table.empty:
            raise MpkError(f"the study holds no {how} result" + (f" with {knobs}" if knobs else ""))
        return table.iloc[0]

    def compare(self, a: str | Mapping[str, Any], b: str | Mapping[str, Any]) -> Ratio:
        """The ratio of the median times of two configurations with its 95 % interval; each by id, or by its knobs.

        Rounds that both have are compared: they ran beside each other.
        """
        table = self.frame
        ids = [self._config(table, x) for x in (a, b)]
        x, y = (table[(table["config"] == i) & table["ms"].notna()].set_index(["place", "round"])["ms"] for i in ids)
        both = x.index.intersection(y.index)
        if not len(both):
            raise MpkError(f"{ids[0]} and {ids[1]} share no round, so they cannot be compared")
        value = median_ratio(x.loc[both].to_numpy(float), y.loc[both].to_numpy(float))
        return Ratio(ids[0], ids[1], *value)

    def open(self, run: str) -> Profile:
        """The profile that was kept of a run; a configuration's id stands for its first."""
        found = sorted(p.stem for p in (self.folder / "profiles").glob("*"))
        match = next((name for name in found if name == run or name.startswith(f"{run}-")), None)
        if match is None:
            hint = suggest(run, found) if found else "none was kept (profile=0, or keep='none')"
            raise ProfileError(f"no profile of {run!r} in {self.folder}: {hint}")
        return Profile.load(self._rows.profile_path(match))

    def _config(self, table: pd.DataFrame, wanted: str | Mapping[str, Any]) -> str:
        if isinstance(wanted, str):
            rows = table[(table["config"] == wanted) | (table["run"] == wanted)]
            if rows.empty:
                raise MpkError(f"no configuration {wanted!r}: {suggest(wanted, map(str, table['config'].unique()))}")
            return str(rows["config"].iloc[0])
        rows = table
        for name, value in wanted.items():
            if name not in table:
                raise MpkError(f"a configuration has no {name!r}: {suggest(name, KNOBS)}")
            rows = rows[rows[name] == text(value)]
        ids = rows["config"].unique()
        if len(ids) != 1:
            raise MpkError(
                f"{dict(wanted)} stands for {len(ids)} configurations"
                + (f" ({', '.join(ids[:4])}): name more knobs" if len(ids) else "")
            )
        return str(ids[0])

    def __repr__(self) -> str:
        table = self.frame
        failed = int(table["error"].notna().sum())
        return (
            f"Study({str(self.folder)!r}: {len(table)} rows of {table['config'].nunique()} configurations"
            f"{f', {failed} failed' if failed else ''})"
        )


def _graph_of(
    what: str | Model | Graph, context: int | None, batch: Any, layers: int | None
) -> tuple[Graph, Model | None]:
    asked = {k: v for k, v in (("context", context), ("batch", batch), ("layers", layers)) if v is not None}
    if isinstance(what, Graph):
        if asked:
            raise MpkError(f"{', '.join(asked)}: a Graph has decided that already")
        return what, None
    model = what if isinstance(what, Model) else models.load(what)
    return model.decode_graph(**asked), model


def _device(machine: Machine) -> str:
    return str(stamp.cpu()["model"]) if machine.backend == "cpu" else machine.name


def _caught(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What the function gives, or the row of its failure. A folder that cannot be written to is no result."""
    try:
        return function(*arguments)
    except EnvError:
        raise
    except Exception as error:  # also a policy of the user's own
        return {"ms": None, "error": f"{type(error).__name__}: {error}"}


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _as_first(table: pd.DataFrame, column: str, alike: list[str]) -> pd.Series:
    """Whether a hash is that of the first row alike; None where there is none."""
    first = table.groupby(alike, dropna=False)[column].transform("first")  # which passes over what is missing
    return (table[column] == first).astype(object).where(table[column].notna(), None)
