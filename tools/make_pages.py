"""Executes the notebooks and writes them as pages for readers without a kernel: live views inside, nothing from a network.

Every view becomes its own `to_html()` in a frame, every figure is drawn by one plotly.min.js beside the pages. With names,
only those notebooks; the index and the glossary are always written.
"""

from __future__ import annotations

import argparse
import html
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 300
LINKS_OUT = re.compile(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']?https?://", re.IGNORECASE)

# Runs first in every kernel: what a cell shows is a page of its own, as there is no kernel behind it later.
SHOW_AS_PAGES = """
import html as _html
from IPython.display import display as _display
from mpklab.widgets.view import View as _View
from plotly.graph_objects import Figure as _Figure


def _framed(view, include=None, exclude=None):
    height = {"Studio": 1300, "Timeline": 420}.get(type(view).__name__, 560)
    page = _html.escape(str(view.to_html()), quote=True)
    frame = f'<iframe sandbox="allow-scripts" title="{_html.escape(view.title)}" srcdoc="{page}" '
    return {"text/html": frame + f'style="width:100%;height:{height}px;border:1px solid #8884;resize:vertical"></iframe>',
            "text/plain": repr(view)}


def _figure(figure):
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    _display({"text/html": drawn, "text/plain": "a figure"}, raw=True)


_formats = get_ipython().display_formatter
_formats.mimebundle_formatter.for_type(_View, _framed)
_formats.ipython_display_formatter.for_type(_Figure, _figure)
"""


def main() -> int:
    """Write the pages; 1 when a notebook fails or a page would ask a network for something."""
    parser = argparse.ArgumentParser(description="Execute the notebooks and write them as HTML.")
    parser.add_argument("names", nargs="*", help="notebooks without .ipynb (default: all)")
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "build" / "pages", metavar="DIR")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"  # for the kernels
    from plotly.offline import get_plotlyjs

    import mpklab as mk

    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")
    mk.glossary().to_html(args.out / "glossary.html")
    books = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for file in books:
        if not args.names or file.stem in args.names:
            page = args.out / f"{file.stem}.html"
            page.write_text(paged(file), encoding="utf-8")
            print(f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB)", flush=True)
    (args.out / "index.html").write_text(index(books), encoding="utf-8")
    return 0


def paged(file: Path) -> str:
    """A notebook, executed, as one HTML text."""
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter

    book = nbformat.read(file, 4)
    book.cells.insert(0, nbformat.v4.new_code_cell(SHOW_AS_PAGES))
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            book, timeout=TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
    del book.cells[0]
    for cell in book.cells:  # counted as if the cell above had never been
        for counted in (cell, *cell.get("outputs", [])):
            if counted.get("execution_count"):
                counted["execution_count"] -= 1
    exporter = HTMLExporter(template_name="lab", embed_images=True)
    for option in ("require_js_url", "mathjax_url", "jquery_url", "html_manager_semver_range", "mermaid_js_url"):
        if hasattr(exporter, option):
            setattr(exporter, option, "")
    text, _ = exporter.from_notebook_node(book, resources={"metadata": {"name": file.stem}})
    return offline(text)


def offline(text: str) -> str:
    """The page without what would come from a network, with plotly from beside it; SystemExit when something is left."""
    text = re.sub(r"<script[^>]+src=(\"\"|''|\"https?://[^\"]*\")[^>]*></script>", "", text)
    text = re.sub(
        r"<script type=\"module\">(?:(?!</script>).)*mermaid(?:(?!</script>).)*</script>", "", text, flags=re.DOTALL
    )
    text = re.sub(r"<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->", "", text, flags=re.DOTALL)
    text = text.replace("</head>", '<script src="plotly.min.js"></script>\n</head>', 1)
    left = LINKS_OUT.search(text)
    if left:
        raise SystemExit(f"the page would ask a network: {left[0]}")
    return text


def title_of(file: Path) -> str:
    """A notebook's first heading."""
    import nbformat

    first: Any = nbformat.read(file, 4).cells[0]
    return str(first.source).splitlines()[0].removeprefix("# ")


def index(books: list[Path]) -> str:
    """The page that leads to the others."""
    rows = "".join(
        f'<li><a href="{html.escape(b.stem)}.html"><code>{html.escape(b.stem)}</code></a> {html.escape(title_of(b))}</li>\n'
        for b in books
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>mpklab: notebooks</title>\n'
        "<style>body{font:16px/1.6 system-ui,sans-serif;max-width:50em;margin:2em auto;padding:0 1em;"
        "color-scheme:light dark}li{margin:.4em 0}</style>\n</head>\n<body>\n<h1>What happens inside a megakernel?</h1>\n"
        f'<ul>\n{rows}<li><a href="glossary.html">The words</a></li>\n</ul>\n</body>\n</html>\n'
    )


if __name__ == "__main__":
    sys.exit(main())
