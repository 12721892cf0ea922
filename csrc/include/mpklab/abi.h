// The bytes that Python and a device share. Written by `python -m mpklab.abi`; do not edit.
#pragma once

// NVRTC before 13.1 has no offsetof; nvcc and the host compiler check the same structures.
#if defined(__CUDACC_RTC__)
#define MPK_OFFSET(type, field, at) static_assert(true)
#else
#define MPK_OFFSET(type, field, at) static_assert(__builtin_offsetof(type, field) == at, #type "." #field)
#endif

namespace mpk {

constexpr unsigned int abi_version = 0x1u;
constexpr unsigned int lane_magic = 0x4b504d4cu;
constexpr unsigned int event_stride = 0x10u;
constexpr unsigned int max_slots = 0xcu;
constexpr unsigned int max_waits = 0x8u;
constexpr unsigned int max_dims = 0x8u;
constexpr unsigned int arg_bits = 0x18u;
constexpr unsigned int no_word = 0xffffffffu;
constexpr unsigned int no_variant = 0xffffu;
constexpr unsigned int max_held = 0x8u;

enum class DType : unsigned int { float32_ = 0, bfloat16_ = 1, float16_ = 2, int32_ = 3, int64_ = 4, uint8_ = 5 };

enum class Storage : unsigned int { dense_ = 0, quantised_ = 1, paged_ = 2 };

enum class Scope : unsigned int { gpu_ = 0, system_ = 1 };

enum class Handoff : unsigned int { counter_ = 0, data_ = 1, worker_ = 2 };

enum class TaskFlag : unsigned int { step_ = 1, drop_signals_ = 2 };

enum class EntryKind : unsigned int { task_ = 0, drain_ = 1 };

enum class Steps : unsigned int { none_ = 0, task_ = 1, last_ = 2 };

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
MPK_OFFSET(Task, variant, 0);
MPK_OFFSET(Task, op, 2);
MPK_OFFSET(Task, tile, 4);
MPK_OFFSET(Task, slots, 20);
MPK_OFFSET(Task, waits, 44);
MPK_OFFSET(Task, signals, 48);
MPK_OFFSET(Task, load_waits, 52);
MPK_OFFSET(Task, n_waits, 56);
MPK_OFFSET(Task, n_signals, 57);
MPK_OFFSET(Task, n_load_waits, 58);
MPK_OFFSET(Task, flags, 59);
MPK_OFFSET(Task, priority, 60);

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
MPK_OFFSET(Wait, event, 0);
MPK_OFFSET(Wait, need, 4);
MPK_OFFSET(Wait, word, 8);
MPK_OFFSET(Wait, lag, 12);
MPK_OFFSET(Wait, scope, 13);
MPK_OFFSET(Wait, handoff, 14);
MPK_OFFSET(Wait, rank, 15);

struct Signal {
  unsigned int event;
  unsigned short weight;
  unsigned char scope;
  unsigned char rank;
};
static_assert(sizeof(Signal) == 8, "Signal");
MPK_OFFSET(Signal, event, 0);
MPK_OFFSET(Signal, weight, 4);
MPK_OFFSET(Signal, scope, 6);
MPK_OFFSET(Signal, rank, 7);

struct Event {
  int need;
  unsigned int word;
  unsigned int tasks;
  unsigned int n_tasks;
};
static_assert(sizeof(Event) == 16, "Event");
MPK_OFFSET(Event, need, 0);
MPK_OFFSET(Event, word, 4);
MPK_OFFSET(Event, tasks, 8);
MPK_OFFSET(Event, n_tasks, 12);

struct Entry {
  unsigned int task;
  unsigned short kind;
  unsigned short pool;
};
static_assert(sizeof(Entry) == 8, "Entry");
MPK_OFFSET(Entry, task, 0);
MPK_OFFSET(Entry, kind, 4);
MPK_OFFSET(Entry, pool, 6);

struct Trigger {
  unsigned int task;
  unsigned short ring;
  unsigned short waits;
};
static_assert(sizeof(Trigger) == 8, "Trigger");
MPK_OFFSET(Trigger, task, 0);
MPK_OFFSET(Trigger, ring, 4);
MPK_OFFSET(Trigger, waits, 6);

struct Ring {
  unsigned int head;
  unsigned int pad0[15];
  unsigned int tail;
  unsigned int pad1[15];
  unsigned int base;
  unsigned int mask;
  unsigned int tasks;
  unsigned int pad2[13];
};
static_assert(sizeof(Ring) == 192, "Ring");
MPK_OFFSET(Ring, head, 0);
MPK_OFFSET(Ring, pad0, 4);
MPK_OFFSET(Ring, tail, 64);
MPK_OFFSET(Ring, pad1, 68);
MPK_OFFSET(Ring, base, 128);
MPK_OFFSET(Ring, mask, 132);
MPK_OFFSET(Ring, tasks, 136);
MPK_OFFSET(Ring, pad2, 140);

struct Segment {
  unsigned long long base;
  unsigned int begin;
  unsigned int end;
};
static_assert(sizeof(Segment) == 16, "Segment");
MPK_OFFSET(Segment, base, 0);
MPK_OFFSET(Segment, begin, 8);
MPK_OFFSET(Segment, end, 12);

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
  unsigned long long next_copy;
};
static_assert(sizeof(Slot) == 64, "Slot");
MPK_OFFSET(Slot, base, 0);
MPK_OFFSET(Slot, segments, 8);
MPK_OFFSET(Slot, page_table, 16);
MPK_OFFSET(Slot, peers, 24);
MPK_OFFSET(Slot, bytes, 32);
MPK_OFFSET(Slot, stride, 40);
MPK_OFFSET(Slot, n_segments, 48);
MPK_OFFSET(Slot, storage, 52);
MPK_OFFSET(Slot, dtype, 54);
MPK_OFFSET(Slot, next_copy, 56);

