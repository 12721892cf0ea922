"""`rerun`: a profile's run once more, here and now, and what differs from how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mpklab import recipe
from mpklab.errors import ProfileError
from mpklab.models import Model
from mpklab.profile import Profile, Window
from mpklab.run import build
from mpklab.timing import Prepared

ALWAYS_DIFFER = ("created", "cpu.load", "device.before")  # and what begins so


def rerun(
    profile: Profile, weights: Model | Mapping[str, Any] | None = None, iterations: int | None = None
) -> pd.DataFrame:
    """Lower, verify, build and run a profile's schedule again; one row per field of the stamp, those that differ first.

    field, recorded, now, differs. The first row is the time of an iteration in ms. Inputs and weights are random unless
    given: they decide outputs, not time. The profile of the new run is in `.attrs["profile"]`. ProfileError when the
    profile holds no recipe.
    """
    schedule = recipe.schedule_of(profile)
    kernel = build(schedule, weights=weights)
    kernel.prefetch = bool(profile.meta.get("prefetch", True))
    prepared = Prepared(kernel)
    found = profile.meta.get("window")
    window = Window(**found) if isinstance(found, Mapping) else Window(level=profile.level)
    count = iterations or int(profile.meta.get("iterations", 1))
    context = schedule.tasks.graph.meta.get("context")
    if context is not None:
        count = min(count, int(context) - 2)
        prepared = Prepared(kernel, position=min(int(context) // 2, int(context) - 1 - count))
    prepared.launch(count)
    outcome = prepared.launch(count, window)
    if outcome.profile is None:
        raise ProfileError("the profile was recorded at level 0, so there is nothing to compare")
    before, now = _flat(profile.stamp), _flat(outcome.profile.stamp)
    seconds, recorded = float(profile.meta.get("seconds", float("nan"))), int(profile.meta.get("iterations", 1))
    rows: list[tuple[str, Any, Any, bool]] = [
        ("ms", seconds / recorded * 1e3, outcome.seconds / outcome.iterations * 1e3, False)
    ]
    for name in [*before, *(n for n in now if n not in before)]:
        a, b = before.get(name), now.get(name)
        rows.append((name, a, b, a != b and not name.startswith(ALWAYS_DIFFER)))
    table = pd.DataFrame(rows, columns=["field", "recorded", "now", "differs"])
    order = (~table["differs"]).astype(int)
    order.iloc[0] = -1
    table = table.iloc[order.argsort(kind="stable")].reset_index(drop=True)
    table.attrs["profile"] = outcome.profile
    return table


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as `cpu.model` → value."""
    out: dict[str, Any] = {}
    for key, v in value.items():
        if isinstance(v, Mapping):
            out |= _flat(v, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = v
    return out
