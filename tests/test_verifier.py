"""The verifier against two judges that share nothing with it: an explorer of every interleaving on small graphs, and
hostile executions of real ones. MPKLAB_TEST_FULL=1 runs ten times as many cases; -rP prints the counts."""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import adversary
import numpy as np
import pytest
from boxes import KINDS, MACHINE, Axis, Piece, Program, Touch, random_program, registered
from explorer import Case, Verdict, explore, explore_values
from mutants import MUTATIONS, Draft, draft_of, schedule_of

from mpklab.abi import Handoff
from mpklab.errors import LowerError, ScheduleError
from mpklab.graph import Graph, GraphBuilder
from mpklab.machine import Machine
from mpklab.models.catalog import named
from mpklab.models.config import Config
from mpklab.models.decoder import decode_graph
from mpklab.schedule import POLICIES, Schedule, assign, checked, from_queues
from mpklab.tasks import TaskGraph, lower
from mpklab.verifier import Finding, verify

FULL = 10 if os.environ.get("MPKLAB_TEST_FULL") == "1" else 1


@pytest.fixture(autouse=True)
def boxes_operator() -> Iterator[None]:
    with registered():
        yield


def judged(schedule: Schedule) -> tuple[str, Finding | None]:
    """What the verifier says: "ok", or the message and what it found."""
    try:
        verify(schedule)
    except ScheduleError as error:
        assert isinstance(error.finding, Finding)
        return str(error), error.finding
    return "ok", None


# --- small graphs: every interleaving --------------------------------------------------------------------------------


def case_of(schedule: Schedule, program: Program) -> Case:
    """The schedule's tables as plain data."""
    draft = draft_of(schedule)
    own = own_waits(schedule)
    waits = tuple(tuple((e, lag, (t, i) in own) for i, (e, lag) in enumerate(row)) for t, row in enumerate(draft.waits))
    return Case(
        tuple(map(tuple, draft.queues)),
        program.operator,
        waits,
        tuple(map(tuple, draft.signals)),
        tuple(draft.need),
        schedule.tasks.step_task,
        program.memories(),
    )


def own_waits(schedule: Schedule) -> set[tuple[int, int]]:
    """(task, index of its wait) for every wait that the worker's own order answers."""
    first = schedule.tasks.wait_first
    at = np.flatnonzero(schedule.handoff == int(Handoff.worker))
    task = np.searchsorted(first, at, "right") - 1
    return set(zip(task.tolist(), (at - first[task]).tolist(), strict=True))


def compare(case: Case, verdict: Verdict, said: str, finding: Finding | None) -> str:
    """The two verdicts as one word; AssertionError when they differ without a reason that this test knows."""
    given = [sum(row.count(e) for row in case.signals) for e in range(len(case.need))]
    if given != list(case.need):  # the protocol's own rule, whatever comes of it
        assert finding and finding.kind == "count", said
        return "counts wrong"
    if finding is None:
        assert verdict.name == "safe", f"accepted, but {verdict}"
        return "safe"
    epochs = range(case.epochs - finding.lag)
    pairs = {((finding.producer, e), (finding.consumer, e + finding.lag)) for e in epochs}
    if finding.kind == "hang":
        assert verdict.hangs, f"{said}, but {verdict}"
    elif finding.kind == "count":
        assert pairs & verdict.mixed, f"{said}, but {verdict}"
    elif finding.kind == "step":
        assert pairs & verdict.late, f"{said}, but {verdict}"
    elif not pairs & verdict.races:
        # Boxes meet by their bounds, not cell by cell, and edges are ranges of tiles: some ordered pairs share nothing.
        touching = any(
            m[a[1]][a[0]].conflicts(m[b[1]][b[0]]) for m in case.memories for a, b in pairs
        )  # fmt: skip
        assert not touching, f"{said}, but {verdict}"
        return "cautious" if verdict.name == "safe" else verdict.name
    return verdict.name


