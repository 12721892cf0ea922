"""A small rasteriser: coverage of intervals, a 5×7 font and a PNG writer, for the pictures that need no script."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rgb = tuple[int, int, int]
INK: Rgb = (28, 30, 33)
FAINT: Rgb = (91, 96, 105)

# Seven rows a glyph, one base-32 digit a row, five pixels in a digit (most significant bit left).
_FONT = dict(
    entry.split("\t")
    for entry in (
        "0\tEHJLPHE 1\t4C4444E 2\tEH1248V 3\tV2421HE 4\t26AIV22 5\tVGU11HE 6\t68GUHHE 7\tV124888 8\tEHHEHHE 9\tEHHF12C "
        "a\t00E1FHF b\tGGUHHHU c\t00EGGHE d\t11FHHHF e\t00EHVGE f\t698S888 g\t00FHF1E h\tGGMPHHH i\t40C444E j\t20622IC "
        "k\tGGIKOKI l\tC44444E m\t00QLLHH n\t00MPHHH o\t00EHHHE p\t00UHUGG q\t00FHF11 r\t00MPGGG s\t00FGE1U t\t88S8896 "
        "u\t00HHHJD v\t00HHHA4 w\t00HHLLA x\t00HA4AH y\t00HHF1E z\t00V248V A\tEHHVHHH B\tUHHUHHU C\tEHGGGHE D\tSIHHHIS "
        "E\tVGGUGGV F\tVGGUGGG G\tEHGNHHF H\tHHHVHHH I\tE44444E J\t72222IC K\tHIKOKIH L\tGGGGGGV M\tHRLLHHH N\tHHPLJHH "
        "O\tEHHHHHE P\tUHHUGGG Q\tEHHHLID R\tUHHUKIH S\tFGGE11U T\tV444444 U\tHHHHHHE V\tHHHHHA4 W\tHHHLLLA X\tHHA4AHH "
        "Y\tHHHA444 Z\tV1248GV .\t00000CC ,\t0000C48 :\t0CC0CC0 -\t000E000 –\t000V000 "
        "µ\tHHHJLGG _\t000000V +\t044V440 /\t01248G0 %\tOP248J3 "
        "(\t2488842 )\t8422248 =\t00V0V00 #\tAAVAVAA *\t04LEL40 |\t4444444 <\t248G842 >\t8421248 ?\tEH12404 [\tE88888E "
        "]\tE22222E ×\t00HA4AH …\t000000L ·\t0004000 ;\t0CC0C48 '\t4400000 !\t4444404 &\t8KK8LID"
    ).split(" ")
)
_BOX = "VHHHHHV"


def rgb(colour: str) -> Rgb:
    """`#RRGGBB` as three numbers."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def shorten(text: str, most: int) -> str:
    """At most `most` characters on one line."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def counted(n: int, word: str) -> str:
    """`1 task`, `21,578 tasks`."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


