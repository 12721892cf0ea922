"""The CUDA device: compiling for it, loading, launching. cuda.core is imported only where it is used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpklab.errors import EnvError


def architecture() -> str:
    """The device at hand as a compiler names it, `sm_90a`."""
    raise EnvError("the CUDA backend is not there yet")


def compiler_version(compiler: str) -> str:
    """Name and version of "nvrtc" or "nvcc", for the cache key."""
    raise EnvError("the CUDA backend is not there yet")


def compile_options(compiler: str, arch: str) -> list[str]:
    """The options a source is compiled with, for the cache key."""
    raise EnvError("the CUDA backend is not there yet")


def compile_cubin(text: str, arch: str, compiler: str, folder: Path) -> tuple[bytes, str]:
    """Cubin and log; BuildError when the compiler refuses."""
    raise EnvError("the CUDA backend is not there yet")


def clock_hz() -> float:
    """The SM clock's nominal rate."""
    raise EnvError("the CUDA backend is not there yet")


def facts() -> dict[str, Any]:
    """Driver, clocks, power cap and throttle reasons, for the stamp."""
    raise EnvError("the CUDA backend is not there yet")


class Flight:
    """One launch under way: `wait(seconds) -> bool`, `finish()`, `.seconds`, as run.host.HostFlight."""

    def __init__(self, file: Path, launch: Any, workers: int, settings: Any):
        raise EnvError("the CUDA backend is not there yet")
