"""The cache of unpacked GGUF models: one folder each, with the weights as one flat file that is mapped, not read.

A folder holds config.json (mpklab's), weights.bin (the flat buffer of `config.layout`), tokenizer.json and
tokenizer_config.json. It is made under another name and published by renaming it, so nobody sees a half-made one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import torch

from mpklab import env
from mpklab.errors import EnvError
from mpklab.models.config import Config, layout
from mpklab.models.gguf_file import GgufFile, check_magic
from mpklab.models.tokenizer import Tokenizer
from mpklab.models.weights import Weights, torch_dtype

# Raise it when the unpacked form changes in any way: folders of another format are not looked at.
FORMAT = 1
_SAMPLE_BYTES = 1 << 20
_ABANDONED_S = 3600.0
_TEMPORARY = ".making-"


def load_gguf(path: Path, dtype: str) -> tuple[Config, Weights, Tokenizer | None]:
    """A GGUF model, unpacked on its first load and mapped from the cache folder on every later one."""
    check_magic(path)
    folder = env.cache_folder() / "models" / _key(path, dtype)
    found = _open(folder)
    if found is None:
        _unpack(GgufFile(path, dtype), folder)
        found = _open(folder)
        if found is None:
            raise EnvError(f"the folder {folder} was written and cannot be read back: is the disk failing?")
    return found


def _key(path: Path, dtype: str) -> str:
    """Names a file by size, time of change, first and last MiB: reading all of an 8B file would take seconds."""
    status = path.stat()
    digest = hashlib.blake2b(f"{FORMAT} {dtype} {status.st_size} {status.st_mtime_ns}".encode(), digest_size=16)
    with path.open("rb") as file:
        digest.update(file.read(_SAMPLE_BYTES))
        file.seek(max(0, status.st_size - _SAMPLE_BYTES))
        digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _open(folder: Path) -> tuple[Config, Weights, Tokenizer | None] | None:
    """What the folder holds; None when it is absent or not whole, so that it is made anew."""
    try:
        config = Config.from_json(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        slots, elements = layout(config)
        dtype = torch_dtype(config.dtype)
        if (folder / "weights.bin").stat().st_size != elements * dtype.itemsize:
            return None
        env.private_folder(folder)
        flat = torch.from_file(str(folder / "weights.bin"), shared=False, size=elements, dtype=dtype)
        tokenizer = Tokenizer.from_folder(folder)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    with contextlib.suppress(OSError):  # a cache that may only be read still serves
        os.utime(folder)  # the cache is kept small by dropping what was not used for longest
    return config, Weights(flat, slots), tokenizer


def _unpack(source: GgufFile, folder: Path) -> None:
    slots, elements = layout(source.config)
    dtype = torch_dtype(source.config.dtype)
    needed = elements * dtype.itemsize
    env.private_folder(env.cache_folder())
    root = env.private_folder(folder.parent)
    _sweep(root)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise _no_room(root, needed, f"{free / 1e6:,.0f} MB are free")
    making: Path | None = None
    try:
        making = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=root))
        with (making / "weights.bin").open("wb") as file:
            for name, slot in slots.items():
                file.write(bytes(slot.offset * dtype.itemsize - file.tell()))  # the gap before an aligned group
                file.write(source.read(name).to(dtype).view(torch.uint8).numpy().data)
        for name, content in (source.tokenizer_files() or {}).items():
            (making / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        (making / "config.json").write_text(json.dumps(source.config.to_json(), indent=1), encoding="utf-8")
        _publish(making, folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise _no_room(root, needed, str(error.strerror)) from error
        raise EnvError(f"{root} cannot be written to ({error.strerror}); MPKLAB_CACHE names another folder") from error
    finally:
        if making is not None:
            shutil.rmtree(making, ignore_errors=True)


def _publish(making: Path, folder: Path) -> None:
    """Rename a finished folder into place; another process may have been first, and its folder is as good."""
    try:
        making.rename(folder)
    except OSError:
        if _open(folder) is not None:
            return
        # What stands there is damaged: move it aside in one step, because others may be doing the same.
        aside = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder.parent))
        try:
            if folder.exists():
                folder.rename(aside / "damaged")
            making.rename(folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Remove what killed processes left half-made."""
    for left in root.glob(_TEMPORARY + "*"):
        try:
            abandoned = time.time() - left.stat().st_mtime > _ABANDONED_S
        except OSError:
            continue
        if abandoned:
            shutil.rmtree(left, ignore_errors=True)


def _no_room(root: Path, needed: int, found: str) -> EnvError:
    return EnvError(
        f"unpacking the weights needs {needed / 1e6:,.0f} MB in {root}, and {found}: free some space "
        "(mpklab cache clear) or name another folder with MPKLAB_CACHE"
    )
