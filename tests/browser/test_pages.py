"""The pages as a reader meets them: drawn, pointed at, zoomed, searched, walked by keyboard, in light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
import pytest
from lanes import LaneClock
from schedules import Op, Run, make
from synthetic import MadeTasks, make_spans, make_tasks

from mpklab import frames
from mpklab.frames import accuracy
from mpklab.widgets.operator_graph import graph_view
from mpklab.widgets.recording import profile_dag, profile_timeline
from mpklab.widgets.studio import Studio
from mpklab.widgets.task_dag import lay_out, read_tasks, task_dag
from mpklab.widgets.timeline import timeline

GUTTER = 84  # of the timeline: labels left of the rows


def cpu_ms(page: Any, move: Callable[[int], str], frames: int) -> float:
    """Milliseconds for a frame that the page's thread works, not those it is kept waiting by others: `mpklab bench view` is
    what measures frames as a reader sees them. `move(k)` is the script before frame k."""
    meter = page.context.new_cdp_session(page.page)
    meter.send("Performance.enable", {"timeDomain": "threadTicks"})

    def used() -> float:
        return next(m["value"] for m in meter.send("Performance.getMetrics")["metrics"] if m["name"] == "ThreadTime")

    page.run("mpk.frames.length = 0")
    begin = used()
    for k in range(frames):
        page.run(move(k))
        page.run("new Promise(requestAnimationFrame)")
    took = (used() - begin) * 1000 / frames
    assert page.run("mpk.frames.length") >= frames - 1
    meter.detach()
    return took


def middle_of_span(page: Any, phase: str = "execute") -> tuple[int, float, float]:
    """A span in the middle of the first row: its index and place in the window."""
    i = page.run(
        f"(() => {{ const s = mpk.spans, p = s.phase, r = s.rows[0]; const k = {list_of_phases(page)}.indexOf({phase!r});"
        " for (let i = r.lo + Math.floor((r.hi - r.lo) / 2); i < r.hi; i++) if (p[i] === k) return i; })()"
    )
    x, y = page.run(f"mpk.at({i})")
    box = page.box()
    return i, box["x"] + x, box["y"] + y


def list_of_phases(page: Any) -> str:
    return "['iteration','execute','wait','gather','fetch','signal','step','load','ring','load_wait','operand','push','pop']"


def test_timeline_is_drawn_and_tells_exact_times(show: Any) -> None:
    spans = make_spans(1500, workers=8, iterations=2)
    page = show(timeline(spans, title="eight workers", error_ns=32))
    share, colours = page.ink()
    assert share > 0.5 and colours >= 6
    i, x, y = middle_of_span(page)
    page.page.mouse.move(x, y)
    page.settle()
    told = page.page.locator(".mpk-tip").inner_text()
    task, begin, end = page.run(f"[mpk.spans.task[{i}], mpk.spans.begin[{i}], mpk.spans.end[{i}]]")
    row = spans[
        (spans["task"] == task) & (spans["phase"] == "execute") & (spans["begin_ns"] - spans["begin_ns"].min() == begin)
    ].iloc[0]
    assert f"task {task}" in told and str(row["op"]) in told
    assert f"took {row['dur_ns']:,} ns ± 32 ns" in told and f"to {int(end):,} ns" in told


def test_ctrl_wheel_zooms_at_the_cursor_and_plain_wheel_scrolls_the_page(show: Any) -> None:
    page = show(timeline(make_spans(1500, 8)), viewport={"width": 900, "height": 300})
    box = page.box()
    x, y = box["x"] + GUTTER + 400, box["y"] + 120
    at = "mpk.window[0] + (mpk.window[1] - mpk.window[0]) * 400 / (document.querySelector('canvas').clientWidth - 84 - 10)"
    before, window = page.run(at), page.run("mpk.window")
    page.page.mouse.move(x, y)
    page.page.keyboard.down("Control")
    page.page.mouse.wheel(0, -400)
    page.page.keyboard.up("Control")
    page.settle()
    after, zoomed = page.run(at), page.run("mpk.window")
    assert (zoomed[1] - zoomed[0]) < 0.6 * (window[1] - window[0])
    assert abs(after - before) < 0.01 * (window[1] - window[0])
    assert page.run("scrollY") == 0
    page.page.mouse.wheel(0, 150)
    page.wait("scrollY > 50")
    assert page.run("mpk.window") == zoomed
    page.page.mouse.wheel(0, -500)
    page.wait("scrollY === 0")
    page.page.mouse.move(x, y)
    page.page.mouse.down()
    page.page.mouse.move(x - 100, y, steps=4)
    page.page.mouse.up()
    page.settle()
    moved = page.run("mpk.window")
    assert moved[0] > zoomed[0] and abs((moved[1] - moved[0]) - (zoomed[1] - zoomed[0])) < 1


def test_a_click_selects_a_task_and_the_keyboard_walks(show: Any) -> None:
    page = show(timeline(make_spans(1500, 8)))
    i, x, y = middle_of_span(page)
    page.page.mouse.click(x, y)
    page.settle()
    task = page.run(f"mpk.spans.task[{i}]")
    assert page.run("[...mpk.selection.ids]") == [task]
    assert f"task {task}" in page.page.locator(".mpk-live").first.inner_text()
    page.page.locator("canvas").focus()
    page.page.keyboard.press("ArrowRight")
    page.page.keyboard.press("ArrowDown")
    page.page.keyboard.press("Enter")
    page.settle()
    chosen = page.run("[...mpk.selection.ids]")
    assert len(chosen) == 1 and chosen != [task]
    page.page.keyboard.press("Escape")
    page.settle()
    assert page.run("[...mpk.selection.ids]") == []
    page.page.keyboard.press("+")
    page.settle()
    assert page.run("mpk.window[1] - mpk.window[0]") < page.run("mpk.spans.end.reduce((a, b) => Math.max(a, b))")
    page.page.locator("details summary").first.click()
    page.wait("document.querySelectorAll('details tbody tr').length > 10")


def test_themes(show: Any) -> None:
    spans = make_spans(600, 4)
    grounds = {}
    for scheme in ("light", "dark"):
        page = show(timeline(spans), color_scheme=scheme)
        grounds[scheme] = page.run(
            "[...document.querySelector('canvas').getContext('2d').getImageData(2, 2, 1, 1).data].slice(0, 3)"
        )
        assert page.ink()[1] >= 6
    assert min(grounds["light"]) > 230 and max(grounds["dark"]) < 50
    page = show(timeline(spans), forced_colors="active")
    assert page.ink()[0] > 0.3
    page = show(timeline(spans), device_scale_factor=2, viewport={"width": 600, "height": 450})
    assert page.run("document.querySelector('canvas').width") == 2 * page.run(
        "document.querySelector('canvas').clientWidth"
    )
    assert page.run("document.documentElement.scrollWidth <= innerWidth")


def test_two_runs_stand_one_above_the_other(show: Any) -> None:
    a, b = make_spans(600, 4, seed=1), make_spans(600, 4, seed=2)
    page = show(timeline(a, b, names=("before", "after"), bounds={"bytes": 1e5}))
    assert page.run("mpk.spans.bands.length") == 8 and page.run("mpk.spans.n") == len(a[a["phase"] != "iteration"]) * 2


def test_each_run_has_its_own_marks_among_its_own_rows(show: Any) -> None:
    a, b = make_spans(600, 4, 2, seed=1), make_spans(900, 4, 3, seed=2)
    page = show(timeline(a, b, names=("before", "after"), bounds={"bytes": 4e4}, other_bounds={"path": 3e5}))
    assert "bytes 40 µs" in page.page.inner_text(".mpk-legend") and "after: path 300 µs" in page.page.inner_text(
        ".mpk-legend"
    )
    drawn = page.run(
        """(() => {
          const texts = [], lines = [], to = CanvasRenderingContext2D.prototype, { fillText, moveTo, lineTo } = to;
          let from = null;
          to.fillText = function (text, x, y, ...more) { texts.push([text, y]); fillText.call(this, text, x, y, ...more); };
          to.moveTo = function (x, y) { from = [x, y]; moveTo.call(this, x, y); };
          to.lineTo = function (x, y) {
            if (from?.[0] === x && y - from[1] > 40) lines.push([x, from[1], y, this.getLineDash().length]);
            lineTo.call(this, x, y);
          };
          mpk.draw();
          Object.assign(to, { fillText, moveTo, lineTo });
          const rows = [0, 3, 4, 7].map((b) => mpk.at(mpk.spans.bands[b].lanes[0].rows[0].lo)[1]);
          const [t0, t1] = mpk.window, box = document.querySelector("canvas");
          return { texts, lines, rows, perNs: (box.clientWidth - 94) / (t1 - t0) };
        })()"""
    )
    first, last, other_first, other_last = drawn["rows"]
    for frame, begin, end, bound in ((a, first, last, 4e4), (b, other_first, other_last, 3e5)):
        own = [line for line in drawn["lines"] if line[1] < begin and end < line[2]]
        apart = [line for line in drawn["lines"] if line[2] <= begin or end <= line[1]]
        assert len(own) + len(apart) == len(drawn["lines"])  # none goes through the rows of both
        marks = frame[frame["phase"] == "iteration"].groupby("iteration")["begin_ns"].min() - frame["begin_ns"].min()
        wanted = sorted(
            [*((round(84 + t * drawn["perNs"]), 0) for t in marks), (round(84 + bound * drawn["perNs"]), 2)]
        )
        assert sorted((round(x - 0.5), dash) for x, _, _, dash in own) == wanted
    said = dict(drawn["texts"])
    assert said["bytes 40 µs"] < first and last < said["path 300 µs"] < other_first
    heights = [y for text, y in drawn["texts"] if text == "iteration 1"]
    assert len(heights) == 2 and heights[0] < first and last < heights[1] < other_first


@pytest.mark.parametrize("tasks", [20_000, 200_000])
def test_frames_come_in_time(show: Any, tasks: int) -> None:
    """About five spans a task: 10^5 and 10^6 of them."""
    page = show(timeline(make_spans(tasks, 132, max(1, tasks // 25_000))))
    for share in (1.0, 0.25, 0.03):

        def move(k: int, share: float = share) -> str:
            begin = (1 - share) * k / 12
            return f"(() => {{ const all = mpk.spans.end.at(-1); mpk.show(all * {begin}, all * {begin + share}); }})()"

        took = cpu_ms(page, move, 12)
        print(f"{page.run('mpk.spans.n'):,} spans, {share:.0%} in view: {took:.1f} ms a frame")
        assert took <= 50


def test_task_graph_is_laid_out_as_python_says(show: Any) -> None:
    tasks = make_tasks(5, 20)
    page = show(task_dag(tasks))
    box = page.box(".mpk-canvas")
    layout = lay_out(
        read_tasks(tasks),
        page.run(
            "document.querySelector('.mpk-canvas').clientWidth / document.querySelector('.mpk-canvas').clientHeight"
        ),
    )
    boxes = page.run("mpk.layout.boxes.map((b) => [b.x, b.y, b.w, b.h])")
    np.testing.assert_array_equal(boxes, layout.boxes)
    assert [page.run("mpk.layout.width"), page.run("mpk.layout.height")] == [layout.width, layout.height]
    assert box["height"] > 300 and page.ink()[1] >= 5


def test_task_graph_selects_searches_and_folds(show: Any) -> None:
    tasks = make_tasks(5, 20)
    page = show(task_dag(tasks, paths={"critical path": [0, 25, 45]}))
    box = page.box()
    x, y, w, h = page.run("mpk.rectOf(130).slice(0, 4)")
    page.page.mouse.click(box["x"] + x + w / 2, box["y"] + y + h / 2)
    page.settle()
    assert page.run("[...mpk.selection.ids]") == [130]
    assert "layer0.down_proj[10]" in page.page.locator(".mpk-live").inner_text()
    assert page.page.locator(".mpk-tip").is_visible()
    page.page.locator("canvas").focus()
    page.page.keyboard.press("ArrowUp")
    page.page.keyboard.press("Enter")
    page.settle()
    producer = page.run("[...mpk.selection.ids]")[0]
    assert 100 <= producer < 120  # one of gate_up_proj's tiles
    page.page.get_by_label("Search tasks").fill("op:attention layer:3")
    page.settle()
    assert "40 found" in page.page.locator(".mpk-bar").inner_text()
    page.page.keyboard.press("Enter")
    page.settle()
    assert page.run("mpk.selection.ids.size") == 40
    page.page.get_by_label("Search tasks").fill("colour:red")
    assert "colour:red" in page.page.locator(".mpk-bar").inner_text()
    page.page.get_by_label("Search tasks").fill("")
    before = page.run("mpk.layout.height * mpk.layout.width")
    page.page.get_by_role("button", name="Fold layers").click()
    page.settle()
    assert page.run("mpk.layout.height * mpk.layout.width") < before
    x, y, w, h = page.run("mpk.rectOf(130).slice(0, 4)")
    page.page.mouse.dblclick(box["x"] + x + w / 2, box["y"] + y + h / 2)
    page.settle()
    assert not page.run("mpk.rectOf(130)[4]")
    page.page.get_by_role("button", name="critical path").click()
    page.settle()
    page.page.get_by_label("colour by").select_option("bytes")
    page.settle()
    assert page.ink()[0] > 0.1


def red_pixels(page: Any) -> int:
    return page.run(
        """(() => { const c = document.querySelector("canvas"), d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        let n = 0; for (let i = 0; i < d.length; i += 4) if (d[i] > 180 && d[i + 1] < 70 && d[i + 2] < 70) n++; return n; })()"""
    )


def test_a_missing_edge_is_drawn_in_red(show: Any) -> None:
    page = show(task_dag(make_tasks(2, 8), missing=[(3, 40, "nothing orders these two")]))
    assert red_pixels(page) > 20
    assert "✗ nothing orders these two" in page.page.locator(".mpk-state").inner_text()


def test_large_task_graphs_move_in_time(show: Any) -> None:
    page = show(task_dag(make_tasks(126, 132)))
    for factor in (1, 3, 4):
        page.run(f"mpk.zoom({factor})")
        took = cpu_ms(page, lambda k: f"mpk.pan({5 if k % 2 else -7}, 2)", 10)
        print(f"{page.run('mpk.model.n'):,} tasks at {page.run('mpk.scale'):.1f} pixels a task: {took:.1f} ms a frame")
        assert took <= 50


def test_operator_graph_selects_all_tiles_of_an_operator(show: Any) -> None:
    from mpklab import models

    graph = models.decode_graph(models.named("tiny"))
    first = np.arange(len(graph.operators) + 1) * 3
    page = show(graph_view(graph, first=first))
    page.page.locator("[data-box='1']").click()
    page.settle()
    ops = page.run("mpk.boxes[1].ops")
    assert page.run("mpk.selection.ids.size") == 3 * len(ops) and len(ops) > 1
    page.page.locator("details summary").first.click()
    assert "one tile" in page.page.locator("pre").inner_text()
    page.page.get_by_text("Table of the operators").click()
    assert page.page.locator("tbody tr").count() == page.run("mpk.boxes.length")
    assert page.page.locator("tbody tr[aria-selected='true']").count() == 1
    page.page.locator("svg[role=application]").focus()
    page.page.keyboard.press("ArrowDown")
    page.page.keyboard.press("Enter")
    page.settle()
    assert page.run("mpk.selectedBoxes().size") == 1


def test_studio_shares_one_selection(show: Any) -> None:
    tasks, spans = make_tasks(4, 8), make_spans(27 * 8, 8, 1)
    page = show(
        Studio(spans=spans, tasks=tasks, title="linked", notes=["Simulated."]), viewport={"width": 1300, "height": 1600}
    )
    page.page.locator("[data-task='17']").click()
    page.settle()
    for part in ("timeline", "dag", "table", "graph"):
        assert page.run(f"[...mpk.{part}.selection.ids]") == [17], part
    assert page.run("[...mpk.graph.selectedBoxes()].map((k) => mpk.graph.boxes[k].name)") == ["attention"]
    assert "1 task selected" in page.page.locator("main").inner_text()
    page.page.locator("[data-box='0']").click()
    page.settle()
    assert page.run("mpk.selection.ids.size") == 8
    assert page.page.locator("tr[aria-selected='true']").count() > 0
    page.page.get_by_role("button", name="Selected only").click()
    page.settle()
    assert page.run("mpk.table.rows().length") == 8
    page.page.get_by_role("button", name="Clear selection").click()
    page.settle()
    assert page.run("mpk.selection.ids.size") == 0
    page.page.get_by_role("button", name="worker", exact=True).click()
    page.settle()
    assert page.page.locator("th[aria-sort='descending']").inner_text() == "worker"


def test_rows_that_stay_in_view_are_not_touched(show: Any) -> None:
    """Else a click would be lost on a row that is drawn anew between press and release."""
    page = show(Studio(spans=make_spans(216, 8, 1), tasks=make_tasks(4, 8)), viewport={"width": 1300, "height": 1600})
    rows = "[...document.querySelectorAll('[data-task]')].map((row) => Number(row.dataset.task))"
    drawn = set(page.run(rows))
    for top in (600, 480, 720, 3000, 2700, 0):
        page.run("document.querySelectorAll('[data-task]').forEach((row) => row.kept = true)")
        page.run(f"(mpk.table.scroll.scrollTop = {top}, 0)")
        page.settle()
        before, drawn = drawn, set(page.run(rows))
        assert page.run(rows) == list(range(min(drawn), max(drawn) + 1)) and top // 22 + 10 in drawn
        kept = page.run(rows.replace(".map", ".filter((row) => row.kept).map"))
        assert set(kept) == before & drawn, top


def test_the_parts_go_by_the_studios_own_width(show: Any) -> None:
    studio = Studio(spans=make_spans(216, 8, 1), tasks=make_tasks(4, 8))
    for width, beside in ((1300, True), (700, False)):  # of the place it is given, in a window that stays wide
        page = show(studio, viewport={"width": 1600, "height": 1200})
        page.run(f"document.querySelector('main').style.width = '{width}px'")
        page.settle()
        tops = page.run(
            "['graph', 'dag'].map((p) => Math.round(document.querySelector('.mpk-part-' + p).getBoundingClientRect().top))"
        )
        assert (tops[0] == tops[1]) == beside, width


def test_names_stay_text(show: Any) -> None:
    nasty = "<img src=x onerror=alert(1)></script><script>alert(2)</script>\"'\u2028\n" + "y" * 10_000
    tasks, spans = make_tasks(1, 4, names=nasty), make_spans(36, 4, 1)
    spans["op"] = spans["op"].cat.rename_categories(lambda name: nasty + name)
    page = show(Studio(spans=spans, tasks=tasks, title=nasty, notes=[nasty]))
    assert page.run("document.querySelectorAll('main img, main script').length") == 0
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert "<img src=x onerror=alert(1)>" in page.page.locator("h1").first.inner_text()
    page = show(
        task_dag(tasks, title=nasty, missing=[(0, 5, nasty)], notes=[nasty], paths={nasty: [0, 5]}),
    )
    page.run(
        f"mpk.setState({{stages: [[{nasty!r}, 1, {nasty!r}]], faults: [{{before: 0, after: 1, text: {nasty!r}}}]}})"
    )
    page.page.locator("canvas").focus()
    for key in ("ArrowRight", "Enter"):
        page.page.keyboard.press(key)
    page.page.locator("summary").click()
    page.settle()
    assert page.run("document.querySelectorAll('main img, main script').length") == 0
    assert "<img src=x" in page.page.locator(".mpk-live").inner_text()
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    several = timeline(
        spans,
        spans,
        names=(nasty, "other"),
        bounds={nasty: 9e3},
        notes=[nasty],
        classes={nasty: ["a"] * 2 * len(spans)},
    )
    page = show(several)
    assert page.run("document.querySelectorAll('main img, main script').length") == 0
    assert page.run("document.documentElement.scrollWidth <= innerWidth")


def test_narrow_windows_do_not_overflow(show: Any) -> None:
    page = show(Studio(spans=make_spans(200, 4), tasks=make_tasks(2, 4)), viewport={"width": 380, "height": 700})
    assert page.run("document.documentElement.scrollWidth") <= 380
    assert math.isclose(page.run("document.querySelector('canvas').clientWidth"), 362, abs_tol=8)


# ---- what is missing, and why


def small_run(queues: int = 2, **options: Any) -> Any:
    """A recording of six tasks an iteration; the last iteration holds as many of its queues as are asked for."""
    ops = [Op("a", 2), Op("b", 3, ("a",), layer=0), Op("c", 1, ("b",), kind="attention", layer=1)]
    last = [Run("c", 0, 300)], [Run("b", 2, 500)]
    whole = [[Run("a", w, 900, fetch=50), Run("b", w, 700, gather=70), *last[w]] for w in range(2)]
    short = [[Run("a", w, 900, fetch=50), *([Run("b", 1, 700)] if w else [])] for w in range(2)]
    return make(ops, [whole, whole if queues == 2 else short], **options)


def empty_tasks() -> MadeTasks:
    return MadeTasks((), np.zeros(1, int), np.zeros((0, 4), int), np.zeros(0), np.zeros(0), ())


def one_task() -> MadeTasks:
    tasks = make_tasks(1, 1)
    return MadeTasks(tasks.operators[:1], np.array([0, 1]), tasks.tile[:1], tasks.bytes[:1], tasks.flops[:1], ())


# What is shown, the sentence that says what is missing, and which share of the picture and how many colours are there.
STRANGE: dict[str, tuple[Any, str, tuple[float, float], int]] = {
    "empty": (lambda: task_dag(empty_tasks()), "No tasks: the graph is empty", (0.0005, 0.1), 1),
    "one task": (lambda: task_dag(one_task()), "task graph: 1 task of 1 operator", (0.002, 0.6), 3),
    "nothing recorded": (lambda: timeline(make_spans(60, 3, 1).head(0)), "nothing was recorded", (0.0005, 0.2), 1),
    "dropped": (
        lambda: profile_timeline(small_run(capacity=12)), "56 records had no room, because a lane keeps the first 12", (0.2, 0.95), 5,
    ),
    "failed": (
        lambda: profile_timeline(small_run(1)), "stops after 3 of 6 tasks: the run failed or was interrupted", (0.2, 0.95), 5,
    ),
    "a failed run's graph": (lambda: profile_dag(small_run(1)), "the run failed or was interrupted", (0.01, 0.6), 4),
    "a million tasks": (lambda: task_dag(make_tasks(170, 1000)), "so the layers are folded", (0.05, 0.95), 4),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_missing_is_said_and_the_rest_is_drawn(show: Any, name: str) -> None:
    made, sentence, (least, most), palette = STRANGE[name]
    view = made()
    page = show(view, viewport={"width": 900, "height": 700})
    told = page.page.locator("main").inner_text() + repr(view)
    assert sentence in told, told
    share, colours = page.ink()
    assert least < share < most and colours >= palette, (share, colours)


def test_a_missing_edge_and_progress_are_told_while_they_happen(show: Any) -> None:
    page = show(task_dag(make_tasks(2, 8)))
    page.run(
        "mpk.setState({stages: [['tasks', 0.1234, '<b>']], iteration: 3, of: 8, "
        "faults: [{before: 3, after: 40, text: 'race: <b>nothing</b> orders them'}]})"
    )
    page.settle()
    told = page.page.locator(".mpk-state").inner_text()
    assert "✓ tasks 0.123 s" in told and "iteration 3 of 8" in told and "✗ race: <b>nothing</b> orders them" in told
    assert page.page.locator("progress").get_attribute("value") == "3"
    assert red_pixels(page) > 20
    page.run("mpk.setState({})")
    page.settle()
    assert page.page.locator(".mpk-state").is_hidden() and red_pixels(page) == 0


# ---- two runs, several devices, the source


def test_two_runs_are_told_apart_by_how_long_work_took(show: Any) -> None:
    a = make_spans(600, 4, seed=1)
    b = a.copy()
    slower = np.asarray((b["phase"] == "execute") & (b["kind"] == "attention"))
    b.loc[slower, "end_ns"] += b.loc[slower, "dur_ns"]
    b[["begin_ns", "end_ns"]] += 10**12  # another day: every run has a zero of its own
    page = show(timeline(a, b, names=("before", "after"), color="difference"))
    assert page.run("mpk.spans.end.reduce((x, y) => Math.max(x, y))") < 10**9
    keys = page.page.locator(".mpk-key").all_inner_texts()
    assert {"the same ± 5 %", "more than 1.5 times", "less than 1/1.5"} <= set(keys)
    page.page.get_by_role("button", name="more than 1.5 times").click()
    page.settle()
    assert page.page.locator(".mpk-key[aria-pressed='true']").all_inner_texts() == ["more than 1.5 times"]


def test_devices_share_one_clock_and_one_page(show: Any) -> None:
    spans = pd.concat([make_spans(300, 3, rank=rank, seed=rank) for rank in range(3)], ignore_index=True)
    spans.loc[spans["rank"] == 2, ["begin_ns", "end_ns"]] += 5000
    page = show(timeline(spans))
    assert page.run("mpk.spans.bands.map((b) => b.group)") == [0] * 3 + [1] * 3 + [2] * 3
    late = page.run("mpk.spans.begin[mpk.spans.bands[6].lanes[0].rows[0].lo]")
    assert late >= 5000


def test_ready_tasks_and_error_bars_are_drawn(show: Any) -> None:
    profile = small_run(latency=200)
    view = profile_timeline(profile, error_ns=40)
    assert view.lanes.columns["ready"].values.max() >= 70  # at least what gathering takes
    page = show(view)
    i, x, y = middle_of_span(page)
    page.page.mouse.move(x, y)
    page.settle()
    assert "± 40 ns" in page.page.locator(".mpk-tip").inner_text()
    assert "before it began" in page.page.locator(".mpk-tip").inner_text() or page.run(f"mpk.spans.ready[{i}]") == 0


def test_the_source_follows_and_leads(show: Any) -> None:
    page = show(Studio(small_run()), viewport={"width": 1300, "height": 1500})
    page.page.locator("[data-task='5']").click()
    page.settle()
    assert page.run("mpk.source.file").startswith("attention.")
    assert "compute" in [what for _, _, what in page.run("mpk.source.marks()")]
    first, last, _ = next(mark for mark in page.run("mpk.source.marks()") if mark[2] == "compute")
    assert page.page.locator(".mpk-marked").count() >= last - first + 1
    page.page.locator("[data-task='0']").click()
    page.page.locator(f".mpk-source [data-line='{page.run('mpk.source.marks()')[0][0]}']").click()
    page.settle()
    assert page.run("[...mpk.selection.ids]") == [0, 1, 2, 3, 4]  # every task of a linear


# ---- access


def violations(page: Any) -> list[str]:
    """What axe-core finds on a page as it stands."""
    from importlib.resources import files

    page.run((files("axe_playwright_python") / "axe.min.js").read_text())
    found = page.run("axe.run()")
    return [f"{v['id']}: {node['html'][:200]}" for v in found["violations"] for node in v["nodes"]]


@pytest.mark.skipif(find_spec("axe_playwright_python") is None, reason="needs the Python package axe-playwright-python")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(show: Any, scheme: str) -> None:
    from mpklab import models

    graph = models.decode_graph(models.named("tiny"))
    views = {
        "timeline": profile_timeline(small_run(1)),
        "dag": task_dag(
            make_tasks(2, 8), missing=[(3, 40, "nothing orders these two")], paths={"critical path": [0, 9]}
        ),
        "graph": graph_view(graph, first=np.arange(len(graph.operators) + 1) * 3),
        "studio": Studio(small_run()),
    }
    for name, view in views.items():
        page = show(view, color_scheme=scheme)
        assert violations(page) == [], name
        page.run("(mpk.selection ?? mpk.dag.selection).set([1])")
        for summary in page.page.locator("summary:visible").all():
            summary.click()
        page.settle()
        assert violations(page) == [], f"{name}, with a selection and its tables open"


def test_everything_can_be_read_and_left_by_keyboard(show: Any) -> None:
    page = show(Studio(small_run()), viewport={"width": 1300, "height": 1500})
    reached = set()
    for _ in range(60):
        page.page.keyboard.press("Tab")
        reached.add(page.run("document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"))
    for part in ("Timeline of", "Task graph of", "Operator graph of", "Table of", "Lines of the source"):
        assert any(name.startswith(part) for name in reached), (part, reached)
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.page.locator(".mpk-part-dag canvas").focus()
    page.page.keyboard.press("ArrowRight")
    page.page.keyboard.press("ArrowDown")
    page.page.keyboard.press("Enter")
    page.settle()
    (task,) = page.run("[...mpk.selection.ids]")
    assert f"task {task}" in page.page.locator(".mpk-part-dag .mpk-live").inner_text()
    assert page.page.locator(".mpk-part-dag .mpk-live").get_attribute("aria-live") == "polite"
    page.page.keyboard.press("f")
    page.settle()
    assert "is folded" in page.page.locator(".mpk-part-dag .mpk-live").inner_text()
    page.page.keyboard.press("Escape")
    assert page.run("mpk.selection.ids.size") == 0


def test_two_hundred_per_cent_and_no_motion(show: Any) -> None:
    page = show(
        Studio(small_run()), viewport={"width": 640, "height": 450}, device_scale_factor=2, reduced_motion="reduce"
    )
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.run("document.getAnimations().length") == 0
    assert page.run(
        "[...document.querySelectorAll('.mpk *')].every((e) => getComputedStyle(e).transitionDuration === '0s')"
    )


def test_forced_colours_keep_shapes_apart(show: Any) -> None:
    """With the reader's own colours waiting is still told from work by its height, and the legend can be pressed."""
    page = show(profile_timeline(small_run(latency=400)), forced_colors="active")
    share, colours = page.ink()
    assert share > 0.1 and colours >= 3
    page.page.locator(".mpk-key").first.click()
    page.settle()
    assert page.page.locator(".mpk-key[aria-pressed='true']").count() == 1


