"""Views of a graph, its tasks and what every worker did: widgets in a notebook, self-contained pages elsewhere."""

from mpklab.widgets.operator_graph import OperatorGraph, graph_view, operator_graph
from mpklab.widgets.studio import Studio, studio
from mpklab.widgets.task_dag import TaskDag, task_dag
from mpklab.widgets.timeline import Timeline, timeline

__all__ = [
    "OperatorGraph",
    "Studio",
    "TaskDag",
    "Timeline",
    "graph_view",
    "operator_graph",
    "studio",
    "task_dag",
    "timeline",
]
