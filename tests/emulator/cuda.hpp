// CUDA blocks on a CPU: every lane a fiber, every block an OS thread of which one runs at a time, in an order that a
// seed decides. It models what a program may rely on: who meets whom (warps, barriers of the block, mbarriers), when a
// bulk copy may land, what a matrix product gives. It does not model memory ordering, proxies, caches or time: stores
// are seen at once and in order, and a clock counts switches.
#pragma once

#include <dlfcn.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <queue>
#include <string>
#include <thread>
#include <vector>

#if !defined(__x86_64__)
#error "fibers are switched by x86-64 code"
#endif

// --- the language ---

#define __CUDACC__ 1
#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __forceinline__ inline
#define __shared__ thread_local  // a block is a thread
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct __align__(8) uint2 {
  unsigned x, y;
};
struct __align__(16) uint4 {
  unsigned x, y, z, w;
};
struct __align__(8) float2 {
  float x, y;
};
struct __align__(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Of the lane that runs.
struct Index {
  unsigned x = 0, y = 0, z = 0;
};
inline Index threadIdx, blockIdx;

namespace mpk {
// What a launch asks for as dynamic shared memory; a kernel declares it without its size.
constexpr unsigned most_ring_bytes = 232448;
constinit thread_local __align__(1024) char mpk_pages[most_ring_bytes];
}  // namespace mpk

// --- fibers ---

// Keeps what a call must keep on this stack, and goes on where the other one stopped.
extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.hidden emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch, .-emulator_switch
)");

namespace emulator {

using u32 = unsigned;
using u64 = unsigned long long;

constexpr u32 lanes = 32, everyone = 0xffffffffu;
constexpr u64 stack_bytes = 128 << 10, cycles_of_a_switch = 32;

// What lanes can be at when they do not run.
inline constexpr char syncwarp[] = "__syncwarp", shuffling[] = "shfl.sync", voting[] = "vote.sync",
                      matching[] = "match.sync", multiplying[] = "mma.sync", block_barrier[] = "bar.sync",
                      trying[] = "mbarrier.try_wait", polling[] = "a load that others store to", passing[] = "",
                      ended[] = "its end";

struct Lane {
  void* stack = nullptr;
  const char* at = passing;
  const void* what = nullptr;  // what it looks at there
  u32 seen = 0, parity = 0;
  u64 copied = 0;  // when the last of its own copies lands
};

struct Warp {
  Lane lane[lanes];
  u32 ready = everyone;           // lanes that may run
  u32 vain = 0;                   // of these, those that looked for something and did not find it
  u32 gone = 0;                   // lanes that have returned
  const char* meeting = nullptr;  // where some lanes wait for the others
  u32 here = 0;                   // … these
  void* given[lanes] = {};
  u64 held_until = 0;  // the seed wants it slow
};

struct NamedBarrier {
  u32 threads = 0, arrived = 0;
  std::vector<Warp*> waiting;
};

// An mbarrier's 64 bits.
struct Mbarrier {
  u32 phase : 1, pending : 15, expected : 16;
  int bytes;
};
static_assert(sizeof(Mbarrier) == 8);

struct Copy {
  u64 due;
  char* to;
  const char* from;
  u32 bytes;
  u64* barrier;                              // null: nobody is told
  bool arrives;                              // a lane's arrival after its copies, instead of bytes
  std::shared_ptr<std::vector<char>> early;  // what was there when it was asked for
  bool operator<(const Copy& other) const { return due > other.due; }
};

struct Machine;

struct Block {
  Machine& machine;
  u32 index;
  char* stacks;
  std::vector<Warp> warps;
  NamedBarrier named[16] = {};
  std::priority_queue<Copy> copies = {};
  void* outside = nullptr;  // where the block's thread itself goes on
  u32 warp = 0, lane = 0;   // who runs
  u32 turn = 0, first = 0;  // lanes of that warp that are still to run in its turn; which comes first
  int until_pass = 1;       // turns before another block's

  void run();
  void leave();
  void choose_warp();
  void land_first();
  void start(u32 thread);
};

struct Machine {
  void (*kernel)(const void*);
  const void* arguments;
  u32 n_blocks, threads, ring_bytes;
  u64 random_state, patience;
  u64 now = 0, last_progress = 0;
  std::atomic<u32> whose{0};
  std::vector<Block*> running = {};  // by number, null once ended
  std::string report = {};           // of what went wrong

