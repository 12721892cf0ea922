"""What every view can do: show itself, be kept as a page or a picture, be read as text, and share a selection with Python."""

from __future__ import annotations

import base64
import html
import json
import time
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpklab.errors import MpkError, need_package
from mpklab.widgets import raster
from mpklab.widgets.page import page, style, widget_module, write

if TYPE_CHECKING:
    import pandas as pd

MOST_SELECTED = 100_000


class View:
    """Base of the views. A subclass names its ES module and gives `data`, `text`, `picture` and `rows`."""

    module = ""
    mount = ""

    def __init__(self, title: str, limit: int):
        self.title = title
        self._limit = limit  # task ids are below it
        self._selected: list[int] = []
        self._listeners: list[Callable[[pd.DataFrame], object]] = []
        self._widget: Any = None
        self._told_s = 0.0

    # ---- what a subclass gives

    def data(self, level: int = 9) -> bytes:
        """What the ES module draws, packed."""
        raise NotImplementedError

    def text(self) -> str:
        """What the picture says, in words."""
        raise NotImplementedError

    def picture(self, width: int = 900) -> raster.Picture:
        """The picture as pixels."""
        raise NotImplementedError

    def rows(self, tasks: list[int]) -> pd.DataFrame:
        """The rows that belong to these task ids."""
        raise NotImplementedError

    # ---- keeping it

    def to_html(self, path: str | Path | None = None) -> str | Path:
        """A self-contained page: everything inside, nothing asked from any network. Returns the text, or the path."""
        return write(page(self.title, self.module, self.mount, self.data(), self.text()), path)

    def to_png(self, path: str | Path | None = None, width: int = 900) -> bytes | Path:
        """A still picture. Returns the bytes, or the path."""
        image = self.picture(width).png()
        if path is None:
            return image
        target = Path(path)
        target.write_bytes(image)
        return target

    def save(self, path: str | Path) -> Path:
        """A page or a picture, by the path's suffix."""
        target = Path(path)
        if target.suffix == ".html":
            self.to_html(target)
        elif target.suffix == ".png":
            self.to_png(target)
        else:
            raise MpkError(f"cannot save a view as {target.suffix!r}: expected a path ending in .html or .png")
        return target

    # ---- selection

    @property
    def selection(self) -> pd.DataFrame:
        """The rows of the selected tasks."""
        return self.rows(list(self._selected))

    def select(self, tasks: Iterable[int]) -> View:
        """Select task ids, here and in the notebook."""
        self._set(tasks)
        if self._widget is not None:
            self._widget._selected = np.array(self._selected, "<i4").tobytes()
        return self

    def on_select(self, listener: Callable[[pd.DataFrame], object]) -> View:
        """Call `listener(frame)` whenever the selection changes."""
        self._listeners.append(listener)
        return self

    def _set(self, tasks: Iterable[object]) -> None:
        chosen: list[int] = []
        for task in tasks:
            if isinstance(task, bool) or not isinstance(task, int | np.integer) or not 0 <= task < self._limit:
                raise MpkError(f"cannot select {task!r}: expected a task id from 0 to {self._limit - 1}")
            chosen.append(int(task))
        self._selected = chosen
        for listener in self._listeners:
            listener(self.selection)

    # ---- showing it

    def widget(self) -> Any:
        """The live widget of this view; one per view, so that its selection is one."""
        if self._widget is None:
            widget = _widget_class()(  # all at once: what is set later is sent on its own
                _data=self.data(level=1),
                _esm=widget_module(self.module, self.mount),
                _state=json.dumps(self.state()),
                _selected=np.array(self._selected, "<i4").tobytes(),
            )
            widget.on_msg(self._hear)
            self._widget = widget
        return self._widget

    def state(self) -> dict[str, Any]:
        """What is going on while the view is shown; empty where nothing is."""
        return {}

    def _tell(self, now: bool = False) -> None:
        """Send the state to the widget, at 10 Hz at most unless it must be seen."""
        if self._widget is not None and (now or time.monotonic() - self._told_s > 0.1):
            self._told_s = time.monotonic()
            self._widget._state = json.dumps(self.state())

    def _hear(self, widget: Any, content: object, buffers: object) -> None:
        """A message from the browser: believed only as far as it is a short list of task ids."""
        if not isinstance(content, dict) or content.get("kind") != "select":
            return
        tasks = content.get("tasks")
        if not isinstance(tasks, list) or len(tasks) > MOST_SELECTED:
            return
        if any(type(task) is not int or not 0 <= task < self._limit for task in tasks):
            return
        self._set(tasks)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        """Widget where a notebook can run it, and a picture, a script-free card and text for everyone else."""
        text = _never_raise(self.text, self.title)
        bundle: dict[str, Any] = {"text/plain": text}
        image = _never_raise(lambda: self.picture().png(), b"")
        if image:
            encoded = base64.b64encode(image).decode()
            bundle["image/png"] = encoded
            bundle["text/html"] = card(text, encoded)
        else:
            bundle["text/html"] = card(text, None)
        if find_spec("anywidget") is not None:
            shown = _never_raise(lambda: self.widget()._repr_mimebundle_(), {})
            parts = shown[0] if isinstance(shown, tuple) else shown or {}
            bundle |= {kind: value for kind, value in parts.items() if kind != "text/plain"}
        return bundle

    def __repr__(self) -> str:
        return _never_raise(self.text, self.title)


def _never_raise(make: Callable[[], Any], otherwise: Any) -> Any:
    """A repr that raises hides the value behind a traceback; say less instead."""
    try:
        return make()
    except Exception as error:
        return f"{otherwise} (could not be shown: {error})" if isinstance(otherwise, str) else otherwise


def card(text: str, image: str | None, kind: str = "image/png") -> str:
    """Script-free HTML that an untrusted, exported or printed notebook still shows; `image` is base64."""
    escaped = html.escape(text)
    picture = f'<img src="data:{kind};base64,{image}" alt="{escaped}" style="max-width:100%">' if image else ""
    lines = escaped.replace("\n", "<br>")
    return f'<figure style="margin:0">{picture}<figcaption>{lines}</figcaption></figure>'


@cache
def _widget_class() -> Any:
    """Made on first use: anywidget is optional, and importing it takes a while."""
    if find_spec("anywidget") is None:
        raise need_package("anywidget", "a live view", "notebook")
    import anywidget
    import traitlets

    class MpkWidget(anywidget.AnyWidget):
        """Bytes to draw, bytes of selected task ids, and what is going on."""

        _esm = traitlets.Unicode("export default {}").tag(sync=True)
        _css = traitlets.Unicode(style()).tag(sync=True)
        _data = traitlets.Bytes(b"").tag(sync=True)
        _selected = traitlets.Bytes(b"").tag(sync=True)
        _state = traitlets.Unicode("{}").tag(sync=True)

    return MpkWidget
