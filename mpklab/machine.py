"""The machine a graph is lowered for: how many workers, how much memory beside each, how fast."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from mpklab.errors import EnvError, suggest


@dataclass(frozen=True, slots=True)
class Machine:
    """Workers and rates. Bandwidth in bytes/s, peaks in flop/s, latencies in seconds, sizes in bytes.

    Figures of named GPUs come from vendors' datasheets except for `h200`, whose bandwidth and hand-off latency were
    measured (profiles/LOG.md); they serve lowering and simulation, never a reported result.
    """

    name: str
    backend: str  # "cpu" or "cuda"
    workers: int
    shared_bytes: int  # shared memory of one worker (CPU: its share of the L2 cache)
    bandwidth: float
    peak_bf16: float
    peak_f32: float
    handoff_s: float  # signal to notice, all workers to all
    task_overhead_s: float  # fetch, wait already met, signal
    capability: tuple[int, int] = (0, 0)
    cpus: tuple[int, ...] = ()  # one CPU number per worker, or empty when unpinned

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise EnvError(f"a machine needs at least one worker, not {self.workers}")

    @staticmethod
    def cpu(workers: int | None = None) -> Machine:
        """This computer's cores. Default: one worker per physical core this process may use."""
        cores = _physical_cores()
        if workers is None:
            workers = len(cores)
        if not isinstance(workers, int) or workers < 1:
            raise EnvError(f"workers must be a positive number, not {workers!r}")
        pins = tuple(cores[:workers]) if workers <= len(cores) else ()
        return Machine(
            name="cpu",
            backend="cpu",
            workers=workers,
            shared_bytes=1 << 20,
            bandwidth=1.2e10 * min(workers, len(cores)),
            peak_bf16=5e10 * workers,
            peak_f32=5e10 * workers,
            handoff_s=4e-7,
            task_overhead_s=2e-7,
            cpus=pins,
        )

    @staticmethod
    def named(name: str, workers: int | None = None) -> Machine:
        """A GPU that need not be there: h200, h100, a100, b200 or rtx4090."""
        try:
            machine = _NAMED[name.lower()]
        except KeyError:
            raise EnvError(f"unknown machine {name!r}: {suggest(name, _NAMED)}") from None
        return replace(machine, workers=workers) if workers else machine

    @staticmethod
    def detect() -> Machine:
        """The CUDA device torch would use, else this computer's cores."""
        device = Machine._cuda()
        return device if device is not None else Machine.cpu()

    @staticmethod
    def cuda(workers: int | None = None) -> Machine:
        """The CUDA device torch would use; an error where there is none."""
        machine = Machine._cuda()
        if machine is None:
            raise EnvError("no CUDA device: torch.cuda.is_available() is false. `mpklab doctor` says what is missing")
        return replace(machine, workers=workers) if workers else machine

    @staticmethod
    def _cuda() -> Machine | None:
        import torch

        if not torch.cuda.is_available():
            return None
        p = torch.cuda.get_device_properties(torch.cuda.current_device())
        key = next((k for k in _NAMED if k in p.name.lower().replace(" ", "")), None)
        like = _NAMED[key] if key else _NAMED["a100"]
        return replace(
            like,
            name=p.name,
            workers=p.multi_processor_count,
            shared_bytes=getattr(p, "shared_memory_per_block_optin", like.shared_bytes),
            capability=(p.major, p.minor),
        )

    def to_json(self) -> dict[str, Any]:
        """The machine as `from_json` takes it."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Machine:
        """A machine that `to_json` wrote; EnvError for anything else."""
        try:
            major, minor = (int(x) for x in data["capability"])
            return Machine(**{**data, "capability": (major, minor), "cpus": tuple(int(c) for c in data["cpus"])})
        except (KeyError, TypeError, ValueError) as error:
            raise EnvError(f"not a machine's description: {error!r}") from error

    def __str__(self) -> str:
        return f"{self.name}: {self.workers} workers, {self.bandwidth / 1e9:.0f} GB/s"


def _physical_cores() -> list[int]:
    """One CPU number for each physical core in this process's affinity mask."""
    try:
        allowed = sorted(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        return list(range(os.cpu_count() or 1))
    seen: dict[str, int] = {}
    for cpu in allowed:
        path = f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        try:
            with open(path) as f:
                seen.setdefault(f.read().strip(), cpu)
        except OSError:
            seen.setdefault(str(cpu), cpu)
    return sorted(seen.values())


_NAMED = {
    "h200": Machine("h200", "cuda", 132, 232448, 4.55e12, 7.9e14, 6.0e13, 1.4e-6, 4e-7, (9, 0)),
    "h100": Machine("h100", "cuda", 132, 232448, 3.0e12, 7.9e14, 6.0e13, 1.4e-6, 4e-7, (9, 0)),
    "a100": Machine("a100", "cuda", 108, 166912, 1.8e12, 2.8e14, 1.9e13, 1.8e-6, 5e-7, (8, 0)),
    "b200": Machine("b200", "cuda", 148, 232448, 7.2e12, 1.8e15, 7.5e13, 1.5e-6, 4e-7, (10, 0)),
    "rtx4090": Machine("rtx4090", "cuda", 128, 101376, 9.4e11, 1.6e14, 8.0e13, 1.5e-6, 4e-7, (8, 9)),
}
