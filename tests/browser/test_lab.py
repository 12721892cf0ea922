"""The widgets in a real JupyterLab: drawn where a cell ran, a click reaches Python, themes follow, a saved notebook still shows."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    find_spec("jupyterlab") is None or find_spec("anywidget") is None, reason="needs jupyterlab and anywidget"
)  # fmt: skip
CODE = """
import json, pathlib
from synthetic import make_spans, make_tasks
from mpklab.widgets.studio import Studio
view = Studio(spans=make_spans(27 * 8, 8, 1), tasks=make_tasks(4, 8), title="in a notebook")
view.on_select(lambda frame: pathlib.Path("chosen.json").write_text(json.dumps(frame["task"].tolist())))
view
"""


class Lab:
    """A server of its own, and notebooks in its folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        settings = folder / "settings"
        settings.mkdir()
        places = {
            name: str(folder / name.lower())
            for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTER_DATA_DIR")
        }
        env = {**os.environ, **places, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={self.port}", "--allow-root",
                "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={folder}",
                f"--LabApp.user_settings_dir={settings}", "--LabApp.news_url=None",
                "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
            ],
            env=env, stdout=subprocess.DEVNULL, stderr=(folder / "lab.log").open("w"),
        )  # fmt: skip
        end = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api", timeout=1).read()
                return
            except OSError:
                assert time.monotonic() < end and self.process.poll() is None, (folder / "lab.log").read_text()[-2000:]
                time.sleep(0.2)

    def notebook(self, name: str, code: str) -> str:
        cell = {
            "cell_type": "code",
            "id": "a",
            "metadata": {},
            "source": code.strip(),
            "outputs": [],
            "execution_count": None,
        }
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        (self.folder / name).write_text(
            json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
        )
        return f"http://127.0.0.1:{self.port}/lab/tree/{name}?reset"

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    server = Lab(tmp_path_factory.mktemp("lab"))
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


def run_all(page: Any, address: str) -> None:
    page.goto(address)
    page.wait_for_selector(".jp-CodeCell .cm-content", timeout=60_000)
    page.wait_for_selector("text=/Python 3 .*Idle/", timeout=60_000)
    page.locator(".jp-CodeCell .cm-content").first.click()
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".mpk canvas[role=application]", timeout=60_000)
    page.wait_for_timeout(800)


def inked(page: Any) -> float:
    return page.evaluate(
        """() => {
          const c = document.querySelector(".mpk canvas"), image = c.getContext("2d").getImageData(0, 0, c.width, c.height);
          const words = new Uint32Array(image.data.buffer);
          return words.filter((w) => w !== words[0]).length / words.length;
        }"""
    )


def test_a_click_in_the_notebook_reaches_python(lab: Lab, page: Any) -> None:
    run_all(page, lab.notebook("click.ipynb", CODE))
    assert inked(page) > 0.3
    chosen = lab.folder / "chosen.json"
    row = page.locator(".mpk [data-task='17']")
    row.scroll_into_view_if_needed()
    row.click()
    end = time.monotonic() + 10
    while not chosen.exists() and time.monotonic() < end:
        page.wait_for_timeout(50)
    assert json.loads(chosen.read_text()) == [17]
    assert "1 task selected" in page.locator(".mpk").first.inner_text()

    # Scrolling the notebook with the pointer over a canvas moves the notebook, and what was drawn is there afterwards.
    page.locator(".mpk canvas").first.scroll_into_view_if_needed()
    page.locator(".mpk canvas").first.hover()
    page.mouse.wheel(0, 900)
    page.wait_for_timeout(300)
    page.mouse.wheel(0, -2000)
    page.wait_for_timeout(300)
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
    page.goto(f"http://127.0.0.1:{lab.port}/lab/tree/copy.ipynb?reset")
    picture = page.wait_for_selector(".jp-OutputArea-output img", timeout=60_000)
    assert picture is not None and picture.evaluate("(img) => img.complete && img.naturalWidth") == 900
    assert "in a notebook" in page.locator(".jp-OutputArea-output").first.inner_text()
