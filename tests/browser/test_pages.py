"""The pages as a reader meets them: drawn, pointed at, zoomed, searched, walked by keyboard, in light and dark."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
from synthetic import make_spans, make_tasks

from mpklab.widgets.operator_graph import graph_view
from mpklab.widgets.studio import Studio
from mpklab.widgets.task_dag import lay_out, read_tasks, task_dag
from mpklab.widgets.timeline import timeline

GUTTER = 84  # of the timeline: labels left of the rows


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
    page.page.wait_for_timeout(200)
    assert page.run("scrollY") > 50 and page.run("mpk.window") == zoomed
    page.page.mouse.wheel(0, -500)
    page.page.wait_for_timeout(200)
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
    page.page.wait_for_timeout(300)
    assert page.page.locator("details tbody tr").count() > 10


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


@pytest.mark.parametrize("tasks", [20_000, 200_000])
def test_frames_come_in_time(show: Any, tasks: int) -> None:
    """About five spans a task: 10^5 and 10^6 of them."""
    page = show(timeline(make_spans(tasks, 132, max(1, tasks // 25_000))))
    for share in (1.0, 0.25, 0.03):
        page.run("mpk.frames.length = 0")
        for k in range(12):
            page.run(
                f"(() => {{ const all = mpk.spans.end.at(-1), a = all * {(1 - share) * k / 12}; mpk.show(a, a + all * {share}); }})()"
            )
            page.run("new Promise(requestAnimationFrame)")
        took = statistics.median(page.run("mpk.frames"))
        print(
            f"{page.run('mpk.spans.n'):,} spans, {share:.0%} in view: {took:.1f} ms a frame, first ink after {page.ink_seconds:.2f} s"
        )
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


def test_a_missing_edge_is_drawn_in_red(show: Any) -> None:
    page = show(task_dag(make_tasks(2, 8), missing=[(3, 40, "nothing orders these two")]))
    assert (
        page.run(
            """(() => { const c = document.querySelector("canvas"), d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        let n = 0; for (let i = 0; i < d.length; i += 4) if (d[i] > 180 && d[i + 1] < 70 && d[i + 2] < 70) n++; return n; })()"""
        )
        > 20
    )


def test_large_task_graphs_move_in_time(show: Any) -> None:
    page = show(task_dag(make_tasks(126, 132)))
    for factor in (1, 3, 4):
        page.run(f"mpk.zoom({factor})")
        page.run("mpk.frames.length = 0")
        for k in range(10):
            page.run(f"mpk.pan({5 if k % 2 else -7}, 2)")
            page.run("new Promise(requestAnimationFrame)")
        took = statistics.median(page.run("mpk.frames"))
        print(f"{page.run('mpk.model.n'):,} tasks at {page.run('mpk.scale'):.1f} pixels a task: {took:.1f} ms a frame")
        assert took <= 50


def test_a_million_tasks_start_folded(show: Any) -> None:
    page = show(task_dag(make_tasks(170, 1000)))
    assert page.run("mpk.layout.boxes.every((b) => b.hidden)") and page.ink()[0] > 0.05


def test_operator_graph_selects_all_tiles_of_an_operator(show: Any) -> None:
    from mpklab import models

    graph = models.decode_graph(models.named("tiny"))
    first = np.arange(len(graph.operators) + 1) * 3
    page = show(graph_view(graph, first=first))
    page.page.locator("[data-box='1']").click()
    page.settle()
    ops = page.run("mpk.boxes[1].ops")
    assert page.run("mpk.selection.ids.size") == 3 * len(ops) and len(ops) > 1
    page.page.locator("details summary").click()
    assert "one tile" in page.page.locator("pre").inner_text()
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


def test_names_stay_text(show: Any) -> None:
    nasty = "<img src=x onerror=alert(1)></script><script>alert(2)</script>\"'\u2028\n" + "y" * 10_000
    tasks, spans = make_tasks(1, 4, names=nasty), make_spans(36, 4, 1)
    spans["op"] = spans["op"].cat.rename_categories(lambda name: nasty + name)
    page = show(Studio(spans=spans, tasks=tasks, title=nasty, notes=[nasty]))
    assert page.run("document.querySelectorAll('main img, main script').length") == 0
    assert "<img src=x onerror=alert(1)>" in page.page.locator("h1").first.inner_text()


def test_an_empty_recording_says_so(show: Any) -> None:
    page = show(timeline(make_spans(60, 3, 1).head(0)), viewport={"width": 800, "height": 400})
    share, _ = page.ink()
    assert 0 < share < 0.2


def test_narrow_windows_do_not_overflow(show: Any) -> None:
    page = show(Studio(spans=make_spans(200, 4), tasks=make_tasks(2, 4)), viewport={"width": 380, "height": 700})
    assert page.run("document.documentElement.scrollWidth") <= 380
    assert math.isclose(page.run("document.querySelector('canvas').clientWidth"), 362, abs_tol=8)
