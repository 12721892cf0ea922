"""`mpklab rerun`: a profile's run once more, here and now: what differs from how it was made, and both times."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mpklab import analysis
from mpklab.confidence import Interval
from mpklab.console import print_table
from mpklab.profile import Profile, open_profile
from mpklab.profile_cli import FILE_HELP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE is a recording, by its path or its name."""
    parser.add_argument("file", metavar="FILE", help=FILE_HELP)
    parser.add_argument("--iterations", type=int, metavar="N", help="(default: as many as were run)")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="keep the new recording in this .mpkprof file")
    parser.add_argument("--all", action="store_true", help="also the fields of the stamp that are equal")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    """Build, run, compare; the exit code says only that it ran."""
    from mpklab.study import rerun

    before = open_profile(args.file)
    table = rerun(before, iterations=args.iterations)
    after: Profile = table.attrs["profile"]
    if args.output:
        args.output = after.save(args.output)
    stamp = table[table["field"] != "ms"]
    times = {name: interval(profile) for name, profile in (("recorded", before), ("now", after))}
    if args.json:
        fields = {
            str(row.field): {"recorded": row.recorded, "now": row.now, "differs": bool(row.differs)}
            for row in stamp.itertuples()
        }
        print(json.dumps({"iteration_ms": times, "stamp": fields}, indent=1, default=str))
        return 0
    rows = [(name, f"{t['median']:.4g} ms", _range(t), t["n"], f"{t['makespan']:.4g} ms") for name, t in times.items()]
    print_table(("", "an iteration, median", "95 % interval", "iterations", "makespan"), rows)
    print(f"\n{_verdict(before, after, times)}")
    differ = stamp[stamp["differs"]]
    shown = stamp if args.all else differ
    if len(shown):
        print()
        cells = [(row.field, _cell(row.recorded), _cell(row.now)) for row in shown.itertuples()]
        print_table(("field of the stamp", "recorded", "now"), cells)
    print(f"\n{len(differ)} of {len(stamp)} fields of the stamp differ")
    if args.output:
        print(f"wrote {args.output}")
    return 0


def interval(profile: Profile) -> dict[str, Any]:
    """Median time of an iteration in ms with its bootstrapped 95 % interval; the first of four or more is left out."""
    took = analysis.iterations(profile).groupby("iteration")["dur_ns"].max().to_numpy(float) / 1e6
    steady = took[1:] if len(took) >= 4 else took
    known = Interval.of(steady.tolist()) if len(steady) >= 3 else None
    return {
        "median": float(np.median(steady)) if len(steady) else float("nan"),
        "low": known.low if known else None,
        "high": known.high if known else None,
        "n": len(steady),
        "makespan": float(analysis.bounds(profile).query("bound == 'measured'")["ns"].iloc[0]) / 1e6,
    }


def _verdict(before: Profile, after: Profile, times: dict[str, dict[str, Any]]) -> str:
    """Whether the two times differ by more than they vary."""
    whole = analysis.diff(before, after).query("op == 'iteration'").iloc[0]
    ratio = times["now"]["median"] / times["recorded"]["median"]
    if np.isnan(whole["low_ns"]):
        return f"now {ratio:.3f} × as long, of too few iterations for an interval: --iterations 20"
    change = f"mean change {_ms(whole['delta_ns'])} [{_ms(whole['low_ns'])}, {_ms(whole['high_ns'])}]"
    known = "a difference" if whole["sure"] else "no difference that the iterations could tell from chance"
    return f"now {ratio:.3f} × as long; {change}: {known}"


def _range(t: dict[str, Any]) -> str:
    return "too few to say" if t["low"] is None else f"{t['low']:.4g} to {t['high']:.4g} ms"


def _ms(ns: float) -> str:
    return f"{ns / 1e6:+.3g} ms"


def _cell(value: Any) -> str:
    text = "" if value is None or value is pd.NA else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
