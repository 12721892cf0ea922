"""Reading a Hugging Face folder: config.json, *.safetensors and the tokenizer's files. Nothing is ever downloaded."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from mpklab.errors import ModelError, need_package
from mpklab.models.config import Config, Llama3Scaling, layout
from mpklab.models.tokenizer import Tokenizer
from mpklab.models.weights import Weights, filled

MODEL_TYPES = ("llama", "qwen3")

_NAMES = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "lm_head": "lm_head",
    "input_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "o_proj": "self_attn.o_proj",
    "post_norm": "post_attention_layernorm",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}


def load_folder(folder: Path, dtype: str, device: str | torch.device) -> tuple[Config, Weights, Tokenizer | None]:
    """A model from its folder, read straight into one buffer on the device."""
    try:
        import safetensors
    except ImportError as error:
        raise need_package("safetensors", f"reading {folder.name}") from error
    config = read_config(folder, dtype)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder} holds no *.safetensors file (mpklab reads no pickled weights)")
    with ExitStack() as stack:
        where: dict[str, Any] = {}
        for path in files:
            try:
                opened = stack.enter_context(safetensors.safe_open(str(path), framework="pt"))
            except Exception as error:  # the package's own error type is raised beside OSError
                raise ModelError(f"{path} is no safetensors file, or is cut short: {error}") from error
            where.update(dict.fromkeys(opened.keys(), opened))
        _check_shapes(folder, config, where)
        weights = filled(config, lambda name: where[stored_name(name)].get_tensor(stored_name(name)), device)
    return config, weights, Tokenizer.from_folder(folder)


def stored_name(name: str) -> str:
    """The name that transformers gives a weight of ours."""
    layer, _, rest = name.removesuffix(".weight").partition(".")
    if rest:
        return f"model.layers.{layer.removeprefix('layer')}.{_NAMES[rest]}.weight"
    return f"{_NAMES[layer]}.weight"


def read_config(folder: Path, dtype: str) -> Config:
    """config.json as a `Config`; ModelError names what mpklab's decoder graph does not model."""
    path = folder / "config.json"
    values = _json(path)
    generation = _json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    ends = generation.get("eos_token_id", values.get("eos_token_id"))
    return config_of(values, str(path), Path(values.get("_name_or_path") or folder.resolve()).name, ends, dtype)


def config_of(values: dict[str, Any], path: str, name: str, ends: Any, dtype: str) -> Config:
    """What a configuration of transformers says; `path` is what messages call it, `ends` its end tokens."""
    kind = values.get("model_type")
    if kind not in MODEL_TYPES:
        raise ModelError(f"{path} describes a {kind!r} model; mpklab reads the model types {', '.join(MODEL_TYPES)}")
    for key in ("attention_bias", "mlp_bias", "use_sliding_window", "quantization_config"):
        if values.get(key):
            raise ModelError(f"{path} sets {key}, which mpklab's decoder graph does not model")
    if values.get("hidden_act", "silu") != "silu":
        raise ModelError(f"{path} uses the activation {values['hidden_act']!r}; mpklab's decoder graph has silu only")
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    try:
        heads = values["num_attention_heads"]
        return Config(
            name=name,
            vocab=values["vocab_size"],
            hidden=values["hidden_size"],
            layers=values["num_hidden_layers"],
            heads=heads,
            kv_heads=values.get("num_key_value_heads") or heads,
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
            intermediate=values["intermediate_size"],
            eps=float(values.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta", values.get("rope_theta", 10000.0))),
            rope_scaling=_scaling(path, rope),
            qk_norm=kind == "qwen3",
            tied=bool(values.get("tie_word_embeddings", False)),
            max_position=values.get("max_position_embeddings", 2048),
            eos=tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,),
            bos=values.get("bos_token_id"),
            dtype=dtype,
        )
    except KeyError as error:
        raise ModelError(f"{path} does not state {error}; is it a complete model?") from error


def _scaling(path: str, rope: dict[str, Any]) -> Llama3Scaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise ModelError(f"{path} scales its rope by {kind!r}; mpklab knows plain rope and llama3 scaling")
    return Llama3Scaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_position=int(rope["original_max_position_embeddings"]),
    )


def _check_shapes(folder: Path, config: Config, where: dict[str, Any]) -> None:
    for name, slot in layout(config)[0].items():
        stored = stored_name(name)
        if stored not in where:
            raise ModelError(f"{folder} has no tensor {stored!r} ({name}) in its *.safetensors files; is one missing?")
        found = tuple(where[stored].get_slice(stored).get_shape())
        if found != slot.shape:
            raise ModelError(f"{folder}: tensor {stored!r} ({name}) should be {list(slot.shape)}, but is {list(found)}")


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} should hold a JSON object, but holds a {type(values).__name__}")
    return values
