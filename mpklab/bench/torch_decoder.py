"""A decoder as one would write it by hand for torch.compile, on mpklab's own weights: the peer of `bench decode`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mpklab.models import Model
from mpklab.models.rope import rope_table


class Norm(nn.Module):
    """RMSNorm in torch's own fused function."""

    def __init__(self, weight: torch.Tensor, eps: float):
        super().__init__()
        self.register_buffer("weight", weight)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Layer(nn.Module):
    """Attention over a static cache [batch, kv_heads, context, head_dim] and a gated feed-forward."""

    def __init__(self, model: Model, i: int, batch: int, context: int):
        super().__init__()
        c, w = model.config, model.weights
        assert w is not None
        self.c = c
        p = f"layer{i}."
        self.norm1 = Norm(w[p + "input_norm.weight"], c.eps)
        self.norm2 = Norm(w[p + "post_norm.weight"], c.eps)
        self.q_norm = Norm(w[p + "q_norm.weight"], c.eps) if c.qk_norm else nn.Identity()
        self.k_norm = Norm(w[p + "k_norm.weight"], c.eps) if c.qk_norm else nn.Identity()
        for name, parts in (("qkv", "qkv"), ("gate_up", ("gate", "up"))):
            view = w.view([f"{p}{x}_proj.weight" for x in parts])
            assert view is not None
            self.register_buffer(name, view)
        self.register_buffer("o", w[p + "o_proj.weight"])
        self.register_buffer("down", w[p + "down_proj.weight"])
        shape = (batch, c.kv_heads, context, c.head_dim)
        for name in ("k_cache", "v_cache"):
            self.register_buffer(name, torch.zeros(shape, dtype=w.dtype, device=w.device))

    def forward(self, x: Any, pos: Any, cos: Any, sin: Any, mask: Any) -> Any:
        c = self.c
        b, d = x.shape[0], c.head_dim
        y = functional.linear(self.norm1(x), self.qkv)
        q, k, v = y.split([c.heads * d, c.kv_heads * d, c.kv_heads * d], -1)
        q = self.q_norm(q.view(b, 1, c.heads, d)).transpose(1, 2)
        k = self.k_norm(k.view(b, 1, c.kv_heads, d)).transpose(1, 2)
        v = v.view(b, 1, c.kv_heads, d).transpose(1, 2)

        def turn(t: Any) -> Any:
            first, second = t.chunk(2, -1)
            return t * cos + torch.cat((-second, first), -1) * sin

        self.k_cache[:, :, pos] = turn(k)
        self.v_cache[:, :, pos] = v
        a = functional.scaled_dot_product_attention(
            turn(q), self.k_cache, self.v_cache, attn_mask=mask, enable_gqa=True
        )
        x = x + functional.linear(a.transpose(1, 2).reshape(b, 1, -1), self.o)
        gate, up = functional.linear(self.norm2(x), self.gate_up).chunk(2, -1)
        return x + functional.linear(functional.silu(gate) * up, self.down)


class Decoder(nn.Module):
    """(token [batch, 1], position [1]) → (next token, logits). Cache and mask are sized to the context."""

    def __init__(self, model: Model, batch: int, context: int):
        super().__init__()
        c, w = model.config, model.weights
        assert w is not None
        self.register_buffer("embed", w["embed.weight"])
        self.layers = nn.ModuleList(Layer(model, i, batch, context) for i in range(c.layers))
        self.norm = Norm(w["norm.weight"], c.eps)
        self.register_buffer("head", w["embed.weight" if c.tied else "lm_head.weight"])
        rope = rope_table(c, context).to(w.device)
        half = c.head_dim // 2
        self.register_buffer("cos", torch.cat([rope[:, :half]] * 2, -1).to(w.dtype))
        self.register_buffer("sin", torch.cat([rope[:, half:]] * 2, -1).to(w.dtype))
        self.register_buffer("mask", torch.ones(context, context, dtype=torch.bool, device=w.device).tril())

    def forward(self, token: Any, pos: Any) -> Any:
        x = functional.embedding(token, self.embed)
        cos, sin, mask = self.cos[pos], self.sin[pos], self.mask[None, None, pos]
        for layer in self.layers:
            x = layer(x, pos, cos, sin, mask)
        logits = functional.linear(self.norm(x), self.head)[:, -1]
        return logits.argmax(-1), logits
