"""Memory that all workers share: every active stream gets an equal part, so one clock of bytes serves them all."""

from __future__ import annotations

import heapq

from mpklab.simulator.costs import Costs

ARRIVED, LOADED, STOPPED = 0, 1, 2  # a task's bytes are there: through the ring, on demand; a loader has no more room
NEVER = float("inf")


class Bandwidth:
    """Processor sharing: `moved` is what one stream that ran since the beginning would have received.

    A stream that has so many bytes to go ends when `moved` has grown by them, whatever joins or leaves meanwhile; only
    the rate at which `moved` grows changes (`Costs.rate`). Each worker has a loader (one stream through its ring, in queue
    order, as far ahead as `ring_bytes` allow) and may have a stream of its own (what a task loads on demand).
    """

    def __init__(self, workers: int, costs: Costs):
        self._costs, self._ring = costs, costs.ring_bytes
        self._rates: dict[int, float] = {}  # bytes per ns, by how many streams are active
        self._moved, self._time, self._active = 0.0, 0.0, 0
        self._heap: list[tuple[float, int, int, int]] = []  # moved, number, what, worker
        self._number = 0
        self._bound = [0.0] * workers  # bytes of all tasks known to the loader, in their order
        self._taken = [0.0] * workers  # those of tasks that have begun
        self._held = [0.0] * workers  # loaded so far, while the loader rests; while it runs: moved - offset
        self._offset = [0.0] * workers
        self._stop = [-1] * workers  # the number of the entry that ends the loader's run, -1 while it rests

    def bind(self, worker: int, amount: float) -> float:
        """The loader learns of another task; what it will have loaded when that task's bytes are there."""
        self._bound[worker] += amount
        return self._bound[worker]

    def refill(self, worker: int) -> None:
        """Let the loader run as far as its ring allows; call after `bind` and `take`."""
        target = min(self._bound[worker], self._taken[worker] + self._ring)
        running = self._stop[worker] >= 0
        if not running and target > self._held[worker] * (1 + 1e-12):
            self._offset[worker] = self._moved - self._held[worker]
            self._active += 1
        elif not running:
            return
        self._stop[worker] = self._push(self._offset[worker] + target, STOPPED, worker)

    def take(self, worker: int, until: float) -> bool:
        """A task begins whose bytes end at `until`; True if they are not all there yet (ARRIVED will tell)."""
        self._taken[worker] = until
        self.refill(worker)
        held = self._moved - self._offset[worker] if self._stop[worker] >= 0 else self._held[worker]
        if held >= until * (1 - 1e-12):
            return False
        self._push(self._offset[worker] + until, ARRIVED, worker)
        return True

    def rests(self, worker: int) -> bool:
        """Whether a loader has loaded all that it knows of."""
        return self._stop[worker] < 0 and self._held[worker] >= self._bound[worker] * (1 - 1e-12)

    @property
    def crowding(self) -> float:
        """By how much longer bytes take now than those of one stream alone: 0 where nothing runs."""
        return self._costs.worker_bandwidth / 1e9 / self._rate() - 1 if self._active else 0.0

    def load(self, worker: int, amount: float) -> None:
        """A stream of the worker's own (LOADED will tell)."""
        self._active += 1
        self._push(self._moved + amount, LOADED, worker)

    def advance(self, time: float) -> None:
        """Let the streams run until `time`; no entry may lie before it."""
        if self._active:
            self._moved += (time - self._time) * self._rate()
        self._time = time

    def next_time(self) -> float:
        """When something ends next, if no stream joins or leaves before."""
        heap = self._heap
        while heap and heap[0][2] == STOPPED and heap[0][1] != self._stop[heap[0][3]]:
            heapq.heappop(heap)
        if not heap:
            return NEVER
        rest = heap[0][0] - self._moved
        return self._time + rest / self._rate() if rest > 0 and self._active else self._time

    def pop(self) -> tuple[int, int]:
        """What ended, and whose; `advance` to `next_time` first."""
        moved, _, what, worker = heapq.heappop(self._heap)
        self._moved = max(self._moved, moved)
        if what == LOADED:
            self._active -= 1
        elif what == STOPPED:
            self._active -= 1
            self._held[worker] = moved - self._offset[worker]
            self._stop[worker] = -1
        return what, worker

    def _rate(self) -> float:
        rate = self._rates.get(self._active)
        if rate is None:
            rate = self._rates[self._active] = self._costs.rate(self._active) / 1e9
        return rate

    def _push(self, moved: float, what: int, worker: int) -> int:
        self._number += 1
        heapq.heappush(self._heap, (moved, self._number, what, worker))
        return self._number
