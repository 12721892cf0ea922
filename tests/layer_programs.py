"""Qwen3 in the layer API, as the published demo writes it: the program that tests run, with and without a GPU.

`Qwen3Program` takes a transformers module and decodes with it: weights where the module has them, prefill by the module,
tokens by the megakernel.
"""

from __future__ import annotations

from typing import Any

import torch

import mpklab as mk


class Qwen3Program:
    """The demo's steps: tensors, layers, compile; `generate` is its prefill and its call."""

    def __init__(self, module: Any, max_seq_length: int, *, grids: bool = True, eos: int | None = -1, **options: Any):
        """`pad_to`: rows of the lm_head, the rest zeros, as the demos make it divisible."""
        self.pad_to = options.pop("pad_to", 0)
        config, device = module.config, module.device
        self.module, self.max_seq_length = module, max_seq_length
        self.kv_heads, self.head_dim = config.num_key_value_heads, config.head_dim
        self.step = torch.zeros(1, dtype=torch.int32, device=device)
        self.tokens = torch.zeros(1, max_seq_length, dtype=torch.int64, device=device)
        rows = max_seq_length + 7  # as a page may be longer than what is used of it
        shape = (config.num_hidden_layers, 1, rows, self.kv_heads, self.head_dim)
        self.kv_cache = [torch.zeros(shape, dtype=module.dtype, device=device) for _ in "kv"]
        self.mpk = mk.PersistentKernel(
            world_size=1,
            mpi_rank=0,
            num_workers=options.pop("num_workers", 144),
            num_local_schedulers=0,
            num_remote_schedulers=0,
            max_seq_length=max_seq_length,
            eos_token_id=eos,
            meta_tensors=[self.step, self.tokens],
            profiler_tensor=options.pop("profiler_tensor", None),
            **options,
        )
        self.grids = grids
        self.build()

    def grid(self, x: int, y: int = 1) -> dict[str, Any]:
        """A grid as the demo gives one, or none for the machine to choose."""
        return {"grid_dim": (x, y, 1), "block_dim": (128, 1, 1)} if self.grids else {}

    def tiles(self, rows: int) -> int:
        """The demo's rule for linears."""
        return next(n for n in (96, 64, 32, 16, 8, 4, 2, 1) if rows % n == 0)

    def build(self) -> None:
        """The layers of one token."""
        mpk, model, config = self.mpk, self.module.model, self.module.config
        dtype = {torch.bfloat16: mk.bfloat16, torch.float32: mk.float32}[self.module.dtype]
        hidden, inner, kv, d = config.hidden_size, config.intermediate_size, self.kv_heads, self.head_dim
        heads, vocab = config.num_attention_heads, self.pad_to or config.vocab_size

        def new(name: str, width: int, dtype: Any = dtype) -> Any:
            return mpk.new_tensor(dims=(1, width), dtype=dtype, name=name, io_category="cuda_tensor")

        positions = torch.arange(self.max_seq_length, device=self.module.device)[None]
        cos, sin = model.rotary_emb(torch.zeros(1, dtype=torch.float32, device=self.module.device), positions)
        x = mpk.attach_input(
            torch_tensor=torch.zeros(1, 1, dtype=torch.int64, device=self.module.device), name="input_token"
        )
        cos = mpk.attach_input(torch_tensor=cos[0], name="cos_position_embedding")
        sin = mpk.attach_input(torch_tensor=sin[0], name="sin_position_embedding")
        y = new("embed_out", hidden)
        attn_in, attn_out = new("attn_in", (heads + 2 * kv) * d), new("attn_out", heads * d)
        attn_proj_out = new("attn_proj_out", hidden)
        allreduce_buf = mpk.new_tensor(dims=(1, 1, hidden), dtype=dtype, name="all_reduce_buf")
        attn_allreduce_out = new("attn_allreduce_out", hidden)
        mlp_mid, mlp_out = new("mlp_mid", 2 * inner), new("mlp_out", hidden)
        argmax_in = new("argmax_in", vocab)
        pieces = self.tiles(vocab)
        argmax_part = new("argmax_part_value", pieces), new("argmax_part_index", pieces, mk.int64)
        argmax_out = new("argmax_out", 1, mk.int64)

        w = mpk.attach_input(torch_tensor=model.embed_tokens.weight, name="embed_tokens")
        mpk.embed_layer(input=x, weight=w, output=y, **self.grid(1))
        x = y
        for i, layer in enumerate(model.layers):
            attach = {
                "input_layernorm": layer.input_layernorm, "q_proj": layer.self_attn.q_proj,
                "k_proj": layer.self_attn.k_proj, "v_proj": layer.self_attn.v_proj, "q_norm": layer.self_attn.q_norm,
                "k_norm": layer.self_attn.k_norm, "o_proj": layer.self_attn.o_proj,
                "post_attn_layernorm": layer.post_attention_layernorm, "gate_proj": layer.mlp.gate_proj,
                "up_proj": layer.mlp.up_proj, "down_proj": layer.mlp.down_proj,
            }  # fmt: skip
            w = {
                name: mpk.attach_input(torch_tensor=part.weight, name=f"layer_{i}_{name}")
                for name, part in attach.items()
            }
            w_qkv = mpk.fuse_tensors(
                inputs=[w["q_proj"], w["k_proj"], w["v_proj"]], fused_dim=0, num_groups=kv, name=f"layer_{i}_qkv_proj"
            )
            mpk.rmsnorm_linear_layer(
                input=x,
                weight_norm=w["input_layernorm"],
                weight_linear=w_qkv,
                output=attn_in,
                **self.grid(self.tiles(w_qkv.dim(0))),
            )
            mpk.attention_layer(
                input=attn_in,
                q_norm=w["q_norm"],
                k_norm=w["k_norm"],
                k_cache=mpk.attach_input(torch_tensor=self.kv_cache[0][i], name=f"layer_{i}_k_cache"),
                v_cache=mpk.attach_input(torch_tensor=self.kv_cache[1][i], name=f"layer_{i}_v_cache"),
                cos_pos_embed=cos,
                sin_pos_embed=sin,
                output=attn_out,
                **self.grid(1, kv),
            )
            mpk.linear_with_residual_layer(
                input=attn_out, weight=w["o_proj"], residual=x, output=attn_proj_out, **self.grid(self.tiles(hidden))
            )
            mpk.allreduce_layer(
                input=attn_proj_out, buffer=allreduce_buf, output=attn_allreduce_out, **self.grid(self.tiles(hidden))
            )
            x = attn_allreduce_out
            w_gatedup = mpk.fuse_tensors(
                inputs=[w["gate_proj"], w["up_proj"]], fused_dim=0, num_groups=1, name=f"layer_{i}_gatedup_proj"
            )
            mpk.rmsnorm_linear_layer(
                input=x,
                weight_norm=w["post_attn_layernorm"],
                weight_linear=w_gatedup,
                output=mlp_mid,
                **self.grid(self.tiles(2 * inner)),
            )
            mpk.silu_mul_linear_with_residual_layer(
                input=mlp_mid, weight=w["down_proj"], residual=x, output=mlp_out, **self.grid(self.tiles(hidden))
            )
            x = mlp_out
        w_norm = mpk.attach_input(torch_tensor=model.norm.weight, name="model_norm_weight")
        lm_head = self.module.lm_head.weight
        if self.pad_to:
            lm_head = torch.cat((lm_head, lm_head.new_zeros(vocab - len(lm_head), hidden)), 0)
        w_proj = mpk.attach_input(torch_tensor=lm_head, name="lm_head")
        mpk.rmsnorm_linear_layer(
            input=x, weight_norm=w_norm, weight_linear=w_proj, output=argmax_in, **self.grid(self.tiles(vocab))
        )
        mpk.argmax_partial_layer(input=argmax_in, output=argmax_part, **self.grid(pieces))
        mpk.argmax_reduce_layer(input=argmax_part, output=argmax_out, **self.grid(1))

    def prefill(self, prompt: list[int]) -> int:
        """The module reads the prompt and fills the shared cache; the place after it, where the next token stands."""
        n = len(prompt)
        ids = torch.tensor([prompt], device=self.module.device)
        self.tokens[0, :n] = ids[0]
        with torch.inference_mode():
            out = self.module(input_ids=ids, use_cache=True)
        for i, layer in enumerate(out.past_key_values.layers):
            self.kv_cache[0][i, 0, :n] = layer.keys[0].transpose(0, 1)
            self.kv_cache[1][i, 0, :n] = layer.values[0].transpose(0, 1)
        self.tokens[0, n] = out.logits[0, -1].argmax()
        return n

    def generate(self, prompt: list[int], **call: Any) -> list[int]:
        """The new tokens: the module's first, and the kernel's."""
        self.step.fill_(self.prefill(prompt))
        self.mpk(**call)
        return self.tokens[0, len(prompt) : int(self.step[0]) + 1].tolist()
