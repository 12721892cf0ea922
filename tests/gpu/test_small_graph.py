"""The smallest proof that this machine's GPU runs what the CPU runs."""

from __future__ import annotations

import pytest
import torch

import mpklab as mk


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_norm_and_linear_are_right_on_both(dtype: str) -> None:
    builder = mk.GraphBuilder("small")
    x = builder.input("x", (1, 256), dtype)
    normed = builder.rms_norm("norm", x=x, weight=builder.weight("gain", (256,), dtype))
    builder.linear("y", x=normed, weight=builder.weight("weight", (512, 256), dtype), role="output")
    graph = builder.build()
    generator = torch.Generator().manual_seed(0)
    values = {
        name: torch.randn(graph.tensors[name].shape, generator=generator).to(getattr(torch, dtype))
        for name in ("x", "gain", "weight")
    }
    exact = {name: value.double() for name, value in values.items()}
    scale = torch.rsqrt(exact["x"].square().mean() + 1e-5)
    truth = (exact["x"] * scale * exact["gain"]) @ exact["weight"].T
    # Two roundings to bfloat16 lie between input and output (2^-9 each, relative); float32 sums 256 products.
    limit = 2**-8 if dtype == "bfloat16" else 1e-6
    for found in (
        mk.compile(graph, machine=mk.Machine.cpu(workers=2)).run(values)["y"],
        mk.compile(graph).run({name: value.cuda() for name, value in values.items()})["y"],
    ):
        assert float((found.cpu().double() - truth).norm() / truth.norm()) <= limit
