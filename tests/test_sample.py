"""Drawn tokens: transformers' survivors, the right distribution, numbers that depend on nothing but what they should.

Distribution tests are chi-square tests at FALSE_ALARM: a correct program fails one with that probability for a new seed,
and never for the seeds that stand here. That they can fail is tested too.
"""

from __future__ import annotations

import ctypes
import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import draws
import numpy as np
import pytest
import tiny
import torch
from draws import FALSE_ALARM, PLAIN, RULES, held_to_transformers, many
from host_kit import compile_source
from test_run import counted_compilers, schedule_of

from mpklab.dims import Dim
from mpklab.errors import RunError
from mpklab.machine import Machine
from mpklab.reference import execute
from mpklab.reference.sampling import random_words
from mpklab.run import Kernel, Sampling, build
from mpklab.run.sampling import drawing
from mpklab.schedule import assign
from mpklab.tasks import lower

PROMPT = [5, 6, 7]
WARM: dict[str, Any] = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.2, "seed": 3}


# --- numbers ---

NUMBERS = """
#include "mpklab/ops/sample.hpp"
using namespace mpk::sample;
extern "C" void logs(const float* x, float* y, long n) { for (long i = 0; i < n; ++i) y[i] = mpk::sample::log(x[i]); }
extern "C" void noises(const unsigned* x, float* y, long n) { for (long i = 0; i < n; ++i) y[i] = noise(x[i]); }
extern "C" void weights(const float* x, int* octaves, unsigned* mantissas, long n) {
  for (long i = 0; i < n; ++i) octaves[i] = octave(x[i]), mantissas[i] = mantissa(x[i], octaves[i]);
}
extern "C" void words(const unsigned* k, unsigned* out) {
  Rules rules{};
  rules.seed_low = k[0], rules.seed_high = k[1], rules.position = k[3], rules.request = k[4];
  unsigned four[4];
  random_words(rules, k[2], four);
  for (int i = 0; i < 4; ++i) out[i] = four[i];
}
"""


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("numbers")
    library = ctypes.CDLL(str(compile_source(NUMBERS, folder / "numbers.so", "-shared")))

    def call(name: str, *arrays: np.ndarray, n: int | None = None) -> None:
        count = () if n is None else (ctypes.c_long(n),)
        getattr(library, name)(*(ctypes.c_void_p(a.ctypes.data) for a in arrays), *count)

    return call


def test_random_words_are_philox(numbers: Any) -> None:
    """The published answer for a counter and a key of zeros; elsewhere C++ and NumPy agree."""
    out = np.zeros(4, np.uint32)
    numbers("words", np.zeros(5, np.uint32), out)
    published = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert out.tolist() == published
    assert random_words(torch.zeros(3, dtype=torch.int32), 0, torch.arange(4)).tolist() == published
    draw = np.random.default_rng(0)
    for _ in range(50):
        key = draw.integers(0, 2**32, 5, dtype=np.uint64).astype(np.uint32)
        key[2] %= 1 << 17
        numbers("words", key, out)
        seed = torch.from_numpy(key[[0, 1, 4]].astype(np.int32))
        tokens = torch.arange(4) + 4 * int(key[2])
        assert out.tolist() == random_words(seed, int(key[3]), tokens).tolist()


