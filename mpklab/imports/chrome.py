"""Chrome's trace events as a profile: complete (X) and begin/end (B, E) events; a thread becomes a worker."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpklab.analysis.intervals import nesting_order
from mpklab.errors import ProfileError
from mpklab.frames.records import PHASES
from mpklab.imports.writing import BEGIN, END, EXECUTE, MAX_ARG, MAX_FILE, read_file, write_lanes
from mpklab.profile import Profile

MAX_ROLES = 8  # lanes of one thread, where its slices overlap without nesting
MAX_WORKERS = 1 << 14
MAX_US = (1 << 52) / 1000  # on either side of the middle: times are exact as floats
MAX_NAME = 80
PIECE = 1 << 20  # bytes unpacked at a time


def from_chrome(source: str | os.PathLike[str] | Mapping[str, Any]) -> Profile:
    """A trace file (`.json`, also gzipped, or its parsed content) as a profile.

    Each (pid, tid) is a worker, in order of appearance; each name an operator, each slice a task. Slices of one thread
    that overlap without nesting go to further lanes of it. Nested slices stay inside their parents: analyses count the
    outermost. Slices without an end last until their thread's last stamp. `meta` has the threads' names and how many
    events could not be read (`skipped`). ProfileError for what is no such trace, or has no slices.
    """
    events = _events(source)
    slices, open_slices, threads = [], defaultdict(list), {}  # type: ignore[var-annotated]
    names: dict[tuple[str, ...], str] = {}
    last: dict[int, float] = defaultdict(float)
    kinds: Counter[str] = Counter()
    skipped = 0
    for e in events:
        try:
            kind = e["ph"]
            kinds[str(kind)] += 1
            key = (str(e.get("pid", 0)), str(e.get("tid", 0)))
            if kind == "M" and e.get("name") in ("process_name", "thread_name"):
                names[key if e["name"] == "thread_name" else key[:1]] = str((e.get("args") or {}).get("name", ""))
            if kind not in ("X", "B", "E"):
                continue
            begin = float(e["ts"])
            stop = begin + max(0.0, float(e.get("dur", 0.0))) if kind == "X" else begin
            if not (math.isfinite(begin) and math.isfinite(stop)):
                skipped += 1
                continue
            thread = threads.setdefault(key, len(threads))
            if kind == "X":
                slices.append((thread, begin, stop, str(e.get("name", "")), str(e.get("cat", ""))))
            elif kind == "B":
                open_slices[thread].append((begin, str(e.get("name", "")), str(e.get("cat", ""))))
            elif open_slices[thread]:
                since, name, category = open_slices[thread].pop()
                slices.append((thread, since, max(since, begin), name, category))
            else:
                skipped += 1
            last[thread] = max(last.get(thread, stop), stop)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            skipped += 1
    for thread, left in open_slices.items():
        slices += [(thread, since, max(since, last[thread]), name, category) for since, name, category in left]
    if not slices:
        raise ProfileError(_nothing(events, kinds))
    # Stamps may count from 1970; what lies months from the rest of the trace is no part of the run.
    middle = sorted(s[1] for s in slices)[len(slices) // 2]
    near = [s for s in slices if s[1] > middle - MAX_US and s[2] < middle + MAX_US]
    skipped += len(slices) - len(near)
    if len(threads) > MAX_WORKERS or len(near) >= MAX_ARG:
        raise ProfileError(f"{len(near)} slices of {len(threads)} threads are more than a profile can hold")
    known = {
        thread: f"{names.get(key[:1]) or key[0]}/{names.get(key) or key[1]}"[:MAX_NAME]
        for key, thread in threads.items()
    }
    return _profile(near, known, skipped)


def _nothing(events: list[Any], kinds: Mapping[str, int]) -> str:
    """Why there is nothing to make a profile of."""
    wanted = "expected complete (ph X) or begin and end events (ph B, E), with a time ts"
    if kinds:
        found = ", ".join(f"{count} of ph {kind!r:.12}" for kind, count in sorted(kinds.items())[:8])
    else:
        fields = next((sorted(map(str, e))[:12] for e in events if isinstance(e, Mapping)), None)
        found = f"{len(events)} events" + (f", the first with the fields {', '.join(fields):.200}" if fields else "")
    return f"the trace has no slices: {wanted}; found {found}"


def _events(source: str | os.PathLike[str] | Mapping[str, Any]) -> list[Any]:
    found: Any = source
    if not isinstance(source, Mapping):
        data = read_file(source)
        try:
            if data[:2] == b"\x1f\x8b":
                data = _unpacked(data, str(source))
            found = _parsed(data)
        except (ValueError, RecursionError, EOFError, OSError, zlib.error) as e:
            raise ProfileError(f"{source}: not a JSON trace: {type(e).__name__}: {e!s:.200}") from e
    events = found.get("traceEvents") if isinstance(found, Mapping) else found
    if not isinstance(events, list):
        raise ProfileError("not Chrome's trace format: expected a list of events, or one under traceEvents")
    return events


def _parsed(data: bytes) -> Any:
    """JSON; a list's closing bracket may be missing, as the format allows writers that may be killed."""
    try:
        return json.loads(data)
    except json.JSONDecodeError:
        if not data.lstrip().startswith(b"["):
            raise
        return json.loads(data.rstrip().rstrip(b",") + b"]")


