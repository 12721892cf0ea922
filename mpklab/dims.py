"""Sizes: integers, symbols with a maximum (`Dim`), and expressions over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import sympy

from mpklab.errors import GraphError

Extent: TypeAlias = int | sympy.Expr


class Dim(sympy.Symbol):
    """A size known when a kernel runs: a positive integer of at most `max`."""

    max: int

    def __new__(cls, name: str, max: int) -> Dim:
        if not isinstance(max, int) or max < 1:
            raise GraphError(f"Dim({name!r}, max={max!r}): the maximum must be a positive integer")
        # Not Symbol's own __new__: it hands out one cached object per name, and two maxima would share it.
        symbol = sympy.Symbol.__xnew__(cls, name, integer=True, positive=True)
        symbol.max = max
        return symbol

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.name, self.max), {}

    def _hashable_content(self) -> tuple[Any, ...]:
        return (*super()._hashable_content(), self.max)


def upper(extent: Extent) -> int:
    """The largest value of an extent. Shapes are monotone in their dims, so every dim stands at its maximum."""
    if isinstance(extent, int):
        return extent
    return int(extent.subs({d: d.max for d in extent.free_symbols if isinstance(d, Dim)}))


def evaluate(extent: Extent, values: Mapping[str, int]) -> int:
    """The value of an extent for given dims (by name)."""
    if isinstance(extent, int):
        return extent
    return int(extent.subs({d: values[str(d)] for d in extent.free_symbols}))


def dims_of(shape: tuple[Extent, ...]) -> tuple[Dim, ...]:
    """The dims a shape mentions, by name."""
    found = {d for e in shape if not isinstance(e, int) for d in e.free_symbols if isinstance(d, Dim)}
    return tuple(sorted(found, key=str))


def shape_text(shape: tuple[Extent, ...]) -> str:
    """`batch×576`, as drawings and messages print a shape."""
    return "×".join(str(e) for e in shape) or "scalar"
