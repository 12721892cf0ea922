"""Small CUDA kernels by hand: what host_kit packs, compiled with NVRTC and run on the device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from host_kit import Packed, device_source

from mpklab import device
from mpklab.run.session import Memory


class DeviceLibrary:
    """A kernel of the given operator variants."""

    device = "cuda"

    def __init__(self, folder: Path, variants: Sequence[str], warps: int, level: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        cubin, self.log = device.compile_cubin(
            device_source(variants, warps, level), device.architecture(), "nvrtc", folder
        )
        self.file = folder / "kernel.cubin"
        self.file.write_bytes(cubin)
        self.settings = {"page_bytes": 32768, "pages": 6, "consumer_warps": warps}

    def run(self, packed: Packed) -> None:
        """One launch; the tensors behind the slots are on the device already."""
        launch, kept = packed.launch.copy(), []
        pieces = iter(packed.keep[0][0::2])
        for row in packed.arrays["slots"]:
            if row["n_segments"]:
                kept.append(Memory(next(pieces), "cuda"))
                row["segments"] = kept[-1].address
        for name, array in packed.arrays.items():
            if name == "lanes" and not packed.capacity:
                continue
            kept.append(Memory(array, "cpu" if name == "host" else "cuda", pinned=name == "host"))
            launch[name] = kept[-1].address
            if name == "host":
                host = kept[-1]
        launch["prefetch"], launch["wait_limit"] = 1, 1 << 31
        flight = device.Flight(self.file, launch, int(launch["n_workers"][0]), self.settings)
        stuck = not flight.wait(10.0)
        if stuck:
            host.host()["abort"][0] = 1
        flight.finish()
        assert not stuck, "the kernel hung"
        assert not int(np.asarray(host.host()["fault"]["state"])[0]), "a wait outlasted its limit"