def test_logarithms_and_weights(numbers: Any) -> None:
    """Within a few units in the last place of float64 everywhere they are used; octaves rise with scores."""
    x = np.exp(np.linspace(-24, 4, 1_000_003)).astype(np.float32)
    y = np.empty_like(x)
    numbers("logs", x, y, n=len(x))
    exact = np.log(x.astype(np.float64))
    assert (np.abs(y - exact) <= 2e-7 * np.abs(exact) + 1e-37).all()
    words = np.concatenate([np.arange(1000), np.linspace(0, 2**32 - 1, 1_000_003), 2**32 - 1 - np.arange(1000)])
    words = words.astype(np.uint64).astype(np.uint32)
    numbers("noises", words, y := np.empty(len(words), np.float32), n=len(words))
    exact = -np.log(-np.log1p(-(words.astype(np.float64) + 0.5) / 2.0**32))
    assert (np.abs(y - exact) <= 3e-7 * np.maximum(1.0, np.abs(exact))).all()
    z = np.sort(np.concatenate([np.linspace(-200, 200, 1_000_003), np.linspace(-1e-3, 1e-3, 99)]).astype(np.float32))
    octaves, mantissas = np.empty(len(z), np.int32), np.empty(len(z), np.uint32)
    numbers("weights", z, octaves, mantissas, n=len(z))
    assert (np.diff(octaves) >= 0).all()
    found = mantissas / 2.0**24 * np.exp2(octaves.astype(np.float64))
    assert (np.abs(found / np.exp(z.astype(np.float64)) - 1) <= 3e-7).all()


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_a_team_of_threads_draws_as_one(tmp_path: Path, sanitizer: str) -> None:
    """What all warps of a block do together, done by threads: equal bits at every stage, and no race."""
    source = Path(__file__).parent / "cxx" / "sample_team.cpp"
    flags = ["-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    program = compile_source(source, tmp_path / "team", *flags)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and done.stdout == "0 faults\n", done.stdout + done.stderr[:4000]


# --- who survives ---


@pytest.mark.parametrize("vocab", [300, 49152, 151936])
def test_survivors_are_those_of_transformers(vocab: int) -> None:
    pytest.importorskip("transformers")
    rows = 20 if vocab < 100_000 else 10
    held_to_transformers(draws.kernel(Machine.cpu(2), rows, vocab, parts=5), rows, vocab, seed=vocab)


def test_the_order_of_filters_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    module = tiny.model().to_transformers()
    asked = dict(zip(("temperature", "top_k", "top_p", "min_p", "repetition_penalty"), RULES[4], strict=True))
    config = transformers.GenerationConfig(do_sample=True, **{**asked, "top_k": int(asked["top_k"])})
    made = module._get_logits_processor(config, input_ids_seq_length=3, logits_processor=[], device="cpu")
    names = ["RepetitionPenaltyLogitsProcessor", "TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper"]
    assert [type(p).__name__ for p in made] == [*names, "MinPLogitsWarper"]


def test_equal_scores_share_a_fate() -> None:
    """At top-k as in transformers; at top-p transformers would cut through them in the order its sort left."""
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]]).repeat(3, 1)
    rules = [(1.0, 2, 1.0, 0.0, 1.0), (1.0, 0, 0.6, 0.0, 1.0), (1.0, 0, 0.3, 0.0, 1.0)]
    _, cuts = draws.drawn(draws.kernel(Machine.cpu(1), 3, 6), logits, rules)
    assert cuts.tolist() == [2.0, 2.0, 3.0]


def test_what_is_no_finite_number() -> None:
    """-inf is never drawn while there is anything else; NaN and inf count as the largest number."""
    inf, nan = float("inf"), float("nan")
    rows = [[-inf, 1.0, -inf, 0.5], [0.0, inf, 3.0, 1.0], [0.0, nan, 3.0, 1.0], [-inf] * 4, [2.0, nan, 3.0, nan]]
    allowed = [{1, 3}, {1}, {1}, {0, 1, 2, 3}, {1, 3}]
    kernel = draws.kernel(Machine.cpu(2), 5, 4)
    for rule in (PLAIN, (1.0, 3, 1.0, 0.0, 1.0), (0.5, 0, 0.9, 0.0, 1.0)):
        for position in range(20):
            tokens, _ = draws.drawn(kernel, torch.tensor(rows), [rule] * 5, position=position)
            assert all(int(t) in those for t, those in zip(tokens, allowed, strict=True)), (rule, tokens)
    tokens, _ = draws.drawn(kernel, torch.tensor(rows), [(0.0, 0, 1.0, 0.0, 1.0)] * 5)
    assert tokens.tolist() == [1, 1, 1, 0, 1]  # as torch.argmax: NaN first, then the lowest index


# --- how often each ---


