"""Small CPU kernels by hand: compiles an entry file, packs tables, calls `mpk_run` and reads back what it left."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpklab import abi, env

FLAGS = ["-std=c++20", "-O3", "-march=native", "-fPIC", "-pthread", "-fno-math-errno", "-Wall", "-Wextra", "-Werror"]
OPERATORS = (
    "add",
    "advance",
    "argmax_partial",
    "argmax_reduce",
    "attention",
    "attention_merge",
    "embedding",
    "linear",
    "rms_norm",
    "sample",
    "silu_mul",
)
DTYPES = {
    torch.float32: abi.DType.float32,
    torch.bfloat16: abi.DType.bfloat16,
    torch.int32: abi.DType.int32,
    torch.int64: abi.DType.int64,
}


def compiler() -> list[str]:
    return env.cxx_command()


def entry_source(variants: Sequence[str], extra: str = "") -> str:
    """The entry file that the code generator writes, by hand; `extra` declares operators of the test's own."""
    lines = ['#include "mpklab/host/worker.hpp"']
    lines += [f'#include "mpklab/ops/{name}.hpp"' for name in OPERATORS]
    lines += ["using namespace mpk;", "using namespace mpk::ops;", extra]
    lines += [f"using Kernel = Variants<{', '.join(variants)}>;"]
    lines += [
        'extern "C" int mpk_run(const Launch* launch, unsigned level, const int* cpus) '
        "{ return run_host<Kernel>(*launch, level, cpus); }",
        'extern "C" unsigned mpk_scratch_bytes() { return scratch_bytes<Kernel>(); }',
    ]
    return "\n".join(lines) + "\n"


def device_source(variants: Sequence[str], warps: int, level: int = 0) -> str:
    """The same for a CUDA kernel of so many consumer warps."""
    lines = ['#include "mpklab/device/worker.cuh"']
    lines += [f'#include "mpklab/ops/{name}.cuh"' for name in OPERATORS]
    lines += ["using namespace mpk;", "using namespace mpk::ops;"]
    lines += [f"using Kernel = Variants<{', '.join(variants)}>;"]
    lines += [f'extern "C" __global__ void __launch_bounds__(mpk::threads<{warps}>(), 1)']
    lines += ["mpk_kernel(const __grid_constant__ mpk::Launch launch) {"]
    lines += [f"  mpk::run_device<Kernel, {level}, {warps}, 32768, 6, 2, 0>(launch);", "}"]
    return "\n".join(lines) + "\n"


def compile_source(source: str | Path, target: Path, *flags: str) -> Path:
    if isinstance(source, str):
        path = target.with_suffix(".cpp")
        path.write_text(source)
    else:
        path = source
    command = [*compiler(), *FLAGS, *flags, f"-I{env.csrc_folder() / 'include'}", str(path), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[:4000]}"
    return target


class Library:
    """A compiled entry."""

    def __init__(self, folder: Path, name: str, variants: Sequence[str], *flags: str, extra: str = "") -> None:
        self.variants = list(variants)
        path = compile_source(entry_source(variants, extra), folder / f"{name}.so", "-shared", *flags)
        self._library = ctypes.CDLL(str(path))
        self._run = self._library.mpk_run
        self._run.argtypes = [ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p]
        self._run.restype = ctypes.c_int
        self.scratch_bytes: int = self._library.mpk_scratch_bytes()

    def run(self, launch: np.ndarray, level: int, cpus: np.ndarray | None = None) -> int:
        return self._run(launch.ctypes.data, level, None if cpus is None else cpus.ctypes.data)


