"""Figures from frames: plotly, one per question, computing nothing; and the colours that every view shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mpklab.errors import ProfileError, need_package, suggest

if TYPE_CHECKING:
    import pandas as pd

# Searched so that no two come closer than 15 in CIELAB, as people with every kind of colour vision see them (a test holds
# them to it); the second list is for dark backgrounds.
PALETTE = {
    "light": "#4477AA #D80B4D #235625 #BBB76C #F95F8F #AC5F0B #52C6C3 #7B3964 #D8AC1A #5C3FB9 #95B0F0".split(),
    "dark": "#6FA8DC #FF8F92 #B8C36D #838D53 #B4609B #BF631D #82FAFF #977377 #C8A508 #A37BF2 #9BB8C6".split(),
}
# Operator kinds that keep their colour in every picture; others follow in the order they come.
KINDS = (
    "linear", "attention", "rms_norm", "silu_mul", "attention_merge", "embedding", "add", "argmax_partial",
    "argmax_reduce", "advance", "rope",
)  # fmt: skip
# Phases of a lane: light and dark colour; whether the time is idle; whether it is an operator's own work.
PHASES: dict[str, tuple[str, str, bool, bool]] = {
    "execute": ("#4477AA", "#6FA8DC", False, True),
    "wait": ("#BBC0C8", "#555B66", True, False),
    "gather": ("#7FBFB4", "#4A9488", False, False),
    "fetch": ("#D6BC6E", "#A08C48", False, False),
    "signal": ("#E39A68", "#BF7848", False, False),
    "step": ("#D3D6DB", "#40454E", True, False),
    "load": ("#AA3377", "#D77BB0", False, True),
    "ring": ("#CBB6D9", "#665374", True, False),
    "load_wait": ("#B9CCE4", "#485970", True, False),
    "operand": ("#DBBFC8", "#6E4D58", True, False),
    "push": ("#94B060", "#78924A", False, False),
    "pop": ("#C6CDA2", "#626A46", True, False),
}
UNKNOWN_PHASE = ("#999999", "#777777", False, False)


def kind_colours(kinds: list[str]) -> list[int]:
    """A palette index for each kind: fixed for the known ones, the next free ones for the rest."""
    following = iter(range(len(KINDS), len(KINDS) + len(kinds)))
    return [KINDS.index(kind) if kind in KINDS else next(following) for kind in kinds]


# Classes of worker time as `mpklab.analysis.bubbles` names them: work first, then overheads, then idleness.
CLASSES = {
    "execute": ("#4477AA", "#6FA8DC"), "gather": ("#7FBFB4", "#4A9488"), "fetch": ("#D6BC6E", "#A08C48"),
    "signal": ("#E39A68", "#BF7848"), "recording": ("#B08FC7", "#8C6BA3"), "latency": ("#EE6677", "#F4838F"),
    "producer": ("#BBC0C8", "#555B66"), "blocked": ("#882255", "#C96A94"), "ready_elsewhere": ("#CCBB44", "#E3D36B"),
    "starved": ("#DBBFC8", "#6E4D58"), "remote": ("#66BBDD", "#8ADCF5"), "ramp": ("#D3D6DB", "#40454E"),
    "tail": ("#E4E6EA", "#33373E"), "unexplained": ("#999999", "#777777"),
}  # fmt: skip
IDLE = frozenset("latency producer blocked ready_elsewhere starved remote ramp tail unexplained".split())
THEMES = ("auto", "light", "dark")
MOST_BARS = 60  # a figure of more is not read; the frame has the rest
_INK = {"auto": "#7d838d", "light": "#1c1e21", "dark": "#e4e6ea"}
_GRID = {"auto": "rgba(127,131,141,0.28)", "light": "#dfe2e7", "dark": "#343941"}
_GROUND = {"auto": "rgba(0,0,0,0)", "light": "#ffffff", "dark": "#15171b"}


def template(theme: str = "auto") -> Any:
    """A plotly template: "light", "dark", or "auto", which has no ground of its own and an ink that both let through."""
    go = _plotly()
    if theme not in THEMES:
        raise ProfileError(f"theme={theme!r}: {suggest(theme, THEMES)}")
    axis = {"gridcolor": _GRID[theme], "linecolor": _GRID[theme], "zerolinecolor": _GRID[theme], "automargin": True}
    return go.layout.Template(
        layout={
            "colorway": colours(theme),
            "font": {"color": _INK[theme], "size": 12},
            "paper_bgcolor": _GROUND[theme],
            "plot_bgcolor": _GROUND[theme],
            "xaxis": axis,
            "yaxis": axis,
            "margin": {"l": 60, "r": 20, "t": 48, "b": 48},
            "legend": {"orientation": "h", "y": -0.22, "traceorder": "normal"},
            "hoverlabel": {"font": {"size": 12}},
            "bargap": 0.15,
        }
    )


def colours(theme: str) -> list[str]:
    """The palette for a theme."""
    return PALETTE["dark" if theme == "dark" else "light"]


def utilisation(frame: pd.DataFrame, theme: str = "auto") -> Any:
    """Workers by what they did, over time; `frame` is `analysis.utilisation(profile)`."""
    go = _plotly()
    _need(frame, "utilisation", "begin_ns")
    figure = _figure("What the workers did, over time", "time (µs)", "workers", theme)
    shade = 1 if theme == "dark" else 0
    for phase in [*PHASES, "other"]:
        if phase in frame.columns and (frame[phase] > 0).any():
            look = PHASES.get(phase, UNKNOWN_PHASE)
            figure.add_trace(
                go.Scatter(
                    x=frame["begin_ns"] / 1e3, y=frame[phase], name=phase, mode="lines", stackgroup="all",
                    line={"width": 0, "color": look[shade], "shape": "hv"}, fillcolor=look[shade],
                )
            )  # fmt: skip
    return figure


def bubbles(frame: pd.DataFrame, theme: str = "auto") -> Any:
    """Where each worker's time went, as shares of the makespan; `frame` is `analysis.bubbles(profile)`, by anything."""
    go = _plotly()
    _need(frame, "bubbles", "makespan_ns", "execute")
    keys = [name for name in frame.columns if name not in CLASSES and name != "makespan_ns"]
    shown = frame.head(512)
    labels = _labels(shown, keys)
    figure = _figure("Where the workers' time went", keys[-1] if keys else "", "share of the makespan (%)", theme)
    shade = 1 if theme == "dark" else 0
    for name, look in CLASSES.items():
        if name in shown.columns and (shown[name] > 0).any():
            share = 100 * shown[name] / shown["makespan_ns"].where(shown["makespan_ns"] > 0)
            figure.add_trace(go.Bar(x=labels, y=share, name=name, marker={"color": look[shade], "line": {"width": 0}}))
    figure.update_layout(barmode="stack", bargap=0.02 if len(shown) > 40 else 0.15)
    return figure


