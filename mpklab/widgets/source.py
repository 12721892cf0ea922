"""The source behind a task: the entry file that was generated and the operators' headers, with the lines that matter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpklab import env
from mpklab.codegen import emit
from mpklab.ops import REGISTRY
from mpklab.schedule import Schedule
from mpklab.tasks.handoffs import CONSUMER_WARPS
from mpklab.widgets.page import Column

# What a worker calls of an operator, in the order of a task's life; device/worker.cuh and host/worker.hpp call them. What
# is read before its turn comes is `ahead` on a GPU and `prefetch` on a CPU.
ROLES = ("load", "ahead", "prefetch", "prepare", "gather", "compute")
_FUNCTION = re.compile(
    r"^\s*(?:(?:MPK_FN |MPK_INLINE |static )+(?:void|unsigned) (\w+)\((?:Load|Work)Context"
    r"|static MPK_FN Ahead (\w+)\(const Descriptor|static \w+ (\w+)\(const Context)"
)
_INCLUDE = re.compile(r'^#include "(mpklab/ops/[\w.]+)"$', re.MULTILINE)
ENTRY = "generated entry"
LINEAR_PATHS = ("linear_row", "linear_rows", "linear_plain")


@dataclass(frozen=True, slots=True)
class Mark:
    """Lines first … last (from 1, both included) of a file, and what stands there."""

    file: int
    first: int
    last: int
    what: str


def marks_in(text: str) -> list[tuple[int, int, str]]:
    """The functions of an operator's header that a worker calls: first line, last line, name."""
    lines = text.splitlines()
    found = []
    for at, line in enumerate(lines):
        match = _FUNCTION.match(line)
        name = match and (match[1] or match[2] or match[3])
        if name in ROLES:
            depth, end = 0, at
            for end in range(at, len(lines)):
                depth += lines[end].count("{") - lines[end].count("}")
                if depth <= 0 and "}" in lines[end]:
                    break
            found.append((at + 1, end + 1, str(name)))
    return found


def linear_path(schedule: Schedule, operator: int) -> str | None:
    """Which header computes a linear on a GPU, by the rule of Linear in ops/linear.cuh; None for other operators."""
    tasks = schedule.tasks
    variant = tasks.variants[int(tasks.variant_of[operator])]
    if variant.header != "linear":
        return None
    warps = tasks.plan.settings.get("consumer_warps", CONSUMER_WARPS)
    if REGISTRY.ops["linear"].awaits(tasks.graph.node(tasks.operators[operator]), warps):
        return "linear_row"
    arguments = variant.text.rstrip(">").partition("<")[2].split(", ")
    k, rows, splits, d = (int(arguments[i]) for i in (3, 4, 10, 11))
    matrix = arguments[0] == "mpk::bf16" and k % 64 == 0 and (splits == 0 or d % 8 == 0)
    return "linear_rows" if matrix and rows <= 16 else "linear_plain"


def source_of(
    names: Sequence[str], kinds: Sequence[str], schedule: Schedule | None, backend: str, level: int = 0
) -> tuple[dict[str, Any], dict[str, Column]] | None:
    """Header and columns for source.js: files, and for each operator its marks. None where no header can be read.

    With a schedule the entry file is there too, an operator's marks begin with the line that instantiates it, and of a
    linear's three ways of computing only the one that it takes is marked.
    """
    folder = env.csrc_folder() / "include"
    suffix = "hpp" if backend == "cpu" else "cuh"
    files: dict[str, str] = {}
    lines: dict[str, int] = {}
    if schedule is not None and len(schedule.tasks.variants):
        files[ENTRY] = emit(schedule, level=level).text
        for number, line in enumerate(files[ENTRY].splitlines(), 1):
            lines[line.strip().rstrip(",>;").rstrip()] = number

    def read(name: str) -> list[str]:
        """This header and those it is made of, added to `files`; other operators' headers are not among them."""
        if name in files:
            return [name]
        try:
            files[name] = (folder / name).read_text(encoding="utf-8")
        except OSError:
            return []
        parts = [needed for needed in _INCLUDE.findall(files[name]) if Path(needed).stem not in REGISTRY.ops]
        return [name, *(part for needed in parts for part in read(needed))]

    reached: dict[str, list[str]] = {}
    of_operator: list[int] = []
    marks: list[list[Mark]] = []
    known: dict[tuple[str, str], int] = {}
    for i, kind in enumerate(kinds):
        header, text = kind, ""
        if schedule is not None:
            variant = schedule.tasks.variants[int(schedule.tasks.variant_of[i])]
            header, text = variant.header, variant.text
        if (header, text) not in known:
            known[header, text] = len(marks)
            stem = f"mpklab/ops/{header}.{suffix}"
            reached.setdefault(stem, list(dict.fromkeys(read(stem))))
            order = list(files)
            own: list[Mark] = []
            if text.rstrip(">") in lines:
                at = lines[text.rstrip(">")]
                own.append(Mark(order.index(ENTRY), at, at, "variant"))
            path = linear_path(schedule, i) if schedule is not None and suffix == "cuh" else None
            for name in reached[stem]:
                if path and Path(name).stem in LINEAR_PATHS and Path(name).stem != path:
                    continue
                own += [
                    Mark(order.index(name), a, b, what)
                    for a, b, what in marks_in(files[name])
                    if path != "linear_plain" or what not in ("load", "ahead")  # it has no loader
                ]
            marks.append(own)
        of_operator.append(known[header, text])
    if not files:
        return None
    meta = {
        "files": [{"name": name, "text": text} for name, text in files.items()],
        "marks": [[[m.file, m.first, m.last, m.what] for m in row] for row in marks],
        "ops": list(names),
    }
    return meta, {"marks_of": Column(np.array(of_operator, np.int64))}
