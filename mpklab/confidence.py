"""Medians and their ratios with 95 % intervals: the percentile bootstrap (Efron 1979), from a fixed seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 4000
BOUNDS = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Interval:
    """A median with its 95 % interval."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(samples: Sequence[float]) -> Interval:
        values = np.asarray(samples, float)
        low, high = np.quantile(np.median(values[_picks(len(values))], axis=1), BOUNDS)
        return Interval(float(np.median(values)), float(low), float(high))

    def text(self, digits: int = 2, factor: float = 1.0, unit: str = "") -> str:
        """`6.31 [6.28, 6.40]`."""
        median, low, high = (f"{x * factor:.{digits}f}" for x in (self.median, self.low, self.high))
        return f"{median}{unit} [{low}, {high}]"


def median_ratio(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], seed: int = 0) -> tuple[float, float, float]:
    """median(x) / median(y) of paired samples, and the bounds of its interval."""
    picks = _picks(len(x), seed)
    low, high = np.quantile(np.median(x[picks], axis=1) / np.median(y[picks], axis=1), BOUNDS)
    return float(np.median(x) / np.median(y)), float(low), float(high)


def _picks(samples: int, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, samples, (RESAMPLES, samples))