CHUNKS = 8


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_agrees_with_every_interleaving(chunk: int) -> None:
    """Verdicts and the pairs named, on random small schedules and mutants of them; 5,000 in all."""
    seen: Counter[tuple[str, ...]] = Counter()
    rng = random.Random(chunk)
    cases = 0
    while cases < 640 * FULL:
        kind, program = random_program(rng)
        try:
            tasks = program.lower()
        except LowerError as error:
            assert "would wait for" in str(error)  # more than 8 events: no schedule to look at
            seen["not lowered",] += 1
            continue
        drafts = [("", draft_of(assign(tasks, policy=rng.choice(list(POLICIES)), workers=rng.choice((1, 2, 3, 3)))))]
        for _ in range(8):
            draft, name = drafts[0][1].copy(), rng.choice(list(MUTATIONS))
            if MUTATIONS[name](rng, draft):
                drafts.append((name, draft))
        for name, draft in drafts:
            schedule = schedule_of(tasks, draft)
            case = case_of(schedule, program)
            verdict = explore(case)
            word = compare(case, verdict, *judged(schedule))
            assert name or word == "safe", f"the policy's own schedule is {word}"
            seen[word,] += 1
            seen["kind", kind] += 1
            seen["with a step" if program.step else "without", word] += 1
            cases += word not in ("counts wrong", "cautious")
    print(
        f"chunk {chunk}: {cases} verdicts compared and equal;",
        ", ".join(f"{' '.join(k)} {v}" for k, v in sorted(seen.items())),
    )
    assert all(seen["kind", k] for k in KINDS)
    assert all(seen[s, w] for s in ("with a step", "without") for w in ("safe", "racy", "hanging"))
    assert seen["cautious",] * 100 < cases


def test_counts_agree_with_every_interleaving() -> None:
    """Without a step, every single wait for the iteration before, dropped: most matter only to a counter."""
    seen: Counter[str] = Counter()
    rng = random.Random(11)
    for _ in range(60 * FULL):
        program = Program(tuple(KINDS[rng.choice(("gap", "gap", "double buffer", "in place"))](rng)))
        tasks = program.lower()
        base = draft_of(assign(tasks, policy=rng.choice(("round_robin", "zigzag")), workers=rng.choice((2, 3))))
        for task, i in [(t, i) for t, waits in enumerate(base.waits) for i, (_, lag) in enumerate(waits) if lag]:
            draft = base.copy()
            draft.waits[task].pop(i)
            schedule = schedule_of(tasks, draft)
            case = case_of(schedule, program)
            seen[compare(case, explore(case), *judged(schedule))] += 1
    print(dict(seen))
    assert all(seen[w] > 10 for w in ("misused", "racy", "safe"))


def test_explorers_agree() -> None:
    """The fast explorer against one with memory, in which begin, end and every signal are steps of their own."""
    seen: Counter[str] = Counter()
    rng = random.Random(7)
    while sum(seen.values()) < 150 * FULL:
        _, program = random_program(rng, most=5)
        program_case = None
        try:
            tasks = program.lower()
        except LowerError:
            continue
        for name in ("", *rng.choices([m for m in MUTATIONS if m != "change_need"], k=3)):
            draft = draft_of(assign(tasks, policy="round_robin", workers=rng.choice((2, 3))))
            if name and not MUTATIONS[name](rng, draft):
                continue
            program_case = case_of(schedule_of(tasks, draft), program)
            case = replace(program_case, memories=tuple(m[:2] for m in program_case.memories[:1]))
            slow = explore_values(case, 0, limit=30_000)
            if slow is None:
                continue
            verdict = explore(case)
            hangs, differs = slow
            if not differs:
                assert hangs == verdict.hangs
            assert differs == bool(verdict.races) or (verdict.hangs and verdict.races), (case, verdict)
            seen[verdict.name] += 1
    print("explorers agree on", dict(seen))
    assert seen["safe"] and seen["racy"] and seen["hanging"]


# --- real graphs: hostile executions ---------------------------------------------------------------------------------

TINY = Config(
    "tiny", vocab=96, hidden=32, layers=4, heads=4, kv_heads=2, head_dim=8, intermediate=64, max_position=64
)  # fmt: skip
WIDE = TINY.with_(hidden=512, intermediate=512, vocab=528)
EPOCHS, POSITION = 2, 5


