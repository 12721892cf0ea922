"""A model as a value, and the two ways to get one: `load` real weights, or make `random` ones of a known size."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpklab.errors import ModelError, suggest
from mpklab.graph import Graph
from mpklab.models.catalog import CATALOG, SHIPPED, named, shipped_file
from mpklab.models.config import DTYPES, Config, parameter_count
from mpklab.models.decoder import decode_graph

if TYPE_CHECKING:
    import torch

    from mpklab.models.tokenizer import Tokenizer
    from mpklab.models.transformers_module import SharedWeights
    from mpklab.models.weights import Weights


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """Sizes, weights and tokenizer of one model. `weights` is None for shapes only, `tokenizer` where there is none."""

    config: Config
    weights: Weights | SharedWeights | None
    tokenizer: Tokenizer | None
    source: str

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.config.name

    @property
    def parameters(self) -> int:
        """How many weights it has; a tied output matrix counts once."""
        return parameter_count(self.config)

    def decode_graph(self, **choices: Any) -> Graph:
        """The graph of one decode step: batch=1 (or a Dim), context=1024, layers=None (all), dtype=the weights' own."""
        known = [name for name in inspect.signature(decode_graph).parameters if name != "config"]
        for name in choices:
            if name not in known:
                raise ModelError(f"decode_graph takes no {name!r}: {suggest(name, known)}")
        return decode_graph(self.config, **{"dtype": self.config.dtype, **choices})

    def to_transformers(self, dtype: str = "float32") -> Any:
        """The same model in transformers, on these weights: what to compare with."""
        from mpklab.models.peer import to_transformers

        if self.weights is None:
            raise ModelError(f"{self.name} was made with weights=False, so there is nothing to give to transformers")
        return to_transformers(self.config, self.weights, dtype)

    def __repr__(self) -> str:
        config = self.config
        scaling = "" if config.rope_scaling is None else f", llama3 scaling × {config.rope_scaling.factor:g}"
        heads = f"{config.heads} heads of {config.head_dim} over {config.kv_heads} kv heads"
        lines = [
            f"{config.name}: {self.parameters / 1e6:,.1f} M parameters ({self.source})",
            f"  {config.layers} layers, hidden {config.hidden}, intermediate {config.intermediate}, {heads}"
            + (", q/k norm" if config.qk_norm else ""),
            f"  vocabulary {config.vocab}{', tied' if config.tied else ''}, up to {config.max_position} positions, "
            f"rope {config.rope_theta:g}{scaling}",
            f"  {'shapes only, ' + config.dtype if self.weights is None else repr(self.weights)}, "
            + ("no tokenizer" if self.tokenizer is None else "tokenizer"),
        ]
        return "\n".join(lines)


def load(source: str | os.PathLike[str], dtype: str = "bfloat16", device: str | torch.device = "cpu") -> Model:
    """A model with its real weights: a name ("smollm2-135m"), a GGUF file, or a Hugging Face folder with safetensors.

    A GGUF file is unpacked into the cache folder once (known again by its size, time of change and first and last MiB)
    and mapped from there afterwards. Nothing is downloaded. ModelError or EnvError say what is missing or does not fit.
    """
    from mpklab.models.safetensors_folder import load_folder
    from mpklab.models.unpacked import load_gguf

    if dtype not in DTYPES:
        raise ModelError(f"dtype should be one of {', '.join(DTYPES)}, not {dtype!r}: {suggest(str(dtype), DTYPES)}")
    path = _locate(source)
    if path.is_dir():
        config, weights, tokenizer = load_folder(path, dtype, device)
    else:
        config, weights, tokenizer = load_gguf(path, dtype)
        weights = weights.to(device)
    if isinstance(source, str) and source.lower() in SHIPPED:
        config = config.with_(name=source.lower())
    return Model(config, weights, tokenizer, source=path.name)


def random(
    name: str,
    seed: int = 0,
    weights: bool = True,
    dtype: str = "bfloat16",
    device: str | torch.device = "cpu",
    **overrides: Any,
) -> Model:
    """A model of a known size with random weights, made on the device from a seeded generator; no tokenizer.

    `overrides` change any field of its `Config` (layers=2, vocab=512, qk_norm=True). With `weights=False` only shapes
    are known, and no memory is taken.
    """
    config = named(name, dtype=dtype, **overrides)
    if not weights:
        return Model(config, None, None, source="shapes only")
    from mpklab.models.weights import random_weights

    return Model(config, random_weights(config, seed, device), None, source=f"random weights, seed {seed}")


def _locate(source: str | os.PathLike[str]) -> Path:
    if isinstance(source, str) and source.lower() in SHIPPED:
        return shipped_file(source.lower())
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            ggufs = sorted(path.glob("*.gguf"))
            hint = f"it holds {ggufs[0].name}: pass that file" if ggufs else "config.json is missing"
            raise ModelError(f"{path} is no Hugging Face folder: {hint}")
        return path
    if path.exists():
        if path.suffix == ".safetensors":
            raise ModelError(f"{path} holds weights only; pass its folder, which should hold config.json too")
        return path
    name = str(source).lower()
    if name in CATALOG:
        raise ModelError(
            f"mpklab does not download the weights of {name!r}: pass a GGUF file or a Hugging Face folder to load, or "
            f"take models.random({name!r}). Loaded by name: {', '.join(sorted(SHIPPED))}"
        )
    if os.sep in str(source) or path.suffix == ".gguf":
        raise ModelError(f"there is no file or folder {path}")
    raise ModelError(f"{str(source)!r} is neither a model's name nor a file or folder: {suggest(name, CATALOG)}")
