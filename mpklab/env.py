"""The one place that reads environment variables and knows which folders mpklab uses.

Everything is read when asked for, not at import, so that a variable set in a notebook cell counts from the next call.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mpklab.errors import EnvError, suggest

PREFIX = "MPKLAB_"
PACKAGE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable: its name, its meaning, and what counts without it."""

    name: str
    meaning: str
    default: str


VARIABLES = (
    Variable("MPKLAB_CACHE", "folder for compiled kernels and unpacked weights", "~/.cache/mpklab"),
    Variable("MPKLAB_CACHE_LIMIT_GB", "what that folder may hold; the least recently used goes first", "8"),
    Variable("MPKLAB_CXX", "C++ compiler of the CPU backend, with options if any", "g++, else clang++"),
    Variable("MPKLAB_NVCC", "CUDA compiler, where nvcc is asked for", "nvcc on PATH, else in CUDA_HOME"),
    Variable("MPKLAB_WAIT_LIMIT_S", "how long a wait inside a kernel may last", "by backend"),
    Variable("MPKLAB_PROGRESS", "whether stages show themselves while they work: 1 or 0", "1"),
)


def cache_folder() -> Path:
    """Where compiled kernels and unpacked weights live; made by `private_folder` when first written to."""
    fallback = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mpklab"
    return Path(_text("MPKLAB_CACHE") or fallback).expanduser().absolute()


def cache_limit_bytes() -> int:
    """The size the cache folder is kept under."""
    limit = _positive("MPKLAB_CACHE_LIMIT_GB")
    return int((8.0 if limit is None else limit) * 1e9)


def cxx_command() -> list[str]:
    """The C++ compiler as the start of a command line; EnvError when there is none."""
    asked = shlex.split(_text("MPKLAB_CXX") or "")
    candidates = [asked] if asked else [["g++"], ["clang++"]]
    for candidate in candidates:
        found = shutil.which(candidate[0])
        if found:
            return [found, *candidate[1:]]
    if asked:
        raise EnvError(f"MPKLAB_CXX names the compiler {asked[0]!r}, which cannot be found")
    raise EnvError("the CPU backend needs a C++ compiler, and neither g++ nor clang++ is on PATH: apt install g++")


def nvcc_path() -> str | None:
    """nvcc, or None: MPKLAB_NVCC, then PATH, then the toolkit folder that CUDA_HOME or CUDA_PATH names."""
    asked = _text("MPKLAB_NVCC")
    if asked:
        found = shutil.which(asked)
        if not found:
            raise EnvError(f"MPKLAB_NVCC names {asked!r}, which cannot be found")
        return found
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = [str(Path(home) / "bin") for home in [*homes, "/usr/local/cuda"]]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(folders))


def wait_limit_s(default: float) -> float:
    """The longest wait inside a kernel, in seconds."""
    limit = _positive("MPKLAB_WAIT_LIMIT_S")
    return default if limit is None else limit


def show_progress() -> bool:
    """Whether stages may print what they are doing."""
    return _text("MPKLAB_PROGRESS") not in ("0", "off", "no", "false")


def csrc_folder() -> Path:
    """The C++ and CUDA sources: inside the installed package, or beside it in a checkout."""
    return _shipped("csrc")


def profiles_folder() -> Path:
    """The recordings that ship with mpklab: inside the installed package, or beside it in a checkout."""
    return _shipped("profiles")


def notebooks_folder() -> Path:
    """The notebooks that ship with mpklab: inside the installed package, or beside it in a checkout."""
    return _shipped("notebooks")


def private_folder(path: Path) -> Path:
    """Make a folder that only this user can write, and refuse one that others could have filled.

    What lies in the cache is loaded as code, so it must be this user's own.
    """
    try:
        for folder in (*reversed(path.parents), path):  # mkdir(parents=True) would give parents the default mode
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise EnvError(f"the folder {path} cannot be made ({error.strerror}); MPKLAB_CACHE names another") from error
    if found.st_uid != os.getuid():
        raise EnvError(f"the folder {path} belongs to another user (id {found.st_uid}); MPKLAB_CACHE names another")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EnvError(f"others may write to {path}, and what lies there is run as code: chmod go-w {path}")
    return path


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A path to write to that becomes `target` at the end: no reader sees half a file, and what failed leaves nothing.

    What exists and is no file, such as /dev/stdout, is written to as it is.
    """
    if target.exists() and not target.is_file():
        yield target
        return
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        os.replace(part, target)
    finally:
        with suppress(OSError):  # a read-only folder, where there is none; what went wrong is on its way already
            part.unlink(missing_ok=True)


def unknown_variables() -> list[str]:
    """One sentence for each variable that starts like ours and means nothing: a slip that would stay silent."""
    known = [variable.name for variable in VARIABLES]
    strange = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    return [f"the environment variable {name} is not known: {suggest(name, known)}" for name in strange]


def values() -> dict[str, str]:
    """The variables that are set, as they are set."""
    return {variable.name: os.environ[variable.name] for variable in VARIABLES if variable.name in os.environ}


def _shipped(name: str) -> Path:
    for folder in (PACKAGE / name, PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise EnvError(f"the folder {name!r} is neither in {PACKAGE} nor beside it: this copy of mpklab is incomplete")


def _text(name: str) -> str | None:
    return os.environ.get(name, "").strip() or None


def _positive(name: str) -> float | None:
    text = _text(name)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not number > 0 or number == float("inf"):
        raise EnvError(f"{name} should be a positive number, not {text!r}")
    return number
