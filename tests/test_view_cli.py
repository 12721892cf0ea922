"""`mpklab view`, `rerun` and `notebooks` from outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mpklab as mk
from mpklab import cli, env, view_cli
from mpklab.imports import from_chrome
from mpklab.profile import recording
from mpklab.timing import Prepared
from mpklab.widgets.studio import Studio

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of a small graph."""
    builder = mk.GraphBuilder("seen")
    x, w = builder.input("x", (1, 64)), builder.weight("w", (128, 64))
    builder.linear("y", x=x, weight=w, role="output")
    kernel = mk.compile(builder.build(), machine=mk.Machine.cpu(2), report=lambda *_: None)
    profile = Prepared(kernel).launch(6, 2).profile
    assert profile is not None
    return profile.save(tmp_path_factory.mktemp("view") / "small.mpkprof")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The pages a browser was asked for; the working folder is an empty one."""
    pages: list[str] = []

    def browser(address: str) -> bool:
        pages.append(address)
        return True

    monkeypatch.setattr(view_cli.webbrowser, "open", browser)
    monkeypatch.chdir(tmp_path)
    return pages


def test_a_recording_becomes_a_page_that_opens(file: Path, opened: list[str], tmp_path: Path) -> None:
    assert cli.main(["view", str(file)]) == 0
    page = tmp_path / "small.html"
    assert opened == [page.as_uri()]
    assert "default-src 'none'" in page.read_text() and "<title>small</title>" in page.read_text()
    assert cli.main(["view", str(file), "-o", "other.html", "--no-open"]) == 0
    assert len(opened) == 1 and (tmp_path / "other.html").stat().st_size > 20_000


def test_the_page_begins_with_what_cost_most(opened: list[str], monkeypatch) -> None:
    notes: list[list[str]] = []
    monkeypatch.setattr(Studio, "to_html", lambda self, page: (notes.append(self.notes), page.touch()))
    assert cli.main(["view", "cpu-smollm2-135m", "--no-open"]) == 0
    assert notes[0][-1] == "What cost most: " + recording("cpu-smollm2-135m").explain()["finding"].iloc[0]


def test_a_recording_without_edges_shows_what_it_has() -> None:
    """Neither operators beside each other, nor tasks that are all ready from the start, nor causes of gaps."""
    events = [{"ph": "X", "ts": 2 * t, "dur": 1, "name": "ab"[t % 2], "tid": 0} for t in range(9)]
    profile = from_chrome({"traceEvents": events})
    assert (
        "8 µs lies between spans, and without edges nothing says what for"
        in mk.analysis.explain(profile)["finding"].iloc[0]
    )
    shown = Studio(profile)
    assert shown.graph is None and shown.dag is not None and shown.timeline is not None
    assert not [name for name in shown.timeline.lanes.columns if "ready" in name]


def test_two_recordings_make_one_page(file: Path, opened: list[str], tmp_path: Path) -> None:
    assert cli.main(["view", "--diff", str(file), str(file), "--no-open"]) == 0
    page = (tmp_path / "small-small.html").read_text()
    assert "<title>small and small</title>" in page and "other: " in page and not opened


def test_where_there_is_no_browser_it_says_so(file: Path, opened: list[str], monkeypatch, capsys) -> None:
    monkeypatch.setattr(view_cli.webbrowser, "open", lambda _: False)
    assert cli.main(["view", str(file)]) == 0
    assert "open the page by hand" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["view", "{file}", "{file}"], "expected 1 recording, found 2: --diff shows two"),
        (["view", "--diff", "{file}"], "expected 2 recordings, found 1"),
        (["view", "gone.mpkprof"], "cannot open the profile gone.mpkprof"),
        (["view", "{file}", "-o", "no/such/folder/x.html"], "cannot write"),
        (["rerun", "gone.mpkprof"], "cannot open the profile"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(
    file: Path, opened: list[str], capsys, argv: list[str], said: str
) -> None:
    assert cli.main([word.format(file=file) for word in argv]) == 1
    assert said in capsys.readouterr().err and not opened


def test_rerun_prints_both_times_and_what_differs(file: Path, tmp_path: Path, capsys) -> None:
    old = mk.Profile.load(file)
    stamp = {**old.stamp, "versions": {**old.stamp["versions"], "numpy": "1.0"}}
    moved = mk.Profile(**{**{f: getattr(old, f) for f in mk.Profile.__dataclass_fields__}, "stamp": stamp})
    path = moved.save(tmp_path / "moved.mpkprof")
    assert cli.main(["rerun", str(path), "--iterations", "8", "-o", str(tmp_path / "again")]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0].split()[-1] == "makespan" and [line.split()[0] for line in lines[1:3]] == ["recorded", "now"]
    assert all(" to " in line and line.endswith(" ms") for line in lines[1:3])
    assert "× as long; mean change" in said
    assert any(line.split()[:2] == ["versions.numpy", "1.0"] for line in lines)
    assert "fields of the stamp differ" in said
    again = mk.Profile.load(tmp_path / "again.mpkprof")
    assert again.stamp["hashes"] == old.stamp["hashes"]
    assert cli.main(["rerun", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    times = found["iteration_ms"]["recorded"]
    assert 0 < times["low"] <= times["median"] <= times["high"] and times["n"] == 5
    assert found["stamp"]["versions.numpy"]["differs"] is False


def test_notebooks_are_copied_and_never_written_over(tmp_path: Path, capsys) -> None:
    target = tmp_path / "mine"
    assert cli.main(["notebooks", str(target)]) == 0
    names = sorted(p.name for p in target.iterdir())
    assert names == sorted(p.name for p in env.notebooks_folder().glob("*.ipynb")) and names
    mine = target / names[0]
    mine.write_text("my work")
    assert cli.main(["notebooks", str(target)]) == 1
    assert "--force" in capsys.readouterr().err and mine.read_text() == "my work"
    assert cli.main(["notebooks", str(target), "--force"]) == 0
    assert json.loads(mine.read_text())["nbformat"] == 4
