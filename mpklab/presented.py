"""The base of every value that shows itself or has analyses: looks them up in present.py by name when they are called."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

from mpklab.errors import MpkError, answers_slips, suggest


class Presented:
    """A value whose drawings and analyses live further right in the stages. `mpklab.present` says which it has."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)

    def __getattr__(self, name: str) -> Any:
        # Private names are asked for by copy, pickle and IPython all the time; only notebooks' own hook is ours.
        if name.startswith("_") and name != "_repr_mimebundle_":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        present = import_module("mpklab.present")
        function = present.method(type(self).__name__, name)
        if function is None:
            known = [word for word in dir(self) if not word.startswith("_")]
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}: {suggest(name, known)}")
        return partial(answers_slips(MpkError)(function), self)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *import_module("mpklab.present").methods(type(self).__name__)})
