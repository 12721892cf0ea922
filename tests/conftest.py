"""What all tests share: where they keep compiled kernels, and the one place that skips GPU tests."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GPU_FOLDER = ROOT / "tests" / "gpu"

# Kernels compiled by tests stay out of the user's cache; keyed by content, they may serve the next run.
os.environ.setdefault("MPKLAB_CACHE", str(ROOT / ".cache" / "tests"))
os.environ.setdefault("MPKLAB_PROGRESS", "0")
# Tests run beside each other on few cores: torch's threads would wait for one another at every small product, burning both.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test may reach for a model hub: everything comes from installed packages or is made up on the spot.
os.environ["HF_HUB_OFFLINE"] = "1"
# A shell starts what it puts into the background deaf to Ctrl-C, which some tests press and then wait for.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@functools.cache
def why_no_gpu() -> str | None:
    """What keeps GPU tests from running here, or None."""
    try:
        import torch
    except ImportError:
        return "needs an NVIDIA GPU; torch is not installed"
    if torch.cuda.is_available():
        return None
    return "needs an NVIDIA GPU; torch sees none"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if GPU_FOLDER in item.path.parents:
            reason = why_no_gpu()
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, for tests that count compiler starts or break the cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("MPKLAB_CACHE", str(folder))
    return folder
