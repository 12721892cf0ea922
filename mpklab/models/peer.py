"""The same model in transformers, built from our weights without copying them: what tests and benches compare with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mpklab.errors import need_package
from mpklab.models.config import Config
from mpklab.models.safetensors_folder import stored_name
from mpklab.models.weights import Weights

if TYPE_CHECKING:
    from mpklab.models.transformers_module import SharedWeights


def to_transformers(config: Config, weights: Weights | SharedWeights, dtype: str = "float32") -> Any:
    """A LlamaForCausalLM or Qwen3ForCausalLM in eval mode on the weights' device.

    It shares memory with the weights where the dtype is theirs already.
    """
    try:
        import transformers
    except ImportError as error:
        raise need_package("transformers", "comparing with transformers") from error
    cast = weights.astype(dtype)
    settings = transformers_config(config, dtype)
    kind = transformers.Qwen3ForCausalLM if config.qk_norm else transformers.LlamaForCausalLM
    with torch.device("meta"):
        module = kind(settings)
    # Frequencies are computed, not loaded, so the rotary part is made again where numbers are real.
    module.model.rotary_emb = type(module.model.rotary_emb)(settings).to(cast.device)
    state = {stored_name(name): tensor for name, tensor in cast.items()}
    if config.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    module.load_state_dict(state, strict=True, assign=True)
    module.tie_weights()
    return module.requires_grad_(False).eval()


def transformers_config(config: Config, dtype: str = "float32") -> Any:
    """The configuration as transformers' own class."""
    import transformers

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        rope.update(
            rope_type="llama3",
            factor=scaling.factor,
            low_freq_factor=scaling.low_freq_factor,
            high_freq_factor=scaling.high_freq_factor,
            original_max_position_embeddings=scaling.original_max_position,
        )
    kind = transformers.Qwen3Config if config.qk_norm else transformers.LlamaConfig
    return kind(
        vocab_size=config.vocab,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate,
        rms_norm_eps=config.eps,
        rope_parameters=rope,
        tie_word_embeddings=config.tied,
        max_position_embeddings=config.max_position,
        bos_token_id=config.bos,
        eos_token_id=list(config.eos) or None,
        pad_token_id=config.eos[0] if config.eos else None,
        dtype=dtype,
    )
