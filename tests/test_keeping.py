"""Every stage leaves a file and can be resumed from it; every value that has a picture can be kept as a page."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

import mpklab as mk
from mpklab import env
from mpklab.run import Kernel


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return mk.compile(mk.models.random("tiny", seed=1), machine=mk.Machine.cpu(2), context=64, report=lambda *_: None)


def test_any_stage_is_resumed_from_its_file(kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a cache of its own: a folder keeps the schedule that it was first built for."""
    monkeypatch.setenv("MPKLAB_CACHE", str(tmp_path))
    folder = mk.build(kernel.schedule, weights=kernel.model).library().folder
    assert folder.is_relative_to(env.cache_folder())
    graph = mk.Graph.load(folder / "graph.json")
    tasks = mk.tasks.load(folder / "tasks.npz")
    schedule = mk.Schedule.load(folder / "schedule.npz", tasks)
    assert graph.hash == tasks.graph.hash == kernel.graph.hash and schedule.hash == kernel.schedule.hash
    assert tasks.plan == kernel.schedule.tasks.plan and not schedule.verified
    again = mk.build(schedule, weights=kernel.model)
    assert again.library().cached
    expected = kernel.generate([1, 2, 3], 4).tokens  # the prompt goes through the graph as it was before fusing
    assert again.generate([1, 2, 3], 4).tokens == expected
    from_graph = mk.compile(graph, machine=mk.Machine.cpu(2), passes=(), report=lambda *_: None)
    assert graph.origin.hash == kernel.graph.origin.hash != graph.hash
    assert mk.build(from_graph.schedule, weights=kernel.model).generate([1, 2, 3], 4).tokens == expected
    alone = mk.lower(mk.Graph.from_json(graph.to_json()), mk.Machine.cpu(2), passes=())
    with pytest.raises(mk.RunError, match="is fused without one to go back to"):
        mk.build(mk.assign(alone), weights=kernel.model).generate([1, 2, 3], 4)


def test_a_machine_is_what_it_was() -> None:
    for machine in (mk.Machine.cpu(2), mk.Machine.named("h200", workers=7)):
        assert mk.Machine.from_json(json.loads(json.dumps(machine.to_json()))) == machine
    with pytest.raises(mk.EnvError, match="not a machine's description: KeyError"):
        mk.Machine.from_json({"name": "cpu"})
    with pytest.raises(mk.EnvError, match="not a machine's description: TypeError"):
        mk.Machine.from_json({**mk.Machine.cpu(1).to_json(), "colour": "red"})


def zipped(path: Path, name: str, head: Any) -> Path:
    with zipfile.ZipFile(path, "w") as z:
        z.writestr(name, json.dumps(head))
    return path


def test_files_that_lack_something_are_refused_in_one_sentence(kernel: Kernel, tmp_path: Path) -> None:
    tasks = kernel.schedule.tasks
    (tmp_path / "no.json").write_text("{")
    for path in (tmp_path / "no.json", tmp_path / "nowhere.json"):
        with pytest.raises(mk.GraphError, match="is not a saved graph"):
            mk.Graph.load(path)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(mk.GraphError, match="not a graph description"):
        mk.Graph.load(tmp_path / "list.json")
    for head in ({"graph": {}}, [], {"graph": {}, "plan": {}}):
        with pytest.raises(mk.LowerError, match="is not a saved task graph"):
            mk.tasks.load(zipped(tmp_path / "tasks.npz", "tasks.json", head))
    kernel.schedule.save(tmp_path / "whole.npz")
    with zipfile.ZipFile(tmp_path / "whole.npz") as whole, zipfile.ZipFile(tmp_path / "part.npz", "w") as part:
        for name in whole.namelist():
            head = json.loads(whole.read(name)) if name.endswith(".json") else None
            if head is not None:
                del head["mode"]
            part.writestr(name, json.dumps(head) if head is not None else whole.read(name))
    with pytest.raises(mk.ScheduleError, match="is not a saved schedule: 'mode'"):
        mk.Schedule.load(tmp_path / "part.npz", tasks)


def test_every_value_with_a_picture_can_be_kept_as_a_page(kernel: Kernel, tmp_path: Path) -> None:
    profile = kernel.generate([1, 2, 3], 4, profile=2).profile
    schedule = kernel.schedule
    for value in (kernel.graph, schedule.tasks, schedule, profile):
        path = value.to_html(tmp_path / f"{type(value).__name__}.html")
        page = path.read_text()
        assert page.startswith("<!doctype html>") and "default-src 'none'" in page, "asks no network for anything"
    assert profile.to_html().startswith("<!doctype html>"), "without a path, the text"


def test_values_are_tables(kernel: Kernel) -> None:
    graph = kernel.graph
    table = graph.to_pandas()
    assert table["operator"].tolist() == [o.name for o in graph.operators]
    merged = table.set_index("operator").loc["layer1.o_proj"]
    o = graph.operator("layer1.o_proj")
    assert merged["layer"] == 1 and set(merged["writes"].split(", ")) == {o.operands[k] for k in o.outputs}
    assert o.operands["weight"] in merged["reads"].split(", ")
    profile = kernel.generate([1, 2], 2, profile=2).profile
    assert profile.to_pandas().equals(profile.spans())
