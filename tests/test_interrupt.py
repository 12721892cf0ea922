"""Ctrl-C: a kernel under way stops at once, keeps what it recorded, and leaves the process as good as before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from mpklab.frames import spans
from mpklab.graph import Graph, GraphBuilder
from mpklab.machine import Machine
from mpklab.run import Kernel, build
from mpklab.schedule import assign
from mpklab.tasks import lower

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 0.5 * 3  # of all cores together: two workers never pause, and one thread listens
LONG = 2_000_000_000  # iterations that nobody waits for
WIDTH = 1 << 16  # large tasks, so that a second of recording stays small


def endless() -> Graph:
    """A state that grows by one for as long as it is let."""
    g = GraphBuilder("endless")
    s = g.state("s", (1, WIDTH))
    g.add("grow", a=s, b=g.input("one", (1, WIDTH)), out=s)
    return g.build()


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return build(assign(lower(endless(), Machine.cpu(2))))


def press_ctrl_c() -> list[float]:
    """Ctrl-C once this process has used half a second more, which only a running kernel does; returns a list that will hold
    what the process had used by then."""
    moment: list[float] = []
    begin = time.process_time()

    def press() -> None:
        while time.process_time() - begin < 0.5:
            time.sleep(0.01)
        moment.append(time.process_time())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    return moment


@pytest.mark.parametrize("level", [0, 1, 2])
def test_ctrl_c_stops_a_kernel(kernel: Kernel, level: int) -> None:
    one = torch.ones(1, WIDTH)
    pressed = press_ctrl_c()
    with pytest.raises(KeyboardInterrupt):
        kernel.run(one=one, iterations=LONG, profile=level)
    assert time.process_time() - pressed[0] < LIMIT_S
    if level:
        left = kernel.last_profile
        assert left is not None and left.n_workers == 2
        assert "execute" in set(spans(left)["phase"])
    assert kernel.run(one=one, iterations=5)["s"].eq(5).all()


def test_a_callback_s_own_error_stops_it_too() -> None:
    """What `on_token` raises comes out as it was raised, and the launch does not go on without anybody listening."""
    model = tiny.model()
    made = build(assign(lower(model.decode_graph(context=2000), Machine.cpu(2))), weights=model)
    expected = made.generate([1, 2], 8).tokens
    seen: list[int] = []

    def hear(token: int, _: str) -> None:
        seen.append(token)
        if len(seen) == 3:
            raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        made.generate([1, 2], 1900, on_token=hear)
    assert seen == expected[:3]
    assert made.generate([1, 2], 8).tokens == expected


def test_a_stream_may_be_left(kernel: Kernel) -> None:
    """Leaving the loop stops the thread behind it."""
    pytest.importorskip("tokenizers")
    before = threading.active_count()
    model = tiny.model()
    made = build(assign(lower(model.decode_graph(context=2000), Machine.cpu(2))), weights=model)
    words = Words()
    object.__setattr__(model, "tokenizer", words)
    expected = [words.decode([t]) for t in made.generate([1, 2], 8).tokens]
    for piece, wanted in zip(made.stream([1, 2], 1900), expected[:4], strict=False):
        assert piece == wanted
    until = time.monotonic() + 120
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before
    assert "".join(made.stream([1, 2], 8)) == "".join(expected)


class Words:
    """A tokenizer whose tokens are numbers."""

    def decode(self, tokens: list[int]) -> str:
        return "".join(f"<{t}>" for t in tokens)

    def stream(self) -> Words:
        return self

    def push(self, token: int) -> str:
        return f"<{token}>"

    def finish(self) -> str:
        return ""


def test_two_kernels_at_once() -> None:
    """Two threads, two kernels, many launches: neither sees the other, also while one of them is stopped."""
    model = tiny.model()
    generates = build(assign(lower(model.decode_graph(context=512), Machine.cpu(2))), weights=model)
    counts = build(assign(lower(endless(), Machine.cpu(3))))
    expected = generates.generate([3, 4, 5], 200).tokens
    one, faults = torch.ones(1, WIDTH), []

    def repeat(work: Callable[[int], bool], times: int) -> threading.Thread:
        def loop() -> None:
            for i in range(times):
                if not work(i):
                    faults.append(f"{work} in round {i}")

        thread = threading.Thread(target=loop)
        thread.start()
        return thread

    threads = [
        repeat(lambda _: generates.generate([3, 4, 5], 200).tokens == expected, 6),
        repeat(lambda i: bool(counts.run(one=one, iterations=50 + i, profile=i % 3)["s"].eq(50 + i).all()), 40),
        repeat(lambda i: bool(counts.run(one=one, iterations=900 + i)["s"].eq(900 + i).all()), 40),
    ]
    for thread in threads:
        thread.join(600)
    assert not faults and not any(thread.is_alive() for thread in threads)


def test_ctrl_c_in_a_program(tmp_path: Path) -> None:
    """The same from outside, in the middle of generating text: exit code 130 and no traceback."""
    code = f"""
        import sys
        sys.path.insert(0, {str(ROOT / "tests")!r})
        from test_interrupt import *
        from mpklab import cli
        def forever(_):
            k = build(assign(lower(endless(), Machine.cpu(2))))
            print("running", flush=True)
            k.run(one=torch.ones(1, WIDTH), iterations=LONG)
        cli._cache = forever
        raise SystemExit(cli.main(["cache"]))
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == cli_interrupted()
    assert "Traceback" not in errors


def cli_interrupted() -> int:
    from mpklab import cli

    return cli.INTERRUPTED


def test_interrupting_a_notebook_cell() -> None:
    """A real Jupyter kernel, its own interrupt: the cell ends at once, and the next one computes."""
    psutil = pytest.importorskip("psutil")
    manager_of = pytest.importorskip("jupyter_client.manager").start_new_kernel
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    manager, client = manager_of(kernel_name="python3", env=environment, startup_timeout=120)
    try:

        def cell(code: str, timeout: float = 600) -> tuple[dict[str, Any], str]:
            said: list[str] = []

            def hear(message: dict[str, Any]) -> None:
                if message["msg_type"] == "stream":
                    said.append(message["content"]["text"])

            answer = client.execute_interactive(textwrap.dedent(code), timeout=timeout, output_hook=hear)
            return answer["content"], "".join(said)

        status, _ = cell("from test_interrupt import *\nk = build(assign(lower(endless(), Machine.cpu(2))))")
        assert status["status"] == "ok", status
        _, said = cell("print(os.getpid())")
        pressed: list[float] = []

        def used() -> float:
            return sum(psutil.Process(int(said)).cpu_times()[:2])

        def interrupt(begin: float) -> None:
            while used() - begin < 0.5:  # by then the kernel runs
                time.sleep(0.01)
            pressed.append(used())
            manager.interrupt_kernel()

        threading.Thread(target=interrupt, args=(used(),), daemon=True).start()
        status, printed = cell(
            """
            try:
                k.run(one=torch.ones(1, WIDTH), iterations=LONG, profile=1)
            finally:
                print(json.dumps([time.process_time(), k.last_profile is not None]))
            """
        )
        assert status["status"] == "error" and status["ename"] == "KeyboardInterrupt", status
        ended, recorded = json.loads(printed)
        assert recorded and ended - pressed[0] < LIMIT_S
        status, said = cell("print(k.run(one=torch.ones(1, WIDTH), iterations=7)['s'].eq(7).all().item())")
        assert (status["status"], said.strip()) == ("ok", "True")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