def roofline(
    frame: pd.DataFrame, bandwidth_gbps: float | None = None, peak_tflops: float | None = None, theme: str = "auto"
) -> Any:
    """Rates reached against intensity, with the roof where it is known; `frame` is `analysis.roofline(profile)`."""
    go = _plotly()
    _need(frame, "roofline", "intensity", "tflops")
    key = "op" if "op" in frame.columns else "kind"
    figure = _figure("Roofline of declared bytes and flops", "intensity (flop / byte)", "reached (TFLOP/s)", theme)
    shown = frame[(frame["intensity"] > 0) & (frame["tflops"] > 0)].head(1000)
    figure.add_trace(
        go.Scatter(
            x=shown["intensity"], y=shown["tflops"], mode="markers" if len(shown) > 24 else "markers+text", text=shown[key].astype(str),
            textposition="top center", marker={"size": 9}, name=key, showlegend=False,
        )
    )  # fmt: skip
    if len(shown) and (bandwidth_gbps or peak_tflops):
        low, high = float(shown["intensity"].min()) / 4, float(shown["intensity"].max()) * 4
        slope = (bandwidth_gbps or float("inf")) / 1e3
        peak = peak_tflops or float("inf")
        knee = peak / slope if bandwidth_gbps and peak_tflops else high
        xs = [x for x in (low, min(max(knee, low), high), high) if x > 0]
        figure.add_trace(
            go.Scatter(
                x=xs,
                y=[min(x * slope, peak) for x in xs],
                mode="lines",
                name="roof",
                line={"dash": "dash", "color": _INK[theme]},
            )
        )
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    return figure


