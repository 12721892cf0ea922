"""Correctness on a real model: greedy tokens against transformers, bfloat16 error, bits across policies and workers."""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mpklab import env, models
from mpklab.bench._common import show, stamped, write_json
from mpklab.errors import MpkError, suggest
from mpklab.machine import Machine
from mpklab.models import Model
from mpklab.models.catalog import SHIPPED
from mpklab.run import Kernel, build
from mpklab.schedule import POLICIES, POOLS, assign
from mpklab.tasks import lower

WORKERS = (1, 2, 3, 8)
LEVELS = (0, 1, 2, 3)
DTYPES = ("float32", "bfloat16")
ERROR_RATIO = 1.2  # bfloat16 logits may be off by this much of what torch's own bfloat16 is off by
FEW = 500  # positions; with fewer the mean square hangs on one or two (the first token's, mostly) and decides nothing
BIT_PROMPTS = 3  # equal bits are compared on so many prompts: state and logits say more than tokens
# Plain text, so that continuations run on instead of ending after a sentence; the lengths differ on purpose.
PROMPTS = (
    "The capital of France is",
    "What is a GPU? Answer in one sentence.",
    "Once upon a time, in a village at the edge of a great forest, there lived",
    "def fibonacci(n):\n",
    "In 1969, two astronauts",
    "The three primary colours are",
    "Water boils at a lower temperature on a mountain because",
    "Dear Sir or Madam,\n\nI am writing to",
    "1, 1, 2, 3, 5, 8,",
    "A recipe for pancakes:\n1.",
    "The mitochondrion is",
    "To be, or not to be,",
    "SELECT name FROM users WHERE",
    "Photosynthesis turns light, water and carbon dioxide into",
    "The train left the station at half past six, and by the time it reached the coast the sky had turned",
    "List of the planets of the solar system, from the inside out: Mercury,",
    "She opened the letter, read the first line twice, and",
    "An operating system kernel is responsible for",
    "Übermorgen fahren wir nach",
    "The difference between a compiler and an interpreter is that",
)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the result: what was compared, over how much, and whether it held."""

    what: str
    dtype: str
    workers: str
    policy: str
    compared: str
    holds: bool
    finding: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="smollm2-135m", help="a name, a GGUF file or a folder; weights are made up where none ship")
    add("--prompts", type=int, default=len(PROMPTS), metavar="N", help="the first so many (default: %(default)s)")
    add("--tokens", type=int, default=64, metavar="N", help="at most so many new ones a prompt (default: %(default)s)")
    add("--workers", default=",".join(map(str, WORKERS)), help="worker counts (default: %(default)s)")
    add("--policies", default=",".join(POLICIES), help="(default: %(default)s)")
    add("--dtypes", default=",".join(DTYPES), help="(default: %(default)s)")
    add("--quick", action="store_true", help="3 prompts of 16 tokens on 2 workers")
    add("--json", type=Path, metavar="FILE", help="write every result into this file")


def main(args: argparse.Namespace) -> int:
    """Run the checks one after the other; 1 when one of them does not hold."""
    workers = [_number(w, "--workers") for w in args.workers.split(",")]
    policies, dtypes = args.policies.split(","), args.dtypes.split(",")
    for given, known, name in ((policies, POLICIES, "policy"), (dtypes, DTYPES, "dtype")):
        for word in given:
            if word not in known:
                raise MpkError(f"unknown {name} {word!r}: {suggest(word, known)}")
    prompts, tokens = args.prompts, args.tokens
    if args.quick:
        prompts, tokens, workers = min(3, prompts), min(16, tokens), [2]
    if not 1 <= prompts <= len(PROMPTS) or tokens < 1:
        raise MpkError(f"--prompts should be from 1 to {len(PROMPTS)} and --tokens at least 1")
    made, begin = stamped(), time.perf_counter()
    checks: list[Check] = []
    for dtype in dtypes:
        for check in checks_of(args.model, dtype, prompts, tokens, workers, policies):
            checks.append(check)
            if env.show_progress():
                print(f"  {_words(check)}", file=sys.stderr, flush=True)
    failed = [c for c in checks if not c.holds]
    rows = [
        (c.what, c.dtype, c.workers, c.policy, c.compared, "holds" if c.holds else "FAILS", c.finding) for c in checks
    ]
    headers = ("check", "dtype", "workers", "policy", "compared", "", "finding")
    seconds = time.perf_counter() - begin
    note = f"{len(checks) - len(failed)} of {len(checks)} checks hold; {seconds:.0f} s"
    show(f"parity of {args.model}", headers, rows, made, [note])
    fields = Check.__dataclass_fields__
    write_json(
        args.json, made, model=args.model, seconds=seconds, checks=[{f: getattr(c, f) for f in fields} for c in checks]
    )
    return 1 if failed else 0


def checks_of(
    name: str, dtype: str, prompts: int, tokens: int, workers: Sequence[int], policies: Sequence[str]
) -> Iterator[Check]:
    """Every check of one dtype."""
    model = load(name, dtype)
    ids = [prompt_ids(model, text, i) for i, text in enumerate(PROMPTS[:prompts])]
    context = min(model.config.max_position, max(map(len, ids)) + tokens)
    if dtype == "float32":
        yield from tokens_equal(model, ids, tokens, context, workers, policies)
    else:
        yield teacher_forced(model, ids, tokens, context, workers[0], policies[0])
    yield from bits_equal(model, ids[:BIT_PROMPTS], tokens, context, workers, policies)


def tokens_equal(
    model: Model, ids: list[list[int]], tokens: int, context: int, workers: Sequence[int], policies: Sequence[str]
) -> Iterator[Check]:
    """Greedy tokens against transformers' own, for every worker count (each with the plan it would choose) and policy."""
    expected, margins = greedy(model.to_transformers("float32"), ids, tokens)
    graph = model.decode_graph(context=context)
    for count in workers:
        tasks = lower(graph, Machine.cpu(count))
        for policy in policies:
            kernel = build(assign(tasks, policy=policy), weights=model)
            same, finding = 0, ""
            for number, prompt in enumerate(ids):
                found = kernel.generate(prompt, tokens).tokens
                same += found == expected[number]
                if found != expected[number] and not finding:
                    pairs = zip(found, expected[number], strict=False)
                    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(expected[number])))
                    margin = margins[number][at] if at < len(margins[number]) else float("nan")
                    finding = f"prompt {number} differs from token {at} on, where the margin is {margin:.2g}"
            total = sum(map(len, expected))
            narrow = min(min(m) for m in margins if m)
            compared = f"{len(ids)} prompts, {total} tokens"
            yield Check(
                "tokens as transformers", model.config.dtype, str(count), policy, compared, same == len(ids),
                finding or f"narrowest margin {narrow:.2g}",
            )  # fmt: skip


