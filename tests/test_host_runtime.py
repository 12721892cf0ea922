"""The CPU worker loop: order, steps, faults, aborts and records, with any number of workers."""

from __future__ import annotations

import itertools
import random
import statistics
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from host_kit import Library, Packed, Program, compile_source, phases

from mpklab import abi

WIDTH, VOCAB, HIDDEN, PARTS, CONTEXT = 8, 50, 32, 3, 64
EPS = "0x3727c5acu"
ADD, EMBEDDING, NORM_LINEAR, HEAD, REDUCE, ADVANCE, SWITCH, SLEEP, ADD_HIDDEN = range(9)
VARIANTS = [
    f"Add<float, {WIDTH}, 1, -1>",
    f"Embedding<float, {VOCAB}, {HIDDEN}, 1, -1>",
    f"Linear<float, float, {HIDDEN}, {HIDDEN}, 1, -1, 1, {EPS}, Epilogue::none, 0, 0, 1, float, 0>",
    f"Linear<float, float, {VOCAB}, {HIDDEN}, 1, -1, 0, {EPS}, Epilogue::none, 0, 0, 1, float, {PARTS}>",
    f"ArgmaxReduce<{PARTS}, 1, -1>",
    f"Advance<1, {CONTEXT}, 1, -1>",
    "Switch",
    "Sleep",
    f"Add<float, {HIDDEN}, 1, -1>",
]
EXTRA = """
#include <unistd.h>
// Stops after tile[0] iterations; changes the table after every odd one.
struct Switch {
  static constexpr unsigned scratch_bytes = 0;
  static void compute(const Context& c) {
    c.next->table = c.step.iteration % 2 ? 1 - c.step.table : c.step.table;
    c.next->stop = c.next->iteration >= u32(c.task.tile[0]);
  }
};
struct Sleep {
  static constexpr unsigned scratch_bytes = 1000;
  static void compute(const Context& c) {
    for (int i = 0; i < 1000; ++i) c.scratch[i] = char(i);
    usleep(c.task.tile[0] * 1000);
  }
};
"""
WORKERS = [1, 2, 3, 8]
LIMIT_S = 0.5  # of a wait
DROP, STEP = int(abi.TaskFlag.drop_signals), int(abi.TaskFlag.step)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(tmp_path_factory.mktemp("runtime"), "runtime", VARIANTS, extra=EXTRA)


def deal(order: list[int], workers: int, seed: int | None = None) -> list[list[int]]:
    """Tasks in a legal order, dealt to queues in turn or at random."""
    choice = random.Random(seed)
    queues: list[list[int]] = [[] for _ in range(workers)]
    for i, task in enumerate(order):
        queues[i % workers if seed is None else choice.randrange(workers)].append(task)
    return queues


class Sums:
    """A random graph of additions: task 0 counts iterations, each other adds two earlier results."""

    def __init__(self, seed: int, tasks: int = 40) -> None:
        choice = random.Random(seed)
        self.program = Program()
        self.buffers = [torch.zeros(WIDTH) for _ in range(tasks)]
        self.one = torch.ones(WIDTH)
        slots = [self.program.slot(b) for b in self.buffers]
        one = self.program.slot(self.one)
        self.sources: list[tuple[int, int | None]] = [(0, None)]
        users: list[list[int]] = [[] for _ in range(tasks)]
        for i in range(1, tasks):
            free = [j for j in range(max(0, i - 8), i) if len(users[j]) < 4]
            a, b = choice.choice(free), choice.choice([None, choice.choice(free)])
            self.sources.append((a, b))
            for j in {a, b} - {None}:
                users[j].append(i)
        events = [self.program.event(1) for _ in range(tasks)]
        for i, (a, b) in enumerate(self.sources):
            waits: list[int | tuple[int, int]] = [] if i == 0 else [events[j] for j in {a, b} - {None}]
            waits += [(events[j], 1) for j in users[i]]  # overwritten only when last iteration's readers are done
            choice.shuffle(waits)
            operands = [slots[a], one if b is None else slots[b], slots[i]]
            self.program.task(ADD, operands, (0, WIDTH), waits[1:], [events[i]], load_waits=waits[:1])

    def expect(self, iterations: int) -> list[np.float32]:
        values = [np.float32(0)] * len(self.sources)
        for _ in range(iterations):
            for i, (a, b) in enumerate(self.sources):
                values[i] = values[a] + (np.float32(1) if b is None else values[b])
        return values


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("seed", range(4))
def test_forks_and_joins(library: Library, workers: int, seed: int) -> None:
    sums = Sums(seed)
    queues = deal(list(range(len(sums.sources))), workers, seed)
    packed = sums.program.pack([queues], iterations=12)
    assert library.run(packed.launch, 0) == 0
    for buffer, value in zip(sums.buffers, sums.expect(12), strict=True):
        assert (buffer == float(value)).all()