def handoff(frame: pd.DataFrame, theme: str = "auto") -> Any:
    """Signal-to-notice latency of each hand-off, median with 10th and 90th percentile; `frame` is `analysis.handoff`."""
    go = _plotly()
    _need(frame, "handoff", "median_ns", "p10_ns", "p90_ns")
    shown = frame[frame["waited"] > 0].head(MOST_BARS) if "waited" in frame.columns else frame.head(MOST_BARS)
    labels = _labels(shown, [name for name in ("producer", "consumer", "event") if name in shown.columns], " → ")
    figure = _figure("Hand-off latency, from the producer's end to the consumer's notice", "latency (µs)", "", theme)
    middle = shown["median_ns"] / 1e3
    figure.add_trace(
        go.Scatter(
            x=middle, y=labels, mode="markers", marker={"size": 8}, name="median, 10–90 %", showlegend=False,
            error_x=_whiskers(shown["p10_ns"] / 1e3, middle, shown["p90_ns"] / 1e3, theme),
        )
    )  # fmt: skip
    return _rows(figure, len(shown))


def durations(frame: pd.DataFrame, theme: str = "auto") -> Any:
    """Execution time of each operator, coloured by kind, longest first; `frame` is `frames.operators(profile)`."""
    go = _plotly()
    _need(frame, "durations", "op", "kind", "total_ns", "median_ns")
    shown = frame.nlargest(MOST_BARS, "total_ns")
    kinds = sorted(str(kind) for kind in frame["kind"].dropna().unique())
    figure = _figure("Execution time of each operator, all workers together", "total (µs)", "", theme)
    for kind, colour in zip(kinds, kind_colours(kinds), strict=True):
        some = shown[shown["kind"].astype(str) == kind]
        if len(some):
            figure.add_trace(
                go.Bar(
                    x=some["total_ns"] / 1e3, y=some["op"].astype(str), orientation="h", name=kind,
                    customdata=some["median_ns"] / 1e3, hovertemplate="%{y}: %{x:.2f} µs, a tile %{customdata:.2f} µs<extra></extra>",
                    marker={"color": colours(theme)[colour % len(colours(theme))]},
                )
            )  # fmt: skip
    figure.update_layout(yaxis={"categoryorder": "array", "categoryarray": shown["op"].astype(str).tolist()})
    return _rows(figure, len(shown))


def imbalance(frame: pd.DataFrame, theme: str = "auto") -> Any:
    """What unevenness cost, largest first; `frame` is `analysis.imbalance(profile)`, by operator or by worker."""
    go = _plotly()
    if "lost_ns" in frame.columns:
        shown = frame.nlargest(MOST_BARS, "lost_ns")
        figure = _figure("Imbalance: worker time lost to uneven tiles, per iteration", "lost (µs)", "", theme)
        figure.add_trace(
            go.Bar(
                x=shown["lost_ns"] / 1e3, y=shown["op"].astype(str), orientation="h", customdata=shown["ratio"], showlegend=False,
                hovertemplate="%{y}: %{x:.2f} µs, slowest over mean %{customdata:.2f}<extra></extra>",
            )
        )  # fmt: skip
        return _rows(figure, len(shown))
    _need(frame, "imbalance", "worker", "share")
    shown = frame.head(2048)
    figure = _figure("Execution time of each worker against the mean worker", "worker", "share of the mean", theme)
    figure.add_trace(go.Bar(x=_labels(shown, ["rank", "worker"]), y=shown["share"], showlegend=False))
    return figure


