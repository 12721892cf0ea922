"""What the benchmarks share: samples and their intervals, where a result was measured, tables and JSON files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mpklab import stamp
from mpklab.confidence import Interval
from mpklab.console import human_bytes, print_table
from mpklab.errors import EnvError


def environment_lines(made: Mapping[str, Any]) -> list[str]:
    """A stamp in two lines: what it ran on, and with which versions."""
    cpu = made["cpu"]
    parts = [cpu["model"], f"{cpu['usable']} of {cpu['logical']} CPUs"]
    if "memory_bytes" in cpu:
        parts.append(human_bytes(cpu["memory_bytes"]))
    if "governor" in cpu:
        parts.append(f"governor {cpu['governor']}")
    if "load" in cpu:
        parts.append(f"load {cpu['load'][0]:.1f}")
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return [", ".join(parts), f"{versions}{', commit ' + made['commit'][:9] if made['commit'] else ''}"]


def load_now() -> float:
    """The system's load average of the last minute, where it has one."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def show(
    title: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    made: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> None:
    """The table of a benchmark, with where it was measured."""
    print_table(headers, rows, title)
    for line in (*notes, *environment_lines(made)):
        print(line)


def write_json(path: Path | None, made: Mapping[str, Any], **results: Any) -> None:
    """Everything behind the table, where a file was asked for."""
    if path is None:
        return
    try:
        path.write_text(json.dumps({"stamp": dict(made), **results}, indent=1, default=_plain) + "\n")
    except OSError as error:
        raise EnvError(f"{path} cannot be written: {error.strerror}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return asdict(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a result file")


def stamped() -> dict[str, Any]:
    """The stamp of a benchmark's beginning."""
    return stamp.collect()