def block(layers: int = 1) -> Graph:
    """A decoder's layers without embedding, argmax and step: every iteration follows the last through lag-1 waits."""
    g = GraphBuilder("block")
    x = g.state("x", (1, 32))
    for i in range(layers):
        y = g.rms_norm(f"norm{i}", x=x, weight=g.weight(f"n{i}", (32,)))
        q, k, v = (
            g.linear(f"{n}{i}", x=y, weight=g.weight(f"w{n}{i}", (w, 32)))
            for n, w in zip("qkv", (32, 16, 16), strict=True)
        )
        a = g.attention(
            f"attention{i}",
            q=q,
            k=k,
            v=v,
            rope=g.weight("rope", (64, 8)),
            k_cache=g.state(f"k_cache{i}", (1, 2, 64, 8)),
            v_cache=g.state(f"v_cache{i}", (1, 2, 64, 8)),
            position=g.input("position", (1,), "int32"),
            heads=4,
        )
        x = g.add(f"add{i}", a=x, b=g.linear(f"o{i}", x=a, weight=g.weight(f"wo{i}", (32, 32))))
    return g.build()


@cache
def real(name: str) -> TaskGraph:
    """Task graphs by name: a decoder for some workers of a CPU or of an H200, or the block."""
    if name.startswith("block"):
        return lower(block(), replace(MACHINE, workers=int(name[5:])))
    kind, workers = name.split("x")
    machine = Machine.cpu(int(workers)) if kind == "cpu" else Machine.named("h200", int(workers))
    config, layers = (WIDE, 2) if int(workers) > 16 else (TINY, 4 if workers == "8" else 2)
    return lower(
        decode_graph(config, context=64, layers=layers), machine, handoff="data" if kind == "words" else "counter"
    )


@cache
def memory(name: str) -> adversary.Memory:
    return adversary.memory_of(real(name), EPOCHS, POSITION)


def confirmed(
    tasks: TaskGraph, name: str, draft: Draft, own: set[tuple[int, int]], rng: random.Random, most: int
) -> str:
    """What hostile executions come to: "value", "hang", or "ok" when none of them goes wrong."""
    near = list(dict.fromkeys(draft.touched))
    near = near[:2] + rng.sample(near[2:], min(most, len(near) - 2)) if len(near) > 2 else near
    victims = [(t, e) for t in near for e in range(EPOCHS)] + [None, (rng.randrange(len(tasks)), rng.randrange(EPOCHS))]
    for victim in victims:
        outcome = adversary.run(draft, own, tasks.step_task, memory(name), victim, rng)
        if outcome.kind != "ok":
            return outcome.kind
    return "ok"


@pytest.mark.parametrize(
    "name, faults",
    [
        ("cpux2", 300),
        ("cpux3", 400),
        ("cpux8", 500),
        ("h200x16", 400),
        ("block2", 200),
        ("block5", 200),
        ("h200x132", 60),
        ("wordsx132", 60),
    ],
)
def test_refuses_every_planted_fault_that_matters(name: str, faults: int) -> None:
    """2,000 mutants that a hostile execution shows to change a value or to hang: all refused. And what the verifier
    refuses does go wrong, but for counts that break the protocol without doing harm at once."""
    tasks = real(name)
    rng = random.Random(name)
    seen: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    bases = [draft_of(assign(tasks, policy=p)) for p in POLICIES]
    while seen["value"] + seen["hang"] < faults * FULL:
        draft, kind = rng.choice(bases).copy(), rng.choice(list(MUTATIONS))
        if not MUTATIONS[kind](rng, draft):
            continue
        schedule = schedule_of(tasks, draft)
        said, finding = judged(schedule)
        own = own_waits(schedule)
        outcome = confirmed(tasks, name, draft, own, rng, 3)
        if finding and finding.kind in ("hang", "race") and outcome == "ok":
            outcome = confirmed(tasks, name, draft, own, rng, 200)  # look harder before calling it harmless
        if outcome != "ok":
            assert finding, (
                f"accepted, but goes wrong ({outcome}): {kind} near {[tasks.task_name(t) for t in draft.touched[:4]]}"
            )
            seen[outcome] += 1
            kinds[kind] += 1
        elif finding and finding.kind == "race" and schedule.handed:
            # Words carry nothing but themselves, which no order of whole tasks can show: counters in their place do.
            by_counters = replace(tasks, plan=replace(tasks.plan, handoffs={}))
            assert not judged(schedule_of(by_counters, draft))[1], f"{kind}: {said}"
            seen["ordered by words alone, refused"] += 1
        else:
            word = f"harmless, refused ({finding.kind})" if finding else "equivalent, accepted"
            assert not finding or finding.kind in ("count", "step"), f"{kind}: {said}"
            seen[word] += 1
    print(f"{name}: {dict(seen)}; confirmed faults by kind {dict(kinds)}")
    assert len(kinds) >= 12


