"""The oracle: it runs any order that events allow, refuses to hang, shows reads before writes, and prefills caches."""

from __future__ import annotations

import pytest
import tiny
import torch

from mpklab.errors import RunError
from mpklab.graph import Graph, GraphBuilder
from mpklab.machine import Machine
from mpklab.models import Model
from mpklab.reference import execute, prefill
from mpklab.schedule import POLICIES, Schedule, assign, from_queues
from mpklab.tasks import lower
from mpklab.verifier import verify

STEPS = 3


def schedule_of(model: Model, workers: int = 2, policy: str = "locality", **choices: object) -> Schedule:
    graph = model.decode_graph(context=tiny.CONTEXT)
    return verify(assign(lower(graph, Machine.cpu(workers), **choices), policy=policy))


def outcome(model: Model, schedule: Schedule, seed: int | None = None, steps: int = STEPS) -> dict[str, torch.Tensor]:
    values = tiny.everything(model, schedule, tiny.state(schedule.tasks.graph))
    return execute(schedule, values, iterations=steps, seed=seed)


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.model()


@pytest.mark.parametrize("policy", POLICIES)
def test_any_order_gives_the_same_bits(model: Model, policy: str) -> None:
    expected = outcome(model, schedule_of(model))
    plan = schedule_of(model).tasks.plan
    for workers in (1, 3, 8):
        schedule = schedule_of(model, workers, policy, plan=plan)
        for seed in (None, 1, 2):
            assert same_bits(expected, outcome(model, schedule, seed)), f"{workers} workers, seed {seed}"


def test_a_step_is_what_transformers_computes(model: Model) -> None:
    """Prefill and a few steps, against the same model elsewhere; nothing here was written with the kernel in mind."""
    pytest.importorskip("transformers")
    peer = model.to_transformers()
    prompt = [5, 100, 23, 7, 7, 250]
    schedule = schedule_of(model)
    graph = schedule.tasks.graph
    values = tiny.everything(model, schedule, tiny.state(graph, positions=(len(prompt) - 1,)))
    for name in values:
        if name.endswith("_cache"):
            values[name] = torch.zeros_like(values[name])
    prefill(values, graph, prompt[:-1])
    values["token"] = torch.tensor([prompt[-1]], dtype=torch.int32)
    left = execute(schedule, values, iterations=STEPS)
    found = left["advance.generated"][0, len(prompt) : len(prompt) + STEPS].tolist()
    with torch.inference_mode():
        logits = peer(input_ids=torch.tensor([prompt + found[:-1]])).logits[0]
    assert found == logits[len(prompt) - 1 :].argmax(-1).tolist()
    torch.testing.assert_close(left["logits"][0], logits[-1], rtol=1e-4, atol=1e-4)


def test_prefill_fills_one_row_and_no_other(model: Model) -> None:
    graph = model.decode_graph(batch=3, context=tiny.CONTEXT)
    schedule = assign(lower(graph, Machine.cpu(2)))
    values = tiny.everything(model, schedule, tiny.state(schedule.tasks.graph))
    before = {name: values[name].clone() for name in values if name.endswith("_cache")}
    assert prefill(values, schedule.tasks.graph, [], 1) == 0.0
    prefill(values, schedule.tasks.graph, [3, 1, 4, 1, 5], 1)
    for name, was in before.items():
        assert torch.equal(values[name][[0, 2]], was[[0, 2]])
        assert torch.equal(values[name][1, :, 5:], was[1, :, 5:])
        assert not torch.equal(values[name][1, :, :5], was[1, :, :5])
    with pytest.raises(RunError, match=f"prompt of {tiny.CONTEXT + 1} tokens is longer than the cache"):
        prefill(values, schedule.tasks.graph, [1] * (tiny.CONTEXT + 1))


def test_it_stops_when_the_step_says_so(model: Model) -> None:
    schedule = schedule_of(model)
    values = tiny.everything(model, schedule, tiny.state(schedule.tasks.graph, steps=2))
    left = execute(schedule, values, iterations=9, seed=4)
    assert left["position"].tolist() == [9] and left["done"].tolist() == [1]


def test_a_schedule_that_hangs_is_named(model: Model) -> None:
    tasks = lower(model.decode_graph(context=tiny.CONTEXT), Machine.cpu(2))
    backwards = from_queues(tasks, [list(range(len(tasks)))[::-1]])
    with pytest.raises(RunError, match=r"the schedule hangs: workers \[0\] wait for ever at"):
        execute(backwards, tiny.everything(model, backwards, tiny.state(tasks.graph)))


def chain() -> Graph:
    """Two adds in a row; what is between them is nobody's input."""
    g = GraphBuilder("chain")
    a = g.input("a", (1, 64))
    g.add("second", a=g.add("first", a=a, b=a), b=a, role="output")
    return g.build()


def test_activations_start_as_nan() -> None:
    """Without its waits the second operator reads what nobody wrote: NaN, and not yesterday's memory."""
    tasks = lower(chain(), Machine.cpu(1))
    schedule = assign(tasks)
    assert execute(schedule, {"a": torch.ones(1, 64)})["second"].eq(3).all()
    blind = lower(chain(), Machine.cpu(1))
    for name in ("wait_first",):
        object.__setattr__(blind, name, getattr(blind, name) * 0)
    wrong = from_queues(blind, [list(range(len(blind)))[::-1]])
    assert execute(wrong, {"a": torch.ones(1, 64)})["second"].isnan().all()


def test_inputs_are_not_changed_and_slips_are_named() -> None:
    schedule = assign(lower(chain(), Machine.cpu(2)))
    with pytest.raises(RunError, match="no value for the input a: "):
        execute(schedule, {})
    with pytest.raises(RunError, match="no tensor 'secnd': did you mean 'second'"):
        execute(schedule, {"a": torch.ones(1, 64), "secnd": torch.ones(1)})
    model = tiny.model()
    made = schedule_of(model)
    values = tiny.everything(model, made, tiny.state(made.tasks.graph))
    before = {name: value.clone() for name, value in values.items()}
    execute(made, values)
    assert same_bits(before, values)
