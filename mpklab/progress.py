"""`Progress`: the stages of one job while it works, in a notebook, on a terminal, or as plain lines; quiet when asked."""

from __future__ import annotations

import html
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from mpklab import env

Report = Callable[[str, float, str], None]
REDRAWS_PER_S = 5.0  # what moves is drawn at most so often, whatever happens in between
_SHOWN: ContextVar[bool] = ContextVar("mpklab_progress", default=False)  # a job around this one shows itself already
MARKS = {"working": "…", "done": "✓", "failed": "✗"}


@dataclass
class Stage:
    """One stage under way: `say` tells what it is doing or what it gave."""

    name: str
    begin: float = field(default_factory=time.perf_counter)
    seconds: float | None = None  # None while it works
    text: str = ""
    state: str = "working"

    def say(self, what: object) -> None:
        """A short text beside the stage; the first line counts. As often as one likes."""
        lines = str(what).splitlines()
        self.text = lines[0] if lines else ""

    @property
    def elapsed(self) -> float:
        """Seconds so far, or altogether."""
        return time.perf_counter() - self.begin if self.seconds is None else self.seconds


class Progress:
    """The stages of one job, as a context manager.

    `report(stage, seconds, text)`, where given, is told of each finished stage and nothing is shown. Otherwise one table
    under a display id in a notebook, rich's live table on a terminal, and a line per finished stage on standard error
    elsewhere; nothing at all with MPKLAB_PROGRESS=0 or `quiet`, and nothing inside another job. A job shorter than
    `after_s` shows nothing either.
    """

    def __init__(self, report: Report | None = None, *, quiet: bool = False, after_s: float = 0.0):
        self.stages: list[Stage] = []
        self._after_s = after_s
        self._begin = time.perf_counter()
        self._sink: Any = None
        if report is not None:
            self._sink = _Told(report)
        elif not quiet and not _SHOWN.get() and env.show_progress():
            self._sink = _best_sink()
        self._ended = threading.Event()
        self._drawing = threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Progress:
        self._token = _SHOWN.set(True)
        if self._sink is not None and self._sink.moves:
            self._thread = threading.Thread(target=copy_context().run, args=(self._tick,), daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        _SHOWN.reset(self._token)
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._draw(last=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """One stage: what runs inside is timed; an exception marks it as failed and goes on."""
        now = Stage(name)
        self.stages.append(now)
        try:
            yield now
        except BaseException as error:
            now.state = "failed"
            now.text = f"{type(error).__name__}: {now.text}" if now.text else type(error).__name__
            raise
        else:
            now.state = "done"
        finally:
            now.seconds = time.perf_counter() - now.begin
            if self._sink is not None and not self._sink.moves and self._long_enough():
                self._sink.finished(self.stages)

    def _long_enough(self) -> bool:
        return time.perf_counter() - self._begin >= self._after_s

    def _tick(self) -> None:
        while not self._ended.wait(1 / REDRAWS_PER_S):
            self._draw()

    def _draw(self, last: bool = False) -> None:
        if self._sink is None or not self._sink.moves or not self.stages or not self._long_enough():
            return
        with self._drawing:
            self._sink.draw(list(self.stages), last)


class _Told:
    """Each stage once, when it has ended, to a caller's function; without one a line on standard error, for logs and
    pipes. A caller's function is not told of what failed: an exception tells it."""

    moves = False

    def __init__(self, report: Report | None = None):
        self._report, self._told = report, 0

    def finished(self, stages: list[Stage]) -> None:
        for stage in stages[self._told :]:
            failed = "failed: " if stage.state == "failed" else ""
            if self._report is None:
                print(f"{stage.name:>9}  {stage.elapsed:7.3f} s  {failed}{stage.text}", file=sys.stderr, flush=True)
            elif not failed:
                self._report(stage.name, stage.elapsed, stage.text)
        self._told = len(stages)


class _Terminal:
    """rich's live table on standard error."""

    moves = True

    def __init__(self) -> None:
        self._live: Any = None

    def draw(self, stages: list[Stage], last: bool) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, show_header=False, padding=(0, 1), expand=True)
        table.add_column(justify="right", no_wrap=True, width=9)
        table.add_column(justify="right", no_wrap=True, width=9)
        table.add_column(width=1)
        table.add_column(overflow="ellipsis", no_wrap=True, ratio=1)  # the only one that gives way to a narrow window
        colour = {"working": "yellow", "done": "green", "failed": "bold red"}
        for s in stages:
            mark = Text(MARKS[s.state], style=colour[s.state])
            table.add_row(Text(s.name), Text(f"{s.elapsed:.2f} s"), mark, Text(s.text))
        if self._live is None:
            self._live = Live(console=Console(stderr=True), auto_refresh=False)
            self._live.start()
        self._live.update(table, refresh=True)
        if last:
            self._live.stop()


class _Notebook:
    """One table under one display id, replaced while it changes: a saved notebook keeps its last state."""

    moves = True

    def __init__(self) -> None:
        self._handle: Any = None

    def draw(self, stages: list[Stage], last: bool) -> None:
        from IPython.display import display

        shown = {"text/plain": as_text(stages), "text/html": as_html(stages)}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)


def as_text(stages: list[Stage]) -> str:
    """The stages as lines of text."""
    return "\n".join(f"{s.name:>9}  {s.elapsed:7.3f} s  {MARKS[s.state]} {s.text}" for s in stages)


def as_html(stages: list[Stage]) -> str:
    """The stages as a table without scripts; nothing in it is markup but the table."""
    left = 'style="text-align:left"'
    rows = "".join(
        f"<tr><th {left}>{html.escape(s.name)}</th><td>{s.elapsed:.2f} s</td><td>{MARKS[s.state]}</td>"
        f"<td {left}>{html.escape(s.text)}</td></tr>"
        for s in stages
    )
    return f"<table>{rows}</table>"


def _best_sink() -> Any:
    """A notebook's cell, a terminal, or plain lines. IPython is asked only where it already runs."""
    running = sys.modules.get("IPython")
    shell = running.get_ipython() if running is not None else None
    if shell is not None and getattr(shell, "kernel", None) is not None:
        return _Notebook()
    if sys.stderr.isatty() and find_spec("rich") is not None:
        return _Terminal()
    return _Told()
