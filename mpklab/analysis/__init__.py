"""Analyses: from frames to answers; each takes a profile and gives a DataFrame."""

from mpklab.analysis.findings import explain
from mpklab.analysis.handoffs import handoff, waits
from mpklab.analysis.idle import CLASSES, bubbles
from mpklab.analysis.limits import bounds, efficiency
from mpklab.analysis.load import imbalance, overlap, utilisation
from mpklab.analysis.paths import blame, critical_path
from mpklab.analysis.rates import roofline
from mpklab.analysis.repeats import diff, iterations, predicted, steady_state
from mpklab.analysis.replay import what_if

__all__ = [
    "CLASSES",
    "blame",
    "bounds",
    "bubbles",
    "critical_path",
    "diff",
    "efficiency",
    "explain",
    "handoff",
    "imbalance",
    "iterations",
    "overlap",
    "predicted",
    "roofline",
    "steady_state",
    "utilisation",
    "waits",
    "what_if",
]
