"""compute-sanitizer over whole steps: no stray access, no race in shared memory, no misuse of barriers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CHOICES = ["static", "dynamic", "per_worker"]
LOOP = [sys.executable, str(HERE / "sanitized.py")]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])}


@cache
def expected(choice: str) -> str:
    done = subprocess.run([*LOOP, choice, "0"], capture_output=True, text=True, timeout=120, env=environment())
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def run(tool: str, choice: str, *options: str) -> str:
    """What the tool printed of the kernel's launches; the tokens must be those of a run without it."""
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if sanitizer is None:
        pytest.skip("compute-sanitizer comes with a CUDA toolkit")
    wanted = {**environment(), "MPKLAB_WAIT_LIMIT_S": "100"}  # every access is slower by orders of magnitude
    line = [sanitizer, "--tool", tool, *options, *LOOP, choice, "2"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=wanted)
    assert expected(choice).strip() in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("tool", ["memcheck", "synccheck"])
def test_is_clean(tool: str, choice: str) -> None:
    # cuda.core asks for functions that an older driver lacks, and goes on without: no fault of a kernel.
    options = ["--report-api-errors", "no"] if tool == "memcheck" else []
    said = run(tool, choice, *options)
    assert "ERROR SUMMARY: 0 errors" in said, said[-4000:]


@pytest.mark.parametrize("choice", CHOICES)
def test_no_race_but_those_that_racecheck_cannot_judge(choice: str) -> None:
    """racecheck does not follow an mbarrier's phase from one warp to another, so it reports all that the loader warp
    hands over: pages, by the copy engine, and descriptors. Hazards among the consumers' warps must be none."""
    said = run("racecheck", choice)
    hazards = re.findall(r"Race reported between .*?(?=\n=+ *\n)", said, re.DOTALL)
    assert hazards or "RACECHECK SUMMARY: 0 hazards" in said, said[-2000:]
    writes = [line for hazard in hazards for line in hazard.splitlines() if "Write access at" in line]
    # By the loader: descriptors, and copies, some without a line. By a consumer: the flag that the loader polls.
    handed_over = re.compile(r"at (mpk::Loader<|mpk::ptx::bulk_copy\(|mpk_kernel\+0x|mpk::ptx::store_flag\()")
    others = [line for line in writes if not handed_over.search(line)]
    assert not others, "\n".join(f"{line[:120]} … {line[-80:]}" for line in others)
