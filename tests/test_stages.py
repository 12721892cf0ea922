"""Holds the stages to their order: imports go one way, `import mpklab` stays light, names stay apart."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "mpklab"

# Left imports nothing from its right. A folder counts as one stage.
STAGES = """
    errors words exercises presented env console confidence progress diagnosis stamp dims abi device machine ops graph passes models tracer
    tasks schedule reach verifier reference codegen builder profile recipe simulator run frames calibration timing analysis
    imports exports citing study plots widgets magics pipeline layers cards present
""".split()
FREE = {
    "chat",
    "cli",
    "doctor",
    "demo",
    "bench",
    "profile_cli",
    "view_cli",
    "rerun_cli",
    "notebooks_cli",
    "__main__",
    "__init__",
}  # programs and the front door: may import anything
BY_NAME = "mpklab.present"  # the one module that values may look up by name, when asked to show themselves

HEAVY = set("torch pandas sympy plotly graphviz matplotlib ipywidgets anywidget IPython transformers".split())
OPTIONAL = set(
    """
    anywidget cuda gguf graphviz IPython ipywidgets plotly psutil rich safetensors tokenizers traitlets transformers
    """.split()
)
NEEDS_BASE_CLASS = {"widgets"}  # a widget subclasses its library's class, so its module imports the library on top


def modules() -> dict[str, Path]:
    """Every module of the package, by dotted name."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def stage_of(module: str) -> str:
    """The stage a dotted module name belongs to: `mpklab.models.gguf` is of `models`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(name: str, file: Path) -> Iterator[tuple[str, int, bool]]:
    """What a module imports anywhere in it: dotted target, line, and whether at module level."""
    tree = ast.parse(file.read_text())
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    yield from _imports_in(tree.body, package, True)


def _imports_in(nodes: list[ast.stmt] | list[ast.AST], package: str, top: bool) -> Iterator[tuple[str, int, bool]]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            yield from ((f"{base}.{alias.name}", node.lineno, top) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [name.value for name in node.args[:1] if isinstance(name, ast.Constant)]
            yield from ((importlib.util.resolve_name(name, package), node.lineno, False) for name in names)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue  # for the type checker only: never run
        inner = top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports_in(list(ast.iter_child_nodes(node)), package, inner)


def test_every_module_has_its_place() -> None:
    strangers = {stage_of(name) for name in modules()} - set(STAGES) - FREE
    assert not strangers, f"not in the order of stages (see STAGES in {Path(__file__).name}): {sorted(strangers)}"


def test_imports_go_one_way() -> None:
    known = modules()
    faults = []
    for name, file in known.items():
        stage = stage_of(name)
        if stage in FREE or stage not in STAGES:
            continue
        for target, line, _ in imports(name, file):
            if target.split(".")[0] != "mpklab" or target in (BY_NAME, "mpklab.__version__"):
                continue
            reached = stage_of(target)
            where = f"{file.relative_to(PACKAGE.parent)}:{line}"
            if reached not in STAGES:
                faults.append(f"{where} imports {target} through the front door; import from its stage instead")
            elif STAGES.index(reached) > STAGES.index(stage):
                faults.append(f"{where} imports {target}: {reached} is right of {stage}")
    assert not faults, "\n".join(faults)


def test_no_import_cycles() -> None:
    """Also none within a stage, and none patched by an import inside a function."""
    known = modules()
    edges: dict[str, set[str]] = {}
    for name, file in known.items():
        reached = set()
        for target, _, _ in imports(name, file):
            while target and target not in known:
                target = target.rpartition(".")[0]
            if target not in ("", "mpklab", BY_NAME, name):
                reached.add(target)
        edges[name] = reached
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "import cycle: " + " → ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(edges[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in known:
        if stage_of(name) not in FREE:
            visit(name, ())


def test_optional_libraries_are_imported_where_used() -> None:
    faults = []
    for name, file in modules().items():
        if stage_of(name) in NEEDS_BASE_CLASS:
            continue
        for target, line, top in imports(name, file):
            if top and target.split(".")[0] in OPTIONAL:
                faults.append(f"{file.relative_to(PACKAGE.parent)}:{line} imports {target} at module level")
    assert not faults, "\n".join(faults)


def fresh(code: str) -> str:
    """The output of a program in a new interpreter."""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def test_import_is_light() -> None:
    """What makes `import mpklab` fast is what it does not load, and that does not depend on the machine."""
    loaded = json.loads(fresh("import sys, mpklab, json; print(json.dumps(sorted(sys.modules)))"))
    heavy = sorted(HEAVY & set(loaded))
    assert not heavy, f"`import mpklab` loads {heavy}"


def test_import_is_silent_and_writes_nothing(tmp_path: Path) -> None:
    code = f"import os; os.environ['HOME'] = os.environ['MPKLAB_CACHE'] = {str(tmp_path)!r}; import mpklab"
    assert fresh(code) == ""
    assert list(tmp_path.iterdir()) == []


def test_public_names_answer_twice() -> None:
    """Lazy names must not turn into the modules they come from once those are imported."""
    report = json.loads(
        fresh(
            "import json, types, mpklab as mk\n"
            "first = {name: getattr(mk, name) for name in mk.__all__}\n"
            "changed = [name for name, value in first.items() if getattr(mk, name) is not value]\n"
            "hidden = [name for name in mk.__all__ if name not in dir(mk)]\n"
            "modules = [name for name, value in first.items() if isinstance(value, types.ModuleType)]\n"
            "print(json.dumps([changed, hidden, modules, list(first)]))"
        )
    )
    changed, hidden, public_modules, names = report
    assert not changed, f"a second look gives something else: {changed}"
    assert not hidden, f"not in dir(mpklab): {hidden}"
    clashes = {stage_of(name) for name in modules()} & (set(names) - set(public_modules))
    assert not clashes, f"modules that share a name with a public function or class: {sorted(clashes)}"


@pytest.mark.parametrize("stage", sorted({stage_of(name) for name in modules()} - FREE))
def test_stage_imports_alone(stage: str) -> None:
    """Each stage can be the first thing imported: none relies on another having been loaded before."""
    fresh(f"import mpklab.{stage}")
