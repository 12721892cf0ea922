// The CPU backend's launcher and worker loop: one pinned thread per worker walks its queue by the protocol.
#pragma once

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "mpklab/context.h"
#include "mpklab/delay.h"
#include "mpklab/queue.h"

#pragma GCC visibility push(hidden)

namespace mpk {

enum class Outcome : int { done = 0, aborted = 1, no_resources = 2, unsupported = 3 };

namespace host {

// What the loop knows of an operator variant.
struct Operator {
  void (*compute)(const Context&);
  // Begins to read the piece of that number of what no task writes; its bytes, 0 behind the last. Null: has none.
  unsigned (*prefetch)(const Context&, unsigned piece);
};

template <class V>
constexpr Operator operator_of() {
  if constexpr (requires(const Context& c) { V::prefetch(c, 0u); }) return {V::compute, V::prefetch};
  return {V::compute, nullptr};
}

template <class K>
struct Table;
template <class... V>
struct Table<Variants<V...>> {
  static constexpr Operator operators[sizeof...(V)] = {operator_of<V>()...};
  static constexpr unsigned scratch_bytes() {
    unsigned most = 0;
    ((most = V::scratch_bytes > most ? V::scratch_bytes : most), ...);
    return most;
  }
};

// What one thread starts from.
struct Worker {
  const Launch* launch;
  const Operator* operators;
  u64 scratch_bytes;
  u64 ahead_limit;
  u32 index;
  u32 patience;
  u32 busy_workers;
  int cpu;  // negative: wherever the system puts it
  bool busy;
  pthread_t thread;
  Outcome outcome;
};

// A record's clock has 32 bits and wraps: a wait of more ticks than this leaves a clock anchor behind it.
constexpr u64 long_wait = 1u << 29;

// One worker's way through a launch. Level is what it records; what it computes is the same at each.
template <int Level>
struct Loop {
  const Launch& launch;
  const Operator* operators;
  u32 busy_workers;
  char* scratch;
  u32* epochs;      // per table
  u64 ahead_limit;  // how many bytes of a task are read while waiting for another: 0 none, else what stays in the cache
  Run run;
  Recorder<Level> recorder{};
  Step step{};
  bool anchor_due = false;
  u32 at = 0, end = 0;             // what is left of the queue
  u32 ahead = 0, ahead_piece = 0;  // the entry whose static operands come next, and how far they have come
  u64 ahead_bytes = 0;
  u32 ahead_id = no_task;  // or the popped task that they belong to

  Outcome walk() {
    step.table = launch.table;
    for (u32 d = 0; d < max_dims; ++d) step.dims[d] = launch.dims[d];
    for (u32 changes = 0; run.iteration < launch.iterations; ++run.iteration) {
      u32 table = step.table;
      recorder.window(launch, run.iteration);
      if (!begin_iteration()) return step.stop ? Outcome::done : Outcome::aborted;
      if (step.table != table && run.iteration > 0 && !meet(run, busy_workers, ++changes)) return Outcome::aborted;
      run.epoch = epochs[step.table]++;
      for (find_queue(); at < end; ++at) {
        const Entry& entry = entries()[at];
        if (!is_task(at) && !launch.pools) return Outcome::unsupported;
        if (is_task(at) ? !run_task(entry.task, true) : !drain(entry)) return Outcome::aborted;
      }
      recorder.template end<1>(Phase::iteration_, launch.first_iteration + run.iteration);
    }
    return Outcome::done;
  }

 private:
  const Entry* entries() const { return (const Entry*)launch.entries; }
  bool is_task(u32 entry) const { return entries()[entry].kind == u32(EntryKind::task_); }

  void find_queue() {
    const u32* queue = (const u32*)launch.queues + step.table * launch.n_workers + run.worker;
    at = queue[0], end = queue[1];
    if (ahead < at || ahead >= end) ahead = at, ahead_piece = 0, ahead_bytes = 0;
  }

  // Streaming weights empties the caches: begins to read the tables' lines that the next two tasks will need.
  void fetch_ahead() {
    if (at + 2 < end) __builtin_prefetch(&run.task(entries()[at + 2].task));
    if (at + 1 < end && is_task(at + 1)) {
      const Task& task = run.task(entries()[at + 1].task);
      __builtin_prefetch(run.waits() + task.waits);
      __builtin_prefetch(run.signals() + task.signals);
    }
  }

