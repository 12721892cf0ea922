"""Every byte that Python and a device share, declared once; `python -m mpklab.abi` writes csrc/include/mpklab/abi.h.

Tables are NumPy structured arrays. They hold no addresses: operands name *slots*, and a slot is bound to memory when a
kernel is launched. All structures are little-endian, naturally aligned and padded by hand, so that the same bytes
mean the same thing to g++, nvcc and NumPy (each size and offset is checked by a static_assert in the header).
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import numpy as np

from mpklab import env

VERSION = 1
LANE_MAGIC = 0x4B504D4C  # "LMPK"
EVENT_STRIDE = 16  # counters lie 64 bytes apart: one cache line, two L2 sectors
MAX_SLOTS = 12  # operand slots of one task
MAX_WAITS = 8  # waits, and signals, of one task
MAX_DIMS = 8  # run-time sizes in StepControl
ARG_BITS = 24  # what a record can say beside its clock
NO_WORD = 0xFFFFFFFF  # a wait whose need is a constant; a drain that lasts until the iteration is over
NO_VARIANT = 0xFFFF  # ends the row of a block that has fewer tasks than others of its operator
MAX_HELD = 8  # tasks that a worker holds: the one it runs and those it popped ahead


class DType(enum.IntEnum):
    """Element types of tensors."""

    float32 = 0
    bfloat16 = 1
    float16 = 2
    int32 = 3
    int64 = 4
    uint8 = 5


class Storage(enum.IntEnum):
    """How a slot's elements lie in memory."""

    dense = 0
    quantised = 1
    paged = 2


class Scope(enum.IntEnum):
    """Who must see a signal: the device, or every device."""

    gpu = 0
    system = 1


class Handoff(enum.IntEnum):
    """How a wait learns that its event happened."""

    counter = 0  # an event counter in global memory
    data = 1  # every word of the data carries its epoch
    worker = 2  # producers run earlier on the same worker: block order is enough


class TaskFlag(enum.IntFlag):
    """Properties of a task that the worker loop acts on."""

    step = 1  # its iteration's StepControl is published after it
    drop_signals = 2  # test hook: run, but never signal


class EntryKind(enum.IntEnum):
    """What a queue entry asks of a worker."""

    task = 0
    drain = 1  # run tasks of a pool until an event happened


class Steps(enum.IntEnum):
    """Who says that the next iteration may begin."""

    none = 0  # nobody: every worker counts iterations itself
    task = 1  # a task publishes StepControl
    last = 2  # whoever ends the last task of an iteration publishes it


class Role(enum.IntEnum):
    """The instrumented roles of one worker; one lane each."""

    compute = 0
    loader = 1
    scheduler = 2


class Kind(enum.IntEnum):
    """What a record does to the lane's open phase."""

    begin = 0
    end = 1
    next = 2  # ends the open phase and begins this one
    value = 3  # no time: the clock field carries 32 bits of payload


class Phase(enum.IntEnum):
    """What a worker is doing; the comment says what the 24-bit argument means and from which level it is recorded."""

    none = 0
    iteration = 1  # iteration, low bits; level 1
    execute = 2  # task; level 1
    wait = 3  # event; level 2
    gather = 4  # task; level 2
    fetch = 5  # task: read its descriptor; level 2
    signal = 6  # task: stores made visible, events signalled; level 2
    step = 7  # iteration: wait for StepControl; level 2
    load = 8  # task: the loader issues copies; level 3, loader lane
    ring = 9  # task: the loader waits for a free page; level 3, loader lane
    load_wait = 10  # event: the loader waits for an operand's event; level 3, loader lane
    operand = 11  # task: consumers wait for a page to arrive; level 3
    push = 12  # event: tasks are handed out; level 2
    pop = 13  # table: ask for a task; level 2
    global_time = 14  # value record: bits 32-55 of the global timer in the argument, bits 0-31 as payload; level 1


