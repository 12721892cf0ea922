// The CUDA backend's block: a loader warp that walks the queue ahead of time, and consumer warps that run its tasks.
#pragma once

#include "mpklab/delay.h"
#include "mpklab/device/context.cuh"
#include "mpklab/queue.h"

namespace mpk {

// Consumers call three functions of an operator's Work: `prepare` before the task's events have happened, for what no
// task of this iteration writes; `gather` after them; `compute`, with records of its own. This does all in the last.
struct Plain {
  template <class C>
  MPK_FN void prepare(C&) {}
  template <class C>
  MPK_FN void gather(C&) {}
};

// The shape of a kernel whose workers also take tasks from pools. One that does not is compiled as if there were none.
template <class S>
struct WithPools : S {};
template <class S>
constexpr bool has_pools = false;
template <class S>
constexpr bool has_pools<WithPools<S>> = true;

// A whole warp hands out what the signals of some of its lanes made ready.
MPK_FN void hand_out_by_warp(const Run& run, const Signal* signals, u32 completed) {
  __syncwarp();  // what those lanes have seen, all have
  for (; completed; completed &= completed - 1)
    hand_out_event(run, signals[__ffs(int(completed)) - 1].event, threadIdx.x % 32, 32);
}
template <int N, class First, class... More>
struct Pick {
  using Type = typename Pick<N - 1, More...>::Type;
};
template <class First, class... More>
struct Pick<0, First, More...> {
  using Type = First;
};

template <class K>
struct Table;
template <class... V>
struct Table<Variants<V...>> {
  template <class S>
  static constexpr int scratch_bytes = divide_up(largest(16, V::template scratch_bytes<S>...), 128) * 128;
  // Calls visitor.template visit<V>() for the variant of this number.
  template <class Visit>
  static MPK_FN void call(u32 variant, Visit& visitor) {
    search<0, int(sizeof...(V))>(variant, visitor);
  }

 private:
  // Halves, so that nothing is compared, nor the number kept, once the operator has run.
  template <int First, int Count, class Visit>
  static MPK_FN void search(u32 variant, Visit& visitor) {
    if constexpr (Count == 1) {
      visitor.template visit<typename Pick<First, V...>::Type>();
    } else {
      if (variant < u32(First + Count / 2))
        search<First, Count / 2>(variant, visitor);
      else
        search<First + Count / 2, Count - Count / 2>(variant, visitor);
    }
  }
};

// The thread that records and the warp that waits are the first; the last warp signals.
template <class S, class K>
struct Consumers {
  const Launch& launch;
  Run run;
  Shared<S>& shared;
  char* scratch;
  PageReader<S> pages;
  Recorder<S::level> recorder{};
  RingPosition<S> unused{};
  u32 taken = 0;  // descriptors so far
  bool anchor_due = false;
  bool stopped = false;  // no task is run after this one

  // The release of a signal lasts half a microsecond; meanwhile the first warp waits for the next task's events. Its
  // records of the signal therefore tell when it was handed over. Pushes to pools are the first warp's own.
  static constexpr u32 publisher = has_pools<S> ? 0 : S::warps - 1;
  static constexpr u64 long_wait = 1u << 29;  // cycles after which a clock anchor is written

  MPK_FN static bool first_thread() { return threadIdx.x == 0; }
  MPK_FN static void sync() { ptx::named_barrier<S::threads>(1); }

  MPK_FN void walk(u32 queue_length) {
    for (; run.iteration < launch.iterations; ++run.iteration) {
      run.epoch = run.iteration;
      if (!begin_iteration()) return;
      if constexpr (by_words<S>) clear_next_copy();
      if constexpr (has_pools<S>) {
        if (!walk_pools()) return;
        queue_length = 0;
      }
      for (u32 i = 0; i < queue_length; ++i) {
        if (!fetch()) return;
        if (!run_task()) return;
      }
      if (first_thread()) recorder.template end<1>(Phase::iteration_, launch.first_iteration + run.iteration);
    }
  }

