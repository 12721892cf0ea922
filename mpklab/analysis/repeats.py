"""The same task many times: steady state over iterations, two recordings side by side, prediction against measurement."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mpklab.analysis.idle import publication
from mpklab.analysis.observed import observe
from mpklab.errors import ProfileError, suggest
from mpklab.frames import NEVER, residual, tasks
from mpklab.profile import Profile

KEY = ["op", "tile0", "tile1", "tile2", "tile3"]


def steady_state(profile: Profile, by: str = "task", skip: int | None = None) -> pd.DataFrame:
    """How steady durations are over iterations, one row per "task", "op" (time of all its tiles) or "iteration".

    By task or operator: task and op (or op) · n: iterations (of an operator, those with all of its tiles) · median_ns,
    p99_ns, min_ns, max_ns · jitter_ns: 1.4826 × the median distance from the median · error_ns: the clocks' error bar of
    one task's time. The first `skip` recorded iterations are left out (default: one, if four or more were recorded). By
    iteration: iteration, dur_ns: from the last task of the one before to its own last task, and error_ns.
    """
    t = tasks(profile)
    numbers = np.unique(t["iteration"].to_numpy())
    if by == "iteration":
        return iterations(profile)
    if by not in ("task", "op"):
        raise ProfileError(f"steady_state(by={by!r}): {suggest(by, ('task', 'op', 'iteration'))}")
    skip = int(numbers.size >= 4) if skip is None else skip
    t = t[np.isin(t["iteration"].to_numpy(), numbers[skip:])]
    if by == "op":
        each = _sums(t, ["op"])
        groups = each.groupby(level="op", observed=True)
    else:
        groups = t.set_index("task")["dur_ns"].groupby(level="task")
    median = groups.median()
    key = "op" if by == "op" else "task"
    away = (groups.obj - groups.transform("median")).abs()
    distance = away.groupby(level=key, observed=True).median()
    out = pd.DataFrame(
        {
            "n": groups.size(),
            "median_ns": median,
            "p99_ns": groups.quantile(0.99),
            "min_ns": groups.min(),
            "max_ns": groups.max(),
            "jitter_ns": 1.4826 * distance,
        }
    ).reset_index()
    out["error_ns"] = residual(profile)
    if by == "task":
        out.insert(1, "op", t.drop_duplicates("task").set_index("task")["op"].reindex(out["task"]).to_numpy())
    return out


def iterations(profile: Profile) -> pd.DataFrame:
    """One row per iteration: iteration, begin_ns (when the one before ended, or its own first task began), end_ns (when
    the next was announced, or its last task ended), dur_ns, error_ns: the clocks' error bar of it."""
    rows: list[pd.DataFrame] = []
    for seen in observe(profile):
        if not seen.iterations.size:
            continue
        published, _ = publication(profile, seen)
        last = seen.done.max(1)
        end = np.where(published != NEVER, published, last)
        first = np.where(seen.issue == NEVER, np.iinfo(np.int64).max, seen.issue).min(1)
        begin = np.r_[first[0], end[:-1]]
        fine = last != NEVER
        rows.append(
            pd.DataFrame(
                {
                    "rank": seen.rank,
                    "iteration": seen.iterations,
                    "begin_ns": begin,
                    "end_ns": end,
                    "dur_ns": end - begin,
                    "error_ns": residual(profile),
                }
            )[fine]
        )
    columns = ["rank", "iteration", "begin_ns", "end_ns", "dur_ns", "error_ns"]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns, dtype=np.int64)


