"""`check`: the answer to a notebook's exercise, held to the right one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def check(given: Any, right: Any, *, within: float = 0.0, hint: str = "") -> None:
    """Print "right", "not answered yet" (for `...`), or "no" with the answer given and a hint.

    `right` is the answer, or a function of the answer that says whether it will do; numbers may be off by the share `within`.
    """
    if given is ...:
        print("not answered yet")
    elif _holds(given, right, within):
        print("right")
    else:
        print(f"no, not {given!r:.60}{f': {hint}' if hint else ': look again'}")


def _holds(given: Any, right: Any, within: float) -> bool:
    if isinstance(right, Callable):  # type: ignore[arg-type]
        return bool(right(given))
    try:
        return math.isclose(float(given), float(right), rel_tol=within, abs_tol=0.0)
    except (TypeError, ValueError):
        return bool(given == right)
