"""Views without a browser: what is packed, laid out, escaped and said in words."""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from schedules import Op, Run, make
from synthetic import MadeTasks, make_spans, make_tasks

from mpklab import frames
from mpklab.errors import EnvError, GraphError, MpkError, ProfileError, ScheduleError
from mpklab.profile import open_profile
from mpklab.widgets import operator_graph as drawing
from mpklab.widgets.operator_graph import graph_view, operator_graph
from mpklab.widgets.page import Column, bundle, container, page, widget_module
from mpklab.widgets.raster import coverage
from mpklab.widgets.recording import profile_timeline
from mpklab.widgets.studio import Studio, graph_of
from mpklab.widgets.task_dag import lay_out, read_tasks, table_of, task_dag
from mpklab.widgets.timeline import _depths, timeline

STATIC = Path(drawing.__file__).parent / "static"
NASTY = "</script><script>alert(1)</script>\"'&<!--\u2028\u2029\n\N{PILE OF POO}" + "x" * 10_000


def unpack(data: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    """The container read back, written from its description and not from the code."""
    raw = zlib.decompress(data)
    size = struct.unpack("<I", raw[:4])[0]
    header = json.loads(raw[4 : 4 + size])
    at, columns = 4 + size, {}
    for name, count, planes, signed, delta, real in header["columns"]:
        bytes_of = np.frombuffer(raw, np.uint8, count * planes, at).reshape(planes, count).astype(np.int64)
        at += count * planes
        value = sum((bytes_of[p] << (8 * p) for p in range(planes)), np.zeros(count, np.int64))
        if real:
            columns[name] = value.astype("<u4").view("<f4")
            continue
        if signed:
            value = np.where(value % 2, -(value + 1) // 2, value // 2)
        columns[name] = np.cumsum(value) if delta else value
    assert at == len(raw)
    return header["meta"], columns


def spans_back(data: bytes) -> pd.DataFrame:
    """Rows, begins and ends as timeline.js reads them."""
    meta, c = unpack(data)
    row = np.repeat(np.arange(len(c["row_count"])), c["row_count"])
    begin, end, at = np.zeros(len(row), np.int64), np.zeros(len(row), np.int64), 0
    for count in c["row_count"]:
        t = 0
        for i in range(at, at + count):
            begin[i] = t + c["gap"][i]
            t = end[i] = begin[i] + c["dur"][i]
        at += count
    op = c["span_op"] if "span_op" in c else np.append(c["task_op"], -1)[c["task"]]
    names = [o["name"] for o in meta["ops"]]
    return pd.DataFrame(
        {
            "worker": c["row_worker"][row], "role": [meta["roles"][c["row_role"][r]] for r in row], "depth": c["row_depth"][row],
            "phase": [meta["phases"][p]["name"] for p in c["phase"]], "task": c["task"], "begin_ns": begin, "end_ns": end,
            "op": [names[o] if o >= 0 else None for o in op], "iteration": c["iteration"],
        }
    )  # fmt: skip


# ---- packing


def test_columns_survive_packing() -> None:
    rng = np.random.default_rng(0)
    given = {
        "empty": np.zeros(0, int), "zero": np.zeros(5, int), "small": rng.integers(0, 200, 999),
        "signed": rng.integers(-70_000, 70_000, 999), "wide": rng.integers(-(2**51), 2**51, 99),
        "rising": np.cumsum(rng.integers(0, 9, 999)),
    }  # fmt: skip
    meta, back = unpack(container({"a": 1}, {n: Column(v, delta=n == "rising") for n, v in given.items()}))
    assert meta == {"a": 1}
    for name, values in given.items():
        np.testing.assert_array_equal(back[name], values, err_msg=name)
    for most in (2**29 - 1, 2**29, 2**30, 2**31 - 1, 2**31, 2**51):  # where 32 bits stop to be enough
        for kind in (np.int32, np.uint32, np.int64):
            edges = np.array(
                [e for e in (-most, most, 0, -1, most) if np.iinfo(kind).min <= e <= np.iinfo(kind).max], kind
            )
            for delta in (False, True):
                np.testing.assert_array_equal(unpack(container({}, {"e": Column(edges, delta)}))[1]["e"], edges)
    real = np.array([0.0, -1.5, 3e-9, 1e30])
    np.testing.assert_array_equal(unpack(container({}, {"f": Column(real)}))[1]["f"], real.astype(np.float32))


@pytest.mark.parametrize("level", [1, 2, 3])
def test_timeline_keeps_every_span(level: int) -> None:
    spans = make_spans(600, workers=5, iterations=3, level=level)
    shuffled = spans.sample(frac=1, random_state=1)
    back = spans_back(timeline(shuffled).data())
    kept = spans[spans["phase"] != "iteration"]
    columns = ["worker", "role", "phase", "task", "begin_ns", "end_ns", "op", "iteration"]
    a = back[columns].sort_values(columns[:-2]).reset_index(drop=True)
    b = kept.astype({"role": str, "phase": str, "op": object})[columns].sort_values(columns[:-2]).reset_index(drop=True)
    b[["begin_ns", "end_ns"]] -= spans["begin_ns"].min()
    pd.testing.assert_frame_equal(a, b, check_dtype=False, check_categorical=False)
    assert (back["depth"] > 0).any() == (level == 3)


def test_neither_order_nor_width_of_the_columns_changes_a_byte() -> None:
    spans = make_spans(600, workers=5, iterations=3, level=2)
    data = timeline(spans).data()
    assert timeline(spans.sort_values(["begin_ns", "worker"])).data() == data
    assert timeline(spans.sample(frac=1, random_state=1)).data() == data
    whole = ["rank", "worker", "sm", "iteration", "task", "layer", "event", "begin_ns", "end_ns"]
    assert timeline(spans.astype(dict.fromkeys(whole, np.int64))).data() == data
    assert timeline(spans.astype(dict.fromkeys(whole, float))).data() == data  # as a join leaves them


def test_rows_never_overlap_even_when_spans_cross() -> None:
    rng = np.random.default_rng(3)
    lane = np.sort(rng.integers(0, 4, 400))
    begin = rng.integers(0, 2000, 400)
    end = begin + rng.integers(0, 90, 400)
    order = np.lexsort((-end, begin, lane))
    lane, begin, end = lane[order], begin[order], end[order]
    depth = _depths(lane, begin, end)
    for key in set(zip(lane.tolist(), depth.tolist(), strict=True)):
        some = (lane == key[0]) & (depth == key[1])
        assert (begin[some][1:] >= end[some][:-1]).all()


def test_depth_counts_enclosing_spans() -> None:
    begin, end = np.array([0, 0, 2, 2, 5, 10]), np.array([10, 4, 3, 2, 9, 12])
    assert _depths(np.zeros(6, int), begin, end).tolist() == [0, 1, 2, 3, 1, 0]


def test_pages_are_small(tmp_path: Path) -> None:
    for tasks, most in ((10_000, 200_000), (100_000, 1_500_000)):
        path = timeline(make_spans(tasks, 132, max(1, tasks // 25_000))).to_html(tmp_path / "t.html")
        assert path.stat().st_size <= most
    for layers, tasks, most in ((13, 10_000, 200_000), (127, 100_000, 1_500_000)):
        dag = task_dag(make_tasks(layers, 132))
        assert len(dag.to_pandas()) >= tasks
        assert dag.to_html(tmp_path / "d.html").stat().st_size <= most


# ---- pages and modules


def test_pages_ask_nothing_of_a_network() -> None:
    text = str(Studio(spans=make_spans(200, 4), tasks=make_tasks(2, 4)).to_html())
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", text)
    assert set(re.findall(r"https?://[^\s\"'<>)]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text
    script = re.search(r'<script type="module">(.*?)</script>', text, re.DOTALL)
    assert script is not None
    import hashlib

    assert base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode() in text


def test_no_name_becomes_markup() -> None:
    tasks = make_tasks(1, 3, names=NASTY)
    spans = make_spans(60, 3, 1)
    spans["op"] = spans["op"].cat.rename_categories(lambda name: NASTY + name)
    spans["kind"] = spans["kind"].cat.rename_categories(lambda name: NASTY + name)
    for view in (
        timeline(spans, title=NASTY),
        task_dag(tasks, title=NASTY, missing=[(0, 1, NASTY), ScheduleError(NASTY)], notes=[NASTY], paths={NASTY: [0]}),
        timeline(spans, spans, names=(NASTY, NASTY + "2"), bounds={NASTY: 10.0}, classes=None, notes=[NASTY]),
        graph_view(graph_of(table_of(tasks), NASTY), title=NASTY),
        Studio(spans=spans, tasks=tasks, title=NASTY, notes=[NASTY]),
    ):
        text = str(view.to_html())
        assert text.count("<script") == 2 and text.count("</script>") == 2 and "alert(1)" in text
        assert "<script>alert" not in text
        shown = view._repr_mimebundle_()
        assert "<script" not in shown["text/html"]


def test_names_of_every_view_stay_text_in_dot_and_svg() -> None:
    view = graph_view(graph_of(table_of(make_tasks(1, 3, names=NASTY)), NASTY), title=NASTY)
    source = drawing.dot_source(view.drawing)
    assert "alert" not in source and "script" not in source
    texts = [e.text or "" for e in ET.fromstring(str(view.to_svg())).iter() if e.tag.endswith("text")]
    assert any(text.startswith("</script><script>alert") for text in texts)


def test_modules_join_into_one() -> None:
    """Top-level names are one file's own, imports are of the form that joining drops, and no text ends a script block."""
    names: dict[str, str] = {}
    for file in sorted(STATIC.glob("*.js")):
        text = file.read_text()
        for name in re.findall(r"^(?:export )?(?:async )?(?:function\*?|class|const|let) (\w+)", text, re.MULTILINE):
            assert names.setdefault(name, file.name) == file.name, f"{name} is in {names[name]} and {file.name}"
        for line in re.findall(r"^import .*", text, re.MULTILINE):
            assert re.fullmatch(r'import \{ [\w, ]+ \} from "\./\w+\.js";', line), line
        assert "innerHTML" not in text and "outerHTML" not in text and "insertAdjacentHTML" not in text
        assert text.startswith("//"), f"{file.name} does not open with its sentence"
        assert len(text) <= 60_000, file.name
    for name in ("timeline", "dag", "opgraph", "table", "source"):
        joined = bundle(f"{name}.js")
        assert "import {" not in joined and len(joined) <= 60_000, (name, len(joined))


def test_a_widget_carries_at_most_60_kb_of_module() -> None:
    """Every widget's state repeats its module; the Studio is all of them, deflated."""
    for module, mount in (("timeline.js", "mountTimeline"), ("dag.js", "mountDag"), ("studio.js", "mountStudio")):
        sent = widget_module(module, mount)
        assert len(sent) <= 60_000, (module, len(sent))
        packed = re.search(r'atob\("([^"]+)"\)', sent)
        assert packed is not None
        text = zlib.decompress(base64.b64decode(packed[1])).decode()
        assert text == f"{bundle(module)}export default startWidget({mount});\n"


def test_a_page_refuses_a_module_that_would_end_its_script() -> None:
    with pytest.raises(ValueError, match="end its script"):
        page("t", "common.js", "</script>", b"", "")


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_javascript_units() -> None:
    done = subprocess.run(
        ["node", "--test", str(Path(__file__).parent / "js")], capture_output=True, text=True, timeout=600
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


# ---- saying it without a browser


def test_every_view_shows_itself_without_scripts() -> None:
    spans, tasks = make_spans(300, 4), make_tasks(2, 4)
    for view in (timeline(spans), task_dag(tasks, spans), graph_view(model_graph()), Studio(spans=spans, tasks=tasks)):
        shown = view._repr_mimebundle_()
        assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")
        assert "<script" not in shown["text/html"] and "<img" in shown["text/html"]
        assert shown["text/plain"] == repr(view) == view.text()
    assert "application/vnd.jupyter.widget-view+json" in timeline(spans)._repr_mimebundle_()


def test_texts_are_true() -> None:
    spans = make_spans(600, workers=5, iterations=3)
    text = timeline(spans, title="T").text()
    n = int((spans["phase"] != "iteration").sum())
    assert text.startswith(f"T: {n:,} spans of 5 workers over ") and "3 iterations" in text
    took = spans.loc[spans["phase"] == "execute", "dur_ns"].sum()
    kept = spans[spans["phase"] != "iteration"]
    whole = kept["end_ns"].max() - spans["begin_ns"].min()
    assert f"execute {100 * took / (5 * whole):.1f} %" in text
    tasks = make_tasks(2, 4)
    edges = sum(int((e.end - e.begin).sum()) for e in tasks.edges)
    assert task_dag(tasks).text() == f"task graph: 60 tasks of 15 operators in 2 layers, {edges:,} implied edges"


def test_empty_and_tiny_things_say_so() -> None:
    spans = make_spans(60, 3, 1)
    nothing = timeline(spans.head(0))
    assert "nothing was recorded" in repr(nothing) and nothing.to_png().startswith(b"\x89PNG") and nothing.to_html()
    one = timeline(spans[spans["phase"] == "execute"].head(1))
    assert "1 span of 1 worker" in repr(one) and one.to_png()
    empty = MadeTasks((), np.zeros(1, int), np.zeros((0, 4), int), np.zeros(0), np.zeros(0), ())
    assert "No tasks" in repr(task_dag(empty)) and task_dag(empty).to_html() and task_dag(empty).to_png()
    cut = spans.assign(truncated=spans.index == 5)
    assert "1 span cut short" in repr(timeline(cut))
    huge = make_tasks(170, 1000)
    assert "drawn with its layers folded" in repr(task_dag(huge))


def test_a_repr_never_raises() -> None:
    view = timeline(make_spans(60, 3, 1))
    view.lanes.meta["phases"] = None
    assert "could not be shown" in repr(view)
    assert "could not be shown" in view._repr_mimebundle_()["text/plain"]


def test_missing_packages_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpklab import plots
    from mpklab.widgets import view as base

    monkeypatch.setattr(base, "find_spec", lambda name: None)
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    base._widget_class.cache_clear()
    view = timeline(make_spans(60, 3, 1))
    with pytest.raises(EnvError, match=r"anywidget.*pip install 'mpklab\[notebook\]'"):
        view.widget()
    assert "image/png" in view._repr_mimebundle_()
    with pytest.raises(EnvError, match=r"plotly.*pip install"):
        plots.template()
    base._widget_class.cache_clear()


def test_misuse_is_told() -> None:
    spans = make_spans(60, 3, 1)
    with pytest.raises(ProfileError, match="did you mean 'kind'"):
        timeline(spans, color="kinds")
    with pytest.raises(ProfileError, match="missing: task"):
        timeline(spans.drop(columns="task"))
    with pytest.raises(ProfileError, match="expected one per span"):
        timeline(spans, classes={"mine": [1]})
    with pytest.raises(GraphError, match="expected one per task: 60"):
        task_dag(make_tasks(2, 4), columns={"mine": [1.0]})
    with pytest.raises(GraphError, match="task 99 does not exist"):
        task_dag(make_tasks(2, 4), paths={"p": [99]})
    with pytest.raises(MpkError, match=r"ending in \.html or \.png"):
        timeline(spans).save("x.gif")


# ---- selection


def test_selection_is_shared_with_python() -> None:
    spans = make_spans(300, 4)
    view = timeline(spans)
    heard: list[pd.DataFrame] = []
    view.on_select(heard.append)
    view.select([3, 7])
    assert set(view.selection["task"]) == {3, 7} and len(heard) == 1
    widget = view.widget()
    assert np.frombuffer(widget._selected, "<i4").tolist() == [3, 7]
    view._hear(widget, {"kind": "select", "tasks": [5]}, [])
    assert set(view.selection["task"]) == {5}
    for bad in ([-1], [10**9], ["5"], [True], "5", None, [5] * 200_001):
        view._hear(widget, {"kind": "select", "tasks": bad}, [])
    view._hear(widget, "select", [])
    view._hear(widget, {"kind": "other", "tasks": [6]}, [])
    assert set(view.selection["task"]) == {5}
    with pytest.raises(MpkError, match="expected a task id"):
        view.select([10**9])
    rows = task_dag(make_tasks(2, 4), spans).select([0, 59]).selection
    assert rows["op"].tolist() == ["embedding", "argmax"] and {"dur_ns", "bytes"} <= set(rows.columns)


# ---- task graph


def test_layout_has_no_overlap_and_follows_the_order() -> None:
    table = read_tasks(make_tasks(7, 13))
    layout = lay_out(table)
    cells = set(zip(layout.x.tolist(), layout.y.tolist(), strict=True))
    assert len(cells) == table.n
    assert layout.x.max() < layout.width and layout.y.max() < layout.height
    op = table.operator_of
    x, y, w, h = layout.boxes[op].T
    assert ((x < layout.x) & (layout.x < x + w) & (y < layout.y) & (layout.y < y + h)).all()
    boxes = layout.boxes
    for a in range(len(boxes)):
        for b in range(a):
            apart = (
                boxes[a, 0] >= boxes[b, 0] + boxes[b, 2] or boxes[b, 0] >= boxes[a, 0] + boxes[a, 2]
                or boxes[a, 1] >= boxes[b, 1] + boxes[b, 3] or boxes[b, 1] >= boxes[a, 1] + boxes[a, 3]
            )  # fmt: skip
            assert apart, (a, b)


def test_layout_without_layers_goes_by_level() -> None:
    tasks = make_tasks(1, 3)
    for op in tasks.operators:
        op.layer = None
    layout = lay_out(read_tasks(tasks))
    assert layout.group_names == tuple(f"level {k}" for k in range(9))


def test_measured_columns_are_means_over_iterations() -> None:
    spans = make_spans(600, workers=5, iterations=3)
    n = int(spans["task"].max()) + 1
    view = task_dag(make_tasks((n // 5 - 3) // 6, 5), spans)
    ran = spans[spans["phase"] == "execute"]
    np.testing.assert_allclose(view.table.values["dur_ns"], ran.groupby("task")["dur_ns"].mean())
    waited = spans[spans["phase"] == "wait"].groupby("task")["dur_ns"].sum() / 3
    np.testing.assert_allclose(view.table.values["wait_ns"], waited)
    assert view.table.values["begin_ns"][0] >= 0


def test_a_profile_is_enough() -> None:
    ops = [Op("a", 2), Op("b", 3, ("a",), layer=0), Op("c", 1, ("b",), kind="attention", layer=1)]
    queues = [
        [
            [Run("a", w, 100, fetch=5), Run("b", w, 200, gather=7), *([Run("b", 2, 50)] if w else [Run("c", 0, 30)])]
            for w in range(2)
        ]
    ]
    profile = make(ops, queues)
    table = table_of(profile)
    assert table.names == ("a", "b", "c") and table.n == 6 and table.layers.tolist() == [-1, 0, 1]
    view = Studio(profile)
    assert view.timeline is not None and view.dag is not None and view.graph is not None
    assert view.graph.drawing.lines and "6 tasks of 3 operators" in repr(view)
    assert view.select([1]).selection["op"].tolist() == ["a"]
    assert view.to_html() and view.widget()


# ---- operator graph


def model_graph():
    from mpklab import models

    return models.decode_graph(models.named("tiny"))


@pytest.mark.parametrize("engine", ["own", "dot"])
def test_operator_graph_is_well_formed_svg(engine: str) -> None:
    graph = model_graph()
    view = graph_view(graph, engine=engine)
    root = ET.fromstring(str(view.to_svg()))
    titles = " ".join(e.text or "" for e in root.iter("{http://www.w3.org/2000/svg}title"))
    for box in view.drawing.boxes:
        assert f"{box.name}: {box.kind}" in titles
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any("× 2" in (t or "") or "×" in (t or "") for t in texts)
    drawn = {i for box in view.drawing.boxes for i in box.operators}
    assert drawn == set(range(len(graph.operators)))
    if shutil.which("dot") and engine == "dot":
        assert view.drawing.engine == "dot"


def test_identical_layers_fold_and_others_do_not() -> None:
    graph = model_graph()
    layers = len({o.layer for o in graph.operators if o.layer is not None})
    folded, flat = graph_view(graph, engine="own"), graph_view(graph, engine="own", fold=False)
    assert len(folded.drawing.clusters) == 1 and f"× {layers}" in folded.drawing.clusters[0].title
    assert len(flat.drawing.clusters) == layers and len(flat.drawing.boxes) == len(graph.operators)
    assert {line.later for line in folded.drawing.lines} == {"", "next layer", "next iteration"}
    assert "next layer" not in {line.later for line in flat.drawing.lines}


@pytest.mark.parametrize("engine", ["own", "dot"])
def test_no_box_lies_over_the_title_of_its_layers(engine: str) -> None:
    placed = graph_view(model_graph(), engine=engine).drawing
    (cluster,) = placed.clusters
    highest = min(placed.boxes[member].y for member in cluster.members) - drawing.HIGH / 2
    assert highest - cluster.box[1] >= 20  # the title's baseline lies 13 below the top


def test_own_layout_puts_readers_below_writers() -> None:
    placed = graph_view(model_graph(), engine="own").drawing
    for line in placed.lines:
        if not line.later:
            assert placed.boxes[line.head].y > placed.boxes[line.tail].y
    for a in placed.boxes:
        for b in placed.boxes:
            if a is not b and a.y == b.y:
                assert abs(a.x - b.x) >= (a.width + b.width) / 2


def test_dot_never_sees_a_name() -> None:
    view = graph_view(model_graph(), engine="own")
    source = drawing.dot_source(view.drawing)
    for box in view.drawing.boxes:
        assert box.name not in source.replace("digraph", "").split()
    assert re.fullmatch(r"[\w\s{}\[\];=,.\"<>/\-]*", source)


def test_a_broken_dot_falls_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for body in ("exit 3", "echo nonsense", "echo '{}'"):
        program = tmp_path / "dot"
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        monkeypatch.setattr(drawing, "find_dot", lambda program=program: str(program))
        assert graph_view(model_graph(), engine="auto").drawing.engine == "own"
    monkeypatch.setattr(drawing, "find_dot", lambda: None)
    assert graph_view(model_graph()).drawing.engine == "own"


def test_svg_escapes_names() -> None:
    tasks = make_tasks(1, 2, names=NASTY)
    view = Studio(tasks=tasks)
    assert view.graph is not None
    ET.fromstring(str(view.graph.to_svg()))
    assert "<script" not in str(view.graph.to_svg())
    assert operator_graph(model_graph()).startswith("<svg")


# ---- still pictures


def test_coverage_is_exact() -> None:
    rng = np.random.default_rng(5)
    begin = rng.uniform(0, 30, 800)
    end = np.minimum(begin + rng.exponential(2, 800), 30)
    row, kind = np.sort(rng.integers(0, 19, 800)), rng.integers(0, 4, 800)
    row[row == 7] = 6  # a row without a span
    cells = coverage(row, kind, begin, end, (19, 4, 30))
    wanted = np.zeros((19, 4, 30))
    for r, k, b, e in zip(row, kind, begin, end, strict=True):
        for p in range(30):
            wanted[r, k, p] += max(0.0, min(e, p + 1) - max(b, p))
    np.testing.assert_allclose(cells, wanted, atol=1e-5)


def test_png_reads_back() -> None:
    data = timeline(make_spans(300, 4)).to_png()
    assert struct.unpack(">II", data[16:24])[0] == 900
    at, body, palette = 8, b"", b""
    while at < len(data):
        size, kind = struct.unpack(">I", data[at : at + 4])[0], data[at + 4 : at + 8]
        assert zlib.crc32(data[at + 4 : at + 8 + size]) == struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0]
        body += data[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        palette += data[at + 8 : at + 8 + size] if kind == b"PLTE" else b""
        at += 12 + size
    wide, high = struct.unpack(">II", data[16:24])
    rows = np.frombuffer(zlib.decompress(body), np.uint8).reshape(high, wide + 1)[:, 1:]
    colours = np.frombuffer(palette, np.uint8).reshape(-1, 3)
    blue = (colours == [0x44, 0x77, 0xAA]).all(axis=1)
    assert np.isin(rows, np.flatnonzero(blue)).mean() > 0.2  # most of the time linears run


def test_importing_views_loads_no_drawing_library() -> None:
    libraries = ("plotly", "anywidget", "ipywidgets", "IPython", "torch")
    code = f"import sys, mpklab.widgets.studio, mpklab.plots; print([m for m in {libraries} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_idle_classes_name_what_bubbles_counts() -> None:
    from mpklab import analysis, frames
    from mpklab.widgets.recording import idle_classes

    ops = [Op("a", 2), Op("b", 2, ("a",))]
    queues = [[[Run("a", 0, 100), Run("b", 0, 100)], [Run("a", 1, 900), Run("b", 1, 100)]]]
    profile = make(ops, queues, latency=50)
    spans = frames.spans(profile)
    found, cause = idle_classes(profile, spans)
    wait = spans.index[(spans["phase"] == "wait") & (spans["worker"] == 0) & (spans["dur_ns"] > 0)]
    assert [found[spans.index.get_loc(i)] for i in wait][-1] == "producer"
    assert [cause[spans.index.get_loc(i)] for i in wait][-1] == "linear" and cause[
        np.asarray(spans["phase"] == "execute")
    ].isna().all()
    execute = np.asarray(spans["phase"] == "execute")
    assert set(found[execute]) == {"execute"}
    assert set(analysis.bubbles(profile).columns) >= set(found.categories)
    assert "class" in [mode["name"] for mode in Studio(profile).timeline.lanes.meta["modes"]]


# ---- what a recording adds


def small_run(**options) -> object:
    """Two operators of two tasks; the second run of `b` on worker 0 comes late."""
    ops = [Op("a", 2), Op("b", 2, ("a",), kind="attention", layer=0)]
    queues = [[[Run("a", 0, 100), Run("b", 0, 100, gather=30)], [Run("a", 1, 900), Run("b", 1, 100)]] for _ in range(2)]
    return make(ops, queues, **options)


def test_ready_times_are_when_the_last_signal_was_given() -> None:
    from mpklab import frames
    from mpklab.widgets.recording import ready_times

    profile = small_run(latency=50)
    spans = frames.spans(profile)
    ready = ready_times(profile, spans)
    assert np.isnan(ready[np.asarray(spans["phase"] != "execute")]).all()
    for iteration in (0, 1):
        of = spans[(spans["iteration"] == iteration) & (spans["phase"] == "execute")]
        last = of.loc[of["task"] < 2, "end_ns"].max()
        for task in (2, 3):
            row = of.index[of["task"] == task][0]
            assert abs(ready[spans.index.get_loc(row)] - last) <= 1 and of.loc[row, "begin_ns"] - last >= 49


def test_an_unfinished_run_says_where_it_stopped() -> None:
    from mpklab.widgets.recording import notes_of, unfinished

    assert unfinished(small_run()) == []
    ops = [Op("a", 2), Op("b", 2, ("a",))]
    queues = [[[Run("a", 0, 100), Run("b", 0, 100)], [Run("a", 1, 900), Run("b", 1, 100)]], [[Run("a", 0, 100)], []]]
    (sentence,) = unfinished(make(ops, queues))
    assert sentence.startswith("Iteration 1 stops after 1 of 4 tasks: the run failed or was interrupted")
    dropped = make(ops, queues, capacity=6)
    assert unfinished(dropped) == [] and "dropped, most in worker" in notes_of(dropped)[0]


def test_the_failed_run_of_a_real_kernel_is_shown() -> None:
    import torch

    import mpklab as mk
    from mpklab.errors import DeadlockError

    schedule = mk.assign(mk.lower(model_graph(), mk.Machine.detect()))
    kernel = mk.build(schedule)
    task = next(t for t in range(len(schedule.tasks)) if np.diff(schedule.tasks.signal_first)[t])
    values = {
        n: torch.zeros(t.shape, dtype=getattr(torch, t.dtype))
        for n, t in schedule.tasks.graph.tensors.items()
        if t.role in ("weight", "state", "input")
    }
    with pytest.raises(DeadlockError):
        kernel.run(values, iterations=2, drop_signals=task, wait_limit_s=1, profile=2)
    text = repr(kernel.last_profile.timeline())
    assert "the run failed or was interrupted" in text


def test_differences_are_told_in_classes() -> None:
    from mpklab.widgets.timeline import difference

    a = make_spans(300, 3, 2)
    b = a[a["task"] != 5].copy()
    work = np.asarray(b["phase"] == "execute")
    b.loc[work & np.asarray(b["task"] == 7), "end_ns"] += 10**6
    b.loc[work & np.asarray(b["task"] == 8), "end_ns"] += 3
    found = difference(a, b, 10.0)
    first, second = np.asarray(found[: len(a)], object), np.asarray(found[len(a) :], object)
    ran = np.asarray(a["phase"] == "execute")
    assert set(first[ran & np.asarray(a["task"] == 7)]) == {"less than 1/1.5"}
    assert set(second[work & np.asarray(b["task"] == 7)]) == {"more than 1.5 times"}
    assert set(second[work & np.asarray(b["task"] == 8)]) == {"the same ± 5 %"}
    assert set(first[ran & np.asarray(a["task"] == 5)]) == {"not in the other"}
    assert pd.isna(first[~ran]).all()


def test_two_recordings_share_a_studio() -> None:
    a, b = small_run(), small_run(latency=300)
    view = Studio(a, other=b)
    assert view.timeline.lanes.meta["groups"] == ["this", "other"] and view.timeline.lanes.meta["color"] == "difference"
    assert [mode["name"] for mode in view.timeline.lanes.meta["modes"]] == ["class", "waits for", "difference"]
    assert view.dag.table.values["times_other"].tolist() == [1.0] * 4
    assert [note.split(":")[0] for note in view.notes] == ["this", "other"]
    meta = view.timeline.lanes.meta
    assert meta["run_of_group"] == [0, 1]
    for run, recording in enumerate((a, b)):
        alone = profile_timeline(recording).lanes.meta
        for name in ("iterations", "bounds"):
            own = [{**mark, "run": 0} for mark in meta[name] if mark["run"] == run]
            assert own == alone[name] and own


def test_a_schedule_that_races_is_drawn_with_the_missing_edge() -> None:
    from dataclasses import replace

    import mpklab as mk

    schedule = mk.assign(mk.lower(model_graph(), mk.Machine.detect()), policy="round_robin")
    tasks = schedule.tasks
    assert not schedule.dag().options["missing"]
    target = int(tasks.first[3])  # waits for nothing any more
    kept = np.ones(len(tasks.wait_event), bool)
    kept[tasks.wait_first[target] : tasks.wait_first[target + 1]] = False
    first = np.r_[0, np.cumsum(kept)][tasks.wait_first]
    broken = replace(tasks, wait_first=first, wait_event=tasks.wait_event[kept], wait_lag=tasks.wait_lag[kept])
    view = replace(schedule, tasks=broken).dag()
    (fault,) = view.options["missing"]
    assert fault["after"] == target and 0 <= fault["before"] < target
    assert f"nothing makes {tasks.operators[3].name}[0] wait for" in fault["text"] and fault["text"] in repr(view)


def test_what_is_going_on_reaches_the_widget() -> None:
    view = task_dag(make_tasks(2, 4))
    widget = view.widget()
    view.stage("tasks", 0.25, "60 tasks")
    view.running(3, 3)
    view.step()
    view.failed(ValueError("it broke"))
    told = json.loads(widget._state)
    assert told["stages"] == [["tasks", 0.25, "60 tasks"]] and (told["iteration"], told["of"]) == (4, 3)
    assert told["faults"] == [{"before": -1, "after": -1, "text": "it broke"}]
    assert unpack(view.data())[0]["state"] == told


def test_the_source_of_every_operator_is_marked() -> None:
    import mpklab as mk
    from mpklab.widgets.source import marks_in, source_of

    schedule = mk.assign(mk.lower(model_graph(), mk.Machine.detect()))
    names = [o.name for o in schedule.tasks.operators]
    meta, columns = source_of(names, [o.op for o in schedule.tasks.operators], schedule, "cpu")
    entry = meta["files"][0]["text"].splitlines()
    for operator, marks in zip(range(len(names)), columns["marks_of"].values, strict=True):
        (file, line, _, what), *rest = meta["marks"][marks]
        assert what == "variant" and file == 0
        assert entry[line - 1].strip().rstrip(",>;") == schedule.tasks.variants[
            schedule.tasks.variant_of[operator]
        ].text.rstrip(">")
        assert any(what == "compute" for *_, what in rest), names[operator]
    assert marks_in(
        "template <class S>\nstatic MPK_FN void load(LoadContext<S>& c) {\n  x();\n}\nvoid other() {}\n"
    ) == [(2, 4, "load")]
    assert source_of(["x"], ["no such operator"], None, "cpu") is None


@pytest.mark.parametrize(
    ("model", "batch", "header", "roles"),
    [
        ("qwen3-0.6b", 1, "linear_row", {"load", "ahead", "prepare", "gather", "compute"}),
        ("qwen3-0.6b", 4, "linear_rows", {"load", "ahead", "prepare", "gather", "compute"}),
        ("qwen3-0.6b", 32, "linear_plain", {"compute"}),
    ],
)
def test_of_a_linear_only_the_way_it_takes_is_marked(model: str, batch: int, header: str, roles: set[str]) -> None:
    from dataclasses import replace

    import mpklab as mk
    from mpklab import models
    from mpklab.widgets.source import LINEAR_PATHS, source_of

    graph = models.decode_graph(replace(models.named(model), layers=1), context=64, batch=batch)
    schedule = mk.assign(mk.lower(graph, mk.Machine.named("h200")))
    operators = schedule.tasks.operators
    found = source_of([o.name for o in operators], [o.op for o in operators], schedule, "cuda")
    assert found is not None
    meta, columns = found
    stems = [Path(f["name"]).stem for f in meta["files"]]
    assert set(LINEAR_PATHS) <= set(stems)  # the others can be read, and are not marked
    for operator, marks in zip(operators, columns["marks_of"].values, strict=True):
        if operator.op != "linear":
            continue
        own = [(stems[file], what) for file, _, _, what in meta["marks"][marks] if what != "variant"]
        assert {stem for stem, _ in own} & set(LINEAR_PATHS) == {header}
        assert {what for _, what in own} == roles


def test_a_timeline_holds_each_lanes_own_error_bar():
    profile = open_profile("h200-qwen3-0.6b-dynamic")
    columns = profile_timeline(profile).lanes.columns
    loader = columns["row_role"].values == 1
    error = columns["row_error"].values
    health = frames.health(profile).set_index(["worker", "role"])["residual_ns"]
    for lane, row in ((True, "loader"), (False, "compute")):
        worker = columns["row_worker"].values[loader == lane]
        expected = np.sqrt(2) * health.xs(row, level="role")[worker]
        assert np.allclose(error[loader == lane], expected)
    assert error[loader].max() > 5 * np.median(error)  # some loaders left few anchors
    spans = make_spans(300, 4)
    with pytest.raises(ProfileError, match="a row per span"):
        timeline(spans, error_ns=np.zeros((3, 3)))
