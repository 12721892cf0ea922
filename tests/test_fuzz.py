"""A bounded round of what `make fuzz` does without end: damaged files and buffers are read, or refused in one way."""

from __future__ import annotations

import numpy as np
import pytest
from fuzz import TARGETS, mutated, one, seeds

ROUNDS = 40


@pytest.mark.parametrize("target", TARGETS)
def test_damage_is_read_or_refused(target):
    good = seeds()[target]
    assert one(target, good)
    rng = np.random.default_rng(5)
    read = sum(one(target, mutated(good, rng)) for _ in range(ROUNDS))
    assert read < ROUNDS or target == "tags"  # some damage was seen for what it is; any number may be an iteration's