  // The next descriptor's task, from its events to its signals. False: the run was aborted.
  MPK_FN bool run_task() {
    const Descriptor& task = shared.tasks[at()];
    u32 id = S::level >= 1 ? task.id : 0;
    stopped = false;
    Table<K>::call(task.task.variant, *this);
    if (stopped) return false;
    if (by_words<S> && ptx::load_flag(&shared.over) == over_late) report_late(task);
    if (first_thread()) delay<Delayed::execution>(task.id, run.worker);
    sync();
    if (first_thread()) {
      if constexpr (S::level == 1) recorder.template end<1>(Phase::execute_, id);
      recorder.template next<2>(Phase::signal_, id);
    }
    if (threadIdx.x / 32 == publisher) publish(task);
    // SM clocks follow their load within microseconds, group by group: one anchor an iteration would not do.
    if (first_thread()) recorder.template put_anchored<2>(Kind::end_, Phase::signal_, id);
    ++taken;
    return true;
  }

  // One task: what can be read early, its events, the operator.
  template <class V>
  MPK_FN void visit() {
    const Descriptor& task = shared.tasks[at()];
    Step* next = task.task.flags & u32(TaskFlag::step_) ? &next_step(run) : nullptr;
    WorkContext<S> context{launch, task, shared.step, scratch, next, pages, recorder, ptx::opaque(int(threadIdx.x))};
    typename V::template Work<S> work;
    work.prepare(context);
    // Who waits for nothing but words of operands begins to read them.
    if (by_words<S> && task.expects == 2) {
      if (first_thread()) recorder.template next<2>(Phase::wait_, task.waits[0].event);
    } else {
      if (threadIdx.x < 32) begin_task(task);
      sync();
      if (shared.stop) {
        stopped = true;
        return;
      }
    }
    work.gather(context);
    if (by_words<S> && !launch.prefetch) tell_gathered();
    if (first_thread()) recorder.template next<2>(Phase::execute_, task.id);
    work.compute(context);
  }

 private:
  // False: this iteration does not happen. Its records are written afterwards with the clocks of before, so that a step
  // that says stop leaves none.
  MPK_FN bool begin_iteration() {
    if (first_thread()) {
      u32 number = launch.first_iteration + run.iteration;
      u64 clock = 0, ns = 0;
      if constexpr (S::level >= 1) {
        recorder.window(launch, run.iteration);
        clock = clock_now(), ns = global_ns();
      }
      Step step{};
      bool acquired = true;
      if (launch.steps) {
        acquired = acquire_step(run, step);
      } else {
        step.iteration = run.iteration;
        for (u32 d = 0; d < max_dims; ++d) step.dims[d] = launch.dims[d];
      }
      bool happens = acquired && !step.stop;
      if constexpr (S::level >= 1) {
        if (happens || !acquired) {
          recorder.template begin_at<1>(Phase::iteration_, number, u32(clock));
          recorder.anchor_at(ns);
          if (launch.steps) recorder.template begin_at<2>(Phase::step_, number, u32(clock));
          if (launch.steps && acquired) recorder.template end<2>(Phase::step_, number);
          anchor_due = clock_now() - clock > long_wait;
          if (S::level >= 2) write_anchor();
        }
      }
      if constexpr (has_pools<S>)
        if (acquired) step_read(run);
      shared.step = step;
      if (!happens) ptx::store_flag(&shared.closed, 1);  // the loader polls it
    }
    sync();
    return !ptx::load_flag(&shared.closed);
  }

  // This worker's share of what the last iteration handed over by words is missing again for the next: all who read it
  // have ended before this iteration's step, and all who write it begin after the next.
  MPK_FN void clear_next_copy() {
    if (run.iteration == 0) return;
    u32 vectors = u32(launch.handed_bytes / 16);
    uint4* copy = (uint4*)(launch.handed + (run.iteration & 1 ? 0 : launch.handed_bytes));
    for (u32 i = run.worker * S::threads + threadIdx.x; i < vectors; i += launch.n_workers * S::threads)
      ptx::store_relaxed(copy + i, make_uint4(missing, missing, missing, missing));
  }

