"""The oracle: torch functions for every operator, schedules executed task by task, and prefill."""

from mpklab.reference.execute import execute
from mpklab.reference.prefill import prefill
from mpklab.reference.sampling import sample_partial, sample_reduce  # noqa: F401  (importing registers)

__all__ = ["execute", "prefill"]
