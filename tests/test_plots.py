"""Figures hold what the frames say, refuse other frames, and stay small."""

from __future__ import annotations

import numpy as np
import pytest
from schedules import Op, Run, make

from mpklab import analysis, frames, plots
from mpklab.errors import ProfileError

pytest.importorskip("plotly")


def profile(seed: int = 0, latency: int = 500):
    rng = np.random.default_rng(seed)
    ops = [
        Op("embed", 3, kind="embedding"),
        Op("layer0.up", 3, ("embed",), layer=0),
        Op("layer0.attention", 3, ("layer0.up",), kind="attention"),
    ]
    queues = [
        [[Run(o.name, w, int(rng.gamma(30, 200)), fetch=90, gather=200, signal=80) for o in ops] for w in range(3)]
        for _ in range(4)
    ]
    meta = {"bandwidth_gbps": 3000.0, "peak_tflops": 500.0}
    return make(ops, queues, latency=latency, meta=meta, bytes_per_task=4e6, flops_per_task=8e6)


@pytest.fixture(scope="module")
def figures() -> dict:
    a, b = profile(), profile(1, 100)
    return {
        theme: {
            "utilisation": plots.utilisation(analysis.utilisation(a), theme),
            "bubbles": plots.bubbles(analysis.bubbles(a), theme),
            "bubbles by op": plots.bubbles(analysis.bubbles(a, by="op"), theme),
            "roofline": plots.roofline(analysis.roofline(a), 3000, 500, theme),
            "handoff": plots.handoff(analysis.handoff(a), theme),
            "durations": plots.durations(frames.operators(a), theme),
            "imbalance": plots.imbalance(analysis.imbalance(a), theme),
            "imbalance of workers": plots.imbalance(analysis.imbalance(a, by="worker"), theme),
            "bounds": plots.bounds(analysis.bounds(a), theme),
            "compare": plots.compare(analysis.diff(a, b), theme),
            "schedules": plots.schedules(
                {"a": analysis.bubbles(a, by="all"), "b": analysis.bubbles(b, by="all")}, theme
            ),
        }
        for theme in plots.THEMES
    }


def test_every_figure_is_a_plain_figure_with_marks_and_words(figures: dict) -> None:
    for theme, drawn in figures.items():
        for name, figure in drawn.items():
            assert type(figure).__name__ == "Figure", name
            assert figure.data and figure.layout.title.text, name
            assert sum(len(trace.x) for trace in figure.data) > 0, name
            assert len(figure.to_json()) < 100_000, name
            assert figure.layout.template.layout.font.color == plots._INK[theme]


def test_figures_show_the_frame_s_numbers(figures: dict) -> None:
    a = profile()
    frame = analysis.bubbles(a)
    bars = {trace.name: np.asarray(trace.y) for trace in figures["light"]["bubbles"].data}
    np.testing.assert_allclose(bars["execute"], 100 * frame["execute"] / frame["makespan_ns"])
    np.testing.assert_allclose(sum(bars.values()), 100)
    total = frames.operators(a).set_index("op")["total_ns"]
    for trace in figures["light"]["durations"].data:
        for name, x in zip(trace.y, trace.x, strict=True):
            assert x == pytest.approx(total[name] / 1e3)
    assert {trace.name for trace in figures["light"]["durations"].data} == {"embedding", "linear", "attention"}


def test_the_roof_bends_at_the_knee(figures: dict) -> None:
    roof = next(trace for trace in figures["auto"]["roofline"].data if trace.name == "roof")
    for x, y in zip(roof.x, roof.y, strict=True):
        assert y == pytest.approx(min(3.0 * x, 500))


def test_a_wrong_frame_or_theme_is_told() -> None:
    with pytest.raises(ProfileError, match="lacks intensity"):
        plots.roofline(analysis.bounds(profile()))
    with pytest.raises(ProfileError, match="did you mean 'dark'"):
        plots.bounds(analysis.bounds(profile()), theme="darc")
    with pytest.raises(ProfileError, match="at least one schedule"):
        plots.schedules({})


def test_kinds_keep_their_colours() -> None:
    assert plots.kind_colours(["linear", "mine", "attention", "yours"]) == [
        0,
        len(plots.KINDS),
        1,
        len(plots.KINDS) + 1,
    ]
    assert len(plots.PALETTE["light"]) == len(plots.PALETTE["dark"]) == len(plots.KINDS)
    assert set(plots.CLASSES) == set(analysis.idle.NAMES) and plots.IDLE < set(plots.CLASSES)


def test_empty_frames_draw_empty_figures() -> None:
    empty = profile()
    for make_figure, frame in (
        (plots.utilisation, analysis.utilisation(empty)), (plots.bubbles, analysis.bubbles(empty)),
        (plots.handoff, analysis.handoff(empty)),
        (plots.durations, frames.operators(empty)), (plots.imbalance, analysis.imbalance(empty)), (plots.bounds, analysis.bounds(empty)),
        (plots.roofline, analysis.roofline(empty)), (plots.compare, analysis.diff(empty, empty)),
    ):  # fmt: skip
        assert make_figure(frame.head(0)).layout.title.text


# How red, green and blue light reach eyes without one kind of cone: Machado, Oliveira and Fernandes 2009, severity 1.
VISION = {
    "all cones": np.eye(3),
    "no long": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no middle": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no short": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def lightness_and_hue(colours: list[str], vision: object) -> np.ndarray:
    """CIELAB coordinates of sRGB colours as such eyes see them."""
    part = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colours])
    light = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    seen = np.clip(light @ np.array(vision).T, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = (
        np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116) for t in (seen @ to_xyz.T / [0.9505, 1, 1.089]).T
    )
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize(("theme", "ground"), [("light", "#ffffff"), ("dark", "#15171b")])
def test_kinds_of_operators_can_be_told_apart_by_everyone(theme: str, ground: str, vision: str) -> None:
    at = lightness_and_hue([*plots.PALETTE[theme], ground], VISION[vision])
    apart = np.linalg.norm(at[:, None] - at[None], axis=2)[np.triu_indices(len(at), 1)]
    assert apart.min() >= 15, apart.min()
