"""What `mpklab bench view` measures is there to be measured: its subjects have the sizes they claim, and frames are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from synthetic import make_spans, make_tasks

from mpklab.bench import view as bench
from mpklab.widgets.task_dag import task_dag
from mpklab.widgets.timeline import timeline


def test_subjects_have_the_sizes_they_claim() -> None:
    assert 10_000 <= len(bench.graph(bench.DAG_LAYERS["10^4"])) < 12_000
    spans = bench.repeated("h200-qwen3-8b", 2)
    assert 2 * 112_000 <= len(spans) < 2 * 116_000 and bench.ITERATIONS["10^6"] * len(spans) / 2 > 1_000_000
    ran = spans[(spans["role"] == "compute") & (spans["phase"] != "iteration") & (spans["worker"] == 7)]
    ran = ran.sort_values("begin_ns")
    assert (ran["begin_ns"].to_numpy()[1:] >= ran["end_ns"].to_numpy()[:-1]).all()
    first, second = (spans.loc[spans["iteration"] == k, "dur_ns"].to_numpy() for k in (0, 1))
    assert (first != second).mean() > 0.3  # else the second would be sent for nothing


def test_frames_are_timed_while_a_page_moves(chromium: Any, tmp_path: Path) -> None:
    for view in (task_dag(make_tasks(2, 8)), timeline(make_spans(300, 4))):
        found = bench.frames(chromium, view, tmp_path)["frames"]
        for kind in ("all", "part", "zoom"):
            assert len(found[kind]["gaps"]) == 40 and len(found[kind]["draws"]) >= 30, kind
            assert 0 < np.median(found[kind]["draws"]) < np.sum(found[kind]["gaps"])
    facts = bench.prepared(lambda: task_dag(make_tasks(2, 8)))
    assert facts["size"] == 120 and 0 < facts["layout_s"] and 10_000 < facts["sent_bytes"] < 80_000
