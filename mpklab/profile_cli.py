"""`mpklab profile`: look into a recording from a terminal; tables for people, `--json` for programs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mpklab import analysis, frames
from mpklab.analysis import bars
from mpklab.analysis.idle import CLASSES, NO_TASK
from mpklab.console import print_table
from mpklab.errors import ProfileError
from mpklab.exports import FORMATS, export
from mpklab.frames.tables import family
from mpklab.imports import FORMATS as IMPORTS
from mpklab.profile import Profile, open_profile, recordings

FILE_HELP = f"a .mpkprof file, or a recording that comes with mpklab: {', '.join(recordings())}"

# Entries of an imported profile's `meta` that say what it lacks.
LEFT_OUT = {
    "skipped": "events that could not be read, or that lie months from the rest",
    "crowded": "slices that overlap others of their thread and are drawn over them",
    "instants": "instants, which are left out",
    "unmatched": "task types with more spans than the task graph has tasks; their spans belong to no task",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One subcommand per question; FILE is a .mpkprof file or the name of a recording that comes with mpklab."""
    commands = parser.add_subparsers(metavar="what", required=True, parser_class=type(parser))

    def command(name: str, text: str, files: str = "1", about: str = FILE_HELP) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--json", action="store_true", help="print JSON")
        if files == "2":
            sub.add_argument("before", metavar="BEFORE", help=FILE_HELP)
            sub.add_argument("after", metavar="AFTER", help="the same")
        else:
            sub.add_argument("files", metavar="FILE", nargs="+" if files == "+" else 1, help=about)
        sub.set_defaults(answer=globals()[f"_{name}"])
        return sub

    command("show", "what it is, how far it can be trusted, what cost most", "+")
    _top(command("health", "records, clocks and causality; the lanes, those with most trouble first", "+"))
    sub = command("bubbles", "where every worker's time went, in shares", "+")
    sub.add_argument(
        "--by", default="all", choices=("all", "worker", "op", "cause", "family", "cause_family", "layer", "iteration")
    )
    sub.add_argument("--ns", action="store_true", help="nanoseconds instead of shares")
    _top(sub)
    sub = command("blame", "the path that the run was waiting for, from the last task to the first", "+")
    sub.add_argument("--path", action="store_true", help="every segment, not sums")
    sub.add_argument("--by", default="family", choices=("family", "op"), help="(default: %(default)s, layers together)")
    _top(sub)
    sub = command("diff", "what changed between two recordings", "2")
    sub.add_argument("--by", default="op", choices=("op", "task"))
    _top(sub)
    sub = command("export", f"write {', '.join(FORMATS)}, as the suffix of -o says")
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    sub.add_argument("--select", type=int, nargs="*", default=(), metavar="TASK", help="tasks to draw arrows to")
    sub = command("import", "read another tool's recording into a .mpkprof file", about="the other tool's file")
    sub.add_argument(
        "--from",
        dest="format",
        required=True,
        choices=tuple(IMPORTS),
        help="what wrote it: FlashInfer's or Mirage's profiler buffer (.npy or bare words), or a JSON trace (Chrome, PyTorch, Perfetto)",
    )
    sub.add_argument("--names", type=Path, metavar="JSON", help="names of events: a list, or an object by number")
    sub.add_argument("--task-graph", type=Path, metavar="JSON", help="Mirage's task_graph.json")
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")


def main(args: argparse.Namespace) -> int:
    """Run the subcommand that was chosen."""
    answer: Callable[[argparse.Namespace], int] = args.answer
    return answer(args)