def bounds(frame: pd.DataFrame, theme: str = "auto") -> Any:
    """The measured time against its lower bounds; `frame` is `analysis.bounds(profile)`."""
    go = _plotly()
    _need(frame, "bounds", "bound", "iteration_ns", "share")
    measured = frame["bound"] == "measured"
    figure = _figure("Lower bounds and the measured time, per iteration", "time (µs)", "", theme)
    palette = colours(theme)
    figure.add_trace(
        go.Bar(
            x=frame["iteration_ns"] / 1e3, y=frame["bound"].astype(str), orientation="h", showlegend=False,
            text=[f"{100 * share:.0f} %" for share in frame["share"]],
            marker={"color": [palette[0] if m else palette[6] for m in measured]},
        )
    )  # fmt: skip
    return _rows(figure, len(frame))


def compare(frame: pd.DataFrame, theme: str = "auto") -> Any:
    """What changed between two runs, with confidence intervals; `frame` is `analysis.diff(a, b)`."""
    go = _plotly()
    _need(frame, "compare", "op", "delta_ns", "low_ns", "high_ns")
    shown = frame.head(MOST_BARS)
    palette = colours(theme)
    delta = shown["delta_ns"] / 1e3
    figure = _figure("What changed, b − a: right is slower", "change per iteration (µs)", "", theme)
    figure.add_trace(
        go.Bar(
            x=delta, y=_labels(shown, [name for name in ("op", "tile0", "tile1", "tile2", "tile3") if name in shown.columns]),
            orientation="h", showlegend=False, marker={"color": [palette[1] if d > 0 else palette[2] for d in delta]},
            error_x=_whiskers(shown["low_ns"] / 1e3, delta, shown["high_ns"] / 1e3, theme),
        )
    )  # fmt: skip
    return _rows(figure, len(shown))


def schedules(frames: Mapping[str, pd.DataFrame], theme: str = "auto") -> Any:
    """Several schedules of the same work: `frames` maps a name to `analysis.bubbles(profile, by="all")`."""
    go = _plotly()
    if not frames:
        raise ProfileError(
            'schedules({}): expected at least one schedule, as {"static": analysis.bubbles(profile, by="all")}'
        )
    for name, frame in frames.items():
        _need(frame, f"schedules[{name!r}]", "makespan_ns", "execute")
    figure = _figure("Schedules compared: worker time by class", "", "worker time (µs)", theme)
    shade = 1 if theme == "dark" else 0
    names = [str(name) for name in frames]
    for kind, look in CLASSES.items():
        amounts = [float(frame[kind].sum()) / 1e3 if kind in frame.columns else 0.0 for frame in frames.values()]
        if any(amounts):
            figure.add_trace(go.Bar(x=names, y=amounts, name=kind, marker={"color": look[shade]}))
    figure.update_layout(barmode="stack")
    return figure


def _plotly() -> Any:
    if find_spec("plotly") is None:
        raise need_package("plotly", "a figure", "notebook")
    import plotly.graph_objects as go

    return go


def _figure(title: str, x: str, y: str, theme: str) -> Any:
    figure = _plotly().Figure(
        layout={"template": template(theme), "title": {"text": title, "font": {"size": 15}}, "height": 420}
    )
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y)
    return figure


def _rows(figure: Any, count: int) -> Any:
    """Names down the side, first at the top, each with room to be read."""
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_layout(height=max(220, 110 + 20 * count), legend={"y": 1.01, "yanchor": "bottom", "x": 0})
    return figure


def _whiskers(low: Any, middle: Any, high: Any, theme: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": high - middle,
        "arrayminus": middle - low,
        "color": _INK[theme],
    }


def _labels(frame: pd.DataFrame, keys: Sequence[str], between: str = " ") -> list[str]:
    """One text a row from some of its columns; a rank or a tile word that is always 0 says nothing."""
    told = [
        key
        for key in keys
        if key == keys[-1] or not (key in ("rank", "tile1", "tile2", "tile3") and (frame[key] == 0).all())
    ]
    return [between.join(str(value) for value in row) for row in zip(*(frame[key] for key in told), strict=True)] or [
        "all"
    ] * len(frame)


def _need(frame: pd.DataFrame, name: str, *columns: str) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ProfileError(
            f"plots.{name}: the frame lacks {', '.join(missing)}; it draws what analysis.{name} or frames gives"
        )
