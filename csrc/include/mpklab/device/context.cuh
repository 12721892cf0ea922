// What an operator sees of its task on a GPU: one view for the consumer warps, one for the loader warp.
#pragma once

#include "mpklab/context.h"
#include "mpklab/device/number.cuh"
#include "mpklab/device/ring.cuh"
#include "mpklab/protocol.h"

namespace mpk {

// A task with all it names, in shared memory: the loader warp reads it ahead of the consumers.
struct __align__(16) Descriptor {
  Task task;
  Wait waits[max_waits];
  Signal signals[max_waits];
  u64 bases[max_slots];
  u32 id;
  u32 popped;   // of a pool; else from the worker's own queue
  u32 handed;   // operands that are handed over by their own words, as bits
  u32 expects;  // bit 0: it waits for counters, bit 1: for words of its operands
};
static_assert(sizeof(Descriptor) % 16 == 0, "Descriptor");

constexpr int descriptors = 8;  // tasks that the loader may be ahead

constexpr u32 over_aborted = 1, over_late = 2;

// What the warps of one block share beside ring and scratch.
template <class S>
struct Shared {
  RingBarriers<S> ring;
  u64 known[descriptors], finished[descriptors];  // barriers of the descriptors
  Descriptor tasks[descriptors];
  Step step;
  u32 stop;       // consumers: no further task
  u32 closed;     // consumers to loader: what is still on its way will not be used
  u32 described;  // loader to consumers: no further task will be known
  u32 over;       // consumers: the run was aborted, or words of an operand outlasted the limit
  u32 gathered;   // consumers to loader, without prefetch: tasks that have all they wait for
};

// One page after the other, in the loader's order. Every consumer thread holds one.
template <class S>
struct PageReader {
  const Run& run;
  Shared<S>& shared;
  const char* pages;
  RingPosition<S> at{};

  // The next page, when its bytes have landed.
  MPK_FN const char* wait() {
    u64* full = shared.ring.full + at.page;
    if (!ptx::barrier_try(full, at.parity)) wait_long(full);
    return pages + at.page * u32(S::page_bytes);
  }
  MPK_FN bool ready() const { return ptx::barrier_try(shared.ring.full + at.page, at.parity) || over(); }
  // The run was aborted: nothing is waited for any more.
  MPK_FN bool over() const { return ptx::load_flag(&shared.over) != 0; }
  // A wait for words of an operand has lasted long. True: it is pointless, or has outlasted the limit.
  MPK_FN bool gives_up(u32& begin) {
    constexpr int coarse = 16;  // bits of the clock that a wait so long need not know
    u32 now = u32(clock_now() >> coarse) | 1;
    if (begin == 0) begin = now;
    u32 why = now - begin > u32(run.launch.wait_limit >> coarse) + 2 ? over_late : run.aborted() ? over_aborted : 0;
    if (why) ptx::store_flag(&shared.over, why);
    return why != 0 || over();
  }
  // This warp has read what it wants of the page.
  MPK_FN void release() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::barrier_arrive(shared.ring.empty + at.page);
    at.advance();
  }

 private:
  MPK_FN void wait_long(u64* full) {
    for (u32 spins = 1; !over() && !ptx::barrier_try(full, at.parity); ++spins)
      if (spins % 256 == 0 && run.aborted()) ptx::store_flag(&shared.over, over_aborted);
  }
};

// The consumers' view. Threads are numbered without the loader warp.
template <class S>
struct WorkContext {
  const Launch& launch;
  const Descriptor& described;
  const Step& step;
  char* scratch;  // shared memory, for the consumers alone, 128-byte aligned
  Step* next;     // the step task writes the next iteration's StepControl here, else null
  PageReader<S>& pages;
  Recorder<S::level>& recorder;
  int index;  // of this thread

  MPK_FN int thread() const { return index; }
  MPK_FN int warp() const { return int(u32(index) / 32); }
  MPK_FN int lane() const { return int(u32(index) % 32); }
  // All consumer warps, and only they.
  MPK_FN void sync() const { ptx::named_barrier<S::threads>(1); }

  MPK_FN const Task& task() const { return described.task; }
  template <class T>
  MPK_FN T* data(int operand) const {
    return (T*)described.bases[operand];
  }
  // A row of a tensor that may lie in several pieces.
  template <class T>
  MPK_FN const T* row(int operand, int index, int columns) const {
    return Context{launch, task(), step, nullptr, nullptr}.template row<T>(operand, index, columns);
  }
  MPK_FN int rows(int dim, int most) const {
    if (dim < 0) return most;
    int live = step.dims[dim];
    return live < most ? live : most;
  }

