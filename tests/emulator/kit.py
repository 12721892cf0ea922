"""Compiles CUDA entry files with the C++ compiler at hand and runs them on emulated blocks (see cuda.hpp)."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from host_kit import Packed, device_source

from mpklab import env
from mpklab.builder import Library
from mpklab.codegen import device_settings, emit
from mpklab.errors import EnvError
from mpklab.models import Model
from mpklab.run.kernel import Kernel
from mpklab.schedule import Schedule
from mpklab.verifier import verify

HERE = Path(__file__).resolve().parent
# Code for a GPU reads words as other types, and a product is rounded before it is added. Frame pointers are for reports.
FLAGS = (
    "-std=c++20", "-Og", "-g1", "-fno-omit-frame-pointer", "-fno-strict-aliasing", "-ffp-contract=off", "-shared",
    "-fPIC", "-fno-extern-tls-init", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-parameter",
)  # fmt: skip
CLOCK_HZ = 1e9  # of the emulated clock, which a switch from one lane to another moves by 32
PATIENCE = 4_000_000  # switches in which nothing happens, before that is called a deadlock
OLDEST = 11  # of g++: what the headers ask of C++20


class EmulatorError(Exception):
    """What no GPU would run to its end, or run as meant, and where every warp stood."""


@functools.cache
def why_not() -> str | None:
    """What keeps the emulator from running here, or None."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"the emulator switches fibers by x86-64 code, and this is {platform.machine()}"
    try:
        command = env.cxx_command()
    except EnvError as error:
        return f"the emulator needs g++: {error}"
    told = subprocess.run([*command, "-dumpfullversion", "-dumpversion"], capture_output=True, text=True).stdout
    if "clang" not in command[0] and int(re.match(r"\d+", told)[0] if re.match(r"\d+", told) else 0) < OLDEST:
        return f"the emulator needs g++ {OLDEST} or newer, not {told.strip()}"
    return None


@functools.cache
def _headers(csrc: Path) -> bytes:
    files = [p for f in (HERE, csrc / "include") for p in sorted(f.rglob("*")) if p.suffix in (".h", ".hpp", ".cuh")]
    return hashlib.sha256(b"".join(p.read_bytes() for p in files)).digest()


def compiled(text: str, *flags: str) -> Path:
    """The library of an entry file, from the tests' cache or made now; safe where several processes make the same."""
    line = [*env.cxx_command(), *FLAGS, *flags, f"-I{HERE / 'include'}", f"-I{env.csrc_folder() / 'include'}"]
    line += ["-include", str(HERE / "cuda.hpp"), "-x", "c++"]
    key = hashlib.sha256("\n".join([*line, text]).encode() + _headers(env.csrc_folder())).hexdigest()[:24]
    root = env.private_folder(env.cache_folder() / "emulated")
    folder, mine = root / key, root / f".{key}.{os.getpid()}"
    if not folder.exists():
        mine.mkdir(exist_ok=True)
        (mine / "kernel.cu").write_text(text + "MPK_EMULATED(mpk_kernel)\n")
        line += [str(mine / "kernel.cu"), "-o", str(mine / "kernel.so")]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(line)}\n{done.stderr[:6000]}"
        (mine / "meta.json").write_text(json.dumps({"compiler": " ".join(line)}))
        with contextlib.suppress(OSError):  # somebody else was first
            mine.rename(folder)
        shutil.rmtree(mine, ignore_errors=True)
    return folder / "kernel.so"


def launch(
    library: Path, launch: np.ndarray, blocks: int, settings: dict[str, int], seed: int = 0, patience: int = PATIENCE
) -> None:
    """Runs a grid to its end in the order that the seed decides; EmulatorError tells what cannot be."""
    run = ctypes.CDLL(str(library)).mpk_emulate
    run.argtypes = [
        ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_ulonglong, ctypes.c_ulonglong, ctypes.c_char_p,
        ctypes.c_uint,
    ]  # fmt: skip
    run.restype = None
    report = ctypes.create_string_buffer(1 << 20)
    ring = settings["page_bytes"] * settings["pages"]
    threads = 32 * (settings["consumer_warps"] + 1)
    run(launch.ctypes.data, blocks, threads, ring, seed, patience, report, len(report))
    if report.value:
        raise EmulatorError(_with_lines(report.value.decode(), library))


def _with_lines(report: str, library: Path) -> str:
    """The addresses of a report as the lines of the project's own files, innermost first."""
    addresses = sorted(set(re.findall(r"@([0-9a-f]+)", report)))
    try:
        command = ["addr2line", "-e", str(library), "-a", "-i", *addresses]
        told = subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:  # without binutils the places have no names
        told = ""
    lines: dict[str, str] = {}
    for address, places in re.findall(r"^0x([0-9a-f]+)\n((?:(?!0x).*\n)*)", told, re.M):
        named = re.findall(r"include/mpklab/(?!device/ptx)(\S+)", places)
        lines[f"{int(address, 16):x}"] = "".join(f" < {line}" for line in named if not line.startswith("platform"))
    return re.sub(r" @([0-9a-f]+)", lambda m: lines.get(m[1], ""), report)


class EmulatedLibrary:
    """A kernel of the given operator variants, as gpu_kit.DeviceLibrary."""

    device = "cpu"

    def __init__(self, variants: Sequence[str], warps: int, *flags: str) -> None:
        self.file = compiled(device_source(variants, warps), *flags)
        self.settings = {"page_bytes": 32768, "pages": 6, "consumer_warps": warps}
        self.seed = 0

    def run(self, packed: Packed) -> None:
        packed.launch["prefetch"], packed.launch["wait_limit"] = 1, 1 << 31
        self.seed += 1
        launch(self.file, packed.launch, int(packed.launch["n_workers"][0]), self.settings, self.seed)
        assert not int(packed.fault["state"]), "a wait outlasted its limit"


@dataclass(eq=False)
class EmulatedKernel(Kernel):
    """A kernel for a CUDA machine whose memory is the host's and whose blocks are emulated."""

    seed: int = 0  # of the order in which lanes run
    flags: tuple[str, ...] = ()

    @property
    def backend(self) -> str:
        """Where its tensors lie: the entry file is that of the schedule's machine all the same."""
        return "cpu"

    @property
    def clock_hz(self) -> float:
        return CLOCK_HZ

    def library(self, level: int = 0) -> Library:
        file = compiled(emit(self.schedule, level, self.delay).text, *self.flags)
        return Library(file.parent, file, "cuda", "g++", 0.0, True)

    def start(self, given: np.ndarray, level: int, kept: tuple[Any, ...] = ()) -> Any:
        settings = device_settings(self.schedule.tasks.plan.settings)
        launch(self.library(level).file, given, self.schedule.workers, settings, self.seed)
        return Landed()


class Landed:
    """A launch that was over when it had begun."""

    seconds = 1.0  # a figure where one is asked for; the emulator has no time

    def wait(self, seconds: float) -> bool:
        return True

    def finish(self) -> None:
        pass


def emulated(schedule: Schedule, model: Model | None = None, *flags: str, **more: Any) -> EmulatedKernel:
    """What `mk.build` gives, for the emulator."""
    weights = model.weights if model else None
    return EmulatedKernel(verify(schedule), model=model, weights=weights, flags=flags, **more)
