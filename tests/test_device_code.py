"""What the compiler made of the CUDA kernel: fences before bulk copies of what tasks wrote, recording without a trace."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import mpklab as mk
from mpklab import device, env
from mpklab.models.config import Config

TINY = Config("tiny", 1024, 512, 2, 8, 4, 64, 1024, qk_norm=True, max_position=512)
MODES: list[dict] = [{}, {"mode": "dynamic"}]


def source(choice: dict, level: int = 0) -> str:
    graph = mk.models.decode_graph(TINY, context=256)
    return mk.emit(mk.assign(mk.lower(graph, mk.Machine.named("h200")), **choice), level).text


def compiler() -> str:
    try:
        import cuda.bindings.nvrtc  # noqa: F401

        return "nvrtc"
    except ImportError:
        if env.nvcc_path():
            return "nvcc"
        pytest.skip("needs NVRTC or nvcc")


def machine_code(text: str, folder: Path) -> dict[str, bytes]:
    """The machine code of every section of instructions; kernel.ptx is left in the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "kernel.cu").write_text(text)
    which = compiler()
    if which == "nvcc":
        options = ["-arch=sm_90a", "-std=c++20", "-O3", f"-I{env.csrc_folder() / 'include'}", "-ptx"]
        line = [str(env.nvcc_path()), *options, str(folder / "kernel.cu"), "-o", str(folder / "kernel.ptx")]
        subprocess.run(line, check=True, capture_output=True)
    return dict(code(device.compile_cubin(text, "sm_90a", which, folder)[0]))


def code(cubin: bytes) -> Iterator[tuple[str, bytes]]:
    """What an ELF file holds: name and bytes of every section of instructions."""
    (offset,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, offset + i * size) for i in range(count)]
    for name, _, _, _, at, length, *_ in headers:
        where = headers[names][4] + name
        text = cubin[where : cubin.index(b"\0", where)].decode()
        if text.startswith(".text"):
            yield text, cubin[at : at + length]


@dataclass(frozen=True)
class Made:
    """A kernel that does not record, compiled once for all that is asked of it."""

    choice: dict
    text: str
    ptx: str
    code: dict[str, bytes]


@pytest.fixture(scope="module", params=MODES, ids=str)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder, text = tmp_path_factory.mktemp("made"), source(request.param)
    found = machine_code(text, folder)
    return Made(request.param, text, (folder / "kernel.ptx").read_text(), found)


# --- proxy fences ------------------------------------------------------------------------------------------------------


def unfenced(ptx: str) -> tuple[int, list[str]]:
    """Bulk copies of what tasks write: how many, and those that some path reaches from an acquire without a fence.

    They are the ones under the cache policy of rows that are read again, which weights do not use.
    """
    lines = [line.strip() for line in ptx.splitlines()]
    rows: set[str] = set()
    for line in lines:
        if "L2::evict_normal" in line:
            rows.add(re.findall(r"%rd\d+", line)[0])
        elif (m := re.match(r"mov\.b64\s+(%rd\d+), (%rd\d+);", line)) and m[2] in rows:
            rows.add(m[1])
    labels = {line.rstrip(":"): i for i, line in enumerate(lines) if re.fullmatch(r"\$\w+:", line)}
    copies = {
        i
        for i, line in enumerate(lines)
        if line.startswith("cp.async.bulk.shared") and re.findall(r"%rd\d+", line)[-1] in rows
    }
    # Forwards over every path: dirty from the entry and after each acquire, clean after a fence.
    begin = next(i for i, line in enumerate(lines) if line.startswith(".visible .entry"))
    seen: set[tuple[int, bool]] = set()
    todo, found = [(begin, True)], set()
    while todo:
        at, dirty = todo.pop()
        while at < len(lines) and (at, dirty) not in seen:
            seen.add((at, dirty))
            line = lines[at]
            if "ld.acquire" in line:
                dirty = True
            elif line.startswith("fence.proxy.async"):
                dirty = False
            elif at in copies and dirty:
                found.add(line)
            if m := re.match(r"(@!?%p\d+ )?bra(?:\.uni)?\s+(\$\w+);", line):
                todo.append((labels[m[2]], dirty))
                if not m[1]:
                    break
            elif re.match(r"(ret|exit|trap);", line):
                break
            assert "brx.idx" not in line, "a jump table hides paths from this check"
            at += 1
    return len(copies), sorted(found)


def test_bulk_loads_of_what_tasks_wrote_follow_a_fence(made: Made) -> None:
    """Generic writes, acquired from another SM, are seen by the copy engine only behind a proxy fence."""
    count, late = unfenced(made.ptx)
    assert count >= 2, "the check no longer finds attention's loads of keys and values"
    assert not late, late
    without = re.sub(r"fence\.proxy\.async[^;]*;", "", made.ptx)
    assert len(unfenced(without)[1]) >= 2, "the check finds nothing, whatever it is given"


# --- recording ---------------------------------------------------------------------------------------------------------


def stripped(folder: Path) -> int:
    """A copy of the sources without the calls of the recorder; returns how many there were."""
    shutil.copytree(env.csrc_folder() / "include", folder / "include")
    calls = 0
    for file in (folder / "include").rglob("*.*"):
        if file.name in ("record.h", "abi.h"):
            continue  # what the calls would do, and what they write
        text, n = re.subn(r"(?:\w+\.)*recorder\.(?:template )?\w+(?:<[^;()]*>)?\([^;]*\);", "{}", file.read_text())
        file.write_text(text)
        calls += n
    return calls


def test_level_0_is_the_code_of_sources_without_records(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not record carries no instruction of it: byte for byte what a script's copy without the calls gives."""
    calls = stripped(tmp_path)
    assert calls > 20, "the script no longer finds the calls"
    with monkeypatch.context() as patch:
        patch.setattr(env, "csrc_folder", lambda: tmp_path)
        without = machine_code(made.text, tmp_path / "without")
    assert made.code == without and len(made.code[".text.mpk_kernel"]) > 10_000


@pytest.mark.parametrize("made", MODES[:1], indirect=True, ids=str)
def test_what_records_is_other_code(made: Made, tmp_path: Path) -> None:
    assert machine_code(source(made.choice, level=2), tmp_path / "recording") != made.code