  // Whether an operand is handed over by its own words.
  MPK_FN bool handed(int operand) const {
    if constexpr (by_words<S>)
      return described.handed >> operand & 1;
    else
      return false;
  }
  // Calls `read`, which says whether it found all words; where the operand is handed over by them, until it does.
  template <class Read>
  MPK_FN void await(int operand, Read read) const {
    if constexpr (by_words<S>) {
      bool patient = handed(operand);
      u32 begin = 0;
      for (u32 spins = 1; !read() && patient; ++spins)
        if (spins % 64 == 0 && pages.gives_up(begin)) return;
    } else {
      read();
    }
  }
  // For recordings: all threads call it when they have read all that the task waits for.
  MPK_FN void arrived() const {
    if constexpr (by_words<S> && S::level >= 1) {
      if (!(described.expects & 2)) return;
      sync();
      if (thread() == 0) {
        if constexpr (S::level == 1) recorder.template begin<1>(Phase::execute_, described.id);
        recorder.template next<2>(Phase::gather_, described.id);
      }
    }
  }

  MPK_FN const char* page() {
    if constexpr (S::level >= 3) {
      if (thread() == 0 && !pages.ready()) {
        recorder.template begin<3>(Phase::operand_, described.id);
        const char* at = pages.wait();
        recorder.template end<3>(Phase::operand_, described.id);
        return at;
      }
    }
    return pages.wait();
  }
  MPK_FN void release() { pages.release(); }
};

// The loader warp's view; all its lanes call everything together.
template <class S>
struct LoadContext {
  const Launch& launch;
  Run run;
  Shared<S>& shared;
  char* pages;
  const Descriptor* described = nullptr;
  RingPosition<S> at{};
  u32 issued = 0;  // pages so far
  Step step{};
  u32 step_of = no_word;  // the iteration whose step is held
  const int* position_at = nullptr;
  u32 position_of = 0;
  int position_held = 0;
  u64 weights_policy = 0, rows_policy = 0;
  u32 host_polled = 0;
  bool polls_host = false;
  bool over = false;  // nothing more is to be loaded: the run ended or was aborted
  Recorder<S::level> recorder{};

  MPK_FN int lane() const { return int(threadIdx.x) % 32; }
  MPK_FN const Task& task() const { return described->task; }
  template <class T>
  MPK_FN T* data(int operand) const {
    return (T*)described->bases[operand];
  }
  MPK_FN int rows(int dim, int most) const {
    if (dim < 0) return most;
    int live = step.dims[dim];
    return live < most ? live : most;
  }

  // The StepControl of the iteration that is being loaded. False: there is no such iteration.
  MPK_FN bool acquire() {
    if (over) return false;
    if (!launch.steps || step_of == run.iteration) return true;
    const u32* published = &run.control()->published;
    for (u32 spins = 1; !all(int(load_acquire(published, u32(Scope::gpu_)) - (run.iteration + 1)) >= 0); ++spins)
      if (give_up(spins)) return false;
    step = run.control()->step[run.iteration & 1];
    step_of = run.iteration;
    if (step.stop) over = true;
    return !over;
  }

  // An element of an operand that only the step task writes: read once an iteration.
  MPK_FN int position(int operand, int index) {
    const int* at = data<int>(operand) + index;
    if (at != position_at || position_of != run.iteration || !launch.steps)
      position_held = load_one(at), position_at = at, position_of = run.iteration;
    return position_held;
  }

  // The events behind this task's streamed operands; after it, bulk copies see what their producers wrote.
  MPK_FN bool wait_for_operands() { return wait_for(described->task.load_waits, described->task.n_load_waits); }

  MPK_FN bool wait_for(u32 first, u32 count) {
    if constexpr (one_operator<S>) {
      if (count > 0) ptx::wait_for_grids();
      count = 0;
    }
    for (u32 i = 0; i < count && !over; ++i) {
      const Wait& wait = run.waits()[first + i];
      if (wait.handoff != u32(Handoff::counter_)) continue;
      const u32* counter = run.counter(wait.event);
      u32 target = wait_target(run, wait);
      if (all(int(load_acquire(counter, wait.scope) - target) >= 0)) continue;
      if (lane() == 0) recorder.template begin<3>(Phase::load_wait_, wait.event);
      for (u32 spins = 1; !all(int(load_acquire(counter, wait.scope) - target) >= 0); ++spins)
        if (give_up(spins)) break;
      if (lane() == 0) recorder.template end<3>(Phase::load_wait_, wait.event);
    }
    __syncwarp();
    ptx::proxy_fence();
    return !over;
  }

