"""One file that shows itself: columns packed into bytes, hand-written ES modules joined, and a page that asks no network."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpklab.env import whole_file

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([a-z_]+\.js)";\n', re.MULTILINE)

# A module's default export is made from the text of another module, which is loaded as anywidget loads this one.
_LOADER = """const packed = Uint8Array.from(atob("PACKED"), (c) => c.charCodeAt(0));
const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
const address = URL.createObjectURL(new Blob([await new Response(stream).text()], { type: "text/javascript" }));
const inner = await import(address);
URL.revokeObjectURL(address);
export default inner.default;
"""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a container. `delta` stores differences, which deflate well when neighbours are alike."""

    values: NDArray[Any]
    delta: bool = False


def container(meta: Mapping[str, object], columns: Mapping[str, Column], level: int = 9) -> bytes:
    """Everything a view needs as one deflated run of bytes; `openContainer` in common.js reads it.

    Little-endian header length, a JSON header, then each column as byte planes (all lowest bytes first). Names that
    users gave live in here only, so they never meet HTML. Integers must fit in 2^52, floats become float32.
    """
    described: list[tuple[str, int, int, int, int, int]] = []
    payload: list[bytes] = []
    for name, column in columns.items():
        values = np.asarray(column.values)
        if values.dtype.kind == "f":
            planes, signed, delta = 4, False, False
            words: NDArray[Any] = np.ascontiguousarray(values, "<f4").view("<u4")
        else:
            low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
            small = -(2**29) < low and high < 2**29  # then differences, doubled, fit 32 bits
            words = values.astype(np.int32 if small else np.int64)
            delta = column.delta and len(words) > 0
            if delta:
                words[1:] -= words[:-1].copy()
            signed = bool(len(words)) and int(words.min()) < 0
            if signed:
                words = (words << 1) ^ (words >> 8 * words.itemsize - 1)
            most = int(words.max()) if len(words) else 0
            planes = (most.bit_length() + 7) // 8
        described.append((name, len(words), planes, int(signed), int(delta), int(values.dtype.kind == "f")))
        octets = words.astype(words.dtype.newbyteorder("<"), copy=False).view(np.uint8).reshape(-1, words.itemsize)
        payload.extend(octets[:, plane].tobytes() for plane in range(planes))
    header = json.dumps({"meta": meta, "columns": described}, separators=(",", ":"), allow_nan=False).encode()
    squeeze = zlib.compressobj(level)
    parts = [squeeze.compress(len(header).to_bytes(4, "little")), squeeze.compress(header)]
    parts.extend(squeeze.compress(piece) for piece in payload)
    parts.append(squeeze.flush())
    return b"".join(parts)


@cache
def _static(name: str) -> str:
    return (files("mpklab.widgets") / "static" / name).read_text(encoding="utf-8")


@cache
def bundle(module: str) -> str:
    """`module` and what it imports as one ES module: anywidget and a page under CSP can both load just one text.

    Every file's top-level names are its own (a test checks), so joining them is dropping the import lines. Comments and
    indentation are dropped too; no template literal in static/ spans lines.
    """
    order: list[str] = []

    def visit(name: str) -> None:
        if name not in order:
            for needed in _IMPORT.findall(_static(name)):
                visit(needed)
            order.append(name)

    visit(module)
    lines: list[str] = []
    for name in order:
        inside = False
        for line in _IMPORT.sub("", _static(name)).splitlines():
            text = line.strip()
            inside = inside or text.startswith("/*")
            if text and not inside and not text.startswith("//"):
                lines.append(text)
            inside = inside and not text.endswith("*/")
    return "\n".join(re.sub(r"^export ", "", line) for line in lines) + "\n"


@cache
def style() -> str:
    """The style sheet of every view, without its comments."""
    return re.sub(r"/\*.*?\*/\n?", "", _static("style.css"), flags=re.DOTALL)


@cache
def widget_module(module: str, mount: str) -> str:
    """The ES module of an anywidget, deflated inside one that inflates it: every widget's state holds its module's text,
    and a notebook should not carry a hundred kilobytes for each picture."""
    text = f"{bundle(module)}export default startWidget({mount});\n"
    packed = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    return _LOADER.replace("PACKED", packed)


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def page(title: str, module: str, mount: str, data: bytes, about: str) -> str:
    """A whole HTML page: one style, one script, one block of data; nothing else may load or run.

    The content-security policy names the hashes of its own script and style, so markup that got in could do nothing.
    """
    script = f"{bundle(module)}startPage({mount});\n"
    if "</script" in script.lower() or "<!--" in script:
        raise ValueError(f"{module} holds a text that would end its script block")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style())}; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    escaped = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escaped}</title>\n<link rel="icon" href="data:,">\n<style>{style()}</style>\n</head>\n'
        f'<body class="mpk-page">\n<main class="mpk" id="mpk" aria-label="{escaped}">\n'
        f"<noscript><h1>{escaped}</h1><p>{html.escape(about)}</p><p>The picture needs scripts.</p></noscript>\n</main>\n"
        f'<script type="application/octet-stream" id="mpk-data">{base64.b64encode(data).decode()}</script>\n'
        f'<script type="module">{script}</script>\n</body>\n</html>\n'
    )


def write(text: str, path: str | Path | None) -> str | Path:
    """The text itself, or the path it was written to."""
    if path is None:
        return text
    target = Path(path)
    with whole_file(target) as part:
        part.write_text(text, encoding="utf-8")
    return target
