"""Reads a compiler's log: its first error, the source lines around it with a caret, and what usually helps."""

from __future__ import annotations

import re
from pathlib import Path

from mpklab import env
from mpklab.errors import BuildError

AROUND = 2  # source lines shown before and after the one with the error
# g++, clang++: file:3:7: error: …; nvcc, NVRTC: file(3): error: …; both at the start of a line.
_PLACE = re.compile(
    r"^(?P<file>[^\s:(][^:(\n]*)(?:[:(](?P<line>\d+)\)?)(?::(?P<column>\d+))?\s*:\s*(?:fatal |catastrophic )?error\b"
)
HINTS = (  # pattern in the log → what usually helps
    (
        r"No such file or directory|cannot open source file|could not open source file",
        "a header is missing: `mpklab doctor` says what this machine lacks",
    ),
    (
        r"unrecognized (?:command[- ]line )?option|unknown argument|Unknown option|-std=c\+\+20",
        "the compiler is too old for C++20: MPKLAB_CXX names another (g++ 11 or clang++ 14 are enough)",
    ),
    (
        r"invalid value for --gpu-architecture|Unsupported gpu architecture",
        "this compiler does not know the GPU: a newer CUDA toolkit does",
    ),
    (
        r"Killed|out of memory|Cannot allocate memory",
        "the compiler ran out of memory: close other programs, or build fewer kernels at once",
    ),
    (
        r"No space left on device",
        "the disk is full: `mpklab cache clear`, or MPKLAB_CACHE names another folder",
    ),
    (
        r"cannot find -l|undefined reference",
        "a library is missing at link time: `mpklab doctor` says what this machine lacks",
    ),
)
OURS = (
    "this code is generated or comes with mpklab, so the fault is likely ours: the kept folder is what a report needs"
)
THEIRS = "the fault is in code that was given to mpklab: correct it and build again"


def refused(log: str, command: str, folder: Path) -> BuildError:
    """The error for a compiler that refused a source in `folder`, where its log is kept as `build.log`."""
    (folder / "build.log").write_text(log)
    message = (
        f"the compiler refused the source\n{excerpt(log, folder)}\n"
        f"command: {shortened(command)}\nkept in: {folder} (build.log has all of it)\nhint: {hint(log, folder)}"
    )
    return BuildError(message, command, log, str(folder))


def first_error(log: str) -> str:
    """The first error line of a log with a few lines around it."""
    lines = log.splitlines()
    at = next((i for i, line in enumerate(lines) if re.search(r"\berror\b", line)), max(0, len(lines) - 8))
    return "\n".join(lines[max(0, at - 3) : at + 6])


def excerpt(log: str, folder: Path) -> str:
    """The first error and the lines of source around it, numbered, with a caret; the log's own lines where the source
    cannot be read."""
    for text in log.splitlines():
        found = _PLACE.match(text)
        if found is None:
            continue
        path = Path(found["file"])
        try:
            # A column counts a tab as g++ shows it, up to the next multiple of eight.
            source = (folder / path).read_text(errors="replace").expandtabs().splitlines()
        except OSError:
            break
        number = int(found["line"])
        if not 0 < number <= len(source):
            break
        column = (
            int(found["column"]) if found["column"] else 1 + len(source[number - 1]) - len(source[number - 1].lstrip())
        )
        rows = []
        for n in range(max(1, number - AROUND), min(len(source), number + AROUND) + 1):
            rows.append(f"{'>' if n == number else ' '} {n:5d} | {source[n - 1]}")
            if n == number:
                rows.append(f"        | {' ' * (column - 1)}^")
        return "\n".join([text, *rows])
    return first_error(log)


def hint(log: str, folder: Path) -> str:
    """What usually helps against the first error."""
    body = log.partition("\n")[2]  # the first line is the command, whose options are no errors
    known = next((text for pattern, text in HINTS if re.search(pattern, body)), None)
    if known is not None:
        return known
    found = next((m for line in body.splitlines() if (m := _PLACE.match(line))), None)
    if found is None:
        return OURS
    path = folder / found["file"]
    return OURS if path.is_relative_to(folder) or path.is_relative_to(env.csrc_folder()) else THEIRS


def shortened(command: str, most: int = 400) -> str:
    """A command of at most so many characters."""
    return command if len(command) <= most else f"{command[:most]} …"
