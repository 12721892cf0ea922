"""Views of a graph, its tasks and what every worker did: widgets in a notebook, self-contained pages elsewhere."""

from mpklab.widgets.timeline import Timeline, timeline

__all__ = ["Timeline", "timeline"]
