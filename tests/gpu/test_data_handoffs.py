"""Words that say themselves when they are there: the same bits as by counters, lost ones told, NaN not taken for missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_step import CONTEXT, after_steps, assert_same, step

import mpklab as mk
from mpklab.bench.decode import start
from mpklab.errors import DeadlockError


def built(handoff: Any, name: str = "qwen3-0.6b", layers: int = 3, policy: str = "locality") -> Any:
    model = mk.models.random(name, device="cuda")
    graph = model.decode_graph(context=CONTEXT, layers=layers)
    return mk.build(mk.assign(mk.lower(graph, mk.Machine.cuda(), handoff=handoff), policy=policy), weights=model)


@pytest.fixture(scope="module")
def by_words() -> Any:
    kernel = built("data")
    assert kernel.schedule.handed
    return kernel


@pytest.mark.parametrize("name", ["qwen3-0.6b", "llama-3.2-1b", "qwen3-8b"])
def test_the_bits_are_those_of_counters(name: str) -> None:
    expected = after_steps(built("counter", name), steps=33)
    assert_same(after_steps(built("data", name), steps=33), expected)


def test_each_operator_by_itself_and_other_places(by_words: Any) -> None:
    expected = after_steps(by_words)
    for operator in ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"):
        assert_same(after_steps(built({f"layer{i}.{operator}": "data" for i in range(3)})), expected)
    assert_same(after_steps(built("data", policy="round_robin")), expected)


def test_levels_launches_and_prefetch_change_no_bit(by_words: Any) -> None:
    expected = after_steps(by_words)
    for level in (1, 2, 3):
        assert_same(after_steps(by_words, level), expected)
    by_words.prefetch = False
    assert_same(after_steps(by_words), expected)
    by_words.prefetch = True
    prompt = [5, 17, 300, 4, 99]
    whole = by_words.generate(prompt, max_new_tokens=20)
    assert by_words.generate(prompt, max_new_tokens=20, chunk=3).tokens == whole.tokens


def test_a_nan_is_no_missing_word(by_words: Any) -> None:
    """Of every payload: what is stored comes out of a conversion, which makes all NaN one."""
    session = start(by_words, 1, CONTEXT, 40)
    table = session.tensors["embed.weight"]
    kept = table[7].clone()
    try:
        table.view(torch.int16)[7] = -1  # 0xffff, the half of a missing word
        step(by_words, session, 300, steps=3, wait_limit_s=1.0)
        assert session.tensors["logits"].isnan().all()
    finally:
        table[7] = kept


def test_lost_words_are_told_by_their_task(by_words: Any) -> None:
    expected = after_steps(by_words)
    tasks = by_words.schedule.tasks
    session = start(by_words, 1, CONTEXT, 40)
    for operator, tile in (("layer1.o_proj", 17), ("layer2.qkv_proj", 100), ("layer1.gate_up_proj", 0)):
        lost = tasks.tasks_of(operator)[tile]
        with pytest.raises(DeadlockError) as caught:
            step(by_words, session, 300, steps=6, drop_signals=lost, wait_limit_s=0.5)
        told = str(caught.value)
        assert f"dropped the signals of {tasks.task_name(lost)}" in told
        assert f"its data have not come. Its producers are {tasks.task_name(lost)} (" in told or (
            "the first that is late is event" in told and told.count(operator) >= 2
        ), told
    assert_same(after_steps(by_words), expected)


def test_recorded_waits_last_until_the_words_came(by_words: Any) -> None:
    pytest.importorskip("pandas")
    from mpklab import frames

    session = start(by_words, 1, CONTEXT, 40)
    profile = step(by_words, session, 300, steps=4, profile=2).profile
    spans = frames.spans(profile)
    assert not spans["truncated"].any()
    waits = spans[spans["phase"] == "wait"]
    assert by_words.graph.operands_of("advance")  # a decode step
    assert (waits["op"].value_counts()["layer1.down_proj"]) == 4 * len(
        by_words.schedule.tasks.tasks_of("layer1.down_proj")
    )
    assert waits["dur_ns"].min() >= 0
