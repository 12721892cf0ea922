"""One torch function per operator: what a single tile computes, from whole tensors, in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from mpklab.ops import Node

Tensors = Mapping[str, torch.Tensor]
TileFunction = Callable[[Node, Tensors, list[int]], None]
FUNCTIONS: dict[str, TileFunction] = {}


def _operator(function: TileFunction) -> TileFunction:
    FUNCTIONS[function.__name__] = function
    return function


def normalise(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last axis, float32 in and out."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def rotate(x: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    """Rotate-half rope of [..., D] by a table row [D] (cos of the first half, then sin)."""
    half = x.shape[-1] // 2
    cos, sin = rope[..., :half], rope[..., half:]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def merged(partial: torch.Tensor, stats: torch.Tensor) -> torch.Tensor:
    """Splits [..., S, D] with (max, sum) [..., S, 2] joined to [..., D]."""
    top = stats[..., 0].amax(-1, keepdim=True)
    weight = torch.exp(stats[..., 0] - top) * stats[..., 1]
    total = (weight.unsqueeze(-1) * partial.float()).sum(-2)
    return total / weight.sum(-1, keepdim=True)


def dealt(parts: Sequence[torch.Tensor], groups: int) -> list[torch.Tensor]:
    """The rows of a weight made of parts, in its order: the first share of each part, then the second of each …"""
    return [share for shares in zip(*(p.chunk(groups) for p in parts), strict=True) for share in shares]


def first_largest(x: torch.Tensor) -> torch.Tensor:
    """Index of the largest along the last axis: NaN above all, lowest index among equals, as torch.argmax."""
    return torch.argmax(x, -1)


@_operator
def embedding(node: Node, t: Tensors, tile: list[int]) -> None:
    columns = slice(tile[0], tile[1])
    t["out"][:, columns] = t["weight"][t["token"].long()][:, columns]


@_operator
def rms_norm(node: Node, t: Tensors, tile: list[int]) -> None:
    rows = slice(tile[0], tile[1])
    t["out"][rows] = normalise(t["x"][rows].float(), t["weight"], node.attrs["eps"]).to(t["out"].dtype)


@_operator
def linear(node: Node, t: Tensors, tile: list[int]) -> None:
    lo, hi = tile[0], tile[1]
    x = t["x"]
    x = merged(x, t["stats"]).flatten(1) if "stats" in t else x.float()
    if "norm_weight" in t:
        x = normalise(x, t["norm_weight"], node.attrs["eps"])

    def rows(begin: int, end: int) -> torch.Tensor:
        y = x @ t["weight"][begin:end].float().T
        return y + t["bias"][begin:end].float() if "bias" in t else y

    y = rows(lo, hi)
    if node.attrs["epilogue"] == "silu_mul":
        n = t["weight"].shape[0] // 2
        y = torch.nn.functional.silu(y) * rows(n + lo, n + hi)
    elif node.attrs["epilogue"] == "residual":
        y = y + t["residual"][:, lo:hi].float()
    t["out"][:, lo:hi] = y.to(t["out"].dtype)
    if "value" in t:
        best = first_largest(t["out"][:, lo:hi].float())
        t["value"][:, tile[2]] = t["out"][:, lo:hi].float().gather(1, best[:, None])[:, 0]
        t["index"][:, tile[2]] = (best + lo).int()


@_operator
def attention(node: Node, t: Tensors, tile: list[int]) -> None:
    b, h, split, _ = tile
    a = node.attrs
    _, kv, _, d = t["k_cache"].shape
    group, splits = a["heads"] // kv, a["splits"]
    p = int(t["position"][b])
    rope = t["rope"][p]

    def heads(name: str, count: int, norm: str) -> torch.Tensor:
        begin = a[f"{name}_offset"] + h * (a.get("group_stride") or count * d)
        x = t[name][b, begin : begin + count * d].float().view(count, d)
        return normalise(x, t[norm], a["eps"]) if norm in t else x

    q = rotate(heads("q", group, "q_norm"), rope)
    begin, end = (p + 1) * split // splits, (p + 1) * (split + 1) // splits
    if begin <= p < end:
        t["k_cache"][b, h, p] = rotate(heads("k", 1, "k_norm"), rope)[0].to(t["k_cache"].dtype)
        t["v_cache"][b, h, p] = heads("v", 1, "")[0].to(t["v_cache"].dtype)
    rows = slice(h * group, (h + 1) * group)
    if begin == end:
        t["out"][b, rows, split] = 0
        t["stats"][b, rows, split] = torch.tensor([-math.inf, 0.0])
        return
    scores = q @ t["k_cache"][b, h, begin:end].float().T / math.sqrt(d)
    top = scores.amax(-1, keepdim=True)
    weight = torch.exp(scores - top)
    total = weight.sum(-1, keepdim=True)
    y = weight @ t["v_cache"][b, h, begin:end].float() / total
    if splits == 1:
        t["out"][b, h * group * d : (h + 1) * group * d] = y.flatten().to(t["out"].dtype)
    else:
        t["out"][b, rows, split] = y.to(t["out"].dtype)
        t["stats"][b, rows, split] = torch.cat([top, total], -1)


@_operator
def attention_merge(node: Node, t: Tensors, tile: list[int]) -> None:
    b, lo, hi, _ = tile
    d = t["partial"].shape[3]
    y = merged(t["partial"][b, lo:hi], t["stats"][b, lo:hi])
    t["out"][b, lo * d : hi * d] = y.flatten().to(t["out"].dtype)


@_operator
def silu_mul(node: Node, t: Tensors, tile: list[int]) -> None:
    lo, hi = tile[0], tile[1]
    column = torch.arange(lo, hi, device=t["out"].device)
    run = t["out"].shape[1] // node.attrs.get("groups", 1)
    column = column + column // run * run  # past the runs of the other kind; with one group there are none
    gate = t["gate"][:, node.attrs["gate_offset"] + column].float()
    up = t["up"][:, node.attrs["up_offset"] + column].float()
    t["out"][:, lo:hi] = (torch.nn.functional.silu(gate) * up).to(t["out"].dtype)


@_operator
def add(node: Node, t: Tensors, tile: list[int]) -> None:
    columns = slice(tile[0], tile[1])
    t["out"][:, columns] = (t["a"][:, columns].float() + t["b"][:, columns].float()).to(t["out"].dtype)


@_operator
def argmax_partial(node: Node, t: Tensors, tile: list[int]) -> None:
    lo, hi, part, _ = tile
    best = first_largest(t["x"][:, lo:hi].float())
    t["value"][:, part] = t["x"][:, lo:hi].float().gather(1, best[:, None])[:, 0]
    t["index"][:, part] = (best + lo).int()


@_operator
def argmax_reduce(node: Node, t: Tensors, tile: list[int]) -> None:
    part = first_largest(t["value"])  # parts stand in order of index, so the first largest has the lowest index
    t["out"][:] = t["index"].gather(1, part[:, None])[:, 0]


@_operator
def advance(node: Node, t: Tensors, tile: list[int]) -> None:
    context = t["generated"].shape[1]
    for b in range(len(t["token"])):
        if int(t["done"][b]):
            continue
        chosen, at = int(t["next_token"][b]), int(t["position"][b]) + 1
        t["token"][b], t["position"][b] = chosen, at
        if at < context:
            t["generated"][b, at] = chosen
        t["done"][b] = int(at + 1 >= int(t["limit"][b]) or at + 1 >= context or chosen in t["eos"].tolist())
