"""Drawing on the GPU: the CPU's tokens and survivors bit for bit, transformers' filters, and text that streams."""

from __future__ import annotations

import time
from typing import Any

import draws
import pytest
import torch
from draws import FALSE_ALARM, held_to_transformers, many

import mpklab as mk

PROMPT = [5, 9, 200, 17]
WARM: dict[str, Any] = {"temperature": 0.8, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 3}


@pytest.mark.parametrize("vocab", [1003, 151936])
def test_the_same_bits_as_on_the_cpu(vocab: int) -> None:
    """Tokens and cuts from equal logits, however they are cut into parts; a thousand candidates and many more."""
    rows = 24 if vocab < 10_000 else 12
    logits = draws.some_logits(rows, vocab, seed=2)
    rules = [(*draws.RULES, draws.PLAIN, (0.0, 0, 1.0, 0.0, 1.4))[i % 12] for i in range(rows)]
    seen = [[i, 3 * i, 100 + i] for i in range(rows)]
    how = {"seed": 1 << 40 | 77, "position": torch.arange(rows), "request": 3, "seen": seen}
    tokens, cuts = draws.drawn(draws.kernel(mk.Machine.cpu(2), rows, vocab, parts=3), logits, rules, **how)
    for machine, parts in ((mk.Machine.cuda(), None), (mk.Machine.cuda(20), 37), (mk.Machine.cuda(1), 1)):
        found = draws.drawn(draws.kernel(machine, rows, vocab, parts), logits, rules, **how)
        assert found[0].equal(tokens) and found[1].equal(cuts), (parts, found[0] - tokens)


def test_survivors_are_those_of_transformers() -> None:
    pytest.importorskip("transformers")
    held_to_transformers(draws.kernel(mk.Machine.cuda(), 10, 151936), 10, 151936, seed=5)


@pytest.mark.parametrize("rule", [draws.PLAIN, draws.RULES[0], draws.RULES[3]], ids=str)
def test_draws_follow_the_probabilities(rule: draws.Rule) -> None:
    pytest.importorskip("transformers")
    vocab = 400
    logits = draws.some_logits(3, vocab, seed=9)[2]
    tokens = many(draws.kernel(mk.Machine.cuda(), 256, vocab, parts=9), logits, rule, launches=40)
    kept = draws.survivors(logits, rule, [])
    z = torch.where(kept, draws.score(logits, rule, []).double(), -torch.inf)
    counts = torch.bincount(tokens.flatten().long(), minlength=vocab)
    assert not counts[~kept].any()
    assert draws.p_value(counts, torch.softmax(z, -1)) > FALSE_ALARM


@pytest.fixture(scope="module")
def kernel() -> Any:
    model = mk.models.random("qwen3-0.6b", device="cuda", eos=())
    return mk.build(mk.assign(mk.lower(model.decode_graph(context=1024), mk.Machine.cuda())), weights=model)


def test_generation_is_reproducible_and_sessions_go_on(kernel: Any) -> None:
    expected = kernel.generate(PROMPT, 60, **WARM).tokens
    assert len(set(expected)) > 20 and expected != kernel.generate(PROMPT, 60).tokens
    assert kernel.generate(PROMPT, 60, chunk=7, **WARM).tokens == expected
    assert kernel.generate(PROMPT, 60, profile=2, **WARM).tokens == expected
    assert kernel.generate(PROMPT, 60, **{**WARM, "seed": 4}).tokens != expected
    other = mk.build(mk.assign(kernel.schedule.tasks, policy="round_robin"), weights=kernel.model)
    assert other.generate(PROMPT, 60, **WARM).tokens == expected
    session = kernel.open_session(**WARM)
    assert kernel.generate(PROMPT, 60, session=session, **WARM).tokens == expected
    assert session.tokens() == [*PROMPT, *expected] and session.cached() == [*PROMPT, *expected[:-1]]
    more = [*PROMPT, *expected, 99, 98, 97]
    assert session.holds(more) == len(PROMPT) + 59
    assert len(kernel.generate(more, 20, session=session, **WARM).tokens) == 20


def test_text_streams_while_the_kernel_runs(kernel: Any) -> None:
    """Tokens are told long before the one launch that makes them all is over."""
    for rules in ({}, WARM):
        told: list[float] = []
        kernel.generate(PROMPT, 900, **rules)
        begin = time.perf_counter()
        made = kernel.generate(PROMPT, 900, on_token=lambda *_: told.append(time.perf_counter() - begin), **rules)  # noqa: B023
        assert len(told) == len(made.tokens) == 900
        assert told[-1] - told[0] > 0.5 * made.seconds


def test_ctrl_c_keeps_the_session(kernel: Any) -> None:
    session = kernel.open_session(**WARM)
    seen: list[int] = []

    def stop(token: int, _: str) -> None:
        seen.append(token)
        if len(seen) > 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kernel.generate(PROMPT, 900, session=session, on_token=stop, **WARM)
    kept = session.tokens()
    assert len(PROMPT) + 50 <= len(kept) < len(PROMPT) + 900
    assert kept == [*PROMPT, *kernel.generate(PROMPT, 900, **WARM).tokens][: len(kept)]
    assert len(kernel.generate([*kept, 9], 5, session=session, **WARM).tokens) == 5
