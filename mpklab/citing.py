"""BibTeX for mpklab and for the work behind its analyses and policies."""

from __future__ import annotations

from mpklab import __version__
from mpklab.errors import MpkError, suggest

_MPKLAB = f"""@software{{mpklab,
  title   = {{mpklab: a JupyterLab toolkit for GPU megakernels}},
  author  = {{{{The mpklab authors}}}},
  version = {{{__version__}}},
  license = {{Apache-2.0}}
}}"""

_PAPERS = {
    "graham": """@article{graham1969bounds,
  author  = {Graham, R. L.},
  title   = {Bounds on Multiprocessing Timing Anomalies},
  journal = {SIAM Journal on Applied Mathematics},
  volume  = {17}, number = {2}, pages = {416--429}, year = {1969}
}""",
    "critical": """@inproceedings{yang1988critical,
  author    = {Yang, Cui-Qing and Miller, Barton P.},
  title     = {Critical Path Analysis for the Execution of Parallel and Distributed Programs},
  booktitle = {Proceedings of the 8th International Conference on Distributed Computing Systems},
  pages     = {366--373}, year = {1988}
}""",
    "coz": """@inproceedings{curtsinger2015coz,
  author    = {Curtsinger, Charlie and Berger, Emery D.},
  title     = {Coz: Finding Code that Counts with Causal Profiling},
  booktitle = {Proceedings of the 25th Symposium on Operating Systems Principles},
  pages     = {184--197}, year = {2015}
}""",
    "lamport": """@article{lamport1978time,
  author  = {Lamport, Leslie},
  title   = {Time, Clocks, and the Ordering of Events in a Distributed System},
  journal = {Communications of the ACM},
  volume  = {21}, number = {7}, pages = {558--565}, year = {1978}
}""",
    "roofline": """@article{williams2009roofline,
  author  = {Williams, Samuel and Waterman, Andrew and Patterson, David},
  title   = {Roofline: An Insightful Visual Performance Model for Multicore Architectures},
  journal = {Communications of the ACM},
  volume  = {52}, number = {4}, pages = {65--76}, year = {2009}
}""",
    "list": """@article{adam1974comparison,
  author  = {Adam, Thomas L. and Chandy, K. M. and Dickson, J. R.},
  title   = {A Comparison of List Schedules for Parallel Processing Systems},
  journal = {Communications of the ACM},
  volume  = {17}, number = {12}, pages = {685--690}, year = {1974}
}""",
    "events": """@misc{eventtensor,
  title         = {Event Tensor: A Unified Abstraction for Compiling Dynamic Megakernel},
  archiveprefix = {arXiv},
  eprint        = {2604.13327},
  year          = {2026}
}""",
}

_BEHIND = {
    "bounds": ("graham",),
    "critical_path": ("critical",),
    "blame": ("critical",),
    "what_if": ("coz",),
    "explain": ("coz",),
    "align": ("lamport",),
    "causality": ("lamport",),
    "roofline": ("roofline",),
    "list_scheduling": ("list", "graham"),
    "events": ("events",),
}


def cite(*used: str) -> str:
    """BibTeX entries: mpklab's, and those behind the analyses and policies named (`cite("what_if")`); MpkError for others."""
    wanted: list[str] = []
    for name in used:
        if name not in _BEHIND:
            raise MpkError(f"cite: nothing is cited for {name!r}; {suggest(name, _BEHIND)}")
        wanted += [key for key in _BEHIND[name] if key not in wanted]
    return "\n\n".join([_MPKLAB, *(_PAPERS[key] for key in wanted)]) + "\n"
