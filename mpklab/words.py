"""The words of this project, one per thing, and `glossary`, which shows them: in Python, C++, columns and labels alike."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from mpklab.errors import MpkError, suggest

WORDS: dict[str, str] = {
    "graph": "operators and tensors of one step (the kernel graph, level 1)",
    "block graph": "what one tile of an operator loads, computes and stores (level 2): its access boxes and its stages",
    "thread graph": "how warps and lanes split that tile (level 3)",
    "dim": 'a size, a number or a symbol with a maximum: Dim("tokens", max=64)',
    "task": "one tile of one operator; runs once per iteration on one worker",
    "event, event tensor": "a counter; an N-dimensional array of them. A task waits for events and signals events",
    "need": "how many signals make an event happen, once per iteration",
    "iteration, epoch": "one pass over the task graph (one decode step); how often a queue table has run",
    "worker": "what runs tasks: one SM (one resident thread block) or one CPU thread",
    "scheduler": "what hands tasks to workers at run time, in dynamic mode only",
    "queue": "the ordered list of tasks of one worker",
    "page, ring": "a piece of shared memory; the pages a worker streams operands through",
    "operand waits": "every operand carries its own waits; a static operand (weights) has none, so it may be loaded before "
    "the task's events happen",
    "plan": "every choice that lowering made: tiles, splits, fusions, hand-offs; JSON, hashed, replayable",
    "lane": "one instrumented role of one worker: compute, loader, scheduler",
    "record, span": "8 bytes the device wrote; an interval with a meaning, decoded from records",
    "rank": "one device of several",
}


@dataclass(frozen=True)
class Glossary:
    """Words and meanings: a table in a notebook, lines in a terminal, `to_html(path)` a page, `["page"]` one meaning."""

    words: dict[str, str]

    def __getitem__(self, word: str) -> str:
        for name, meaning in self.words.items():
            if word in (name, *name.split(", ")):
                return meaning
        known = [part for name in self.words for part in name.split(", ")]
        raise MpkError(f"the glossary has no word {word!r}: {suggest(word, known)}")

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        width = max(map(len, self.words))
        return "\n".join(f"{name:<{width}}  {meaning}" for name, meaning in self.words.items())

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><th style="text-align:left;vertical-align:top">{html.escape(name)}</th>'
            f'<td style="text-align:left">{html.escape(meaning)}</td></tr>'
            for name, meaning in self.words.items()
        )
        return f"<table>{rows}</table>"

    def to_html(self, path: str | Path | None = None) -> str | Path:
        """A page of its own, without scripts. Returns the text, or the path it was written to."""
        text = (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>mpklab: words</title>\n'
            "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:50em;margin:2em auto;padding:0 1em;"
            "color-scheme:light dark}th{padding-right:1.5em;white-space:nowrap}</style>\n</head>\n"
            f"<body>\n<h1>Words</h1>\n<p>One per thing, the same everywhere in mpklab.</p>\n{self._repr_html_()}\n</body>\n</html>\n"
        )
        if path is None:
            return text
        target = Path(path)
        target.write_text(text, encoding="utf-8")
        return target


def glossary() -> Glossary:
    """The words of this project and what they mean; `mk.glossary()["event"]` is one of them."""
    return Glossary(dict(WORDS))