REAL = ("cpux1", "cpux2", "cpux3", "cpux8", "h200x16", "h200x132", "block1", "block2", "block5")


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("policy", POLICIES)
def test_accepts_every_policy(name: str, policy: str) -> None:
    tasks = real(name)
    for workers in {1, 2, tasks.machine.workers, tasks.machine.workers + 3}:
        assert verify(assign(tasks, policy=policy, workers=workers)).verified


@pytest.mark.parametrize("model, machine", [("smollm2-135m", Machine.cpu(3)), ("qwen3-0.6b", Machine.named("h200"))])
def test_accepts_real_models(model: str, machine: Machine) -> None:
    tasks = lower(decode_graph(named(model)), machine)
    for policy in POLICIES:
        verify(assign(tasks, policy=policy))


@pytest.mark.parametrize(
    "name, moves", [("cpux2", 150), ("cpux3", 200), ("cpux8", 300), ("h200x16", 250), ("block5", 100)]
)
def test_accepts_random_legal_moves(name: str, moves: int) -> None:
    """A thousand in all: a task to another place, or neighbours swapped, wherever waits and queues leave no circle."""
    tasks = real(name)
    rng = random.Random(name)
    made = 0
    draft = draft_of(assign(tasks))
    while made < moves * FULL:
        if made % 50 == 49:
            draft = draft_of(assign(tasks, policy=rng.choice(list(POLICIES))))
        moved = draft.copy()
        if not MUTATIONS[rng.choice(("move_task", "swap_neighbours", "swap_tasks"))](rng, moved):
            continue
        if moved.queues == draft.queues or not adversary.acyclic(moved):
            continue
        verify(schedule_of(tasks, moved))
        draft, made = moved, made + 1
    outcome = adversary.run(draft, own_waits(schedule_of(tasks, draft)), tasks.step_task, memory(name), None, rng)
    assert outcome.kind == "ok"


# --- what an error says ----------------------------------------------------------------------------------------------


def test_a_race_names_tasks_tensor_boxes_and_path() -> None:
    tasks = real("cpux2")
    draft = draft_of(assign(tasks))
    task = tasks.tasks_of("layer1.down_proj")[0]
    draft.waits[task] = []
    with pytest.raises(ScheduleError) as caught:
        verify(schedule_of(tasks, draft))
    finding = caught.value.finding
    assert isinstance(finding, Finding) and (finding.kind, finding.consumer) == ("race", task)
    assert str(caught.value) == (
        "race: layer1.down_proj[0] (worker 0, position 10) reads layer1.silu_mul[0:1, 0:64] while layer1.gate_up_proj[1] "
        "may not have written [0:1, 32:64] (raw, of the same iteration, worker 1, position 9): no path of events and queue "
        "order leads from the one to the other; layer1.down_proj[0] waits for nothing; let layer1.down_proj[0] wait for event "
        "11, which layer1.gate_up_proj[1] signals, or queue it behind layer1.gate_up_proj[1] on worker 1"
    )
    for event in tasks.signal_event[[tasks.signal_first[t] for t in tasks.tasks_of("layer1.gate_up_proj")]].tolist():
        draft.waits[task].append((event, 0))
    verify(schedule_of(tasks, draft))


def test_a_race_in_a_cache_shows_the_position() -> None:
    tasks = real("cpux3")
    draft = draft_of(assign(tasks, policy="round_robin"))
    draft.waits = [[] if tasks.task_name(t) == "layer0.o_proj[0]" else w for t, w in enumerate(draft.waits)]
    said, finding = judged(schedule_of(tasks, draft))
    assert finding and finding.tensor == "layer0.attention.partial" and "[0:1, 0:4, 0:2, 0:8]" in said
    program = Program(
        (
            Piece(1, (Touch("cache", True, (Axis("at", ((0, 1),)),)),)),
            Piece(2, (Touch("cache", False, (Axis("split", ((0, 2), (1, 2))),)),)),
            Piece(1, (Touch("token", True, (Axis("span", ((0, 1),)),)),), step=True),
        )
    )
    small = program.lower()
    draft = draft_of(assign(small, policy="round_robin", workers=2))
    draft.waits[2] = []
    draft.queues = [[0, 1, 3], [2]]
    said, _ = judged(schedule_of(small, draft))
    assert (
        "op1[1]" in said
        and "reads cache[piece 1 of 2 of 0:pos+1] while op0[0] may not have written [pos:pos+1]" in said
    )