def _unpacked(data: bytes, name: str) -> bytes:
    """What gzip packed; piece by piece, because a reader takes room at once for all that it is asked for."""
    parts, size = [], 0
    with gzip.open(io.BytesIO(data)) as f:
        while part := f.read(PIECE):
            parts.append(part)
            size += len(part)
            if size > MAX_FILE:
                raise ProfileError(f"{name}: unpacks to more than {MAX_FILE >> 20} MiB")
    return b"".join(parts)


def _profile(slices: list[tuple[int, float, float, str, str]], threads: dict[int, str], skipped: int) -> Profile:
    slices.sort(key=lambda s: (s[0], s[1], -s[2]))
    zero = min((s[1] for s in slices), default=0.0)
    thread = np.array([s[0] for s in slices], np.int64)
    begin = np.rint([(s[1] - zero) * 1000 for s in slices]).astype(np.int64)
    end = np.maximum(begin, np.rint([(s[2] - zero) * 1000 for s in slices]).astype(np.int64))
    role, crowded = _roles(thread.tolist(), begin.tolist(), end.tolist())
    roles = int(role.max(initial=0)) + 1
    names = [s[3] if s[4] in ("execute", "") or s[4] not in PHASES else s[4] for s in slices]
    place: dict[str, int] = {}
    operator = np.array([place.setdefault(n, len(place)) for n in names], np.int64)
    order = np.argsort(operator, kind="stable")
    task = np.empty(len(slices), np.int64)
    task[order] = np.arange(len(slices))
    lane = thread * roles + role
    turn = nesting_order(lane, begin, end)
    which = turn // 2
    is_end = turn % 2 == 1
    kind = np.where(is_end, END, BEGIN)
    phase = np.full(which.size, EXECUTE)
    # An iteration of ours, come back through our own export, is written anew around the lane.
    drop = np.array([s[4] == "iteration" and s[3] == "iteration" for s in slices], bool)
    keep = ~drop[which] if which.size else np.zeros(0, bool)
    workers = max(1, len(threads))
    lanes = write_lanes(
        workers * roles,
        roles,
        lane[which][keep],
        kind[keep],
        phase[keep],
        task[which][keep],
        np.where(is_end, end[which], begin[which])[keep],
    )
    return Profile.from_parts(
        lanes,
        workers,
        roles,
        level=1,
        clock_hz=1e9,
        operators=[{"name": n, "op": n, "layer": -1} for n in place],
        tasks={"operator": operator[order], "worker": thread[order]},
        meta={
            "source": "Chrome trace",
            "threads": {str(w): name for w, name in threads.items()},
            "skipped": skipped,
            "crowded": crowded,
        },
    )


def _roles(thread: list[int], begin: list[int], end: list[int]) -> tuple[np.ndarray, int]:
    """For every slice the first lane of its thread in which it nests; and how many found none and share the last."""
    out = np.zeros(len(thread), np.int64)
    stacks: list[list[int]] = []
    current, crowded = -1, 0
    for i, (t, b, e) in enumerate(zip(thread, begin, end, strict=True)):
        if t != current:
            current, stacks = t, []
        for r in range(MAX_ROLES):
            if r == len(stacks):
                stacks.append([])
            stack = stacks[r]
            while stack and stack[-1] <= b:
                stack.pop()
            if not stack or e <= stack[-1] or r == MAX_ROLES - 1:
                crowded += bool(stack and e > stack[-1])
                stack.append(e)
                out[i] = r
                break
    return out, crowded
