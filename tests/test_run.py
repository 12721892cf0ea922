"""Compiled kernels against the oracle, with any workers, policy, plan and recording level; and what they refuse."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny
import torch

from mpklab import models
from mpklab.dims import Dim
from mpklab.errors import DeadlockError, EnvError, RunError, ScheduleError
from mpklab.graph import Graph, GraphBuilder
from mpklab.machine import Machine
from mpklab.models import Model
from mpklab.profile import Window
from mpklab.reference import execute
from mpklab.run import Kernel, build
from mpklab.schedule import POLICIES, Schedule, assign, from_queues
from mpklab.tasks import Plan, lower

WORKERS = (1, 2, 3, 8)
LIMIT_S = 1  # of a wait that nobody ends; a busy machine holds up others too, but not for so long
STEPS = 3


def graph_of(model: Model, **choices: Any) -> Graph:
    return model.decode_graph(**{"context": tiny.CONTEXT, **choices})


def schedule_of(
    model: Model, workers: int = 2, policy: str = "locality", plan: Plan | None = None, **choices: Any
) -> Schedule:
    return assign(lower(graph_of(model), Machine.cpu(workers), plan, **choices), policy=policy)


def oracle(model: Model, schedule: Schedule, steps: int, seed: int | None = None) -> dict[str, torch.Tensor]:
    values = tiny.everything(model, schedule, tiny.state(schedule.tasks.graph))
    return execute(schedule, values, iterations=steps, seed=seed)


def ran(model: Model, schedule: Schedule, steps: int, **how: Any) -> dict[str, torch.Tensor]:
    kernel = build(schedule, weights=model)
    return kernel.run(tiny.state(schedule.tasks.graph), iterations=steps, **how).outputs


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], dtype: str, shape: str = "") -> None:
    """float32: the order of a sum's terms apart. bfloat16: a rounding apart here and there, and nowhere many."""
    for name, wanted in expected.items():
        got = found[name]
        if not wanted.is_floating_point():
            assert torch.equal(got, wanted), name
        elif dtype == "float32":
            torch.testing.assert_close(
                got, wanted, rtol=3e-5, atol=3e-5, msg=lambda text, n=name: f"{n} {shape}: {text}"
            )
        else:
            error = (got.float() - wanted.float()).square().mean().sqrt() / wanted.float().square().mean().sqrt()
            assert error < 0.01, f"{name} {shape}: relative error {error:.4f}"


# --- against the oracle ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_kernels_do_what_the_oracle_does(shape: str, dtype: str) -> None:
    """Equal plans give equal bits from the kernel whoever runs what, and the oracle's numbers in any order of its own."""
    model = tiny.model(shape, dtype)
    plan = schedule_of(model, 3).tasks.plan
    steps = STEPS if dtype == "float32" else 1  # a token chosen the other way by a rounding is another sequence
    first = None
    for workers in WORKERS:
        for number, policy in enumerate(POLICIES):
            schedule = schedule_of(model, workers, policy, plan)
            found = ran(model, schedule, steps)
            first = first or found
            assert same_bits(found, first), f"{policy} with {workers} workers"
            if number == workers % len(POLICIES):
                close(found, oracle(model, schedule, steps, seed=workers), dtype, f"{policy} {workers}")


@pytest.mark.parametrize("workers", WORKERS)
def test_the_plan_a_machine_suggests(workers: int) -> None:
    model = tiny.model()
    schedule = schedule_of(model, workers)
    close(ran(model, schedule, STEPS), oracle(model, schedule, STEPS), "float32")


@pytest.mark.parametrize(
    "passes",
    [
        ("merge_linears",),
        ("fuse_norm",),
        ("fuse_residual",),
        ("split_attention:3",),
        ("split_argmax:3",),
        ("fuse_argmax",),
        ("merge_linears", "fuse_silu_mul"),
        ("split_attention:2", "fuse_merge"),
    ],
    ids=" ".join,
)
def test_every_pass_alone(passes: tuple[str, ...]) -> None:
    """Passes change how a step is computed and not what: against the kernel of the graph as it was given."""
    model = tiny.model("qwen", layers=1)
    plain = ran(model, schedule_of(model, passes=()), STEPS)
    schedule = schedule_of(model, passes=passes)
    assert schedule.tasks.graph.text() != graph_of(model).text()
    found = ran(model, schedule, STEPS)
    close({name: found[name] for name in plain}, plain, "float32", " ".join(passes))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recording_changes_no_bit(dtype: str) -> None:
    model = tiny.model("qwen", dtype)
    schedule = schedule_of(model, 3)
    kernel = build(schedule, weights=model)
    values = tiny.state(schedule.tasks.graph)
    plain = kernel.run(values, iterations=STEPS)
    assert plain.profile is None and kernel.last_profile is None
    for level in (1, 2, 3, Window(skip=1, record=1, level=2)):
        recorded = kernel.run(values, iterations=STEPS, profile=level)
        assert same_bits(plain.outputs, recorded.outputs)
        assert recorded.profile is not None and recorded.profile is kernel.last_profile
        assert recorded.profile.n_workers == 3 and recorded.profile.n_tasks == len(schedule.tasks)


