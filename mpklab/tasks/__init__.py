"""Tasks and events: plans, edges, and lowering a graph to a TaskGraph."""

from mpklab.tasks.edges import EdgeSet, overlap_ranges
from mpklab.tasks.lowering import dim_values, load, lower
from mpklab.tasks.plan import Plan, choose_plan
from mpklab.tasks.task_graph import TaskGraph

__all__ = ["EdgeSet", "Plan", "TaskGraph", "choose_plan", "dim_values", "load", "lower", "overlap_ranges"]
