"""Makes the README's pictures: the Studio on the H200 recording of Qwen3-8B, and an operator graph; needs Chromium."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks" / "pictures"
TASK = 4010  # a tile of layer 6's o_proj: it waits for one event of two operators and sits on the path of blame
MOST_BYTES = 300_000


def main() -> int:
    """Write both; 1 when one is too large."""
    sys.path.insert(0, str(ROOT))
    import mpklab as mk
    from mpklab.bench._browser import chromium

    FOLDER.mkdir(exist_ok=True)
    studio = mk.Studio(mk.recording("h200-qwen3-8b"), title="Qwen3-8B, one H200")
    graph = mk.models.random("smollm2-135m", weights=False).decode_graph(context=256)
    with tempfile.TemporaryDirectory() as place, chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1390})
        page.goto(Path(str(studio.to_html(Path(place) / "studio.html"))).as_uri())
        while not page.evaluate("window.mpk?.frames?.length > 0"):
            page.wait_for_timeout(50)
        page.evaluate(
            f"mpk.selection.set([{TASK}]); mpk.timeline.setMode('class'); mpk.timeline.show(580_000, 660_000)"
        )
        page.wait_for_timeout(800)
        page.screenshot(path=FOLDER / "studio.png")
        page = browser.new_page(viewport={"width": 900, "height": 700})
        page.set_content(f'<body style="margin:0;background:#fff">{graph.to_svg()}</body>')
        page.locator("svg").screenshot(path=FOLDER / "operator_graph.png")
    sizes = {file: file.stat().st_size for file in sorted(FOLDER.glob("*.png"))}
    for file, size in sizes.items():
        print(f"{file.relative_to(ROOT)}  {size / 1e3:.0f} kB{', too large' if size > MOST_BYTES else ''}")
    return int(max(sizes.values()) > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
