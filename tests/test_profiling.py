"""`mk.profiling` records what runs inside its block and nothing else."""

import torch

import mpklab as mk


def kernel() -> mk.Kernel:
    builder = mk.GraphBuilder("profiled")
    x = builder.input("x", (1, 64))
    builder.add("y", a=x, b=x, role="output")
    return mk.compile(builder.build(), machine=mk.Machine.cpu(1), report=lambda *_: None)


def test_a_block_records_what_runs_in_it() -> None:
    k, x = kernel(), torch.ones(1, 64)
    with mk.profiling(level=1) as recorded:
        first = k.run(x=x)
        second = k.run(x=x, profile=2)  # asks for itself, and is kept beside the other
    after = k.run(x=x)
    assert [p.level for p in recorded] == [1, 2]
    assert first.profile is recorded[0] and second.profile is recorded[1]
    assert after.profile is None
    torch.testing.assert_close(first["y"], after["y"], rtol=0, atol=0)


def test_blocks_nest_and_end_with_an_error() -> None:
    k, x = kernel(), torch.ones(1, 64)
    with mk.profiling(mk.Window(level=3)) as outer:
        try:
            with mk.profiling(1) as inner:
                k.run(x=x)
                raise KeyError
        except KeyError:
            pass
        k.run(x=x)
    assert ([p.level for p in inner], [p.level for p in outer]) == ([1], [3])


def test_a_stream_is_recorded_too() -> None:
    k = mk.compile(mk.models.random("tiny", seed=1), machine=mk.Machine.cpu(2), context=64, report=lambda *_: None)
    with mk.profiling() as recorded:
        list(k.stream([1, 2, 3], 4))
    assert len(recorded) == 1 and recorded[0].level == 2


def test_a_long_run_says_how_far_it_is(monkeypatch, capsys) -> None:
    monkeypatch.setenv("MPKLAB_PROGRESS", "1")
    monkeypatch.setattr("mpklab.run.kernel.SHORT_RUN_S", 0.0)
    k, x = kernel(), torch.ones(1, 64)
    k.run(x=x, profile=2)
    name, *_, text = capsys.readouterr().err.splitlines()[-1].split(maxsplit=3)
    assert name == "run" and text.startswith("1 iterations, ") and text.endswith("recorded at level 2")
    m = mk.compile(mk.models.random("tiny", seed=1), machine=mk.Machine.cpu(2), context=64, report=lambda *_: None)
    m.generate([1, 2, 3], 4)
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["prompt", "run"]
    m.generate([1, 2, 3], 4, on_token=lambda *_: None)
    assert capsys.readouterr().err == ""
