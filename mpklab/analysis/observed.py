"""What the records and the task graph say together: when each event happened, who made it happen, when tasks were ready."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np

from mpklab.frames import NEVER, decode, grid, ranks, residual
from mpklab.frames.tables import ranges
from mpklab.profile import Profile
from mpklab.recipe import events_by_words

ALWAYS = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True, eq=False)
class Protocol:
    """Waits and signals as pairs (task, event), waits sorted by task, signals by event."""

    n_events: int
    wait_task: np.ndarray
    wait_event: np.ndarray
    wait_lag: np.ndarray
    wait_remote: np.ndarray
    signal_task: np.ndarray
    signal_event: np.ndarray
    words: np.ndarray  # per event: nobody counts it, its words say themselves when they are there

    def waits_of(self, task: np.ndarray, event: np.ndarray) -> np.ndarray:
        """The index of the wait of each task for each event; -1 where there is none."""
        if not self.wait_task.size:
            return np.full(task.size, -1, np.int64)
        keys = self.wait_task.astype(np.int64) * self.n_events + self.wait_event
        order = np.argsort(keys, kind="stable")
        wanted = task.astype(np.int64) * self.n_events + event
        at = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), keys.size - 1)]
        return np.where((keys[at] == wanted) & (task >= 0) & (event >= 0), at, -1)


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """One rank's recording on the grid [iteration, task]; times in ns, NEVER where unknown.

    iterations: the number of each row · issue, fetch, start, begin, end (`signalled_ns`), done, worker: as in
    `frames.tasks` · happened, sender
    [iteration, event]: when an event's last signal was given and by which task (-1 unknown) · ready: when a task's last
    event happened, no earlier than its iteration began anywhere; ALWAYS where an event's time is not known · binding,
    binding_row: the task whose signal that was, and its row (-1 none). Of what a task waits for by words, `ready` and
    `binding` leave out who ended after its wait did: see `_words_read`.
    """

    protocol: Protocol
    rank: int
    iterations: np.ndarray
    issue: np.ndarray
    fetch: np.ndarray
    start: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    done: np.ndarray
    worker: np.ndarray
    happened: np.ndarray
    sender: np.ndarray
    ready: np.ndarray
    binding: np.ndarray
    binding_row: np.ndarray


_cache: weakref.WeakKeyDictionary[Profile, tuple[Observed, ...]] = weakref.WeakKeyDictionary()


def observe(profile: Profile) -> tuple[Observed, ...]:
    """One `Observed` per rank; remembered for as long as the profile lives."""
    found = _cache.get(profile)
    if found is None:
        rules = protocol(profile)
        found = _cache[profile] = tuple(_observe(profile, rules, rank) for rank in ranks(profile))
    return found


def awaited(profile: Profile, seen: Observed, at: np.ndarray) -> tuple[np.ndarray, ...]:
    """What recorded waits of one rank, spans `at` in the order of their lanes, were for: when it happened (NEVER unknown),
    the task that signalled it and its row (-1 unknown), and which of the protocol's waits each is (-1 none).

    Words come in any order, so a task that waits for words has one record of them: its last wait is for all its events,
    and an earlier record of an event that words stand for says nothing.
    """
    d, rules = decode(profile), seen.protocol
    nothing = np.full(at.size, -1, np.int64)
    wait = rules.waits_of(d.task[at], d.event[at])
    if not (seen.iterations.size and rules.n_events and rules.wait_task.size):
        return np.full(at.size, NEVER), nothing, nothing, wait
    own_row = d.iteration[at].astype(np.int64) - seen.iterations[0]
    row = own_row - np.where(wait >= 0, rules.wait_lag[wait], 0)
    fine = (wait >= 0) & (row >= 0) & (row < seen.iterations.size)
    r, e = np.where(fine, row, 0), np.where(fine, d.event[at], 0)
    happened, sender = seen.happened[r, e], seen.sender[r, e].astype(np.int64)
    by_words = np.zeros(profile.n_tasks + 1, bool)
    by_words[rules.wait_task[rules.words[rules.wait_event]]] = True
    if at.size and by_words.any():
        same = (d.lane[at][1:] == d.lane[at][:-1]) & (d.chain[at][1:] == d.chain[at][:-1])
        last = np.r_[~(same & (d.task[at][1:] == d.task[at][:-1])), True]
        some = fine & by_words[d.task[at]]
        own, task = np.where(some & last, np.clip(own_row, 0, seen.iterations.size - 1), 0), d.task[at]
        all_of, ready = some & last, seen.ready[own, task]
        happened = np.where(all_of, np.where(ready == ALWAYS, NEVER, ready), happened)
        sender = np.where(all_of, seen.binding[own, task], sender)
        row = np.where(all_of, seen.binding_row[own, task], row)
        fine &= ~(some & ~last & rules.words[e])
    fine &= (happened != NEVER) & (sender >= 0)
    return np.where(fine, happened, NEVER), np.where(fine, sender, -1), np.where(fine, row, -1), wait


def protocol(profile: Profile) -> Protocol:
    """Who waits for what in the schedule; taken from the edges where a profile has no waits."""
    w, s = profile.waits, profile.signals
    if not w["wait_event"].size and profile.edges:
        return graph_protocol(profile)
    tasks = np.arange(profile.n_tasks, dtype=np.int32)
    wait_task = np.repeat(tasks, np.diff(w["wait_begin"]))
    signal_task = np.repeat(tasks, np.diff(s["signal_begin"]))
    order = np.argsort(s["signal_event"], kind="stable")
    return Protocol(
        profile.n_events,
        wait_task,
        w["wait_event"],
        w["wait_lag"],
        w["wait_scope"] != 0,
        signal_task[order],
        s["signal_event"][order],
        events_by_words(profile),
    )


def graph_protocol(profile: Profile) -> Protocol:
    """Who waits for what in the graph: one event per edge set and range of producer tiles."""
    if not profile.edges:
        return protocol(profile)
    first = profile.task_first
    parts: list[tuple[np.ndarray, ...]] = []
    n_events = 0
    for e in profile.edges:
        some = np.nonzero(e["end"] > e["begin"])[0]
        pairs, back = np.unique(np.stack([e["begin"][some], e["end"][some]], 1), axis=0, return_inverse=True)
        counts = (pairs[:, 1] - pairs[:, 0]).astype(np.int64)
        parts.append(
            (
                some + first[e["consumer"]],
                back.reshape(-1) + n_events,
                np.full(some.size, e["lag"]),
                ranges(pairs[:, 0].astype(np.int64), counts) + first[e["producer"]],
                np.repeat(np.arange(len(pairs)) + n_events, counts),
            )
        )
        n_events += len(pairs)
    columns = [np.concatenate([p[i] for p in parts]).astype(np.int32) for i in range(5)]
    order = np.argsort(columns[0], kind="stable")
    task, event, lag = (c[order] for c in columns[:3])
    nowhere = np.zeros(order.size, bool)
    return Protocol(n_events, task, event, lag, nowhere, columns[3], columns[4], np.zeros(n_events, bool))


def _observe(profile: Profile, rules: Protocol, rank: int) -> Observed:
    names = ("issue_ns", "fetch_ns", "start_ns", "begin_ns", "signalled_ns", "done_ns", "worker")
    cells, iterations = grid(profile, names, rank)
    end, issue = cells["signalled_ns"], cells["issue_ns"]
    n = iterations.size
    happened = np.full((n, rules.n_events), NEVER, np.int64)
    sender = np.full((n, rules.n_events), -1, np.int32)
    if rules.signal_event.size:
        events, starts = np.unique(rules.signal_event, return_index=True)
        for i in range(n):
            times = end[i, rules.signal_task]
            last = np.maximum.reduceat(times, starts)
            all_known = np.minimum.reduceat(times, starts) != NEVER
            happened[i, events] = np.where(all_known, last, NEVER)
            order = np.argsort(times, kind="stable")  # of equal events the one written last stays
            sender[i, rules.signal_event[order]] = rules.signal_task[order]
            sender[i, events[~all_known]] = -1
    ready = np.full((n, profile.n_tasks), NEVER, np.int64)
    binding = np.full((n, profile.n_tasks), -1, np.int32)
    binding_row = np.full((n, profile.n_tasks), -1, np.int32)
    if rules.wait_task.size:
        waiters, starts = np.unique(rules.wait_task, return_index=True)
        error = round(residual(profile))
        for i in range(n):
            row = i - rules.wait_lag.astype(np.int64)
            times = np.where(row >= 0, happened[np.maximum(row, 0), rules.wait_event], NEVER)
            by = sender[np.maximum(row, 0), rules.wait_event]
            lost = (row >= 0) & (times == NEVER)
            over = cells["start_ns"][i, rules.wait_task]
            over = np.where(over == NEVER, ALWAYS - error, over) + error
            _words_read(rules, end, row, over, times, by)
            ready[i, waiters] = np.maximum.reduceat(times, starts)
            order = np.argsort(times, kind="stable")
            order = order[times[order] != NEVER]
            binding[i, rules.wait_task[order]] = by[order]
            binding_row[i, rules.wait_task[order]] = row[order]
            unknown = rules.wait_task[lost]
            ready[i, unknown], binding[i, unknown], binding_row[i, unknown] = ALWAYS, -1, -1
    if n:
        gate = np.where(issue == NEVER, ALWAYS, issue).min(1, initial=ALWAYS)
        ready = np.maximum(ready, gate[:, None])
    return Observed(
        protocol=rules,
        rank=rank,
        iterations=iterations,
        issue=issue,
        fetch=cells["fetch_ns"],
        start=cells["start_ns"],
        begin=cells["begin_ns"],
        end=end,
        done=cells["done_ns"],
        worker=cells["worker"],
        happened=happened,
        sender=sender,
        ready=ready,
        binding=binding,
        binding_row=binding_row,
    )


def _words_read(
    rules: Protocol, end: np.ndarray, row: np.ndarray, over: np.ndarray, times: np.ndarray, by: np.ndarray
) -> None:
    """When, and from whom, the last words came that each of the protocol's waits by words was for: puts that into
    `times` and `by` (NEVER, -1: from nobody) for waits that were over (at `over`) before their event's last task ended.

    A task need not read all words of an event (only one piece of the context reads the newest key), and its producer may
    go on after its last word. Either way it did not wait for who ended later than its own wait; it waited for the last
    of the others. A task for which nobody had ended by then read words while they were made: the one that ends last
    stands for them.
    """
    late = np.nonzero(rules.words[rules.wait_event] & (times > over))[0]
    if not late.size:
        return
    was = times[late], by[late]
    bounds = np.searchsorted(rules.signal_event, np.arange(rules.n_events + 1))
    events, groups = np.unique(np.stack([row[late], rules.wait_event[late]]), axis=1, return_inverse=True)
    for g, (r, e) in enumerate(events.T):
        at = late[groups.reshape(-1) == g]
        tasks = rules.signal_task[bounds[e] : bounds[e + 1]]
        tasks = tasks[np.argsort(end[r, tasks], kind="stable")]
        ended = np.searchsorted(end[r, tasks], over[at], side="right")
        times[at] = np.where(ended, end[r, tasks[ended - 1]], NEVER)
        by[at] = np.where(ended, tasks[ended - 1], -1)
    alone = ~np.isin(rules.wait_task[late], rules.wait_task[times != NEVER])
    times[late[alone]], by[late[alone]] = was[0][alone], was[1][alone]
