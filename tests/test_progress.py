"""Stages while they work: a table in a notebook, rich on a terminal, plain lines elsewhere, nothing when asked."""

import io
import re
import sys
import time
import types
from itertools import pairwise

import pytest

import mpklab as mk
from mpklab import progress
from mpklab.progress import Progress, Stage, as_html, as_text


@pytest.fixture(autouse=True)
def loud(monkeypatch):
    monkeypatch.setenv("MPKLAB_PROGRESS", "1")


def three_stages(**options) -> Progress:
    with Progress(**options) as shown:
        with shown.stage("graph") as now:
            now.say("a <b>graph</b>\nand more")
        with pytest.raises(ValueError), shown.stage("build") as now:
            now.say("g++")
            raise ValueError("no")
        with shown.stage("run"):
            pass
    return shown


class FakeHandle:
    def __init__(self, first):
        self.drawn = [(time.perf_counter(), first)]

    def update(self, shown, raw):
        assert raw
        self.drawn.append((time.perf_counter(), shown))


@pytest.fixture
def notebook(monkeypatch):
    """A shell with a kernel, and a display that keeps what it is shown."""
    handles = []

    def display(shown, raw, display_id):
        assert raw and display_id is True
        handles.append(FakeHandle(shown))
        return handles[-1]

    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    return handles


def test_plain_lines_where_nothing_moves(capsys):
    three_stages()
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 3
    assert lines[0].split()[0] == "graph" and lines[0].endswith("s  a <b>graph</b>")
    assert lines[1].endswith("failed: ValueError: g++")


def test_quiet_means_quiet(capsys, monkeypatch):
    three_stages(quiet=True)
    monkeypatch.setenv("MPKLAB_PROGRESS", "0")
    three_stages()
    assert capsys.readouterr() == ("", "")


def test_a_short_job_says_nothing(capsys):
    three_stages(after_s=60.0)
    assert capsys.readouterr() == ("", "")


def test_a_report_hears_of_what_was_finished(capsys):
    told = []
    three_stages(report=lambda *stage: told.append(stage))
    assert [(name, text) for name, _, text in told] == [("graph", "a <b>graph</b>"), ("run", "")]
    assert capsys.readouterr() == ("", "")


def test_a_notebook_has_one_table_drawn_no_oftener_than_it_may(notebook):
    with Progress() as shown, shown.stage("run") as now:
        until = time.perf_counter() + 120
        while (not notebook or len(notebook[0].drawn) < 4) and time.perf_counter() < until:
            now.say(time.perf_counter())  # thousands of changes
    assert len(notebook) == 1, "one display id"
    drawn = notebook[0].drawn
    assert len(drawn) >= 5
    moments = [moment for moment, _ in drawn[:-1]]  # the last is drawn when the job ends
    assert all(b - a >= 0.9 / progress.REDRAWS_PER_S for a, b in pairwise(moments))
    assert "✓" in drawn[-1][1]["text/html"] and "…" in drawn[0][1]["text/html"]


def test_the_table_holds_no_markup_of_its_texts():
    stage = Stage("<i>x</i>", text="<script>alert(1)</script>", seconds=1.25, state="done")
    assert "<script" not in as_html([stage]) and "<i>" not in as_html([stage])
    assert "1.25 s" in as_html([stage]) and "1.250 s  ✓ <script>" in as_text([stage])


def test_a_terminal_gets_rich(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    three_stages()
    assert "\x1b[" in shown.getvalue() and "graph" in shown.getvalue() and "✗" in shown.getvalue()
    shown.seek(0), shown.truncate()
    with Progress() as job, job.stage("schedule") as now:
        now.say("x" * 200)
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue()).splitlines()[-1]
    assert re.search(r" schedule +0\.\d\d s +✓ +x{20,}…", last) and len(last.rstrip()) <= 60
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    assert isinstance(progress._best_sink(), progress._Told)


def test_compile_says_what_came_from_the_cache(capsys):
    builder = mk.GraphBuilder("said")
    x = builder.input("x", (1, 64))
    builder.add("y", a=x, b=x, role="output")
    for _ in range(2):
        mk.compile(builder.build(), machine=mk.Machine.cpu(1))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["tasks", "schedule", "verify", "build"] * 2
    assert "from the cache" in lines[-1]


def test_a_build_shows_itself_alone_and_nothing_inside_another_job(capsys, monkeypatch):
    monkeypatch.setattr("mpklab.run.kernel.SHORT_RUN_S", 0.0)
    builder = mk.GraphBuilder("alone")
    x = builder.input("x", (1, 64))
    builder.add("y", a=x, b=x, role="output")
    schedule = mk.assign(mk.lower(builder.build(), mk.Machine.cpu(1)))
    mk.build(schedule)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.split()[0] == "build" and "workers (" in line
    with Progress(report=lambda *_: None):
        mk.build(schedule)
    assert capsys.readouterr().err == ""
