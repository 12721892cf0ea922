"""Checks what the set-up script decides, without installing anything."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "setup_env.py"


@pytest.fixture
def setup_env() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_env", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_torch_choice(setup_env: ModuleType) -> None:
    assert setup_env.torch_choice("", driver=True) == "cuda"
    assert setup_env.torch_choice("", driver=False) == "cpu"
    assert setup_env.torch_choice("skip", driver=True) == "skip"
    with pytest.raises(setup_env.SetupError, match="TORCH=gpu is none of cpu, cuda, skip"):
        setup_env.torch_choice("gpu", driver=True)


def test_only_a_finished_setup_is_trusted(setup_env: ModuleType, tmp_path: Path) -> None:
    wanted = setup_env.stamp("cpu")
    assert wanted != setup_env.stamp("cuda")
    assert not setup_env.is_current(tmp_path, wanted)
    (tmp_path / "mpklab-stamp").write_text(wanted)
    assert not setup_env.is_current(tmp_path, wanted), "a stamp without an interpreter"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert setup_env.is_current(tmp_path, wanted)
    assert not setup_env.is_current(tmp_path, setup_env.stamp("skip"))


def test_a_failed_setup_leaves_no_stamp(setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second step fails; the next try must begin from nothing."""
    venv = tmp_path / ".venv"
    monkeypatch.setattr(setup_env, "VENV", venv)

    def fail(*_: object) -> None:
        raise setup_env.SetupError("no network")

    monkeypatch.setattr(setup_env, "install_torch", fail)
    monkeypatch.setattr(setup_env, "command", lambda *_: (venv.mkdir(), (venv / "pyvenv.cfg").touch()))
    assert setup_env.main() == 1
    assert venv.exists()
    assert not (venv / "mpklab-stamp").exists()
    monkeypatch.setattr(setup_env, "install_torch", lambda *_: None)
    monkeypatch.setattr(setup_env, "pip", lambda *_: None)
    assert setup_env.main() == 0
    assert (venv / "mpklab-stamp").exists()


def test_a_foreign_folder_is_left_alone(setup_env: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(setup_env.SetupError, match="no virtual environment"):
        setup_env.make(tmp_path, "cpu")
    assert (tmp_path / "notes.txt").exists()


def test_the_rest_of_an_environment_is_removed(setup_env: ModuleType, tmp_path: Path) -> None:
    """An interrupted removal may take pyvenv.cfg first."""
    (tmp_path / "lib" / "python3.11").mkdir(parents=True)
    assert setup_env.is_environment(tmp_path)


def test_without_torch_nothing_pulls_it_in(setup_env: ModuleType) -> None:
    names = [need.split(">=")[0] for need in setup_env.requirements(without_torch=True)]
    assert "numpy" in names
    assert not {"torch", "accelerate"} & set(names)
    assert {"torch", "accelerate"} < {need.split(">=")[0] for need in setup_env.requirements()}


@pytest.mark.parametrize(
    ("asked", "terminal", "questions", "installs"),
    [("n", True, 1, False), ("y", True, 1, True), ("", False, 0, True)],
)
def test_the_big_download_is_announced(
    setup_env: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: str,
    terminal: bool,
    questions: int,
    installs: bool,
) -> None:
    """Where only the CUDA build can be had: say so first, ask only at a terminal."""
    prompts, installed = [], []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(
        setup_env, "resolve", lambda python, source: ("", "") if "--index-url" in source else ("cuda", "url")
    )
    monkeypatch.setattr(setup_env, "pip", lambda *arguments: installed.append(arguments))
    monkeypatch.setattr("sys.stdin.isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("builtins.input", lambda prompt: prompts.append(prompt) or asked)
    if installs:
        setup_env.install_torch("python", "cpu")
    else:
        with pytest.raises(setup_env.SetupError, match="stopped as asked"):
            setup_env.install_torch("python", "cpu")
    assert "2.7 GB to download" in capsys.readouterr().out
    assert len(prompts) == questions
    assert bool(installed) == installs
