"""Frames: a profile's raw lanes as pandas tables, and how far they can be trusted."""

from mpklab.frames.checks import causality, health, residual, verdict
from mpklab.frames.records import Decoded, decode
from mpklab.frames.tables import edges, events, operators, spans, tasks, workers

__all__ = [
    "Decoded",
    "causality",
    "decode",
    "edges",
    "events",
    "health",
    "operators",
    "residual",
    "spans",
    "tasks",
    "verdict",
    "workers",
]
