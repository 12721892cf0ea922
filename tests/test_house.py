"""Keeps the checkout in order: versions agree, pins fit, notebooks are bare, no path of somebody's machine."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
TEXT = set(".py .md .toml .txt .yaml .cff .h .hpp .cuh .cu .cpp .js .css .ipynb".split())


def tracked() -> list[Path]:
    """The files that git keeps; every file where there is no git (an unpacked sdist)."""
    answer = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if answer.returncode == 0 and answer.stdout:
        files = [ROOT / line for line in answer.stdout.splitlines()]
    else:
        files = [file for top in ("mpklab", "csrc", "tests", "tools") for file in (ROOT / top).rglob("*")]
    return [file for file in files if file.is_file()]


def texts() -> list[tuple[Path, str]]:
    """Tracked files that are read by people, with their contents."""
    named = {"Makefile", "NOTICE", "run", ".gitignore"}
    return [(file, file.read_text()) for file in tracked() if file.suffix in TEXT or file.name in named]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_no_paths_of_somebody_s_machine() -> None:
    pattern = re.compile(r"(?<![\w.~$}])/(?:home|root|Users|work|tmp)/[\w.-]+")
    faults = [f"{file.relative_to(ROOT)}: {hit}" for file, text in texts() for hit in pattern.findall(text)]
    assert not faults, "\n".join(faults)


def test_only_known_registries() -> None:
    """PyPI, which needs no naming, and PyTorch's own index of CPU builds."""
    pattern = re.compile(r"index-url[=\s\"',]+(https?://[^\s\"',]+)|(https?://[^\s\"']*(?:/simple|/whl)[^\s\"']*)")
    hosts = {"".join(hit) for file, text in texts() if file != Path(__file__) for hit in pattern.findall(text)}
    assert hosts <= {"https://download.pytorch.org/whl/cpu"}, hosts


def test_versions_agree() -> None:
    import mpklab

    version = project()["version"]
    assert mpklab.__version__ == version
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.M)


def pins() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    return {line.split("==")[0].lower().replace("_", "-"): Version(line.split("==")[1]) for line in lines}


def test_pins_cover_and_fit_the_requirements() -> None:
    pinned, found = project(), pins()
    extras = [need for name, needs in pinned["optional-dependencies"].items() if name != "cuda" for need in needs]
    for text in [*pinned["dependencies"], *extras]:
        need = Requirement(text)
        assert [clause.operator for clause in need.specifier] == [">="], f"{text}: one honest lower bound, nothing else"
        if need.name == "torch":
            assert "torch" not in found, "torch is chosen by the set-up, not pinned"
        else:
            assert need.name in found, f"{need.name} is not in constraints.txt"
            assert found[need.name] in need.specifier, f"{text} excludes its own pin {found[need.name]}"


def notebooks() -> list[Path]:
    return [file for file in tracked() if file.suffix == ".ipynb"]


@pytest.mark.parametrize("file", notebooks(), ids=lambda file: file.name)
def test_notebooks_are_bare(file: Path) -> None:
    for number, cell in enumerate(json.loads(file.read_text())["cells"]):
        assert not cell.get("outputs"), f"cell {number} of {file.name} has outputs: make format"
        assert cell.get("execution_count") is None, f"cell {number} of {file.name} has a count: make format"


def python_files() -> list[Path]:
    return [file for file in tracked() if file.suffix == ".py"]


@pytest.mark.parametrize("file", python_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_files_open_with_what_they_are_for(file: Path) -> None:
    text = file.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "the first line should say what the file is for"


def test_environment_is_read_in_one_place() -> None:
    pattern = re.compile(r"\bos\.(environ|getenv|putenv)|\bfrom os import [^\n]*(environ|getenv)")
    files = [file for file in tracked() if file.is_relative_to(ROOT / "mpklab") and file.suffix == ".py"]
    readers = [file.name for file in files if pattern.search(file.read_text())]
    assert readers == ["env.py"], f"only mpklab/env.py reads environment variables: {readers}"


def test_readme_starts_with_what_the_system_brings() -> None:
    line = "apt install git make g++ python3-venv"
    assert line in (ROOT / "README.md").read_text().splitlines()[0]
    assert line in (ROOT / "tools" / "setup_env.py").read_text()
    assert line in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_documents_name_what_exists(name: str) -> None:
    text = (ROOT / name).read_text().replace("gelu", "add").replace("<op>", "add")
    text = re.sub(r"`([^`]*)\.\{(\w+),(\w+)\}`", r"`\1.\2` `\1.\3`", text)
    paths = re.findall(r"`((?:mpklab|csrc|tests|tools)/[\w./-]*)`", text)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_make_explains_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)[0].split()
    explained = re.findall(r"^([a-z-]+):.*## ", makefile, re.M)
    assert targets == explained