def test_weights_may_lie_in_pieces() -> None:
    """q, k and v as tensors of their own: the merged weight is bound piece by piece."""
    model = tiny.model()
    schedule = schedule_of(model)
    values = tiny.everything(model, schedule, tiny.state(schedule.tasks.graph))
    apart = {name: value.clone() for name, value in values.items()}
    weights = {n: apart.pop(n) for n, t in schedule.tasks.graph.tensors.items() if t.role == "weight" and not t.parts}
    found = build(schedule, weights=weights).run(apart, iterations=STEPS).outputs
    assert same_bits(found, ran(model, schedule, STEPS))


# --- without a step ---


def running_sum() -> Graph:
    """State that every iteration reads whole and writes in pieces, through a chain of three operators."""
    g = GraphBuilder("running-sum")
    s = g.state("s", (2, 96))
    y = g.rms_norm("norm", x=s, weight=g.weight("gain", (96,)), eps=1e-5)
    z = g.linear("mix", x=y, weight=g.weight("w", (96, 96)))
    h = g.add("shift", a=z, b=g.input("x", (2, 96)), role="output")
    g.add("accumulate", a=s, b=h, out=s)
    return g.build()


def double_buffer() -> Graph:
    """Two states that swap their contents by way of a third: every kind of hazard, within and between iterations."""
    g = GraphBuilder("swap")
    a, b, zero = g.state("a", (1, 120)), g.state("b", (1, 120)), g.input("zero", (1, 120))
    kept = g.add("keep", a=a, b=zero)
    g.add("move", a=b, b=zero, out=a)
    g.add("put", a=kept, b=zero, out=b)
    g.add("sum", a=a, b=b, role="output")
    return g.build()


@pytest.mark.parametrize("make", [running_sum, double_buffer])
def test_iterations_without_a_step(make: Callable[[], Graph]) -> None:
    """Nothing but lag-1 waits keeps iterations apart here."""
    graph = make()
    draw = torch.Generator().manual_seed(1)
    values = {
        name: torch.zeros(t.type.sizes) if name == "zero" else torch.randn(t.type.sizes, generator=draw)
        for name, t in graph.tensors.items()
        if t.role in ("input", "weight", "state")
    }
    for workers in WORKERS:
        tasks = lower(
            graph, Machine.cpu(workers), tiles={"add": 13, "linear": 8} if make is running_sum else {"add": 7}
        )
        for policy in POLICIES:
            try:
                kernel = build(assign(tasks, policy=policy))
            except ScheduleError:
                continue  # this policy lets a signal of the next iteration overtake one of this: refused, not run
            for iterations in (1, 2, 7):
                found = kernel.run(values, iterations=iterations).outputs
                expected = execute(kernel.schedule, values, iterations=iterations, seed=workers)
                close(found, expected, "float32", f"{policy} {workers} {iterations}")


# --- text and tokens ---


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    model = tiny.model()
    return build(schedule_of(model), weights=model)


def test_generation_goes_on_and_stops(kernel: Kernel) -> None:
    whole = kernel.generate([5, 6, 7], 20)
    assert len(whole.tokens) == 20 and whole.seconds > 0 and whole.profile is None
    told: list[int] = []
    assert kernel.generate([5, 6, 7], 20, on_token=lambda token, _: told.append(token)).tokens == told == whole.tokens
    for chunk in (1, 7):
        assert kernel.generate([5, 6, 7], 20, chunk=chunk).tokens == whole.tokens
    assert kernel.generate([5, 6, 7], 6).tokens == whole.tokens[:6]
    assert kernel.generate(torch.tensor([5, 6, 7]), 6).tokens == whole.tokens[:6]
    end = whole.tokens[8]
    model = tiny.model(eos=(end, 0))
    stopped = build(schedule_of(model), weights=model)
    expected = whole.tokens[: whole.tokens.index(end) + 1]
    assert stopped.generate([5, 6, 7], 20).tokens == expected
    assert stopped.generate([5, 6, 7], 20, chunk=3).tokens == expected


