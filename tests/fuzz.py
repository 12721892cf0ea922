"""Damaged and random input for `.mpkprof` files and every importer: guided by coverage with atheris, or just at random.

    python tests/fuzz.py [--seconds 60] [target …]

Whatever comes in, a reader returns a profile that every table takes, or raises ProfileError; anything else is a crash.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

SLOW_S = 10.0  # of one core, for one input of a few kilobytes
MEMORY = 3 << 30


def seeds() -> dict[str, bytes]:
    """One good input for each target."""
    from test_imports import buffer, first_tag, mirage_graph, new_mirage_tag, some_events
    from test_profile import small

    with tempfile.TemporaryDirectory() as folder:
        raw = small().save(Path(folder) / "seed.mpkprof").read_bytes()
    events = some_events()[0]
    trace = {"traceEvents": [{"ph": "X", "ts": 1.0 * k, "dur": 0.5, "tid": k % 2, "name": "a"} for k in range(6)]}
    return {
        "mpkprof": raw,
        "entries": b"\0\0",
        "tags": b"\0\0\x10\x00\x00",
        "flashinfer": buffer(3, 2, events, first_tag).tobytes(),
        "mirage": buffer(3, 2, events, new_mirage_tag).tobytes(),
        "graph": json.dumps(mirage_graph()).encode(),
        "chrome": json.dumps(trace).encode(),
    }


def read_mpkprof(data: bytes) -> None:
    from mpklab.profile import Profile

    look(_from_file(Profile.load, data, ".mpkprof"))


def read_entries(data: bytes) -> None:
    """One entry of a good archive, by the first byte, replaced by the rest: damage that a checksum would hide."""
    from mpklab.profile import Profile

    if not data:
        return
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(GOOD["mpkprof"])) as old, zipfile.ZipFile(out, "w") as new:
        names = sorted(old.namelist())
        for name in names:
            body = old.read(name)
            if name == names[data[0] % len(names)]:
                body = data[2:] if len(data) > 1 and data[1] & 1 else _spliced(body, data[2:])
            new.writestr(name, body)
    look(_from_file(Profile.load, out.getvalue(), ".mpkprof"))


def _spliced(body: bytes, patch: bytes) -> bytes:
    """The body with pieces written over: two bytes say where, one how long."""
    made = bytearray(body)
    while len(patch) > 3 and made:
        at, count = int.from_bytes(patch[:2], "little") % len(made), patch[2] % 9 + 1
        made[at : at + count] = patch[3 : 3 + count]
        patch = patch[3 + count :]
    return bytes(made)


def read_tags(data: bytes) -> None:
    """A good recording whose iteration numbers are damaged: two bytes say which, three what is flipped in it."""
    profile = rounds()
    for at in range(0, len(data) - 4, 5):
        which, bits = (int.from_bytes(data[i:j], "little") for i, j in ((at, at + 2), (at + 2, at + 5)))
        profile = renumbered(profile, which, lambda number, bits=bits: number ^ bits)
    look(profile)


def rounds(iterations: int = 6):
    """A recording of two workers with iterations, hand-offs and waits for the iteration before."""
    from schedules import Op, Run, make

    ops = [Op("a", tiles=2, before=("b",)), Op("b", tiles=2, after=("a",)), Op("c", after=("b",))]
    one = [[Run("a", 0, 100), Run("b", 0, 60), Run("c", 0, 10)], [Run("a", 1, 90), Run("b", 1, 80)]]
    return make(ops, [one] * iterations, latency=5, gap=1)


def renumbered(profile, which: int, change: Callable[[int], int]):
    """The profile with another number in the record that begins its `which`-th iteration, counted over all lanes."""
    from mpklab import abi
    from mpklab.frames import records

    lanes = profile.lanes.copy()
    tag = lanes.reshape(profile.n_lanes, -1)[:, abi.LANE.itemsize :].view(np.uint32)[:, ::2]
    marks = np.argwhere(((tag >> 2) & 63 == records.ITERATION) & (tag & 3 == records.BEGIN))
    lane, at = marks[which % len(marks)]
    tag[lane, at] = tag[lane, at] & 255 | (change(int(tag[lane, at]) >> 8) & 0xFFFFFF) << 8
    return replace(profile, lanes=lanes)


def read_flashinfer(data: bytes) -> None:
    from mpklab.imports import from_flashinfer

    look(from_flashinfer(np.frombuffer(data[: len(data) // 8 * 8], np.uint64)))


def read_mirage(data: bytes) -> None:
    from mpklab.imports import from_mirage

    look(from_mirage(np.frombuffer(data[: len(data) // 8 * 8], np.uint64)))


def read_graph(data: bytes) -> None:
    """A task graph beside a good buffer of Mirage's."""
    from mpklab.imports import from_mirage

    buffer = np.frombuffer(GOOD["mirage"], np.uint64)
    look(_from_file(lambda path: from_mirage(buffer, task_graph=path), data, ".json"))