class Clock(enum.IntEnum):
    """The unit of the clock in records and lane headers."""

    sm_cycles = 0
    tsc_cycles = 1
    nanoseconds = 2


def _struct(*fields: tuple[str, Any] | tuple[str, Any, int]) -> np.dtype:
    plain = [(f[0], f[1]) if len(f) == 2 else (f[0], f[1], (f[2],)) for f in fields]
    return np.dtype(plain, align=True)


TASK = _struct(
    ("variant", "<u2"),  # index into the kernel's list of operator variants
    ("op", "<u2"),  # index into the graph's operators
    ("tile", "<i4", 4),  # meaning fixed by the operator
    ("slots", "<u2", MAX_SLOTS),
    ("waits", "<u4"),  # first index into the wait table
    ("signals", "<u4"),
    ("load_waits", "<u4"),  # waits of streamed operands, in the same wait table
    ("n_waits", "u1"),
    ("n_signals", "u1"),
    ("n_load_waits", "u1"),
    ("flags", "u1"),
    ("priority", "<u4"),
)
WAIT = _struct(
    ("event", "<u4"),
    ("need", "<i4"),  # signals per epoch
    ("word", "<u4"),  # index of a target word that holds the need, or NO_WORD
    ("lag", "u1"),  # 0: this iteration, 1: the one before
    ("scope", "u1"),
    ("handoff", "u1"),
    ("rank", "u1"),
)
SIGNAL = _struct(("event", "<u4"), ("weight", "<u2"), ("scope", "u1"), ("rank", "u1"))
EVENT = _struct(
    ("need", "<i4"),
    ("word", "<u4"),
    ("tasks", "<u4"),  # first index into Launch.triggered: what its completion hands out
    ("n_tasks", "<u4"),
)
ENTRY = _struct(
    ("task", "<u4"),  # of a drain: the event that ends it, or NO_WORD for the end of the iteration
    ("kind", "<u2"),
    ("pool", "<u2"),  # of a drain: the first ring that the worker pops from
)
TRIGGER = _struct(
    ("task", "<u4"),
    ("ring", "<u2"),
    ("waits", "<u2"),  # events of this iteration that the task waits for: the last of them pushes it
)
RING = _struct(
    ("head", "<u4"),  # tasks popped since the launch
    ("pad0", "<u4", 15),
    ("tail", "<u4"),  # tasks pushed
    ("pad1", "<u4", 15),
    ("base", "<u4"),  # first word in Launch.ready
    ("mask", "<u4"),  # capacity - 1, of a power of two
    ("tasks", "<u4"),  # pushed in each iteration
    ("pad2", "<u4", 13),
)
SLOT = _struct(
    ("base", "<u8"),
    ("segments", "<u8"),  # Segment[n_segments], or 0 when the tensor lies in one piece at base
    ("page_table", "<u8"),
    ("peers", "<u8"),  # base per rank, or 0
    ("bytes", "<u8"),
    ("stride", "<i8"),  # elements between rows of the first axis
    ("n_segments", "<u4"),
    ("storage", "<u2"),
    ("dtype", "<u2"),
    ("next_copy", "<u8"),  # bytes to the copy of odd iterations, of what is handed over by its own words
)
SEGMENT = _struct(("base", "<u8"), ("begin", "<u4"), ("end", "<u4"))  # rows [begin, end) of the first axis
STEP = _struct(
    ("iteration", "<u4"),
    ("stop", "<u4"),
    ("table", "<u4"),
    ("reserved", "<u4"),
    ("dims", "<i4", MAX_DIMS),
    ("pad", "<u4", 4),
)
FAULT = _struct(
    ("state", "<u4"),  # 0 none, 1 a wait outlasted the limit
    ("worker", "<u4"),
    ("task", "<u4"),
    ("event", "<u4"),
    ("count", "<i4"),
    ("need", "<i4"),  # need * epochs: what the counter had to reach
    ("rank", "<u4"),
    ("iteration", "<u4"),
    ("waited", "<u8"),  # in the device's clock
    ("pad", "<u4", 6),
)
CONTROL = _struct(
    ("published", "<u4"),  # iterations whose StepControl stands
    ("pad0", "<u4", 15),
    ("abort", "<u4"),
    ("pad1", "<u4", 15),
    ("finished", "<u4"),  # tasks ended since the launch, where Launch.steps is `last`
    ("pad2", "<u4", 15),
    ("readers", "<u4", 2),  # by parity: workers that have read a StepControl since the launch, where there are pools
    ("pad3", "<u4", 14),
    ("step", STEP, 2),  # by parity of the iteration
)
HOST = _struct(
    ("abort", "<u4"),  # written by the host
    ("pad0", "<u4", 15),
    ("progress", "<u4"),  # iterations finished, written by the device
    ("pad1", "<u4", 15),
    ("fault", FAULT),
)
RECORD = _struct(("tag", "<u4"), ("clock", "<u4"))  # tag: kind (2) | phase (6) | argument (24), low bits first
LANE = _struct(
    ("magic", "<u4"),
    ("version", "<u2"),
    ("rank", "<u2"),
    ("worker", "<u2"),
    ("role", "u1"),
    ("clock_unit", "u1"),
    ("sm", "<u4"),
    ("capacity", "<u4"),
    ("written", "<u4"),  # records asked for; those past the capacity were dropped
    ("dropped", "<u4"),
    ("level", "<u2"),
    ("wrapped", "<u2"),
    ("begin_global_ns", "<u8"),
    ("begin_clock", "<u8"),
    ("end_global_ns", "<u8"),
    ("end_clock", "<u8"),
)
LAUNCH = _struct(
    ("tasks", "<u8"),
    ("waits", "<u8"),
    ("signals", "<u8"),
    ("events", "<u8"),
    ("triggered", "<u8"),  # Trigger rows: those that open an iteration, then those of each event
    ("entries", "<u8"),
    ("queues", "<u8"),  # u32[n_tables * n_workers + 1]: where each queue begins in entries
    ("slots", "<u8"),
    ("counters", "<u8"),  # i32[n_events * EVENT_STRIDE], zeroed before the launch
    ("words", "<u8"),  # i32 target words
    ("control", "<u8"),
    ("host", "<u8"),
    ("lanes", "<u8"),  # per lane a LANE and lane_capacity records
    ("pools", "<u8"),  # Ring[n_rings], or 0 where all tasks stand in queues
    ("ready", "<u8"),  # u32: the rings' slots, task + 1 or 0
    ("pending", "<u8"),  # u32 per task: events it waits for that have happened, over all iterations
    ("promised", "<u8"),  # u32[n_events * EVENT_STRIDE]: signals whose tasks were popped, or 0 without early push
    ("handed", "<u8"),  # two copies of all that is handed over by its own words
    ("handed_bytes", "<u8"),  # of one copy
    ("wait_limit", "<u8"),  # in the device's clock
    ("n_workers", "<u4"),
    ("n_tables", "<u4"),
    ("n_events", "<u4"),
    ("n_tasks", "<u4"),
    ("rank", "<u4"),
    ("n_ranks", "<u4"),
    ("iterations", "<u4"),  # at most this many in this launch
    ("first_iteration", "<u4"),
    ("table", "<u4"),
    ("lane_capacity", "<u4"),
    ("lanes_per_worker", "<u4"),
    ("steps", "<u4"),  # Steps
    ("prefetch", "<u4"),
    ("ring_bytes", "<u4"),
    ("scratch_bytes", "<u4"),
    ("level", "<u4"),
    ("window_skip", "<u4"),  # iterations before recording starts
    ("window_record", "<u4"),  # iterations recorded, 0 for all
    ("n_rings", "<u4"),
    ("ring_classes", "<u4"),  # rings of one queue, by falling priority
    ("n_opening", "<u4"),  # tasks that wait for nothing of their iteration
    ("pop_ahead", "<u4"),
    ("dims", "<i4", MAX_DIMS),
)

