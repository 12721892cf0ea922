"""`profiling`: records whatever kernels run inside a block, without a word at their calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from mpklab.profile import Profile, Window


@dataclass(frozen=True)
class _Asked:
    window: Window
    found: list[Profile] = field(default_factory=list)


_ASKED: ContextVar[_Asked | None] = ContextVar("mpklab_profiling", default=None)


@contextmanager
def profiling(level: int | Window = 2) -> Iterator[list[Profile]]:
    """Record every launch inside the block that does not ask for a recording itself; gives the list that profiles join.

    `level` is a recording level (1 to 3) or a Window. A launch that fails leaves what it had recorded. Threads see it
    when they were started with the block's context.

        with mk.profiling() as recorded:
            kernel.generate("What is a GPU?")
        recorded[-1].studio()
    """
    asked = _Asked(level if isinstance(level, Window) else Window(level=level))
    token = _ASKED.set(asked)
    try:
        yield asked.found
    finally:
        _ASKED.reset(token)


def window_of(profile: int | Window) -> Window:
    """What a launch records: what its caller asks for, else what the block around it does."""
    asked = _ASKED.get()
    window = profile if isinstance(profile, Window) else Window(level=int(profile))
    return window if window.level or asked is None else asked.window


def keep(profile: Profile) -> None:
    """Hand a finished recording to the block around it."""
    asked = _ASKED.get()
    if asked is not None:
        asked.found.append(profile)
