"""What a decoder-only model is made of: its sizes, and the names, shapes and storage order of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from mpklab.errors import ModelError, suggest

DTYPES = ("bfloat16", "float32")
# Groups of weights start on multiples of this many elements, so that bulk copies and vector loads find them aligned.
ALIGNMENT_ELEMENTS = 128


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """The frequency scaling of Llama 3.1 and later: long waves slowed by `factor`, short ones kept, a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True)
class Config:
    """The sizes of one model. Everything that a graph or a weight's shape depends on is here.

    `heads` and `kv_heads` count heads of `head_dim` elements; `qk_norm` says that q and k are RMS-normalised per head
    (Qwen3); `tied` that the embedding is the output matrix too; `dtype` is what weights and activations are kept in.
    """

    name: str
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: Llama3Scaling | None = None
    qk_norm: bool = False
    tied: bool = True
    max_position: int = 2048
    eos: tuple[int, ...] = ()
    bos: int | None = None
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        for size in ("vocab", "hidden", "layers", "heads", "kv_heads", "head_dim", "intermediate", "max_position"):
            value = getattr(self, size)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ModelError(f"{self.name}: {size} should be a positive whole number, not {value!r}")
        if self.heads % self.kv_heads:
            raise ModelError(f"{self.name}: {self.heads} heads cannot share {self.kv_heads} kv_heads evenly")
        if self.head_dim % 2:
            raise ModelError(f"{self.name}: head_dim should be even, for rope to rotate its halves: {self.head_dim}")
        if self.dtype not in DTYPES:
            raise ModelError(f"{self.name}: dtype should be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        strange = [token for token in self.eos if not 0 <= token < self.vocab]
        if strange:
            raise ModelError(f"{self.name}: the end tokens {strange} lie outside the vocabulary of {self.vocab}")

    def with_(self, **changes: Any) -> Config:
        """The same with some fields changed; ModelError for a field that does not exist."""
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                raise ModelError(f"a model's configuration has no {name!r}: {suggest(name, known)}")
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for json.dumps."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Config:
        """The inverse of `to_json`."""
        scaling = values.get("rope_scaling")
        return Config(
            **{
                **values,
                "eos": tuple(values.get("eos", ())),
                "rope_scaling": None if scaling is None else Llama3Scaling(**scaling),
            }
        )


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a weight lies in the flat buffer: its first element, and its shape (row-major, dense)."""

    offset: int
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many elements it has."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def weight_groups(config: Config) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Names and shapes in storage order. What stands in one group lies back to back, so merged views need no copy."""
    hidden, queries, keys = config.hidden, config.heads * config.head_dim, config.kv_heads * config.head_dim
    groups: list[list[tuple[str, tuple[int, ...]]]] = [[("embed.weight", (config.vocab, hidden))]]
    for index in range(config.layers):
        layer = f"layer{index}."
        groups.append([(layer + "input_norm.weight", (hidden,))])
        groups.append(
            [
                (layer + "q_proj.weight", (queries, hidden)),
                (layer + "k_proj.weight", (keys, hidden)),
                (layer + "v_proj.weight", (keys, hidden)),
            ]
        )
        if config.qk_norm:
            groups.append([(layer + "q_norm.weight", (config.head_dim,))])
            groups.append([(layer + "k_norm.weight", (config.head_dim,))])
        groups.append([(layer + "o_proj.weight", (hidden, queries))])
        groups.append([(layer + "post_norm.weight", (hidden,))])
        groups.append(
            [
                (layer + "gate_proj.weight", (config.intermediate, hidden)),
                (layer + "up_proj.weight", (config.intermediate, hidden)),
            ]
        )
        groups.append([(layer + "down_proj.weight", (hidden, config.intermediate))])
    groups.append([("norm.weight", (hidden,))])
    if not config.tied:
        groups.append([("lm_head.weight", (config.vocab, hidden))])
    return groups


def layout(config: Config) -> tuple[dict[str, Slot], int]:
    """Where each weight lies in the flat buffer, in rising order, and the buffer's length in elements."""
    slots: dict[str, Slot] = {}
    end = 0
    for group in weight_groups(config):
        end = -(-end // ALIGNMENT_ELEMENTS) * ALIGNMENT_ELEMENTS
        for name, shape in group:
            slots[name] = Slot(end, shape)
            end += slots[name].elements
    return slots, end


def parameter_count(config: Config) -> int:
    """How many weights the model has; a tied output matrix counts once."""
    return sum(slot.elements for slot in layout(config)[0].values())
