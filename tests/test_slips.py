"""Slips in arguments: each is an error that says what was probably meant, before any work; none is passed over."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mpklab as mk
from mpklab.errors import MpkError, answers_slips
from mpklab.run import Kernel
from mpklab.tasks import Plan


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    g = mk.GraphBuilder("sum")
    g.add("sum", a=g.input("a", (1, 8)), b=g.input("b", (1, 8)), role="output")
    return mk.build(mk.assign(mk.lower(g.build(), mk.Machine.cpu(2))))


def one(kernel: Kernel, **more: Any) -> Any:
    return kernel.run(a=torch.ones(1, 8), b=torch.ones(1, 8), **more)


SLIPS: list[tuple[Callable[[Kernel], Any], type[MpkError], str]] = [
    (lambda k: mk.lower(k.graph, mk.Machine.cpu(2), tilse={"add": 4}), mk.LowerError, "takes no 'tilse'"),
    (lambda k: mk.lower(k.graph, mk.Machine.cpu(2), pagse=3), mk.LowerError, "no 'pagse'.*did you mean 'pages'"),
    (lambda k: mk.lower(k.graph, mk.Machine.cpu(2), pages=-1), mk.LowerError, "pages must be a count, not -1"),
    (lambda k: mk.lower(k.graph, mk.Machine.cpu(2), pages="6"), mk.LowerError, "pages must be a count, not '6'"),
    (lambda k: Plan((), {}, {"wraps": 8}), mk.LowerError, "did you mean 'consumer_warps'|takes no 'wraps'"),
    (lambda k: mk.assign(k.schedule.tasks, polciy="zigzag"), mk.ScheduleError, "did you mean 'policy'"),
    (lambda k: mk.assign(k.schedule.tasks, priority="critical_path"), mk.ScheduleError, "priority is for mode="),
    (lambda k: mk.assign(k.schedule.tasks, priority="fastest"), mk.ScheduleError, "priority is for mode="),
    (lambda k: mk.build(k.schedule, compilr="g++"), mk.BuildError, "build takes no 'compilr': did you mean 'compiler'"),
    (lambda k: mk.time({"a": k}, round=3), mk.RunError, "time takes no 'round': did you mean 'rounds'"),
    (lambda k: one(k, iterations=1.5), mk.RunError, "iterations must be a whole number of at least 1, not 1.5"),
    (lambda k: one(k, iterations=True), mk.RunError, "iterations must be a whole number"),
    (lambda k: one(k, wait_limit_s=-1), mk.RunError, "wait_limit_s must be a positive number of seconds, not -1"),
    (lambda k: one(k, wait_limit_s=0), mk.RunError, "wait_limit_s must be a positive number of seconds, not 0"),
    (lambda k: one(k, drop_signals=99), mk.RunError, "drop_signals names task 99; there are"),
    (lambda k: k.new_session().launch(1, profle=2), mk.RunError, "launch takes no 'profle': did you mean 'profile'"),
    (lambda k: one(k, profile=1).profile.bubbles(bye="op"), MpkError, "bubbles takes no 'bye': did you mean 'by'"),
    (lambda k: k.schedule.tasks.dag(titel="x"), MpkError, "task_dag takes no 'titel': did you mean 'title'"),
    (lambda k: mk.graph_view(k.graph, flod=True), mk.GraphError, "graph_view takes no 'flod': did you mean 'fold'"),
]


@pytest.mark.parametrize("number", range(len(SLIPS)))
def test_a_slip_is_answered(kernel: Kernel, number: int) -> None:
    call, error, text = SLIPS[number]
    with pytest.raises(error, match=text):
        call(kernel)


def test_what_hands_keywords_on_is_left_alone() -> None:
    def takes_all(value: int, **options: Any) -> dict[str, Any]:
        return options

    assert answers_slips(MpkError)(takes_all)(1, anything=2) == {"anything": 2}


def test_a_checked_function_keeps_its_name_and_arguments() -> None:
    assert mk.build.__name__ == "build" and "Compile a schedule" in str(mk.build.__doc__)
    assert mk.assign.__wrapped__.__kwdefaults__["priority"] == "fifo"
