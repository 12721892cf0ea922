"""Makes the README's pictures: the Studio on the H200 recording of Qwen3-8B, and its operator graph; needs Chromium."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TASK = 4010  # a tile of layer 6's o_proj: it waits for one event of two operators and sits on the path of blame


def main() -> int:
    sys.path.insert(0, str(ROOT))
    from mpklab.bench._browser import chromium
    from mpklab.profile import Profile
    from mpklab.widgets.studio import Studio

    folder = ROOT / "pictures"
    folder.mkdir(exist_ok=True)
    studio = Studio(Profile.load(ROOT / "profiles" / "h200-qwen3-8b.mpkprof"), title="Qwen3-8B, one H200")
    assert studio.graph is not None
    studio.graph.to_svg(folder / "operators.svg")
    with tempfile.TemporaryDirectory() as place, chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1390})
        page.goto(Path(str(studio.to_html(Path(place) / "studio.html"))).as_uri())
        while not page.evaluate("window.mpk?.frames?.length > 0"):
            page.wait_for_timeout(50)
        page.evaluate(
            f"mpk.selection.set([{TASK}]); mpk.timeline.setMode('class'); mpk.timeline.show(580_000, 660_000)"
        )
        page.wait_for_timeout(800)
        page.screenshot(path=folder / "studio.png")
    for file in sorted(folder.iterdir()):
        print(f"{file.relative_to(ROOT)}  {file.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
