"""Which operators must wait for which: edge sets joined, those that others imply left out, crowded ones made coarser."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mpklab.abi import MAX_WAITS
from mpklab.tasks.edges import EdgeSet, hull

IntArray = npt.NDArray[np.int64]


@dataclass(slots=True)
class Dependence:
    """One or more edge sets of a pair of operators and a lag. A pair may have several: q, k and v are far apart."""

    producer: int
    consumer: int
    lag: int
    begin: IntArray
    end: IntArray


def dependences(edges: tuple[EdgeSet, ...]) -> list[Dependence]:
    """Edge sets as dependences, without those that lie inside another of the same pair."""
    pairs: dict[tuple[int, int, int], list[Dependence]] = {}
    for e in edges:
        group = pairs.setdefault((e.producer, e.consumer, e.lag), [])
        if any(_inside(e.begin, e.end, d.begin, d.end) for d in group):
            continue
        group[:] = [d for d in group if not _inside(d.begin, d.end, e.begin, e.end)]
        group.append(Dependence(e.producer, e.consumer, e.lag, e.begin, e.end))
    return [d for group in pairs.values() for d in group]


def _inside(begin: IntArray, end: IntArray, outer_begin: IntArray, outer_end: IntArray) -> bool:
    return bool(((end <= begin) | ((outer_begin <= begin) & (end <= outer_end))).all())


def _covers(begin: IntArray, end: IntArray, n: int) -> bool:
    """Whether the ranges together hold all of 0 … n-1."""
    mark = np.zeros(n + 1, np.int64)
    some = end > begin
    np.add.at(mark, begin[some], 1)
    np.add.at(mark, end[some], -1)
    return bool((np.cumsum(mark)[:n] > 0).all())


def prune(deps: list[Dependence], counts: IntArray, step: int) -> list[Dependence]:
    """Drop what the rest imply, task by task.

    complete[c] is the set of operators all of whose tiles come before every tile of c; cover[c] those each of whose
    tiles comes before some tile of c. Operators are bits of an integer. With a step operator, everything of one
    iteration comes before its StepControl and that before everything of the next, so lag-1 edges go; operators that
    the step does not follow yet are ordered before it.
    """
    n = len(counts)
    by_consumer: dict[int, list[Dependence]] = {}
    for d in deps:
        if d.lag == 0:
            by_consumer.setdefault(d.consumer, []).append(d)
    complete, cover = [0] * n, [0] * n
    kept: list[Dependence] = []

    def add(d: Dependence) -> None:
        p, c = d.producer, d.consumer
        kept.append(d)
        if (d.end > d.begin).all():
            complete[c] |= complete[p]
        if ((d.begin == 0) & (d.end == counts[p])).all():
            complete[c] |= (1 << p) | cover[p]
        same = [k for k in kept if (k.producer, k.consumer, k.lag) == (p, c, d.lag)]
        begin, end = (np.concatenate([getattr(k, side) for k in same]) for side in ("begin", "end"))
        if _covers(begin, end, int(counts[p])):
            cover[c] |= (1 << p) | cover[p]
        cover[c] |= complete[c]

    for c in range(n):
        for d in sorted(by_consumer.get(c, []), key=lambda d: -d.producer):
            if not complete[c] >> d.producer & 1:
                add(d)
        if c == step:
            for p in reversed(range(c)):
                if not complete[c] >> p & 1:
                    ones = np.zeros(int(counts[c]), np.int64)
                    add(Dependence(p, c, 0, ones, ones + counts[p]))
    if step < 0:
        kept += [d for d in deps if d.lag == 1]
    return kept


def prune_between(deps: list[Dependence]) -> list[Dependence]:
    """Drop lag-1 dependences that two others imply: some tile that the consumer waits for waited for all of the range."""
    into: dict[int, list[Dependence]] = {}
    pairs: dict[tuple[int, int], list[Dependence]] = {}
    for d in deps:
        into.setdefault(d.consumer, []).append(d)
        pairs.setdefault((d.producer, d.consumer), []).append(d)
    gone: set[int] = set()
    for d in deps:
        if d.lag == 0:
            continue
        implied = d.end <= d.begin
        for last in into[d.consumer]:
            for first in pairs.get((d.producer, last.producer), ()):
                if first.lag + last.lag == 1 and d is not first and d is not last and not gone & {id(first), id(last)}:
                    tile = np.arange(len(first.begin))
                    within = (last.begin[:, None] <= tile) & (tile < last.end[:, None])
                    covers = (first.begin <= d.begin[:, None]) & (d.end[:, None] <= first.end)
                    implied |= (within & covers).any(axis=1)
        if implied.all():
            gone.add(id(d))
    return [d for d in deps if id(d) not in gone]


def fewer_waits(deps: list[Dependence]) -> list[Dependence]:
    """Where some tile would wait for too many events, ranges of one producer become one."""
    waits: dict[int, Any] = {}
    for d in deps:
        waits[d.consumer] = waits.get(d.consumer, 0) + (d.end > d.begin)
    crowded = {c for c, count in waits.items() if count.max(initial=0) > MAX_WAITS}
    joined: dict[tuple[int, int, int], Dependence] = {}
    kept = []
    for d in deps:
        key = (d.producer, d.consumer, d.lag)
        if d.consumer not in crowded:
            kept.append(d)
        elif key in joined:
            held = joined[key]
            held.begin, held.end = hull((held.begin, held.end), (d.begin, d.end))
        else:
            joined[key] = replace(d)
    return kept + list(joined.values())


def coarsened(deps: list[Dependence], counts: IntArray) -> list[Dependence]:
    """Where some tile would have to signal too many events, consumers wait for all tiles of its operator instead."""
    by_producer: dict[int, list[Dependence]] = {}
    for d in deps:
        by_producer.setdefault(d.producer, []).append(d)
    coarse = set()
    for p, group in by_producer.items():
        ranges = ranges_of(group)
        mark = np.zeros(int(counts[p]) + 1, np.int64)
        np.add.at(mark, ranges[:, 0], 1)
        np.add.at(mark, ranges[:, 1], -1)
        if len(ranges) > 1 and int(np.cumsum(mark).max()) > MAX_WAITS:
            coarse.add(p)
    return [
        replace(d, begin=np.zeros_like(d.begin), end=np.where(d.end > d.begin, counts[d.producer], 0))
        if d.producer in coarse
        else d
        for d in deps
    ]


def one_after_the_other(counts: IntArray, step: int) -> list[Dependence]:
    """Every operator after all of the one before it; without a step the first after the last of the iteration before."""

    def after(producer: int, consumer: int, lag: int) -> Dependence:
        none = np.zeros(int(counts[consumer]), np.int64)
        return Dependence(producer, consumer, lag, none, none + counts[producer])

    n = len(counts)
    return [after(i, i + 1, 0) for i in range(n - 1)] + ([after(n - 1, 0, 1)] if step < 0 else [])


def ranges_of(deps: list[Dependence]) -> IntArray:
    """The distinct ranges of producer tiles that some consumer asks for, in order."""
    asked = np.concatenate([np.stack([d.begin, d.end], 1) for d in deps])
    return np.unique(asked[asked[:, 1] > asked[:, 0]], axis=0)


def counts_apart(deps: list[Dependence], counts: IntArray) -> list[Dependence]:
    """Without a step one worker may be an iteration ahead of another. What keeps their signals apart, where needed.

    A tile may signal an event again only after all that share the event have signalled it. Mostly the tile waits for a
    consumer that waited for the event. Where it does not, the tiles of the event wait for one another's last signals.
    """
    by_pair: dict[tuple[int, int], list[Dependence]] = {}
    for d in deps:
        by_pair.setdefault((d.producer, d.consumer), []).append(d)
    found: dict[int, list[tuple[int, int]]] = {}
    for d in deps:
        p, c = d.producer, d.consumer
        tile, consumer = np.arange(counts[p]), np.arange(counts[c])[:, None]
        begin, end = d.begin[:, None], d.end[:, None]
        mixed = (begin <= tile) & (tile < end) & (end > begin + 1)
        for r in by_pair.get((c, p), ()):
            if d.lag + r.lag <= 1:
                mixed &= ~((r.begin <= consumer) & (consumer < r.end))
        for r in by_pair.get((p, p), ()):
            mixed &= ~((r.begin <= begin) & (end <= r.end))
        for j in np.flatnonzero(mixed.any(axis=1)):
            found.setdefault(p, []).append((int(d.begin[j]), int(d.end[j])))
    added = []
    for p, ranges in found.items():
        first, last = np.zeros(int(counts[p]), np.int64), np.zeros(int(counts[p]), np.int64)
        at, until = -1, -1
        for low, high in sorted(ranges):
            at, until = (at, max(until, high)) if low < until else (low, high)
            first[at:until], last[at:until] = at, until
        added.append(Dependence(p, p, 1, first, last))
    return added