class Picture:
    """A white canvas of RGB pixels."""

    def __init__(self, width: int, height: int):
        self.pixels: NDArray[np.uint8] = np.full((height, width, 3), 255, np.uint8)

    def fill(self, x: float, y: float, w: float, h: float, colour: Rgb) -> None:
        """A rectangle; parts outside are left out."""
        left, top = max(0, round(x)), max(0, round(y))
        self.pixels[top : max(top, round(y + h)), left : max(left, round(x + w))] = colour

    def paste(self, x: int, y: int, image: NDArray[np.uint8], tall: int = 1) -> None:
        """An image, each of its rows `tall` pixels high, with a white line between rows where there is room."""
        rows = np.repeat(image, tall, axis=0)
        if tall >= 5:
            rows[tall - 1 :: tall] = 255
        self.pixels[y : y + rows.shape[0], x : x + rows.shape[1]] = rows

    def text(self, x: int, y: int, text: str, colour: Rgb = INK) -> None:
        """One line in the 5×7 font; characters it does not have are drawn as a box."""
        for character in text:
            if character != " ":
                for row, digit in enumerate(_FONT.get(character, _BOX)):
                    bits = int(digit, 32)
                    for column in range(5):
                        px, py = x + column, y + row
                        if (
                            bits >> (4 - column) & 1
                            and 0 <= px < self.pixels.shape[1]
                            and 0 <= py < self.pixels.shape[0]
                        ):
                            self.pixels[py, px] = colour
            x += 6

    def curve(self, points: Sequence[tuple[float, float]], colour: Rgb, dashed: bool = False) -> None:
        """A chain of cubic curves (1 + 3k points) or a line of points, one pixel wide."""
        at = np.asarray(points, float)
        if len(at) % 3 == 1 and len(at) > 3:
            t = np.linspace(0, 1, 80)[:, None]
            pieces = [
                (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d
                for a, b, c, d in zip(at[:-1:3], at[1::3], at[2::3], at[3::3], strict=True)
            ]
            at = np.concatenate(pieces)
        run = 0.0
        for (x0, y0), (x1, y1) in pairwise(at):
            length = max(abs(x1 - x0), abs(y1 - y0))
            steps = max(2, int(length) + 1)
            x, y = np.linspace(x0, x1, steps).round().astype(int), np.linspace(y0, y1, steps).round().astype(int)
            inside = (x >= 0) & (y >= 0) & (x < self.pixels.shape[1]) & (y < self.pixels.shape[0])
            if dashed:
                inside &= (run + np.linspace(0, length, steps)) % 9 < 5
            self.pixels[y[inside], x[inside]] = colour
            run += length

    def swatch(self, x: int, y: int, colour: Rgb, text: str) -> None:
        """A colour and its name."""
        self.fill(x, y - 1, 9, 9, colour)
        self.text(x + 13, y, text, FAINT)

    def png(self) -> bytes:
        """The picture as PNG: a palette of at most 256 colours if that is exact, else RGB."""
        height, width, _ = self.pixels.shape
        red, green, blue = (self.pixels[:, :, k].astype(np.uint32) for k in range(3))
        packed = red << 16 | green << 8 | blue
        place = np.zeros(1 << 24, np.uint8)  # an entry for every colour there is: quicker than sorting the pixels
        place[packed] = 1
        colours = np.flatnonzero(place.view(bool))
        if len(colours) <= 256:
            place[colours] = np.arange(len(colours))
            kind, rows = 3, place[packed]
            table = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(np.uint8).tobytes()
        else:
            kind, rows, table = 2, self.pixels.reshape(height, width * 3), b""
        lines = np.zeros((height, rows.shape[1] + 1), np.uint8)  # a leading 0: no filter
        lines[:, 1:] = rows

        def chunk(name: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))]
        if table:
            parts.append(chunk(b"PLTE", table))
        parts += [chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)), chunk(b"IEND", b"")]
        return b"".join(parts)


def message(text: str, width: int) -> Picture:
    """A picture that only says something."""
    picture = Picture(width, 40)
    picture.text(8, 16, shorten(text, (width - 16) // 6))
    return picture


def coverage(
    row: NDArray[Any], kind: NDArray[Any], begin: NDArray[Any], end: NDArray[Any], shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """How much of each pixel each class covers, exactly: rows × classes × pixels; `begin` and `end` are in pixels, spans come
    sorted by row."""
    rows, classes, width = shape
    cells = np.empty(shape, np.float32)
    few = 8  # rows at a time, so that what is counted stays in the cache
    for first in range(0, rows, few):
        own = slice(*np.searchsorted(row, np.array([first, first + few], row.dtype)))
        size = few * classes * (width + 2)
        base = ((row[own].astype(np.int64) - first) * classes + kind[own]) * (width + 2)
        # A step up at `begin` and down at `end`, each split over the two pixels it falls between; their running sum is the
        # coverage.
        steps = np.zeros(size + 1)
        for at, sign in ((begin[own], 1.0), (end[own], -1.0)):
            inside = np.clip(at, 0, width)
            whole = inside.astype(np.int64)
            pixel = base + whole
            part = sign * np.bincount(pixel, weights=inside - whole, minlength=size)
            steps[:-1] += sign * np.bincount(pixel, minlength=size) - part
            steps[1:] += part
        sums = np.cumsum(steps[:-1].reshape(few, classes, width + 2), axis=2)
        cells[first : first + few] = sums[: rows - first, :, :width]
    return cells


def blend(cells: NDArray[np.float32], colours: Sequence[Rgb]) -> NDArray[np.uint8]:
    """The colour of the class that covers most of each pixel, faded towards white in five steps by how much is covered."""
    top = cells.argmax(axis=1)
    covered = np.ceil(np.clip(cells.sum(axis=1), 0, 1) * 5 - 1e-3) / 5
    palette = np.array(colours, np.float32)
    return (255 + (palette[top] - 255) * covered[..., None]).round().astype(np.uint8)
