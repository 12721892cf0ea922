"""The CPU backend's library: loads it once per file and calls it from a thread, so that the caller can be interrupted."""

from __future__ import annotations

import ctypes
import functools
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpklab.errors import BuildError, RunError

CLOCK_HZ_GUESS = 2.5e9  # a nominal rate; the anchors in every lane give the real one
OUTCOMES = {
    2: "the system could not give the kernel its threads or scratch memory: use fewer workers",
    3: "the kernel met a queue entry that this backend cannot run",
}


@functools.cache
def load(file: Path) -> ctypes.CDLL:
    """The shared library; loading the same file twice gives the same handle."""
    try:
        library = ctypes.CDLL(str(file))
        library.mpk_run.argtypes = [ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p]
        library.mpk_run.restype = ctypes.c_int
        return library
    except (OSError, AttributeError) as error:
        raise BuildError(f"{file} is not a kernel this version can load ({error}): run mpklab cache clear") from error


class HostFlight:
    """One launch under way on CPU threads."""

    def __init__(
        self, file: Path, launch: npt.NDArray[np.void], level: int, cpus: tuple[int, ...], kept: tuple[Any, ...] = ()
    ):
        self._library = load(file)
        self._kept = kept  # the thread holds this object, so nothing is freed under a kernel nobody waits for any more
        self._launch = launch
        self._level = level
        self._cpus = np.array(cpus, np.int32) if cpus else None
        self._ended = threading.Event()
        self._outcome = -1
        self.seconds = 0.0
        self._thread = threading.Thread(target=self._fly, name="mpklab-kernel", daemon=True)
        self._thread.start()

    def _fly(self) -> None:
        cpus = self._cpus.ctypes.data if self._cpus is not None else None
        begin = time.perf_counter()
        self._outcome = self._library.mpk_run(self._launch.ctypes.data, self._level, cpus)
        self.seconds = time.perf_counter() - begin
        self._ended.set()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after at most so long."""
        return self._ended.wait(seconds)

    def finish(self) -> None:
        """Raise what the library reported beside aborts and faults, which the caller reads from memory."""
        self._thread.join()
        if self._outcome in OUTCOMES:
            raise RunError(OUTCOMES[self._outcome])