@pytest.mark.parametrize("rule", [PLAIN, (0.6, 0, 1.0, 0.0, 1.0), *RULES[:5]], ids=str)
def test_draws_follow_the_probabilities(rule: draws.Rule) -> None:
    pytest.importorskip("transformers")
    vocab = 400
    logits = draws.some_logits(3, vocab, seed=9)[2]
    tokens = many(draws.kernel(Machine.cpu(2), 256, vocab), logits, rule, launches=60)
    kept = draws.survivors(logits, rule, [])
    z = torch.where(kept, draws.score(logits, rule, []).double(), -torch.inf)
    counts = torch.bincount(tokens.flatten().long(), minlength=vocab)
    assert not counts[~kept].any()
    assert draws.p_value(counts, torch.softmax(z, -1)) > FALSE_ALARM


def test_a_wrong_distribution_is_found() -> None:
    """The test above has teeth: a temperature that is ten percent off does not pass it."""
    vocab = 400
    logits = draws.some_logits(3, vocab, seed=9)[2]
    tokens = many(draws.kernel(Machine.cpu(2), 256, vocab), logits, PLAIN, launches=60)
    counts = torch.bincount(tokens.flatten().long(), minlength=vocab)
    assert draws.p_value(counts, torch.softmax(logits.double() / 1.1, -1)) < FALSE_ALARM
    assert draws.p_value(counts, torch.softmax(logits.double(), -1)) > FALSE_ALARM


def test_draws_do_not_know_of_each_other() -> None:
    """Pairs of neighbours in position, in request and in seed are as frequent as the product of their parts."""
    logits = torch.tensor([0.3, -0.4, 0.9, 0.0, 0.1, -1.0, 0.5, 0.2])
    kernel = draws.kernel(Machine.cpu(2), 256, 8)
    first, second = (many(kernel, logits, PLAIN, 60, seed) for seed in (1, 2))
    p = torch.softmax(logits.double(), -1)
    both = (p[:, None] * p).flatten()
    for a, b in ((first[:-1:2], first[1::2]), (first[:, :-1:2], first[:, 1::2]), (first, second)):
        counts = torch.bincount((a * 8 + b).flatten().long(), minlength=64)
        assert draws.p_value(counts, both) > FALSE_ALARM


# --- what a draw depends on ---


def test_draws_do_not_depend_on_parts_and_workers() -> None:
    vocab, rows = 3001, 20
    logits, rules = draws.some_logits(rows, vocab, 4), [RULES[i % 10] if i < 15 else PLAIN for i in range(rows)]
    results = []
    for workers, parts in ((1, 1), (2, 2), (2, 7), (3, 48), (8, 61)):
        kernel = draws.kernel(Machine.cpu(workers), rows, vocab, parts)
        results.append(draws.drawn(kernel, logits, rules, seed=11, position=5))
    for tokens, cuts in results[1:]:
        assert tokens.equal(results[0][0]) and cuts.equal(results[0][1])
    values = (logits, rules, 12, 5), (logits, rules, 11, 6), (logits, rules, 11, 5, 1)
    for other in values:  # seed, position, request
        assert not draws.drawn(kernel, *other)[0].equal(results[0][0])


def test_the_oracle_draws_the_same() -> None:
    """Through the whole step, in any order that events allow."""
    model = tiny.model()
    for workers in (1, 3):
        kernel = build(schedule_of(model, workers), weights=model).sampler
        values = tiny.state(kernel.graph)
        for rule in (PLAIN, RULES[4], (0.0, 0, 1.0, 0.0, 1.3)):
            rules = {"sampling": torch.tensor([rule]), "seed": torch.tensor([[7, 1, 0]], dtype=torch.int32)}
            found = kernel.run({**values, **rules}, iterations=5).outputs
            everything = tiny.everything(model, kernel.schedule, {**values, **rules})
            expected = execute(kernel.schedule, everything, iterations=5, seed=workers)
            assert found["advance.generated"].equal(expected["advance.generated"])
            assert found["seen"].equal(expected["seen"])


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    model = tiny.model()
    return build(schedule_of(model), weights=model)


