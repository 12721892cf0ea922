"""One use of a kernel: the memory its tensors live in, its counters, and the launch itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from mpklab import abi, device, env, recipe, stamp
from mpklab.codegen import Tables, device_settings
from mpklab.console import human_bytes
from mpklab.dims import shape_text
from mpklab.errors import DeadlockError, RunError, answers_slips, suggest
from mpklab.graph import Tensor
from mpklab.ops import REGISTRY
from mpklab.profile import Profile, Window
from mpklab.reference.execute import TORCH_DTYPES
from mpklab.reference.functions import dealt
from mpklab.run.profiling import keep, window_of
from mpklab.tasks import dim_values

if TYPE_CHECKING:
    from mpklab.run.kernel import Kernel

POLL_S = 0.002
DEFAULT_WAIT_LIMIT_S = {"cpu": 20.0, "cuda": 5.0}
MAX_LANE_BYTES = 512 << 20  # all lanes of a launch; what does not fit is counted as dropped
RECORD_CYCLES = 20  # what one record costs a thread of a GPU, anchors included: the median of nine (profiles/LOG.md)
RECORDS_PER_TASK = 10  # begin, end, every phase between and an anchor, with room for a few waits


class Memory:
    """A NumPy structured array's bytes where the device can read them, with a view for the host."""

    def __init__(self, array: npt.NDArray[Any], on: str, pinned: bool = False):
        raw = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy())
        if raw.numel() == 0:
            raw = torch.zeros(64, dtype=torch.uint8)
        self.tensor = raw.pin_memory() if pinned else raw.to(on)
        self._dtype = array.dtype

    @property
    def address(self) -> int:
        return self.tensor.data_ptr()

    def host(self) -> npt.NDArray[Any]:
        """The bytes as the array they came from; shared on the CPU and for pinned memory, else a copy."""
        return self.tensor.cpu().numpy().view(self._dtype)


@dataclass(frozen=True)
class LaunchMemory:
    """All that one launch needs to stay alive: the parameters, the host block, the lanes, and what they point to."""

    launch: npt.NDArray[np.void]
    host: Memory
    lanes: torch.Tensor | None  # uint8 [lanes, bytes of one]; memory that nothing is written to is never touched
    roles: int
    counters: torch.Tensor
    kept: tuple[Any, ...]


@dataclass(frozen=True)
class Outcome:
    """What one launch left: iterations finished, seconds on the device, and a profile where one was asked for."""

    iterations: int
    seconds: float
    profile: Profile | None