  u64 random() {
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return random_state * 0x2545f4914f6cdd1dull >> 32;
  }
  // Switches: as often a few as very many, at most 2^most.
  u64 any_length(u32 most) { return random() % (1ull << (1 + random() % most)); }
  // Somewhere a lane may find what it looked for in vain.
  void progress() {
    last_progress = now;
    if (Block* mine = running[blockIdx.x])
      for (Warp& warp : mine->warps) warp.vain = 0;
  }
  void pass_to(u32 next, u32 mine, bool returns) {
    if (next != mine) {
      whose.store(next);
      whose.notify_all();
    }
    if (!returns) return;
    for (u32 seen; (seen = whose.load()) != mine;) whose.wait(seen);
    blockIdx.x = mine;
    for (Warp& warp : running[mine]->warps) warp.vain = 0;
  }
  // Another block that has not ended, or this one.
  u32 another(u32 mine) {
    u32 step = u32(random() % n_blocks);
    for (u32 i = 0; i < n_blocks; ++i) {
      u32 next = (mine + step + i) % n_blocks;
      if (next != mine && running[next]) return next;
    }
    return mine;
  }
};

inline Machine* machine;
inline Block& block() { return *machine->running[blockIdx.x]; }
inline Warp& warp() { return block().warps[block().warp]; }
inline Lane& lane() { return warp().lane[block().lane]; }
inline u32 my_bit() { return 1u << block().lane; }
inline bool one_in(u32 n) { return machine->random() % n == 0; }

inline const char* name_of(const void* address, char (&text)[64]) {
  auto offset = (const char*)address - mpk::mpk_pages;
  if (offset >= 0 && offset < long(mpk::most_ring_bytes))
    std::snprintf(text, sizeof text, "ring+%ld", long(offset));
  else
    std::snprintf(text, sizeof text, "%p", address);
  return text;
}

// Lanes a to b as "a-b, c".
inline std::string range_of(u32 mask) {
  std::string text;
  for (u32 i = 0; i < lanes; ++i) {
    if (!(mask >> i & 1)) continue;
    u32 last = i;
    while (last + 1 < lanes && mask >> (last + 1) & 1) ++last;
    text += (text.empty() ? "" : ", ") + std::to_string(i) + (last > i ? "-" + std::to_string(last) : "");
    i = last;
  }
  return text;
}

// Where a stopped lane was called from, as offsets into this library: addr2line knows their lines.
inline std::string frames_of(const Lane& stopped, const char* stack) {
  std::string text;
  void* const* saved = (void* const*)stopped.stack;
  const char* frame = (const char*)saved[5];
  Dl_info library;
  dladdr((void*)&frames_of, &library);
  for (int depth = 0; depth < 12 && frame >= stack && frame < stack + stack_bytes - 16; ++depth) {
    char one[32];
    std::snprintf(one, sizeof one, " @%lx",
                  (unsigned long)(((const char**)frame)[1] - (const char*)library.dli_fbase - 1));
    text += one;
    frame = *(const char* const*)frame;
  }
  return text;
}

// Where each warp of the blocks stands: lanes in the same place together.
inline std::string standing() {
  std::string text;
  for (Block* b : machine->running) {
    if (!b) continue;
    for (u32 w = 0; w < b->warps.size(); ++w) {
      std::map<std::string, u32> places;
      for (u32 l = 0; l < lanes; ++l) {
        const Lane& at = b->warps[w].lane[l];
        char address[64];
        std::string place = at.at;
        if (at.what) place += std::string(" ") + name_of(at.what, address);
        if (at.at == trying) place += " parity " + std::to_string(at.parity);
        if (at.at == polling) place += " holding " + std::to_string(at.seen);
        bool stopped = at.at != ended && !(b == &block() && w == b->warp && l == b->lane);
        if (stopped) place += frames_of(at, b->stacks + (w * lanes + l) * stack_bytes);
        places[place] |= 1u << l;
      }
      for (const auto& [place, mask] : places)
        text += "block " + std::to_string(b->index) + " warp " + std::to_string(w) + " lanes " + range_of(mask) + ": " +
                (place.empty() ? "running" : place) + "\n";
    }
  }
  return text;
}

// Ends the launch: what a GPU would not do either, or would never end.
[[noreturn, gnu::format(printf, 1, 2)]] inline void fail(const char* format, ...) {
  char text[512];
  va_list rest;
  va_start(rest, format);
  std::vsnprintf(text, sizeof text, format, rest);
  va_end(rest);
  machine->report = "block " + std::to_string(blockIdx.x) + " thread " + std::to_string(threadIdx.x) + ": " + text +
                    "\n" + standing();
  void* abandoned;
  emulator_switch(&abandoned, block().outside);
  __builtin_unreachable();
}

inline void Block::land_first() {
  Copy copy = copies.top();
  copies.pop();
  if (copy.bytes) std::memcpy(copy.to, copy.early ? copy.early->data() : copy.from, copy.bytes);
  if (copy.barrier) {
    Mbarrier& barrier = *(Mbarrier*)copy.barrier;
    if (copy.arrives)
      --barrier.pending;
    else
      barrier.bytes -= int(copy.bytes);
    if (barrier.pending == 0 && barrier.bytes == 0) barrier.phase ^= 1, barrier.pending = barrier.expected;
  }
  machine.progress();
}

inline void Block::choose_warp() {
  for (;;) {
    if (!machine.report.empty()) return;
    while (!copies.empty() && copies.top().due <= machine.now) land_first();
    u32 able = 0, busy = 0, left = 0;
    for (Warp& w : warps) {
      left += w.gone != everyone;
      able += w.ready != 0;
      busy += w.ready != 0 && w.ready != w.vain;
    }
    if (left == 0) return;
    // Memory may be as slow as it likes: some copies land only when nobody can go on without them.
    if (!copies.empty() && (able == 0 || (busy == 0 && one_in(16)))) {
      land_first();
      continue;
    }
    if (able == 0) fail("deadlock: every thread of the block waits for another one");
    if (machine.now - machine.last_progress > machine.patience)
      fail("deadlock: nothing happened for %llu switches", machine.patience);
    // The system takes its time to hand over from thread to thread: a block that finds nothing to do tries a little.
    if (--until_pass <= 0 || (busy == 0 && one_in(16))) {
      until_pass = 1 + int(machine.any_length(10));
      machine.pass_to(machine.another(index), index, true);
      continue;
    }
    u32 tries = 0;
    Warp* w;
    do {
      warp = u32(machine.random() % warps.size());
      w = &warps[warp];
      // Those that wait look again now and then; a few are held up for long, which no program may rely on not to be.
    } while (w->ready == 0 || (++tries < 64 && (w->held_until > machine.now || (w->ready == w->vain && !one_in(4)))));
    if (one_in(256)) w->held_until = machine.now + machine.any_length(14);
    turn = w->ready;
    first = u32(machine.random() % lanes);
    return;
  }
}

// Leaves the lane that runs for another.
inline __attribute__((noinline)) void Block::leave() {
  void** from = &warps[warp].lane[lane].stack;
  ++machine.now;
  turn &= warps[warp].ready;
  if (turn == 0) choose_warp();
  if (!machine.report.empty() || turn == 0) {
    emulator_switch(from, outside);
    return;
  }
  lane = (u32(std::countr_zero(std::rotr(turn, int(first)))) + first) % lanes;
  turn &= ~(1u << lane);
  void* to = warps[warp].lane[lane].stack;
  threadIdx.x = warp * lanes + lane;
  if (from != &warps[warp].lane[lane].stack) emulator_switch(from, to);
}

inline void run_lane() {
  machine->kernel(machine->arguments);
  Warp& mine = warp();
  lane().at = ended, lane().what = nullptr;
  mine.ready &= ~my_bit(), mine.gone |= my_bit();
  machine->progress();
  block().leave();
  __builtin_unreachable();
}

inline void Block::start(u32 thread) {
  void** top = (void**)(stacks + (thread + 1) * stack_bytes);
  *--top = nullptr;  // where run_lane would return to: it does not
  *--top = (void*)&run_lane;
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  warps[thread / lanes].lane[thread % lanes].stack = top;
}

inline void Block::run() {
  std::memset(mpk::mpk_pages, 0xff, sizeof mpk::mpk_pages);  // NaN, whatever it is read as
  for (u32 i = 0; i < machine.threads; ++i) start(i);
  for (u32 seen; (seen = machine.whose.load()) != index;) machine.whose.wait(seen);
  blockIdx.x = index;
  if (machine.report.empty()) {
    choose_warp();
    lane = u32(machine.random() % lanes);
    turn &= ~(1u << lane);
    threadIdx.x = warp * lanes + lane;
    emulator_switch(&outside, warps[warp].lane[lane].stack);
    if (machine.report.empty() && !copies.empty()) {
      blockIdx.x = index;
      machine.report = "block " + std::to_string(index) + " ended with bulk copies under way\n";
    }
  }
  u32 next = machine.another(index);
  machine.running[index] = nullptr;
  machine.pass_to(next, index, false);
}

// Runs a grid; what went wrong, or nothing.
inline std::string launch(void (*kernel)(const void*), const void* arguments, u32 blocks, u32 threads, u32 ring_bytes,
                          u64 seed, u64 patience) {
  static std::mutex one_at_a_time;
  static std::vector<char*> stacks;  // kept: their pages are the system's dearest part of a launch
  std::lock_guard<std::mutex> hold(one_at_a_time);
  Machine made{kernel, arguments, blocks, threads, ring_bytes, (seed + 1) * 0x9e3779b97f4a7c15ull, patience};
  machine = &made;
  while (stacks.size() < blocks)
    stacks.push_back((char*)mmap(nullptr, 1024 * stack_bytes, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  std::vector<std::unique_ptr<Block>> all;
  for (u32 i = 0; i < blocks; ++i) {
    all.push_back(std::make_unique<Block>(Block{made, i, stacks[i], std::vector<Warp>(threads / lanes)}));
    made.running.push_back(all.back().get());
  }
  made.whose = u32(made.random() % blocks);
  std::vector<std::thread> workers;
  for (auto& b : all) workers.emplace_back([&b] { b->run(); });
  for (std::thread& worker : workers) worker.join();
  return made.report;
}

// --- what lanes do together ---

// Another lane runs now and then, so that nothing seems to happen at once.
inline void touch(u32 n = 64) {
  if (!one_in(n)) return;
  lane().at = passing, lane().what = nullptr;
  warp().vain &= ~my_bit();
  block().leave();
}

// A look that found nothing: others run first.
inline void look_again(const char* at, const void* what) {
  lane().at = at, lane().what = what;
  warp().vain |= my_bit();
  block().leave();
  warp().vain &= ~my_bit();
}

// All lanes of a warp meet here; the last one does what is to be done, and says whether the warp goes on at once.
template <class Given, class Last>
void meet(const char* at, Given* given, Last&& last) {
  Warp& w = warp();
  if (w.here && w.meeting != at)
    fail("the lanes of a warp part ways: some are at %s, lane %u is at %s", w.meeting, block().lane, at);
  w.meeting = at, w.given[block().lane] = given, w.here |= my_bit();
  lane().at = at, lane().what = nullptr;
  w.vain &= ~my_bit();
  if (w.here != everyone) {
    w.ready &= ~my_bit();
    block().leave();
    return;
  }
  w.here = 0;
  bool goes_on = last((Given**)w.given);
  w.ready = goes_on ? everyone : 0;
  if (goes_on && !one_in(4)) return;
  block().leave();
}

template <class T>
T shuffle(T value, u32 from) {
  struct Mine {
    T in, out;
    u32 from;
  } mine{value, value, from};
  meet(shuffling, &mine, [](Mine** all) {
    for (u32 i = 0; i < lanes; ++i) all[i]->out = all[all[i]->from]->in;
    return true;
  });
  return mine.out;
}

inline u32 vote(bool value) {
  struct Mine {
    bool in;
    u32 out;
  } mine{value, 0};
  meet(voting, &mine, [](Mine** all) {
    u32 mask = 0;
    for (u32 i = 0; i < lanes; ++i) mask |= u32(all[i]->in) << i;
    for (u32 i = 0; i < lanes; ++i) all[i]->out = mask;
    return true;
  });
  return mine.out;
}

inline u32 match(u64 value) {
  struct Mine {
    u64 in;
    u32 out;
  } mine{value, 0};
  meet(matching, &mine, [](Mine** all) {
    for (u32 i = 0; i < lanes; ++i)
      for (u32 j = 0; j < lanes; ++j) all[i]->out |= u32(all[i]->in == all[j]->in) << j;
    return true;
  });
  return mine.out;
}

// bar.sync: whole warps arrive.
inline void named_barrier(u32 which, u32 threads) {
  struct Mine {
    u32 which, threads;
  } mine{which, threads};
  meet(block_barrier, &mine, [](Mine** all) {
    Mine* m = all[0];
    for (u32 i = 1; i < lanes; ++i)
      if (all[i]->which != m->which || all[i]->threads != m->threads) fail("a warp at several barriers of the block");
    NamedBarrier& barrier = block().named[m->which];
    if (barrier.arrived && barrier.threads != m->threads)
      fail("barrier %u: %u threads for some, %u for others", m->which, barrier.threads, m->threads);
    barrier.threads = m->threads, barrier.arrived += lanes;
    if (barrier.arrived < barrier.threads) {
      barrier.waiting.push_back(&warp());
      return false;
    }
    for (Warp* w : barrier.waiting) w->ready = everyone;
    barrier.waiting.clear();
    barrier.arrived = 0;
    machine->progress();
    return true;
  });
}

// --- mbarriers and the copy engine ---

inline Mbarrier& mbarrier(u64* at) {
  Mbarrier& barrier = *(Mbarrier*)at;
  if (barrier.expected == 0) fail("an mbarrier that nobody has initialised");
  return barrier;
}

inline void arrive(u64* at, int bytes) {
  Mbarrier& barrier = mbarrier(at);
  if (barrier.pending == 0) fail("an mbarrier got more arrivals in a phase than the %u it expects", barrier.expected);
  barrier.bytes += bytes, --barrier.pending;
  if (barrier.pending == 0 && barrier.bytes == 0) {
    barrier.phase ^= 1, barrier.pending = barrier.expected;
    machine->progress();
  }
  touch();
}

inline bool try_wait(u64* at, u32 parity) {
  Mbarrier& barrier = mbarrier(at);
  if (barrier.phase != parity) {
    touch();
    return true;
  }
  lane().parity = parity;
  look_again(trying, at);
  return barrier.phase != parity;
}

inline u64 landing_time() { return machine->now + 1 + machine->any_length(20); }

// It lands at some later time; until then the place holds NaN. The source is read now or then: both are allowed.
inline void copy_later(void* to, const void* from, u32 bytes, u64* barrier, u64 due) {
  if (u64(to) % 16 || u64(from) % 16 || bytes % 16)
    fail("a bulk copy of %u bytes from %p to %p: all three should be multiples of 16", bytes, from, to);
  auto begin = (char*)to - mpk::mpk_pages;
  if (begin < 0 || begin + long(bytes) > long(machine->ring_bytes))
    fail("a bulk copy to [%ld, %ld) of a ring of %u bytes", long(begin), long(begin + bytes), machine->ring_bytes);
  if (barrier) mbarrier(barrier);
  std::shared_ptr<std::vector<char>> early;
  if (one_in(2)) early = std::make_shared<std::vector<char>>((const char*)from, (const char*)from + bytes);
  std::memset(to, 0xff, bytes);
  block().copies.push({due, (char*)to, (const char*)from, bytes, barrier, false, early});
}

// --- memory that others write ---

// A load in a loop that waits: others run before it looks at the same value again.
inline u32 poll(const u32* at) {
  u32 value = *(const volatile u32*)at;
  Lane& mine = lane();
  if (mine.what == at && mine.seen == value && mine.at == polling) {
    look_again(polling, at);
    value = *(const volatile u32*)at;
  } else {
    touch(8);
  }
  lane().at = polling, lane().what = at, lane().seen = value;
  return value;
}

inline void store(u32* at, u32 value) {
  touch(8);
  *(volatile u32*)at = value;
  machine->progress();
  touch(8);
}

inline u32 add(u32* at, u32 value) {
  touch(8);
  u32 before = *at;
  *at = before + value;
  machine->progress();
  touch(8);
  return before;
}

// --- numbers ---

inline float from_bf16(u32 bits) { return std::bit_cast<float>(bits << 16); }
// To nearest, ties to even; every NaN is the same one.
inline u32 to_bf16(float x) {
  if (x != x) return 0x7fff;
  u32 bits = std::bit_cast<u32>(x);
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// c[16,8] += a[16,16] * b[16,8]; lane 4g + t holds rows g and g + 8, columns 2t and 2t + 1, as the PTX ISA draws it.
inline void multiply(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  struct Mine {
    float* c;
    const u32 *a, *b;
  } mine{c, a, b};
  meet(multiplying, &mine, [](Mine** all) {
    float left[16][16], right[16][8];
    for (u32 l = 0; l < lanes; ++l)
      for (u32 h = 0; h < 2; ++h) {
        u32 g = l / 4, k = l % 4 * 2 + h;
        for (u32 i = 0; i < 4; ++i) left[g + i % 2 * 8][k + i / 2 * 8] = from_bf16(all[l]->a[i] >> h * 16 & 0xffff);
        for (u32 i = 0; i < 2; ++i) right[k + i * 8][g] = from_bf16(all[l]->b[i] >> h * 16 & 0xffff);
      }
    for (u32 g = 0; g < 16; ++g) {
      float row[8] = {};
      for (u32 k = 0; k < 16; ++k)
        for (u32 n = 0; n < 8; ++n) row[n] += left[g][k] * right[k][n];
      for (u32 n = 0; n < 8; ++n) all[g % 8 * 4 + n / 2]->c[g / 8 * 2 + n % 2] += row[n];
    }
    return true;
  });
}

}  // namespace emulator

// --- built-in functions ---

inline void only_whole_warps(unsigned mask) {
  if (mask != emulator::everyone) emulator::fail("the emulator knows whole warps only, not the lanes %08x", mask);
}
inline void __syncwarp() {
  int nothing = 0;
  emulator::meet(emulator::syncwarp, &nothing, [](int**) { return true; });
}
inline void __syncthreads() { emulator::named_barrier(0, emulator::machine->threads); }
template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
  only_whole_warps(mask);
  return emulator::shuffle(value, unsigned(from) % 32);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  only_whole_warps(mask);
  return emulator::shuffle(value, (emulator::block().lane ^ unsigned(bits)) % 32);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  only_whole_warps(mask);
  unsigned mine = emulator::block().lane;
  return emulator::shuffle(value, mine + by < 32 ? mine + by : mine);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by) {
  only_whole_warps(mask);
  unsigned mine = emulator::block().lane;
  return emulator::shuffle(value, mine >= by ? mine - by : mine);
}
inline unsigned __ballot_sync(unsigned mask, bool value) {
  only_whole_warps(mask);
  return emulator::vote(value);
}
inline bool __any_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) != 0; }
inline bool __all_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) == emulator::everyone; }
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  only_whole_warps(mask);
  return emulator::match((unsigned long long)value);
}