STRUCTS: dict[str, np.dtype] = {
    "Task": TASK,
    "Wait": WAIT,
    "Signal": SIGNAL,
    "Event": EVENT,
    "Entry": ENTRY,
    "Trigger": TRIGGER,
    "Ring": RING,
    "Segment": SEGMENT,
    "Slot": SLOT,
    "Step": STEP,
    "Fault": FAULT,
    "Control": CONTROL,
    "Host": HOST,
    "Record": RECORD,
    "Lane": LANE,
    "Launch": LAUNCH,
}
ENUMS: tuple[type[enum.IntEnum] | type[enum.IntFlag], ...] = (
    DType,
    Storage,
    Scope,
    Handoff,
    TaskFlag,
    EntryKind,
    Steps,
    Role,
    Kind,
    Phase,
    Clock,
)
CONSTANTS = {
    "abi_version": VERSION,
    "lane_magic": LANE_MAGIC,
    "event_stride": EVENT_STRIDE,
    "max_slots": MAX_SLOTS,
    "max_waits": MAX_WAITS,
    "max_dims": MAX_DIMS,
    "arg_bits": ARG_BITS,
    "no_word": NO_WORD,
    "no_variant": NO_VARIANT,
    "max_held": MAX_HELD,
}

_C_TYPES = {
    "u1": "unsigned char",
    "u2": "unsigned short",
    "u4": "unsigned int",
    "u8": "unsigned long long",
    "i4": "int",
    "i8": "long long",
}


