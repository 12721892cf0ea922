"""Known answers on real runs: what a test hook delays is later by so much, nothing else changes, and `explain` sees it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import mpklab as mk
from mpklab.analysis import explain, imbalance
from mpklab.bench.decode import reset, start
from mpklab.bench.known import MOVED, heaviest
from mpklab.codegen import Delay
from mpklab.frames import spans, tasks

CONTEXT, STEPS, LATE_NS = 64, 12, 400_000


@pytest.fixture(scope="module")
def kernel():
    model = mk.models.random("tiny")
    lowered = mk.lower(model.decode_graph(context=CONTEXT + 16), mk.Machine.cpu(2))
    return mk.build(mk.assign(lowered), weights=model)


def launched(kernel):
    """A recording of level 2 and the logits."""
    session = start(kernel, 1, CONTEXT, STEPS)
    reset(session, CONTEXT - STEPS)
    return session.launch(STEPS, profile=2).profile, session.tensors["logits"].clone()


def delayed(kernel, **where):
    return replace(kernel, _libraries={}, delay=Delay(LATE_NS, **where))


@pytest.mark.parametrize("where", MOVED)
def test_a_delay_moves_what_it_should(kernel, where):
    operator = next(o for o in kernel.schedule.tasks.operators if o.op == "embedding")
    task = int(kernel.schedule.tasks.tasks_of(operator.name)[0])
    before, same = launched(kernel)
    after, logits = launched(delayed(kernel, task=task, signals=where == "signals"))
    assert torch.equal(same, logits)

    def shift(phase):  # of the quickest iterations: a busy machine takes a thread's core away in some, for milliseconds
        found = [spans(p).query(f"task == {task} and phase == '{phase}'")["dur_ns"].min() for p in (before, after)]
        return found[1] - found[0]

    held_up, other = ("execute", "signal") if where == "execution" else ("signal", "execute")
    assert LATE_NS * 0.8 < shift(held_up) < LATE_NS * 3, shift(held_up)
    assert abs(shift(other)) < LATE_NS / 2


def test_a_slow_worker_is_named(kernel):
    profile, _ = launched(delayed(kernel, worker=1))
    table = imbalance(profile, "worker")
    assert table["worker"].iloc[0] == 1 and table["slowdown"].iloc[0] > 2
    assert "slow_worker" in explain(profile, gains=False)["kind"].tolist()


def test_an_operator_in_one_tile_is_named(kernel):
    lowered, machine = kernel.schedule.tasks, kernel.schedule.tasks.machine
    name = heaviest(kernel.schedule)
    one = {o.name: 1 << 20 for o in lowered.operators if o.name.endswith(name)}
    cut = mk.lower(kernel.model.decode_graph(context=CONTEXT + 16), machine, tiles=one)
    assert {len(cut.tasks_of(n)) for n in one} == {1}
    mine = tuple(int(cut.tasks_of(n)[0]) for n in one)  # of a model so small that nobody would have to wait for them
    late = delayed(mk.build(mk.assign(cut), weights=kernel.model), task=mine)
    for _ in range(40):  # where others slow one of the cores, that is said instead, and rightly
        found = explain(launched(late)[0], top=50, gains=False)
        if "slow_worker" not in set(found["kind"]):
            break
    said = found.loc[found["kind"] == "few_tiles", "finding"].tolist()
    assert any(s.startswith(f"{name} is cut into 1 tile for 2 workers") for s in said), said


def test_what_if_of_other_tiles_counts_them(kernel):
    profile, _ = launched(kernel)
    table = profile.what_if(tiles={"linear": 16})
    assert np.isfinite(table["makespan_ns"]).all() and table["change"].iloc[-1] == "linear in tiles of 16"
    same = {o.name: 0 for o in kernel.schedule.tasks.operators}
    with pytest.raises(mk.ProfileError, match="cannot be cut"):
        profile.what_if(tiles=same)
    with pytest.raises(mk.ProfileError, match="together"):
        profile.what_if(tiles={"linear": 16}, mode="dynamic")
    assert len(tasks(profile))
