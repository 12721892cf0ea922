"""Studies: many configurations of one graph, run or predicted, interleaved, and kept."""

from mpklab.study.again import rerun
from mpklab.study.sweep import Study

__all__ = ["Study", "rerun"]