  // While there is nothing to run: begins to read the weights of the next task that has any. False: no more to do.
  bool look_ahead() {
    if (ahead < at || ahead_id != no_task) ahead = at, ahead_piece = 0, ahead_bytes = 0, ahead_id = no_task;
    for (; ahead < end && ahead < at + 8; ++ahead) {
      if (!is_task(ahead)) continue;
      const Task& task = run.task(entries()[ahead].task);
      const Operator& op = operators[task.variant];
      if (!op.prefetch) continue;
      if (ahead_bytes >= ahead_limit) return false;
      unsigned bytes = op.prefetch(Context{launch, task, step, scratch, nullptr}, ahead_piece++);
      ahead_bytes += bytes;
      return bytes > 0;
    }
    return false;
  }

  // The same for a task that was popped before its events happened, while it waits for them.
  bool look_into(u32 id) {
    if (ahead_id != id) ahead_id = id, ahead_piece = 0, ahead_bytes = 0, ahead = at;
    const Task& task = run.task(id);
    const Operator& op = operators[task.variant];
    if (!op.prefetch || ahead_bytes >= ahead_limit) return false;
    unsigned bytes = op.prefetch(Context{launch, task, step, scratch, nullptr}, ahead_piece++);
    ahead_bytes += bytes;
    return bytes > 0;
  }

  // False: this iteration does not happen, because the step says so or because the run was aborted. Its records are
  // written afterwards with the clocks of before, so that a step that says stop leaves none.
  bool begin_iteration() {
    u32 number = launch.first_iteration + run.iteration;
    u64 clock = 0, ns = 0;
    if constexpr (Level >= 1) clock = clock_now(), ns = global_ns();
    if (ahead_limit && launch.steps) {
      for (find_queue(); !step_arrived(run) && look_ahead();) continue;
    }
    bool acquired = !launch.steps || acquire_step(run, step);
    if (!launch.steps) step.iteration = run.iteration;
    if (acquired && launch.pools) step_read(run);
    if (acquired && step.stop) return false;
    if constexpr (Level >= 1) {
      recorder.template begin_at<1>(Phase::iteration_, number, u32(clock));
      recorder.anchor_at(ns);
      if (launch.steps) recorder.template begin_at<2>(Phase::step_, number, u32(clock));
      if (!acquired) return false;
      if (launch.steps) recorder.template end<2>(Phase::step_, number);
      anchor_due = clock_now() - clock > long_wait;
      if (Level >= 2) write_anchor();
    }
    return acquired;
  }

  // Runs tasks of a pool until the drain's event has happened.
  bool drain(const Entry& entry) {
    const Goal goal = goal_of(run, entry);
    u32 held[max_held], count = 0;
    for (;;) {
      if (count == 0) {
        recorder.template begin<2>(Phase::pop_, entry.pool);
        write_anchor();
        u64 begin = 0;
        if constexpr (Level >= 1) begin = clock_now();
        u32 id = no_task;
        for (Idle idle; !reached(goal) && (id = pop(run, entry.pool)) == no_task;)
          if (!(ahead_limit && look_ahead()) && !idle.go_on(run, goal)) return false;
        if constexpr (Level >= 1) anchor_due |= clock_now() - begin > long_wait;
        recorder.template end<2>(Phase::pop_, entry.pool);
        if (id == no_task) return true;
        take(id, false);
        held[count++] = id;
      }
      for (; count <= launch.pop_ahead && !reached(goal); ++count) {
        held[count] = pop(run, entry.pool);
        if (held[count] == no_task) break;
        take(held[count], false);
      }
      if (!run_task(held[0], false)) return false;
      --count;
      for (u32 i = 0; i < count; ++i) held[i] = held[i + 1];
    }
  }

  // The task is this worker's: with early push, those that wait only for such tasks go out. A push is
  // recorded by itself, or follows the phase that is open.
  void take(u32 id, bool chained) {
    if (!launch.promised) return;
    const Task& task = run.task(id);
    for (u32 i = 0; i < task.n_signals; ++i) {
      const Signal& signal = run.signals()[task.signals + i];
      if (!promise(run, signal)) continue;
      if (chained)
        recorder.template next<2>(Phase::push_, signal.event);
      else
        recorder.template begin<2>(Phase::push_, signal.event);
      hand_out_event(run, signal.event);
      if (!chained) recorder.template end<2>(Phase::push_, signal.event);
    }
  }