  MPK_FN void tell_gathered() {
    sync();
    if (first_thread()) ptx::store_flag(&shared.gathered, shared.gathered + 1);
  }

  MPK_FN void report_late(const Descriptor& task) {
    u32 i = 0;
    while (i + 1 < task.task.n_waits && task.waits[i].handoff != u32(Handoff::data_)) ++i;
    report_fault(run, task.id, task.waits[i].event, 0, wait_target(run, task.waits[i]), launch.wait_limit);
  }

  // Tasks in the order in which the loader took them, until it says that the iteration holds no more.
  MPK_FN bool walk_pools() {
    while (fetch()) {
      const Descriptor& task = shared.tasks[at()];
      if (task.id == no_task) {
        sync();
        if (first_thread()) ptx::barrier_arrive(shared.finished + at());
        ++taken;
        return true;
      }
      if (!run_task()) return false;
    }
    return false;
  }

  // The loader has read the next task.
  MPK_FN bool fetch() {
    u32 clock = 0;
    if constexpr (S::level >= 2) clock = clock_low();
    u64* known = shared.known + at();
    u32 parity = taken / u32(descriptors) & 1;
    while (!ptx::barrier_try(known, parity))
      // The loader ended early: every thread decides by the same barrier, which no longer changes.
      if (ptx::load_flag(&shared.described) && !ptx::barrier_try(known, parity)) return false;
    if constexpr (has_pools<S> && S::level >= 2)
      if (first_thread()) {
        recorder.template begin_at<2>(Phase::pop_, run.worker, clock);
        recorder.template end<2>(Phase::pop_, run.worker);
        if (shared.tasks[at()].id == no_task) return true;
        clock = clock_low();
      }
    if constexpr (S::level >= 2)
      if (first_thread()) recorder.template begin_at<2>(Phase::fetch_, shared.tasks[at()].id, clock);
    return true;
  }
  MPK_FN void begin_task(const Descriptor& task) {
    bool passed = pass(task);
    if constexpr (has_pools<S>) {
      if (launch.promised && passed && !task.popped) {
        bool last = threadIdx.x < task.task.n_signals && promise(run, task.signals[threadIdx.x]);
        hand_out_by_warp(run, task.signals, __ballot_sync(0xffffffffu, last));
      }
      if (first_thread() && passed && task.task.flags & u32(TaskFlag::step_))
        passed = wait_for_readers(run, 2 * launch.n_workers, task.id);
    }
    if (!first_thread()) return;
    shared.stop = !passed;
    if (task.task.flags & u32(TaskFlag::step_)) prepare_step(run, shared.step);
    if (!by_words<S> || !(task.expects & 2)) {
      if constexpr (S::level == 1) recorder.template begin<1>(Phase::execute_, task.id);
      recorder.template next<2>(Phase::gather_, task.id);
    }
    write_anchor();
  }

  MPK_FN u32 at() const { return taken % u32(descriptors); }

  // All events of the task, polled side by side by the lanes of the first warp. False: aborted.
  MPK_FN bool pass(const Descriptor& task) {
    if constexpr (one_operator<S>) {
      ptx::wait_for_grids();
      // Not earlier: whoever starts then finds the iteration before ended, and may read ahead what no task of this one
      // writes.
      ptx::let_next_grid_start();
      return true;
    }
    u32 lane = threadIdx.x, count = task.task.n_waits, at_wait = 0;
    if (count == 0) return !pages.over();
    bool met = lane >= count;
    const u32* counter = nullptr;
    u32 target = 0, seen = 0, scope = 0, event = 0;
    if (!met) {
      const Wait& wait = task.waits[lane];
      met = wait.handoff != u32(Handoff::counter_);
      counter = run.counter(wait.event);
      target = wait_target(run, wait);
      scope = wait.scope, event = wait.event;
    }
    u64 begin = 0;
    if constexpr (S::level >= 2)
      if (lane == 0) recorder.template next<2>(Phase::wait_, task.waits[0].event);
    for (u32 spins = 0;; ++spins) {
      if (!met) {
        seen = load_acquire(counter, scope);
        met = int(seen - target) >= 0;
      }
      u32 done = __ballot_sync(0xffffffffu, met);
      if constexpr (S::level >= 2) {
        // The waits are told in their order: each lasts until it and all before it are over.
        while (lane == 0 && at_wait < count && (done >> at_wait & 1))
          if (++at_wait < count) recorder.template next<2>(Phase::wait_, task.waits[at_wait].event);
      }
      if (done == 0xffffffffu) break;
      if (spins % 64 == 63) {
        bool aborted = run.aborted();
        u64 now = clock_now();
        if (begin == 0) begin = now;
        if (!met && !aborted && now - begin > launch.wait_limit) {
          report_fault(run, task.id, event, seen, target, now - begin);
          aborted = true;
        }
        if (__any_sync(0xffffffffu, aborted)) return false;
      }
    }
    if constexpr (S::level >= 1) anchor_due |= begin != 0 && clock_now() - begin > long_wait;
    return true;
  }

