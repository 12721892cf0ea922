"""Views of a graph, its tasks and what every worker did: widgets in a notebook, self-contained pages elsewhere.

`timeline.timeline`, `task_dag.task_dag`, `operator_graph.graph_view` and `studio.Studio` make one each.
"""