@dataclass(repr=False)
class Session:
    """Tensors by name on the kernel's device. Weights are the model's own memory, the rest is allocated here, except what
    `tensors` holds from the start: that is read and written where it lies."""

    kernel: Kernel
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.kernel.graph
        self.device = "cuda" if self.kernel.backend == "cuda" else "cpu"
        if self.device == "cuda":
            mine = [
                t for t in graph.tensors.values() if t.role not in ("input", "weight") and t.name not in self.tensors
            ]
            device.make_room(
                sum(t.bytes for t in mine), f"a session of {graph.name}", "a shorter context, or a smaller batch"
            )
        self._segments: dict[str, Memory] = {}
        self._tables = self.kernel.device_tables
        for name in self.tensors:
            if name not in graph.tensors:
                raise RunError(f"the kernel has no tensor {name!r}: {suggest(name, graph.tensors)}")
        self._handed, places = self._two_copies()
        for t in graph.tensors.values():
            if t.name in self.tensors:
                self._check_place(t, self.tensors[t.name])
            elif t.role == "weight":
                self._bind_weight(t)
            elif t.name in places:
                self.tensors[t.name] = places[t.name]
            elif t.role != "input":
                self.tensors[t.name] = _stored(t, torch.zeros, device=self.device)

    # --- tensors ---

    def _two_copies(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Memory uint8[2, bytes] for what is handed over by its own words, and each such tensor in its first copy."""
        graph = self.kernel.graph
        handed = [name for name in self.kernel.schedule.handed if name not in self.tensors]
        ends = np.cumsum([0, *(-(-graph.tensors[name].bytes // 256) * 256 for name in handed)]).tolist()
        memory = torch.empty((2, ends[-1]), dtype=torch.uint8, device=self.device)
        places = {}
        for name, begin in zip(handed, ends[:-1], strict=True):
            t = graph.tensors[name]
            places[name] = memory[0, begin : begin + t.bytes].view(TORCH_DTYPES[t.dtype]).view(t.type.sizes)
        return memory, places

    def _bind_weight(self, t: Tensor) -> None:
        weights = self.kernel.weights
        if t.parts:
            view = weights.view(t.parts) if hasattr(weights, "view") and t.groups == 1 else None
            if view is not None:
                self.tensors[t.name] = self._checked(t, view)
                return
            declared = self.kernel.graph.tensors
            pieces = {p: self._checked(declared[p], w) for p in t.parts if (w := self._weight(p)) is not None}
            if len(pieces) == len(t.parts):
                self._segments[t.name] = Memory(_segments(dealt(list(pieces.values()), t.groups)), self.device)
                self.tensors |= {**pieces, t.name: pieces[t.parts[0]]}
            return
        found = self._weight(t.name)
        if found is not None:
            self.tensors[t.name] = self._checked(t, found)

    def _weight(self, name: str) -> torch.Tensor | None:
        weights = self.kernel.weights
        if weights is not None and name in weights:
            found: torch.Tensor = weights[name]
            return found
        return self.kernel.rope if name == "rope" else None

    def _checked(self, t: Tensor, value: Any) -> torch.Tensor:
        """The tensor, if it is what the graph declares."""
        if not isinstance(value, torch.Tensor):
            try:
                value = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise RunError(f"{t} cannot be made of a {type(value).__name__}: {error}") from error
        sizes = t.type.sizes
        if tuple(value.shape) != sizes or value.dtype != TORCH_DTYPES[t.dtype]:
            raise RunError(f"{t.name} must be {t.dtype}[{shape_text(sizes)}], not {described(value)}")
        if value.device.type != self.device:
            raise RunError(
                f"{t.name} is on {value.device}, the kernel runs on {self.device}: move it with .to({self.device!r})"
            )
        if t.order:
            return value if _same_place(t, value) else _stored(t, torch.empty, device=self.device).copy_(value)
        return value if value.is_contiguous() else value.contiguous()

    def check_complete(self) -> None:
        """RunError naming the tensors that have no value yet."""
        kernel = self.kernel
        missing = [n for n in kernel.graph.tensors if n not in self.tensors and not _only_a_part(kernel, n)]
        if missing:
            raise RunError(
                f"no value for {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}: give it to run(…), or weights "
                f"to build(…, weights=…)"
            )

    def _check_place(self, t: Tensor, value: torch.Tensor) -> None:
        """RunError unless a run can use this memory as it is."""
        if self._checked(t, value) is not value:
            raise RunError(
                f"{t.name} is used where it lies, and its strides {value.stride()} are not those the kernel uses"
            )

    def bind(self, values: Mapping[str, Any]) -> None:
        """Give inputs, weights or state by name; RunError for unknown names, wrong shapes, dtypes or devices.

        Inputs and weights are used where they lie; state is copied, because a run writes it.
        """
        graph = self.kernel.graph
        for name, value in values.items():
            t = graph.tensors.get(name)
            if t is None or t.role in ("activation", "output"):
                known = [n for n, x in graph.tensors.items() if x.role in ("input", "weight", "state")]
                raise RunError(f"the kernel takes no tensor {name!r}: {suggest(name, known)}")
            checked = self._checked(t, value)
            if t.role == "state":
                self.tensors[name].copy_(checked)
            else:
                self.tensors[name] = checked

    # --- what a sequence left ---

    def cached(self, slot: int = 0) -> list[int]:
        """The tokens of one sequence whose keys and values the caches hold; the last token is never among them."""
        names = self.kernel._decoder()
        position = int(self.tensors[names["position"]][slot])
        held: list[int] = self.tensors[names["generated"]][slot, :position].tolist()
        return held

    def tokens(self, slot: int = 0) -> list[int]:
        """All tokens of one sequence so far, its prompt first; also after Ctrl-C."""
        names = self.kernel._decoder()
        position = int(self.tensors[names["position"]][slot])
        held: list[int] = self.tensors[names["generated"]][slot, : position + 1].tolist()
        return held

    def holds(self, ids: Sequence[int], slot: int = 0) -> int:
        """How many of a prompt's tokens need not be fed again; never the last, from which the kernel goes on."""
        return min(common(self.cached(slot), ids), len(ids) - 1)

    def glimpse(self, name: str) -> Callable[[], torch.Tensor]:
        """A function that gives a tensor as it stands on the host, also while a kernel runs."""
        tensor = self.tensors[name]
        if self.device == "cpu":
            return lambda: tensor
        # A copy on the kernel's own stream would wait for its end, and memory must be there before it begins.
        copy, stream = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True), torch.cuda.Stream()

        def look() -> torch.Tensor:
            with torch.cuda.stream(stream):
                copy.copy_(tensor, non_blocking=True)
            stream.synchronize()
            return copy

        return look

    # --- launching ---

    @answers_slips(RunError)
    def launch(
        self,
        iterations: int,
        *,
        dims: Mapping[str, int] | None = None,
        profile: int | Window = 0,
        on_progress: Callable[[int], None] | None = None,
        drop_signals: int | None = None,
        wait_limit_s: float | None = None,
    ) -> Outcome:
        """Run at most so many iterations in one launch and wait for the end.

        Interruptible: Ctrl-C aborts the kernel, keeps what was recorded in `kernel.last_profile`, and is raised again.
        DeadlockError when a wait outlasts the limit. `drop_signals` is a test hook: that task never signals.
        """
        kernel = self.kernel
        window = window_of(profile)
        if isinstance(iterations, bool) or not isinstance(iterations, int | np.integer) or iterations < 1:
            raise RunError(f"iterations must be a whole number of at least 1, not {iterations!r}")
        if wait_limit_s is not None and not 0 < wait_limit_s < float("inf"):
            raise RunError(f"wait_limit_s must be a positive number of seconds, not {wait_limit_s!r}")
        if drop_signals is not None and not 0 <= drop_signals < len(kernel.schedule.tasks):
            raise RunError(f"drop_signals names task {drop_signals}; there are {len(kernel.schedule.tasks)}, from 0")
        self.check_complete()
        limit = env.wait_limit_s(DEFAULT_WAIT_LIMIT_S[kernel.backend]) if wait_limit_s is None else wait_limit_s
        memory = self._launch_memory(iterations, window, dims, drop_signals, limit)
        host_view = memory.host.host()
        before: dict[str, Any] = {}
        if window.level:
            stamp.commit(), stamp.versions()  # found once in a process: now, and not between Ctrl-C and the next cell
            before = kernel.device_facts()
        flight: Any = None
        interrupted: BaseException | None = None
        seen = 0
        try:
            flight = kernel.start(memory.launch, window.level, kept=(memory, self._segments, dict(self.tensors)))
            while not flight.wait(POLL_S):
                progress = int(host_view["progress"][0])
                if progress != seen and on_progress is not None:
                    seen = progress
                    on_progress(progress)
        except BaseException as error:  # Ctrl-C, or the caller's callback failed: stop the kernel, then raise
            host_view["abort"][0] = 1
            if flight is None:
                raise
            interrupted = error
        flight.finish()
        profile_value = self._profile(memory, window, flight.seconds, before)
        if profile_value is not None:
            kernel.last_profile = profile_value
            keep(profile_value)
        fault = host_view["fault"][0]
        if int(fault["state"]):
            raise self._deadlock(fault, limit, drop_signals, memory.counters)
        if interrupted is not None:
            raise interrupted
        progress = int(host_view["progress"][0]) if self._tables.steps else iterations
        if on_progress is not None and progress != seen:
            on_progress(progress)
        return Outcome(progress, flight.seconds, profile_value)

    def _launch_memory(
        self, iterations: int, window: Window, dims: Mapping[str, int] | None, drop_signals: int | None, limit: float
    ) -> LaunchMemory:
        kernel, t = self.kernel, self._tables
        values = dim_values(kernel.graph, dims)
        control = np.zeros(1, abi.CONTROL)
        control["published"] = 1
        control["step"][0]["dims"][0][: len(values)] = values
        host = np.zeros(1, abi.HOST)
        launch = np.zeros(1, abi.LAUNCH)
        self._handed.fill_(0xFF)  # no word is there yet
        launch["handed"], launch["handed_bytes"] = self._handed.data_ptr(), self._handed.shape[1]
        tasks = t.memory["tasks"]
        slot_rows = self._slots(t.tables)
        if drop_signals is not None:
            edited = t.tables.tasks.copy()
            edited["flags"][drop_signals] |= int(abi.TaskFlag.drop_signals)
            slot_rows = self._lose_words(edited, drop_signals, slot_rows)
            tasks = Memory(edited, self.device)
        slots = Memory(slot_rows, self.device)
        counters = torch.zeros(max(1, len(t.tables.events)) * abi.EVENT_STRIDE, dtype=torch.int32, device=self.device)
        control_memory = Memory(control, self.device)
        host_memory = Memory(host, "cpu", pinned=self.device == "cuda")
        roles = 2 if self.device == "cuda" and window.level >= 3 else 1
        lanes = None
        if window.level:
            recorded = min(iterations, window.record) if window.record else iterations - min(window.skip, iterations)
            longest = int(np.diff(t.tables.queues.astype(np.int64)).max(initial=1)) + _most_popped(t.tables)
            capacity = max(1024, recorded * (longest * RECORDS_PER_TASK + self._page_records(window.level) + 8) + 64)
            capacity = min(capacity, MAX_LANE_BYTES // (abi.RECORD.itemsize * t.tables.workers * roles))
            size = abi.LANE.itemsize + capacity * abi.RECORD.itemsize
            shape = (t.tables.workers * roles, size)
            if self.device == "cpu":
                # NumPy's zeros are pages that the system has not given out yet; torch's would be written.
                lanes = torch.from_numpy(np.zeros(shape, np.uint8))
            else:
                lanes = torch.zeros(shape, dtype=torch.uint8, device=self.device)
            launch["lanes"], launch["lane_capacity"], launch["lanes_per_worker"] = lanes.data_ptr(), capacity, roles
        for name in ("tasks", "waits", "signals", "events", "entries", "queues", "triggered"):
            launch[name] = t.memory[name].address
        launch["tasks"], launch["slots"], launch["counters"] = tasks.address, slots.address, counters.data_ptr()
        launch["control"], launch["host"] = control_memory.address, host_memory.address
        launch["n_workers"], launch["n_tables"], launch["n_ranks"] = t.tables.workers, 1, 1
        launch["n_events"], launch["n_tasks"] = len(t.tables.events), len(t.tables.tasks)
        launch["iterations"], launch["steps"], launch["prefetch"] = iterations, int(t.steps), int(kernel.prefetch)
        launch["level"], launch["window_skip"], launch["window_record"] = window.level, window.skip, window.record
        launch["wait_limit"] = int(limit * kernel.clock_hz)
        launch["dims"][0][: len(values)] = values
        pools = self._fill_pools(launch, t.tables)
        return LaunchMemory(launch, host_memory, lanes, roles, counters, (tasks, slots, control_memory, pools))

    def _fill_pools(self, launch: npt.NDArray[np.void], tables: Tables) -> tuple[Memory, ...]:
        """Rings that hold what opens the first iteration, and the counts that say what else is ready."""
        handout = self.kernel.schedule.handout
        if handout is None:
            return ()
        rings, ready = tables.rings.copy(), np.zeros(tables.ready_slots, np.uint32)
        for row in tables.triggered[: tables.opening]:
            ring = rings[int(row["ring"])]
            ready[int(ring["base"]) + int(ring["tail"])] = row["task"] + 1
            ring["tail"] += 1
        promised = np.zeros(len(tables.events) * abi.EVENT_STRIDE if handout.early_push else 0, np.uint32)
        arrays = {
            "pools": rings,
            "ready": ready,
            "pending": np.zeros(len(tables.tasks), np.uint32),
            "promised": promised,
        }
        memory = {name: Memory(array, self.device) for name, array in arrays.items()}
        for name, held in memory.items():
            launch[name] = held.address if name != "promised" or handout.early_push else 0
        launch["n_rings"], launch["ring_classes"] = len(rings), handout.classes
        launch["n_opening"], launch["pop_ahead"] = tables.opening, handout.pop_ahead
        return tuple(memory.values())

    def _page_records(self, level: int) -> int:
        """Records of one iteration about pages of the ring, at most: level 3 times each on both sides."""
        if level < 3 or self.device != "cuda":
            return 0
        schedule = self.kernel.schedule
        settings = device_settings(schedule.tasks.plan.settings)
        if schedule.worker.min(initial=0) < 0:  # a pool's task may run anywhere
            most = float(schedule.tasks.bytes.sum())
        else:
            most = float(np.bincount(schedule.worker, weights=schedule.tasks.bytes).max(initial=0.0))
        return int(4 * most / settings["page_bytes"])

    def _slots(self, tables: Tables) -> npt.NDArray[np.void]:
        graph = self.kernel.graph
        slots = np.zeros(len(tables.slots), abi.SLOT)
        handed = set(self.kernel.schedule.handed)
        for i, name in enumerate(tables.slots):
            tensor = self.tensors.get(name)
            if tensor is None:
                continue
            slots[i]["base"] = tensor.data_ptr()
            slots[i]["bytes"] = graph.tensors[name].bytes
            slots[i]["stride"] = tensor.stride(0) if tensor.ndim else 1
            slots[i]["dtype"] = int(abi.DType[graph.tensors[name].dtype])
            if name in handed:
                slots[i]["next_copy"] = self._handed.shape[1]
            if name in self._segments:
                slots[i]["base"] = 0  # no single place: whoever reads must go through the segments
                slots[i]["segments"] = self._segments[name].address
                slots[i]["n_segments"] = len(graph.tensors[name].parts) * graph.tensors[name].groups
        return slots

    def _lose_words(self, tasks: npt.NDArray[np.void], task: int, slots: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """Slots with which what a task hands over by its own words goes where nobody looks; `tasks` is told of them."""
        operator = self.kernel.schedule.tasks.operators[int(tasks["op"][task])]
        for k, operand in enumerate(REGISTRY.ops[operator.op].operands):
            name = operator.operands.get(operand.name)
            if operand.access == "w" and name in self.kernel.schedule.handed:
                lost = slots[[int(tasks["slots"][task, k])]]
                self._nowhere = torch.empty(int(lost["bytes"][0]), dtype=torch.uint8, device=self.device)
                lost["base"], lost["next_copy"] = self._nowhere.data_ptr(), 0
                tasks["slots"][task, k] = len(slots)
                slots = np.concatenate([slots, lost])
        return slots

    def __repr__(self) -> str:
        own = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.tensors.values()}
        size = human_bytes(sum(own.values()))
        return f"Session of {self.kernel}: {len(self.tensors)} tensors in {size} on {self.device}, weights among them"

    # --- afterwards ---

    def _deadlock(self, fault: Any, limit: float, dropped: int | None, counters: torch.Tensor) -> DeadlockError:
        kernel = self.kernel
        schedule, tasks = kernel.schedule, kernel.schedule.tasks
        facts = {k: int(fault[k]) for k in ("worker", "task", "event", "count", "need", "rank", "iteration")}
        waiting = tasks.task_name(facts["task"]) if facts["task"] < len(tasks) else "the start of an iteration"
        event = facts["event"]
        counts = f"{facts['count']} of {facts['need']} signals"
        if event < len(tasks.need) and schedule.by_words[tasks.event_producer[event]]:
            counts = "words of its data have not come"
        if schedule.handout is not None and facts["task"] >= len(tasks):
            waiting = "the pool"
        # Who waits for the step of an iteration waits for the end of the one before.
        begun = facts["iteration"] + (schedule.handout is not None or event < len(tasks.need))
        first, root = self._first_missing(counters, begun), ""
        if first >= 0 and event >= len(tasks.need):
            event, counts = first, "too few signals"
        elif 0 <= first != event:
            root = f"; the first that is late is event {first} of {tasks.operators[tasks.event_producer[first]].name}"
        if event >= len(tasks.need):
            what = "the StepControl of the iteration"
            late: list[int] = [tasks.step_task] if tasks.step_task >= 0 else []
        else:
            producer = int(tasks.event_producer[event])
            what = f"event {event} of {tasks.operators[producer].name}"
            first = int(tasks.first[producer])
            late = [first + t for t in range(int(tasks.event_begin[event]), int(tasks.event_end[event]))]
            if schedule.by_words[producer]:
                late = [p for p in late if p in self._silent(producer, facts["iteration"])] or late
        places = ", ".join(f"{tasks.task_name(p)} ({schedule.place(p)})" for p in late[:4])
        more = f" and {len(late) - 4} more" if len(late) > 4 else ""
        hook = f"; the test hook dropped the signals of {tasks.task_name(dropped)}" if dropped is not None else ""
        return DeadlockError(
            f"worker {facts['worker']} waited over {limit:g} s in iteration {facts['iteration']} at {waiting} for {what}: "
            f"{counts}. Its producers are {places or 'unknown'}{more}{root}{hook}",
            facts,
        )

    def _first_missing(self, counters: torch.Tensor, iterations: int) -> int:
        """The first event that has not happened so often, or -1. Events stand in program order, so what its producers
        wait for has happened: they are what is missing."""
        schedule, tasks = self.kernel.schedule, self.kernel.schedule.tasks
        count = counters.cpu().numpy()[:: abi.EVENT_STRIDE][: len(tasks.need)]
        late = count < tasks.need * iterations
        for event in np.flatnonzero(schedule.by_words[tasks.event_producer]):
            producer = int(tasks.event_producer[event])
            first, silent = int(tasks.first[producer]), self._silent(producer, iterations - 1)
            late[event] = any(
                first + int(tasks.event_begin[event]) <= t < first + int(tasks.event_end[event]) for t in silent
            )
        return int(late.argmax()) if late.any() else -1

    def _silent(self, operator: int, iteration: int) -> list[int]:
        """The tasks of an operator that have not handed over all their words in an iteration; a linear's tiles are of
        columns."""
        tasks = self.kernel.schedule.tasks
        out = self.tensors[tasks.operators[operator].operands["out"]]
        begin = out.data_ptr() - self._handed.data_ptr()
        words = self._handed[iteration & 1, begin : begin + out.nbytes].view(torch.int32).cpu().numpy()
        column = words.nbytes // out.shape[-1]
        return [
            t
            for t in range(int(tasks.first[operator]), int(tasks.first[operator + 1]))
            if (words[int(tasks.words[t, 0]) * column // 4 : int(tasks.words[t, 1]) * column // 4] == -1).any()
        ]

    def _seeds(self) -> list[int]:
        """What the rows of the batch draw with; empty where tokens are not drawn."""
        drawn = self.kernel.graph.operands_of("sample_reduce")
        if "seed" not in drawn:
            return []
        words = self.tensors[drawn["seed"]][:, :2].cpu().numpy().copy()
        return [int(seed) for seed in words.view(np.int64).flatten()]

    def _profile(
        self, memory: LaunchMemory, window: Window, seconds: float, before: Mapping[str, Any]
    ) -> Profile | None:
        if memory.lanes is None:
            return None
        kernel = self.kernel
        schedule = kernel.schedule
        after = kernel.device_facts()
        changed = {k: v for k, v in before.items() if v != after.get(k)}
        return Profile.from_parts(
            _written(memory.lanes),
            schedule.workers,
            memory.roles,
            level=window.level,
            clock_hz=kernel.clock_hz,
            **recipe.tables(schedule),
            stamp=stamp.collect(
                device={**after, "before": changed} if changed else after,
                hashes={**recipe.hashes(schedule), "source": kernel.source.hash},
                compiler=kernel.library(window.level).identity,
                seeds=self._seeds(),
            ),
            meta={
                **recipe.meta(schedule),
                "seconds": seconds,
                "iterations": int(memory.launch["iterations"][0]),
                "prefetch": bool(kernel.prefetch),
                **({"record_ns": RECORD_CYCLES / kernel.clock_hz * 1e9} if kernel.backend == "cuda" else {}),
                "window": {"skip": window.skip, "record": window.record, "level": window.level},
            },
        )


def described(tensor: torch.Tensor) -> str:
    """`float32[1×64]`, as results and messages name a tensor."""
    return f"{str(tensor.dtype).removeprefix('torch.')}[{shape_text(tuple(tensor.shape))}]"


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _most_popped(tables: Tables) -> int:
    """Tasks of the pool that a worker is likely to run at most in an iteration."""
    tasks = int(tables.rings["tasks"].sum()) if len(tables.rings) else 0
    return min(tasks, 4 * -(-tasks // tables.workers) + 64)


def _written(lanes: torch.Tensor) -> npt.NDArray[np.uint8]:
    """The lanes on the host, shortened to the longest of them."""
    header, record = abi.LANE.itemsize, abi.RECORD.itemsize
    headers = lanes[:, :header].contiguous().cpu().numpy().view(abi.LANE)
    longest = int(np.minimum(headers["written"], headers["capacity"]).max())
    kept = lanes[:, : header + longest * record].contiguous().cpu().numpy()
    headers["capacity"] = longest
    kept[:, :header] = headers.view(np.uint8)
    return kept.reshape(-1)


def _only_a_part(kernel: Kernel, name: str) -> bool:
    """Weights that appear only as parts of a merged one need no slot of their own."""
    used = {v for o in kernel.graph.operators for v in o.operands.values()}
    return name not in used


def _stored(t: Tensor, make: Callable[..., torch.Tensor], device: str) -> torch.Tensor:
    """A new tensor whose axes are stored in the graph's order."""
    order = t.order or tuple(range(len(t.shape)))
    held = make([t.type.sizes[axis] for axis in order], dtype=TORCH_DTYPES[t.dtype], device=device)
    return held.permute([order.index(axis) for axis in range(len(order))])


def _same_place(t: Tensor, value: torch.Tensor) -> bool:
    """Whether a tensor's axes are stored in the graph's order, without gaps."""
    return value.permute(t.order).is_contiguous()


def _segments(pieces: list[torch.Tensor]) -> npt.NDArray[np.void]:
    table = np.zeros(len(pieces), abi.SEGMENT)
    row = 0
    for i, piece in enumerate(pieces):
        table[i] = (piece.data_ptr(), row, row + piece.shape[0])
        row += piece.shape[0]
    return table