  // Everything the task stored is behind the barrier that precedes this: each signal releases it.
  MPK_FN void publish(const Descriptor& task) {
    u32 lane = threadIdx.x % 32;
    bool publishes = task.task.flags & u32(TaskFlag::step_);
    delay<Delayed::signals>(task.id, run.worker);
    if constexpr (has_pools<S>) {
      if (!pages.over()) publish_to_pools(task);
    } else if constexpr (one_operator<S>) {
      if (lane == 0 && publishes) count_step(run);
    } else {
      if (!(task.task.flags & u32(TaskFlag::drop_signals_)) && lane < task.task.n_signals && !pages.over())
        signal_event(run, task.signals[lane]);
      if (lane == 0 && publishes && !pages.over()) publish_step(run);
    }
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(shared.finished + at());
  }

  // Where there are pools a signal may hand out tasks, and the end of an iteration those that open the next.
  MPK_FN void publish_to_pools(const Descriptor& task) {
    u32 lane = threadIdx.x;
    bool sends = !(task.task.flags & u32(TaskFlag::drop_signals_)) && lane < task.task.n_signals;
    bool last = sends && signal_pool(run, task.signals[lane]);
    u32 completed = __ballot_sync(0xffffffffu, last);
    if (completed) {
      u32 event = task.signals[__ffs(int(completed)) - 1].event;
      if (lane == 0) recorder.template next<2>(Phase::push_, event);
      hand_out_by_warp(run, task.signals, completed);
      if (lane == 0) recorder.template next<2>(Phase::signal_, task.id);
    }
    u32 opens = task.task.flags & u32(TaskFlag::step_), stop = 0;
    if (lane == 0) {
      if (launch.steps == u32(Steps::last_) && ends_iteration(run) &&
          wait_for_readers(run, 2 * launch.n_workers, task.id)) {
        prepare_step(run, shared.step);
        opens = 1;
      }
      if (opens) {
        stop = next_step(run).stop;
        publish_step(run);
      }
    }
    opens = __shfl_sync(0xffffffffu, opens, 0), stop = __shfl_sync(0xffffffffu, stop, 0);
    __syncwarp();
    if (opens) open_iteration(run, stop, lane, 32);
  }

  MPK_FN void write_anchor() {
    if constexpr (S::level >= 1) {
      if (anchor_due) recorder.anchor_at(global_ns());
      anchor_due = false;
    }
  }
};

// The loader warp: reads tasks ahead of the consumers and streams their operands into the ring.
template <class S, class K>
struct Loader {
  LoadContext<S>& context;
  u32 laid_out = 0;     // descriptors: of the iteration, or where there are pools of all
  u32 copy = 0;         // of what is handed over by words: parity of the iteration that is laid out
  u32 loaded = 0;       // tasks, where some tensors are handed over by their own words
  u32 loaded_next = 0;  // bytes that the upcoming task streams
  bool stays = false;   // in the pool, for all of every iteration
  Turn turn{};

