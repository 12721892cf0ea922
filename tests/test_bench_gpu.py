"""What the GPU benches do with their samples, on a machine that has none."""

from __future__ import annotations

import time
from typing import Any

import pytest

import mpklab as mk
from mpklab.bench import ablate, decode
from mpklab.errors import EnvError
from mpklab.models.catalog import named
from mpklab.models.decoder import decode_graph
from mpklab.verifier import verify


def outcome() -> decode.Outcome:
    ours = decode.Contender("mpklab", lambda: 0.0, [1.0, 2.0, 1.0, 1.0], [0.5, 0.25, 0.5, 0.5])
    other = decode.Contender("CUDA graph", lambda: 0.0, [3.0, 6.0, 3.3, 2.7], [0.2, 0.1, 0.2, 0.2])
    return decode.Outcome("m", 1, 512, 2e9, 1.0, 0.0, [ours, other], [4.0] * 4, [])


def test_ratios_are_of_the_same_round() -> None:
    ours, other = outcome().results()
    assert (ours["ratio"].low, ours["ratio"].high) == (1.0, 1.0)
    assert other["ratio"].median == pytest.approx(3.0) and 2.7 <= other["ratio"].low <= other["ratio"].high <= 3.3
    assert ours["tb_per_s"] == pytest.approx(2e9 / 1.0 / 1e9)
    assert [len(row) for row in decode.rows(outcome())] == [len(decode.HEADERS)] * 2


def test_bytes_of_a_step_hold_weights_once_and_every_cache() -> None:
    config = named("qwen3-8b")
    graph = decode_graph(config, context=528, batch=8)
    moved = decode.bytes_per_step(graph, config, 8, 504)
    cache = 8 * 36 * 2 * 8 * 128 * 2 * 504
    assert moved - cache == pytest.approx(2 * (8.19e9 - 151936 * 4096), rel=0.01)


def test_what_takes_too_long_is_given_up() -> None:
    with pytest.raises(EnvError, match="longer"), decode.time_limit(0.05):
        time.sleep(60)
    with decode.time_limit(600):
        pass


def test_every_change_makes_a_schedule_that_can_be_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mk.Machine, "cuda", staticmethod(lambda workers=None: mk.Machine.named("h200", workers)))
    machine = mk.Machine.named("h200")
    graph = decode_graph(named("qwen3-0.6b"), context=528, layers=2)
    keys: dict[Any, str] = {}
    for name, change in ablate.changes(graph, machine).items():
        made = verify(change.make())
        key = (made.tasks.plan.hash, made.hash, made.workers, change.launch, change.prefetch)
        assert key not in keys, f"{name} is {keys[key]} again"
        assert "," not in name, "--only takes names between commas"
        keys[key] = name