def _c_field(name: str, dtype: np.dtype) -> str:
    base, shape = dtype.subdtype if dtype.subdtype else (dtype, ())
    if base.fields:
        c_type = next(n for n, d in STRUCTS.items() if d == base)
    else:
        c_type = _C_TYPES[f"{base.kind}{base.itemsize}"]
    return f"  {c_type} {name}{''.join(f'[{n}]' for n in shape)};"


def header() -> str:
    """The text of csrc/include/mpklab/abi.h."""
    out = [
        "// The bytes that Python and a device share. Written by `python -m mpklab.abi`; do not edit.",
        "#pragma once",
        "",
        "// NVRTC before 13.1 has no offsetof; nvcc and the host compiler check the same structures.",
        "#if defined(__CUDACC_RTC__)",
        "#define MPK_OFFSET(type, field, at) static_assert(true)",
        "#else",
        '#define MPK_OFFSET(type, field, at) static_assert(__builtin_offsetof(type, field) == at, #type "." #field)',
        "#endif",
        "",
        "namespace mpk {",
        "",
    ]
    out += [f"constexpr unsigned int {name} = {value:#x}u;" for name, value in CONSTANTS.items()]
    for e in ENUMS:
        members = ", ".join(f"{m.name}_ = {int(m)}" for m in e)
        out += ["", f"enum class {e.__name__} : unsigned int {{ {members} }};"]
    for name, dtype in STRUCTS.items():
        assert dtype.names is not None and dtype.fields is not None
        out += ["", f"struct {name} {{"]
        out += [_c_field(f, dtype.fields[f][0]) for f in dtype.names]
        out += ["};", f'static_assert(sizeof({name}) == {dtype.itemsize}, "{name}");']
        out += [f"MPK_OFFSET({name}, {f}, {dtype.fields[f][1]});" for f in dtype.names]
    out += ["", "}  // namespace mpk", "", "#undef MPK_OFFSET", ""]
    return "\n".join(out)


def header_path() -> Path:
    """Where abi.h lies: beside the checkout, or inside the installed package."""
    return env.csrc_folder() / "include" / "mpklab" / "abi.h"


if __name__ == "__main__":
    path = header_path()
    path.write_text(header())
    print(path)
