"""The pictures as a reader meets them: layout, bytes sent, first ink in JupyterLab, and frames while panning and zooming."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mpklab import env, models, profile
from mpklab.bench._browser import Lab, chromium, open_notebook
from mpklab.bench._common import load_now, show, stamped, write_json
from mpklab.confidence import Interval
from mpklab.console import human_bytes
from mpklab.frames import spans as spans_of
from mpklab.machine import Machine
from mpklab.tasks import TaskGraph, lower
from mpklab.widgets.page import widget_module
from mpklab.widgets.task_dag import lay_out, read_tasks, task_dag
from mpklab.widgets.timeline import timeline
from mpklab.widgets.view import View

DAG_LAYERS = {"10^4": 16, "10^5": 152}  # of Qwen3-8B on an H200: a little more than that many tasks
ITERATIONS = {"10^5": 1, "10^6": 9}  # of the H200 recording of Qwen3-8B, its second one over and over
FIRST_INK_S, FRAME_MS, IN_VIEW = 1.0, 50.0, 20_000  # what is aimed at
# Counts from the key that runs the cell to the first frame in which a view's canvas holds more than its ground.
WATCH = """() => {
  window.inkAfter = null;
  document.addEventListener("keydown", function begun(event) {
    if (event.key !== "Enter") return;
    document.removeEventListener("keydown", begun, true);
    const start = performance.now();
    const look = () => {
      const canvas = document.querySelector(".mpk canvas[role=application]");
      if (canvas && canvas.width > 300) {
        const context = canvas.getContext("2d"), ground = context.getImageData(2, 2, 1, 1).data.join();
        const inked = [0.25, 0.4, 0.5, 0.6, 0.75].some((share) => {
          const words = new Uint32Array(context.getImageData(0, (canvas.height * share) | 0, canvas.width, 1).data.buffer);
          return words.some((word) => word !== words[0]);
        });
        if (ground !== "0,0,0,0" && inked) { window.inkAfter = performance.now() - start; return; }
      }
      requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  }, true);
}"""
# One step a frame; what counts is the time from one frame to the next, and beside it the time that drawing took.
MOVE = """async ([steps, kind]) => {
  const frame = () => new Promise(requestAnimationFrame), gaps = [];
  mpk.frames.length = 0;
  await frame();
  let before = performance.now();
  for (let k = 0; k < steps; k++) {
    window.move(k, kind);
    await frame();
    const now = performance.now();
    gaps.push(now - before);
    before = now;
  }
  await frame();
  return { gaps, draws: [...mpk.frames] };
}"""
END_KERNELS = """async () => {
  for (const s of await (await fetch("/api/sessions")).json()) await fetch("/api/sessions/" + s.id, { method: "DELETE" });
}"""
MOVE_TIMELINE = """() => {
  const all = mpk.spans.end.reduce((a, b) => Math.max(a, b), 0);
  window.move = (k, kind) => {
    const share = kind === "zoom" ? 0.93 ** k : kind === "all" ? 1 : 0.25;
    const from = kind === "zoom" ? 0.4 * (1 - share) : kind === "all" ? 0.01 * (k % 2) : (0.7 * k) / 40;
    mpk.show(from * all, (from + share) * all);
  };
}"""
MOVE_DAG = """() => {
  window.move = (k, kind) => {
    if (kind === "zoom") mpk.zoom(k < 20 ? 1.12 : 1 / 1.12);
    else mpk.pan(k % 2 ? 9 : -11, k % 3 ? 4 : -6);
  };
}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="runs of each cell in JupyterLab (default: %(default)s)")
    parser.add_argument("--recording", default="h200-qwen3-8b", help="whose spans are drawn (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample here")


def main(args: argparse.Namespace) -> int:
    """Prints the table; 0 whatever it says, for a slow machine is no fault of the pictures."""
    made, busy = stamped(), load_now()
    rows: list[Sequence[object]] = []
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        lab = Lab(Path(folder))
        try:
            for name, make, setup, cell in subjects(args.recording):
                found = results[name] = {**prepared(make), **frames(browser, make(), Path(folder))}
                found["ink_s"] = inks(browser, lab, setup, cell, args.rounds)
                rows.append(row(name, found))
        finally:
            lab.stop()
    headers = (
        "picture", "of", "layout ms", "view s", "sent", "cell to ink s [95 %]", "pan, all ms", "pan, part ms", "zoom ms",
        "drawing ms, most",
    )  # fmt: skip
    notes = [
        "cell to ink: in JupyterLab, from the key that runs the cell to the first frame with the picture; frames: time from one to "
        "the next while panning and zooming (16.7 at best), the 90th percentile in brackets; drawing: the slowest of these frames",
        f"part: a quarter of the time, or {IN_VIEW:,} tasks and more; aimed at: ink after {FIRST_INK_S} s, {FRAME_MS:.0f} ms a frame",
        f"load before {busy:.1f}",
    ]
    show("views", headers, rows, made, notes)
    write_json(args.json, made, results=results)
    return 0


def subjects(recording: str) -> list[tuple[str, Callable[[], View], str, str]]:
    """Name, how to make the view here, and the two cells that make it in a notebook."""
    found: list[tuple[str, Callable[[], View], str, str]] = []
    for name, layers in DAG_LAYERS.items():
        tasks = graph(layers)
        setup = f"from mpklab.bench.view import graph\nfrom mpklab.widgets.task_dag import task_dag\ntasks = graph({layers})"
        found.append((f"dag {name}", lambda tasks=tasks: task_dag(tasks), setup, "task_dag(tasks)"))  # type: ignore[misc]
    for name, count in ITERATIONS.items():
        spans = repeated(recording, count)
        setup = (
            "from mpklab.bench.view import repeated\nfrom mpklab.widgets.timeline import timeline\n"
            f"spans = repeated({recording!r}, {count})"
        )
        found.append((f"timeline {name}", lambda spans=spans: timeline(spans), setup, "timeline(spans)"))  # type: ignore[misc]
    return found