  MPK_FN void walk(const Entry* queue, u32 length) {
    const Launch& launch = context.launch;
    u32 at = 0, lane = context.lane();
    // Ahead of the task that is loaded: the next one laid out, the words of the one after it, the number of a third.
    u32 entry = 0;
    auto next = [&] {
      u32 id = load_id(queue + entry);
      if (++entry >= length) entry = 0;
      return id;
    };
    u32 id = next(), next_id = next(), left = launch.iterations * length;
    u32 word = load_word(id, lane);
    u32 describe_at = 0, describe_parity = 0;
    auto describe_next = [&] {
      if (left == 0) return false;
      --left;
      u32 this_id = id, this_word = word;
      word = load_word(next_id, lane), id = next_id, next_id = next();
      describe(describe_at, describe_parity, this_id, this_word);
      if (++describe_at == descriptors) describe_at = 0, describe_parity ^= 1;
      if (++laid_out == length) laid_out = 0, copy ^= 1;
      return !context.over;
    };
    describe_next();
    for (; context.run.iteration < launch.iterations && !context.over; ++context.run.iteration) {
      context.run.epoch = context.run.iteration;
      if constexpr (S::level >= 3) begin_iteration();
      for (u32 i = 0; i < length && !context.over; ++i) {
        bool follows = describe_next();
        if (context.over) break;
        context.described = context.shared.tasks + at;
        if (++at == descriptors) at = 0;
        const Descriptor* upcoming = follows && launch.prefetch ? context.shared.tasks + at : nullptr;
        if constexpr (S::l2_bytes > 0) send_ahead(upcoming);
        context.poll_host();
        Table<K>::call(context.task().variant, *this);
        if constexpr (by_words<S>) ++loaded;
      }
      if constexpr (S::level >= 3)
        if (lane == 0)
          context.recorder.template end<3>(Phase::iteration_, launch.first_iteration + context.run.iteration);
    }
    if (lane == 0) ptx::store_flag(&context.shared.described, 1);
    context.drain();
    // The block's last tasks may still wait for others: the host's wish to stop must reach them.
    if (context.polls_host)
      for (u32 spins = 1; !context.give_up(spins); ++spins) {
      }
  }

  // The same for one operator: a block's tasks stand in a row, and the launch says in which slots their operands are.
  // Where to load from is known one trip to memory after the start.
  MPK_FN void walk_row(const Operands& operands, u32 length) {
    u32 lane = context.lane();
    const u32* words = (const u32*)context.launch.tasks + u64(blockIdx.x) * length * 16;
    for (u32 i = 0; i < length && !context.over; ++i, words += 16) {
      u32 at = i % u32(descriptors);
      Descriptor& to = context.shared.tasks[at];
      for (u32 spins = 1; !context.all(ptx::barrier_try(context.shared.finished + at, i / u32(descriptors) & 1 ^ 1));
           ++spins)
        if (context.give_up(spins)) return;
      if (lane < sizeof(Task) / 4)
        ((u32*)&to.task)[lane] = ptx::load_constant(words + lane);
      else if (lane - 16 < max_slots)
        to.bases[lane - 16] = load_base(operands.slots[lane - 16]);
      __syncwarp();
      if (to.task.variant == no_variant) break;
      if (lane == 0) ptx::barrier_arrive(context.shared.known + at);
      context.described = &to;
      Table<K>::call(to.task.variant, *this);
    }
    if (lane == 0) ptx::store_flag(&context.shared.described, 1);
    context.drain();
  }

  // The same where queues also hold drains: tasks are taken from the pool, a bounded number before they can run.
  MPK_FN void walk_pools(const Entry* queue, u32 length) {
    const Launch& launch = context.launch;
    stays = length == 1 && launch.ring_classes == 1;
    for (; context.run.iteration < launch.iterations && !context.over; ++context.run.iteration) {
      context.run.epoch = context.run.iteration;
      if constexpr (S::level >= 3) begin_iteration();
      if (!context.acquire()) break;
      __syncwarp();
      if (context.lane() == 0) step_read(context.run);
      for (u32 i = 0; i < length && !context.over; ++i) {
        uint2 words = ptx::load_constant((const uint2*)(queue + i));
        Entry entry{words.x, u16(words.y), u16(words.y >> 16)};
        if (entry.kind == u32(EntryKind::drain_))
          drain(entry);
        else
          run_next(entry.task, false);
      }
      if (!context.over) run_next(no_task, false);
      if constexpr (S::level >= 3)
        if (context.lane() == 0)
          context.recorder.template end<3>(Phase::iteration_, launch.first_iteration + context.run.iteration);
    }
    if (context.lane() == 0) ptx::store_flag(&context.shared.described, 1);
    context.drain();
    if (context.polls_host)
      for (u32 spins = 1; !context.give_up(spins); ++spins) {
      }
  }

