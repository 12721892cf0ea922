"""What a study keeps: rows in append-only files, one file per process, and profiles beside them."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpklab.errors import EnvError
from mpklab.profile import SUFFIX


class Rows:
    """A folder of rows. Every row is on the disk before `append` returns, and none is ever changed.

    A process that was killed while it wrote leaves half a line at the end of its own file, which is passed over. The
    file `place` holds a random word for the machine that the folder is used on, so that the files of two folders can
    be put into one.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._file: Any = None
        try:
            (folder / "profiles").mkdir(parents=True, exist_ok=True)
            self.place = self._place(folder / "place")
        except OSError as error:
            raise EnvError(f"a study cannot be kept in {folder}: {error.strerror or error}") from error

    @staticmethod
    def _place(path: Path) -> str:
        try:
            with open(path, "x") as f:
                f.write(secrets.token_hex(4))
        except FileExistsError:
            pass
        return path.read_text().strip() or "unknown"

    def append(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        line = json.dumps({"place": self.place, **row}, default=str)
        try:
            if self._file is None:
                name = f"rows-{self.place}-{secrets.token_hex(6)}.jsonl"
                self._file = open(self.folder / name, "x", encoding="utf-8")  # noqa: SIM115
            self._file.write(line + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise EnvError(f"a row cannot be written to {self.folder}: {error.strerror or error}") from error

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Every row, those of one process in their order; of a run that two processes made, the first."""
        seen: set[tuple[str, str]] = set()
        for path in sorted(self.folder.glob("rows-*.jsonl"), key=lambda p: (p.stat().st_mtime_ns, p.name)):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue  # half a line
                if isinstance(row, dict) and isinstance(row.get("run"), str):
                    key = (str(row.get("place")), row["run"])
                    if key not in seen:
                        seen.add(key)
                        yield row

    def profile_path(self, run: str) -> Path:
        """Where the profile of a run is kept."""
        return self.folder / "profiles" / f"{run}{SUFFIX}"

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