template <class T>
T atomicAdd(T* at, T value) {
  emulator::touch(8);
  T before = *at;
  *at = before + value;
  emulator::machine->progress();
  return before;
}
inline unsigned atomicMax(unsigned* at, unsigned value) {
  emulator::touch(8);
  unsigned before = *at;
  *at = before > value ? before : value;
  emulator::machine->progress();
  return before;
}
inline unsigned atomicExch(unsigned* at, unsigned value) {
  emulator::touch(8);
  unsigned before = *at;
  *at = value;
  emulator::machine->progress();
  return before;
}
inline unsigned atomicCAS(unsigned* at, unsigned expected, unsigned value) {
  emulator::touch(8);
  unsigned before = *at;
  if (before == expected) *at = value;
  emulator::machine->progress();
  return before;
}

inline int min(int a, int b) { return a < b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline int __float2int_rn(float x) { return int(std::nearbyint(x)); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __ffs(int x) { return x ? std::countr_zero(unsigned(x)) + 1 : 0; }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned which) {
  unsigned long long both = (unsigned long long)b << 32 | a;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) out |= unsigned(both >> (which >> i * 4 & 7) * 8 & 0xff) << i * 8;
  return out;
}

// Gives an entry file's kernel to whoever loads the library. `report` gets what went wrong, or nothing.
#define MPK_EMULATED(kernel)                                                                                        \
  extern "C" void mpk_emulate(const mpk::Launch* launch, unsigned blocks, unsigned threads, unsigned ring_bytes,    \
                              unsigned long long seed, unsigned long long patience, char* report, unsigned bytes) { \
    auto call = [](const void* given) { kernel(*(const mpk::Launch*)given); };                                      \
    std::string told = emulator::launch(call, launch, blocks, threads, ring_bytes, seed, patience);                 \
    std::snprintf(report, bytes, "%s", told.c_str());                                                               \
  }