def test_a_hang_names_both_queues() -> None:
    tasks = real("cpux2")
    draft = draft_of(assign(tasks))
    draft.queues[0].reverse()
    with pytest.raises(ScheduleError, match="would hang") as caught:
        verify(schedule_of(tasks, draft))
    message = str(caught.value)
    assert "worker 0 at advance[0] (position 0) waits for event" in message
    assert "signals; " in message and "stands on worker" in message
    draft = draft_of(assign(tasks))
    draft.queues[1][3:5] = draft.queues[1][3:5][::-1]
    said, finding = judged(schedule_of(tasks, draft))
    assert finding and said.endswith(
        f"queue {tasks.task_name(finding.producer)} before {tasks.task_name(draft.queues[1][3])} on worker 1"
    )
    assert finding.producer == draft.queues[1][4]


def test_a_wrong_count_names_the_event() -> None:
    tasks = real("cpux2")
    draft = draft_of(assign(tasks))
    draft.need[3] += 1
    with pytest.raises(ScheduleError, match=r"event 3 \(of .*\) needs \d+ signals an iteration but gets \d+"):
        verify(schedule_of(tasks, draft))
    draft.need[3] -= 1
    [task] = draft.signallers(3)[:1]
    draft.signals[task].remove(3)
    with pytest.raises(ScheduleError, match=re.escape(f"{tasks.task_name(task)} does not signal it; need must equal")):
        verify(schedule_of(tasks, draft))


def test_a_task_the_step_does_not_follow_is_named() -> None:
    tasks = real("cpux2")
    draft = draft_of(assign(tasks))
    draft.waits[tasks.step_task] = []
    draft.queues[0].remove(tasks.step_task)
    draft.queues[1].append(tasks.step_task)
    with pytest.raises(
        ScheduleError, match=r"advance\[0\] publishes the next step, but .* may still be running: no path"
    ):
        verify(schedule_of(tasks, draft))


def test_counts_of_two_iterations_are_kept_apart() -> None:
    """A consumer of tiles 0 and 2 waits for 0 to 2; nothing but the count keeps tile 1 from running ahead."""
    cuts = Touch("x", True, (Axis("span", ((0, 2), (2, 4), (4, 6))),))
    ends = [Touch("x", False, (Axis("span", (bounds,)),)) for bounds in ((0, 1), (5, 6))]
    tasks = Program((Piece(3, (cuts,)), Piece(1, tuple(ends)))).lower()
    draft = draft_of(assign(tasks, policy="round_robin", workers=3))
    verify(schedule_of(tasks, draft))
    draft.waits[1] = []
    said, finding = judged(schedule_of(tasks, draft))
    assert finding and finding.kind == "count"
    assert "op0[1] may signal for the next iteration before op0[" in said


# --- what a proof covers ---------------------------------------------------------------------------------------------


def test_a_changed_schedule_is_not_verified_any_more() -> None:
    schedule = verify(assign(real("cpux2")))
    assert schedule.verified and verify(schedule) is schedule
    changed = replace(schedule, position=schedule.position[::-1].copy())
    assert not changed.verified
    with pytest.raises(ScheduleError):
        verify(changed)
    with pytest.raises((TypeError, ValueError)):
        replace(schedule, verified=True)


def test_arrays_must_be_queues() -> None:
    schedule = assign(real("cpux2"))
    position = schedule.position.copy()
    position[schedule.queues[0][3]] = position[schedule.queues[0][2]]
    for change in ({"position": position}, {"position": schedule.position * 2}, {"worker": schedule.worker + 1}):
        with pytest.raises(ScheduleError, match=r"positions count|there are 2"):
            verify(replace(schedule, **change))
    with pytest.raises(ScheduleError, match="is queued twice"):
        from_queues(real("cpux2"), [[0, 1], [1]])
    with pytest.raises(ScheduleError, match="on no queue"):
        from_queues(real("cpux2"), [[0, 1], [2]])
    assert checked(schedule) is schedule
