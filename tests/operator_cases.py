"""Operators of the CUDA backend as test cases, and what holds a tile of one to float64, to its reads and its writes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import pytest
import test_host_ops as host
import torch
from host_kit import Packed, Program

BF16, F32 = torch.bfloat16, torch.float32


class Runs(Protocol):
    """A kernel of some variants: where its tensors should lie, and a launch of it."""

    device: str

    def run(self, packed: Packed) -> None: ...


def tuned_cases() -> list[host.Case]:
    """What a decode step is made of: tensor cores and the ring, for 1 to 16 rows."""
    g = torch.Generator().manual_seed(11)
    linear, attention = host.linear, host.attention
    out = [
        linear(g, BF16, 211, 1024, norm=True),
        linear(g, BF16, 90, 1024, norm=True, segments=[31, 40, 19]),
        linear(g, BF16, 75, 1024, norm=True, epilogue="silu_mul"),
        linear(g, BF16, 60, 3072, epilogue="residual"),
        linear(g, BF16, 40, 4096, norm=True, bias=True),
        linear(g, BF16, 33, 8192, epilogue="residual"),
        linear(g, BF16, 35, 12288, epilogue="residual"),
        linear(g, BF16, 1201, 1024, norm=True, parts=4, out=F32),
        linear(g, BF16, 100, 2560, norm=True, epilogue="silu_mul", bias=True),
    ]
    for splits, size, partial in ((1, 128, BF16), (2, 64, F32), (8, 128, BF16), (8, 128, F32), (8, 64, BF16)):
        out.append(linear(g, BF16, 70, 2048, epilogue="residual", splits=splits, size=size, partial_dtype=partial))
    for rows, live in ((2, 2), (4, 3), (8, 8), (8, 5), (16, 16), (16, 9)):
        out += [
            linear(g, BF16, 130, 1024, rows=rows, live=live, norm=True),
            linear(g, BF16, 70, 1024, rows=rows, live=live, norm=True, epilogue="silu_mul"),
            linear(g, BF16, 50, 3072, rows=rows, live=live, epilogue="residual"),
            linear(g, BF16, 300, 1024, rows=rows, live=live, norm=True, parts=3, out=F32),
        ]
    # Activations that stay in registers, ones that pass through them, spans that do not fill up, more than one group.
    out += [
        linear(g, BF16, 260, 4096, rows=8, norm=True),
        linear(g, BF16, 90, 4096, rows=8, norm=True, epilogue="silu_mul", segments=[100, 80]),
        linear(g, BF16, 40, 4096, rows=16, live=11, norm=True, epilogue="silu_mul"),
        linear(g, BF16, 210, 8192, rows=4, norm=True),
        linear(g, BF16, 40, 12288, rows=8, epilogue="residual"),
        linear(g, BF16, 230, 6144, rows=16, epilogue="residual"),
        linear(g, BF16, 110, 2560, rows=3, norm=True, bias=True),
        linear(g, BF16, 70, 9728, rows=5, epilogue="residual"),
        linear(g, BF16, 50, 576, rows=2, norm=True),
        linear(g, BF16, 30, 64, rows=16, norm=True, epilogue="silu_mul"),
    ]
    for rows in (2, 8):
        out.append(linear(g, BF16, 70, 2048, rows=rows, epilogue="residual", splits=8, size=128, partial_dtype=BF16))
    for size in (64, 128):
        for splits, partial in ((1, None), (2, F32), (8, BF16), (8, F32)):
            for q_heads, positions in ((4, [150]), (16, [0, 299, 130]), (8, [63])):
                out.append(
                    attention(
                        g, BF16, q_heads, 2, size, 320, positions, splits, qk_norm=size == 128, partial_dtype=partial
                    )
                )
    out.append(attention(g, BF16, 4, 1, 128, 320, [200, 1, 64, 65], 8, partial_dtype=BF16, live=3))
    for size in (32, 96, 256):
        for splits in (1, 3):
            out.append(attention(g, BF16, 12, 2, size, 320, [319, 16, 0, 47], splits, partial_dtype=F32))
    out.append(attention(g, BF16, 3, 3, 128, 900, [899, 600, 127, 128], 2, qk_norm=True, partial_dtype=BF16))
    out.append(attention(g, BF16, 16, 8, 128, 512, [400], qk_norm=True, grouped=True, rows_first=True))
    out.append(attention(g, BF16, 8, 2, 64, 320, [63, 200], 8, partial_dtype=BF16, rows_first=True))
    return out


def possible(case: host.Case) -> bool:
    """Merging reads a head eight elements at a time; the compiler refuses others."""
    return not case.name.startswith("attention_merge-3x20")


GROUPS = {
    "bfloat16": [c for c in host.CASES[BF16] if possible(c)],
    "float32": [c for c in host.CASES[F32] if possible(c)],
    "tuned": tuned_cases(),
}
ALL = [pytest.param(g, i, id=f"{g}-{i}-{c.name}") for g, cases in GROUPS.items() for i, c in enumerate(cases)]


class Guarded:
    """A tensor on a device between two bands of NaN (or a canary)."""

    def __init__(self, values: torch.Tensor, band: float, device: str) -> None:
        self.flat = host.Guarded(values, band).flat.to(device)
        self.values = self.flat[host.GUARD : host.GUARD + values.numel()].view(values.shape)


def run_tile(
    library: Runs, variant: int, case: host.Case, tile: tuple[int, ...]
) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """Runs one tile of a library's variant on fresh memory; the outputs with their bands before and after, on the host."""
    readable = case.reads(tile)
    program = Program(dims=case.dims)
    slots: dict[int, int] = {}
    segments: dict[int, Any] = {}
    before, after = {}, {}
    for operand, values in case.inputs.items():
        values = host.poisoned(values, readable.get(operand))
        if operand in case.segments:
            pieces = [Guarded(p, math.nan, library.device) for p in values.split(case.segments[operand])]
            slots[operand] = program.slot(pieces[0].values)
            segments[slots[operand]] = [(p.values, len(p.values)) for p in pieces]
        else:
            slots[operand] = program.slot(Guarded(values, math.nan, library.device).values)
    for operand, expected in case.outputs.items():
        if operand in case.state:
            start = host.poisoned(case.state[operand], readable.get(operand))
        else:
            fill = host.CANARY if operand != 2 or case.dtypes[operand] == torch.int32 else math.nan
            start = torch.full(expected.shape, fill, dtype=torch.float64).to(case.dtypes[operand])
        before[operand] = host.Guarded(start, host.CANARY).flat
        after[operand] = Guarded(start, host.CANARY, library.device)
        slots[operand] = program.slot(after[operand].values)
    for operand, other in case.aliases.items():
        slots[operand] = slots[other]
    program.task(variant, [slots.get(i, 0) for i in range(12)], tile)
    library.run(program.pack([[[0]]], segments=segments))
    return before, {operand: guarded.flat.cpu() for operand, guarded in after.items()}


