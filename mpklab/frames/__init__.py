"""Frames: a profile's raw lanes as pandas tables, and how far they can be trusted."""

from mpklab.frames.alignment import align, alignment
from mpklab.frames.checks import NEVER, causality, grid, health, range_max, ranks, residual, verdict
from mpklab.frames.records import Decoded, decode
from mpklab.frames.tables import edges, events, operators, query, spans, tasks, workers

__all__ = [
    "NEVER",
    "Decoded",
    "align",
    "alignment",
    "causality",
    "decode",
    "edges",
    "events",
    "grid",
    "health",
    "operators",
    "query",
    "range_max",
    "ranks",
    "residual",
    "spans",
    "tasks",
    "verdict",
    "workers",
]
