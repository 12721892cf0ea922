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
    "bootstrap": """@article{efron1979bootstrap,
  author  = {Efron, B.},
  title   = {Bootstrap Methods: Another Look at the Jackknife},
  journal = {The Annals of Statistics},
  volume  = {7}, number = {1}, pages = {1--26}, year = {1979}
}""",
    "mad": """@article{rousseeuw1993alternatives,
  author  = {Rousseeuw, Peter J. and Croux, Christophe},
  title   = {Alternatives to the Median Absolute Deviation},
  journal = {Journal of the American Statistical Association},
  volume  = {88}, number = {424}, pages = {1273--1283}, year = {1993}
}""",
    "mpk": """@misc{cheng2025mpk,
  author        = {Cheng, Xinhao and Zhang, Zhihao and Zhou, Yu and others},
  title         = {Mirage Persistent Kernel: A Compiler and Runtime for Mega-Kernelizing Tensor Programs},
  archiveprefix = {arXiv},
  eprint        = {2512.22219},
  year          = {2025}
}""",
    "events": """@misc{jin2026eventtensor,
  author        = {Jin, Hongyi and Hou, Bohan and Wang, Guanjie and others},
  title         = {Event Tensor: A Unified Abstraction for Compiling Dynamic Megakernel},
  archiveprefix = {arXiv},
  eprint        = {2604.13327},
  year          = {2026}
}""",
}

# Whose idea each is; () where no paper is behind it. Every analysis and every policy has its line.
_BEHIND: dict[str, tuple[str, ...]] = {
    "blame": ("critical",),
    "bounds": ("graham",),
    "bubbles": (),
    "critical_path": ("critical",),
    "diff": ("bootstrap",),
    "efficiency": ("graham",),
    "explain": ("coz",),
    "handoff": ("mpk", "events"),  # of events between tasks
    "imbalance": (),
    "iterations": (),
    "overlap": (),
    "predicted": (),
    "roofline": ("roofline",),
    "steady_state": ("mad",),
    "utilisation": (),
    "waits": ("mpk", "events"),
    "what_if": ("coz",),
    "align": ("lamport",),
    "causality": ("lamport",),
    "events": ("events",),
    "round_robin": ("events",),
    "zigzag": (),
    "locality": (),
    "list_scheduling": ("list", "graham"),
    "central": ("mpk", "events"),  # tasks handed out at run time
    "per_worker": ("mpk", "events"),
}


def cite(*used: str) -> str:
    """BibTeX entries: mpklab's, and those of the papers behind the analyses and policies named (`cite("what_if")`), which
    some have none; MpkError for names of neither."""
    wanted: list[str] = []
    for name in used:
        if name not in _BEHIND:
            raise MpkError(f"cite: nothing is cited for {name!r}; {suggest(name, _BEHIND)}")
        wanted += [key for key in _BEHIND[name] if key not in wanted]
    return "\n\n".join([_MPKLAB, *(_PAPERS[key] for key in wanted)]) + "\n"
