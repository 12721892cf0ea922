"""The smallest proof that this machine's GPU runs what the CPU runs."""

from __future__ import annotations

import pytest
import torch

import mpklab as mk


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_norm_and_linear_equal_the_cpu(dtype: str) -> None:
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
    expected = mk.compile(graph, machine=mk.Machine.cpu(workers=2)).run(values)["y"]
    found = mk.compile(graph).run({name: value.cuda() for name, value in values.items()})["y"]
    torch.testing.assert_close(found.cpu().float(), expected.float(), rtol=2e-2, atol=2e-2)