def diff(a: Profile, b: Profile, by: str = "op", confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """What changed from `a` to `b`, tasks joined by operator name and tile; one row per "op" or per "task", and one for
    the iteration as a whole (op "iteration").

    a_ns, b_ns: mean of the time of all tiles (of the task) over iterations, those that lack tiles left out · delta_ns:
    b − a · low_ns, high_ns: its confidence interval, bootstrapped over iterations (NaN with fewer than three on a side) ·
    ratio: b / a · sure: the interval leaves out 0 · only: "a" or "b" where the other does not have it · error_ns: what
    both recordings' clocks may add to one task's change. Largest change first.
    """
    if not (isinstance(a, Profile) and isinstance(b, Profile)):
        other = next(x for x in (a, b) if not isinstance(x, Profile))
        raise ProfileError(f"diff: expected two profiles, found {type(other).__name__} {other!r:.60}")
    if by not in ("op", "task"):
        raise ProfileError(f"diff(by={by!r}): {suggest(by, ('op', 'task'))}")
    if not 0 < confidence < 1:
        raise ProfileError(f"diff(confidence=…): expected a number between 0 and 1, found {confidence}")
    keys = KEY if by == "task" else ["op"]
    left, right = _matrix(a, keys), _matrix(b, keys)
    names = left.columns.union(right.columns, sort=False)
    rng = np.random.default_rng(seed)
    x, y = left.reindex(columns=names), right.reindex(columns=names)
    mean_a, mean_b = x.mean().to_numpy(), y.mean().to_numpy()
    low, high = _interval(x.to_numpy(), y.to_numpy(), confidence, rng)
    out = names.to_frame(index=False)
    out["a_ns"], out["b_ns"] = mean_a, mean_b
    out["delta_ns"] = mean_b - mean_a
    out["low_ns"], out["high_ns"] = low, high
    out["ratio"] = mean_b / np.where(mean_a > 0, mean_a, np.nan)
    out["sure"] = (low > 0) | (high < 0)
    out["only"] = np.where(np.isnan(mean_a), "b", np.where(np.isnan(mean_b), "a", ""))
    out["error_ns"] = float(np.hypot(residual(a), residual(b)))
    whole = out["op"] == "iteration"
    order = out["delta_ns"].abs().where(~whole, np.inf).fillna(0).sort_values(ascending=False, kind="stable").index
    return out.loc[order].reset_index(drop=True)


def _matrix(profile: Profile, keys: list[str]) -> pd.DataFrame:
    """[iteration, key]: summed durations; the last column is the whole iteration."""
    t = tasks(profile)
    t["op"] = t["op"].astype(object)
    each = _sums(t, keys)
    table: Any = each.unstack(keys).astype(float) if len(each) else pd.DataFrame(dtype=float)
    if not isinstance(table.columns, pd.MultiIndex):
        table.columns = pd.MultiIndex.from_arrays([table.columns], names=keys[:1])
    whole = iterations(profile).groupby("iteration")["dur_ns"].max()
    place = ("iteration", -1, -1, -1, -1)[: len(keys)]
    table[place] = whole.reindex(table.index).astype(float)
    table.columns = table.columns.set_names(keys)
    return table


def _sums(t: pd.DataFrame, keys: list[str]) -> pd.Series:
    """Time of all tiles by key and iteration, without those iterations in which fewer tiles were recorded than usual:
    a recording may begin or end within one, or a damaged record may have taken some away."""
    each = t.groupby([*keys, "iteration"], observed=True)["dur_ns"]
    sums, tiles = each.sum(), each.size()
    usual = tiles.groupby(level=keys, observed=True).transform("median")
    return sums[tiles >= usual]


def _interval(
    x: np.ndarray, y: np.ndarray, confidence: float, rng: np.random.Generator, rounds: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    n = x.shape[1]
    if len(x) < 3 or len(y) < 3:
        return np.full(n, np.nan), np.full(n, np.nan)

    def means(values: np.ndarray) -> np.ndarray:
        weight = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=rounds).astype(float)
        known = ~np.isnan(values)
        counts = weight @ known
        return np.asarray((weight @ np.where(known, values, 0.0)) / np.where(counts > 0, counts, np.nan))

    low, high = np.empty(n), np.empty(n)
    for at in range(0, n, 4096):  # a task table may have 10^5 columns
        part = slice(at, at + 4096)
        delta = means(y[:, part]) - means(x[:, part])
        tail = (1 - confidence) / 2
        with np.errstate(invalid="ignore"):
            low[part], high[part] = np.quantile(delta, [tail, 1 - tail], axis=0)
    return low, high


def predicted(profile: Profile, spans: pd.DataFrame) -> pd.DataFrame:
    """A simulator's spans against the measured ones, one row per operator: op, tasks, measured_ns and predicted_ns
    (median execution), ratio, shift_ns: median of predicted begin less measured begin, both since their first task.
    Joined by iteration and task; iterations count from each side's first."""
    need = ("phase", "iteration", "task", "begin_ns", "dur_ns")
    if not isinstance(spans, pd.DataFrame):
        raise ProfileError(f"predicted: expected a table of spans, as simulators give, found {type(spans).__name__}")
    if missing := [name for name in need if name not in spans]:
        raise ProfileError(f"predicted: the table of spans has no column {missing[0]!r}; it needs {', '.join(need)}")
    t = tasks(profile)[["iteration", "task", "op", "begin_ns", "dur_ns"]]
    p = spans.loc[spans["phase"] == "execute", ["iteration", "task", "begin_ns", "dur_ns"]].copy()
    t = t.copy()
    for frame in (t, p):
        if len(frame):
            frame["iteration"] -= frame["iteration"].min()
            frame["begin_ns"] -= frame["begin_ns"].min()
    both = t.merge(p, on=["iteration", "task"], suffixes=("", "_p"))
    both["shift"] = both["begin_ns_p"] - both["begin_ns"]
    groups = both.groupby("op", observed=True)
    out = pd.DataFrame(
        {
            "tasks": groups.size(),
            "measured_ns": groups["dur_ns"].median(),
            "predicted_ns": groups["dur_ns_p"].median(),
            "shift_ns": groups["shift"].median(),
        }
    ).reset_index()
    out["ratio"] = out["predicted_ns"] / out["measured_ns"].where(out["measured_ns"] > 0)
    return out
