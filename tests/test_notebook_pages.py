"""`make pages`: a notebook executed as a page that asks nothing of a network and keeps its views alive."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
missing = [name for name in ("nbclient", "nbconvert", "ipykernel", "plotly") if find_spec(name) is None]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    out = tmp_path_factory.mktemp("pages")
    command = [sys.executable, str(ROOT / "tools" / "make_pages.py"), "04_inside_the_kernel", "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_a_page_needs_no_network_and_shows_its_views(pages: Path) -> None:
    text = (pages / "04_inside_the_kernel.html").read_text()
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']?https?:", text)
    assert re.findall(r"<script[^>]+src=\"([^\"]*)\"", text) == ["plotly.min.js"]
    assert text.count("<iframe") == 1 and "Content-Security-Policy" in text and 'sandbox="allow-scripts"' in text
    assert "Plotly.newPlot" in text and (pages / "plotly.min.js").stat().st_size > 1_000_000
    assert "not answered yet" in text and re.search(r"prompt\">In.{1,6}\[1\]", text)


def test_the_index_leads_to_all_of_them(pages: Path) -> None:
    text = (pages / "index.html").read_text()
    for book in (ROOT / "notebooks").glob("*.ipynb"):
        assert f'href="{book.stem}.html"' in text
    assert 'href="glossary.html"' in text and "half-open" not in text
    assert "operand waits" in (pages / "glossary.html").read_text()


def test_the_readme_s_pictures_are_small() -> None:
    found = {path.name: path.stat().st_size for path in (ROOT / "notebooks" / "pictures").glob("*.png")}
    assert set(found) == {"studio.png", "operator_graph.png"}
    assert max(found.values()) <= 300_000
