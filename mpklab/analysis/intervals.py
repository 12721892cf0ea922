"""Sets of intervals: unions, how much of one lies in another, and sums over bins of time."""

from __future__ import annotations

import numpy as np


class Union:
    """Half-open intervals merged where they touch: `starts`, `ends`, both rising, and the total `length`."""

    __slots__ = ("_before", "ends", "length", "starts")

    def __init__(self, begin: np.ndarray, end: np.ndarray):
        order = np.argsort(begin, kind="stable")
        begin, end = begin[order], end[order]
        if begin.size:
            reach = np.maximum.accumulate(end)
            new = np.r_[True, begin[1:] > reach[:-1]]
            begin, end = begin[new], reach[np.r_[np.nonzero(new)[0][1:] - 1, reach.size - 1]]
        self.starts, self.ends = begin, end
        sums = np.r_[0, np.cumsum(end - begin)]
        self._before, self.length = sums[:-1], int(sums[-1])

    def up_to(self, t: np.ndarray) -> np.ndarray:
        """The length of the set below each t."""
        if not self.starts.size:
            return np.zeros(t.shape, np.int64)
        i = np.searchsorted(self.starts, t, side="right") - 1
        j = np.maximum(i, 0)
        inside = self._before[j] + np.minimum(t, self.ends[j]) - self.starts[j]
        return np.where(i >= 0, inside, 0)

    def within(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """How much of each [low, high) the set covers."""
        return self.up_to(high) - self.up_to(low)

    def common(self, other: Union) -> int:
        """The length of what both sets cover."""
        return int(self.within(other.starts, other.ends).sum())


def apart(lane: np.ndarray, begin: np.ndarray, end: np.ndarray) -> Union:
    """The union lane by lane: intervals of different lanes never merge. Sets made with one time range can be compared."""
    shift = lane.astype(np.int64) << 44  # 4.8 hours of ns
    return Union(begin + shift, end + shift)


def binned(begin: np.ndarray, end: np.ndarray, edges: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """For each bin [edges[i], edges[i + 1]): the sum over intervals of weight × length inside it, as floats."""
    w = np.ones(begin.size) if weight is None else weight.astype(float)

    def area(at: np.ndarray) -> np.ndarray:
        """Per edge the sum of w × (edge − at) over all at below it."""
        order = np.argsort(at, kind="stable")
        t, v = at[order].astype(float), w[order]
        count, moment = np.r_[0.0, np.cumsum(v)], np.r_[0.0, np.cumsum(v * t)]
        i = np.searchsorted(t, edges)
        return np.asarray(count[i] * edges - moment[i])

    return np.diff(area(begin) - area(end))


def nesting_order(lane: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The order in which begins (2i) and ends (2i + 1) of spans must be written: per lane by time; what ends before what
    begins, inner before outer; spans of no length begin and end in one place."""
    n = lane.size
    index = np.arange(n)
    empty = begin == end
    time = np.stack([begin, end], 1).reshape(-1)
    turn = np.stack([np.ones(n, np.int8), empty.astype(np.int8)], 1).reshape(-1)
    tie = np.stack([2 * index, np.where(empty, 2 * index + 1, -index)], 1).reshape(-1)
    return np.lexsort((tie, turn, time, np.repeat(lane, 2)))
