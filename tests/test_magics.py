"""`%%mpk_profile` in a real IPython shell: what a cell runs is recorded, kept and shown; errors show the caller's line."""

import pytest

pytest.importorskip("IPython")

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

SETUP = """
import torch
import mpklab as mk
builder = mk.GraphBuilder("magic")
x = builder.input("x", (1, 64))
builder.add("y", a=x, b=x, role="output")
kernel = mk.compile(builder.build(), machine=mk.Machine.cpu(1), report=lambda *_: None)
one = torch.ones(1, 64)
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    config = Config(HistoryManager={"enabled": False}, InteractiveShell={"colors": "nocolor"})
    found = InteractiveShell.instance(config=config, ipython_dir=str(tmp_path_factory.mktemp("ipython")))
    found.run_line_magic("load_ext", "mpklab")
    assert found.run_cell(SETUP).success
    yield found
    InteractiveShell.clear_instance()


@pytest.fixture
def shown(monkeypatch):
    """What was displayed."""
    import IPython.display

    found = []
    monkeypatch.setattr(IPython.display, "display", found.append)
    return found


def test_a_cell_is_profiled_and_shown(shell, shown, monkeypatch):
    shell.run_line_magic("reload_ext", "mpklab")  # so that it finds the display above
    shell.run_cell("%%mpk_profile p --level 1\nanswer = kernel.run(x=one)['y'].sum().item()")
    assert shell.user_ns["answer"] == 128 and shell.user_ns["p"].level == 1
    (studio,) = shown
    assert type(studio).__name__ == "Studio" and "timeline: " in repr(studio)


def test_several_recordings_make_a_list(shell, shown, capsys):
    shell.run_line_magic("reload_ext", "mpklab")
    shell.run_cell("%%mpk_profile several\nfor _ in range(3):\n    kernel.run(x=one)")
    assert len(shell.user_ns["several"]) == 3 and len(shown) == 1
    assert "3 recordings" in capsys.readouterr().out
    shell.run_cell("%%mpk_profile quiet -q\nkernel.run(x=one)")
    assert shell.user_ns["quiet"].level == 2 and len(shown) == 1


def test_a_cell_without_a_kernel_says_so(shell, shown, capsys):
    shell.run_line_magic("reload_ext", "mpklab")
    shell.run_cell("%%mpk_profile\n1 + 1")
    assert "no kernel ran in this cell" in capsys.readouterr().out and not shown
    assert shell.run_cell("kernel.run(x=one).profile is None").result is True


def test_an_error_in_a_profiled_cell_ends_it(shell, shown, capsys):
    shell.run_line_magic("reload_ext", "mpklab")
    assert not shell.run_cell("%%mpk_profile broken\nkernel.run(x=one)\n1 / 0").success
    said = "".join(capsys.readouterr())
    assert said.count("ZeroDivisionError: division by zero") == 1 and "the profiled cell ended with an error" in said
    assert shell.user_ns["broken"].level == 2 and len(shown) == 1
    assert not shell.run_cell("%%mpk_profile\n1 / 0").success
    assert "no kernel ran" not in "".join(capsys.readouterr())


def test_an_error_shows_the_cell_and_not_our_frames(shell, capsys):
    shell.run_cell("value = 1\nkernel.run(y=one)\n")
    out = capsys.readouterr().out
    assert "line 2:" in out and "->    2 kernel.run(y=one)" in out and "^^^^^^^^^^^^^^^^^" in out
    assert "RunError: " in out and "session.py" not in out and "kernel.py" not in out
