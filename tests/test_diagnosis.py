"""What a failed compile says: the first error, the source lines with a caret, the command, the folder, a hint."""

import pytest

import mpklab as mk
from mpklab.diagnosis import OURS, THEIRS, excerpt, hint, refused

SOURCE = "int one();\nint two();\n  int broken = nonsense;\nint three();\nint four();\nint five();\n"


@pytest.mark.parametrize(
    "line",
    [
        "{file}:3:16: error: 'nonsense' was not declared in this scope",  # g++, clang++
        '{file}(3): error: identifier "nonsense" is undefined',  # nvcc, NVRTC
        '{file}(3): catastrophic error: identifier "nonsense" is undefined',
    ],
)
@pytest.mark.parametrize("relative", [True, False])
def test_the_source_is_shown_with_a_caret(tmp_path, line, relative):
    (tmp_path / "kernel.cu").write_text(SOURCE)
    file = "kernel.cu" if relative else str(tmp_path / "kernel.cu")
    log = f"g++ -std=c++20 -o x\nnote: here\n{line.format(file=file)}\n"
    shown = excerpt(log, tmp_path).splitlines()
    assert "nonsense" in shown[0]
    assert shown[3] == ">     3 |   int broken = nonsense;"
    column = 16 if ":3:16" in line else 3  # nvcc names no column: the line's first word
    assert shown[4].index("^") - shown[3].index("|") - 2 == column - 1
    assert [row[8:] for row in (shown[1], shown[-1])] == ["| int one();", "| int four();"]
    assert hint(log, tmp_path) == OURS


def test_an_error_carries_everything(tmp_path):
    (tmp_path / "kernel.cpp").write_text(SOURCE)
    error = refused("g++ kernel.cpp\nkernel.cpp:3:16: error: no\n", "g++ kernel.cpp", tmp_path)
    assert isinstance(error, mk.BuildError) and (error.command, error.folder) == ("g++ kernel.cpp", str(tmp_path))
    for part in ("> ", "^", "command: g++ kernel.cpp", f"kept in: {tmp_path}", f"hint: {OURS}"):
        assert part in str(error)
    assert len(str(refused("g++\n", "g++ " + "x" * 9999, tmp_path))) < 1500


@pytest.mark.parametrize(
    ("said", "help"),
    [
        ("kernel.cpp:1:10: fatal error: cuda.h: No such file or directory", "mpklab doctor"),
        ("g++: error: unrecognized command-line option '-std=c++20'", "MPKLAB_CXX"),
        ("nvrtc: error: invalid value for --gpu-architecture (-arch)", "newer CUDA toolkit"),
        ("g++: fatal error: Killed signal terminated program cc1plus", "memory"),
        ('{folder}/elsewhere/mine.cuh(2): error: expected a ";"', THEIRS),
    ],
)
def test_hints(tmp_path, said, help):
    log = "g++ -std=c++20 kernel.cpp\n" + said.format(folder=tmp_path.parent)
    assert help in hint(log, tmp_path)


def test_a_log_that_names_no_place_is_shown_as_it_is(tmp_path):
    assert excerpt("collect2: ld returned 1 exit status\n", tmp_path) == "collect2: ld returned 1 exit status"
    assert "gone.hpp" in excerpt("g++\ngone.hpp:3:1: error: no\n", tmp_path)


def test_a_notebook_shows_the_caller_s_line_and_no_frame_of_ours():
    try:
        mk.Machine.named(
            "h2oo",
        )
    except mk.EnvError as error:
        shown = "\n".join(error._render_traceback_())
    assert f"{__file__}, line" in shown and "mk.Machine.named(" in shown and "^^^" in shown
    assert "machine.py" not in shown
    assert shown.splitlines()[-1].startswith("EnvError: unknown machine 'h2oo': ")


def test_a_cause_is_named():
    try:
        try:
            raise OSError("the disk")
        except OSError as error:
            raise mk.ProfileError("cannot save") from error
    except mk.ProfileError as error:
        assert error._render_traceback_()[-2:] == ["ProfileError: cannot save", "because of OSError: the disk"]
