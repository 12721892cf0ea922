"""The cache of compiled kernels: found again, shared by processes, never half made, kept small; and compilers that fail."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mpklab import builder, env
from mpklab.codegen import Source, emit
from mpklab.diagnosis import first_error
from mpklab.errors import BuildError, EnvError
from mpklab.graph import Graph, GraphBuilder
from mpklab.machine import Machine
from mpklab.run import build
from mpklab.run.host import load
from mpklab.schedule import POLICIES, Schedule, assign, from_queues
from mpklab.tasks import load as load_tasks
from mpklab.tasks import lower

ROOT = Path(__file__).resolve().parent.parent


def small(width: int = 64) -> Graph:
    g = GraphBuilder("small")
    x = g.input("x", (1, width))
    g.add("twice", a=x, b=x, role="output")
    return g.build()


def schedule_of(width: int = 64, workers: int = 2) -> Schedule:
    return assign(lower(small(width), Machine.cpu(workers)))


def source(number: int = 0) -> Source:
    """Something that compiles at once, where no kernel is needed."""
    return Source(f'extern "C" int number() {{ return {number}; }}\n', "cpu")


def entries(cache: Path) -> list[str]:
    """Names in the cache: those that are trusted, then those that are not."""
    return sorted(path.name for path in (cache / "kernels").iterdir())


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every compiler start, asking for its version apart."""
    seen: list[list[str]] = []
    real = subprocess.run

    def run(line: list[str], *rest: Any, **more: Any) -> Any:
        if "-shared" in line:
            seen.append(line)
        return real(line, *rest, **more)

    monkeypatch.setattr(subprocess, "run", run)
    return seen


# --- found again ---


def test_the_second_build_compiles_nothing(empty_cache: Path, starts: list[list[str]]) -> None:
    first, second = build(schedule_of()).library(), build(schedule_of()).library()
    assert (first.cached, second.cached, len(starts)) == (False, True, 1)
    assert second.file == first.file
    assert starts[0][0].endswith(("g++", "clang++")) and "".join(starts[0]) in second.log.replace(" ", "")


def test_what_a_stage_left_can_be_read(empty_cache: Path) -> None:
    schedule = schedule_of()
    folder = build(schedule).library().folder
    names = {"build.log", "graph.json", "kernel.cpp", "kernel.so", "meta.json", "schedule.npz", "tasks.npz"}
    assert {path.name for path in folder.iterdir()} == names
    tasks = load_tasks(folder / "tasks.npz")
    again = Schedule.load(folder / "schedule.npz", tasks)
    assert Graph.from_json(json.loads((folder / "graph.json").read_text())).hash == schedule.tasks.graph.hash
    assert again.hash == schedule.hash
    assert (folder.stat().st_mode & 0o777, folder.parent.stat().st_mode & 0o777) == (0o700, 0o700)
    assert build(again).library().cached


def test_schedules_are_data(empty_cache: Path, starts: list[list[str]]) -> None:
    """Other queues, policies and worker counts for the same variants start no compiler; other variants do."""
    x = torch.arange(64.0)[None]
    tasks = lower(small(), Machine.cpu(2), tiles={"add": 5})
    for policy in POLICIES:
        for workers in (1, 2, 5):
            kernel = build(assign(lower(small(), Machine.cpu(workers), tasks.plan), policy=policy))
            assert torch.equal(kernel.run(x=x)["twice"], 2 * x)
    backwards = from_queues(tasks, [list(range(len(tasks)))[::-1], []])
    assert torch.equal(build(backwards).run(x=x)["twice"], 2 * x)
    table = backwards.to_pandas()
    table["worker"] = table["task"] % 3
    assert torch.equal(build(Schedule.from_pandas(tasks, table)).run(x=x)["twice"], 2 * x)
    assert len(starts) == 1
    build(schedule_of(width=65))
    assert len(starts) == 2


