"""Tokens drawn from given logits on any machine, what transformers leaves of the same logits, and tests of distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mpklab.graph import Graph, GraphBuilder
from mpklab.machine import Machine
from mpklab.ops.sample import COLUMNS, SEED_WORDS, seen_words
from mpklab.run import Kernel, build
from mpklab.schedule import assign
from mpklab.tasks import lower

FALSE_ALARM = 1e-6  # how often a distribution test fails a correct program, over seeds
Rule = tuple[float, float, float, float, float]
PLAIN: Rule = (1.0, 0, 1.0, 0.0, 1.0)
# temperature, top_k, top_p, min_p, repetition_penalty
RULES: tuple[Rule, ...] = (
    (1.0, 50, 1.0, 0.0, 1.0),
    (0.7, 0, 0.9, 0.0, 1.0),
    (1.0, 0, 1.0, 0.05, 1.0),
    (0.6, 20, 0.95, 0.0, 1.0),
    (1.3, 200, 0.8, 0.02, 1.2),
    (1.0, 1, 1.0, 0.0, 1.0),
    (0.3, 0, 0.999, 0.0, 1.5),
    (2.0, 700, 1.0, 0.001, 0.8),
    (1.0, 0, 0.05, 0.0, 1.0),
    (0.9, 5000, 0.99, 0.0, 1.1),
)


def graph(rows: int, vocab: int, dtype: str = "float32") -> Graph:
    """Logits given, a token and the cut for each row."""
    g = GraphBuilder("draw")
    rules = {
        "sampling": g.input("sampling", (rows, len(COLUMNS))),
        "seed": g.input("seed", (rows, SEED_WORDS), "int32"),
        "position": g.input("position", (rows,), "int32"),
        "seen": g.state("seen", (rows, seen_words(vocab)), "int32"),
    }
    made = g.sample_partial("parts", x=g.input("logits", (rows, vocab), dtype), **rules)
    parts = dict(zip(("value", "index", "score", "token", "words"), made, strict=True))
    g.sample_reduce("chosen", **parts, **rules, role="output")
    return g.build()


def kernel(machine: Machine, rows: int, vocab: int, parts: int | None = None) -> Kernel:
    passes = (f"split_sample:{parts or machine.workers}",)
    return build(assign(lower(graph(rows, vocab), machine, passes=passes)))


def bits(tokens: Sequence[Sequence[int]], vocab: int) -> torch.Tensor:
    """`seen` for each row."""
    seen = torch.zeros(len(tokens), seen_words(vocab), dtype=torch.int64)
    for row, ids in zip(seen, tokens, strict=True):
        for i in set(ids):
            row[i // 32] |= 1 << (i % 32)
    return seen.to(torch.int32)


def drawn(
    kernel: Kernel,
    logits: torch.Tensor,
    rules: Sequence[Rule],
    seed: int = 0,
    position: int | torch.Tensor = 0,
    request: int | torch.Tensor = 0,
    seen: Sequence[Sequence[int]] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens and the cuts."""
    rows, vocab = logits.shape
    words = torch.zeros(rows, SEED_WORDS, dtype=torch.int64)
    words[:, 0], words[:, 1], words[:, 2] = seed & 0xFFFFFFFF, seed >> 32, request
    given: dict[str, Any] = {
        "logits": logits,
        "sampling": torch.tensor(rules, dtype=torch.float32),
        "seed": words.to(torch.int32),
        "position": torch.zeros(rows, dtype=torch.int32) + torch.as_tensor(position, dtype=torch.int32),
        "seen": bits(seen or [[]] * rows, vocab),
    }
    on = "cuda" if kernel.backend == "cuda" else "cpu"
    result = kernel.run({name: value.to(on) for name, value in given.items()})
    return result["chosen"].cpu(), result["chosen.cut"].cpu()


