"""A browser for the pages, and what every test of one watches: the console, dialogs, requests, and a picture kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpklab.bench import _browser

HERE = Path(__file__).parent
PATIENCE_S = 120  # a busy machine; what is waited for takes a moment


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = _browser.why_no_browser()
    for item in items:
        if reason and HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    with _browser.chromium() as browser:
        yield browser


class Shown:
    """A page open in the browser, with helpers; it fails the test on any console error, dialog or network request."""

    def __init__(self, browser: Any, path: Path, **options: Any):
        self.faults: list[str] = []
        self.context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        self.page = self.context.new_page()
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda e: self.faults.append(str(e)))
        self.page.on("dialog", lambda d: (self.faults.append(f"dialog {d.message}"), d.dismiss()))
        self.page.on("request", lambda r: self.faults.append(r.url) if r.url.startswith(("http", "ws")) else None)
        self.page.set_default_timeout(1000 * PATIENCE_S)
        self.page.goto(path.as_uri())
        # Not wait_for_function: it evaluates strings in the page, which the page's own policy forbids.
        # Until the view is made, `mpk` is the element of that name.
        self.wait("!(mpk instanceof Element) && (!mpk.frames || mpk.frames.length > 0)")
        self.settle()

    def _hear(self, message: Any) -> None:
        # Reading the canvas back is the tests' doing; the pages never do.
        if message.type in ("error", "warning") and "willReadFrequently" not in message.text:
            self.faults.append(message.text)

    def run(self, script: str) -> Any:
        return self.page.evaluate(script)

    def wait(self, condition: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not self.run(condition):
            assert time.monotonic() < end, f"{condition} did not come true: {self.faults}"
            self.page.wait_for_timeout(10)

    def settle(self) -> None:
        """Two frames: what was asked for is drawn."""
        self.run(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 30))))"
        )

    def box(self, selector: str = "canvas") -> dict[str, float]:
        found = self.page.locator(selector).first.bounding_box()
        assert found is not None
        return found

    def ink(self, selector: str = "canvas") -> tuple[float, int]:
        """Share of pixels that are not the background, and how many colours fill more than 1 in 2,000 pixels."""
        share, colours = self.page.evaluate(
            """(selector) => {
              const c = document.querySelector(selector), d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
              const words = new Uint32Array(d.buffer), seen = new Map();
              for (const w of words) seen.set(w, (seen.get(w) ?? 0) + 1);
              const most = words.length, ground = seen.get(words[2 * c.width + 2]);
              return [1 - ground / most, [...seen.values()].filter((n) => n > most / 2000).length];
            }""",
            selector,
        )
        return share, colours

    def close(self) -> None:
        self.context.close()
        assert not self.faults, self.faults


@pytest.fixture
def show(chromium: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """`show(view, **browser options)` opens its page; a screenshot is kept where MPKLAB_SHOTS says."""
    import os

    opened: list[Shown] = []

    def open_page(view: Any, **options: Any) -> Shown:
        path = tmp_path / f"page{len(opened)}.html"
        view.to_html(path)
        opened.append(Shown(chromium, path, **options))
        return opened[-1]

    yield open_page
    folder = os.environ.get("MPKLAB_SHOTS")
    for number, shown in enumerate(opened):
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            shown.page.screenshot(path=Path(folder) / f"{request.node.name}-{number}.png", full_page=True)
        shown.close()
