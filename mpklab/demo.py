"""`mpklab demo`: a real model from its weights to text through one persistent kernel, and pictures of what it did."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpklab.console import human_bytes, print_table
from mpklab.errors import MpkError

MODEL = "smollm2-135m"
QUESTION = "What is a GPU? Answer in one sentence."
MAX_NEW_TOKENS = 64
PEER_TOKENS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR", help="for pictures (default: %(default)s)"
    )


def main(args: argparse.Namespace) -> int:
    """Compile, answer, compare, draw; what is slow and not needed for the first token comes after it."""
    import mpklab as mk

    begin = time.perf_counter()
    model = mk.models.load(MODEL)
    print(model)
    kernel = mk.compile(model)
    print(f"\n> {QUESTION}\n")
    moments: list[float] = []

    def show(piece: str) -> None:
        moments.append(time.perf_counter() - begin)
        print(piece, end="", flush=True)

    answer = kernel.generate(QUESTION, max_new_tokens=MAX_NEW_TOKENS, profile=2, on_text=show)
    print(f"\n\nfirst token {moments[0]:.1f} s after the start\n")
    compare(model, answer)
    print()
    keep(args.out, kernel, answer)
    return 0


def compare(model: Any, answer: Any) -> None:
    """Tokens per second beside transformers eager on the same weights."""
    rows = [("mpklab, one kernel, bfloat16", len(answer.tokens), len(answer.tokens) / answer.seconds)]
    try:
        seconds = eager_seconds(model.to_transformers("bfloat16"), answer.prompt, PEER_TOKENS)
        rows.append(("transformers eager, bfloat16", PEER_TOKENS, PEER_TOKENS / seconds))
    except MpkError as error:
        print(error)
    print_table(("decoding", "tokens", "tokens/s"), rows)


def eager_seconds(module: Any, prompt: Sequence[int], tokens: int) -> float:
    """Seconds for so many greedy decode steps of a transformers module, prompt and a first step not counted."""
    import torch

    inputs, cache, begin = torch.tensor([list(prompt)]), None, 0.0
    with torch.inference_mode():
        for step in range(tokens + 2):
            if step == 2:
                begin = time.perf_counter()
            output = module(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            inputs, cache = output.logits[:, -1].argmax(dim=-1, keepdim=True), output.past_key_values
    return time.perf_counter() - begin


def keep(folder: Path, kernel: Any, answer: Any) -> None:
    """Leave the graph, the recording and its timeline, and say where; one that cannot be drawn loses no other."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = kernel.schedule.tasks.graph
    what: list[tuple[str, str, Callable[[Path], object]]] = [
        ("operator graph", "graph.svg", graph.to_svg),
        ("recording", "demo.mpkprof", answer.profile.save),
        ("timeline", "timeline.html", lambda path: answer.profile.timeline().to_html(path)),
    ]
    for name, file, write in what:
        path = folder / file
        try:
            write(path)
            print(f"  {name:<15} {path} ({human_bytes(path.stat().st_size)})")
        except MpkError as error:
            print(f"  {name:<15} not drawn: {error}")