  template <class V>
  MPK_FN void visit() {
    if constexpr (V::template loads<S>) {
      if (!context.launch.prefetch && !wait_like_consumers()) return;
      if (context.lane() == 0) context.recorder.template begin<3>(Phase::load_, context.described->id);
      V::load(context);
      if (context.lane() == 0) context.recorder.template end<3>(Phase::load_, context.described->id);
    }
  }

  struct Lookup {
    const Descriptor& task;
    Ahead found{};
    template <class V>
    MPK_FN void visit() {
      if constexpr (V::template loads<S>) found = V::template ahead<S>(task);
    }
  };

 private:
  // A small tile leaves the memory idle while its events are waited for: the next one's weights go to the L2 then. This
  // stands here once, not with every operator: a step's code hardly fits the instruction cache.
  MPK_FN void send_ahead(const Descriptor* upcoming) {
    u32 loaded_now = loaded_next;
    Ahead next{};
    if (upcoming) {
      Lookup lookup{*upcoming};
      Table<K>::call(upcoming->task.variant, lookup);
      next = lookup.found;
    }
    loaded_next = next.tile_bytes;
    if (loaded_now == 0 || loaded_now > 2 * S::ring_bytes) return;
#pragma unroll 1
    for (u32 s = 0; s < next.streams; ++s) prefetch_weights(next.from + s * next.stride, next.bytes, context.lane());
  }

  MPK_FN void begin_iteration() {
    if (context.lane() != 0) return;
    context.recorder.window(context.launch, context.run.iteration);
    u32 number = context.launch.first_iteration + context.run.iteration;
    context.recorder.template put_anchored<3>(Kind::begin_, Phase::iteration_, number);
  }

  MPK_FN void run_next(u32 id, bool popped) {
    u32 at = laid_out % u32(descriptors), parity = laid_out / u32(descriptors) & 1;
    describe(at, parity, id, id == no_task ? 0 : load_word(id, context.lane()), popped);
    if (context.over) return;
    ++laid_out;
    if (id == no_task) return;
    context.described = context.shared.tasks + at;
    context.poll_host();
    Table<K>::call(context.task().variant, *this);
  }

  // Takes tasks of a pool until the drain's event has happened.
  MPK_FN void drain(const Entry& entry) {
    const Run& run = context.run;
    const Goal goal = goal_of(run, entry);
    while (!context.over) {
      u32 ahead = context.launch.pop_ahead + 1;
      if (laid_out >= ahead) {
        u32 behind = laid_out - ahead;  // must have ended before another is taken
        const u64* finished = context.shared.finished + behind % u32(descriptors);
        u32 parity = behind / u32(descriptors) & 1;
        for (u32 spins = 1; !context.all(ptx::barrier_try((u64*)finished, parity)); ++spins)
          if (context.give_up(spins)) return;
      }
      u32 id = no_task;
      Idle idle;
      for (u32 spins = 1;; ++spins) {
        u32 over = 0;
        if (context.lane() == 0) {
          over = reached(goal);
          if (!over) id = stays ? pop_in_turn(run, entry.pool, turn) : pop(run, entry.pool);
          if (!over && id == no_task) idle.go_on(run, goal);
        }
        id = __shfl_sync(0xffffffffu, id, 0);
        if (__shfl_sync(0xffffffffu, over, 0)) return;
        if (id != no_task) break;
        if (context.give_up(spins)) return;
      }
      __syncwarp();
      if (context.launch.promised) {
        const Task& task = run.task(id);
        const Signal* signals = run.signals() + task.signals;
        bool last = u32(context.lane()) < task.n_signals && promise(run, signals[context.lane()]);
        u32 promised = __ballot_sync(0xffffffffu, last);
        u32 event = promised ? signals[__ffs(int(promised)) - 1].event : 0;
        if (promised && context.lane() == 0) context.recorder.template begin<3>(Phase::push_, event);
        hand_out_by_warp(run, signals, promised);
        if (promised && context.lane() == 0) context.recorder.template end<3>(Phase::push_, event);
      }
      run_next(id, true);
    }
  }