def test_each_lane_tells_how_far_its_own_clock_may_be_off(show: Any) -> None:
    ops = [Op("a", tiles=2)]
    queues = [[[Run("a", 0, 900 + 7 * i)], [Run("a", 1, 400)]] for i in range(5)]
    rates = {0: LaneClock(0, 1.0, tick_ns=1), 1: LaneClock(1000, 1.7, tick_ns=200)}
    profile = make(ops, queues, clocks=rates)
    page, spans = show(profile_timeline(profile)), frames.spans(profile)
    told = page.run("mpk.spans.bands.flatMap((b) => b.lanes[0].rows.map((r) => [b.worker, r.error, r.least, r.walk]))")
    bars = accuracy.per_lane(profile)
    assert {row[0] for row in told} == {0, 1}
    for worker, *stated in told:
        assert stated == pytest.approx(bars[worker * profile.lanes_per_worker], rel=1e-6)
    i, x, y = middle_of_span(page)
    page.page.mouse.move(x, y)
    page.settle()
    worker, begin = page.run(
        f"((row) => [row.lane.band.worker, mpk.spans.begin[{i}]])(mpk.spans.rows.find((r) => r.lo <= {i} && {i} < r.hi))"
    )
    since = spans["begin_ns"] - spans["begin_ns"].min()
    span = spans[(spans["worker"] == worker) & (since == begin) & (spans["phase"] == "execute")].iloc[0]
    far = bars[worker * profile.lanes_per_worker, 0]
    said = page.page.locator(".mpk-tip").inner_text()
    assert f"took {span['dur_ns']:,} ns ± {max(1, round(span['error_ns'])):,} ns" in said
    assert f"to {begin + span['dur_ns']:,.0f} ns ± {max(1, round(far)):,} ns" in said