def test_generation_is_reproducible(kernel: Kernel) -> None:
    """The same seed gives the same tokens in pieces, in a batch, under other schedules and when recorded."""
    expected = kernel.generate(PROMPT, 20, **WARM).tokens
    assert expected != kernel.generate(PROMPT, 20).tokens
    assert kernel.generate(PROMPT, 20, **{**WARM, "seed": 4}).tokens != expected
    for chunk in (1, 7):
        assert kernel.generate(PROMPT, 20, chunk=chunk, **WARM).tokens == expected
    recorded = kernel.generate(PROMPT, 20, profile=2, **WARM)
    assert recorded.tokens == expected and kernel.last_profile is recorded.profile
    tasks = kernel.schedule.tasks
    for how in (
        {"policy": "round_robin"},
        {"mode": "dynamic"},
        {"mode": "hybrid", "dynamic": ("attention", "advance")},
    ):
        other = build(assign(tasks, **how), weights=kernel.model)
        assert other.generate(PROMPT, 20, **WARM).tokens == expected
        assert other.sampler.schedule.mode == other.schedule.mode
    batched = build(assign(lower(kernel.model.decode_graph(context=tiny.CONTEXT, batch=Dim("batch", max=3)), Machine.cpu(2))),
                    weights=kernel.model)  # fmt: skip
    made = [g.tokens for g in batched.generate_batch([PROMPT, [9], PROMPT], 20, **WARM)]
    assert made[0] == expected and made[2] != expected  # the third request draws other numbers
    assert "".join(map(str, expected)) == "".join(map(str, batched.generate(PROMPT, 20, **WARM).tokens))


def test_the_drawing_kernel_keeps_the_plan() -> None:
    """What a plan says besides tiles and passes is not lost on the way from the greedy step to the drawn one."""
    model = tiny.model()
    tasks = lower(model.decode_graph(context=tiny.CONTEXT), Machine.cpu(2), barriers=True, pages=5)
    plan = drawing(assign(tasks), model).tasks.plan
    assert plan.barriers and plan.settings == tasks.plan.settings
    for name in ("qkv_proj", "down_proj"):
        assert plan.tilings[f"layer0.{name}"] == tasks.plan.tilings[f"layer0.{name}"]


def test_rules_are_data(monkeypatch: pytest.MonkeyPatch, empty_cache: object) -> None:
    """The greedy kernel knows nothing of sampling; one more kernel serves all rules."""
    starts = counted_compilers(monkeypatch)
    model = tiny.model()
    made = build(schedule_of(model), weights=model)
    made.generate(PROMPT, 3)
    assert len(starts) == 1 and "sample" not in made.source.text
    assert not any("sample" in o.op for o in made.graph.operators)
    for rules in (WARM, {"temperature": 1.0}, {"repetition_penalty": 2.0}, {"temperature": 0.5, "min_p": 0.1}):
        made.generate(PROMPT, 3, **rules)
    assert len(starts) == 2 and made.sampler.weights is made.weights


def test_the_likeliest_token_in_other_words(kernel: Kernel) -> None:
    expected = kernel.generate(PROMPT, 20).tokens
    for rules in ({"temperature": 1.0, "top_k": 1}, {"temperature": 1e-4}, {"temperature": 2.0, "top_p": 1e-9},
                  {"temperature": 1.0, "min_p": 1.0}):  # fmt: skip
        assert kernel.generate(PROMPT, 20, **rules).tokens == expected
    assert kernel.sampler.generate(PROMPT, 20).tokens == expected


def test_repetition_is_penalised_as_in_transformers(kernel: Kernel) -> None:
    """Prompt and answer count; greedy, so that tokens can be compared."""
    pytest.importorskip("transformers")
    module = kernel.model.to_transformers()
    for prompt in (PROMPT, [9, 9, 31, 200]):
        for penalty in (1.3, 3.0, 0.5):
            ids = module.generate(
                torch.tensor([prompt]), max_new_tokens=20, do_sample=False, repetition_penalty=penalty, eos_token_id=-1,
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long), pad_token_id=0,
            )  # fmt: skip
            expected = ids[0, len(prompt) :].tolist()
            assert kernel.generate(prompt, 20, repetition_penalty=penalty).tokens == expected


