"""Tables and numbers for a terminal: with rich where it is installed, plain text everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence

STYLES = {"ok": "green", "missing": "bold red", "optional": "yellow"}


def print_table(headers: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Print rows under their headers, numbers to the right; plain when piped, so that it can be cut and grepped."""
    cells = [[_text(value) for value in row] for row in rows]
    right = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(headers))]
    if sys.stdout.isatty():
        try:
            return _print_rich(headers, cells, right, title)
        except ImportError:
            pass
    print(plain_table(headers, cells, right, title))


def plain_table(headers: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool], title: str = "") -> str:
    """The table as text: columns two blanks apart."""
    lines = [list(headers), *cells] if any(headers) else list(cells)
    widths = [max((len(line[i]) for line in lines), default=0) for i in range(len(headers))]
    aligned = [
        [cell.rjust(width) if is_right else cell.ljust(width) for cell, width, is_right in zip(*columns, strict=True)]
        for columns in ((line, widths, right) for line in lines)
    ]
    return "\n".join([*([title] if title else []), *("  ".join(line).rstrip() for line in aligned)])


def human_bytes(count: float) -> str:
    """A size as people say it: 270 MB. Powers of ten, as on a datasheet."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_rich(headers: Sequence[str], cells: list[list[str]], right: list[bool], title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, show_header=any(headers))
    for header, is_right in zip(headers, right, strict=True):
        shown.add_column(header, justify="right" if is_right else "left")
    for row in cells:
        shown.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))  # Text: nothing in a cell is markup
    Console().print(shown)
