"""Tasks on their way from whoever pushed them to whoever pops them."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

from mpklab.schedule import Handout


class Pool:
    """Ready tasks, in one queue or one per worker, and the workers that wait for some.

    `idle`: those that would take a task, since when; the one that waits longest is served first.
    """

    def __init__(self, workers: int, handout: Handout, home: Sequence[int], priority: Sequence[float]):
        self._central = handout.pool == "central"
        self._priority = priority if handout.priority != "fifo" else None
        self._home, self._turn, self._workers = home, 0, workers
        n = 1 if self._central else workers
        self._fifo: list[deque[int]] = [deque() for _ in range(n)]
        self._heap: list[list[tuple[float, int, int]]] = [[] for _ in range(n)]
        self._pushed = 0
        self.idle: dict[int, float] = {}
        self.free_at = [0.0] * n  # when a queue's next pop may begin

    def queue_of(self, worker: int) -> int:
        """The queue that a worker pops from."""
        return 0 if self._central else worker

    def place(self, task: int) -> int:
        """The queue that a task is pushed to."""
        if self._central:
            return 0
        home = self._home[task]
        if home < 0:
            home, self._turn = self._turn, (self._turn + 1) % self._workers
        return home

    def push(self, queue: int, task: int) -> None:
        if self._priority is None:
            self._fifo[queue].append(task)
        else:
            self._pushed += 1
            heapq.heappush(self._heap[queue], (-self._priority[task], self._pushed, task))

    def pop(self, queue: int) -> int:
        """A task, or -1 where there is none."""
        if self._priority is None:
            return self._fifo[queue].popleft() if self._fifo[queue] else -1
        return heapq.heappop(self._heap[queue])[2] if self._heap[queue] else -1

    def taker(self, queue: int) -> int:
        """The idle worker that gets what was pushed to a queue, or -1."""
        if not self._central:
            return queue if queue in self.idle else -1
        return next(iter(self.idle), -1)
