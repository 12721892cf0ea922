"""What can go wrong, one class per stage; messages say what was expected, what was found, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MpkError(Exception):
    """Base of every error that mpklab raises on purpose."""


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


def need_package(package: str, purpose: str, extra: str = "") -> EnvError:
    """The one sentence for a missing optional package, with the command that brings it."""
    target = f"'mpklab[{extra}]'" if extra else package
    return EnvError(f"{purpose} needs the Python package {package!r}, which is not installed: pip install {target}")
