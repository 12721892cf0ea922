"""Prefill: the prompt through the graph as it was given, operator by operator in torch, to fill the key/value caches."""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from mpklab.errors import RunError
from mpklab.graph import Graph, Operator
from mpklab.reference.functions import normalise, rotate

PLAIN = {"x", "weight", "bias", "out"}  # operands of a linear that nothing was fused into


@torch.inference_mode()
def prefill(
    tensors: MutableMapping[str, torch.Tensor], graph: Graph, ids: Sequence[int], slot: int = 0, first: int = 0
) -> float:
    """Write cache rows first … first+len(ids)-1 of one sequence, those before them being there; returns seconds.

    `tensors` are the session's: weights as the fused graph names them, and the caches. Rows of the prompt stand where
    rows of the batch stand in a decode step. What only the next token needs (the last projection) is left out.
    """
    begin = time.perf_counter()
    if not ids:
        return 0.0
    source = graph.origin
    attentions = [o for o in source.operators if o.op == "attention"]
    if not attentions:
        return 0.0
    weights = _weights(tensors, graph)
    device = tensors[attentions[0].operands["k_cache"]].device
    values: dict[str, torch.Tensor] = {}
    prompt = torch.tensor(list(ids), dtype=torch.long, device=device)

    def get(o: Operator, operand: str) -> torch.Tensor:
        name = o.operands[operand]
        return values[name] if name in values else weights[name]

    for o in source.operators:
        if o.op == "embedding":
            out = get(o, "weight")[prompt]
        elif o.op == "rms_norm":
            x = get(o, "x")
            out = normalise(x.float(), get(o, "weight"), o.attrs["eps"]).to(x.dtype)
        elif o.op == "linear":
            if set(o.operands) - PLAIN or o.attrs["epilogue"] != "none":
                raise RunError(
                    f"prefill goes through a graph as it was before fusing, and {o.name} is fused without one to go back "
                    "to: give the caches yourself through new_session(…)"
                )
            out = functional.linear(get(o, "x"), get(o, "weight"), get(o, "bias") if "bias" in o.operands else None)
        elif o.op == "attention":
            out = _attention(o, get, tensors, slot, first)
            if o is attentions[-1]:
                break
        elif o.op == "silu_mul":
            out = functional.silu(get(o, "gate")) * get(o, "up")
        elif o.op == "add":
            out = get(o, "a") + get(o, "b")
        else:
            raise RunError(f"prefill does not know {o.op} ({o.name}); give the caches yourself through new_session(…)")
        values[o.operands["out"]] = out
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _weights(tensors: Mapping[str, torch.Tensor], graph: Graph) -> dict[str, torch.Tensor]:
    """Weights by their original names: rows of a merged one where passes merged them."""
    found = dict(tensors)
    for t in graph.tensors.values():
        if t.parts and t.name in tensors and tensors[t.name].shape[0] == t.type.sizes[0]:
            row = 0
            for part in t.parts:
                height = graph.tensors[part].type.sizes[0]
                found[part] = tensors[t.name][row : row + height]
                row += height
    return found


def _attention(  # type: ignore[no-untyped-def]
    o: Operator, get, tensors: Mapping[str, torch.Tensor], slot: int, first: int
) -> torch.Tensor:
    k_cache, v_cache = tensors[o.operands["k_cache"]], tensors[o.operands["v_cache"]]
    _, kv, context, d = k_cache.shape
    n = get(o, "q").shape[0]
    last = first + n
    if last > context:
        raise RunError(f"the prompt of {last} tokens is longer than the cache of {context} ({o.name})")
    rope = get(o, "rope")[first:last].unsqueeze(1)

    def heads(name: str, count: int, norm: str) -> torch.Tensor:
        x = get(o, name)
        begin = o.attrs[f"{name}_offset"]
        x = x[:, begin : begin + count * d].float().view(n, count, d)
        return normalise(x, get(o, norm), o.attrs["eps"]) if norm in o.operands else x

    dtype = k_cache.dtype
    q = rotate(heads("q", o.attrs["heads"], "q_norm"), rope).to(dtype).transpose(0, 1)
    k = rotate(heads("k", kv, "k_norm"), rope).to(dtype).transpose(0, 1)
    v = heads("v", kv, "").to(dtype).transpose(0, 1)
    k_cache[slot, :, first:last], v_cache[slot, :, first:last] = k, v
    how: dict[str, Any] = {"is_causal": True}
    if first:  # is_causal would let the first of them see one row
        k, v = k_cache[slot, :, :last], v_cache[slot, :, :last]
        how = {"attn_mask": torch.ones(n, last, dtype=torch.bool, device=k.device).tril(first)}
    y = functional.scaled_dot_product_attention(q[None], k[None], v[None], enable_gqa=True, **how)
    return y[0].transpose(0, 1).reshape(n, -1)
