"""A model's weights: one flat buffer, and views of it by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import torch

from mpklab.errors import ModelError, suggest
from mpklab.models.config import Config, Slot, layout

# Random numbers are drawn in float32, this many at a time, so that an 8B model on a GPU needs little beside itself.
_DRAW_ELEMENTS = 1 << 26
# Linear outputs of unit-variance inputs get this standard deviation; at a width of 4096 weights get the usual 0.02.
_RANDOM_GAIN = 1.28


class Weights(Mapping[str, torch.Tensor]):
    """Tensors by name, all views of one flat tensor of one dtype on one device.

    `flat` is shared, not copied; where it is mapped from a file the mapping is private, so nothing reaches the file.
    """

    def __init__(self, flat: torch.Tensor, slots: Mapping[str, Slot]):
        self._flat = flat
        self._slots = dict(slots)

    def __getitem__(self, name: str) -> torch.Tensor:
        slot = self._slot(name)
        return self._flat[slot.offset : slot.offset + slot.elements].view(slot.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, name: object) -> bool:
        return name in self._slots

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"Weights({len(self)} tensors, {dtype}, {self.nbytes / 1e6:,.1f} MB on {self.device})"

    @property
    def flat(self) -> torch.Tensor:
        """The buffer behind every tensor."""
        return self._flat

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of every tensor."""
        return self._flat.dtype

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self._flat.device

    @property
    def nbytes(self) -> int:
        """The size of the buffer, gaps for alignment included."""
        return self._flat.numel() * self._flat.element_size()

    def view(self, names: Sequence[str]) -> torch.Tensor | None:
        """Several matrices as one, rows stacked, sharing memory; None unless they lie back to back in that order."""
        slots = [self._slot(name) for name in names]
        if not slots or any(len(slot.shape) != 2 or slot.shape[1] != slots[0].shape[1] for slot in slots):
            return None
        if any(after.offset != before.offset + before.elements for before, after in pairwise(slots)):
            return None
        rows = sum(slot.shape[0] for slot in slots)
        first = slots[0]
        return self._flat[first.offset : first.offset + rows * first.shape[1]].view(rows, first.shape[1])

    def to(self, device: str | torch.device) -> Weights:
        """The same weights on a device, moved in one piece; this object when they are there already."""
        moved = self._flat.to(device)
        return self if moved is self._flat else Weights(moved, self._slots)

    def astype(self, dtype: str | torch.dtype) -> Weights:
        """The same weights in another dtype, rounded to nearest even; this object when nothing changes."""
        cast = self._flat.to(torch_dtype(dtype))
        return self if cast is self._flat else Weights(cast, self._slots)

    def _slot(self, name: str) -> Slot:
        slot = self._slots.get(name)
        if slot is None:
            raise ModelError(f"the model has no weight called {name!r}: {suggest(name, self._slots)}")
        return slot


def torch_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """bfloat16 or float32 by name."""
    known = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if isinstance(dtype, torch.dtype) and dtype in known.values():
        return dtype
    if dtype not in known:
        raise ModelError(f"weights are kept in {' or '.join(known)}, not in {dtype}")
    return known[str(dtype)]


def filled(config: Config, read: Callable[[str], torch.Tensor], device: str | torch.device = "cpu") -> Weights:
    """A new buffer of the configuration's dtype, filled weight by weight with what `read` gives for each name."""
    slots, elements = layout(config)
    weights = Weights(torch.zeros(elements, dtype=torch_dtype(config.dtype), device=device), slots)
    for name in slots:
        weights[name].copy_(read(name))
    return weights


def random_weights(config: Config, seed: int = 0, device: str | torch.device = "cpu") -> Weights:
    """Weights drawn from a seeded generator on the device itself: the same seed gives the same numbers on that device.

    Matrices are normal with a deviation of 1.28 / √(inputs), so that small models attend and mix as large ones do;
    norms are normal around one. bfloat16 is the float32 draw, rounded.
    """
    slots, elements = layout(config)
    weights = Weights(torch.zeros(elements, dtype=torch_dtype(config.dtype), device=device), slots)
    generator = torch.Generator(device=device).manual_seed(seed)
    draw = torch.empty(min(_DRAW_ELEMENTS, max(s.elements for s in slots.values())), dtype=torch.float32, device=device)
    for name, slot in slots.items():
        mean, deviation = (1.0, 0.1) if len(slot.shape) == 1 else (0.0, _RANDOM_GAIN / slot.shape[1] ** 0.5)
        for part in weights[name].view(-1).split(_DRAW_ELEMENTS):
            part.copy_(draw[: part.numel()].normal_(mean, deviation, generator=generator))
    return weights