class Decoder:
    """A toy model that generates tokens: embedding, two normalised linears with a sum, head, argmax, advance."""

    def __init__(self, tiles: int, eos: int = -1, limit: int = CONTEXT) -> None:
        g = torch.Generator().manual_seed(11)
        self.table = torch.randn(VOCAB, HIDDEN, generator=g)
        self.weights = [torch.randn(HIDDEN, HIDDEN, generator=g) for _ in range(2)]
        self.norms = [torch.rand(HIDDEN, generator=g) + 0.5 for _ in range(2)]
        self.head = torch.randn(VOCAB, HIDDEN, generator=g)
        self.state = {
            name: torch.tensor([value], dtype=torch.int32)
            for name, value in {"token": 3, "position": 0, "done": 0, "limit": limit, "eos": eos, "next": -1}.items()
        }
        self.generated = torch.full((1, CONTEXT), -1, dtype=torch.int32)
        x, outs = torch.zeros(1, HIDDEN), [torch.zeros(1, HIDDEN) for _ in range(4)]
        logits, value, index = torch.zeros(1, VOCAB), torch.zeros(1, PARTS), torch.zeros(1, PARTS, dtype=torch.int32)
        self.logits = logits
        p = self.program = Program()
        s = {name: p.slot(tensor) for name, tensor in self.state.items()}
        advanced, ready = p.event(1), p.event(1)
        slot_x = p.slot(x)
        p.task(EMBEDDING, [s["token"], p.slot(self.table), slot_x], (0, HIDDEN), [(advanced, 1)], [ready])
        cut = [HIDDEN * i // tiles for i in range(tiles + 1)]
        for layer in range(2):
            slot_y, slot_z = p.slot(outs[2 * layer]), p.slot(outs[2 * layer + 1])
            for variant, operands in (
                (NORM_LINEAR, [slot_x, p.slot(self.weights[layer]), slot_y, p.slot(self.norms[layer])]),
                (ADD_HIDDEN, [slot_y, slot_x, slot_z]),
            ):
                after = p.event(tiles)
                for begin, end in itertools.pairwise(cut):
                    p.task(variant, operands, (begin, end), [ready], [after])
                ready = after
            slot_x = slot_z
        parts, chosen = p.event(PARTS), p.event(1)
        slots = [slot_x, p.slot(self.head), p.slot(logits)] + [0] * 4 + [p.slot(value), p.slot(index)]
        for part in range(PARTS):
            tile = (VOCAB * part // PARTS, VOCAB * (part + 1) // PARTS, part)
            p.task(HEAD, slots, tile, [ready], [parts])
        p.task(REDUCE, [slots[7], slots[8], s["next"]], (), [parts], [chosen])
        operands = [s[n] for n in ("next", "eos", "limit", "token", "position", "done")]
        p.task(ADVANCE, [*operands, p.slot(self.generated)], (), [chosen], [advanced], flags=STEP)

    def expect(self) -> list[int]:
        token, tokens, limit = 3, [], int(self.state["limit"])
        while len(tokens) + 1 < limit:
            x = self.table[token].double()
            for weight, norm in zip(self.weights, self.norms, strict=True):
                x = x + weight.double() @ (x / torch.sqrt((x * x).mean() + 1e-5) * norm)
            token = int((self.head.double() @ x).argmax())
            tokens.append(token)
            if token == int(self.state["eos"]):
                break
        return tokens

    def pack(self, workers: int, **options: object) -> Packed:
        order = list(range(len(self.program.tasks)))
        return self.program.pack([deal(order, workers)], steps=True, **{"iterations": 1000, **options})


@pytest.mark.parametrize("workers", WORKERS)
def test_steps_stop_early(library: Library, workers: int) -> None:
    free = Decoder(4)
    tokens = free.expect()
    assert len(set(tokens)) > 5
    eos = next(t for t in tokens[10:] if tokens.index(t) >= 10) if len(set(tokens[10:]) - set(tokens[:10])) else None
    for decoder in (Decoder(4, limit=21), *([Decoder(4, eos=eos)] if eos is not None else [])):
        expected = decoder.expect()
        packed = decoder.pack(workers)
        assert library.run(packed.launch, 0) == 0
        assert decoder.generated[0, 1 : len(expected) + 1].tolist() == expected
        assert (decoder.generated[0, len(expected) + 1 :] == -1).all() and decoder.generated[0, 0] == -1
        assert int(decoder.state["position"]) == len(expected) and int(decoder.state["done"]) == 1
        assert packed.arrays["host"]["progress"][0] == len(expected)
        assert packed.arrays["control"]["published"][0] == len(expected) + 1


def test_no_more_iterations_than_asked(library: Library) -> None:
    decoder = Decoder(4)
    packed = decoder.pack(3, iterations=5)
    assert library.run(packed.launch, 0) == 0
    assert decoder.generated[0, 1:7].tolist() == [*decoder.expect()[:5], -1]
    # A second launch goes on from the state that the first left.
    packed = decoder.pack(2, iterations=4, first_iteration=5)
    assert library.run(packed.launch, 0) == 0
    assert decoder.generated[0, 1:11].tolist() == [*decoder.expect()[:9], -1]


def test_looking_ahead_changes_nothing(library: Library) -> None:
    plain, eager = Decoder(5, limit=20), Decoder(5, limit=20)
    assert library.run(plain.pack(3).launch, 0) == 0
    assert library.run(eager.pack(3, prefetch=1).launch, 0) == 0
    assert eager.generated.equal(plain.generated)
    assert eager.logits.numpy().tobytes() == plain.logits.numpy().tobytes()


@pytest.mark.parametrize("workers", [1, 3])
def test_tables_change_behind_a_barrier(library: Library, workers: int) -> None:
    """Two tables with events of their own, taking turns two iterations at a time, over the same buffer."""
    program, total = Program(), torch.zeros(WIDTH)
    slot = program.slot(total)
    ones = [program.slot(torch.full((WIDTH,), value)) for value in (1.0, 100.0)]
    queues = []
    for table in range(2):
        order = []
        links = [program.event(1) for _ in range(6)]
        for i in range(6):
            waits = [links[i - 1]] if i else [(links[-1], 1)]
            order.append(program.task(ADD, [slot, ones[table], slot], (0, WIDTH), waits, [links[i]]))
        order.append(program.task(SWITCH, [], (9,), [links[-1]], flags=STEP))
        queues.append(deal(order, workers))
    packed = program.pack(queues, iterations=100, steps=True)
    assert library.run(packed.launch, 0) == 0
    assert (total == 6 * (1.0 * 5 + 100.0 * 4)).all()
    assert packed.arrays["host"]["progress"][0] == 9


def test_a_worker_of_some_tables_only_is_refused(library: Library) -> None:
    sums = Sums(0, tasks=2)
    packed = sums.program.pack([[[0], [1]], [[0, 1], []]], steps=True)
    assert library.run(packed.launch, 0) == 3
    assert (sums.buffers[0] == 0).all()


def hang(wait_limit: int, workers: int = 3) -> tuple[Sums, Packed]:
    """Task 3's signal is dropped: sooner or later everyone waits for it, directly or not."""
    program = Sums(5, tasks=12)
    program.program.tasks[3]["flags"] = DROP
    return program, program.program.pack([deal(list(range(12)), workers)], iterations=3, wait_limit=wait_limit)


def clock_hz(library: Library) -> float:
    """Ticks per second of the clock that waits are limited in, from a lane's two anchors; of several, for a busy machine
    may take the core away between the two readings of one."""
    program = Program()
    program.task(SLEEP, [], (20,))
    found = []
    for _ in range(5):
        packed = program.pack([[[0]]], capacity=8)
        assert library.run(packed.launch, 1) == 0
        lane = packed.lane(0)[0]
        ns = int(lane["end_global_ns"]) - int(lane["begin_global_ns"])
        found.append((int(lane["end_clock"]) - int(lane["begin_clock"])) / ns * 1e9)
    return statistics.median(found)


@pytest.mark.parametrize("level", [0, 2])
def test_a_dropped_signal_is_a_fault(library: Library, level: int) -> None:
    """Worker 2 waits for a third signal that never comes; the fault says so, and the run ends at the limit."""
    limit = int(LIMIT_S * clock_hz(library))
    program = Program()
    early, late = program.event(1), program.event(3)
    program.task(SLEEP, [], (1,), signals=[early, late])
    program.task(SLEEP, [], (1,), signals=[late])
    program.task(SLEEP, [], (1,), signals=[late], flags=DROP)
    program.task(SLEEP, [], (1,), [early, late])
    packed = program.pack([[[0], [1, 2], [3]]], wait_limit=limit, capacity=100, first_iteration=40)
    begin = time.perf_counter()
    assert library.run(packed.launch, level) == 1
    assert time.perf_counter() - begin > 0.95 * LIMIT_S  # by another clock
    fault = packed.fault
    assert [int(fault[f]) for f in ("state", "worker", "task", "event", "count", "need")] == [1, 2, 3, 1, 2, 3]
    assert fault["iteration"] == 40 and fault["rank"] == 0 and fault["waited"] >= limit
    if level:
        assert phases(packed.lane(2)[1])[-1] == ("next", "wait", 1)  # left open: it never ended


@pytest.mark.parametrize("workers", WORKERS[1:])
def test_every_worker_leaves_a_hang(library: Library, workers: int) -> None:
    """One signal fewer than needed, in a graph where all wait for each other: one fault, of a wait that cannot end."""
    sums, packed = hang(int(LIMIT_S * clock_hz(library)), workers)
    begin = time.process_time()
    assert library.run(packed.launch, 0) == 1
    assert time.process_time() - begin < 2 * LIMIT_S * workers  # they look all the time, on as many cores as there are
    fault = packed.fault
    counts = packed.arrays["counters"][:: abi.EVENT_STRIDE]
    assert fault["state"] == 1 and fault["task"] % workers == fault["worker"]
    assert counts[fault["event"]] == fault["count"] < fault["need"]
    assert counts[3] == 0 and (sums.buffers[3] != 0).all()


def test_the_host_can_abort(library: Library) -> None:
    _, packed = hang(1 << 62)
    outcome: list[int] = []
    thread = threading.Thread(target=lambda: outcome.append(library.run(packed.launch, 0)))
    thread.start()
    time.sleep(0.15)
    assert not outcome
    begin = time.process_time()
    packed.arrays["host"]["abort"] = 1
    thread.join(120)
    assert time.process_time() - begin < 0.1 * 3  # three workers that never pause
    assert outcome == [1]
    assert packed.fault["state"] == 0


def test_abort_stops_a_run_that_waits_for_nothing(library: Library) -> None:
    """Checked at every task, not only in waits that take long."""
    program = Program()
    program.task(SLEEP, [], (1,))
    packed = program.pack([[[0]]], iterations=1_000_000)
    thread = threading.Thread(target=library.run, args=(packed.launch, 0))
    thread.start()
    time.sleep(0.05)
    packed.arrays["host"]["abort"] = 1
    thread.join(120)  # a quarter of an hour lies before it
    assert not thread.is_alive()


def without_clock(records: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    return [(k, p, -1 if p == "global_time" else a) for k, p, a in records]


def expected_records(
    program: Program, queue: list[int], level: int, iterations: list[int]
) -> list[tuple[str, str, int]]:
    records: list[tuple[str, str, int]] = []
    for i in iterations:
        records += [("begin", "iteration", i), ("value", "global_time", -1)]
        if level >= 2:
            records += [("begin", "step", i), ("end", "step", i)]
        for t in queue:
            if level == 1:
                records += [("begin", "execute", t), ("end", "execute", t)]
            else:
                task = program.tasks[t]
                records += [("begin", "fetch", t)]
                records += [("next", "wait", event) for event, _ in task["waits"] + task["load_waits"]]
                records += [("next", "execute", t), ("next", "signal", t), ("end", "signal", t)]
        records += [("end", "iteration", i)]
    return records


@pytest.mark.parametrize("level", range(4))
def test_records(library: Library, level: int) -> None:
    decoder = Decoder(4, limit=8)
    workers = 3
    packed = decoder.pack(workers, capacity=2000, first_iteration=7)
    assert library.run(packed.launch, level) == 0
    queues = deal(list(range(len(decoder.program.tasks))), workers)
    reference = Decoder(4, limit=8)
    assert library.run(reference.pack(1).launch, 0) == 0
    assert decoder.logits.numpy().tobytes() == reference.logits.numpy().tobytes()
    for worker in range(workers):
        lane, records = packed.lane(worker)
        if level == 0:
            assert not packed.arrays["lanes"].any()
            continue
        assert (lane["magic"], lane["version"], lane["level"]) == (abi.LANE_MAGIC, abi.VERSION, level)
        assert (lane["worker"], lane["role"], lane["dropped"], lane["capacity"]) == (worker, 0, 0, 2000)
        assert lane["begin_clock"] < lane["end_clock"] and lane["begin_global_ns"] < lane["end_global_ns"]
        found = without_clock(phases(records))
        # Seven iterations were run; the eighth, whose step said stop, left nothing.
        assert found == expected_records(decoder.program, queues[worker], level, list(range(7, 14)))
        timed = records[[p != "global_time" for _, p, _ in found]]["clock"]
        steps = np.diff(timed).astype(np.int32)
        assert (steps >= 0).all()
        for record in records[[p == "global_time" for _, p, _ in found]]:
            ns = int(record["clock"]) | (int(record["tag"]) >> 8) << 32
            low = 56 - 1
            assert int(lane["begin_global_ns"]) % 2**low <= ns % 2**low <= int(lane["end_global_ns"]) % 2**low


def test_records_never_pass_the_end(library: Library) -> None:
    decoder = Decoder(4, limit=8)
    full = decoder.pack(2, capacity=2000)
    assert library.run(full.launch, 2) == 0
    decoder = Decoder(4, limit=8)
    packed = decoder.pack(2, capacity=50)
    assert library.run(packed.launch, 2) == 0
    for worker in range(2):
        (lane, records), (whole, all_records) = packed.lane(worker), full.lane(worker)
        assert lane["written"] == whole["written"] and lane["dropped"] == whole["written"] - 50
        assert (records["tag"] & 3 == all_records["tag"][:50] & 3).all() and len(records) == 50


def test_window(library: Library) -> None:
    decoder = Decoder(4, limit=12)
    packed = decoder.pack(2, capacity=2000, skip=3, record=4)
    assert library.run(packed.launch, 1) == 0
    found = without_clock(phases(packed.lane(1)[1]))
    queue = deal(list(range(len(decoder.program.tasks))), 2)[1]
    assert found == expected_records(decoder.program, queue, 1, [3, 4, 5, 6])


@pytest.mark.parametrize("level", [1, 2])
def test_a_long_wait_leaves_an_anchor(library: Library, level: int) -> None:
    program = Program()
    event = program.event(1)
    program.task(SLEEP, [], (500,), signals=[event])
    program.task(SLEEP, [], (1,), waits=[event])
    packed = program.pack([[[0], [1]]], capacity=50)
    assert library.run(packed.launch, level) == 0
    found = [(k, p) for k, p, _ in phases(packed.lane(1)[1])]
    begin = found.index(("begin" if level == 1 else "next", "execute"))
    assert found[begin + 1] == ("value", "global_time") and found.count(("value", "global_time")) == 2


def test_needs_from_words_and_lags(library: Library) -> None:
    program, total = Program(), torch.zeros(WIDTH)
    slot, one = program.slot(total), program.slot(torch.ones(WIDTH))
    event = program.event(-1)
    for _ in range(3):
        program.task(SLEEP, [], (1,), signals=[event])
    program.task(ADD, [slot, one, slot], (0, WIDTH), [event])
    packed = program.pack([[[0, 1, 2], [3]]], iterations=4, words=[9, 3], word_of={event: 1})
    assert library.run(packed.launch, 0) == 0
    assert (total == 4).all()


def test_idle_workers_and_pinning(library: Library) -> None:
    sums = Sums(1)
    queues = [[], list(range(len(sums.sources))), [], []]
    packed = sums.program.pack([queues], iterations=3, capacity=10)
    cpus = np.array([0, -1, 100_000, 1 << 30], np.int32)
    assert library.run(packed.launch, 1, cpus) == 0
    assert (sums.buffers[-1] == float(sums.expect(3)[-1])).all()
    assert [int(packed.lane(w)[0]["written"]) > 0 for w in range(4)] == [False, True, False, False]
    assert all(packed.lane(w)[0]["magic"] == abi.LANE_MAGIC for w in range(4))


def test_drain_is_refused(library: Library) -> None:
    sums = Sums(1)
    packed = sums.program.pack([[[0, 1], [2]]], iterations=2)
    packed.arrays["entries"]["kind"][1] = int(abi.EntryKind.drain)
    assert library.run(packed.launch, 0) == 3


def test_two_runs_at_once(library: Library) -> None:
    decoders = [Decoder(4, limit=60) for _ in range(2)]
    packs = [d.pack(2) for d in decoders]
    outcomes: dict[int, int] = {}
    threads = [
        threading.Thread(target=lambda i=i: outcomes.update({i: library.run(packs[i].launch, i)})) for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert outcomes == {0: 0, 1: 0}
    for decoder in decoders:
        assert decoder.generated[0, 1:60].tolist() == decoder.expect()


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_sanitizers(tmp_path: Path, sanitizer: str) -> None:
    """The loop and every operator on real threads: no race, no stray access, no undefined behaviour."""
    source = Path(__file__).parent / "cxx" / "sanitize.cpp"
    flags = ["-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    program = compile_source(source, tmp_path / "sanitize", *flags)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[:4000]
    assert done.stdout.strip() == "clean"
