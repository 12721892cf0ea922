"""`Kernel`: a schedule, compiled. `run` gives tensors for tensors; `generate` gives text or tokens for a prompt."""

from __future__ import annotations

import itertools
import operator
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpklab import builder, device
from mpklab.codegen import Delay, Source, Tables, device_settings, emit, pack
from mpklab.dims import upper
from mpklab.errors import BuildError, RunError, answers_slips, known_keywords, suggest
from mpklab.graph import Graph
from mpklab.models import Model
from mpklab.models.rope import rope_table
from mpklab.presented import Presented
from mpklab.profile import Profile, Window
from mpklab.progress import Progress
from mpklab.reference.prefill import prefill
from mpklab.run.host import CLOCK_HZ_GUESS, HostFlight
from mpklab.run.profiling import window_of
from mpklab.run.sampling import Sampling, drawing, draws
from mpklab.run.session import Memory, Outcome, Session, described
from mpklab.schedule import Schedule
from mpklab.verifier import verify

LAUNCHES = ("persistent", "per_operator")

SHORT_RUN_S = 0.5  # what takes less shows no progress
SHORT_LAUNCH_S = 0.4  # a launch where the driver has a time limit; a later step may take longer than those before
SHOWN_OUTPUTS = 8  # in a result's text


@dataclass(frozen=True, repr=False)
class Result:
    """Output tensors by name, and the profile where one was asked for."""

    outputs: dict[str, torch.Tensor]
    profile: Profile | None
    seconds: float

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.outputs[name]

    def __repr__(self) -> str:
        held = ", ".join(f"{n} {described(t)}" for n, t in itertools.islice(self.outputs.items(), SHOWN_OUTPUTS))
        more = f" and {len(self.outputs) - SHOWN_OUTPUTS} more" if len(self.outputs) > SHOWN_OUTPUTS else ""
        recorded = f", {self.profile!r}" if self.profile is not None else ""
        return f"Result of {self.seconds * 1e3:.3g} ms: {held or 'no outputs'}{more}{recorded}"


@dataclass(frozen=True, repr=False)
class Generation(Presented):
    """What one prompt gave. `seconds` is the kernel's own time for `tokens`, `prefill_seconds` the prompt's."""

    text: str
    tokens: list[int]
    seconds: float
    prefill_seconds: float
    profile: Profile | None = None

    @property
    def tokens_per_second(self) -> float:
        """Of the kernel's own time, the prompt's left out; NaN where nothing ran."""
        return len(self.tokens) / self.seconds if self.seconds else float("nan")

    def __str__(self) -> str:
        return self.text or str(self.tokens)


@dataclass(frozen=True)
class DeviceTables:
    """A schedule's tables where the device reads them."""

    tables: Tables
    memory: dict[str, Memory]

    @property
    def steps(self) -> int:
        """abi.Steps"""
        return self.tables.steps


@answers_slips(BuildError)
def build(
    schedule: Schedule,
    *,
    compiler: str | None = None,
    weights: Mapping[str, Any] | Model | None = None,
    launch: str = "persistent",
) -> Kernel:
    """Compile a schedule (or find it in the cache) and verify it first if nobody has.

    `weights`: a Model, or a mapping of the graph's weight names to tensors on the kernel's device; they may also be
    given to `run`. `launch`: "persistent", or "per_operator" for the same tasks on the same workers as one CUDA kernel
    per operator in a CUDA graph, which is what a persistent kernel has to be better than. That records nothing.
    ScheduleError where the schedule could race or hang, BuildError with the compiler's words, EnvError without a compiler;
    weights are looked at when it first runs (RunError).
    """
    if launch not in LAUNCHES:
        raise BuildError(f"unknown launch {launch!r}: {suggest(launch, LAUNCHES)}")
    if launch == "per_operator" and schedule.tasks.machine.backend != "cuda":
        raise BuildError("one kernel per operator is a CUDA graph: lower for a CUDA machine")
    model = weights if isinstance(weights, Model) else None
    values = model.weights if model else weights
    if model is not None and model.weights is not None and schedule.tasks.machine.backend == "cuda":
        if model.weights.device.type != "cuda":
            device.make_room(model.weights.nbytes, f"the weights of {model.name}", "fewer layers, or a smaller dtype")
        values = model.weights.to("cuda")
    kernel = Kernel(verify(schedule), compiler=compiler, model=model, weights=values, launch=launch)
    with Progress(after_s=SHORT_RUN_S) as shown, shown.stage("build") as now:
        kernel.library(0)
        now.say(kernel)
    return kernel