# --- what is refused ---


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"temperature": -1}, "temperature must be 0 for the likeliest token, or a positive number; it is -1"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"temperature": 1e-6}, "temperature must be 0 or at least 0.0001"),
        ({"temperature": "hot"}, "temperature must be"),
        ({"temperature": None}, "temperature must be"),
        ({"temperature": 1e39}, "temperature must be"),
        ({"temperature": 1, "top_p": 1e-50}, "top_p must be above 0 and at most 1, for all tokens; it is 1e-50"),
        ({"repetition_penalty": 1e-50}, "repetition_penalty must be a positive number"),
        ({"temperature": 1, "top_k": 2.5}, "top_k must be a whole number, not 2.5"),
        ({"temperature": 1, "top_k": -1}, "top_k must be a whole number, 0 for all tokens"),
        ({"temperature": 1, "top_p": 0}, "top_p must be above 0"),
        ({"temperature": 1, "top_p": 1.5}, "top_p must be above 0"),
        ({"temperature": 1, "min_p": 2}, "min_p must be from 0"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a positive number"),
        ({"temperature": 1, "seed": 1 << 64}, "seed must be a whole number of 64 bits"),
        ({"top_k": 5}, "top_k=5 needs a temperature"),
        ({"seed": 5}, "seed=5 needs a temperature"),
        ({"temprature": 1}, "generate takes no 'temprature': did you mean 'temperature'"),
    ],
    ids=str,
)
def test_rules_out_of_range_are_refused(kernel: Kernel, rules: dict[str, Any], says: str) -> None:
    with pytest.raises(RunError, match=says.replace("(", r"\(")):
        kernel.generate(PROMPT, 3, **rules)
    if "temprature" in rules:
        with pytest.raises(RunError, match="generate_batch takes no 'temprature': did you mean 'temperature'"):
            kernel.generate_batch([PROMPT], 3, **rules)


def test_rules_are_float32_whatever_torch_s_default_is(kernel: Kernel) -> None:
    expected = kernel.generate(PROMPT, 10, **WARM).tokens
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert kernel.generate(PROMPT, 10, **WARM).tokens == expected
    finally:
        torch.set_default_dtype(torch.float32)


def test_filters_that_take_nothing_away(kernel: Kernel) -> None:
    """A top_k as large as the vocabulary or larger, and thresholds next to their limits: the tokens of no filter."""
    expected = kernel.generate(PROMPT, 15, temperature=1.0, seed=3).tokens
    vocab = kernel.model.config.vocab
    for rules in (
        {"top_k": vocab},
        {"top_k": 10**6},
        {"top_p": 1 - 1e-9},
        {"top_p": 1},
        {"min_p": 1e-50},
        {"min_p": 0},
    ):
        assert kernel.generate(PROMPT, 15, temperature=1.0, seed=3, **rules).tokens == expected
    assert kernel.generate(PROMPT, 15, temperature=1e30, seed=3).tokens != expected  # all alike, and drawn all the same


@pytest.mark.parametrize("seed", [3, -2, 1 << 63], ids=str)
def test_numbers_of_other_libraries_are_numbers(kernel: Kernel, seed: int) -> None:
    expected = kernel.generate(PROMPT, 5, temperature=0.9, top_k=50, seed=seed).tokens
    theirs = np.uint64(seed) if seed > 0 else np.int64(seed)
    given: dict[str, Any] = {"temperature": np.float64(0.9), "top_k": np.int32(50), "seed": theirs}
    assert kernel.generate(PROMPT, 5, **given).tokens == expected
    assert str(Sampling(**given)) == str(Sampling(temperature=0.9, top_k=50, seed=seed))
    given = {"temperature": torch.tensor(0.9, dtype=torch.float64), "top_k": torch.tensor(50)}
    assert Sampling(**given) == Sampling(temperature=0.9, top_k=50)


