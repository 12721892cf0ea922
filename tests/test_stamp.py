"""What a recording and a table of samples say of how they were made: enough to make them again in a year."""

import subprocess
from types import SimpleNamespace

import pytest
import torch

import mpklab as mk
from mpklab import device
from mpklab.run import Kernel


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    model = mk.models.random("tiny", seed=1)
    return mk.compile(model, machine=mk.Machine.cpu(2), context=64, sampling=True, report=lambda *_: None)


def test_a_recording_names_compiler_seeds_and_hashes(kernel: Kernel) -> None:
    stamp = kernel.generate([1, 2, 3], 3, temperature=0.7, seed=(1 << 40) + 5, profile=1).profile.stamp
    first_line = subprocess.run([kernel.library().compiler, "--version"], capture_output=True, text=True).stdout
    assert stamp["compiler"].startswith(first_line.split("\n")[0]) and "-O3" in stamp["compiler"]
    assert str(kernel.library().folder) not in str(stamp), "no paths, which hold names of users"
    assert stamp["seeds"] == [(1 << 40) + 5]
    assert set(stamp["hashes"]) == {"graph", "plan", "schedule", "source"} and all(stamp["hashes"].values())


def test_what_a_device_was_doing_before_and_after(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = iter([1980, 1515])
    facts = Kernel.device_facts
    monkeypatch.setattr(Kernel, "device_facts", lambda self: {**facts(self), "clocks.sm": next(clocks)})
    stamp = kernel.generate([1, 2, 3], 2, profile=1).profile.stamp
    assert stamp["device"]["clocks.sm"] == 1515
    assert stamp["device"]["before"] == {"clocks.sm": 1980}, "what did not change is said once"


def test_nvidia_smi_is_asked_about_torch_s_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts all GPUs of the machine; CUDA_VISIBLE_DEVICES may hide some from torch."""
    second = SimpleNamespace(uuid="ffc79498-8ff3-c2dc-3b0d-fafd804516ae")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: second)
    asked = []

    def run(line: list[str], **_: object) -> SimpleNamespace:
        asked.append(line)
        return SimpleNamespace(returncode=0, stdout="580.1, 1980, 2619, 700.00, 41, 0x0\n")

    monkeypatch.setattr(subprocess, "run", run)
    found = device.facts()
    assert asked[0][-1] == "--id=GPU-ffc79498-8ff3-c2dc-3b0d-fafd804516ae"
    assert found["driver_version"] == "580.1" and found["power.limit"] == "700.00"


def test_samples_carry_a_stamp(kernel: Kernel) -> None:
    samples = mk.time({"a": kernel, "nothing": lambda: None}, rounds=1, warmup=0, iterations=2, seed=9)
    stamp = samples.attrs["stamp"]
    assert stamp["seeds"] == [9] and stamp["hashes"] == {"a": kernel.schedule.hash}
    assert stamp["device"]["workers"] == 2 and stamp["versions"]["torch"]