def bits_equal(
    model: Model, ids: list[list[int]], tokens: int, context: int, workers: Sequence[int], policies: Sequence[str]
) -> Iterator[Check]:
    """One plan: logits, caches and tokens have the same bits whoever runs what, decided before or while it runs, and
    whatever is recorded."""
    dtype, graph = model.config.dtype, model.decode_graph(context=context)
    tasks = lower(graph, Machine.cpu(2))
    kernel = build(assign(tasks, policy=policies[0]), weights=model)
    expected = [digest(kernel, prompt, tokens) for prompt in ids]
    compared = f"{len(ids)} prompts, every state and output"
    for count in workers:
        again = lower(graph, Machine.cpu(count), tasks.plan)
        schedules: dict[str, dict[str, Any]] = {
            **{policy: {"policy": policy} for policy in policies},
            **{f"dynamic {pool}": {"mode": "dynamic", "policy": pool} for pool in POOLS},
            "hybrid attention": {"mode": "hybrid", "dynamic": ("attention",)},
        }
        for who, choices in schedules.items():
            other = build(assign(again, **choices), weights=model)
            same = [digest(other, prompt, tokens) == e for prompt, e in zip(ids, expected, strict=True)]
            yield Check("bits, equal plan", dtype, str(count), who, compared, all(same))
    same = [digest(kernel, p, tokens, level) == e for p, e in zip(ids, expected, strict=True) for level in LEVELS[1:]]
    levels = f"levels {LEVELS[0]} to {LEVELS[-1]}"
    yield Check("bits, recording", dtype, "2", policies[0], f"{compared}, {levels}", all(same))