def graph(layers: int) -> TaskGraph:
    """The task graph of a decode step of Qwen3-8B with so many layers, as lowered for an H200."""
    return lower(
        models.decode_graph(replace(models.named("qwen3-8b"), layers=layers), context=1024), Machine.named("h200")
    )


def repeated(recording: str, count: int) -> Any:
    """The spans of a recording's last iteration, `count` times one after another, each worker a per cent faster or slower
    each time: what is the same twice would be sent for nothing."""
    import pandas as pd

    spans = spans_of(profile.Profile.load(env.profiles_folder() / f"{recording}.mpkprof"))
    last = spans[spans["iteration"] == spans["iteration"].max()]
    zero, worker = int(last["begin_ns"].min()), last["worker"].to_numpy(np.int64)
    length = int(1.02 * (last["end_ns"].max() - zero))
    rng = np.random.default_rng(0)
    copies = []
    for k in range(count):
        pace = rng.uniform(0.99, 1.01, int(worker.max()) + 1)[worker]
        times = {
            name: ((last[name].to_numpy() - zero) * pace).astype(np.int64) + k * length
            for name in ("begin_ns", "end_ns")
        }
        copies.append(last.assign(iteration=k, **times))
    joined = pd.concat(copies, ignore_index=True)
    return joined.assign(dur_ns=joined["end_ns"] - joined["begin_ns"])


def prepared(make: Callable[[], View]) -> dict[str, Any]:
    """What Python does before anything is sent: laying out (a graph), making the view with its bytes, and how many."""
    begin = time.perf_counter()
    view = make()
    data = view.data(level=1)
    seconds = time.perf_counter() - begin
    layout = 0.0
    if hasattr(view, "table"):
        table = read_tasks(view.table) if not hasattr(view.table, "names") else view.table
        layout = min(_timed(lambda: lay_out(table)) for _ in range(3))
        size = table.n
    else:
        size = len(view.lanes.begin)  # type: ignore[attr-defined]
    sent = len(data) + len(widget_module(view.module, view.mount))
    return {"size": size, "layout_s": layout, "view_s": seconds, "sent_bytes": sent}


def _timed(what: Callable[[], object]) -> float:
    begin = time.perf_counter()
    what()
    return time.perf_counter() - begin


def frames(browser: Any, view: View, folder: Path) -> dict[str, Any]:
    """Times between frames and times of drawing, in milliseconds, while a page's picture is panned and zoomed."""
    path = folder / "page.html"
    view.to_html(path)
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.goto(path.as_uri())
    while not page.evaluate("window.mpk?.frames?.length > 0"):
        page.wait_for_timeout(20)
    page.wait_for_timeout(1500)  # the curves of a timeline are worked out after the first picture
    is_dag = bool(page.evaluate("!!mpk.model"))
    page.evaluate(MOVE_DAG if is_dag else MOVE_TIMELINE)
    found: dict[str, Any] = {}
    for kind in ("all", "part", "zoom"):
        if is_dag and kind == "part":
            part = max(1.0, page.evaluate("mpk.model.n") / IN_VIEW)
            page.evaluate(f"mpk.zoom({part**0.5 * 0.98})")
            page.wait_for_timeout(100)
        if is_dag and kind == "zoom":
            page.evaluate("mpk.fit()")
            page.wait_for_timeout(100)
        found[kind] = page.evaluate(MOVE, [40, kind])
    context.close()
    path.unlink()
    return {"frames": found}


def inks(browser: Any, lab: Lab, setup: str, cell: str, rounds: int) -> list[float]:
    """Seconds from the key that runs a cell to ink, each in a notebook opened anew whose first cell has the data."""
    found = []
    for _ in range(rounds):
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        page = context.new_page()
        open_notebook(page, lab.notebook("ink.ipynb", setup + "\nprint('the data is there')", cell))
        page.locator(".jp-CodeCell .cm-content").first.click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_selector("text=/^the data is there/", timeout=120_000)
        page.wait_for_timeout(1000)
        page.locator(".jp-CodeCell .cm-content").nth(1).click()
        page.evaluate(WATCH)
        page.keyboard.press("Control+Enter")
        page.wait_for_function("window.inkAfter !== null", timeout=120_000)
        found.append(page.evaluate("window.inkAfter") / 1e3)
        # The kernel is ended here, so that the next round begins as a reader's first cell does.
        page.evaluate(END_KERNELS)
        context.close()
    return found


def row(name: str, found: dict[str, Any]) -> Sequence[object]:
    """One line of the table."""

    def moved(kind: str) -> str:
        gaps = found["frames"][kind]["gaps"]
        return f"{np.median(gaps):.1f} ({np.percentile(gaps, 90):.1f})"

    draws = [d for kind in found["frames"].values() for d in kind["draws"]]
    what = "tasks" if name.startswith("dag") else "spans"
    return (
        name, f"{found['size']:,} {what}", f"{found['layout_s'] * 1e3:.0f}" if found["layout_s"] else "", f"{found['view_s']:.2f}",
        human_bytes(found["sent_bytes"]), Interval.of(found["ink_s"]).text(2), moved("all"), moved("part"), moved("zoom"),
        f"{max(draws):.0f}",
    )  # fmt: skip