  // A free page to fill with `bytes` bytes, or null when nothing more is to be loaded.
  MPK_FN char* begin_page(u32 bytes) {
    u64* empty = shared.ring.empty + at.page;
    if (over) return nullptr;
    if (!all(ptx::barrier_try(empty, at.parity ^ 1))) {
      if (lane() == 0) recorder.template begin<3>(Phase::ring_, described->id);
      for (u32 spins = 1; !all(ptx::barrier_try(empty, at.parity ^ 1)); ++spins)
        if (give_up(spins)) break;
      if (lane() == 0) recorder.template end<3>(Phase::ring_, described->id);
      if (over) return nullptr;
    }
    if (S::in_flight < S::pages && issued >= u32(S::in_flight)) {
      RingPosition<S> landed = at.back(S::in_flight);
      while (!all(ptx::barrier_try(shared.ring.full + landed.page, landed.parity))) {
      }
    }
#if MPK_BULK
    if (lane() == 0) ptx::barrier_expect(shared.ring.full + at.page, bytes);
    __syncwarp();
#endif
    return pages + at.page * u32(S::page_bytes);
  }
  // A run of bytes into the page: whole 16-byte units, aligned on both sides.
  MPK_FN void copy(char* to, const void* from, u32 bytes, u64 policy) {
#if MPK_BULK
    if (lane() == 0) ptx::bulk_copy(to, from, bytes, shared.ring.full + at.page, policy);
#else
    for (u32 i = u32(lane()) * 16; i < bytes; i += 512) ptx::async_copy(to + i, (const char*)from + i);
#endif
  }
  // One run by this lane alone, for pages that are made of many.
  MPK_FN void copy_by_lane(char* to, const void* from, u32 bytes, u64 policy) {
#if MPK_BULK
    ptx::bulk_copy(to, from, bytes, shared.ring.full + at.page, policy);
#else
    for (u32 i = 0; i < bytes; i += 16) ptx::async_copy(to + i, (const char*)from + i);
#endif
  }
  MPK_FN void end_page() {
#if !MPK_BULK
    ptx::barrier_arrive_after_copies(shared.ring.full + at.page);
#endif
    at.advance();
    ++issued;
  }

  // Every page that was begun has landed: the block's memory is no longer written to.
  MPK_FN void drain() {
    u32 left = issued < u32(S::pages) ? issued : u32(S::pages);
    for (u32 i = 1; i <= left; ++i) {
      RingPosition<S> last = at.back(i);
      while (!ptx::barrier_try(shared.ring.full + last.page, last.parity)) {
      }
    }
  }

  // The lanes decide as one, or they would part ways.
  static MPK_FN bool all(bool mine) { return __all_sync(0xffffffffu, mine); }

  // For every loop that waits: true, and `over`, when the wait is pointless.
  MPK_FN bool give_up(u32 spins) {
    bool mine = ptx::load_flag(&shared.closed) != 0;
    if (spins % 64 == 0) {
      poll_host();
      mine |= run.aborted();
    }
    over |= __any_sync(0xffffffffu, mine);
    return over;
  }

  // One worker's loader carries the host's wish to stop into device memory, a few thousand times a second.
  MPK_FN void poll_host() {
    if (!polls_host) return;
    u32 now = clock_low();
    if (now - host_polled < 1u << 17) return;
    host_polled = now;
    if (lane() == 0 && ptx::load_relaxed_sys(&run.host()->abort)) exchange(&run.control()->abort, 1u);
  }
};

// What a tile loads first, as far as that is known before its events: `streams` runs of `bytes`, `stride` apart.
struct Ahead {
  u64 from = 0, stride = 0;
  u32 streams = 0, bytes = 0;
  u32 tile_bytes = 0;  // all that it streams through the ring, about
};

// A run of bytes on its way to the L2.
MPK_FN void prefetch_weights(u64 from, u32 bytes, int lane) {
#if MPK_BULK
  constexpr u32 piece = 4096;
#pragma unroll 1
  for (u32 i = u32(lane) * piece; i < bytes; i += 32 * piece)
    ptx::prefetch_l2((const char*)from + i, bytes - i < piece ? bytes - i : piece);
#endif
}

// `bytes` bytes of a matrix from its byte `byte` on, wherever its pieces lie; `row_bytes` is what one of its rows
// takes.
template <class S>
MPK_FN void copy_weights(LoadContext<S>& c, char* to, int operand, u64 row_bytes, u64 byte, u32 bytes) {
  if (u64 base = c.described->bases[operand]) {
    c.copy(to, (const char*)base + byte, bytes, c.weights_policy);
    return;
  }
  const Slot& slot = ((const Slot*)c.launch.slots)[c.task().slots[operand]];
  const Segment* parts = (const Segment*)slot.segments;
  // A lane holds one segment, so that finding the right one is one trip to memory, however many there are.
  for (u32 first = 0; first < slot.n_segments && bytes > 0; first += 32) {
    u32 i = first + u32(c.lane());
    Segment mine{};
    if (i < slot.n_segments) mine = parts[i];
    u64 begin = mine.begin * row_bytes, end = mine.end * row_bytes, base = u64(mine.base);
    while (bytes > 0) {
      u32 found = __ballot_sync(0xffffffffu, begin <= byte && byte < end);
      if (found == 0) break;
      int who = __ffs(int(found)) - 1;
      u64 left = __shfl_sync(0xffffffffu, end, who) - byte;
      u64 at = __shfl_sync(0xffffffffu, base, who) + (byte - __shfl_sync(0xffffffffu, begin, who));
      u32 n = left < bytes ? u32(left) : bytes;
      c.copy(to, (const char*)at, n, c.weights_policy);
      to += n, byte += n, bytes -= n;
    }
  }
}

}  // namespace mpk
