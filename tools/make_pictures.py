"""Makes the pictures of the README: the Studio on a recording of an H200, and an operator graph; each below 300 kB.

Needs Playwright and Chromium, as the browser tests do.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORDING = "h200-qwen3-8b"
MOST_BYTES = 300_000


def main() -> int:
    """Write both pictures; 1 when one is too large."""
    parser = argparse.ArgumentParser(description="Make the README's pictures.")
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "notebooks" / "pictures", metavar="DIR")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    import mpklab as mk
    from mpklab.bench._browser import chromium

    args.out.mkdir(parents=True, exist_ok=True)
    profile = mk.recording(RECORDING)
    graph = mk.models.random("smollm2-135m", weights=False).decode_graph(context=256)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        page = mk.Studio(profile, title="Qwen3-8B on an H200").to_html(Path(folder) / "studio.html")
        picture(browser, page, args.out / "studio.png")
        drawn = browser.new_page(viewport={"width": 900, "height": 700})
        drawn.set_content(f'<body style="margin:0;background:#fff">{graph.to_svg()}</body>')
        drawn.locator("svg").screenshot(path=args.out / "operator_graph.png")
    sizes = {path: path.stat().st_size for path in sorted(args.out.glob("*.png"))}
    for path, size in sizes.items():
        print(f"{path} {size / 1e3:.0f} kB{' is too large' if size > MOST_BYTES else ''}")
    return int(max(sizes.values()) > MOST_BYTES)


def picture(browser: Any, page: Path, path: Path) -> None:
    """The Studio, zoomed into a few layers, with one task selected: its arrows, its operator and its spans light up."""
    shown = browser.new_page(viewport={"width": 1280, "height": 1010}, color_scheme="light")
    shown.goto(page.as_uri())
    shown.wait_for_timeout(2000)
    canvas = shown.locator("canvas").first
    box = canvas.bounding_box()
    shown.mouse.move(box["x"] + box["width"] * 0.45, box["y"] + 150)
    shown.keyboard.down("Control")
    for _ in range(9):
        shown.mouse.wheel(0, -240)
        shown.wait_for_timeout(60)
    shown.keyboard.up("Control")
    shown.mouse.click(box["x"] + box["width"] * 0.47, box["y"] + 190)
    shown.wait_for_timeout(500)
    shown.screenshot(path=path)


if __name__ == "__main__":
    sys.exit(main())
