"""A brute-force explorer of everything that a schedule with a pool can do in an iteration: pops in any order.

It shares nothing with mpklab's verifier. Iterations are whole: the next one's tasks are handed out when this one's step
task, or without one its last task, has ended, so one epoch holds all there is to see, if the step task cannot begin
before everything else has ended, which is looked at too. A state is what has ended, where each worker stands, and the
tasks that it has popped, in order. What a task does between its begin and its end helps nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

from explorer import Case, Verdict, must_precede

from mpklab.schedule import ITERATION, Drain, Schedule

State = tuple[int, tuple[tuple[int, tuple[int, ...]], ...]]  # ended as bits; per worker: entry, tasks held


@dataclass(frozen=True)
class Pool:
    """What a schedule adds to the tables: the ring of each task (-1: in a queue), each worker's entries and ring."""

    queue_of: tuple[int, ...]
    entries: tuple[tuple[int | Drain, ...], ...]
    own: tuple[int, ...]
    early_push: bool
    pop_ahead: int


def pool_of(schedule: Schedule) -> Pool:
    """The pool as plain data. Classes of priority are left out: a task may be popped before a more urgent one."""
    handout = schedule.handout
    assert handout is not None
    central = handout.pool == "central"
    entries = []
    for queue, drains in zip(schedule.queues, schedule.drains, strict=True):
        row: list[int | Drain] = []
        for i in range(len(queue) + 1):
            row += [d for d in drains if d.position == i]
            row += [int(queue[i])] if i < len(queue) else []
        entries.append(tuple(row))
    home = [] if schedule.home is None else schedule.home.tolist()
    ring = [-1 if w >= 0 else 0 if central else h for w, h in zip(schedule.worker.tolist(), home, strict=True)]
    own = tuple(0 if central else w for w in range(schedule.workers))
    return Pool(tuple(ring), tuple(entries), own, handout.early_push, handout.pop_ahead)


def explore_pool(case: Case, pool: Pool, limit: int = 100_000) -> Verdict | None:
    """Every reachable state; None when there are more than `limit`."""
    n, workers = len(case.operator), range(len(pool.entries))
    everything = (1 << n) - 1
    now = [[(e, own) for e, lag, own in row if lag == 0] for row in case.waits]
    signallers = [0] * len(case.need)
    for task, events in enumerate(case.signals):
        for event in events:
            signallers[event] |= 1 << task
    conflicts = {(a, b) for (b, epoch), firsts in must_precede(case).items() for a, before in firsts if before == epoch}
    owed = [[a for a in range(n) if (a, b) in conflicts] for b in range(n)]
    when = {(b, epoch): firsts for (b, epoch), firsts in must_precede(case).items()}

    def happened(event: int, done: int) -> bool:
        return signallers[event] & ~done == 0

    def may_begin(task: int, ended: int) -> bool:
        return all(own or happened(event, ended) for event, own in now[task])

    races: set[tuple[int, int]] = set()
    late: set[tuple[int, int]] = set()
    start: State = (0, tuple((0, ()) for _ in workers))
    seen, todo, hangs = {start}, [start], False
    while todo:
        ended, places = todo.pop()
        if len(seen) > limit:
            return None
        taken = ended
        for _, held in places:
            for task in held:
                taken |= 1 << task
        promised = taken if pool.early_push else ended
        after: list[State] = []

        def end(
            task: int, w: int, place: tuple[int, tuple[int, ...]], state: State, after: list[State] = after
        ) -> None:
            done, at = state
            races.update((a, task) for a in owed[task] if not done >> a & 1)
            if task == case.step and done | 1 << task != everything:
                late.update((a, task) for a in range(n) if a != task and not done >> a & 1)
                return
            after.append((done | 1 << task, (*at[:w], place, *at[w + 1 :])))

        moved = False
        for w in workers:
            i, held = places[w]
            if i == len(pool.entries[w]):
                continue
            entry = pool.entries[w][i]
            if not isinstance(entry, Drain):
                if may_begin(entry, ended):
                    moved = True
                    end(entry, w, (i + 1, ()), (ended, places))
                continue
            if len(held) <= pool.pop_ahead:
                for task in range(n):
                    pushed = pool.queue_of[task] == pool.own[w] and all(
                        signallers[e] and happened(e, promised) for e, _ in now[task]
                    )  # nobody hands out what waits for an event without signals
                    if pushed and not taken >> task & 1:
                        moved = True
                        after.append((ended, (*places[:w], (i, (*held, task)), *places[w + 1 :])))
            if held and may_begin(held[0], ended):
                moved = True
                end(held[0], w, (i, held[1:]), (ended, places))
            over = ended == everything if entry.event == ITERATION else happened(entry.event, ended)
            if over and not held:
                moved = True
                after.append((ended, (*places[:w], (i + 1, ()), *places[w + 1 :])))
        for state in after:
            if state not in seen:
                seen.add(state)
                todo.append(state)
        if not moved and ended != everything:
            hangs = True
    epochs = range(case.epochs)
    pairs = {((a, e), (b, e)) for a, b in races for e in epochs if (a, e) in when.get((b, e), ())}
    return Verdict(
        hangs, frozenset(pairs), frozenset(), frozenset(((a, e), (b, e)) for a, b in late for e in epochs), len(seen)
    )