def test_the_key_holds_what_counts(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source, the compiler and its options, the flags, the processor, the headers: each makes another entry."""
    folders = {builder.compile_source(source()).folder}

    def another(number: int = 0) -> bool:
        folder = builder.compile_source(source(number)).folder
        new = folder not in folders
        folders.add(folder)
        return new

    assert not another()
    assert another(1)
    monkeypatch.setenv("MPKLAB_CXX", "g++ -g0")
    assert another()
    monkeypatch.setattr(builder, "_cpu_features", lambda: "another processor")
    assert another()
    monkeypatch.setattr(builder, "_headers_hash", lambda: "other headers")
    assert another()
    monkeypatch.setattr(builder, "CXX_FLAGS", (*builder.CXX_FLAGS, "-O1"))
    assert another()


def test_the_processor_is_part_of_the_key() -> None:
    assert len(builder._cpu_features()) >= 4
    assert builder._headers_hash() == builder._headers_hash() != ""


# --- several processes ---


def program(text: Path, body: str) -> list[str]:
    """A process of its own that builds the source in a file, without loading torch."""
    code = f"""
        import ctypes, sys, time
        from pathlib import Path
        from mpklab import builder
        from mpklab.codegen import Source
        source = Source(Path({str(text)!r}).read_text(), "cpu")
    """
    return [sys.executable, "-c", textwrap.dedent(code) + textwrap.dedent(body)]


def test_eight_processes_build_one_entry(empty_cache: Path, tmp_path: Path) -> None:
    """Each compiles for itself where it must; one entry stays, all use it, and no draft is left."""
    text, slow = tmp_path / "kernel.cpp", tmp_path / "slow-compiler"
    text.write_text(source(7).text)
    slow.write_text('#!/bin/sh\ncase "$*" in *--version*) ;; *) sleep 1;; esac\nexec g++ "$@"\n')  # so that they meet
    slow.chmod(0o755)
    body = f"""
        library = builder.compile_source(source, compiler={str(slow)!r})
        assert ctypes.CDLL(str(library.file)).number() == 7
        print(library.folder.name, library.cached)
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(program(text, body), env=environment, stdout=-1, stderr=-1, text=True) for _ in range(8)
    ]
    answers = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, [error for _, error in answers]
    found = [answer.split() for answer, _ in answers]
    assert len({name for name, _ in found}) == 1 and "False" in {cached for _, cached in found}
    assert entries(empty_cache) == [found[0][0]]


def test_a_killed_build_leaves_nothing_trusted(empty_cache: Path, tmp_path: Path) -> None:
    """Killed while the compiler runs, and killed between compiling and publishing."""
    slow = tmp_path / "slow-compiler"
    started = tmp_path / "started"
    slow.write_text(
        f'#!/bin/sh\ncase "$*" in *--version*) exec g++ --version;; esac\ntouch {started}\nexec sleep 600\n'
    )
    slow.chmod(0o755)
    text = tmp_path / "kernel.cpp"
    text.write_text(source().text)
    for body, mark in (
        (f"builder.compile_source(source, compiler={str(slow)!r})", started),
        (
            f"""
            def linger(*_):
                Path({str(tmp_path / "compiled")!r}).touch()
                time.sleep(600)
            builder._renamed = linger
            builder.compile_source(source)
            """,
            tmp_path / "compiled",
        ),
    ):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(program(text, body), env=environment, start_new_session=True) as process:
            until = time.monotonic() + 300
            while not mark.exists() and time.monotonic() < until and process.poll() is None:
                time.sleep(0.01)
            assert mark.exists()
            os.killpg(process.pid, signal.SIGKILL)
    left = entries(empty_cache)
    assert len(left) == 2 and all(name.startswith(".build-") for name in left)
    library = builder.compile_source(source())
    assert not library.cached and library.file.exists()
    hour_ago = time.time() - builder.ABANDONED_S - 1
    for name in left:
        os.utime(empty_cache / "kernels" / name, (hour_ago, hour_ago))
    builder.compile_source(source(1))
    assert len(entries(empty_cache)) == 2 and not any(name.startswith(".") for name in entries(empty_cache))


def test_a_damaged_entry_is_made_anew(empty_cache: Path, starts: list[list[str]]) -> None:
    library = builder.compile_source(source())
    library.file.unlink()
    again = builder.compile_source(source())
    assert again.file == library.file and again.file.exists() and not again.cached and len(starts) == 2
    assert entries(empty_cache) == [again.folder.name]


def test_a_file_that_is_no_library_is_named(tmp_path: Path) -> None:
    file = tmp_path / "kernel.so"
    file.write_text("not a library")
    with pytest.raises(BuildError, match=r"is not a kernel this version can load .*: run mpklab cache clear"):
        load(file)


# --- kept small ---