def test_a_request_does_not_depend_on_its_neighbours(kernel: Kernel) -> None:
    """In a batch a request is its place, its prompt and the seed: not what else is decoded, nor for how long."""
    graph = kernel.model.decode_graph(context=tiny.CONTEXT, batch=Dim("batch", max=3))
    batched = build(assign(lower(graph, Machine.cpu(2))), weights=kernel.model)
    first = batched.generate_batch([PROMPT, [9], [30, 31]], 15, **WARM)
    second = batched.generate_batch([[1, 2], [9], PROMPT[::-1]], [4, 15, 20], **WARM)
    assert first[1].tokens == second[1].tokens
    penalised = batched.generate_batch([PROMPT, [9, 9, 31]], 15, repetition_penalty=1.5)
    for prompt, made in zip((PROMPT, [9, 9, 31]), penalised, strict=True):  # each for its own tokens
        assert made.tokens == kernel.generate(prompt, 15, repetition_penalty=1.5).tokens
    assert first[2].tokens != batched.generate_batch([[30, 31]], 15, **WARM)[0].tokens  # another place draws anew


def test_seeds_of_64_bits() -> None:
    _, words = Sampling(temperature=1.0, seed=-2).rules(2)
    assert words.tolist() == [[-2, -1, 0], [-2, -1, 1]]
    assert Sampling(temperature=1.0, seed=1 << 63).rules(1)[1].tolist() == [[0, -(1 << 31), 0]]


def test_a_schedule_by_hand_is_not_replaced(kernel: Kernel) -> None:
    """Another schedule than the one that was drawn up would be measured: that is said, not done."""
    by_hand = dataclasses.replace(kernel.schedule, policy="mine")
    with pytest.raises(RunError, match="made by hand, so draw the other one up by hand too"):
        build(by_hand, weights=kernel.model).generate(PROMPT, 3, temperature=1.0)
    weights = {n: kernel.model.weights[n] for n in kernel.graph.tensors if n in kernel.model.weights}
    with pytest.raises(RunError, match=r"build one from decode_graph\(…, sampling=True\)"):
        build(kernel.schedule, weights=weights).generate(PROMPT, 3, temperature=1.0)


# --- sessions ---


def test_a_session_feeds_only_what_is_new(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    from mpklab.run import kernel as module

    fed: list[tuple[int, int]] = []
    real = module.prefill

    def counting(tensors: Any, graph: Any, ids: Any, slot: int = 0, first: int = 0) -> float:
        fed.append((first, len(ids)))
        return real(tensors, graph, ids, slot, first)

    monkeypatch.setattr(module, "prefill", counting)
    for rules in ({}, WARM):
        fed.clear()
        session = kernel.open_session(**rules)
        conversation = list(PROMPT)
        for new in ([20, 21, 22, 23], [30], [40, 41]):
            conversation += kernel.generate(conversation, 5, session=session, **rules).tokens
            assert session.tokens() == conversation and session.cached() == conversation[:-1]
            conversation += new
        # The last token of an answer was chosen but not fed, and the last of a prompt goes through the kernel.
        assert fed == [(0, 2), (7, 4), (16, 1)]
        alone = kernel.generate(conversation, 5, **rules).tokens
        assert kernel.generate(conversation, 5, session=session, **rules).tokens == alone
        changed = [*conversation[:9], 99, 98]  # another past: what is common is kept
        alone = kernel.generate(changed, 5, **rules).tokens
        assert kernel.generate(changed, 5, session=session, **rules).tokens == alone
        assert fed[-1] == (9, 1)
        assert (
            kernel.generate(changed[:4], 5, session=session, **rules).tokens
            == kernel.generate(changed[:4], 5, **rules).tokens
        )


def test_a_session_outlives_an_interrupt(kernel: Kernel) -> None:
    whole = kernel.generate(PROMPT, 30, **WARM).tokens
    session = kernel.open_session(**WARM)

    def stop(token: int, _: str) -> None:
        if token == whole[3]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kernel.generate(PROMPT, 30, session=session, on_token=stop, **WARM)
    kept = session.tokens()
    assert kept == [*PROMPT, *whole][: len(kept)] and len(kept) >= len(PROMPT) + 4
    more = kernel.generate([*kept, 9], 5, session=session, **WARM).tokens
    assert more == kernel.generate([*kept, 9], 5, **WARM).tokens


def test_a_session_of_another_kernel_is_refused(kernel: Kernel) -> None:
    with pytest.raises(RunError, match="belongs to another kernel"):
        kernel.generate(PROMPT, 3, session=kernel.open_session(), temperature=1.0)
