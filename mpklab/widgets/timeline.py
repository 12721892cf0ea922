"""The timeline: every span of every worker, as a widget, a self-contained page, a picture and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpklab.errors import ProfileError, suggest
from mpklab.plots import CLASSES, IDLE, PALETTE, PHASES, UNKNOWN_PHASE, kind_colours
from mpklab.widgets import raster
from mpklab.widgets.page import Column, container
from mpklab.widgets.raster import counted
from mpklab.widgets.view import View

if TYPE_CHECKING:
    import pandas as pd

ROLES = ("compute", "loader", "scheduler")
NEEDED = (
    "rank", "worker", "sm", "role", "phase", "iteration", "task", "op", "kind", "layer", "event", "begin_ns", "end_ns",
    "truncated",
)  # fmt: skip
MODES = ("kind", "phase", "layer", "operator")
NO_SPANS = "No spans: nothing was recorded. Run with profile=1 or more, or look at the profile's health line."
Ints = NDArray[np.integer[Any]]  # as narrow as they came: a million spans cost what their bytes cost
_RATIOS = (1 / 1.5, 1 / 1.2, 1 / 1.05, 1.05, 1.2, 1.5)
# How long work took against the same work of the other run: blue is faster, orange slower, readable without red and green.
DIFFERENCE = {
    "less than 1/1.5": ("#1F4E8C", "#5B9BF0"), "1/1.5 to 1/1.2": ("#5B8CC8", "#4577B8"), "1/1.2 to 1/1.05": ("#A9C3E3", "#34506F"),
    "the same ± 5 %": ("#C9CCD2", "#4A4F57"), "1.05 to 1.2 times": ("#F3C79B", "#7A5530"), "1.2 to 1.5 times": ("#E38A3A", "#C27A35"),
    "more than 1.5 times": ("#A84B00", "#FFA14D"), "not in the other": ("#882255", "#C96A94"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lanes:
    """Spans sorted by (source, rank, worker, role, depth, begin); within one row none overlaps the next."""

    meta: dict[str, Any]
    columns: dict[str, Column]
    begin: Ints
    end: Ints
    row_of: Ints  # per span
    phase: Ints
    kind: Ints  # index into meta["kinds"], -1 none


def _codes(series: Any) -> tuple[Ints, list[str]]:
    """Codes and names of a column that may be categorical or plain text; missing values get -1."""
    import pandas as pd

    if isinstance(series.dtype, pd.CategoricalDtype):
        return series.cat.codes.to_numpy(), [str(name) for name in series.cat.categories]
    codes, names = pd.factorize(series)
    return codes, [str(name) for name in names]


def _whole(series: Any) -> Ints:
    """The integers of a column, also where a join made them floats."""
    values = series.to_numpy()
    return values if values.dtype.kind in "iu" else values.astype(np.int64)


def _in_order(lane: Ints, begin: Ints, end: Ints) -> bool:
    """Whether spans are sorted by lane, begin, longest first."""
    later = (begin[1:] > begin[:-1]) | ((begin[1:] == begin[:-1]) & (end[1:] <= end[:-1]))
    return bool(((lane[1:] > lane[:-1]) | ((lane[1:] == lane[:-1]) & later)).all())


def _depths(lane: Ints, begin: Ints, end: Ints) -> Ints:
    """How many spans of the same lane enclose each one; spans come sorted by lane, begin, longest first."""
    if not len(begin) or not ((lane[1:] == lane[:-1]) & (begin[1:] < end[:-1])).any():
        return np.zeros(len(begin), np.int8)  # nothing overlaps, as in every recording below level 3
    # An empty span ends half a nanosecond after it begins, so that it does not end before itself.
    lane = lane.astype(np.int64)
    first, last = 2 * begin, np.maximum(2 * end, 2 * begin + 1)
    stride = int(last.max()) + 2
    ended = np.sort(lane * stride + last)
    depth: Ints = np.arange(len(begin)) - np.searchsorted(ended, lane * stride + first, side="right")
    depth = np.maximum(depth, 0)
    # Spans that cross instead of nesting (a recorder should not write them) are put where there is room, one by one.
    order = np.lexsort((first, depth, lane))
    same = (lane[order][1:] == lane[order][:-1]) & (depth[order][1:] == depth[order][:-1])
    crossing = same & (first[order][1:] < last[order][:-1])
    for bad in np.unique(lane[order][1:][crossing]):
        free: list[int] = []
        for i in np.flatnonzero(lane == bad):
            level = next((k for k, until in enumerate(free) if until <= first[i]), len(free))
            free[level : level + 1] = [int(last[i])]
            depth[i] = level
    return depth


def _one(spans: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in NEEDED if name not in spans.columns]
    if missing:
        raise ProfileError(
            f"a timeline needs the columns of profile.spans(); missing: {', '.join(missing)}. "
            "Pass the frame whole, filtered by rows only."
        )
    return spans


def read_lanes(sources: Mapping[str, pd.DataFrame], classes: Mapping[str, object], options: Mapping[str, Any]) -> Lanes:
    """The columns of timeline.js from one or more frames in the schema of `profile.spans()`."""
    import pandas as pd

    frames = [_one(frame) for frame in sources.values()]
    several = len(frames) > 1
    joined = frames[0]
    if several:
        joined = pd.concat([frame.astype({"role": str, "phase": str, "op": str, "kind": str}) for frame in frames])
    source = np.repeat(np.arange(len(frames)), [len(frame) for frame in frames])
    extra: dict[str, Any] = {
        name: values if isinstance(values, pd.Categorical) else np.asarray(values) for name, values in classes.items()
    }
    for name, values in extra.items():
        if len(values) != len(joined):
            raise ProfileError(f"classes[{name!r}] has {len(values)} values, expected one per span: {len(joined)}")

    begin = joined["begin_ns"].to_numpy(np.int64)
    end = np.maximum(joined["end_ns"].to_numpy(np.int64), begin)
    # Devices of one run share its clock; another run has a zero of its own, its earliest span.
    zero = np.array([int(frame["begin_ns"].min()) if len(frame) else 0 for frame in frames], np.int64)
    origin = zero[source]
    begin, end = begin - origin, end - origin
    ready = options["ready_ns"]
    if ready is not None and len(ready) != len(joined):
        raise ProfileError(f"ready_ns has {len(ready)} values, expected one per span: {len(joined)}")
    if several:
        extra["difference"] = difference(frames[0], frames[1], options["error_ns"])
    phase_code, phase_names = _codes(joined["phase"])
    role_code, role_names = _codes(joined["role"])
    roles = list(ROLES) + [name for name in role_names if name not in ROLES]
    to_role = np.array([roles.index(name) for name in role_names] + [0], np.int32)
    rank, worker, iteration, task, event, layer, sm = (
        _whole(joined[name]) for name in ("rank", "worker", "iteration", "task", "event", "layer", "sm")
    )

    is_iteration = phase_code == (phase_names.index("iteration") if "iteration" in phase_names else -2)
    stops = np.cumsum([len(frame) for frame in frames]).tolist()
    iterations = [
        {"run": run, **found}
        for run, own in enumerate(map(slice, [0, *stops], stops))
        for found in _iterations(iteration[own], begin[own], end[own], is_iteration[own])
    ]
    kept = np.flatnonzero(~is_iteration)
    names = list(sources)
    ranks = int(rank.max()) + 1 if len(rank) else 1
    group_key = source * ranks + rank
    present = np.bincount(group_key) > 0
    groups, group = np.flatnonzero(present), (np.cumsum(present, dtype=np.int32) - 1)[group_key]
    group_names = [
        " · ".join(
            part
            for part in (names[key // ranks] if several else "", f"rank {key % ranks}" if ranks > 1 else "")
            if part
        )
        for key in groups.tolist()
    ] or [""]

    workers = int(worker.max()) + 1 if len(worker) else 1
    lane = ((group * workers + worker) * len(roles) + to_role[role_code])[kept]
    if (lane[1:] < lane[:-1]).any():  # most recordings only need their lanes put together, which takes no comparisons
        order = np.argsort(lane.astype(np.min_scalar_type(int(lane.max()))), kind="stable")
        kept, lane = kept[order], lane[order]
    if not _in_order(lane, begin[kept], end[kept]):
        order = np.lexsort((-end[kept], begin[kept], lane))
        kept, lane = kept[order], lane[order]
    depth = _depths(lane, begin[kept], end[kept])
    if depth.any():
        order = np.lexsort((begin[kept], depth, lane))
        kept, lane, depth = kept[order], lane[order], depth[order]
    n = len(kept)
    starts = np.flatnonzero(np.r_[n > 0, (lane[1:] != lane[:-1]) | (depth[1:] != depth[:-1])])
    counts = np.diff(np.r_[starts, n])
    row_of = np.repeat(np.arange(len(starts), dtype=np.int32), counts)
    begin, end = begin[kept], end[kept]
    gap = begin.copy()
    gap[1:] -= end[:-1]
    gap[starts] = begin[starts]

    task = task[kept]
    op_code, op_names = _codes(joined["op"])
    kind_code, kind_names = _codes(joined["kind"])
    op_table, op_code = _operators(op_code, op_names, kind_code, kind_names, layer)
    op, phase = op_code[kept], phase_code[kept]
    kinds = sorted({entry[1] for entry in op_table})
    known = [phase_names[code] if code >= 0 else "unknown" for code in range(len(phase_names))]
    event = event[kept]
    carries = np.zeros(len(known) + 1, bool)
    if n:
        carries[phase[event >= 0]] = True
    first = kept[starts]
    meta: dict[str, Any] = {
        "title": options["title"],
        "end_ns": int(end.max()) if n else 0,
        "roles": roles,
        "groups": group_names,
        "phases": [
            dict(zip(("name", "colour", "idle", "work"), (name, [*look[:2]], look[2], look[3]), strict=True))
            for name, look in ((name, PHASES.get(name, UNKNOWN_PHASE)) for name in known)
        ],
        "ops": [{"name": name, "kind": kinds.index(kind), "layer": level} for name, kind, level in op_table],
        "kinds": [{"name": kind, "colour": colour} for kind, colour in zip(kinds, kind_colours(kinds), strict=True)],
        "event_phases": carries.astype(int).tolist(),
        "run_of_group": [key // ranks for key in groups.tolist()],
        "iterations": iterations,
        "bounds": [
            {"run": run, "name": str(name), "at": float(at)}
            for run, of_run in enumerate((options["bounds"], options["other_bounds"])[: len(frames)])
            for name, at in of_run.items()
        ],
        "palette": PALETTE,
        "color": options["color"],
        "height": options["height"],
        "modes": [],
        "empty": options["empty"],
        "place": options["place"],
        "worker_names": {str(w): str(name) for w, name in options["workers"].items()},
        "notes": [str(note) for note in options["notes"]],
    }
    columns = {
        "row_group": Column(group[first], delta=True),
        "row_worker": Column(worker[first], delta=True),
        "row_role": Column(to_role[role_code[first]]),
        "row_sm": Column(sm[first]),
        "row_depth": Column(depth[starts]),
        "row_count": Column(counts),
        "gap": Column(gap),
        "dur": Column(end - begin),
        "phase": Column(phase),
        "task": Column(task, delta=True),
        "iteration": Column(iteration[kept], delta=True),
        "event": Column(event[carries[phase]] + 1, delta=True),
        "truncated": Column(np.flatnonzero(joined["truncated"].to_numpy(bool)[kept]), delta=True),
    }
    errors = options["error_ns"]
    if isinstance(errors, np.ndarray):
        if errors.shape != (len(joined), 3):
            raise ProfileError(f"error_ns has the shape {errors.shape}, expected {(len(joined), 3)}: a row per span")
        for name, values in zip(("row_error", "row_least", "row_walk"), errors[first].T, strict=True):
            columns[name] = Column(np.nan_to_num(values).astype(np.float32))
    elif isinstance(errors, Mapping):
        columns["row_error"] = Column(np.array([float(errors.get(w, 0.0)) for w in worker[first].tolist()], np.float32))
    elif errors is not None:
        meta["error_ns"] = float(errors)
    table = _operator_of_task(task, op)
    columns |= {"span_op": Column(op, delta=True)} if table is None else {"task_op": Column(table, delta=True)}
    for number, (name, values) in enumerate(extra.items()):
        codes, labels = _codes(pd.Series(values))  # a categorical keeps its order in the legend
        if len(labels) > 200:
            raise ProfileError(f"classes[{name!r}] has {len(labels)} different values; a timeline colours at most 200")
        column = f"class{number}"
        columns[column] = Column(codes[kept] + 1)
        mode: dict[str, Any] = {"name": name, "column": column, "labels": [str(label) for label in labels]}
        if labels and set(labels) <= set(CLASSES):
            mode |= {"colours": [CLASSES[label] for label in labels], "idle": [label in IDLE for label in labels]}
        elif labels and set(labels) <= set(DIFFERENCE):
            mode |= {"colours": [DIFFERENCE[label] for label in labels]}
        elif labels and set(labels) <= set(kinds):
            waits = np.array([PHASES.get(name, UNKNOWN_PHASE)[2] for name in known] + [False])
            mode["colours"] = kind_colours([str(label) for label in labels])
            mode["idle"] = [bool(waits[phase[codes[kept] == k]].all()) for k in range(len(labels))]
        meta["modes"].append(mode)
    if ready is not None:
        # A span that was ready before it began; 0 where that is not known or it began at once.
        delay = (joined["begin_ns"].to_numpy(np.int64) - np.asarray(ready, float))[kept]
        columns["ready"] = Column(np.where(np.isfinite(delay) & (delay > 0), delay, 0).astype(np.int64))
    of_kind = np.array([kinds.index(entry[1]) for entry in op_table] + [-1], np.int16)[op]
    return Lanes(meta, columns, begin, end, row_of, phase, of_kind)


def difference(a: pd.DataFrame, b: pd.DataFrame, error_ns: object = None) -> Any:
    """For the work of two runs, the first's spans and then the second's, how much longer it took than the same work of the
    other: a class of DIFFERENCE; None for what is no work. The same is the same task in the same recorded iteration."""
    import pandas as pd

    if isinstance(error_ns, np.ndarray):
        known = error_ns[np.isfinite(error_ns[:, 0]), 0]
        error_ns = float(np.median(known)) if len(known) else None
    errors = error_ns if isinstance(error_ns, Mapping) else {0: error_ns}
    within = max([float(e) for e in errors.values() if isinstance(e, int | float)], default=0.0)
    keys = ["rank", "step", "task", "phase", "turn"]
    frames = []
    for frame in (a, b):
        part = frame[["rank", "iteration", "task"]].copy()
        part["phase"] = frame["phase"].astype(str).to_numpy()
        part["took"] = (frame["end_ns"] - frame["begin_ns"]).to_numpy()
        part["work"] = part["phase"].isin([n for n, look in PHASES.items() if look[3]]) & (part["task"] >= 0).to_numpy()
        numbers = np.unique(part.loc[part["work"], "iteration"])
        part["step"] = np.searchsorted(numbers, part["iteration"])
        part["turn"] = part.groupby(["rank", "step", "task", "phase"], sort=False).cumcount().to_numpy()
        frames.append(part.reset_index(drop=True))
    found = []
    for own, other in (frames, frames[::-1]):
        theirs = pd.MultiIndex.from_frame(other.loc[other["work"], keys])
        at = theirs.get_indexer(pd.MultiIndex.from_frame(own.loc[own["work"], keys]))
        took = own.loc[own["work"], "took"].to_numpy(float)
        reference = np.append(other.loc[other["work"], "took"].to_numpy(float), np.nan)[at]
        ratio = took / np.maximum(reference, 1.0)
        ratio = np.where(np.abs(took - reference) <= within, 1.0, ratio)
        step = np.searchsorted(_RATIOS, ratio, side="right")
        names = np.array(list(DIFFERENCE), object)
        classes = np.full(len(own), None, object)
        classes[np.flatnonzero(own["work"])] = np.where(
            np.isnan(reference), names[-1], names[np.minimum(step, len(_RATIOS))]
        )
        found.append(classes)
    return pd.Categorical(np.concatenate(found), categories=list(DIFFERENCE))


def _operators(
    op: Ints, op_names: list[str], kind: Ints, kind_names: list[str], layer: Ints
) -> tuple[list[tuple[str, str, int]], Ints]:
    """Distinct operators with their kind and layer, unused names left out, and the codes into that list."""
    first = np.full(len(op_names) + 1, -1, np.int64)  # the last entry answers for code -1
    first[op[::-1]] = np.arange(len(op) - 1, -1, -1)  # of equal codes the one written last stays
    to = np.full(len(op_names) + 1, -1, np.int32)
    table: list[tuple[str, str, int]] = []
    for code, at in enumerate(first[:-1].tolist()):
        if at < 0 or op_names[code] == "":
            continue
        to[code] = len(table)
        kind_name = kind_names[kind[at]] if kind[at] >= 0 else "unknown"
        table.append((op_names[code], kind_name, int(layer[at])))
    return table, to[op]


def _operator_of_task(task: Ints, op: Ints) -> Ints | None:
    """The operator of each task id, if one table says it all; None when a span's operator is not its task's."""
    if not len(task):
        return np.zeros(0, np.int64)
    most = int(task.max())
    if most > 4 * len(task) + 1000:
        return None
    table = np.full(most + 2, -1, np.int32)  # the last entry answers for task -1
    table[task] = op
    table[-1] = -1
    return table[:-1] if bool((table[task] == op).all()) else None


def _iterations(iteration: Ints, begin: Ints, end: Ints, marks: NDArray[np.bool_]) -> list[dict[str, int]]:
    """Earliest begin and latest end of each iteration, from its own records where there are any."""
    chosen = marks & (iteration >= 0)
    if not chosen.any():
        chosen = iteration >= 0
    numbers, index = np.unique(iteration[chosen], return_inverse=True)
    low = np.full(len(numbers), np.iinfo(np.int64).max)
    high = np.zeros(len(numbers), np.int64)
    np.minimum.at(low, index, begin[chosen])
    np.maximum.at(high, index, end[chosen])
    return [
        {"index": i, "begin": b, "end": e}
        for i, b, e in zip(numbers.tolist(), low.tolist(), high.tolist(), strict=True)
    ]


class Timeline(View):
    """Spans as a picture. Shows itself as a cell's last line; `to_html`, `to_png` and `save` keep it."""

    module = "timeline.js"
    mount = "mountTimeline"

    def __init__(self, lanes: Lanes, spans: pd.DataFrame, title: str):
        task = lanes.columns["task"].values
        super().__init__(title, int(task.max()) + 1 if len(task) else 0)
        self.lanes = lanes
        self.spans = spans

    def data(self, level: int = 9) -> bytes:
        """What timeline.js draws, packed."""
        return container(self.lanes.meta, self.lanes.columns, level)

    def rows(self, tasks: list[int]) -> pd.DataFrame:
        """The spans of these tasks."""
        return self.spans[self.spans["task"].isin(tasks)]

    def to_pandas(self) -> pd.DataFrame:
        """The spans as they were given."""
        return self.spans

    def text(self) -> str:
        """What the picture says, in words."""
        lanes, n = self.lanes, len(self.lanes.begin)
        notes = "".join(f"\n  {note}" for note in lanes.meta["notes"])
        if not n:
            return f"{self.title}: {lanes.meta['empty']}{notes}"
        rows = len(
            {
                (int(g), int(w))
                for g, w in zip(lanes.columns["row_group"].values, lanes.columns["row_worker"].values, strict=True)
            }
        )
        phases = lanes.meta["phases"]
        took = np.bincount(lanes.phase, weights=(lanes.end - lanes.begin).astype(float), minlength=len(phases))
        busiest = sorted(((took[k], phase["name"]) for k, phase in enumerate(phases) if took[k] > 0), reverse=True)[:4]
        whole = rows * max(1, lanes.meta["end_ns"])
        shares = ", ".join(f"{name} {100 * t / whole:.1f} %" for t, name in busiest)
        count = sum(not found["run"] for found in lanes.meta["iterations"])
        several = f", {counted(count, 'iteration')}" if count > 1 else ""
        cut = len(lanes.columns["truncated"].values)
        lost = f"; {counted(cut, 'span')} cut short" if cut else ""
        said = f"{counted(n, 'span')} of {counted(rows, 'worker')}"
        return f"{self.title}: {said} over {lanes.meta['end_ns'] / 1e3:,.1f} µs{several}; {shares}{lost}{notes}"

    def picture(self, width: int = 900) -> raster.Picture:
        """The whole range as pixels: the colour of what fills most of each one."""
        return _picture(self, width)