  bool run_task(u32 id, bool queued) {
    recorder.template begin<2>(Phase::fetch_, id);
    const Task& task = run.task(id);
    const Operator& op = operators[task.variant];
    Context context{launch, task, step, scratch, nullptr};
    fetch_ahead();
    if (run.aborted()) return false;
    // No loader runs ahead here, so the waits of streamed operands are waits like the others.
    for (u32 i = 0; i < task.n_waits; ++i)
      if (!pass(run.waits()[task.waits + i], id)) return false;
    for (u32 i = 0; i < task.n_load_waits; ++i)
      if (!pass(run.waits()[task.load_waits + i], id)) return false;
    if (queued) take(id, true);
    bool publishes = task.flags & u32(TaskFlag::step_);
    if (publishes) {
      if (launch.pools && !wait_for_readers(run, busy_workers, id)) return false;
      prepare_step(run, step);
      context.next = &next_step(run);
    }

    if constexpr (Level == 1) recorder.template begin<1>(Phase::execute_, id);
    recorder.template next<2>(Phase::execute_, id);
    write_anchor();
    op.compute(context);
    delay<Delayed::execution>(id, run.worker);
    if constexpr (Level == 1) recorder.template end<1>(Phase::execute_, id);
    recorder.template next<2>(Phase::signal_, id);
    delay<Delayed::signals>(id, run.worker);

    if (launch.pools) return publish_to_pools(task, id);
    if (!(task.flags & u32(TaskFlag::drop_signals_)))
      for (u32 i = 0; i < task.n_signals; ++i) signal_event(run, run.signals()[task.signals + i]);
    if (publishes) publish_step(run);
    recorder.template end<2>(Phase::signal_, id);
    return true;
  }

  // Where there are pools a signal may hand out tasks, and the end of an iteration those that open the next.
  bool publish_to_pools(const Task& task, u32 id) {
    u32 completed[max_waits], n_completed = 0;
    bool publishes = task.flags & u32(TaskFlag::step_);
    if (!(task.flags & u32(TaskFlag::drop_signals_)))
      for (u32 i = 0; i < task.n_signals; ++i) {
        const Signal& signal = run.signals()[task.signals + i];
        if (signal_pool(run, signal)) completed[n_completed++] = signal.event;
      }
    for (u32 i = 0; i < n_completed; ++i) {
      recorder.template next<2>(Phase::push_, completed[i]);
      hand_out_event(run, completed[i]);
    }
    if (launch.steps == u32(Steps::last_) && ends_iteration(run)) {
      if (!wait_for_readers(run, busy_workers, id)) return false;
      prepare_step(run, step);
      publishes = true;
    }
    if (publishes) {
      bool stop = next_step(run).stop;
      publish_step(run);
      open_iteration(run, stop);
    }
    recorder.template end<2>(n_completed ? Phase::push_ : Phase::signal_,
                             n_completed ? completed[n_completed - 1] : id);
    return true;
  }

  bool pass(const Wait& wait, u32 task) {
    recorder.template next<2>(Phase::wait_, wait.event);
    write_anchor();
    u64 begin = 0;
    if constexpr (Level >= 1) begin = clock_now();
    if (ahead_limit) {
      while (!arrived(run, wait) && (is_task(at) ? look_ahead() : look_into(task))) continue;
    }
    bool passed = wait_event(run, wait, task);
    if constexpr (Level >= 1) anchor_due |= clock_now() - begin > long_wait;
    return passed;
  }

