"""The oracle: torch functions for every operator, schedules executed task by task, and prefill."""

from mpklab.reference.execute import execute
from mpklab.reference.prefill import prefill

__all__ = ["execute", "prefill"]
