"""What a GPU cannot hold, or would stop, is known beforehand: bytes needed and free, and short launches."""

from types import SimpleNamespace

import pytest
import torch

import mpklab as mk
from mpklab import device
from mpklab.run import Kernel
from mpklab.run import kernel as kernels


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    model = mk.models.random("tiny", seed=1, eos=())
    return mk.compile(model, machine=mk.Machine.cpu(2), context=64, batch=2, report=lambda *_: None)


def memory(monkeypatch: pytest.MonkeyPatch, free: int, reserved: int = 0, allocated: int = 0) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 10 * free))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: reserved)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: allocated)


def test_what_torch_holds_and_does_not_use_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    memory(monkeypatch, 1000, reserved=500, allocated=200)
    device.make_room(1300, "a session", "less")
    with pytest.raises(
        mk.RunError, match=r"a session would take 1,301 bytes on the GPU, where 1,300 are free: .* choose less"
    ):
        device.make_room(1301, "a session", "less")


def test_weights_and_sessions_are_refused_before_anything_is_allocated(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory(monkeypatch, 1000)
    model = mk.models.random("tiny", seed=1)
    gpu = mk.assign(mk.lower(model.decode_graph(context=64), mk.Machine.named("h200")))
    with pytest.raises(
        mk.RunError, match=f"the weights of tiny would take {model.weights.nbytes:,} bytes on the GPU, where 1,000"
    ):
        mk.build(gpu, weights=model)
    monkeypatch.setattr(Kernel, "backend", "cuda")
    held = sum(t.bytes for t in kernel.graph.tensors.values() if t.role not in ("input", "weight"))
    with pytest.raises(mk.RunError, match=f"a session of tiny-decode would take {held:,} bytes .* or a smaller batch"):
        kernel.new_session()


def test_launches_stay_short_where_the_driver_stops_long_ones(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step says how long a step takes; the tokens are those of one launch, also of prompts that end apart."""
    prompts, limits = [[1, 2, 3], [4, 5]], [20, 9]
    whole = kernel.generate_batch(prompts, limits)
    launched = []
    launch = kernels.Session.launch

    def timed(self: kernels.Session, iterations: int, **how: object) -> kernels.Outcome:
        made = launch(self, iterations, **how)
        launched.append(iterations)
        return kernels.Outcome(made.iterations, 0.1 * made.iterations, made.profile)

    monkeypatch.setattr(kernels.Session, "launch", timed)
    monkeypatch.setattr(kernel, "time_limited", True)
    parts = kernel.generate_batch(prompts, limits)
    assert launched == [1, 4, 4, 4, 4, 3], "of 0.1 s a step: at most 0.5 s"
    assert [g.tokens for g in parts] == [g.tokens for g in whole] and len(whole[0].tokens) == 20
    assert parts[0].seconds == pytest.approx(2.0)


def test_the_driver_is_asked_for_its_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    names = SimpleNamespace(CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT="timeout")
    driver = SimpleNamespace(
        CUresult=SimpleNamespace(CUDA_SUCCESS=0),
        CUdevice_attribute=names,
        cuDeviceGet=lambda number: (0, f"device {number}"),
        cuDeviceGetAttribute=lambda *what: (0, int(not asked.append(what))),
    )
    monkeypatch.setattr(device, "_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert device.has_time_limit() and asked == [("timeout", "device 1")]
    assert not mk.compile(
        mk.models.random("tiny", seed=1), machine=mk.Machine.cpu(2), report=lambda *_: None
    ).time_limited