def test_a_prompt_may_fill_the_cache(kernel: Kernel) -> None:
    prompt = [t % 250 for t in range(tiny.CONTEXT - 1)]
    assert len(kernel.generate(prompt, 1).tokens) == 1
    with pytest.raises(RunError, match=f"{tiny.CONTEXT} prompt tokens and 1 new ones do not fit the cache"):
        kernel.generate([*prompt, 3], 1)


def test_one_build_serves_every_batch(monkeypatch: pytest.MonkeyPatch, empty_cache: object) -> None:
    """A Dim's kernel, one to four sequences of different lengths and limits, each as if it were alone."""
    starts = counted_compilers(monkeypatch)
    model = tiny.model()
    prompts, limits = [[5, 6, 7], [9], [200, 3, 4, 5, 6], [1, 2]], [20, 10, 4, 20]
    alone = build(schedule_of(model), weights=model)
    expected = [alone.generate(p, n).tokens for p, n in zip(prompts, limits, strict=True)]
    assert len(starts) == 1
    graph = graph_of(model, batch=Dim("batch", max=4))
    shared = build(assign(lower(graph, Machine.cpu(2))), weights=model)
    for count in (1, 2, 3, 4, 2):
        made = shared.generate_batch(prompts[:count], limits[:count])
        assert [g.tokens for g in made] == expected[:count]
    assert shared.generate(prompts[0], limits[0]).tokens == expected[0]
    assert len(starts) == 2
    fixed = build(assign(lower(graph_of(model, batch=4), Machine.cpu(2))), weights=model)
    assert [g.tokens for g in fixed.generate_batch(prompts[:3], limits[:3])] == expected[:3]