@dataclass(eq=False, repr=False)
class Kernel(Presented):
    """One persistent kernel. Its values are read-only; `last_profile` keeps what the latest recorded run left.

    `prefetch` off: nothing is loaded before a task's events have happened. `launch` is as `build` was told. `delay` is a
    test hook, compiled in.
    """

    schedule: Schedule
    compiler: str | None = None
    model: Model | None = None
    weights: Any = None
    prefetch: bool = True
    launch: str = "persistent"
    delay: Delay | None = None
    last_profile: Profile | None = None
    _libraries: dict[int, builder.Library] = field(default_factory=dict, repr=False)

    @property
    def graph(self) -> Graph:
        """The graph that runs: the lowered one; `kernel.graph.parent` leads back to what was given."""
        return self.schedule.tasks.graph

    @property
    def per_operator(self) -> bool:
        """Whether every operator is a launch of its own."""
        return self.launch == "per_operator"

    @property
    def backend(self) -> str:
        """`cpu` or `cuda`."""
        return self.schedule.tasks.machine.backend

    @cached_property
    def source(self) -> Source:
        """The entry file at level 0: what is compiled."""
        return emit(self.schedule, delay=self.delay, per_operator=self.per_operator)

    @cached_property
    def rope(self) -> torch.Tensor | None:
        """The model's table of rotations for this graph's context: the one weight that is computed, not stored."""
        t = self.graph.tensors.get("rope")
        if self.model is None or t is None:
            return None
        return rope_table(self.model.config, t.type.sizes[0]).to("cuda" if self.backend == "cuda" else "cpu")

    @property
    def clock_hz(self) -> float:
        """Nominal rate of the device's clock."""
        return CLOCK_HZ_GUESS if self.backend == "cpu" else device.clock_hz()

    def library(self, level: int = 0) -> builder.Library:
        """The compiled file for a recording level; a CPU library holds all levels."""
        key = 0 if self.backend == "cpu" else level
        if key not in self._libraries:
            source = self.source if key == 0 else emit(self.schedule, level, self.delay)
            self._libraries[key] = builder.compile_source(source, self.compiler, beside=self._keep_stages)
        return self._libraries[key]

    def _built_for(self, window: Window, shown: Progress) -> None:
        """Compile for a recording level before the run, as a stage of its own; a library that is there says nothing."""
        if self.backend == "cpu" or window.level in self._libraries:
            return
        with shown.stage("build") as now:
            library = self.library(window.level)
            now.say(f"for recording at level {window.level}{', from the cache' if library.cached else ''}")

    def _keep_stages(self, folder: Path) -> None:
        """Leave graph, tasks and schedule beside the kernel, for reading and resuming: those it was first built for."""
        self.graph.save(folder / "graph.json")
        self.schedule.tasks.save(folder / "tasks.npz")
        self.schedule.save(folder / "schedule.npz")

    @cached_property
    def device_tables(self) -> DeviceTables:
        """The schedule's tables on the device, packed when first asked for and shared by all sessions."""
        tables = pack(self.schedule, per_operator=self.per_operator)
        on = "cuda" if self.backend == "cuda" else "cpu"
        names = ("tasks", "waits", "signals", "events", "entries", "queues", "triggered")
        return DeviceTables(tables, {name: Memory(getattr(tables, name), on) for name in names})

    @property
    def ptx(self) -> str:
        """The PTX of a CUDA kernel compiled by NVRTC."""
        file = self.library().folder / "kernel.ptx"
        if not file.exists():
            raise RunError('this kernel has no PTX: it runs on the CPU, or was compiled with compiler="nvcc"')
        return file.read_text()

    @property
    def sass(self) -> str:
        """The machine code, by cuobjdump."""
        library = self.library()
        if self.backend != "cuda":
            raise RunError(f"this kernel runs on the CPU: objdump -d {library.file}")
        return device.disassembled(library.file)

    @property
    def resources(self) -> dict[str, int]:
        """Registers a thread, spilled bytes and static shared memory of a CUDA kernel, from the compiler's log."""
        return device.resources(self.library().log) if self.backend == "cuda" else {}

    def device_facts(self) -> dict[str, Any]:
        """What the stamp says of the device."""
        machine = self.schedule.tasks.machine
        facts: dict[str, Any] = {"name": machine.name, "workers": self.schedule.workers}
        return {**facts, **device.facts()} if self.backend == "cuda" else facts

    def start(self, launch: np.ndarray, level: int, kept: tuple[Any, ...] = ()) -> Any:
        """Begin a launch; the session waits for it. `kept` is the memory that must outlive it, whatever happens here."""
        if level and self.per_operator:
            raise RunError("one kernel per operator records nothing: build the persistent kernel of the same schedule")
        library = self.library(level)
        settings = device_settings(self.schedule.tasks.plan.settings)
        if self.per_operator:
            return device.GraphFlight(library.file, launch, self.device_tables.tables.grids, settings)
        if self.backend == "cpu":
            machine = self.schedule.tasks.machine
            cpus = machine.cpus if len(machine.cpus) == self.schedule.workers else ()
            return HostFlight(library.file, launch, level, cpus, kept)
        return device.Flight(library.file, launch, self.schedule.workers, settings)

    def new_session(self, **values: Any) -> Session:
        """Fresh state and outputs over the same weights."""
        session = Session(self)
        session.bind(values)
        return session

    def run(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        iterations: int = 1,
        profile: int | Window = 0,
        dims: Mapping[str, int] | None = None,
        drop_signals: int | None = None,
        wait_limit_s: float | None = None,
        **more: Any,
    ) -> Result:
        """Run the graph on inputs given by name (a mapping, or keywords where names allow) and return its outputs.

        Every call starts from fresh state. Raises RunError for what does not fit, DeadlockError for a wait without end.
        """
        session = self.new_session()
        for name in more:
            if name not in self.graph.tensors:
                known = [n for n, t in self.graph.tensors.items() if t.role in ("input", "weight", "state")]
                raise RunError(f"run takes no {name!r}: {suggest(name, [*known, *known_keywords(Kernel.run)])}")
        session.bind({**(inputs or {}), **more})
        with Progress(after_s=SHORT_RUN_S) as shown:
            self._built_for(window_of(profile), shown)
            with shown.stage("run") as now:
                outcome = session.launch(
                    iterations,
                    dims=dims,
                    profile=profile,
                    on_progress=lambda done: now.say(f"{done} of {iterations} iterations"),
                    drop_signals=drop_signals,
                    wait_limit_s=wait_limit_s,
                )
                now.say(_took(outcome, "iterations"))
        names = [n for n, t in self.graph.tensors.items() if t.role in ("output", "state")]
        return Result({n: session.tensors[n] for n in names}, outcome.profile, outcome.seconds)

    # --- text ---

    def _prompt(self, prompt: str | Sequence[int], raw: bool) -> list[int]:
        if isinstance(prompt, str):
            tokenizer = self.model.tokenizer if self.model else None
            if tokenizer is None:
                raise RunError("this kernel's model has no tokenizer: give token ids instead of text")
            ids = tokenizer.encode(prompt, chat=not raw) if prompt else []
        else:
            try:
                ids = [operator.index(t) for t in prompt]
            except TypeError as error:
                raise RunError(f"a prompt is a text or a sequence of token ids: {error}") from error
        if not ids:
            raise RunError("the prompt is empty: it needs at least one token")
        vocab = self.model.config.vocab if self.model else 1 << 31
        wrong = [t for t in ids if not 0 <= t < vocab]
        if wrong:
            raise RunError(f"token {wrong[0]} is outside the vocabulary of {vocab}")
        return ids

    def _decoder(self) -> dict[str, str]:
        """Operand → tensor of the operator that advances the token loop."""
        names = self.graph.operands_of("advance")
        if self.graph.meta.get("context") is None or "generated" not in names:
            raise RunError("this kernel's graph is no decode step: build it from model.decode_graph()")
        return names

    def _check_room(self, ids: Sequence[int], max_new_tokens: int) -> None:
        context = int(self.graph.meta["context"])
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise RunError(f"max_new_tokens must be a whole number of at least 1, not {max_new_tokens!r}")
        if len(ids) + max_new_tokens > context:
            raise RunError(
                f"{len(ids)} prompt tokens and {max_new_tokens} new ones do not fit the cache of {context}: "
                "shorten the prompt or build decode_graph(context=…) larger"
            )

    @answers_slips(RunError)
    def generate(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 64,
        *,
        profile: int | Window = 0,
        raw: bool = False,
        on_token: Callable[[int, str], None] | None = None,
        chunk: int | None = None,
        session: Session | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
    ) -> Generation:
        """Continuation of a text (through the chat template unless `raw`) or of token ids, greedy unless told otherwise.

        The whole token loop runs inside the kernel; it stops at an end-of-sequence token or after `max_new_tokens`.
        `on_token(token, text)` is called as tokens appear, with the text that has become certain. `chunk` splits the
        loop into launches of so many steps, with equal results, of which the last is recorded; a GPU that drives a display,
        whose driver stops long kernels, gets launches of half a second. A `session` of an earlier call (from `open_session`) is
        gone on with: of the prompt only what its caches do not begin with is fed. `temperature` and what follows it are
        those of `mpklab.run.Sampling`; they are data, and the kernel that draws (`kernel.sampler`) is built once.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        runner = self._runner(sampling)
        if runner is not self:
            mine: dict[str, Any] = {
                "profile": profile,
                "raw": raw,
                "on_token": on_token,
                "chunk": chunk,
                "session": session,
            }
            try:
                return runner.generate(prompt, max_new_tokens, **mine, **vars(sampling))
            finally:
                self.last_profile = runner.last_profile or self.last_profile
        names = self._decoder()
        if chunk is not None and chunk < 1:
            raise RunError(f"chunk must be at least 1, not {chunk}")
        dim = self._one_sequence()
        told = 0

        def tell(done: int) -> None:
            nonlocal told
            now.say(f"{done} of at most {max_new_tokens} tokens")
            if on_token is None:
                return
            at = len(ids) + told
            for token in generated()[0, at : len(ids) + done].tolist():
                told += 1
                on_token(token, stream.push(token) if stream else "")

        with Progress(quiet=on_token is not None, after_s=SHORT_RUN_S) as shown:
            with shown.stage("prompt") as now:
                session, (ids,), _, (prefill_seconds,) = self._opened([prompt], max_new_tokens, raw, sampling, session)
                now.say(f"{len(ids)} tokens")
            self._built_for(window_of(profile), shown)
            generated = session.glimpse(names["generated"])
            stream = self.model.tokenizer.stream() if self.model and self.model.tokenizer and on_token else None
            with shown.stage("run") as now:
                whole = self._decoded(session, max_new_tokens, chunk, tell, dims=dim, profile=profile)
                now.say(_took(whole, "tokens"))
        if stream is not None and on_token is not None:
            tail = stream.finish()
            if tail:
                on_token(-1, tail)
        tokens = session.tensors[names["generated"]][0, len(ids) : len(ids) + whole.iterations].tolist()
        return Generation(self._text(tokens), tokens, whole.seconds, prefill_seconds, whole.profile)

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        max_new_tokens: int | Sequence[int] = 64,
        *,
        profile: int | Window = 0,
        raw: bool = False,
        **sampling: Any,
    ) -> list[Generation]:
        """Continuations of several prompts at once, at most as many as the kernel's batch; each stops on its own.

        `max_new_tokens` is one number or one for each prompt. The launch is shared, and so are its seconds and profile.
        `sampling` holds `temperature` and the other rules that `generate` takes.
        """
        rules = Sampling(**_rules("generate_batch", Kernel.generate_batch, sampling))
        runner = self._runner(rules)
        if runner is not self:
            try:
                return runner.generate_batch(prompts, max_new_tokens, profile=profile, raw=raw, **sampling)
            finally:
                self.last_profile = runner.last_profile or self.last_profile
        names = self._decoder()
        if isinstance(prompts, str) or not prompts:
            raise RunError("generate_batch takes a list of at least one prompt; generate takes a single one")
        with Progress(after_s=SHORT_RUN_S) as shown:
            with shown.stage("prompt") as now:
                session, ids, limits, prefill_seconds = self._opened(prompts, max_new_tokens, raw, rules)
                now.say(f"{sum(map(len, ids))} tokens of {len(ids)} prompts")
            self._built_for(window_of(profile), shown)
            with shown.stage("run") as now:
                outcome = self._decoded(
                    session,
                    max(limits),
                    None,
                    lambda done: now.say(f"{done} of at most {max(limits)} steps"),
                    dims=self._live(len(ids)),
                    profile=profile,
                )
                now.say(_took(outcome, "steps"))
        made = []
        for slot, (prompt, seconds) in enumerate(zip(ids, prefill_seconds, strict=True)):
            end = int(session.tensors[names["position"]][slot]) + 1
            tokens = session.tensors[names["generated"]][slot, len(prompt) : end].tolist()
            made.append(Generation(self._text(tokens), tokens, outcome.seconds, seconds, outcome.profile))
        return made

    def _decoded(
        self, session: Session, most: int, chunk: int | None, tell: Callable[[int], None], **how: Any
    ) -> Outcome:
        """The token loop, in one launch unless `chunk` or the GPU's time limit wants several: steps and seconds of all,
        and the profile of the last."""
        done = session.tensors[self._decoder()["done"]]
        steps, seconds = 0, 0.0

        def progress(launched: int) -> None:
            tell(steps + launched)

        while True:
            asked = min(chunk or self._steps_at_once(steps, seconds), most - steps)
            last = session.launch(asked, on_progress=progress, **how)
            steps, seconds = steps + last.iterations, seconds + last.seconds
            if steps >= most or last.iterations < asked or bool(done.all()):
                return Outcome(steps, seconds, last.profile)

    def _steps_at_once(self, steps: int, seconds: float) -> int:
        """How many steps a launch may take, after so many took so long: any, but where the driver has a time limit."""
        if not self.time_limited:
            return 1 << 30
        return max(1, int(SHORT_LAUNCH_S * steps / seconds)) if seconds else 1

    @cached_property
    def time_limited(self) -> bool:
        """Whether the driver stops kernels that run for seconds, as on a GPU that drives a display."""
        return self.backend == "cuda" and device.has_time_limit()

    def session_for(
        self, *prompts: str | Sequence[int], max_new_tokens: int | Sequence[int] = 64, raw: bool = False
    ) -> Session:
        """A session whose first rows stand where generation would begin, for launching step by step; the rest are done."""
        session, _, _, _ = self._opened(prompts, max_new_tokens, raw)
        return session

    @cached_property
    def sampler(self) -> Kernel:
        """The kernel of the same model, plan and policy whose step draws its token: itself, or built when first used."""
        if draws(self.graph):
            return self
        schedule = verify(drawing(self.schedule, self.model))
        made = replace(self, schedule=schedule, delay=None, last_profile=None, _libraries={})
        made.library(0)
        return made

    def _runner(self, sampling: Sampling) -> Kernel:
        return self if sampling.plain else self.sampler

    def open_session(self, **sampling: Any) -> Session:
        """A session without a sequence, for calls of `generate` with the same rules that each go on where one ended."""
        runner = self._runner(Sampling(**_rules("open_session", Kernel.open_session, sampling)))
        session = runner.new_session()
        runner._set_up(session)
        return session

    def _opened(
        self,
        prompts: Sequence[str | Sequence[int]],
        max_new_tokens: int | Sequence[int],
        raw: bool,
        sampling: Sampling | None = None,
        session: Session | None = None,
    ) -> tuple[Session, list[list[int]], list[int], list[float]]:
        """A session with prompts in its rows; their tokens, how many may follow each, and the seconds of each prefill."""
        first = self.graph.tensors[self._decoder()["token"]].shape[0]
        if not prompts:
            raise RunError("a session needs at least one prompt")
        if len(prompts) > upper(first):
            raise RunError(f"{len(prompts)} prompts are more than the {upper(first)} sequences of this kernel's batch")
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        if len(limits) != len(prompts):
            raise RunError(f"max_new_tokens holds {len(limits)} numbers for {len(prompts)} prompts")
        ids = [self._prompt(prompt, raw) for prompt in prompts]
        for prompt, limit in zip(ids, limits, strict=True):
            self._check_room(prompt, limit)
        if session is None:
            session = self.new_session()
        elif session.kernel is not self:
            raise RunError(
                "the session belongs to another kernel: kernel.open_session(…) with the same rules (temperature, …) "
                "makes one for these calls"
            )
        self._set_up(session, sampling or Sampling())
        seconds = [self._place(session, slot, ids[slot], limits[slot]) for slot in range(len(ids))]
        return session, ids, limits, seconds

    def _live(self, count: int) -> dict[str, int]:
        """Dims for so many sequences."""
        first = self.graph.tensors[self._decoder()["token"]].shape[0]
        return {} if isinstance(first, int) else {str(first): count}

    def _text(self, tokens: list[int]) -> str:
        return self.model.tokenizer.decode(tokens) if self.model and self.model.tokenizer else ""

    def stream(
        self, prompt: str | Sequence[int], max_new_tokens: int = 64, *, raw: bool = False, **sampling: Any
    ) -> Iterator[str]:
        """`generate` as an iterator over pieces of text, as they become certain; it takes the same rules."""
        pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        closed = threading.Event()

        def put(_: int, text: str) -> None:
            if closed.is_set():
                raise GeneratorExit
            pieces.put(text)

        def work() -> None:
            try:
                self.generate(prompt, max_new_tokens, raw=raw, on_token=put, **sampling)
                pieces.put(None)
            except BaseException as error:
                pieces.put(error)

        thread = threading.Thread(target=copy_context().run, args=(work,), name="mpklab-stream", daemon=True)
        thread.start()
        try:
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                if piece:
                    yield piece
        finally:
            closed.set()
            thread.join()

    def _one_sequence(self) -> dict[str, int]:
        """Dims for a single request; a kernel of a fixed larger batch is not asked to serve one by mistake."""
        first = self.graph.tensors[self._decoder()["token"]].shape[0]
        if isinstance(first, int) and first != 1:
            raise RunError(f"this kernel decodes {first} sequences at once: use Kernel.generate_batch")
        return self._live(1)

    def _set_up(self, session: Session, sampling: Sampling | None = None) -> None:
        """Every row of the batch is done, and nothing but end-of-sequence tokens and rules is given."""
        names = self._decoder()
        t = session.tensors
        rows, eos_size = (self.graph.tensors[names[k]].type.sizes[0] for k in ("token", "eos"))
        eos = list(self.model.config.eos) if self.model else []
        t[names["eos"]] = torch.tensor(
            (eos + [-1] * eos_size)[:eos_size], dtype=torch.int32, device=t[names["done"]].device
        )
        t[names["limit"]] = torch.zeros(rows, dtype=torch.int32, device=t[names["done"]].device)
        t[names["done"]].fill_(1)
        drawn = self.graph.operands_of("sample_reduce")
        if drawn:
            rules, seed = (sampling or Sampling()).rules(rows)
            t[drawn["sampling"]], t[drawn["seed"]] = rules.to(session.device), seed.to(session.device)

    def _place(self, session: Session, slot: int, ids: list[int], max_new_tokens: int) -> float:
        """Put a sequence into a row of the batch: of all but its last token those go through prefill that its cache does
        not begin with. Returns the seconds of that."""
        names = self._decoder()
        t = session.tensors
        session.check_complete()  # before the prompt is read with what is missing
        first = session.holds(ids, slot)
        t[names["position"]][slot] = first  # rows from here on are no longer what they were
        seconds = prefill(t, self.graph, ids[first:-1], slot, first)
        t[names["generated"]][slot, : len(ids)] = torch.tensor(ids, device=session.device)
        drawn = self.graph.operands_of("sample_reduce")
        if drawn:
            t[drawn["seen"]][slot] = _seen(ids, t[drawn["seen"]].shape[1]).to(session.device)
        t[names["token"]][slot], t[names["position"]][slot] = ids[-1], len(ids) - 1
        t[names["limit"]][slot], t[names["done"]][slot] = len(ids) + max_new_tokens, 0
        return seconds

    def __str__(self) -> str:
        library = self._libraries.get(0)
        how = ""
        if library:
            cached = ", from the cache" if library.cached else ""
            how = f" ({library.compiler.rpartition('/')[2]}, {library.seconds:.2f} s{cached})"
        kind = "Kernels per operator of" if self.per_operator else "Kernel"
        return f"{kind} {self.graph.name} on {self.backend} with {self.schedule.workers} workers{how}"


def _took(outcome: Outcome, what: str) -> str:
    """How many there were, how long each took, and what was recorded of them."""
    each = outcome.seconds * 1e3 / max(1, outcome.iterations)
    level = outcome.profile.level if outcome.profile is not None else 0
    return f"{outcome.iterations} {what}, {each:.3g} ms each{f', recorded at level {level}' if level else ''}"


def _seen(ids: Sequence[int], words: int) -> torch.Tensor:
    """int32 [words]: bit i % 32 of word i / 32 for each token i."""
    bits = np.zeros(words * 32, np.uint8)
    bits[list(ids)] = 1
    return torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32))


def _rules(name: str, method: Callable[..., Any], words: dict[str, Any]) -> dict[str, Any]:
    """What a method was given beyond its own keywords: rules of sampling, and nothing else."""
    known = [*known_keywords(method), *Sampling.__dataclass_fields__]
    for word in words:
        if word not in Sampling.__dataclass_fields__:
            raise RunError(f"{name} takes no {word!r}: {suggest(word, known)}")
    return words