def inside(flat: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return flat[host.GUARD : len(flat) - host.GUARD].view(shape)


def hold(library: Runs, variant: int, case: host.Case) -> None:
    """Every tile of a case: its values, and nothing outside its boxes."""
    written_once = False
    for tile in case.tiles:
        before, after = run_tile(library, variant, case, tile)
        written = case.writes(tile)
        found: dict[int, torch.Tensor] = {}
        for operand, expected in case.outputs.items():
            mask = written[operand]
            written_once |= bool(mask.any())
            found[operand] = inside(after[operand], expected.shape)
            restored = host.as_bits(after[operand]).clone()
            inside(restored, expected.shape)[mask] = host.as_bits(inside(before[operand], expected.shape))[mask]
            assert restored.equal(host.as_bits(before[operand])), f"tile {tile} wrote outside its box of {operand}"
        check(case, tile, found, written)
    assert written_once


def check(case: host.Case, tile: tuple[int, ...], found: dict[int, torch.Tensor], masks: dict[int, Any]) -> None:
    matrix = "mpk::bf16" in case.variant
    for operand, expected in case.outputs.items():
        mask, where = masks[operand], f"tile {tile}, operand {operand}"
        mine, right = found[operand][mask], expected[mask]
        if case.name.startswith("linear") and operand in (7, 8):
            # Rounding decides near ties, so the choice is held to the outputs as they were stored.
            begin, end = tile[:2]
            if begin < end and mask.any():
                rows = mask.any(-1)
                values, indices = host.part_bests(found[2][rows], [(begin, end)])
                chosen = values if operand == 7 else indices
                assert mine.double().tolist() == chosen[:, 0].double().tolist(), where
            continue
        if operand == 10 or mine.dtype == torch.int32 or not matrix or case.name.startswith(("argmax", "sample")):
            loose = operand == 10 and matrix
            if loose:  # largest score and sum of exponentials: only together do they mean something
                pair, truth = found[10][mask].view(-1, 2).double(), expected[mask].view(-1, 2)
                close = (pair[:, 0] + pair[:, 1].log()) - (truth[:, 0] + truth[:, 1].log())
                empty = truth[:, 1] == 0
                assert (pair[empty, 1] == 0).all() and (close[~empty].abs() < 0.1).all(), where
            else:
                host.compare(mine, right, 4 * case.scale, where)
            continue
        if mine.numel() == 0:
            continue
        assert not mine.isnan().any(), where
        # Operands are rounded to 16 bits before they are multiplied: a sum of k terms is off by a part of its root.
        spread = case.scale * 2.0**-7 if case.name.startswith(("linear", "attention")) else case.scale * 2e-6
        error = (mine.double() - right).abs()
        assert (error <= spread + right.abs() * 2.0**-7).all(), f"{where}: off by {float(error.max())}"
        if mine.numel() >= 16 and right.any():
            relative = float((mine.double() - right).norm() / right.norm())
            assert relative < 2.0**-6, f"{where}: {relative}"


def hold_rows_to_no_tile(library: Runs, variant: int, case: host.Case, cuts: list[tuple[int, int]]) -> None:
    """However the rows of a linear are cut into tiles, each row has the same bits."""
    shape = case.outputs[2].shape
    free = dataclasses.replace(case, reads=lambda tile: {})
    live = case.writes((0, shape[1], 0))[2][:, 0]
    whole = inside(run_tile(library, variant, free, (0, shape[1], 0))[1][2], shape)
    for part in cuts:
        tile = inside(run_tile(library, variant, free, (*part, 0))[1][2], shape)
        assert host.same_bits(tile[live, slice(*part)], whole[live, slice(*part)]), (case.name, part)
