"""What the compiler made of the CUDA kernel: fences before bulk copies of what tasks wrote, recording without a trace."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import mpklab as mk
from mpklab import device, env
from mpklab.models.config import Config

TINY = Config("tiny", 1024, 512, 2, 8, 4, 64, 1024, qk_norm=True, max_position=512)
MODES: list[dict] = [{}, {"mode": "dynamic"}]


def source(choice: dict, batch: int = 1) -> str:
    graph = mk.models.decode_graph(TINY, batch=batch, context=256)
    return mk.emit(mk.assign(mk.lower(graph, mk.Machine.named("h200")), **choice)).text


def compiler() -> str:
    try:
        import cuda.bindings.nvrtc  # noqa: F401

        return "nvrtc"
    except ImportError:
        if env.nvcc_path():
            return "nvcc"
        pytest.skip("needs NVRTC or nvcc")


def ptx_of(text: str, folder: Path) -> str:
    which = compiler()
    (folder / "kernel.cu").write_text(text)
    if which == "nvrtc":
        device.compile_cubin(text, "sm_90a", which, folder)
    else:
        options = ["-arch=sm_90a", "-std=c++20", "-O3", f"-I{env.csrc_folder() / 'include'}", "-ptx"]
        line = [str(env.nvcc_path()), *options, str(folder / "kernel.cu"), "-o", str(folder / "kernel.ptx")]
        subprocess.run(line, check=True, capture_output=True)
    return (folder / "kernel.ptx").read_text()


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


@pytest.mark.parametrize("choice", MODES, ids=str)
def test_bulk_loads_of_what_tasks_wrote_follow_a_fence(choice: dict, tmp_path: Path) -> None:
    """Generic writes, acquired from another SM, are seen by the copy engine only behind a proxy fence."""
    ptx = ptx_of(source(choice), tmp_path)
    count, late = unfenced(ptx)
    assert count >= 2, "the check no longer finds attention's loads of keys and values"
    assert not late, late
    without = re.sub(r"fence\.proxy\.async[^;]*;", "", ptx)
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


def code(cubin: bytes) -> Iterator[tuple[str, bytes]]:
    """The machine code in an ELF file: name and bytes of every section of instructions."""
    (offset,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, offset + i * size) for i in range(count)]
    for name, _, _, _, at, length, *_ in headers:
        where = headers[names][4] + name
        text = cubin[where : cubin.index(b"\0", where)].decode()
        if text.startswith(".text"):
            yield text, cubin[at : at + length]


def machine_code(text: str, include: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    folder.mkdir()
    monkeypatch.setattr(env, "csrc_folder", lambda: include.parent)
    (folder / "kernel.cu").write_text(text)
    return dict(code(device.compile_cubin(text, "sm_90a", compiler(), folder)[0]))


@pytest.mark.parametrize("choice", MODES, ids=str)
def test_level_0_is_the_code_of_sources_without_records(
    choice: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not record carries no instruction of it: byte for byte what a script's copy without the calls gives."""
    text, here = source(choice), env.csrc_folder() / "include"
    calls = stripped(tmp_path)
    assert calls > 20, "the script no longer finds the calls"
    with_calls = machine_code(text, here, tmp_path / "a", monkeypatch)
    without = machine_code(text, tmp_path / "include", tmp_path / "b", monkeypatch)
    assert with_calls == without and len(with_calls[".text.mpk_kernel"]) > 10_000
    recording = mk.emit(
        mk.assign(mk.lower(mk.models.decode_graph(TINY, context=256), mk.Machine.named("h200")), **choice), 2
    ).text
    assert machine_code(recording, here, tmp_path / "c", monkeypatch) != with_calls
