"""Views of a graph, its tasks and what every worker did: widgets in a notebook, self-contained pages elsewhere."""

from mpklab.widgets.operator_graph import OperatorGraph, operator_graph
from mpklab.widgets.studio import Studio
from mpklab.widgets.task_dag import TaskDag, task_dag
from mpklab.widgets.timeline import Timeline, timeline

__all__ = ["OperatorGraph", "Studio", "TaskDag", "Timeline", "operator_graph", "task_dag", "timeline"]
