"""A browser and a JupyterLab of one's own, for what is measured and tested as a reader meets it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mpklab.errors import EnvError

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
).split()
ROOT = Path(__file__).resolve().parents[2]


def why_no_browser() -> str | None:
    """What keeps a browser from being driven here, or None."""
    if find_spec("playwright") is None:
        return "needs the Python package playwright"
    return None if shutil.which("chromium") else "needs chromium (Debian: apt install chromium)"


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's Chromium through Playwright, without a network of its own; EnvError where there is none."""
    missing = why_no_browser()
    if missing:
        raise EnvError(f"a browser cannot be started: {missing}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Lab:
    """A JupyterLab server of its own with notebooks in `folder`, without a token, on the loopback address only."""

    def __init__(self, folder: Path, python_path: tuple[Path, ...] = ()):
        self.folder = folder
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        settings = folder / "settings"
        (settings / "@jupyterlab" / "apputils-extension").mkdir(parents=True)
        (settings / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings").write_text(
            json.dumps({"fetchNews": "false", "checkForUpdates": False})
        )
        places = {
            name: str(folder / name.lower())
            for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTER_DATA_DIR")
        }
        places["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, *python_path)))
        with (folder / "lab.log").open("w") as log:
            self.process = subprocess.Popen(
                [
                    "env", *(f"{name}={value}" for name, value in places.items()),
                    sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={self.port}", "--allow-root",
                    "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={folder}",
                    f"--LabApp.user_settings_dir={settings}", "--LabApp.news_url=None",
                    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
                ],
                stdout=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip
        end = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api", timeout=1).read()
                return
            except OSError as error:
                if time.monotonic() > end or self.process.poll() is not None:
                    raise EnvError(f"JupyterLab did not start:\n{(folder / 'lab.log').read_text()[-2000:]}") from error
                time.sleep(0.2)

    def notebook(self, name: str, *sources: str) -> str:
        """The address of a notebook of these cells."""
        cells: list[dict[str, Any]] = [
            {"cell_type": "code", "id": f"c{k}", "metadata": {}, "source": source.strip(), "outputs": [], "execution_count": None}
            for k, source in enumerate(sources)
        ]  # fmt: skip
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        book = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
        (self.folder / name).write_text(json.dumps(book))
        return self.address(name)

    def address(self, name: str) -> str:
        """The address of a notebook in the folder."""
        return f"http://127.0.0.1:{self.port}/lab/tree/{name}?reset"

    def stop(self) -> None:
        """End the server."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def open_notebook(page: Any, address: str) -> None:
    """Wait until a notebook is there and its kernel has nothing to do."""
    page.goto(address)
    page.wait_for_selector(".jp-CodeCell .cm-content", timeout=60_000)
    page.wait_for_selector("text=/Python 3 .*Idle/", timeout=60_000)
