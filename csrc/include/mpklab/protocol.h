// Waiting, signalling and stepping: the whole synchronisation of both backends. No arithmetic happens here.
#pragma once

#include "mpklab/record.h"

namespace mpk {

struct Run {
  const Launch& launch;
  u32 worker;
  u32 iteration = 0;           // counted from the launch's first
  u32 epoch = 0;               // how often this table has run in this launch before
  u32 patience = 0xffffffffu;  // how often a wait looks before it lets another thread run

  MPK_FN Control* control() const { return (Control*)launch.control; }
  MPK_FN Host* host() const { return (Host*)launch.host; }
  MPK_FN u32* counter(u32 event) const { return (u32*)launch.counters + u64(event) * event_stride; }
  MPK_FN const Task& task(u32 id) const { return ((const Task*)launch.tasks)[id]; }
  MPK_FN const Wait* waits() const { return (const Wait*)launch.waits; }
  MPK_FN const Signal* signals() const { return (const Signal*)launch.signals; }

  MPK_FN bool aborted() const {
#if MPK_CUDA
    return load_relaxed(&control()->abort) != 0;
#else
    return load_relaxed(&control()->abort) != 0 || load_relaxed(&host()->abort) != 0;
#endif
  }
};

// The first worker to give up writes the fault; the others see only the abort.
MPK_FN void report_fault(const Run& run, u32 task, u32 event, u32 count, u32 target, u64 waited) {
  Fault& fault = run.host()->fault;
  if (exchange(&run.control()->abort, 1u) != 0) return;
  fault.worker = run.worker;
  fault.task = task;
  fault.event = event;
  fault.count = int(count);
  fault.need = int(target);
  fault.rank = run.launch.rank;
  fault.iteration = run.launch.first_iteration + run.iteration;
  fault.waited = waited;
  store_host(&fault.state, 1u);
}

// Spins until *word - target >= 0 (modulo 2^32). False: the run was aborted, or has just been by this wait.
MPK_FN bool wait_word(const Run& run, const u32* word, u32 target, u32 scope, u32 task, u32 event) {
  u32 seen = load_acquire(word, scope);
  if (int(seen - target) >= 0) return true;
  u64 begin = 0;
  for (u32 spins = 1;; ++spins) {
    bool patient = spins <= run.patience;
    if (patient)
      relax();
    else
      yield();
    seen = load_acquire(word, scope);
    if (int(seen - target) >= 0) return true;
    if (spins % 64 == 0 || !patient) {
      if (run.aborted()) return false;
      u64 now = clock_now();
      if (begin == 0) begin = now;
      if (now - begin > run.launch.wait_limit) {
        report_fault(run, task, event, seen, target, now - begin);
        return false;
      }
    }
  }
}

MPK_FN u32 wait_target(const Run& run, const Wait& wait) {
  u32 need = wait.word == no_word ? u32(wait.need) : load_acquire((const u32*)run.launch.words + wait.word, wait.scope);
  return need * (run.epoch + 1 - wait.lag);
}

// Whether a wait would end at once.
MPK_FN bool arrived(const Run& run, const Wait& wait) {
  if (wait.handoff == u32(Handoff::worker_)) return true;
  return int(load_acquire(run.counter(wait.event), wait.scope) - wait_target(run, wait)) >= 0;
}

MPK_FN bool wait_event(const Run& run, const Wait& wait, u32 task) {
  if (wait.handoff == u32(Handoff::worker_)) return true;
  return wait_word(run, run.counter(wait.event), wait_target(run, wait), wait.scope, task, wait.event);
}

MPK_FN void signal_event(const Run& run, const Signal& signal) {
  add_release(run.counter(signal.event), signal.weight, signal.scope);
}

// No event stands for the step: its waits are reported under this number.
constexpr u32 step_event = 0xffffffu;

MPK_FN bool step_arrived(const Run& run) {
  return int(load_acquire(&run.control()->published, u32(Scope::gpu_)) - (run.iteration + 1)) >= 0;
}

// Reads the StepControl of this iteration. The verifier has proved that every worker with tasks reads it before it is
// overwritten two iterations later.
MPK_FN bool acquire_step(const Run& run, Step& step) {
  u32 target = run.iteration + 1;
  if (!wait_word(run, &run.control()->published, target, u32(Scope::gpu_), no_word, step_event)) return false;
  step = run.control()->step[run.iteration & 1];
  return true;
}

MPK_FN Step& next_step(const Run& run) { return run.control()->step[(run.iteration + 1) & 1]; }

// Before the step task computes: the next step starts as a copy of this one, so an operator writes only what changes.
MPK_FN void prepare_step(const Run& run, const Step& step) {
  next_step(run) = step;
  next_step(run).iteration = run.iteration + 1;
}

MPK_FN void publish_step(const Run& run) {
  store_release(&run.control()->published, run.iteration + 2);
  store_host(&run.host()->progress, run.iteration + 1);
}

// The same where every operator is a launch of its own and the host repeats them: a step after the last leaves no
// trace.
MPK_FN void count_step(Run& run) {
  Control* control = run.control();
  if (load_relaxed(&control->step[0].stop)) return;
  u32 stop = next_step(run).stop;
  run.iteration = load_relaxed(&control->published) - 1;
  publish_step(run);
  control->step[0].stop = stop;
}

// A change of table starts with all workers that have tasks: their last stores are visible to whoever runs next.
MPK_FN bool meet(const Run& run, u32 workers, u32 changes) {
  u32* arrived = run.control()->pad1;
  add_release(arrived, 1, u32(Scope::gpu_));
  return wait_word(run, arrived, workers * changes, u32(Scope::gpu_), no_word, step_event);
}

}  // namespace mpk