struct Step {
  unsigned int iteration;
  unsigned int stop;
  unsigned int table;
  unsigned int reserved;
  int dims[8];
  unsigned int pad[4];
};
static_assert(sizeof(Step) == 64, "Step");
MPK_OFFSET(Step, iteration, 0);
MPK_OFFSET(Step, stop, 4);
MPK_OFFSET(Step, table, 8);
MPK_OFFSET(Step, reserved, 12);
MPK_OFFSET(Step, dims, 16);
MPK_OFFSET(Step, pad, 48);

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
MPK_OFFSET(Fault, state, 0);
MPK_OFFSET(Fault, worker, 4);
MPK_OFFSET(Fault, task, 8);
MPK_OFFSET(Fault, event, 12);
MPK_OFFSET(Fault, count, 16);
MPK_OFFSET(Fault, need, 20);
MPK_OFFSET(Fault, rank, 24);
MPK_OFFSET(Fault, iteration, 28);
MPK_OFFSET(Fault, waited, 32);
MPK_OFFSET(Fault, pad, 40);

struct Control {
  unsigned int published;
  unsigned int pad0[15];
  unsigned int abort;
  unsigned int pad1[15];
  unsigned int finished;
  unsigned int pad2[15];
  unsigned int readers[2];
  unsigned int pad3[14];
  Step step[2];
};
static_assert(sizeof(Control) == 384, "Control");
MPK_OFFSET(Control, published, 0);
MPK_OFFSET(Control, pad0, 4);
MPK_OFFSET(Control, abort, 64);
MPK_OFFSET(Control, pad1, 68);
MPK_OFFSET(Control, finished, 128);
MPK_OFFSET(Control, pad2, 132);
MPK_OFFSET(Control, readers, 192);
MPK_OFFSET(Control, pad3, 200);
MPK_OFFSET(Control, step, 256);

struct Host {
  unsigned int abort;
  unsigned int pad0[15];
  unsigned int progress;
  unsigned int pad1[15];
  Fault fault;
};
static_assert(sizeof(Host) == 192, "Host");
MPK_OFFSET(Host, abort, 0);
MPK_OFFSET(Host, pad0, 4);
MPK_OFFSET(Host, progress, 64);
MPK_OFFSET(Host, pad1, 68);
MPK_OFFSET(Host, fault, 128);

