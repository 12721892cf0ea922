"""`mpklab chat`: a conversation with a model whose answers one persistent kernel makes, its caches kept from turn to turn."""

from __future__ import annotations

import argparse
import io
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpklab.errors import MpkError, RunError, suggest

MODEL = "smollm2-135m"
CONTEXT = 2048
MAX_NEW_TOKENS = 256
RECORDED_STEPS = 64  # of each turn: enough for every analysis, and a file of a few MB
FILE = Path("chat.mpkprof")
LOOK_UP_S = 0.2  # how long Ctrl-C at the prompt may go unnoticed
COMMANDS = {
    "/profile": "[FILE] keeps the recording of the last turn",
    "/reset": "begins a new conversation",
    "/help": "says this",
}
# What a terminal would take for a command, as a sign for it. Lines and tabs stay.
SIGNS = {
    **{c: 0x2400 + c for c in range(32) if chr(c) not in "\n\t"},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}
SAMPLING: tuple[tuple[str, type, str], ...] = (
    ("temperature", float, "0 chooses the likeliest token, more draws more freely"),
    ("top_k", int, "draw among so many of the likeliest tokens (0: all)"),
    ("top_p", float, "draw among the likeliest tokens that together have this probability"),
    ("min_p", float, "draw among tokens with at least this share of the likeliest one's probability"),
    ("repetition_penalty", float, "makes tokens that have occurred less likely (1: none)"),
    ("seed", int, "of the random numbers; the same seed gives the same answers"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default=MODEL, help="a name, a GGUF file or a folder (default: %(default)s)")
    add("--device", choices=("cpu", "cuda"), help="(default: a GPU where there is one)")
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="(default: %(default)s)")
    add("--workers", type=int, metavar="N", help="CPU threads (default: the physical cores this process may use)")
    add("--system", metavar="TEXT", help="what the model is told before the conversation")
    add("--context", type=int, metavar="N", help=f"tokens of a conversation (default: {CONTEXT}, or the model's most)")
    add("--max-new-tokens", type=int, default=MAX_NEW_TOKENS, metavar="N", help="of an answer (default: %(default)s)")
    add("--compare", choices=("torch",), help="let transformers answer too, and print both speeds")
    add("--profile", type=Path, metavar="FILE", help="keep the recording of every turn here, the latest last")
    add("--level", type=int, choices=(0, 1, 2, 3), default=2, help="how much to record (default: %(default)s)")
    add("--record", type=int, default=RECORDED_STEPS, metavar="N", help="first steps of a turn (default: %(default)s)")
    add_sampling(parser)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The rules by which tokens are drawn, as options."""
    group = parser.add_argument_group("sampling", "without --temperature the likeliest token is chosen")
    for name, kind, text in SAMPLING:
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="X" if kind is float else "N", help=text)


def sampling_of(args: argparse.Namespace) -> dict[str, Any]:
    """The rules that were given, as keywords of `Kernel.generate`."""
    return {name: getattr(args, name) for name, _, _ in SAMPLING if getattr(args, name) is not None}


def main(args: argparse.Namespace) -> int:
    """Lines from standard input, answers on standard output, and everything else on standard error."""
    import mpklab as mk
    from mpklab.run import Sampling

    open_streams()
    rules = sampling_of(args)
    plain = Sampling(**rules).plain
    if args.workers is not None and args.device == "cuda":
        raise RunError("--workers is for the CPU: on a GPU every SM is a worker")
    machine = mk.Machine.cuda() if args.device == "cuda" else None
    if args.device == "cpu" or args.workers is not None:
        machine = mk.Machine.cpu(workers=args.workers)
    model = mk.models.load(args.model, dtype=args.dtype)
    if model.tokenizer is None:
        raise RunError(f"{model.name} has no tokenizer, so there is nothing to talk with: give a folder that holds one")
    context = args.context or min(CONTEXT, model.config.max_position)
    kernel = mk.compile(model, machine=machine, context=context, **({} if plain else {"sampling": True}))
    window = mk.Window(level=args.level, record=args.record) if args.level else 0
    system = [{"role": "system", "content": args.system}] if args.system else []
    talk = Conversation(kernel, rules, args.max_new_tokens, window, system)
    peer = Peer(kernel, args.dtype, rules) if args.compare else None
    say(
        f"{model.name} on {kernel.backend} with {kernel.schedule.workers} workers, {args.dtype}, a context of {context} "
        f"tokens, {Sampling(**rules)}. /help lists commands, Ctrl-C stops an answer, Ctrl-D ends."
    )
    with interrupts() as allowed:
        while True:
            try:
                with allowed:
                    line = read_line()
                    if line is None:
                        return 0
                    text = line.strip()
                    if text.startswith("/"):
                        command(text, talk, args.profile or FILE)
                    elif text:
                        turn(text, talk, peer, args.profile)
            except MpkError as error:
                say(f"mpklab: {error}")
            except KeyboardInterrupt:
                say("")


class Allowed:
    """Inside `with`, the first Ctrl-C is a KeyboardInterrupt. What is pressed later, or elsewhere, is passed over, so that
    whoever handles one is not cut off by the next."""

    def __init__(self) -> None:
        self.now = False

    def __enter__(self) -> None:
        self.now = True

    def __exit__(self, *_: object) -> None:
        self.now = False

    def pressed(self, *_: object) -> None:
        """What Ctrl-C calls."""
        if self.now:
            self.now = False
            raise KeyboardInterrupt


@contextmanager
def interrupts() -> Iterator[Allowed]:
    """Who decides about Ctrl-C meanwhile; in a thread, where Python hears of none, there is nothing to decide."""
    allowed = Allowed()
    if threading.current_thread() is not threading.main_thread():
        yield allowed
        return
    before = signal.signal(signal.SIGINT, allowed.pressed)
    try:
        yield allowed
    finally:
        signal.signal(signal.SIGINT, before)


def say(text: str) -> None:
    """A line beside the conversation."""
    print(text, file=sys.stderr, flush=True)


def open_streams() -> None:
    """Make lines editable, and let no byte that is no character end the conversation."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401  (importing lets the line be edited)


