"""mpklab: build, run and look inside GPU megakernels. `import mpklab as mk`.

Names are loaded when first used: importing this package loads no other library and touches no device.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "abi": "", "errors": "", "models": "", "passes": "", "tasks": "", "plots": "", "reference": "", "frames": "", "analysis": "",
    "Dim": "dims",
    "Graph": "graph", "GraphBuilder": "graph", "Operator": "graph", "Tensor": "graph",
    "Machine": "machine",
    "EdgeSet": "tasks", "Plan": "tasks", "TaskGraph": "tasks", "lower": "tasks", "choose_plan": "tasks",
    "Handout": "schedule", "POLICIES": "schedule", "Schedule": "schedule", "assign": "schedule",
    "verify": "verifier",
    "Costs": "simulator", "Program": "simulator", "Simulation": "simulator",
    "predict": "simulator", "simulate": "simulator", "fit_costs": "calibration",
    "emit": "codegen", "pack": "codegen",
    "Profile": "profile", "Window": "profile", "recording": "profile", "recordings": "profile",
    "cite": "citing", "check": "exercises", "glossary": "words",
    "Studio": "widgets.studio", "graph_view": "widgets.operator_graph", "task_dag": "widgets.task_dag",
    "timeline": "widgets.timeline",
    "Generation": "run", "Kernel": "run", "profiling": "run.profiling", "Result": "run", "Session": "run", "build": "run",
    "ratio": "timing", "time": "timing", "Study": "study", "rerun": "study",
    "import_mirage": "imports", "PersistentKernel": "layers", "get_configurations_from_gpu": "layers",
    "bfloat16": "layers", "float16": "layers", "float32": "layers", "int32": "layers", "int64": "layers",
    "compile": "pipeline",
    "MpkError": "errors", "BuildError": "errors", "DeadlockError": "errors", "EnvError": "errors", "GraphError": "errors",
    "LowerError": "errors", "ModelError": "errors", "ProfileError": "errors", "RunError": "errors", "ScheduleError": "errors",
}  # fmt: skip

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        hint = import_module("mpklab.errors").suggest(name, _HOME)
        raise AttributeError(f"module 'mpklab' has no attribute {name!r}: {hint}")
    home = _HOME[name]
    module = import_module(f"mpklab.{home or name}")
    value = getattr(module, name) if home else module
    globals()[name] = value
    return value


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext mpklab`: the magics, of which `%%mpk_profile` profiles the kernels that a cell runs."""
    import_module("mpklab.magics").register(shell)


def __dir__() -> list[str]:
    return sorted(__all__)
