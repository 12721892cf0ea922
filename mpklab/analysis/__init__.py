"""Analyses: from frames to answers; each takes a profile and gives a DataFrame."""

from mpklab.analysis.idle import bubbles
from mpklab.analysis.paths import blame, critical_path

__all__ = ["blame", "bubbles", "critical_path"]
