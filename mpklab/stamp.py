"""What a profile or a result was made with and on: versions, commit, CPU, load; never a host's or a user's name."""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = ("mpklab", "numpy", "pandas", "torch", "transformers", "cuda-core", "nvidia-cuda-nvrtc")


def collect(
    device: Mapping[str, Any] | None = None, hashes: Mapping[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """The stamp of this moment.

    `device` holds what the runtime knows of its device (name, driver, clocks before and after, power cap, throttle
    reasons), `hashes` those of graph, plan, schedule and source; `more` is kept as given (seeds, compiler).
    """
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "commit": commit(),
        "system": {
            "os": platform.system(),
            "release": ".".join(platform.release().split(".")[:2]),
            "machine": platform.machine(),
        },
        "cpu": cpu(),
        "device": dict(device or {}),
        "hashes": dict(hashes or {}),
        **more,
    }


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = [("python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def versions() -> dict[str, str]:
    """Installed versions; nothing is imported to find them."""
    return dict(_versions())


@functools.cache
def commit() -> str:
    """The checkout's commit, with `+` when files differ from it; empty for an installed package."""
    root = Path(__file__).resolve().parent.parent
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return ""

    def ask(*words: str) -> str:
        command = [git, "-C", str(root), "--no-optional-locks", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        return ask("rev-parse", "HEAD") + ("+" if ask("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def cpu() -> dict[str, Any]:
    """Model, cores this process may use, frequency governor, load averages and memory."""
    out: dict[str, Any] = {"model": _cpu_model(), "logical": os.cpu_count() or 0, "usable": _usable()}
    governor = _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor:
        out["governor"] = governor
    if hasattr(os, "getloadavg"):
        with contextlib.suppress(OSError):
            out["load"] = [round(x, 2) for x in os.getloadavg()]
    memory = next((line.split()[1] for line in _text("/proc/meminfo").splitlines() if line.startswith("MemTotal")), "")
    if memory.isdigit():
        out["memory_bytes"] = int(memory) * 1024
    return out


def _usable() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 0


@functools.cache
def _cpu_model() -> str:
    if sys.platform == "darwin":
        try:
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return platform.machine()
    fields = {
        key.strip(): value.strip()
        for key, colon, value in (line.partition(":") for line in _text("/proc/cpuinfo").splitlines())
        if colon
    }
    return fields.get("model name") or fields.get("CPU part") or platform.machine()


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""
