"""Recordings that other tools made, as profiles: FlashInfer's and Mirage's buffers, Chrome's trace events; and Mirage's
task graph without one.

What such a recording does not say (waits, edges, bytes) stays empty, and analyses that need it have nothing to report.
"""

from collections.abc import Callable

from mpklab.imports.chrome import from_chrome
from mpklab.imports.interleaved import from_flashinfer, from_mirage, to_mirage
from mpklab.imports.mirage import import_mirage
from mpklab.profile import Profile

FORMATS: dict[str, Callable[..., Profile]] = {
    "flashinfer": from_flashinfer,
    "mirage": from_mirage,
    "chrome": from_chrome,
}

__all__ = ["FORMATS", "from_chrome", "from_flashinfer", "from_mirage", "import_mirage", "to_mirage"]
