"""A profile in the formats of other tools: Perfetto, Chrome's trace viewer, Parquet, CSV."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from pathlib import Path

from mpklab.env import whole_file
from mpklab.errors import ProfileError, need_package, suggest
from mpklab.exports.chrome import chrome_trace
from mpklab.exports.perfetto import perfetto_trace
from mpklab.frames import spans
from mpklab.profile import Profile

FORMATS = {
    ".pftrace": "Perfetto's protobuf, for ui.perfetto.dev",
    ".json": "Chrome's trace events, for chrome://tracing and many others",
    ".parquet": "the spans frame, for pandas, DuckDB and polars",
    ".csv": "the spans frame as text",
}

__all__ = ["FORMATS", "chrome_trace", "export", "perfetto_trace", "to_parquet"]


def export(profile: Profile, path: str | os.PathLike[str], select: Sequence[int] = ()) -> Path:
    """Write the profile in the format that the path's suffix names (`FORMATS`; `.gz` may follow) and return the path.

    In Perfetto's format the path of blame is drawn with arrows, and so are the dependencies of the tasks in `select`.
    """
    target = Path(path)
    packed = target.suffix == ".gz"
    suffix = target.with_suffix("").suffix if packed else target.suffix
    if suffix not in FORMATS:
        raise ProfileError(f"cannot export to {target.name!r}: unknown suffix {suffix!r}; {suggest(suffix, FORMATS)}")
    try:
        with whole_file(target) as part:
            if suffix in (".pftrace", ".json"):
                data = perfetto_trace(profile, select) if suffix == ".pftrace" else chrome_trace(profile).encode()
                part.write_bytes(gzip.compress(data, 5) if packed else data)
            elif suffix == ".csv":
                spans(profile).to_csv(part, index=False, compression="gzip" if packed else None)
            else:
                _parquet(profile, part)
    except OSError as e:
        raise ProfileError(f"cannot write {target}: {e.strerror or e}") from e
    return target


def to_parquet(profile: Profile, path: str | os.PathLike[str]) -> Path:
    """The spans frame as a Parquet file; the suffix is added if there is none."""
    target = Path(path)
    return export(profile, target if target.suffix else target.with_suffix(".parquet"))


def _parquet(profile: Profile, part: Path) -> None:
    try:
        spans(profile).to_parquet(part, index=False, compression="zstd")
    except ImportError as e:
        raise need_package("pyarrow", "writing Parquet") from e