@torch.inference_mode()
def teacher_forced(model: Model, ids: list[list[int]], tokens: int, context: int, workers: int, policy: str) -> Check:
    """Every token is given, and the logits behind it compared with float32 arithmetic on the same (rounded) weights.

    The bound is what torch's bfloat16 is off by: for a typical position (the median), and over all of them together
    where there are many. Where the first token leads by more than the largest error, ours must be the same.
    """
    exact, peer = model.to_transformers("float32"), model.to_transformers("bfloat16")
    texts, _ = greedy(exact, ids, tokens)
    tasks = lower(model.decode_graph(context=context), Machine.cpu(workers))
    kernel = build(assign(tasks, policy=policy), weights=model)
    rms: dict[str, list[torch.Tensor]] = {"ours": [], "torch": []}
    decided = agreed = ours_all = torch_all = 0
    for prompt, more in zip(ids, texts, strict=True):
        sequence = (prompt + more)[:context]
        wanted = exact(input_ids=torch.tensor([sequence])).logits[0].float()
        theirs = peer(input_ids=torch.tensor([sequence])).logits[0].float()
        ours = forced(kernel, sequence)
        rms["ours"].append((ours - wanted).double().square().mean(-1).sqrt())
        rms["torch"].append((theirs - wanted).double().square().mean(-1).sqrt())
        bound = ERROR_RATIO * float((theirs - wanted).abs().max())
        best = wanted.topk(2, -1)
        clear = best.values[:, 0] - best.values[:, 1] > bound
        same = ours.argmax(-1) == best.indices[:, 0]
        decided, agreed = decided + int(clear.sum()), agreed + int((same & clear).sum())
        ours_all += int(same.sum())
        torch_all += int((theirs.argmax(-1) == best.indices[:, 0]).sum())
    errors = {name: torch.cat(parts) for name, parts in rms.items()}
    positions = len(errors["ours"])
    typical, whole = ({k: float(f(e)) for k, e in errors.items()} for f in (torch.median, _root_mean_square))
    ratios = typical["ours"] / typical["torch"], whole["ours"] / whole["torch"]
    holds = agreed == decided and ratios[0] <= ERROR_RATIO and (positions < FEW or ratios[1] <= ERROR_RATIO)
    finding = (
        f"error of a position's logits: {typical['ours']:.3f} (torch {typical['torch']:.3f}, ratio {ratios[0]:.2f}), root "
        f"mean square of all {whole['ours']:.3f} ({whole['torch']:.3f}, {ratios[1]:.2f}); at most {ERROR_RATIO} × torch's. "
        f"{agreed} of {decided} clear tokens agree; of all {ours_all} (torch {torch_all})"
    )
    compared = f"{len(ids)} prompts, {positions} positions"
    return Check("logits, teacher-forced", "bfloat16", str(workers), policy, compared, holds, finding)


# --- the two sides ---


def load(name: str, dtype: str) -> Model:
    """Real weights where there are any, random ones of the model's size otherwise."""
    if name.lower() in SHIPPED or Path(name).exists():
        return models.load(name, dtype=dtype)
    return models.random(name, dtype=dtype)


def prompt_ids(model: Model, text: str, number: int) -> list[int]:
    """Tokens of a prompt; seeded random ones of about the same length for a model without a tokenizer."""
    if model.tokenizer is not None:
        return model.tokenizer.encode(text, chat=False)
    draw = random.Random(number)
    return [draw.randrange(model.config.vocab) for _ in range(1 + len(text) // 4)]


@torch.inference_mode()
def greedy(module: Any, ids: list[list[int]], tokens: int) -> tuple[list[list[int]], list[list[float]]]:
    """What transformers' `generate` appends to each prompt, and by how much each chosen token led the next best."""
    texts, margins = [], []
    for prompt in ids:
        given = torch.tensor([prompt])
        answer = module.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=tokens,
            output_logits=True,
            return_dict_in_generate=True,
        )
        texts.append(answer.sequences[0, len(prompt) :].tolist())
        best = torch.cat(answer.logits).float().topk(2, -1).values
        margins.append((best[:, 0] - best[:, 1]).tolist())
    return texts, margins


def digest(kernel: Kernel, prompt: list[int], tokens: int, level: int = 0) -> str:
    """A hash over all that a generation leaves: tokens, logits, caches, counters."""
    session = kernel.session_for(prompt, max_new_tokens=tokens)
    session.launch(tokens, profile=level)
    left = hashlib.sha256()
    for name, t in sorted(kernel.graph.tensors.items()):
        if t.role in ("state", "output"):
            left.update(session.tensors[name].view(torch.uint8).numpy().data)
    return left.hexdigest()


def forced(kernel: Kernel, sequence: list[int]) -> torch.Tensor:
    """The kernel's logits behind each token of a given sequence, float32 [tokens, vocab]; no prefill."""
    session = kernel.session_for(sequence[:1], max_new_tokens=1)
    t = session.tensors
    advance = kernel.graph.operands_of("advance")
    rows = []
    for position, token in enumerate(sequence):
        t[advance["token"]][0], t[advance["position"]][0] = token, position
        t[advance["done"]].zero_()
        session.launch(1)
        rows.append(t["logits"][0].float().clone())
    return torch.stack(rows)


def _root_mean_square(values: torch.Tensor) -> torch.Tensor:
    return values.square().mean().sqrt()


def _number(text: str, option: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise MpkError(f"{option} should be whole numbers of at least 1, not {text!r}")
    return int(text)


def _words(check: Check) -> str:
    state = "holds" if check.holds else "FAILS"
    return f"{check.what}, {check.dtype}, {check.workers} workers, {check.policy}: {state} {check.finding}"