  void write_anchor() {
    if constexpr (Level >= 1) {
      if (anchor_due) recorder.anchor_at(global_ns());
      anchor_due = false;
    }
  }
};

inline bool has_tasks(const Launch& launch, u32 table, u32 worker) {
  const u32* queue = (const u32*)launch.queues + table * launch.n_workers + worker;
  return queue[0] < queue[1];
}

// With a core for each worker a wait is short, unless others use the cores too, and they would not give them back soon.
// With fewer, whoever is waited for may be waiting for this core.
inline u32 patience(u32 busy_workers) {
  long cores = sysconf(_SC_NPROCESSORS_ONLN);
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
#endif
  return long(busy_workers) > cores ? 100 : 2000;
}

// Half of a core's second cache; what it holds besides is small.
inline u64 cache_for_weights() {
  long bytes = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
  bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
  return u64(bytes > 0 ? bytes : 1 << 18) / 2;
}

inline void pin(int cpu) {
#if defined(__linux__)
  if (cpu < 0 || cpu >= CPU_SETSIZE) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(pthread_self(), sizeof set, &set);
#else
  (void)cpu;
#endif
}

template <int Level>
void* enter(void* argument) {
  Worker& worker = *(Worker*)argument;
  const Launch& launch = *worker.launch;
  pin(worker.cpu);
  // Made, and written for the first time, by the thread that uses it: the pages lie near its core.
  u64 bytes = (worker.scratch_bytes + 127) / 128 * 128, whole = bytes + u64(launch.n_tables) * sizeof(u32);
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, whole) != 0) {
    worker.outcome = Outcome::no_resources;
  } else {
    __builtin_memset(memory, 0, whole);
    Loop<Level> loop{launch,
                     worker.operators,
                     worker.busy_workers,
                     (char*)memory,
                     (u32*)((char*)memory + bytes),
                     worker.ahead_limit,
                     Run{launch, worker.index, 0, 0, worker.patience}};
    loop.recorder.start(launch, worker.index, Role::compute_);
    if (worker.busy) worker.outcome = loop.walk();
    loop.recorder.finish();
    free(memory);
  }
  if (worker.outcome != Outcome::done) exchange(&((Control*)launch.control)->abort, 1u);
  return nullptr;
}

// Starts every worker and returns when all have.
inline Outcome run(const Launch& launch, const Operator* operators, u64 scratch_bytes, unsigned level,
                   const int* cpus) {
  if (launch.n_workers == 0) return Outcome::done;
  Worker* workers = (Worker*)calloc(launch.n_workers, sizeof(Worker));
  if (!workers) return Outcome::no_resources;
  Outcome outcome = Outcome::done;
  u64 ahead_limit = launch.prefetch ? cache_for_weights() : 0;
  u32 busy_workers = 0, started = 0;
  for (u32 w = 0; w < launch.n_workers; ++w) {
    u32 tables = 0;
    for (u32 t = 0; t < launch.n_tables; ++t) tables += has_tasks(launch, t, w);
    workers[w] = {&launch,    operators, scratch_bytes, ahead_limit, w, 0, 0, cpus ? cpus[w] : -1,
                  tables > 0, {},        Outcome::done};
    busy_workers += tables > 0;
    // Who sits out a table could miss the step that changes it.
    if (tables > 0 && tables < launch.n_tables && launch.steps) outcome = Outcome::unsupported;
  }
  if (outcome == Outcome::done) {
    void* (*const entries[])(void*) = {enter<0>, enter<1>, enter<2>, enter<3>};
    // Signals go to the threads that were there before, except those that a thread raises by what it does.
    sigset_t others, before;
    sigfillset(&others);
    const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    for (int signal : own) sigdelset(&others, signal);
    pthread_sigmask(SIG_SETMASK, &others, &before);
    for (; started < launch.n_workers; ++started) {
      workers[started].busy_workers = busy_workers;
      workers[started].patience = patience(busy_workers);
      if (pthread_create(&workers[started].thread, nullptr, entries[level < 3 ? level : 3], workers + started) != 0)
        break;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (started < launch.n_workers) {
      exchange(&((Control*)launch.control)->abort, 1u);
      outcome = Outcome::no_resources;
    }
    for (u32 w = 0; w < started; ++w) {
      pthread_join(workers[w].thread, nullptr);
      if (int(workers[w].outcome) > int(outcome)) outcome = workers[w].outcome;
    }
  }
  free(workers);
  return outcome;
}

}  // namespace host

template <class K>
int run_host(const Launch& launch, unsigned level, const int* cpus) {
  return int(host::run(launch, host::Table<K>::operators, host::Table<K>::scratch_bytes(), level, cpus));
}

template <class K>
constexpr unsigned scratch_bytes() {
  return host::Table<K>::scratch_bytes();
}

}  // namespace mpk

#pragma GCC visibility pop
