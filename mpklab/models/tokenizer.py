"""Text to token ids and back: a tokenizer.json, a chat template, and incremental decoding."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from mpklab.errors import ModelError, need_package

_UNFINISHED = "\ufffd"  # what decoders put where bytes do not (yet) make a character


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A vocabulary with its rules, in the form of a tokenizer.json, and the model's chat template.

    The `tokenizers` and `jinja2` packages are needed from the first `encode` on, not before.
    """

    definition: str = field(repr=False)
    template: str | None = field(repr=False)
    bos_token: str | None
    eos_token: str | None
    source: str

    @staticmethod
    def from_folder(folder: Path) -> Tokenizer | None:
        """The tokenizer of a Hugging Face folder, or None when there is no tokenizer.json in it."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            return None
        settings = _read_settings(folder / "tokenizer_config.json")
        template = settings.get("chat_template")
        if isinstance(template, list):  # several named ones
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        beside = folder / "chat_template.jinja"
        if beside.is_file():
            template = beside.read_text(encoding="utf-8")
        return Tokenizer(
            definition=path.read_text(encoding="utf-8"),
            template=template,
            bos_token=_content(settings.get("bos_token")),
            eos_token=_content(settings.get("eos_token")),
            source=str(folder),
        )

    @property
    def size(self) -> int:
        """One more than the largest id it can give."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str | Sequence[Mapping[str, str]], chat: bool = True, **variables: Any) -> list[int]:
        """Token ids of a prompt.

        With `chat` the text becomes the user's message in the model's chat template (or is a list of messages with role
        and content), and `variables` reach the template; without it the text is taken as it stands.
        """
        if chat:
            # The template writes its own start token.
            return self._backend.encode(self.prompt(text, **variables), add_special_tokens=False).ids
        if not isinstance(text, str):
            raise ModelError(f"without the chat template a prompt is one text, not a {type(text).__name__}")
        return self._backend.encode(text, add_special_tokens=True).ids

    def encode_more(self, text: str) -> list[int]:
        """Token ids of a text that goes on where another ended: no start token, control tokens where they are written."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def prompt(self, text: str | Sequence[Mapping[str, str]], **variables: Any) -> str:
        """The text that the chat template makes of a message, up to where the answer begins."""
        messages = [{"role": "user", "content": text}] if isinstance(text, str) else [dict(message) for message in text]
        template, errors = self._compiled_template
        known = {"bos_token": self.bos_token or "", "eos_token": self.eos_token or ""}
        try:
            return template.render(messages=messages, add_generation_prompt=True, **{**known, **variables})
        except errors as error:
            raise ModelError(f"the chat template of {self.source} refuses these messages: {error}") from error

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of some ids; control tokens are left out unless `special`."""
        return self._backend.decode([int(token) for token in ids], skip_special_tokens=not special)

    def stream(self) -> TextStream:
        """Decodes ids one by one, giving only whole characters."""
        return TextStream(self)

    @cached_property
    def _backend(self) -> Any:
        try:
            import tokenizers
        except ImportError as error:
            raise need_package("tokenizers", "turning text into tokens") from error
        try:
            backend = tokenizers.Tokenizer.from_str(self.definition)
        except Exception as error:  # the package raises plain Exception for a malformed definition
            raise ModelError(f"the tokenizer of {self.source} cannot be read: {error}") from error
        backend.no_truncation()
        backend.no_padding()
        return backend

    @cached_property
    def _compiled_template(self) -> tuple[Any, type[Exception]]:
        if not self.template:
            raise ModelError(
                f"{self.source} has no chat template: raw=True (chat=False in encode) takes the text as it is"
            )
        try:
            import jinja2
            import jinja2.ext
            import jinja2.sandbox
        except ImportError as error:
            raise need_package("jinja2", "the chat template") from error

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        # The settings that Hugging Face's templates are written for; sandboxed: a template is somebody's program.
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            return environment.from_string(self.template), jinja2.TemplateError
        except jinja2.TemplateError as error:
            raise ModelError(f"the chat template of {self.source} is malformed: {error}") from error


class TextStream:
    """Incremental decoding: the pieces that `push` and `finish` give add up to `decode` of all ids.

    A character whose bytes are spread over several tokens is held back until it is whole.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._context: list[int] = []  # what was given out last: some decoders treat the first token of a text apart
        self._pending: list[int] = []
        self._shown = 0  # characters of the pending text that are out already

    def push(self, token: int) -> str:
        """The text that this token completes, maybe none."""
        self._pending.append(int(token))
        text = self._text()
        whole = text.rstrip(_UNFINISHED)
        piece = whole[self._shown :]
        self._shown = max(self._shown, len(whole))
        if whole == text and text:
            self._context, self._pending, self._shown = self._pending, [], 0
        return piece

    def finish(self) -> str:
        """What is still held back; bytes that never became a character show as U+FFFD."""
        piece = self._text()[self._shown :]
        self._context, self._pending, self._shown = [], [], 0
        return piece

    def _text(self) -> str:
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._pending)[len(before) :]


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from error
    return settings if isinstance(settings, dict) else {}


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