struct Record {
  unsigned int tag;
  unsigned int clock;
};
static_assert(sizeof(Record) == 8, "Record");
MPK_OFFSET(Record, tag, 0);
MPK_OFFSET(Record, clock, 4);

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
MPK_OFFSET(Lane, magic, 0);
MPK_OFFSET(Lane, version, 4);
MPK_OFFSET(Lane, rank, 6);
MPK_OFFSET(Lane, worker, 8);
MPK_OFFSET(Lane, role, 10);
MPK_OFFSET(Lane, clock_unit, 11);
MPK_OFFSET(Lane, sm, 12);
MPK_OFFSET(Lane, capacity, 16);
MPK_OFFSET(Lane, written, 20);
MPK_OFFSET(Lane, dropped, 24);
MPK_OFFSET(Lane, level, 28);
MPK_OFFSET(Lane, wrapped, 30);
MPK_OFFSET(Lane, begin_global_ns, 32);
MPK_OFFSET(Lane, begin_clock, 40);
MPK_OFFSET(Lane, end_global_ns, 48);
MPK_OFFSET(Lane, end_clock, 56);

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
  unsigned long long ready;
  unsigned long long pending;
  unsigned long long promised;
  unsigned long long handed;
  unsigned long long handed_bytes;
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
  unsigned int n_rings;
  unsigned int ring_classes;
  unsigned int n_opening;
  unsigned int pop_ahead;
  int dims[8];
};
static_assert(sizeof(Launch) == 280, "Launch");
MPK_OFFSET(Launch, tasks, 0);
MPK_OFFSET(Launch, waits, 8);
MPK_OFFSET(Launch, signals, 16);
MPK_OFFSET(Launch, events, 24);
MPK_OFFSET(Launch, triggered, 32);
MPK_OFFSET(Launch, entries, 40);
MPK_OFFSET(Launch, queues, 48);
MPK_OFFSET(Launch, slots, 56);
MPK_OFFSET(Launch, counters, 64);
MPK_OFFSET(Launch, words, 72);
MPK_OFFSET(Launch, control, 80);
MPK_OFFSET(Launch, host, 88);
MPK_OFFSET(Launch, lanes, 96);
MPK_OFFSET(Launch, pools, 104);
MPK_OFFSET(Launch, ready, 112);
MPK_OFFSET(Launch, pending, 120);
MPK_OFFSET(Launch, promised, 128);
MPK_OFFSET(Launch, handed, 136);
MPK_OFFSET(Launch, handed_bytes, 144);
MPK_OFFSET(Launch, wait_limit, 152);
MPK_OFFSET(Launch, n_workers, 160);
MPK_OFFSET(Launch, n_tables, 164);
MPK_OFFSET(Launch, n_events, 168);
MPK_OFFSET(Launch, n_tasks, 172);
MPK_OFFSET(Launch, rank, 176);
MPK_OFFSET(Launch, n_ranks, 180);
MPK_OFFSET(Launch, iterations, 184);
MPK_OFFSET(Launch, first_iteration, 188);
MPK_OFFSET(Launch, table, 192);
MPK_OFFSET(Launch, lane_capacity, 196);
MPK_OFFSET(Launch, lanes_per_worker, 200);
MPK_OFFSET(Launch, steps, 204);
MPK_OFFSET(Launch, prefetch, 208);
MPK_OFFSET(Launch, ring_bytes, 212);
MPK_OFFSET(Launch, scratch_bytes, 216);
MPK_OFFSET(Launch, level, 220);
MPK_OFFSET(Launch, window_skip, 224);
MPK_OFFSET(Launch, window_record, 228);
MPK_OFFSET(Launch, n_rings, 232);
MPK_OFFSET(Launch, ring_classes, 236);
MPK_OFFSET(Launch, n_opening, 240);
MPK_OFFSET(Launch, pop_ahead, 244);
MPK_OFFSET(Launch, dims, 248);

}  // namespace mpk

#undef MPK_OFFSET