def test_the_cache_is_trimmed_to_its_limit(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was used longest ago goes first; what was just built stays even when it is too large alone."""
    made = []
    for i in range(3):
        made.append(builder.compile_source(source(i)).folder)
        os.utime(made[-1], (1000 + i, 1000 + i))
    builder.compile_source(source(0))  # used again: now 1 is the oldest
    size = sum(f.stat().st_size for f in made[0].iterdir())
    monkeypatch.setenv("MPKLAB_CACHE_LIMIT_GB", str(3.5 * size / 1e9))
    newest = builder.compile_source(source(3)).folder
    assert set(entries(empty_cache)) == {made[0].name, made[2].name, newest.name}
    monkeypatch.setenv("MPKLAB_CACHE_LIMIT_GB", "0.000001")
    last = builder.compile_source(source(4)).folder
    assert entries(empty_cache) == [last.name]


def test_a_removal_cut_short_is_not_trusted(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = builder.compile_source(source()).folder
    monkeypatch.setattr(builder.shutil, "rmtree", lambda *_, **__: None)  # the process dies before it
    builder._remove(folder)
    assert not folder.exists() and [name.startswith(".removed-") for name in entries(empty_cache)] == [True]


# --- what fails ---


def test_no_compiler_is_one_sentence(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPKLAB_CXX", raising=False)
    monkeypatch.setenv("PATH", str(empty_cache / "nothing"))
    with pytest.raises(EnvError, match=r"needs a C\+\+ compiler, and neither .* is on PATH: apt install g\+\+"):
        build(schedule_of())
    monkeypatch.setenv("MPKLAB_CXX", "no-such-compiler -O2")
    with pytest.raises(EnvError, match="MPKLAB_CXX names the compiler 'no-such-compiler', which cannot be found"):
        build(schedule_of())
    with pytest.raises(EnvError, match="the compiler 'missing' cannot be run"):
        build(schedule_of(), compiler="missing")
    assert not (empty_cache / "kernels").exists() or entries(empty_cache) == []


def test_a_compiler_that_refuses_shows_where(empty_cache: Path) -> None:
    """The message carries the first error with its lines; command, whole log and folder are kept."""
    text = emit(schedule_of()).text.replace("using Kernel", "int broken = nonsense;\nusing Kernel")
    with pytest.raises(BuildError) as refused:
        builder.compile_source(Source(text, "cpu"))
    error, folder = refused.value, Path(refused.value.folder)
    assert "nonsense" in str(error) and "int broken = nonsense;" in str(error) and str(folder) in str(error)
    assert error.command.split()[0] == env.cxx_command()[0] and "kernel.cpp" in error.command
    assert error.log in (folder / "build.log").read_text() and error.command in error.log
    assert (folder / "kernel.cpp").read_text() == text
    assert [name for name in entries(empty_cache) if not name.startswith(".")] == []
    assert build(schedule_of()).run(x=torch.ones(1, 64))["twice"].eq(2).all()


def test_the_first_error_is_found() -> None:
    log = "\n".join(
        ["command", "note: a", "note: b", "x.hpp:3:1: error: first", "   3 | bad", "     | ^", "error: second"]
    )
    assert first_error(log).splitlines()[:4] == ["command", "note: a", "note: b", "x.hpp:3:1: error: first"]
    assert first_error("collect2: ld returned 1 exit status\n") == "collect2: ld returned 1 exit status"


@pytest.fixture(params=[errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def stubborn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A disk that takes folders and no contents."""

    def fail(self: Path, *_: object, **__: object) -> int:
        raise OSError(request.param, os.strerror(request.param), str(self))

    monkeypatch.setattr(Path, "write_text", fail)
    yield os.strerror(request.param)


def test_a_disk_that_takes_nothing(empty_cache: Path, stubborn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        EnvError, match=rf"cannot write to the cache folder .* \({stubborn}\); MPKLAB_CACHE names another"
    ):
        build(schedule_of())
    assert entries(empty_cache) == []
    monkeypatch.undo()


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MPKLAB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(EnvError, match=r"cannot be made \(Not a directory\); MPKLAB_CACHE names another"):
        build(schedule_of())


def test_a_cache_that_may_only_be_read_still_serves(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(schedule_of())

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    for name in ("mkdir", "utime", "rename"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(Path, "write_text", refuse)
    kernel = build(schedule_of())
    assert kernel.library().cached and kernel.run(x=torch.ones(1, 64))["twice"].eq(2).all()


def test_somebody_else_s_entry_is_not_loaded(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = builder.compile_source(source()).folder
    real = Path.stat

    def stat(self: Path, **how: Any) -> Any:
        found = real(self, **how)
        return os.stat_result((*found[:4], 4321, *found[5:])) if self == folder else found

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(EnvError, match="belongs to another user and is not loaded"):
        builder.compile_source(source())
