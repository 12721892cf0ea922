"""Models: configurations, weights and tokenizers, and the graph of one decode step.

torch is loaded with the first weight, not before, so that graphs of models without weights need none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mpklab.models.catalog import CATALOG, named, names
from mpklab.models.config import Config, Llama3Scaling
from mpklab.models.decoder import decode_graph
from mpklab.models.model import Model, load, random

if TYPE_CHECKING:
    from mpklab.models.rope import rope_table
    from mpklab.models.tokenizer import TextStream, Tokenizer
    from mpklab.models.transformers_module import from_hf
    from mpklab.models.weights import Weights

_LATER = {
    "rope_table": "rope",
    "Tokenizer": "tokenizer",
    "TextStream": "tokenizer",
    "Weights": "weights",
    "from_hf": "transformers_module",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"mpklab.models.{_LATER[name]}"), name)
    raise AttributeError(f"module 'mpklab.models' has no attribute {name!r}")


__all__ = [
    "CATALOG",
    "Config",
    "Llama3Scaling",
    "Model",
    "TextStream",
    "Tokenizer",
    "Weights",
    "decode_graph",
    "from_hf",
    "load",
    "named",
    "names",
    "random",
    "rope_table",
]
