"""Known answers on real runs: what a test hook delays is later by so much, nothing else changes, and `explain` sees it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from schedules import Op, Run, make

import mpklab as mk
from mpklab.analysis import explain, imbalance
from mpklab.bench.decode import reset, start
from mpklab.bench.known import DELAY_NS, MOVED, MOVED_BY_WORDS, _shift, heaviest, symptoms
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


LATENCY, SLACK, WORKERS = 300, 40, 4  # ns, ns; the last but one is late


def recording(where, late, words):
    """Three iterations in which one of four tiles of `embed` is late by so much after its outputs are stored: by words
    nobody waits for that but its own worker, by counters all do. `last` waits for all, and the next iteration for it."""
    ops = [
        Op("embed", WORKERS, before=("last",), kind="embedding", words=words),
        Op("next", WORKERS, after=("embed",)),
        Op("last", after=("next",)),
    ]
    runs, queues, now = late if where == "execution" else 0, [], 0
    signals, stored = late - runs, 1000
    for _ in range(3):
        told = now + stored + LATENCY if words else now + stored + late + LATENCY
        queue = []
        for w in range(WORKERS):
            own = w == WORKERS - 2
            execute = stored - SLACK * (w != 0) + (runs + SLACK) * own  # others wait for the first one, too
            first = Run("embed", w, execute, signal=signals * own)
            queue.append([first, Run("next", w, 500, until=now if words and own else told)])
        queue[0].append(Run("last", 0, 50))
        queues.append(queue)
        ready = now + stored + late if words else told
        now = ready + 500 + LATENCY + 50 + LATENCY  # `last` ends and is noticed
    return make(ops, queues, latency=LATENCY)


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("where", MOVED)
def test_the_symptoms_of_a_delay_are_those_put_in(where, words):
    task, expected = WORKERS - 2, (MOVED_BY_WORDS if words else MOVED)[where]
    seen = [symptoms(recording(where, times * DELAY_NS, words), "embed", task) for times in (1, 2)]
    moved = {what: _shift(seen[0][what], seen[1][what])[0] for what in expected}
    assert moved == pytest.approx({what: times * DELAY_NS for what, times in expected.items()}, abs=2)
    if words:  # they wait for the first one's words, and for no more
        assert seen[1]["producer"] == pytest.approx([SLACK] * 2, abs=2)
        assert seen[1]["latency"] == pytest.approx([LATENCY] * 2, abs=2)


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
