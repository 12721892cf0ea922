// The bytes that Python and a device share. Written by `python -m mpklab.abi`; do not edit.
#pragma once

namespace mpk {

constexpr unsigned int abi_version = 0x1u;
constexpr unsigned int lane_magic = 0x4b504d4cu;
constexpr unsigned int event_stride = 0x10u;
constexpr unsigned int max_slots = 0xcu;
constexpr unsigned int max_waits = 0x8u;
constexpr unsigned int max_dims = 0x8u;
constexpr unsigned int arg_bits = 0x18u;
constexpr unsigned int no_word = 0xffffffffu;

enum class DType : unsigned int { float32_ = 0, bfloat16_ = 1, float16_ = 2, int32_ = 3, int64_ = 4, uint8_ = 5 };

enum class Storage : unsigned int { dense_ = 0, quantised_ = 1, paged_ = 2 };

enum class Scope : unsigned int { gpu_ = 0, system_ = 1 };

enum class Handoff : unsigned int { counter_ = 0, data_ = 1, worker_ = 2 };

enum class TaskFlag : unsigned int { step_ = 1, drop_signals_ = 2 };

enum class EntryKind : unsigned int { task_ = 0, drain_ = 1 };

enum class Role : unsigned int { compute_ = 0, loader_ = 1, scheduler_ = 2 };

enum class Kind : unsigned int { begin_ = 0, end_ = 1, next_ = 2, value_ = 3 };

enum class Phase : unsigned int { none_ = 0, iteration_ = 1, execute_ = 2, wait_ = 3, gather_ = 4, fetch_ = 5, signal_ = 6, step_ = 7, load_ = 8, ring_ = 9, load_wait_ = 10, operand_ = 11, push_ = 12, pop_ = 13, global_time_ = 14 };

enum class Clock : unsigned int { sm_cycles_ = 0, tsc_cycles_ = 1, nanoseconds_ = 2 };

struct Task {
  unsigned short variant;
  unsigned short op;
  int tile[4];
  unsigned short slots[12];
  unsigned int waits;
  unsigned int signals;
  unsigned int load_waits;
  unsigned char n_waits;
  unsigned char n_signals;
  unsigned char n_load_waits;
  unsigned char flags;
  unsigned int priority;
};
static_assert(sizeof(Task) == 64, "Task");
static_assert(__builtin_offsetof(Task, variant) == 0, "Task.variant");
static_assert(__builtin_offsetof(Task, op) == 2, "Task.op");
static_assert(__builtin_offsetof(Task, tile) == 4, "Task.tile");
static_assert(__builtin_offsetof(Task, slots) == 20, "Task.slots");
static_assert(__builtin_offsetof(Task, waits) == 44, "Task.waits");
static_assert(__builtin_offsetof(Task, signals) == 48, "Task.signals");
static_assert(__builtin_offsetof(Task, load_waits) == 52, "Task.load_waits");
static_assert(__builtin_offsetof(Task, n_waits) == 56, "Task.n_waits");
static_assert(__builtin_offsetof(Task, n_signals) == 57, "Task.n_signals");
static_assert(__builtin_offsetof(Task, n_load_waits) == 58, "Task.n_load_waits");
static_assert(__builtin_offsetof(Task, flags) == 59, "Task.flags");
static_assert(__builtin_offsetof(Task, priority) == 60, "Task.priority");

struct Wait {
  unsigned int event;
  int need;
  unsigned int word;
  unsigned char lag;
  unsigned char scope;
  unsigned char handoff;
  unsigned char rank;
};
static_assert(sizeof(Wait) == 16, "Wait");
static_assert(__builtin_offsetof(Wait, event) == 0, "Wait.event");
static_assert(__builtin_offsetof(Wait, need) == 4, "Wait.need");
static_assert(__builtin_offsetof(Wait, word) == 8, "Wait.word");
static_assert(__builtin_offsetof(Wait, lag) == 12, "Wait.lag");
static_assert(__builtin_offsetof(Wait, scope) == 13, "Wait.scope");
static_assert(__builtin_offsetof(Wait, handoff) == 14, "Wait.handoff");
static_assert(__builtin_offsetof(Wait, rank) == 15, "Wait.rank");

struct Signal {
  unsigned int event;
  unsigned short weight;
  unsigned char scope;
  unsigned char rank;
};
static_assert(sizeof(Signal) == 8, "Signal");
static_assert(__builtin_offsetof(Signal, event) == 0, "Signal.event");
static_assert(__builtin_offsetof(Signal, weight) == 4, "Signal.weight");
static_assert(__builtin_offsetof(Signal, scope) == 6, "Signal.scope");
static_assert(__builtin_offsetof(Signal, rank) == 7, "Signal.rank");

struct Event {
  int need;
  unsigned int word;
  unsigned int tasks;
  unsigned int n_tasks;
};
static_assert(sizeof(Event) == 16, "Event");
static_assert(__builtin_offsetof(Event, need) == 0, "Event.need");
static_assert(__builtin_offsetof(Event, word) == 4, "Event.word");
static_assert(__builtin_offsetof(Event, tasks) == 8, "Event.tasks");
static_assert(__builtin_offsetof(Event, n_tasks) == 12, "Event.n_tasks");

struct Entry {
  unsigned int task;
  unsigned short kind;
  unsigned short pool;
};
static_assert(sizeof(Entry) == 8, "Entry");
static_assert(__builtin_offsetof(Entry, task) == 0, "Entry.task");
static_assert(__builtin_offsetof(Entry, kind) == 4, "Entry.kind");
static_assert(__builtin_offsetof(Entry, pool) == 6, "Entry.pool");

struct Segment {
  unsigned long long base;
  unsigned int begin;
  unsigned int end;
};
static_assert(sizeof(Segment) == 16, "Segment");
static_assert(__builtin_offsetof(Segment, base) == 0, "Segment.base");
static_assert(__builtin_offsetof(Segment, begin) == 8, "Segment.begin");
static_assert(__builtin_offsetof(Segment, end) == 12, "Segment.end");

struct Slot {
  unsigned long long base;
  unsigned long long segments;
  unsigned long long page_table;
  unsigned long long peers;
  unsigned long long bytes;
  long long stride;
  unsigned int n_segments;
  unsigned short storage;
  unsigned short dtype;
  unsigned long long reserved;
};
static_assert(sizeof(Slot) == 64, "Slot");
static_assert(__builtin_offsetof(Slot, base) == 0, "Slot.base");
static_assert(__builtin_offsetof(Slot, segments) == 8, "Slot.segments");
static_assert(__builtin_offsetof(Slot, page_table) == 16, "Slot.page_table");
static_assert(__builtin_offsetof(Slot, peers) == 24, "Slot.peers");
static_assert(__builtin_offsetof(Slot, bytes) == 32, "Slot.bytes");
static_assert(__builtin_offsetof(Slot, stride) == 40, "Slot.stride");
static_assert(__builtin_offsetof(Slot, n_segments) == 48, "Slot.n_segments");
static_assert(__builtin_offsetof(Slot, storage) == 52, "Slot.storage");
static_assert(__builtin_offsetof(Slot, dtype) == 54, "Slot.dtype");
static_assert(__builtin_offsetof(Slot, reserved) == 56, "Slot.reserved");

struct Step {
  unsigned int iteration;
  unsigned int stop;
  unsigned int table;
  unsigned int reserved;
  int dims[8];
  unsigned int pad[4];
};
static_assert(sizeof(Step) == 64, "Step");
static_assert(__builtin_offsetof(Step, iteration) == 0, "Step.iteration");
static_assert(__builtin_offsetof(Step, stop) == 4, "Step.stop");
static_assert(__builtin_offsetof(Step, table) == 8, "Step.table");
static_assert(__builtin_offsetof(Step, reserved) == 12, "Step.reserved");
static_assert(__builtin_offsetof(Step, dims) == 16, "Step.dims");
static_assert(__builtin_offsetof(Step, pad) == 48, "Step.pad");

struct Fault {
  unsigned int state;
  unsigned int worker;
  unsigned int task;
  unsigned int event;
  int count;
  int need;
  unsigned int rank;
  unsigned int iteration;
  unsigned long long waited;
  unsigned int pad[6];
};
static_assert(sizeof(Fault) == 64, "Fault");
static_assert(__builtin_offsetof(Fault, state) == 0, "Fault.state");
static_assert(__builtin_offsetof(Fault, worker) == 4, "Fault.worker");
static_assert(__builtin_offsetof(Fault, task) == 8, "Fault.task");
static_assert(__builtin_offsetof(Fault, event) == 12, "Fault.event");
static_assert(__builtin_offsetof(Fault, count) == 16, "Fault.count");
static_assert(__builtin_offsetof(Fault, need) == 20, "Fault.need");
static_assert(__builtin_offsetof(Fault, rank) == 24, "Fault.rank");
static_assert(__builtin_offsetof(Fault, iteration) == 28, "Fault.iteration");
static_assert(__builtin_offsetof(Fault, waited) == 32, "Fault.waited");
static_assert(__builtin_offsetof(Fault, pad) == 40, "Fault.pad");

struct Control {
  unsigned int published;
  unsigned int pad0[15];
  unsigned int abort;
  unsigned int pad1[15];
  Step step[2];
};
static_assert(sizeof(Control) == 256, "Control");
static_assert(__builtin_offsetof(Control, published) == 0, "Control.published");
static_assert(__builtin_offsetof(Control, pad0) == 4, "Control.pad0");
static_assert(__builtin_offsetof(Control, abort) == 64, "Control.abort");
static_assert(__builtin_offsetof(Control, pad1) == 68, "Control.pad1");
static_assert(__builtin_offsetof(Control, step) == 128, "Control.step");

struct Host {
  unsigned int abort;
  unsigned int pad0[15];
  unsigned int progress;
  unsigned int pad1[15];
  Fault fault;
};
static_assert(sizeof(Host) == 192, "Host");
static_assert(__builtin_offsetof(Host, abort) == 0, "Host.abort");
static_assert(__builtin_offsetof(Host, pad0) == 4, "Host.pad0");
static_assert(__builtin_offsetof(Host, progress) == 64, "Host.progress");
static_assert(__builtin_offsetof(Host, pad1) == 68, "Host.pad1");
static_assert(__builtin_offsetof(Host, fault) == 128, "Host.fault");

struct Record {
  unsigned int tag;
  unsigned int clock;
};
static_assert(sizeof(Record) == 8, "Record");
static_assert(__builtin_offsetof(Record, tag) == 0, "Record.tag");
static_assert(__builtin_offsetof(Record, clock) == 4, "Record.clock");

struct Lane {
  unsigned int magic;
  unsigned short version;
  unsigned short rank;
  unsigned short worker;
  unsigned char role;
  unsigned char clock_unit;
  unsigned int sm;
  unsigned int capacity;
  unsigned int written;
  unsigned int dropped;
  unsigned short level;
  unsigned short wrapped;
  unsigned long long begin_global_ns;
  unsigned long long begin_clock;
  unsigned long long end_global_ns;
  unsigned long long end_clock;
};
static_assert(sizeof(Lane) == 64, "Lane");
static_assert(__builtin_offsetof(Lane, magic) == 0, "Lane.magic");
static_assert(__builtin_offsetof(Lane, version) == 4, "Lane.version");
static_assert(__builtin_offsetof(Lane, rank) == 6, "Lane.rank");
static_assert(__builtin_offsetof(Lane, worker) == 8, "Lane.worker");
static_assert(__builtin_offsetof(Lane, role) == 10, "Lane.role");
static_assert(__builtin_offsetof(Lane, clock_unit) == 11, "Lane.clock_unit");
static_assert(__builtin_offsetof(Lane, sm) == 12, "Lane.sm");
static_assert(__builtin_offsetof(Lane, capacity) == 16, "Lane.capacity");
static_assert(__builtin_offsetof(Lane, written) == 20, "Lane.written");
static_assert(__builtin_offsetof(Lane, dropped) == 24, "Lane.dropped");
static_assert(__builtin_offsetof(Lane, level) == 28, "Lane.level");
static_assert(__builtin_offsetof(Lane, wrapped) == 30, "Lane.wrapped");
static_assert(__builtin_offsetof(Lane, begin_global_ns) == 32, "Lane.begin_global_ns");
static_assert(__builtin_offsetof(Lane, begin_clock) == 40, "Lane.begin_clock");
static_assert(__builtin_offsetof(Lane, end_global_ns) == 48, "Lane.end_global_ns");
static_assert(__builtin_offsetof(Lane, end_clock) == 56, "Lane.end_clock");

struct Launch {
  unsigned long long tasks;
  unsigned long long waits;
  unsigned long long signals;
  unsigned long long events;
  unsigned long long triggered;
  unsigned long long entries;
  unsigned long long queues;
  unsigned long long slots;
  unsigned long long counters;
  unsigned long long words;
  unsigned long long control;
  unsigned long long host;
  unsigned long long lanes;
  unsigned long long pools;
  unsigned long long wait_limit;
  unsigned int n_workers;
  unsigned int n_tables;
  unsigned int n_events;
  unsigned int n_tasks;
  unsigned int rank;
  unsigned int n_ranks;
  unsigned int iterations;
  unsigned int first_iteration;
  unsigned int table;
  unsigned int lane_capacity;
  unsigned int lanes_per_worker;
  unsigned int steps;
  unsigned int prefetch;
  unsigned int ring_bytes;
  unsigned int scratch_bytes;
  unsigned int level;
  unsigned int window_skip;
  unsigned int window_record;
  int dims[8];
};
static_assert(sizeof(Launch) == 224, "Launch");
static_assert(__builtin_offsetof(Launch, tasks) == 0, "Launch.tasks");
static_assert(__builtin_offsetof(Launch, waits) == 8, "Launch.waits");
static_assert(__builtin_offsetof(Launch, signals) == 16, "Launch.signals");
static_assert(__builtin_offsetof(Launch, events) == 24, "Launch.events");
static_assert(__builtin_offsetof(Launch, triggered) == 32, "Launch.triggered");
static_assert(__builtin_offsetof(Launch, entries) == 40, "Launch.entries");
static_assert(__builtin_offsetof(Launch, queues) == 48, "Launch.queues");
static_assert(__builtin_offsetof(Launch, slots) == 56, "Launch.slots");
static_assert(__builtin_offsetof(Launch, counters) == 64, "Launch.counters");
static_assert(__builtin_offsetof(Launch, words) == 72, "Launch.words");
static_assert(__builtin_offsetof(Launch, control) == 80, "Launch.control");
static_assert(__builtin_offsetof(Launch, host) == 88, "Launch.host");
static_assert(__builtin_offsetof(Launch, lanes) == 96, "Launch.lanes");
static_assert(__builtin_offsetof(Launch, pools) == 104, "Launch.pools");
static_assert(__builtin_offsetof(Launch, wait_limit) == 112, "Launch.wait_limit");
static_assert(__builtin_offsetof(Launch, n_workers) == 120, "Launch.n_workers");
static_assert(__builtin_offsetof(Launch, n_tables) == 124, "Launch.n_tables");
static_assert(__builtin_offsetof(Launch, n_events) == 128, "Launch.n_events");
static_assert(__builtin_offsetof(Launch, n_tasks) == 132, "Launch.n_tasks");
static_assert(__builtin_offsetof(Launch, rank) == 136, "Launch.rank");
static_assert(__builtin_offsetof(Launch, n_ranks) == 140, "Launch.n_ranks");
static_assert(__builtin_offsetof(Launch, iterations) == 144, "Launch.iterations");
static_assert(__builtin_offsetof(Launch, first_iteration) == 148, "Launch.first_iteration");
static_assert(__builtin_offsetof(Launch, table) == 152, "Launch.table");
static_assert(__builtin_offsetof(Launch, lane_capacity) == 156, "Launch.lane_capacity");
static_assert(__builtin_offsetof(Launch, lanes_per_worker) == 160, "Launch.lanes_per_worker");
static_assert(__builtin_offsetof(Launch, steps) == 164, "Launch.steps");
static_assert(__builtin_offsetof(Launch, prefetch) == 168, "Launch.prefetch");
static_assert(__builtin_offsetof(Launch, ring_bytes) == 172, "Launch.ring_bytes");
static_assert(__builtin_offsetof(Launch, scratch_bytes) == 176, "Launch.scratch_bytes");
static_assert(__builtin_offsetof(Launch, level) == 180, "Launch.level");
static_assert(__builtin_offsetof(Launch, window_skip) == 184, "Launch.window_skip");
static_assert(__builtin_offsetof(Launch, window_record) == 188, "Launch.window_record");
static_assert(__builtin_offsetof(Launch, dims) == 192, "Launch.dims");

}  // namespace mpk