def read_line() -> str | None:
    """What is typed, after a prompt, or piped in; None at its end."""
    if not sys.stdin.isatty():
        return sys.stdin.readline() or None
    prompt = "> "
    if not sys.stdout.isatty():  # only answers go to the file
        print(prompt, end="", file=sys.stderr, flush=True)
        prompt = ""
    try:
        with looking_up():
            return input(prompt)
    except EOFError:
        say("")
        return None


@contextmanager
def looking_up() -> Iterator[None]:
    """Let whoever waits for a key look for signals now and then: readline sleeps through one that comes just before it
    waits, and the line typed next would be lost to it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGALRM, lambda *_: None)  # for good: one that came late would end the program otherwise
    signal.setitimer(signal.ITIMER_REAL, LOOK_UP_S, LOOK_UP_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def visible(text: str) -> str:
    """What a model wrote, with signs for what would command the terminal."""
    return text.translate(SIGNS) if sys.stdout.isatty() else text


@dataclass
class Answer:
    """What one turn gave. `fed` tokens of the conversation were new to the caches and took `fed_seconds`, besides
    `seconds`, or within them where it was stopped."""

    tokens: list[int]
    seconds: float
    fed: int
    fed_seconds: float
    stopped: bool = False  # by Ctrl-C


@dataclass
class Conversation:
    """Messages, and the session whose caches hold their tokens."""

    kernel: Any
    rules: dict[str, Any]
    max_new_tokens: int
    window: Any = 0
    messages: list[dict[str, str]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)  # of all messages, as they were fed and generated
    profile: Any = None
    recorded: str = ""  # what the profile holds

    def __post_init__(self) -> None:
        self.system = list(self.messages)
        self.session = self.kernel.open_session(**self.rules)
        self.context = int(self.kernel.graph.meta["context"])
        self.tokenizer = self.kernel.model.tokenizer

    def reset(self) -> None:
        """Forget all but the system's message; caches are gone over anew from where conversations part."""
        self.messages, self.tokens = list(self.system), []

    def ids(self, text: str) -> list[int]:
        """All tokens of the conversation with this message, up to where the answer begins.

        What was said stays in the tokens that the model chose, though a tokenizer may cut the same text otherwise;
        where the template writes past messages differently now, everything is cut anew.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        before, whole = self.tokenizer.decode(self.tokens, special=True), self.tokenizer.prompt(messages)
        if self.tokens and whole.startswith(before):
            return self.tokens + self.tokenizer.encode_more(whole[len(before) :])
        ids: list[int] = self.tokenizer.encode(messages)
        return ids

    def room(self, ids: Sequence[int]) -> int:
        """Tokens that an answer may have; RunError where the conversation fills the context."""
        left = self.context - len(ids)
        if left < 1:
            raise RunError(full(len(ids), self.context))
        return min(left, self.max_new_tokens)

    def answer(self, text: str, ids: Sequence[int], on_token: Callable[[int, str], None]) -> Answer:
        """Let the kernel answer; Ctrl-C ends the answer where it is."""
        limit = self.room(ids)
        fed, begin = len(ids) - self.session.holds(ids), time.perf_counter()
        stopped = False
        try:
            made = self.kernel.generate(
                ids, limit, session=self.session, profile=self.window, on_token=on_token, **self.rules
            )
            answer = Answer(made.tokens, made.seconds, fed, made.prefill_seconds)
            self.profile = made.profile
        except KeyboardInterrupt:
            stopped = True
            tokens = self.session.tokens()[len(ids) :]
            answer = Answer(tokens, time.perf_counter() - begin, fed, 0.0, stopped=True)
            self.profile = self.kernel.last_profile if tokens else None
        steps = min(len(answer.tokens), self.window.record) if self.profile is not None else 0
        self.recorded = f"the first {steps} of {len(answer.tokens)} steps"
        if answer.tokens or not stopped:  # a turn that was stopped before its first token never happened
            said = self.tokenizer.decode(answer.tokens)
            self.tokens = [*ids, *answer.tokens]
            self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": said}]
        return answer


class Peer:
    """transformers' own answer to the same tokens, eager, with a cache of its own that is kept as well."""

    def __init__(self, kernel: Any, dtype: str, rules: dict[str, Any]):
        from mpklab.models.peer import to_transformers

        self.module = to_transformers(kernel.model.config, kernel.weights, dtype)
        self.ends = set(kernel.model.config.eos)
        self.rules = rules
        self.cache: Any = None
        self.held: list[int] = []

    def answer(self, ids: Sequence[int], limit: int) -> tuple[list[int], float]:
        """Its tokens, and the seconds of their steps: the prompt's other tokens are fed before."""
        try:
            return self._answer(ids, limit)
        except BaseException:  # the cache may hold more than was noted
            self.cache, self.held = None, []
            raise

    def _answer(self, ids: Sequence[int], limit: int) -> tuple[list[int], float]:
        import torch

        from mpklab.run.session import common

        first = min(common(self.held, ids), len(ids) - 1)
        if len(self.held) > first:
            self.cache.crop(first - len(self.held))  # so many fewer
        self.held, known = list(ids[:first]), list(ids)
        device, processors = self.module.device, self._processors()
        generator = torch.Generator(device).manual_seed(int(self.rules.get("seed", 0)))
        tokens: list[int] = []
        with torch.inference_mode():
            if len(ids) - 1 > first:
                self._feed(known[first:-1])
            begin = time.perf_counter()
            while len(tokens) < limit:
                logits = self._feed(known[-1:])
                if device.type == "cuda" and not tokens:
                    torch.cuda.synchronize()
                scores = processors(torch.tensor([known], device=device), logits.float())
                if self.rules.get("temperature"):
                    chosen = torch.multinomial(scores.softmax(-1), 1, generator=generator)
                else:
                    chosen = scores.argmax(-1)
                known.append(int(chosen))
                tokens.append(known[-1])
                if tokens[-1] in self.ends:
                    break
        return tokens, time.perf_counter() - begin

    def _feed(self, tokens: list[int]) -> Any:
        import torch

        given = torch.tensor([tokens], device=self.module.device)
        output = self.module(input_ids=given, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = output.past_key_values
        self.held += tokens
        return output.logits[:, -1]

    def _processors(self) -> Any:
        import transformers as hf

        rules, made = self.rules, hf.LogitsProcessorList()
        if rules.get("repetition_penalty", 1.0) != 1.0:
            made.append(hf.RepetitionPenaltyLogitsProcessor(rules["repetition_penalty"]))
        if rules.get("temperature"):
            made.append(hf.TemperatureLogitsWarper(float(rules["temperature"])))
        if rules.get("top_k"):
            made.append(hf.TopKLogitsWarper(rules["top_k"]))
        if rules.get("top_p", 1.0) < 1:
            made.append(hf.TopPLogitsWarper(rules["top_p"]))
        if rules.get("min_p"):
            made.append(hf.MinPLogitsWarper(rules["min_p"]))
        return made


def turn(text: str, talk: Conversation, peer: Peer | None, file: Path | None) -> None:
    """One message and its answer, streamed; then how fast it was."""
    ids = talk.ids(text)
    limit = talk.room(ids)
    pieces: list[str] = []

    def show(_: int, piece: str) -> None:
        pieces.append(piece)
        print(visible(piece), end="", flush=True)

    answer = talk.answer(text, ids, show)
    said, shown = talk.tokenizer.decode(answer.tokens), "".join(pieces)
    print(
        visible(said[len(shown) :]) if said.startswith(shown) else "", flush=True
    )  # what came while Ctrl-C was pressed
    held = len(talk.session.tokens())
    say(f"[{_told(answer)}; {held} of {talk.context} in the cache]")
    if len(ids) + len(answer.tokens) >= talk.context:
        say(full(held, talk.context))
    if peer is not None and not answer.stopped:
        print("[torch, transformers eager: ", end="", file=sys.stderr, flush=True)  # it may take a while
        tokens, seconds = peer.answer(ids, limit)
        same = tokens == answer.tokens
        say(f"{'the same' if same else 'its'} {_tokens(tokens)}, {len(tokens) / seconds:.1f} a second]")
        if not same:
            print(f"torch: {visible(talk.tokenizer.decode(tokens))}", flush=True)
    if file is not None and talk.profile is not None:
        talk.profile.save(file)


def _told(answer: Answer) -> str:
    """How long an answer took; of one that was stopped it is not known what its prompt did."""
    taken = f"{_tokens(answer.tokens)} in {answer.seconds:.2f} s"
    if answer.stopped:
        return f"stopped: {taken}, the message's own included"
    if answer.tokens and answer.seconds:
        taken += f", {len(answer.tokens) / answer.seconds:.1f} a second"
    return f"{taken}; {answer.fed} new tokens fed in {answer.fed_seconds:.2f} s"


def _tokens(tokens: Sequence[int]) -> str:
    return f"{len(tokens)} token{'s' * (len(tokens) != 1)}"


def command(text: str, talk: Conversation, file: Path) -> None:
    """What begins with a slash."""
    name, _, rest = text.partition(" ")
    if name == "/reset":
        talk.reset()
        say("a new conversation")
    elif name == "/profile":
        if talk.profile is None:
            raise RunError("there is no recording: say something first, with --level 1 or more")
        path = talk.profile.save(Path(rest.strip() or file).expanduser())
        say(f"{path}: {talk.recorded}, at level {talk.profile.level}")
    elif name == "/help":
        for known, what in COMMANDS.items():
            say(f"  {known:<9} {what}")
    else:
        raise RunError(f"no command {name!r}: {suggest(name, COMMANDS)}")


def full(tokens: int, context: int) -> str:
    """What is said when a conversation has no room left."""
    return (
        f"the conversation's {tokens} tokens fill the context of {context}: /reset begins a new one, and chat --context N "
        "makes room for longer ones"
    )
