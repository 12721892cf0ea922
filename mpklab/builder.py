"""Compiles an entry file into a cache of folders: keyed by content, published by rename, never half made."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mpklab import device, env
from mpklab.codegen import Source
from mpklab.diagnosis import refused
from mpklab.errors import BuildError, EnvError

CXX_FLAGS = (
    "-std=c++20", "-O3", "-march=native", "-shared", "-fPIC", "-pthread", "-fno-math-errno",
)  # fmt: skip
ABANDONED_S = 3600.0  # a folder under a temporary name that old belongs to nobody any more


@dataclass(frozen=True, slots=True)
class Library:
    """A compiled kernel in its cache folder. `seconds` is what this process waited for it."""

    folder: Path
    file: Path
    backend: str
    compiler: str
    seconds: float
    cached: bool

    @property
    def log(self) -> str:
        return (self.folder / "build.log").read_text()

    @property
    def identity(self) -> str:
        """The compiler's version, its options and the CPU features or architecture it compiled for, as the key has them."""
        return str(json.loads((self.folder / "meta.json").read_text())["compiler"])


def compile_source(
    source: Source,
    compiler: str | None = None,
    arch: str | None = None,
    beside: Callable[[Path], None] | None = None,
) -> Library:
    """The library for a source: from the cache, or built now. Safe when several processes build the same thing.

    `compiler`: for the CPU a command (default env.cxx_command()), for CUDA "nvrtc" (default) or "nvcc". `beside` writes
    further files into the folder before it is published.
    """
    begin = time.perf_counter()
    if source.backend == "cpu":
        command = shlex.split(compiler) if compiler else env.cxx_command()
        identity = f"{_compiler_version(command[0])} {' '.join(command[1:])} {' '.join(CXX_FLAGS)} {_cpu_features()}"
        name = "kernel.so"
    else:
        command = [compiler or "nvrtc"]
        arch = arch or device.architecture()
        identity = f"{device.compiler_version(command[0])} {arch} {' '.join(device.compile_options(command[0], arch))}"
        name = "kernel.cubin"
    key = hashlib.sha256(f"{identity}\n{source.text}\n{_headers_hash()}".encode()).hexdigest()[:32]
    root = env.private_folder(env.cache_folder() / "kernels")
    folder = root / key
    cached = _whole(folder, name)
    if cached:
        _check_owner(folder)
        with contextlib.suppress(OSError):
            os.utime(folder)
    else:
        _publish(source, command, arch, folder, name, identity, beside)
        _trim(root, keep=folder)
    return Library(folder, folder / name, source.backend, command[0], time.perf_counter() - begin, cached)


def _publish(
    source: Source,
    command: list[str],
    arch: str | None,
    folder: Path,
    name: str,
    identity: str,
    beside: Callable[[Path], None] | None,
) -> None:
    """Build in a private folder beside the final one, then rename. A failed build is kept for reading."""
    work = folder.parent / f".build-{os.getpid()}-{secrets.token_hex(4)}"
    begin = time.perf_counter()
    try:
        work.mkdir(mode=0o700)
        entry = work / ("kernel.cpp" if source.backend == "cpu" else "kernel.cu")
        entry.write_text(source.text)
        if source.backend == "cpu":
            line = [*command, *CXX_FLAGS, f"-I{env.csrc_folder() / 'include'}", str(entry), "-o", str(work / name)]
            log = _run_compiler(line, work)
        else:
            binary, log = device.compile_cubin(source.text, str(arch), compiler=command[0], folder=work)
            (work / name).write_bytes(binary)
        (work / "build.log").write_text(log)
        if beside is not None:
            beside(work)
        meta = {"compiler": identity, "seconds": time.perf_counter() - begin, "source": source.hash}
        (work / "meta.json").write_text(json.dumps(meta, indent=1))
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise EnvError(
            f"cannot write to the cache folder {folder.parent} ({error.strerror}); MPKLAB_CACHE names another"
        ) from error
    except BaseException as error:
        if not isinstance(error, BuildError):
            shutil.rmtree(work, ignore_errors=True)
        raise
    if not _renamed(work, folder) and not _whole(folder, name):
        _remove(folder)  # damaged: something took files out of it
        if not _renamed(work, folder) and not _whole(folder, name):
            raise EnvError(f"the cache folder {folder} is damaged: remove it, or run mpklab cache clear")
    shutil.rmtree(work, ignore_errors=True)  # when somebody else was first, whose build is as good


def _whole(folder: Path, name: str) -> bool:
    return (folder / "meta.json").exists() and (folder / name).exists()


def _renamed(work: Path, folder: Path) -> bool:
    try:
        work.rename(folder)
    except OSError:
        return False
    return True


def _run_compiler(line: list[str], work: Path) -> str:
    done = subprocess.run(line, capture_output=True, text=True, cwd=work)
    log = " ".join(line) + "\n" + done.stdout + done.stderr
    if done.returncode:
        raise refused(log, " ".join(line), work)
    return log


@functools.cache
def _compiler_version(command: str) -> str:
    try:
        return subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError) as error:
        raise EnvError(f"the compiler {command!r} cannot be run ({error}); MPKLAB_CXX names another") from error


@functools.cache
def _cpu_features() -> str:
    """What -march=native resolves to: a cache shared between machines must not mix them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine() + platform.processor()
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.M)
    model = re.search(r"^(?:model name|CPU part)\s*:\s*(.*)$", text, re.M)
    return hashlib.sha256(f"{platform.machine()} {model and model[1]} {flags and flags[1]}".encode()).hexdigest()[:16]


def _headers_hash() -> str:
    digest = hashlib.sha256()
    folder = env.csrc_folder() / "include"
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".h", ".hpp", ".cuh"):
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _check_owner(folder: Path) -> None:
    if folder.stat().st_uid != os.getuid():
        raise EnvError(f"{folder} belongs to another user and is not loaded: remove it, or set MPKLAB_CACHE")


def _trim(root: Path, keep: Path) -> None:
    """Drop the kernels used longest ago when the cache outgrows its limit, and what killed processes left."""
    entries = []
    for folder in root.iterdir():
        with contextlib.suppress(OSError):
            status = folder.stat()
            if folder.name.startswith("."):
                if time.time() - status.st_mtime > ABANDONED_S:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            entries.append((status.st_mtime, sum(f.stat().st_size for f in folder.iterdir()), folder))
    total = sum(size for _, size, _ in entries)
    for _, size, folder in sorted(entries):
        if total <= env.cache_limit_bytes():
            break
        if folder != keep:
            _remove(folder)
            total -= size


def _remove(folder: Path) -> None:
    """Take an entry out in one step, so that a removal cut short leaves nothing that looks whole."""
    aside = folder.parent / f".removed-{secrets.token_hex(8)}"
    with contextlib.suppress(OSError):  # somebody else was first
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