@dataclass
class Program:
    """Tasks, events and slots gathered one call at a time, then packed and run."""

    slots: list[torch.Tensor] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    needs: list[int] = field(default_factory=list)
    dims: tuple[int, ...] = ()

    def slot(self, tensor: torch.Tensor) -> int:
        assert tensor.is_contiguous()
        self.slots.append(tensor)
        return len(self.slots) - 1

    def event(self, need: int) -> int:
        self.needs.append(need)
        return len(self.needs) - 1

    def task(
        self,
        variant: int,
        slots: Sequence[int],
        tile: Sequence[int] = (),
        waits: Sequence[int | tuple[int, int]] = (),
        signals: Sequence[int] = (),
        load_waits: Sequence[int | tuple[int, int]] = (),
        flags: int = 0,
    ) -> int:
        """A wait is an event, or (event, lag)."""
        self.tasks.append(
            {
                "variant": variant,
                "slots": list(slots),
                "tile": list(tile),
                "waits": [w if isinstance(w, tuple) else (w, 0) for w in waits],
                "load_waits": [w if isinstance(w, tuple) else (w, 0) for w in load_waits],
                "signals": list(signals),
                "flags": flags,
            }
        )
        return len(self.tasks) - 1

    def pack(
        self,
        queues: Sequence[Sequence[Sequence[int]]],
        iterations: int = 1,
        steps: bool = False,
        capacity: int = 0,
        wait_limit: int = 1 << 40,
        segments: dict[int, list[tuple[torch.Tensor, int]]] | None = None,
        words: Sequence[int] = (),
        word_of: dict[int, int] | None = None,
        skip: int = 0,
        record: int = 0,
        first_iteration: int = 0,
        table: int = 0,
        prefetch: int = 0,
    ) -> Packed:
        """queues: per table, per worker, task numbers. segments: slot → its pieces with their row counts."""
        tasks = np.zeros(len(self.tasks), abi.TASK)
        waits: list[tuple[int, int]] = []
        signals: list[int] = []
        for row, task in zip(tasks, self.tasks, strict=True):
            row["variant"], row["flags"] = task["variant"], task["flags"]
            row["tile"][: len(task["tile"])] = task["tile"]
            row["slots"][: len(task["slots"])] = task["slots"]
            row["waits"], row["n_waits"] = len(waits), len(task["waits"])
            waits += task["waits"]
            row["load_waits"], row["n_load_waits"] = len(waits), len(task["load_waits"])
            waits += task["load_waits"]
            row["signals"], row["n_signals"] = len(signals), len(task["signals"])
            signals += task["signals"]
        wait_rows = np.zeros(max(1, len(waits)), abi.WAIT)
        for row, (event, lag) in zip(wait_rows, waits, strict=False):
            word = (word_of or {}).get(event, abi.NO_WORD)
            row["event"], row["lag"], row["word"] = event, lag, word
            row["need"] = self.needs[event] if word == abi.NO_WORD else -1
        signal_rows = np.zeros(max(1, len(signals)), abi.SIGNAL)
        for row, event in zip(signal_rows, signals, strict=False):
            row["event"], row["weight"] = event, 1
        flat = [task for table_queues in queues for queue in table_queues for task in queue]
        entries = np.zeros(max(1, len(flat)), abi.ENTRY)
        entries["task"][: len(flat)] = flat
        lengths = [len(queue) for table_queues in queues for queue in table_queues]
        slot_rows = np.zeros(max(1, len(self.slots)), abi.SLOT)
        keep: list[Any] = []
        for number, (row, tensor) in enumerate(zip(slot_rows, self.slots, strict=False)):
            row["base"], row["bytes"] = tensor.data_ptr(), tensor.numel() * tensor.element_size()
            row["dtype"] = DTYPES[tensor.dtype]
            pieces = (segments or {}).get(number, [])
            if pieces:
                parts, begin = np.zeros(len(pieces), abi.SEGMENT), 0
                for part, (piece, rows) in zip(parts, pieces, strict=True):
                    part["base"], part["begin"], part["end"] = piece.data_ptr(), begin, begin + rows
                    begin += rows
                row["segments"], row["n_segments"], row["base"] = parts.ctypes.data, len(pieces), 0
                keep += [parts, pieces]
        workers = len(queues[0])
        control, host = np.zeros(1, abi.CONTROL), np.zeros(1, abi.HOST)
        dims = np.zeros(abi.MAX_DIMS, np.int32)
        dims[: len(self.dims)] = self.dims
        if steps:
            control["published"] = 1
            control["step"][0, 0]["dims"] = dims
            control["step"][0, 0]["table"] = table
        lanes = np.zeros(workers * (abi.LANE.itemsize + capacity * abi.RECORD.itemsize), np.uint8)
        arrays = {
            "tasks": tasks,
            "waits": wait_rows,
            "signals": signal_rows,
            "entries": entries,
            "queues": np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint32),
            "slots": slot_rows,
            "counters": np.zeros(max(1, len(self.needs)) * abi.EVENT_STRIDE, np.int32),
            "words": np.array(list(words) or [0], np.int32),
            "control": control,
            "host": host,
            "lanes": lanes,
        }
        launch = np.zeros(1, abi.LAUNCH)
        for name, array in arrays.items():
            launch[name] = array.ctypes.data
        if not capacity:
            launch["lanes"] = 0
        launch["n_workers"], launch["n_tables"] = workers, len(queues)
        launch["n_events"], launch["n_tasks"] = len(self.needs), len(tasks)
        launch["iterations"], launch["first_iteration"], launch["steps"] = iterations, first_iteration, steps
        launch["lane_capacity"], launch["lanes_per_worker"] = capacity, 1
        launch["wait_limit"], launch["dims"][0], launch["table"] = wait_limit, dims, table
        launch["window_skip"], launch["window_record"], launch["prefetch"] = skip, record, prefetch
        return Packed(launch, arrays, [keep, self.slots], capacity)


@dataclass
class Packed:
    """Tables ready for one run, and the memory they point into."""

    launch: np.ndarray
    arrays: dict[str, np.ndarray]
    keep: list[Any]
    capacity: int

    @property
    def fault(self) -> Any:
        return self.arrays["host"]["fault"][0]

    def lane(self, worker: int) -> tuple[Any, np.ndarray]:
        """The header and the kept records of one worker's lane."""
        size = abi.LANE.itemsize + self.capacity * abi.RECORD.itemsize
        raw = self.arrays["lanes"][worker * size : (worker + 1) * size]
        header = raw[: abi.LANE.itemsize].view(abi.LANE)[0]
        records = raw[abi.LANE.itemsize :].view(abi.RECORD)
        return header, records[: min(int(header["written"]), self.capacity)]


def phases(records: np.ndarray) -> list[tuple[str, str, int]]:
    """(kind, phase, argument) of each record."""
    tag = records["tag"]
    return [(abi.Kind(int(t) & 3).name, abi.Phase(int(t) >> 2 & 63).name, int(t) >> 8) for t in tag]
