"""The simulator: one discrete-event engine for every mode, on a cost model or on given durations."""

from mpklab.simulator.costs import Costs, KindCost, Work, flavour, loads, traffic, work
from mpklab.simulator.engine import Timeline, run
from mpklab.simulator.program import Program
from mpklab.simulator.simulation import Simulation, predict, simulate

__all__ = [
    "Costs",
    "KindCost",
    "Program",
    "Simulation",
    "Timeline",
    "Work",
    "flavour",
    "loads",
    "predict",
    "run",
    "simulate",
    "traffic",
    "work",
]
