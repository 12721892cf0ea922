"""What a CUDA kernel is made with beside its operators: names, and what counts where a plan leaves one open."""

from __future__ import annotations

from collections.abc import Mapping

from mpklab.errors import LowerError, suggest

# Measured on one H200 (profiles/LOG.md).
DEFAULTS = {"consumer_warps": 8, "page_bytes": 32768, "pages": 6, "in_flight": 2, "l2_bytes": 0}


def checked_settings(settings: Mapping[str, int]) -> dict[str, int]:
    """The settings, if every name is one of `DEFAULTS` and every value a count; LowerError says which is not."""
    for name, value in settings.items():
        if name not in DEFAULTS:
            raise LowerError(
                f"lower takes no {name!r}, nor does a kernel know such a setting: {suggest(name, DEFAULTS)}"
            )
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise LowerError(f"the kernel setting {name} must be a count, not {value!r}")
    return dict(settings)
