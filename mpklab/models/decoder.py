"""The decode step of a Llama- or Qwen3-style decoder as an operator graph, as its authors published it: nothing fused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpklab.dims import Extent
from mpklab.errors import GraphError
from mpklab.graph import Graph, GraphBuilder, Tensor
from mpklab.ops.sample import COLUMNS, SEED_WORDS, seen_words

if TYPE_CHECKING:
    from mpklab.models.config import Config


def decode_graph(
    config: Config,
    batch: Extent = 1,
    context: int = 1024,
    layers: int | None = None,
    dtype: str = "bfloat16",
    sampling: bool = False,
) -> Graph:
    """One token for each of `batch` sequences (a number or a Dim), with caches of `context` rows.

    State: token, position, done int32[batch] and k_cache, v_cache [batch, kv_heads, context, head_dim] a layer.
    Outputs: logits float32[batch, vocab] and generated int32[batch, context]. With `sampling` each token is drawn by
    the rules in `sampling` float32[batch, 5] and `seed` int32[batch, 3] (see ops/sample.py), and `seen`
    int32[batch, vocab / 32] holds the tokens that have occurred; otherwise it is the most likely one.
    """
    if not 1 <= context <= config.max_position:
        raise GraphError(f"context must be from 1 to {config.max_position} for {config.name}, not {context}")
    count = config.layers if layers is None else layers
    if not 1 <= count <= config.layers:
        raise GraphError(f"layers must be from 1 to {config.layers} for {config.name}, not {layers}")
    if dtype not in ("float32", "bfloat16"):
        raise GraphError(f"dtype must be float32 or bfloat16, not {dtype!r}")
    h, d, vocab = config.hidden, config.head_dim, config.vocab
    q_width, kv_width = config.heads * d, config.kv_heads * d
    g = GraphBuilder(f"{config.name}-decode", model=config.name, context=context, layers=count)
    token = g.state("token", (batch,), "int32")
    position = g.state("position", (batch,), "int32")
    done = g.state("done", (batch,), "int32")
    rope = g.weight("rope", (context, d), "float32")
    embed = g.weight("embed.weight", (vocab, h), dtype)

    x = g.embedding("embed", token=token, weight=embed)
    for i in range(count):
        p = f"layer{i}"

        def weight(name: str, *shape: int, prefix: str = p) -> Tensor:
            return g.weight(f"{prefix}.{name}.weight", shape, dtype)

        y = g.rms_norm(f"{p}.input_norm", x=x, weight=weight("input_norm", h), eps=config.eps, layer=i)
        q = g.linear(f"{p}.q_proj", x=y, weight=weight("q_proj", q_width, h), layer=i)
        k = g.linear(f"{p}.k_proj", x=y, weight=weight("k_proj", kv_width, h), layer=i)
        v = g.linear(f"{p}.v_proj", x=y, weight=weight("v_proj", kv_width, h), layer=i)
        norms = {"q_norm": weight("q_norm", d), "k_norm": weight("k_norm", d)} if config.qk_norm else {}
        a = g.attention(
            f"{p}.attention",
            q=q,
            k=k,
            v=v,
            **norms,
            rope=rope,
            k_cache=g.state(f"{p}.k_cache", (batch, config.kv_heads, context, d), dtype),
            v_cache=g.state(f"{p}.v_cache", (batch, config.kv_heads, context, d), dtype),
            position=position,
            heads=config.heads,
            eps=config.eps,
            layer=i,
        )
        o = g.linear(f"{p}.o_proj", x=a, weight=weight("o_proj", h, q_width), layer=i)
        x = g.add(f"{p}.attention_add", a=x, b=o, layer=i)
        y = g.rms_norm(f"{p}.post_norm", x=x, weight=weight("post_norm", h), eps=config.eps, layer=i)
        gate = g.linear(f"{p}.gate_proj", x=y, weight=weight("gate_proj", config.intermediate, h), layer=i)
        up = g.linear(f"{p}.up_proj", x=y, weight=weight("up_proj", config.intermediate, h), layer=i)
        m = g.silu_mul(f"{p}.silu_mul", gate=gate, up=up, layer=i)
        down = g.linear(f"{p}.down_proj", x=m, weight=weight("down_proj", h, config.intermediate), layer=i)
        x = g.add(f"{p}.feed_forward_add", a=x, b=down, layer=i)

    y = g.rms_norm("norm", x=x, weight=g.weight("norm.weight", (h,), dtype), eps=config.eps)
    head = embed if config.tied else g.weight("lm_head.weight", (vocab, h), dtype)
    logits = g.linear("logits", x=y, weight=head, out_dtype="float32", role="output")
    if sampling:
        rules = {
            "seen": g.state("seen", (batch, seen_words(vocab)), "int32"),
            "sampling": g.input("sampling", (batch, len(COLUMNS)), "float32"),
            "seed": g.input("seed", (batch, SEED_WORDS), "int32"),
            "position": position,
        }
        names = ("value", "index", "score", "token", "words")
        parts = dict(zip(names, g.sample_partial("sample_partial", x=logits, **rules), strict=True))
        chosen, _ = g.sample_reduce("next_token", **parts, **rules)
    else:
        value, index = g.argmax_partial("argmax_partial", x=logits)
        chosen = g.argmax_reduce("next_token", value=value, index=index)
    g.advance(
        "advance",
        next_token=chosen,
        eos=g.input("eos", (max(1, len(config.eos)),), "int32"),
        limit=g.input("limit", (batch,), "int32"),
        token=token,
        position=position,
        done=done,
        context=context,
        role="output",
    )
    return g.build()
