"""`mpklab demo`: a real model from its weights to text through one persistent kernel, and pictures of what it did."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpklab.console import human_bytes, print_table
from mpklab.errors import EnvError, MpkError

MODEL = "smollm2-135m"
QUESTION = "What is a GPU? Answer in one sentence."
MAX_NEW_TOKENS = 64
PEER_TOKENS = 16
ROUNDS = 3
RECORDED_TOKENS = 8  # enough to see a pattern; a page of a few hundred kB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR", help="for pictures (default: %(default)s)"
    )


def main(args: argparse.Namespace) -> int:
    """Compile, answer, compare, draw; what is slow and not needed for the first token comes after it."""
    begin = time.perf_counter()
    import mpklab as mk

    kernel = mk.compile(MODEL)
    print(f"\n> {QUESTION}\n", flush=True)
    moments: list[float] = []

    def show(_: int, piece: str) -> None:
        moments.append(time.perf_counter() - begin)
        print(piece, end="", flush=True)

    answer = kernel.generate(QUESTION, max_new_tokens=MAX_NEW_TOKENS, on_token=show)
    print(f"\n\n{len(answer.tokens)} tokens; the first came {moments[0]:.1f} s after the start\n", flush=True)
    compare(kernel)
    print()
    if "studio.html" in keep(args.out, kernel):
        print(f"\nOpen {args.out}/studio.html in a browser: what each worker did, task by task, beside the graph.")
    print("Next: `make lab` opens the notebooks.")
    return 0


def compare(kernel: Any) -> None:
    """Tokens per second beside transformers eager on the same weights: best of a few rounds, taken in turns."""
    prompt = kernel.model.tokenizer.encode(QUESTION, chat=True)
    ours, theirs = [], []
    try:
        module = kernel.model.to_transformers("bfloat16")
        for _ in range(ROUNDS):
            ours.append(kernel.generate(prompt, max_new_tokens=PEER_TOKENS).tokens_per_second)
            theirs.append(PEER_TOKENS / eager_seconds(module, prompt, PEER_TOKENS))
    except EnvError as error:  # no transformers: say so, and go on
        print(error)
        return
    rows = [("mpklab, one kernel", max(ours)), ("transformers eager", max(theirs))]
    print_table((f"{PEER_TOKENS} tokens in bfloat16, best of {ROUNDS}", "tokens/s"), rows)


def eager_seconds(module: Any, prompt: Sequence[int], tokens: int) -> float:
    """Seconds for so many greedy decode steps of a transformers module; the prompt and a first step are not counted."""
    import torch

    inputs, cache, begin = torch.tensor([list(prompt)]), None, 0.0
    with torch.inference_mode():
        for step in range(tokens + 2):
            if step == 2:
                begin = time.perf_counter()
            output = module(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            inputs, cache = output.logits[:, -1].argmax(dim=-1, keepdim=True), output.past_key_values
    return time.perf_counter() - begin


def keep(folder: Path, kernel: Any) -> set[str]:
    """Leave the graph and a recorded run, say where, and return what was kept; one that cannot be drawn loses no other."""
    profile = kernel.generate(QUESTION, max_new_tokens=RECORDED_TOKENS, profile=2).profile
    cost = [f"What cost most: {finding}" for finding in profile.explain()["finding"][:1]]
    graph = kernel.graph.origin  # what the user would write, before lowering fused it
    what: list[tuple[str, str, Callable[[Path], object]]] = [
        ("operator graph", "graph.svg", lambda path: path.write_text(graph.to_svg(), "utf-8")),
        ("the same as it runs", "fused.svg", lambda path: path.write_text(kernel.graph.to_svg(), "utf-8")),
        (f"recording of {RECORDED_TOKENS} steps", "demo.mpkprof", profile.save),
        ("all of it, linked", "studio.html", lambda path: profile.studio(notes=cost).to_html(path)),
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvError(f"the folder {folder} cannot be made: {error.strerror}") from error
    kept = set()
    for name, file, write in what:
        path = folder / file
        try:
            write(path)
            kept.add(file)
            print(f"  {name:<22} {path} ({human_bytes(path.stat().st_size)})")
        except (MpkError, OSError) as error:
            print(f"  {name:<22} not kept: {error}")
    return kept
