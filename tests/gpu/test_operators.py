"""Each CUDA operator against float64, one tile at a time, held to what it may read and write."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import test_host_ops as host
import torch
from gpu_kit import DeviceLibrary
from operator_cases import ALL, GROUPS, hold, hold_rows_to_no_tile

WARPS = (8, 16)
TOGETHER = 4


Libraries = dict[tuple[str, int, int], DeviceLibrary]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    folder = tmp_path_factory.mktemp("ops")
    # A few variants a kernel: compilers take their time over large ones.
    keys = [(name, i, warps) for name in GROUPS for i in range(0, len(GROUPS[name]), TOGETHER) for warps in WARPS]

    def make(key: tuple[str, int, int]) -> DeviceLibrary:
        name, first, warps = key
        variants = [c.variant for c in GROUPS[name][first : first + TOGETHER]]
        return DeviceLibrary(folder / f"{name}-{first}-{warps}", variants, warps)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(keys, pool.map(make, keys), strict=True))


@pytest.mark.parametrize("warps", WARPS)
@pytest.mark.parametrize(("group", "number"), ALL)
def test_operator_tile_by_tile(libraries: Libraries, group: str, number: int, warps: int) -> None:
    library = libraries[group, number // TOGETHER * TOGETHER, warps]
    hold(library, number % TOGETHER, GROUPS[group][number])


@pytest.mark.parametrize("warps", WARPS)
def test_linear_rows_do_not_depend_on_the_tile(libraries: Libraries, warps: int) -> None:
    """However rows are cut into tiles, each row has the same bits."""
    g = torch.Generator().manual_seed(1)
    for number, case in enumerate(GROUPS["tuned"]):
        if case.name.startswith("linear") and "parts" not in case.name:
            library = libraries["tuned", number // TOGETHER * TOGETHER, warps]
            hold_rows_to_no_tile(library, number % TOGETHER, case, host.cuts(g, case.outputs[2].shape[1], 3))