def _picture(timeline: Timeline, width: int) -> raster.Picture:
    lanes = timeline.lanes
    meta = lanes.meta
    n_rows = len(lanes.columns["row_count"].values)
    if not n_rows:
        return raster.message(meta["empty"], width)
    role = lanes.columns["row_role"].values
    depth = lanes.columns["row_depth"].values
    shown = np.flatnonzero((role == 0) & (depth == 0))
    if not len(shown):
        shown = np.flatnonzero(depth == 0)
    step = max(1, -(-len(shown) // 300))
    shown = shown[::step]
    place = np.full(n_rows, -1, np.int32)
    place[shown] = np.arange(len(shown))
    phases = meta["phases"]
    kinds = meta["kinds"]
    work = np.array([p["work"] for p in phases] + [False])
    use = work[lanes.phase] & (lanes.kind >= 0)
    classes = np.where(use, lanes.kind, np.int16(len(kinds)) + lanes.phase)
    left = 58
    row = place[lanes.row_of]
    kept = np.flatnonzero(row >= 0) if len(shown) < n_rows else slice(None)
    scale = (width - left - 8) / max(1, meta["end_ns"])
    cells = raster.coverage(
        row[kept], classes[kept], lanes.begin[kept] * scale, lanes.end[kept] * scale,
        (len(shown), len(kinds) + len(phases), width - left - 8),
    )  # fmt: skip
    light = PALETTE["light"]
    colours = [raster.rgb(light[k["colour"] % len(light)]) for k in kinds] + [
        raster.rgb(p["colour"][0]) for p in phases
    ]
    present = np.flatnonzero(np.bincount(classes[kept])).tolist()
    names = [k["name"] for k in kinds] + [p["name"] for p in phases]
    high = int(max(2, min(16, 360 // max(1, len(shown)))))
    picture = raster.Picture(width, 26 + high * len(shown) + 24 + 14 * (1 + len(present) // 6))
    picture.text(4, 8, raster.shorten(timeline.title, 60))
    picture.paste(left, 24, raster.blend(cells, colours), high)
    workers = lanes.columns["row_worker"].values[shown]
    every = max(1, -(-12 // high))
    for k in range(0, len(shown), every):
        picture.text(4, 24 + k * high + max(0, high // 2 - 3), f"w{int(workers[k])}")
    bottom = 26 + high * len(shown) + 4
    for part in range(5):
        label = f"{part / 4 * meta['end_ns'] / 1e3:.1f} us"
        x = left + part * (width - left - 8) // 4
        picture.text(min(x, width - 6 * len(label) - 4) if part else x, bottom, label)
    for k, c in enumerate(present):
        picture.swatch(left + (k % 6) * 136, bottom + 16 + 14 * (k // 6), colours[c], raster.shorten(names[c], 18))
    return picture


def timeline(
    spans: pd.DataFrame,
    other: pd.DataFrame | None = None,
    *,
    title: str = "timeline",
    color: str = "kind",
    names: Sequence[str] = ("this", "other"),
    bounds: Mapping[str, float] | None = None,
    other_bounds: Mapping[str, float] | None = None,
    error_ns: float | Mapping[int, float] | NDArray[np.float64] | None = None,
    classes: Mapping[str, object] | None = None,
    height: int | None = None,
    place: str = "SM",
    workers: Mapping[int, str] | None = None,
    empty: str = NO_SPANS,
    ready_ns: Sequence[float] | NDArray[Any] | None = None,
    notes: Sequence[str] = (),
) -> Timeline:
    """A picture of `profile.spans()`: one row per worker, lanes inside; `other` is a second run, drawn below, each from
    its own earliest span, and `color="difference"` tells where the work of one took longer.

    `bounds` are vertical lines, nanoseconds from the earliest span, and `other_bounds` those of `other`; `error_ns` is the
    clock's error, one number, one per worker, or an array with a row per span, that of its lane in `accuracy.per_lane`;
    `classes` adds ways to colour: a name and one value per span (at most 200 different ones); `place` says what the column
    `sm` counts; `workers` names workers by number; `ready_ns` when the task of each span of execution was ready (NaN: not
    known), which draws how many tasks were ready and not begun; `notes` are sentences above the picture. ProfileError for
    columns that lack or do not fit.
    """
    extra = dict(classes or {})
    known = [*MODES, *extra, *(["difference"] if other is not None else [])]
    if color not in known:
        raise ProfileError(f"color={color!r} is no way to colour a timeline: {suggest(color, known)}")
    sources = {str(names[0]): spans} if other is None else {str(names[0]): spans, str(names[1]): other}
    options = {
        "title": str(title), "color": color, "bounds": dict(bounds or {}), "other_bounds": dict(other_bounds or {}), "error_ns": error_ns,
        "height": height, "empty": empty, "place": str(place), "workers": dict(workers or {}), "ready_ns": ready_ns, "notes": list(notes),
    }  # fmt: skip
    return Timeline(read_lanes(sources, extra, options), spans, str(title))