def read_chrome(data: bytes) -> None:
    from mpklab.imports import from_chrome

    look(_from_file(from_chrome, data, ".json"))


TARGETS: dict[str, Callable[[bytes], None]] = {
    "mpkprof": read_mpkprof,
    "entries": read_entries,
    "tags": read_tags,
    "flashinfer": read_flashinfer,
    "mirage": read_mirage,
    "graph": read_graph,
    "chrome": read_chrome,
}
GOOD: dict[str, bytes] = {}


def _from_file(read: Callable, data: bytes, suffix: str):
    with tempfile.NamedTemporaryFile(suffix=suffix) as f:
        f.write(data)
        f.flush()
        return read(f.name)


def look(profile) -> None:
    """Every table and analysis that a damaged profile must survive."""
    from mpklab import analysis, frames

    frames.tasks(profile), frames.events(profile), frames.workers(profile), frames.operators(profile)
    frames.verdict(profile)
    table = analysis.bubbles(profile)
    assert (table[list(analysis.CLASSES)].sum(axis=1) == table["makespan_ns"]).all()
    path = analysis.blame(profile)
    assert int(path["dur_ns"].sum()) == (int(table["makespan_ns"].iloc[0]) if len(table) else 0)
    for ask in (analysis.explain, analysis.bounds, analysis.critical_path, analysis.waits, analysis.steady_state):
        ask(profile)


def one(target: str, data: bytes) -> bool:
    """Whether an input was read; ProfileError is the only other way out, and it must be quick."""
    from mpklab.errors import ProfileError

    if not GOOD:
        GOOD.update(seeds())
    begin = time.process_time()
    try:
        TARGETS[target](data)
        return True
    except ProfileError as error:
        assert str(error).strip()
        return False
    finally:
        seconds = time.process_time() - begin
        assert seconds < SLOW_S, f"{target}: {len(data)} bytes took {seconds:.1f} s"


def _never_kept(target: str, data: bytes) -> None:
    one(target, data)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes changed, cut out, doubled, or replaced by numbers that readers trip over."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        if not out:
            break
        at, count = int(rng.integers(len(out))), int(rng.integers(1, 9))
        what = int(rng.integers(6))
        if what == 0:
            out[at] = int(rng.integers(256))
        elif what == 1:
            out[at : at + count] = rng.choice([b"\x00", b"\xff", b"\x7f\xff", b"1e999", b"null", b"-1", b"[]"])
        elif what == 2:
            del out[at : at + count * int(rng.integers(1, 40))]
        elif what == 3:
            out[at:at] = out[at : at + 64]
        elif what == 4:
            out[at : at + count] = rng.bytes(count)
        else:
            del out[at:]
    return bytes(out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help="default: all, one after the other")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="corpus and crashes")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    GOOD.update(seeds())
    try:
        import atheris
    except ImportError:
        atheris = None
    for target in args.targets:
        folder = args.keep / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "seed").write_bytes(GOOD[target])
        if atheris is None:
            rng, until, count = np.random.default_rng(), time.monotonic() + args.seconds, 0
            while time.monotonic() < until:
                data = mutated(GOOD[target], rng)
                (folder / "last").write_bytes(data)
                one(target, data)
                count += 1
            print(f"{target}: {count} inputs, nothing but ProfileError")
            continue
        # libFuzzer ends its process, so each target has one of its own.
        if os.fork() == 0:
            for name in [m for m in sys.modules if m.startswith("mpklab")]:
                del sys.modules[name]
            with atheris.instrument_imports(include=["mpklab"]):
                import mpklab.analysis
                import mpklab.frames
                import mpklab.imports
                import mpklab.profile  # noqa: F401
            options = [f"-max_total_time={args.seconds}", "-timeout=20", "-rss_limit_mb=2500", "-max_len=65536"]
            options += [f"-artifact_prefix={folder}/crash-", "-print_final_stats=1", "-verbosity=0"]
            atheris.Setup([sys.argv[0], *options, str(folder)], partial(_never_kept, target))
            atheris.Fuzz()
        if os.wait()[1]:
            print(f"{target}: an input failed; see {folder}")
            return 1
        print(f"{target}: {args.seconds} s, nothing but ProfileError")
    return 0


if __name__ == "__main__":
    sys.exit(main())