def score(logits: torch.Tensor, rule: Rule, seen: Sequence[int]) -> torch.Tensor:
    """One row's logits penalised and tempered by transformers, in float32."""
    import transformers

    given, ids = logits[None].clone(), torch.tensor([list(seen)], dtype=torch.long)
    if rule[4] != 1.0:
        given = transformers.RepetitionPenaltyLogitsProcessor(rule[4])(ids, given)
    return transformers.TemperatureLogitsWarper(rule[0])(ids, given)[0]


def survivors(logits: torch.Tensor, rule: Rule, seen: Sequence[int], exact: bool = True) -> torch.Tensor:
    """bool [vocab]: what transformers' filters leave of one row, their softmax and sums in float64 when `exact`."""
    import transformers

    z, ids = score(logits, rule, seen)[None], torch.tensor([list(seen)], dtype=torch.long)
    z = z.double() if exact else z
    _, top_k, top_p, min_p, _ = rule
    if top_k:
        z = transformers.TopKLogitsWarper(int(top_k))(ids, z)
    if top_p < 1:
        z = transformers.TopPLogitsWarper(top_p)(ids, z)
    if min_p:
        z = transformers.MinPLogitsWarper(min_p)(ids, z)
    return z[0].isfinite()


def some_logits(rows: int, vocab: int, seed: int) -> torch.Tensor:
    """float32 rows from nearly flat to sharp, the way models make them: a bell with a few tokens far above."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, vocab, generator=g)
    x[:, torch.randint(0, vocab, (12,), generator=g)] += torch.rand(12, generator=g) * 5
    return x * torch.tensor([0.2, 1.0, 2.5, 6.0]).repeat(-(-rows // 4))[:rows, None]


def p_value(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Chi-square: how likely a deviation as large as this is for draws from these probabilities; rare ones are pooled."""
    expected = probabilities.double() * counts.sum()
    large = expected >= 5
    seen = torch.cat([counts[large].double(), counts[~large].sum()[None].double()])
    wanted = torch.cat([expected[large], expected[~large].sum()[None]])
    if wanted[-1] < 1:
        assert seen[-1] <= 12  # of what is expected less than once in all: a chance below 1e-9
        seen, wanted = seen[:-1], wanted[:-1] / wanted[:-1].sum() * seen[:-1].sum()
    statistic = ((seen - wanted).square() / wanted).sum()
    freedom = torch.tensor((len(seen) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


def held_to_transformers(kernel: Kernel, rows: int, vocab: int, seed: int) -> None:
    """Of every row exactly those survive that transformers leaves, and the token is one of them.

    Only where transformers' own float32 sums decide (they are off by up to 1e-5 in a large vocabulary) may its filters
    in float32 say something else, and then only about tokens whose cumulative probability is that near to top_p.
    """
    logits = some_logits(rows, vocab, seed)
    g = torch.Generator().manual_seed(seed)
    seen = [torch.randint(0, vocab, (60,), generator=g).tolist() for _ in range(rows)]
    rules = [RULES[i % len(RULES)] for i in range(rows)]
    tokens, cuts = drawn(kernel, logits, rules, seed, seen=seen)
    for row in range(rows):
        z = score(logits[row], rules[row], seen[row])
        kept = z >= cuts[row]
        assert kept.equal(survivors(logits[row], rules[row], seen[row])), (row, rules[row])
        assert kept[tokens[row]]
        single = survivors(logits[row], rules[row], seen[row], exact=False)
        odd = z[kept != single].double()
        if len(odd):
            assert rules[row][2] < 1
            weight = torch.exp(z.double())
            top_k = int(rules[row][1]) or vocab
            total = weight.sort(descending=True).values[:top_k].sum()
            above = torch.stack([weight[z > x].sum() / total for x in odd])
            assert (above - rules[row][2]).abs().max() < 1e-5


def many(kernel: Kernel, logits: torch.Tensor, rule: Rule, launches: int, seed: int = 1) -> torch.Tensor:
    """Tokens [launches, rows]: rows are requests, launches positions."""
    rows = 256
    given, requests = logits.expand(rows, -1).contiguous(), torch.arange(rows)
    return torch.stack(
        [drawn(kernel, given, [rule] * rows, seed, position=p, request=requests)[0] for p in range(launches)]
    )