def counted_compilers(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every compiler start from here on, asking for its version apart."""
    from mpklab import builder

    starts: list[list[str]] = []
    real = builder._run_compiler

    def run(line: list[str], *rest: Any) -> str:
        starts.append(line)
        return real(line, *rest)

    monkeypatch.setattr(builder, "_run_compiler", run)
    return starts


def test_dims_out_of_range_are_refused() -> None:
    model = tiny.model()
    graph = graph_of(model, batch=Dim("batch", max=4))
    shared = build(assign(lower(graph, Machine.cpu(2))), weights=model)
    for prompts, says in (
        ([], "at least one prompt"),
        ("text", "a list of at least one prompt"),
        ([[1]] * 5, "5 prompts are more than the 4 sequences"),
        ([[1], []], "the prompt is empty"),
    ):
        with pytest.raises(RunError, match=says):
            shared.generate_batch(prompts, 3)
    with pytest.raises(RunError, match="2 numbers for 1 prompts"):
        shared.generate_batch([[1]], [3, 4])
    with pytest.raises(Exception, match="batch must be from 1 to 4, not 5"):
        shared.run(tiny.state(shared.graph), dims={"batch": 5})


# --- what is refused ---


def refusals() -> Iterator[tuple[Callable[[Kernel], object], str]]:
    yield lambda k: k.generate([]), "the prompt is empty"
    yield lambda k: k.generate([3, 256]), "token 256 is outside the vocabulary of 256"
    yield lambda k: k.generate([3, -1]), "token -1 is outside"
    yield lambda k: k.generate([1.5]), "a text or a sequence of token ids"
    yield lambda k: k.generate("hello"), "no tokenizer: give token ids"
    yield lambda k: k.generate([1], 0), "max_new_tokens must be a whole number of at least 1, not 0"
    yield lambda k: k.generate([1], 3, chunk=0), "chunk must be at least 1"
    yield lambda k: k.generate([1], max_tokens=3), "generate takes no 'max_tokens': did you mean 'max_new_tokens'"
    yield lambda k: k.generate_batch([[1]], rwa=True), "generate_batch takes no 'rwa'"
    yield lambda k: k.run(iteration=3), "run takes no 'iteration': did you mean 'iterations'"
    yield lambda k: k.run({"postion": 3}), "takes no tensor 'postion': did you mean 'position'"
    yield lambda k: k.run({"logits": torch.zeros(1, 256)}), "takes no tensor 'logits'"
    yield lambda k: k.run(), "no value for eos, limit"
    yield lambda k: k.run(limit=torch.zeros(2, dtype=torch.int32)), r"limit must be int32\[1\], not int32\[2\]"
    yield lambda k: k.run(limit=torch.zeros(1)), r"limit must be int32\[1\], not float32\[1\]"
    yield lambda k: k.run(limit="soon"), "limit: int32.* cannot be made of a str"
    yield lambda k: k.run(tiny.state(k.graph), iterations=0), "iterations must be a whole number of at least 1"
    yield lambda k: k.run(tiny.state(k.graph), profile=4), "level"
    yield lambda k: k.run(tiny.state(k.graph), dims={"rows": 1}), "unknown dims"


@pytest.mark.parametrize("number", range(len(list(refusals()))))
def test_what_does_not_fit_is_named(kernel: Kernel, number: int) -> None:
    call, says = list(refusals())[number]
    with pytest.raises(Exception, match=says) as refused:
        call(kernel)
    assert type(refused.value).__module__ == "mpklab.errors"
    assert len(kernel.generate([1, 2], 3).tokens) == 3  # and nothing is lost


def test_a_kernel_of_four_serves_no_single_prompt_quietly() -> None:
    model = tiny.model()
    batched = build(assign(lower(graph_of(model, batch=4), Machine.cpu(2))), weights=model)
    with pytest.raises(RunError, match="decodes 4 sequences at once: use Kernel"):
        batched.generate([1], 4)
    plain = build(assign(lower(running_sum(), Machine.cpu(2))))
    with pytest.raises(RunError, match="no decode step"):
        plain.generate([1])


@pytest.mark.parametrize("workers", [0, -1, 2.5])
def test_a_machine_needs_workers(workers: Any) -> None:
    with pytest.raises(EnvError, match="workers must be a positive number"):
        Machine.cpu(workers)
    with pytest.raises(ScheduleError, match="workers must be a positive number"):
        assign(lower(graph_of(tiny.model()), Machine.cpu(2)), workers=workers)


def test_a_schedule_that_would_hang_is_refused() -> None:
    tasks = lower(graph_of(tiny.model()), Machine.cpu(2))
    queues = [q.tolist() for q in assign(tasks).queues]
    queues[0].reverse()
    with pytest.raises(ScheduleError, match="the schedule would hang: worker"):
        build(from_queues(tasks, queues))


@pytest.mark.parametrize("recording", [0, 2])
def test_a_kernel_that_hangs_is_stopped_and_named(kernel: Kernel, recording: int) -> None:
    """One task never signals: whoever waits gives up in time, says for what, and the next run is as good as ever."""
    tasks = kernel.schedule.tasks
    values = tiny.state(kernel.graph)
    expected = kernel.run(values, iterations=2).outputs
    dropped = tasks.tasks_of("layer1.o_proj")[0]
    begin = time.process_time()
    with pytest.raises(DeadlockError, match=r"of layer1.o_proj: \d+ of \d+ signals") as stopped:
        kernel.run(values, iterations=2, drop_signals=dropped, wait_limit_s=LIMIT_S, profile=recording)
    assert time.process_time() - begin < 2 * LIMIT_S * kernel.schedule.workers
    message = str(stopped.value)
    place = f"layer1.o_proj[0] (worker {kernel.schedule.worker[dropped]}, position {kernel.schedule.position[dropped]})"
    assert place in message and f"waited over {LIMIT_S} s in iteration 0 at layer1." in message
    fault = stopped.value.fault
    assert int(tasks.event_producer[fault["event"]]) == [o.name for o in tasks.operators].index("layer1.o_proj")
    assert fault["count"] < fault["need"]
    if recording:
        assert kernel.last_profile is not None  # what was recorded up to there
    assert same_bits(kernel.run(values, iterations=2).outputs, expected)


def test_a_missing_signal_before_the_step_is_named(kernel: Kernel) -> None:
    """Whoever gives up first, at the reducer or at the start of the next iteration: it is logits that are missing."""
    dropped = kernel.schedule.tasks.tasks_of("logits")[1]
    with pytest.raises(DeadlockError, match=r"for event \d+ of logits: (1 of 2|too few) signals") as stopped:
        kernel.run(tiny.state(kernel.graph), iterations=2, drop_signals=dropped, wait_limit_s=LIMIT_S)
    assert "the test hook dropped the signals of logits[1]" in str(stopped.value)


def test_the_wait_limit_comes_from_the_environment(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPKLAB_WAIT_LIMIT_S", "0.2")
    dropped = kernel.schedule.tasks.tasks_of("layer0.o_proj")[0]
    with pytest.raises(DeadlockError, match=r"waited over 0\.2 s"):
        kernel.run(tiny.state(kernel.graph), drop_signals=dropped)


def test_a_model_without_weights_has_nothing_to_run() -> None:
    model = models.random("tiny", weights=False)
    with pytest.raises(RunError, match=r"no value for embed\.weight"):
        build(schedule_of(model), weights=model).run(eos=torch.zeros(1, dtype=torch.int32))


def test_a_prompt_without_weights_to_read_it_by_is_refused_as_well() -> None:
    model = models.random("tiny", weights=False)
    with pytest.raises(RunError, match=r"no value for .*embed\.weight, .* weights=…"):
        build(schedule_of(model), weights={"a name of no weight": torch.zeros(2)}).generate([1, 2, 3], max_new_tokens=2)