def _top(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--top", type=int, default=20, metavar="N", help="at most so many rows; 0: all (default: 20)")


def _each(args: argparse.Namespace, make: Callable[[Profile], tuple[Any, Callable[[], None]]]) -> int:
    """Print an answer per file, or all of them as one JSON object by file name."""
    whole = {}
    for name in args.files:
        data, show = make(open_profile(name))
        whole[name] = data
        if not args.json:
            if len(args.files) > 1:
                print(f"\n{name}")
            show()
    if args.json:
        print(json.dumps(whole if len(whole) > 1 else next(iter(whole.values())), indent=1))
    return 0


def _rows(table: pd.DataFrame) -> Any:
    """A frame as JSON values; what is missing becomes null."""
    return json.loads(table.to_json(orient="records", double_precision=6))


def _print(table: pd.DataFrame, title: str = "") -> None:
    """A frame as a table, error bars under ±."""
    bar = [c == "error_ns" for c in table.columns]
    rows = table.itertuples(index=False)
    cells = [[_bar(v) if b else _cell(v) for v, b in zip(row, bar, strict=True)] for row in rows]
    print_table(["±" if b else str(c) for c, b in zip(table.columns, bar, strict=True)], cells, title)


def _bar(error_ns: float) -> object:
    """An error bar in two digits; nothing where it is not known."""
    if np.isnan(error_ns):
        return ""
    return int(float(f"{error_ns:.2g}")) if error_ns >= 9.95 else float(f"{error_ns:.1f}")


def _cell(value: Any) -> object:
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else float(value)
    if isinstance(value, np.generic):
        return value.item()
    return "" if value is None or value is pd.NA else value


def _show(args: argparse.Namespace) -> int:
    def make(profile: Profile) -> tuple[Any, Callable[[], None]]:
        bounds, findings = analysis.bounds(profile), analysis.explain(profile)
        error_ns = bounds["bound"].map(bars.of_bounds(profile)) * bounds["iteration_ns"] / bounds["ns"]
        bounds.insert(list(bounds.columns).index("iteration_ns") + 1, "error_ns", error_ns)
        efficiency = float(bounds["share"].iloc[0])
        data = {
            "profile": repr(profile),
            "meta": json.loads(json.dumps(profile.meta, default=str)),
            "stamp": json.loads(json.dumps(profile.stamp, default=str)),
            "health": frames.verdict(profile),
            "makespan_ns": int(analysis.bubbles(profile)["makespan_ns"].iloc[0]),
            "error_ns": frames.residual(profile),
            "efficiency": None if np.isnan(efficiency) else efficiency,
            "bounds": _rows(bounds),
            "findings": _rows(findings),
        }

        def show() -> None:
            print(repr(profile))
            for key in ("created", "commit"):
                if profile.stamp.get(key):
                    print(f"{key}: {profile.stamp[key]}")
            print(f"health: {data['health']}")
            print(f"makespan: {data['makespan_ns']} ± {data['error_ns']:.0f} ns\n")
            shown = bounds[["bound", "iteration_ns", "error_ns", "share", "why"]]
            _print(shown.assign(share=_percent(bounds["share"])), "bounds")
            print("\nwhat cost most")
            for sentence in findings["finding"]:
                print(f"- {sentence}")
            if findings.empty:
                print("- nothing that stands out" if profile.n_tasks else "- nothing: no task was recorded")

        return data, show

    return _each(args, make)


def _percent(values: Any, errors: Any = None) -> list[str]:
    """Shares in words, with error bars where these show in the digits."""
    shares = np.asarray(values, float)
    off = np.zeros(shares.size) if errors is None else np.nan_to_num(np.asarray(errors, float))
    said = [f"{100 * v:.1f}" + (f" ± {100 * e:.1f}" if e >= 0.0005 else "") for v, e in zip(shares, off, strict=True)]
    return ["" if np.isnan(v) else f"{words} %" for v, words in zip(shares, said, strict=True)]


def _with_bars(ns: Any, errors: Any) -> list[str]:
    return [f"{int(v)} ± {_bar(e)}" if v and not np.isnan(e) else str(int(v)) for v, e in zip(ns, errors, strict=True)]


def _health(args: argparse.Namespace) -> int:
    def make(profile: Profile) -> tuple[Any, Callable[[], None]]:
        lanes, edges = frames.health(profile), frames.causality(profile)
        bad = edges[edges["violations"] > 0]
        verdict = frames.verdict(profile)

        def show() -> None:
            quiet = ("wrapped", "unmatched_begins", "unmatched_ends", "unknown", "backward", "dropped")
            hidden = [c for c in quiet if not lanes[c].any()]
            trouble = [
                "violations",
                "dropped",
                "unknown",
                "backward",
                "unmatched_begins",
                "unmatched_ends",
                "residual_ns",
            ]
            used = lanes[lanes["kept"] > 0].sort_values(trouble, ascending=False, kind="stable")
            _print(_cut(used, args.top).drop(columns=[*hidden, "valid"]))
            _rest(used, args.top)
            if len(bad):
                _print(bad, "\nedges that consumers seem to overtake")
            print(f"\n{verdict}")

        return {"verdict": verdict, "lanes": _rows(lanes), "violated": _rows(bad)}, show

    return _each(args, make)


def _bubbles(args: argparse.Namespace) -> int:
    def make(profile: Profile) -> tuple[Any, Callable[[], None]]:
        whole, errors = analysis.bubbles(profile, args.by), bars.of_bubbles(profile, args.by)
        table = _cut(whole, args.top)

        def show() -> None:
            if args.by == "all":
                row = table.iloc[0]
                all_ns = max(1, int(row["makespan_ns"]))
                shares = [
                    (name, int(row[name]), _bar(errors[name].iloc[0]), f"{100 * row[name] / all_ns:.1f} %", text)
                    for name, text in CLASSES.items()
                ]
                print_table(("class", "ns", "±", "share", "meaning"), [r for r in shares if r[1]])
                print(
                    f"\nwhere two workers' clocks are compared, each wait is known to ± {frames.residual(profile):.0f} ns"
                )
                return
            shown = table.loc[:, (table != 0).any()].copy()
            total = float(analysis.bubbles(profile, "all")["makespan_ns"].iloc[0]) or 1.0
            if args.by == "worker":
                total /= max(1, len(analysis.bubbles(profile)))
            for name in [*CLASSES, "makespan_ns"]:
                if name in shown:
                    ns, error_ns = shown[name], errors.loc[shown.index, name]
                    shown[name] = _with_bars(ns, error_ns) if args.ns else _percent(ns / total, error_ns / total)
            _print(shown.rename(columns={"makespan_ns": "sum"}))
            _rest(whole, args.top)

        told = _rows(errors.loc[table.index])
        return [{**row, "error_ns": error} for row, error in zip(_rows(table), told, strict=True)], show

    return _each(args, make)


def _blame(args: argparse.Namespace) -> int:
    def make(profile: Profile) -> tuple[Any, Callable[[], None]]:
        path = analysis.blame(profile)
        total = max(1, int(path["dur_ns"].sum()))
        if args.path:
            whole = path
        else:
            column = "family" if args.by == "family" else "op"
            named = path.assign(op=path["op"].astype(object).where(path["op"].notna(), NO_TASK))
            named["family"] = [family(str(op)) for op in named["op"]]
            named["squares"] = named["error_ns"] ** 2  # one segment after the other: errors of a sum add in squares
            grouped = named.groupby(["segment", column], observed=True)
            sums = grouped.agg(dur_ns=("dur_ns", "sum"), error_ns=("squares", "sum"), times=("dur_ns", "size"))
            whole = sums.assign(error_ns=np.sqrt(sums["error_ns"])).reset_index()
            whole = whole.sort_values("dur_ns", ascending=False)
            whole["share"] = whole["dur_ns"] / total
        table = _cut(whole, args.top)

        def show() -> None:
            _print(table if args.path else table.assign(share=_percent(table["share"])))
            _rest(whole, args.top)
            by = path.groupby("segment", observed=True)["dur_ns"].sum().sort_values(ascending=False)
            said = ", ".join(f"{name} {100 * ns / total:.1f} %" for name, ns in by.items())
            print(f"\n{total} ± {frames.residual(profile):.0f} ns from first to last: {said}")

        return _rows(table), show

    return _each(args, make)


def _diff(args: argparse.Namespace) -> int:
    whole = analysis.diff(open_profile(args.before), open_profile(args.after), by=args.by)
    table = _cut(whole, args.top)
    if args.json:
        print(json.dumps(_rows(table), indent=1))
    else:
        _print(table)
        _rest(whole, args.top)
    return 0


def _export(args: argparse.Namespace) -> int:
    path = export(open_profile(args.files[0]), args.output, select=args.select)
    print(json.dumps({"path": str(path)}) if args.json else f"wrote {path}")
    return 0


def _import(args: argparse.Namespace) -> int:
    options: dict[str, Any] = {}
    if args.names is not None:
        if args.format == "chrome":
            raise ProfileError("--names: a Chrome trace names its slices itself")
        options["names"] = _read_names(args.names)
    if args.task_graph is not None:
        if args.format != "mirage":
            raise ProfileError(f"--task-graph belongs to --from mirage, not to --from {args.format}")
        options["task_graph"] = args.task_graph
    profile = IMPORTS[args.format](args.files[0], **options)
    path = profile.save(args.output)
    left = {key: profile.meta[key] for key in LEFT_OUT if profile.meta.get(key)}
    if args.json:
        print(json.dumps({"path": str(path), "profile": repr(profile), **left}))
        return 0
    print(f"wrote {path}: {profile!r}")
    for key, value in left.items():
        print(f"{value}: {LEFT_OUT[key]}")
    return 0


def _read_names(path: Path) -> dict[int, str]:
    try:
        found = json.loads(path.read_bytes())
        pairs = found.items() if isinstance(found, dict) else enumerate(found)
        return {int(number): str(name) for number, name in pairs}
    except (OSError, ValueError, TypeError, RecursionError) as e:
        raise ProfileError(f"{path}: expected a JSON list of names, or an object of number → name: {e!s:.120}") from e


def _cut(table: pd.DataFrame, top: int) -> pd.DataFrame:
    return table.head(top) if top > 0 else table


def _rest(table: pd.DataFrame, top: int) -> None:
    """Say that there is more than what was printed."""
    if 0 < top < len(table):
        print(f"… and {len(table) - top} more rows: --top 0 prints all")
