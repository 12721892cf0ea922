"""Builds sdist and wheel, installs the wheel in an empty environment outside the checkout, and runs a graph there.

With --here, only the last part: a small graph through the interpreter that runs this script.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    if "--here" in sys.argv[1:]:
        run_a_graph()
        return 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        wheel = build(place / "dist")
        python = install(wheel, place / "venv")
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        script = place / "run_a_graph.py"  # a copy, so that the checkout is nowhere on the path
        script.write_text(Path(__file__).read_text())
        clean["MPKLAB_CACHE"] = str(place / "cache")
        subprocess.run([python, script, "--here"], cwd=place, env=clean, check=True)
        subprocess.run([python.with_name("mpklab"), "--version"], cwd=place, env=clean, check=True)
        subprocess.run([python.with_name("mpklab"), "notebooks", "mine"], cwd=place, env=clean, check=True)
        missing = {book.name for book in (ROOT / "notebooks").glob("*.ipynb")} - {
            p.name for p in (place / "mine").iterdir()
        }
        if missing:
            raise SystemExit(f"the wheel lacks notebooks: {', '.join(sorted(missing))}")
    return 0


def build(dist: Path) -> Path:
    """sdist first, then the wheel from the sdist: what a packager would do."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, ROOT]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = dist.glob("*.whl")
    print(f"built {wheel.name}, {wheel.stat().st_size // 1000} kB", flush=True)
    return wheel


def install(wheel: Path, place: Path) -> Path:
    """An environment with the wheel and its plain requirements, torch chosen as in the set-up."""
    sys.path.insert(0, str(ROOT / "tools"))
    import setup_env

    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    choice = setup_env.torch_choice(os.environ.get("TORCH", ""), setup_env.has_nvidia_driver())
    setup_env.install_torch(str(python), choice)
    setup_env.pip(str(python), str(wheel))
    return python


def run_a_graph() -> None:
    """Public names only: a norm and a linear layer, compiled to one kernel and compared with torch."""
    import torch

    import mpklab as mk

    builder = mk.GraphBuilder("small")
    x = builder.input("x", (1, 256))
    gain, weight = builder.weight("gain", (256,)), builder.weight("weight", (512, 256))
    builder.linear("y", x=builder.rms_norm("norm", x=x, weight=gain), weight=weight, role="output")
    values = {"x": torch.randn(1, 256), "gain": torch.randn(256), "weight": torch.randn(512, 256)}
    kernel = mk.compile(builder.build(), machine=mk.Machine.cpu(workers=2))
    found = kernel.run(values)["y"]
    normed = torch.nn.functional.rms_norm(values["x"], (256,), values["gain"], eps=1e-5)
    torch.testing.assert_close(found, normed @ values["weight"].T, rtol=1e-4, atol=1e-3)
    print(f"mpklab {mk.__version__} in {Path(mk.__file__).parent}: {kernel}")


if __name__ == "__main__":
    sys.exit(main())