  static MPK_FN u32 load_id(const Entry* entry) { return ptx::load_constant(&entry->task); }
  MPK_FN u32 load_word(u32 id, u32 lane) const {
    return lane < sizeof(Task) / 4 ? ptx::load_constant((const u32*)context.launch.tasks + u64(id) * 16 + lane) : 0u;
  }

  MPK_FN u64 load_base(u32 slot) const {
    uint2 base = ptx::load_constant((const uint2*)&((const Slot*)context.launch.slots)[slot].base);
    return u64(base.y) << 32 | base.x;
  }

  // Without prefetch: until the consumers have what the current task waits for.
  MPK_FN bool wait_like_consumers() {
    if constexpr (!by_words<S>) return context.wait_for(context.task().waits, context.task().n_waits);
    for (u32 spins = 1; !context.all(int(ptx::load_flag(&context.shared.gathered) - loaded) > 0); ++spins)
      if (context.give_up(spins)) return false;
    return true;
  }

  MPK_FN u64 load_next_copy(u32 slot) const {
    uint2 bytes = ptx::load_constant((const uint2*)&((const Slot*)context.launch.slots)[slot].next_copy);
    return u64(bytes.y) << 32 | bytes.x;
  }

  // Lays out the task and what it names for the consumers.
  MPK_FN void describe(u32 at, u32 parity, u32 id, u32 word, bool popped = false) {
    Shared<S>& shared = context.shared;
    u32 lane = context.lane();
    for (u32 spins = 1; !context.all(ptx::barrier_try(shared.finished + at, parity ^ 1)); ++spins)
      if (context.give_up(spins)) return;
    Descriptor& to = shared.tasks[at];
    if (lane < sizeof(Task) / 4) ((u32*)&to.task)[lane] = word;
    __syncwarp();
    bool handed = false;
    u32 kind = 0;
    if (lane < to.task.n_waits) {
      uint4 wait = ptx::load_constant((const uint4*)context.launch.waits + to.task.waits + lane);
      ((uint4*)to.waits)[lane] = wait;
      kind = wait.w >> 16 & 0xffu;
    } else if (lane >= 8 && lane - 8 < to.task.n_signals) {
      ((uint2*)to.signals)[lane - 8] =
          ptx::load_constant((const uint2*)context.launch.signals + to.task.signals + lane - 8);
    } else if (lane >= 16 && lane - 16 < max_slots) {
      u32 slot = to.task.slots[lane - 16];
      u64 base = load_base(slot);
      if constexpr (by_words<S>) {
        u64 next_copy = load_next_copy(slot);
        handed = next_copy != 0;
        if (copy) base += next_copy;
      }
      to.bases[lane - 16] = base;
    }
    if constexpr (by_words<S>) {
      u32 operands = __ballot_sync(0xffffffffu, handed) >> 16;
      u32 counters = __any_sync(0xffffffffu, lane < to.task.n_waits && kind == u32(Handoff::counter_));
      u32 words = __any_sync(0xffffffffu, lane < to.task.n_waits && kind == u32(Handoff::data_));
      if (lane == 31) to.handed = operands, to.expects = counters | words << 1;
    }
    if (lane == 31) to.id = id;
    if constexpr (has_pools<S>)
      if (lane == 31) to.popped = popped;
    __syncwarp();
    if (lane == 0) ptx::barrier_arrive(shared.known + at);
  }
};

template <int ConsumerWarps>
constexpr int threads() {
  return 32 * (ConsumerWarps + 1);
}

// What a kernel takes its tasks from: queues, also pools, one row; `words`: queues, and some tensors are handed over by
// their own words.
enum class Holds { queues, pools, operator_, words };
template <Holds What, class S>
struct Choice {
  using type = S;
};
template <class S>
struct Choice<Holds::pools, S> {
  using type = WithPools<S>;
};
template <class S>
struct Choice<Holds::words, S> {
  using type = ByWords<S>;
};
template <class S>
struct Choice<Holds::operator_, S> {
  using type = OneOperator<S>;
};

// Blocks of one operator that an SM should have room for: with two, the next operator's are there, and their first
// pages too, before this one's have ended. Two of more than eight warps would leave a thread too few registers.
template <class K, int ConsumerWarps, int PageBytes, int Pages>
constexpr int blocks_together(int shared_bytes) {
  using S = Shape<0, ConsumerWarps, PageBytes, Pages, 1, 0>;
  constexpr int kept = 1024;  // by the system, of every block
  constexpr int block = S::ring_bytes + Table<K>::template scratch_bytes<S> + int(sizeof(Shared<S>)) + kept;
  return ConsumerWarps <= 8 && 2 * block <= shared_bytes + kept ? 2 : 1;
}

template <class K, int Level, int ConsumerWarps, int PageBytes, int Pages, int InFlight = Pages, int L2Bytes = 0,
          Holds What = Holds::queues>
MPK_FN void run_device(const Launch& launch, const Operands& operands = {}) {
  using S = typename Choice<What, Shape<Level, ConsumerWarps, PageBytes, Pages, InFlight, L2Bytes>>::type;
  extern __shared__ __align__(1024) char mpk_pages[];
  __shared__ __align__(128) char scratch[Table<K>::template scratch_bytes<S>];
  __shared__ Shared<S> shared;

  u32 worker = blockIdx.x, begin = 0, length = launch.n_tasks / launch.n_workers;
  const u32* queues = (const u32*)launch.queues + launch.table * launch.n_workers;
  if constexpr (!one_operator<S>) begin = queues[worker], length = queues[worker + 1] - begin;
  bool consumes = threadIdx.x < u32(S::threads);
  if (threadIdx.x == 0) {
    shared.ring.init();
    for (int i = 0; i < descriptors; ++i) {
      ptx::barrier_init(shared.known + i, 1);
      ptx::barrier_init(shared.finished + i, 1);
    }
    shared.closed = shared.stop = shared.described = shared.over = shared.gathered = 0;
    ptx::barrier_init_fence();
  }
  __syncthreads();

  if (consumes) {
    Run run{launch, worker};
    Consumers<S, K> consumers{launch, run, shared, scratch, PageReader<S>{run, shared, mpk_pages}};
    if (threadIdx.x == 0) consumers.recorder.start(launch, worker, Role::compute_);
    if (length > 0) consumers.walk(length);
    if (threadIdx.x == 0) {
      ptx::store_flag(&shared.closed, 1);
      consumers.recorder.finish();
    }
  } else if (length > 0 || Level >= 3) {
    LoadContext<S> context{launch, Run{launch, worker}, shared, mpk_pages};
    context.weights_policy = ptx::policy_evict_first();
    context.rows_policy = ptx::policy_evict_normal();
    context.polls_host = !one_operator<S> && begin == queues[0];
    for (u32 d = 0; d < max_dims; ++d) context.step.dims[d] = launch.dims[d];  // stand when no task publishes steps
    if constexpr (Level >= 3)
      if (context.lane() == 0) context.recorder.start(launch, worker, Role::loader_);
    Loader<S, K> loader{context};
    const Entry* queue = (const Entry*)launch.entries + begin;
    if constexpr (has_pools<S>)
      loader.walk_pools(queue, length);
    else if constexpr (one_operator<S>)
      loader.walk_row(operands, length);
    else if (length > 0)
      loader.walk(queue, length);
    if constexpr (Level >= 3)
      if (context.lane() == 0) context.recorder.finish();
  }
}

}  // namespace mpk
