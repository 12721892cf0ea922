"""What can go wrong, one class per stage; messages say what was expected, what was found, where, and what to do."""

from __future__ import annotations

import difflib
import functools
import inspect
import linecache
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ParamSpec, TypeVar

PACKAGE = Path(__file__).resolve().parent

P = ParamSpec("P")
R = TypeVar("R")


class MpkError(Exception):
    """Base of every error that mpklab raises on purpose. The message alone says it all: plain Python prints nothing else."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows instead of a page of frames: the caller's own lines with a caret, then the message."""
        lines: list[str] = []
        for frame in traceback.extract_tb(self.__traceback__):
            if not _is_machinery(frame.filename):
                lines += _excerpt(frame)
        cause = self.__cause__
        why = [f"because of {type(cause).__name__}: {cause}"] if cause is not None else []
        return [*lines, f"{type(self).__name__}: {self}", *why]


class EnvError(MpkError):
    """The machine lacks something: a package, a compiler, a device, disk space."""


class GraphError(MpkError):
    """A graph is malformed: shapes, dtypes, names or roles do not fit."""


class ModelError(MpkError):
    """A model's files or configuration cannot be used."""


class LowerError(MpkError):
    """A graph cannot be cut into tasks as asked."""


class ScheduleError(MpkError):
    """A schedule would race or hang. `finding` holds the facts of the first fault for drawing."""

    def __init__(self, message: str, finding: object | None = None):
        super().__init__(message)
        self.finding = finding


class BuildError(MpkError):
    """A compiler refused the source. `command`, `log` and `folder` lead to everything it left."""

    def __init__(self, message: str, command: str = "", log: str = "", folder: str = ""):
        super().__init__(message)
        self.command = command
        self.log = log
        self.folder = folder


class RunError(MpkError):
    """A kernel could not be started, or its inputs do not fit it."""


class DeadlockError(RunError):
    """A wait outlasted the limit: `fault` holds worker, task, event, count and need as the device wrote them."""

    def __init__(self, message: str, fault: dict[str, int] | None = None):
        super().__init__(message)
        self.fault = fault or {}


class ProfileError(MpkError):
    """A profile cannot be read, decoded or saved."""


def suggest(word: str, known: Iterable[str]) -> str:
    """A ready tail for an error message: the close matches of `word`, or all that is known."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=2, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"known: {', '.join(names)}"


def known_keywords(function: Callable[..., object]) -> list[str]:
    """The names under which a function takes arguments."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, p in inspect.signature(function).parameters.items() if p.kind in kinds and name != "self"]


def answers_slips(error: type[MpkError]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function that answers a keyword it does not take with this error, which says what was probably meant.

    One that takes any keyword to hand it on is left as it is: who gets them answers.
    """

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        known = known_keywords(function)
        if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()):
            return function

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name not in known:
                    what = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]
                    raise error(f"{what} takes no {name!r}: {suggest(name, known)}")
            return function(*args, **kwargs)

        return call

    return decorated


def need_package(package: str, purpose: str, extra: str = "") -> EnvError:
    """The one sentence for a missing optional package, with the command that brings it."""
    target = f"'mpklab[{extra}]'" if extra else package
    return EnvError(f"{purpose} needs the Python package {package!r}, which is not installed: pip install {target}")


def _is_machinery(file: str) -> bool:
    """Whether a frame is of mpklab or of what runs cells, so that its reader did not write it."""
    path = Path(file)
    return path.is_relative_to(PACKAGE) or "IPython" in path.parts or file.startswith("<frozen ")


def _excerpt(frame: traceback.FrameSummary) -> list[str]:
    """A line of the caller's with its neighbours, and a caret under the call."""
    number, begin = frame.lineno or 0, frame.colno or 0
    source = {n: linecache.getline(frame.filename, n).rstrip("\n") for n in range(max(1, number - 1), number + 2)}
    line = source.get(number, "")
    begin = begin if line[:begin].isascii() else len(line.encode()[:begin].decode(errors="ignore"))
    end = frame.end_colno if frame.end_lineno == number and frame.end_colno else len(line)
    out = [f"{_place(frame.filename)}, line {number}:"]
    for n, text in source.items():
        if text or n == number:
            out.append(f"{'->' if n == number else '  '} {n:4d} {text}")
        if n == number:
            out.append(" " * (8 + begin) + "^" * max(1, min(end, len(line)) - begin))
    return [*out, ""]


def _place(file: str) -> str:
    """A file's path; for the source of a cell its number."""
    running = sys.modules.get("IPython")
    shell = running.get_ipython() if running is not None else None
    name = shell.compile.format_code_name(file) if shell is not None else None
    return " ".join(name) if name else file
