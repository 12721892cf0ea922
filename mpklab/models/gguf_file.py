"""Reading a GGUF file: its configuration, its weights in float32, and its tokenizer in Hugging Face's form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mpklab.errors import ModelError, need_package
from mpklab.models.config import Config, Llama3Scaling, layout
from mpklab.models.rope import inverse_frequencies

Array = npt.NDArray[np.float32]

MAGIC = b"GGUF"
ARCHITECTURES = ("llama", "qwen3")

_NAMES = {
    "embed.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_norm.weight": "attn_norm.weight",
    "q_proj.weight": "attn_q.weight",
    "k_proj.weight": "attn_k.weight",
    "v_proj.weight": "attn_v.weight",
    "q_norm.weight": "attn_q_norm.weight",
    "k_norm.weight": "attn_k_norm.weight",
    "o_proj.weight": "attn_output.weight",
    "post_norm.weight": "ffn_norm.weight",
    "gate_proj.weight": "ffn_gate.weight",
    "up_proj.weight": "ffn_up.weight",
    "down_proj.weight": "ffn_down.weight",
}
# llama.cpp bakes llama3 scaling into this tensor of divisors, one per rotated pair; the bounds are those of every
# published Llama 3.x.
_ROPE_FACTORS = "rope_freqs.weight"
_LLAMA3_BOUNDS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position": 8192}

_BYTES: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_GPT2_SPLIT: list[dict[str, Any]] = [{**_BYTES, "use_regex": True}]


def _regex_split(pattern: str) -> list[dict[str, Any]]:
    return [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, _BYTES]


# How text is cut before the merges apply, by tokenizer.ggml.pre, as in the tokenizer.json files of the models named so.
_DIGITS: dict[str, Any] = {"type": "Digits", "individual_digits": True}
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS: dict[str, list[dict[str, Any]]] = {
    "default": _GPT2_SPLIT,
    "gpt-2": _GPT2_SPLIT,
    "smollm": [_DIGITS, *_GPT2_SPLIT],
    "llama-bpe": _regex_split(_LLAMA3_PATTERN),
    "llama3": _regex_split(_LLAMA3_PATTERN),
    "llama-v3": _regex_split(_LLAMA3_PATTERN),
    "qwen2": _regex_split(_LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")),
}
_CONTROL, _USER_DEFINED = 3, 4


class GgufFile:
    """An open GGUF file: `config`, `read(name)`, `tokenizer_files()`. ModelError when it is foreign or damaged."""

    def __init__(self, path: Path, dtype: str):
        try:
            import gguf
        except ImportError as error:
            raise need_package("gguf", f"reading {path.name}") from error
        check_magic(path)
        self.path = path
        self._gguf = gguf
        with self._damage("its table of contents cannot be read"):
            reader = gguf.GGUFReader(path)
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._architecture = str(self._value("general.architecture"))
        if self._architecture not in ARCHITECTURES:
            raise ModelError(
                f"{path} holds a {self._architecture!r} model; mpklab reads {' and '.join(ARCHITECTURES)} models"
            )
        if self._value("split.count", 1) != 1:
            raise ModelError(f"{path} is one part of a split GGUF; join the parts first: llama-gguf-split --merge")
        self.config = self._read_config(dtype)

    def read(self, name: str) -> torch.Tensor:
        """A weight by mpklab's name, dequantised to float32; q and k rows in Hugging Face's order."""
        stored = _stored_name(name)
        tensor = self._tensors.get(stored)
        if tensor is None:
            raise ModelError(f"{self.path} has no tensor {stored!r} ({name}); is the model complete?")
        expected = layout(self.config)[0][name].shape
        found = tuple(int(size) for size in reversed(tensor.shape))
        if found != expected:
            where = f"{self.path}: tensor {stored!r} ({name})"
            raise ModelError(f"{where} should be {list(expected)}, but is {list(found)}")
        with self._damage(f"tensor {stored!r} ({tensor.tensor_type.name}) cannot be dequantised"):
            values = np.asarray(self._gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if self._architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            values = _unpermute(values, self.config.head_dim)
        return torch.from_numpy(np.require(values, requirements=["C", "W"])).view(expected)

    def tokenizer_files(self) -> dict[str, Any] | None:
        """The contents of tokenizer.json and tokenizer_config.json, made from the vocabulary inside; None for kinds of
        tokenizer that are not byte-level BPE."""
        split = _SPLITS.get(str(self._value("tokenizer.ggml.pre", "default")))
        if self._value("tokenizer.ggml.model", "") != "gpt2" or split is None:
            return None
        with self._damage("its vocabulary cannot be read"):
            return self._tokenizer_files(split)

    def _tokenizer_files(self, split: list[dict[str, Any]]) -> dict[str, Any]:
        tokens: list[str] = self._value("tokenizer.ggml.tokens")
        kinds = self._value("tokenizer.ggml.token_type", [])
        llama3 = str(self._value("tokenizer.ggml.pre", "default")) in ("llama-bpe", "llama3", "llama-v3")
        qwen = self._value("tokenizer.ggml.pre", "default") == "qwen2"
        bos = self._token(tokens, "bos")
        start = bos if self._value("tokenizer.ggml.add_bos_token", llama3) else None
        added = [
            {
                "id": index,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kind == _CONTROL,
            }
            for index, (token, kind) in enumerate(zip(tokens, kinds, strict=False))
            if kind in (_CONTROL, _USER_DEFINED)
        ]
        definition = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": "NFC"} if qwen else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": split},
            "post_processor": None if start is None else _start_with(start, tokens.index(start)),
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": llama3,
                "vocab": {token: index for index, token in enumerate(tokens)},
                "merges": self._value("tokenizer.ggml.merges"),
            },
        }
        settings = {
            "bos_token": bos,
            "eos_token": self._token(tokens, "eos"),
            "chat_template": self._value("tokenizer.chat_template", None),
        }
        return {"tokenizer.json": definition, "tokenizer_config.json": settings}

    def _token(self, tokens: list[str], role: str) -> str | None:
        index = self._value(f"tokenizer.ggml.{role}_token_id", None)
        return tokens[index] if index is not None and 0 <= index < len(tokens) else None

    def _read_config(self, dtype: str) -> Config:
        heads = self._size("attention.head_count")
        hidden = self._size("embedding_length")
        head_dim = self._size("attention.key_length", hidden // max(heads, 1))
        embedding = self._tensors.get("token_embd.weight")
        if embedding is None:
            raise ModelError(f"{self.path} has no tensor 'token_embd.weight'; is the model complete?")
        if any(name.startswith("blk.0.attn_q.bias") for name in self._tensors):
            raise ModelError(f"{self.path} has biases in its attention, which mpklab's decoder graph does not model")
        rotated = self._size("rope.dimension_count", head_dim)
        if rotated != head_dim:
            raise ModelError(
                f"{self.path} rotates {rotated} of a head's {head_dim} elements; mpklab rotates all of them"
            )
        ends = [self._value(f"tokenizer.ggml.{role}_token_id", None) for role in ("eos", "eot", "eom")]
        config = Config(
            name=str(self._value("general.name", self.path.stem)),
            vocab=int(embedding.shape[-1]),
            hidden=hidden,
            layers=self._size("block_count"),
            heads=heads,
            kv_heads=self._size("attention.head_count_kv", heads),
            head_dim=head_dim,
            intermediate=self._size("feed_forward_length"),
            eps=_shortest(self._setting("attention.layer_norm_rms_epsilon")),
            rope_theta=_shortest(self._setting("rope.freq_base", 10000.0)),
            qk_norm="blk.0.attn_q_norm.weight" in self._tensors,
            tied="output.weight" not in self._tensors,
            max_position=self._size("context_length"),
            eos=tuple(dict.fromkeys(int(end) for end in ends if end is not None)),
            bos=self._value("tokenizer.ggml.bos_token_id", None),
            dtype=dtype,
        )
        return config.with_(rope_scaling=self._rope_scaling(config))

    def _rope_scaling(self, config: Config) -> Llama3Scaling | None:
        """llama3 scaling recovered from the divisors that the file holds, and checked against them."""
        kind = self._setting("rope.scaling.type", "none")
        if kind != "none":
            raise ModelError(f"{self.path} scales its rope by {kind!r}; mpklab knows plain rope and llama3 scaling")
        if _ROPE_FACTORS not in self._tensors:
            return None
        with self._damage(f"tensor {_ROPE_FACTORS!r} cannot be read"):
            tensor = self._tensors[_ROPE_FACTORS]
            factors = torch.from_numpy(np.array(self._gguf.quants.dequantize(tensor.data, tensor.tensor_type))).view(-1)
        scaling = Llama3Scaling(factor=float(factors.max()), **_LLAMA3_BOUNDS)  # type: ignore[arg-type]
        expected = inverse_frequencies(config) / inverse_frequencies(config.with_(rope_scaling=scaling))
        if factors.shape != expected.shape or not torch.allclose(factors, expected, rtol=1e-4):
            raise ModelError(f"{self.path}: the divisors in {_ROPE_FACTORS!r} are not those of {scaling}")
        return scaling

    def _size(self, key: str, default: int | None = None) -> int:
        value = self._setting(key, default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise ModelError(
                    f"{self.path}: {key} differs between layers, which mpklab's decoder graph does not model"
                )
            value = value[0]
        return int(value)

    def _setting(self, key: str, default: Any = None) -> Any:
        full = f"{self._architecture}.{key}"
        value = self._value(full, default)
        if value is None:
            raise ModelError(f"{self.path} does not state {full!r}; is it a complete model?")
        return value

    def _value(self, key: str, *default: Any) -> Any:
        field = self._fields.get(key)
        if field is None:
            if default:
                return default[0]
            raise ModelError(f"{self.path} does not state {key!r}; is it a complete model?")
        with self._damage(f"the value of {key!r} cannot be read"):
            return field.contents()

    @contextmanager
    def _damage(self, what: str) -> Iterator[None]:
        # The reader indexes arrays as the file tells it to, so a damaged file can raise nearly anything.
        try:
            yield
        except ModelError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ModelError(
                f"{self.path} is damaged, cut short or of a kind the gguf package does not know: {what} ({reason}); "
                f"its {self.path.stat().st_size:,} bytes can be compared with the original's"
            ) from error


def check_magic(path: Path) -> None:
    """ModelError unless the file starts as a GGUF does."""
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if start != MAGIC:
        raise ModelError(f"{path} is no GGUF file: it should start with {MAGIC!r}, but starts with {start!r}")


def _stored_name(name: str) -> str:
    layer, dot, rest = name.partition(".")
    if dot and layer.startswith("layer"):
        return f"blk.{layer.removeprefix('layer')}.{_NAMES[rest]}"
    return _NAMES[name]


def _unpermute(values: Array, head_dim: int) -> Array:
    """Undo llama.cpp's interleaving of each head's two halves, so that rope rotates halves as Hugging Face does."""
    heads = values.shape[0] // head_dim
    pairs = values.reshape(heads, head_dim // 2, 2, values.shape[1])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05, where widening says 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _start_with(token: str, index: int) -> dict[str, Any]:
    start = {"SpecialToken": {"id": token, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    other = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text, {"SpecialToken": {"id": token, "type_id": 1}}, other],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
    }
