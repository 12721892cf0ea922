// Pools: who completes an event hands out the tasks that waited for it, and idle workers take them. No arithmetic here.
#pragma once

#include "mpklab/protocol.h"

namespace mpk {

// A pool is one ring for all workers or one for each, times its classes of priority. A ring holds each of its tasks at
// most once: all tasks of an iteration are popped before the first of the next is pushed, so head and tail say by
// themselves which iteration they are in, and a slot is empty again before it is needed again.
constexpr u32 no_task = 0xffffffffu;

MPK_FN Ring& ring_of(const Run& run, u32 number) { return ((Ring*)run.launch.pools)[number]; }
MPK_FN u32* slot_of(const Run& run, const Ring& ring, u32 at) {
  return (u32*)run.launch.ready + ring.base + (at & ring.mask);
}
MPK_FN const Event& event_of(const Run& run, u32 number) { return ((const Event*)run.launch.events)[number]; }

MPK_FN void push(const Run& run, u32 number, u32 task) {
  Ring& ring = ring_of(run, number);
  store_release(slot_of(run, ring, add_relaxed(&ring.tail, 1)), task + 1);
}

// A task of this iteration from the first ring of some that has any, or no_task. What was visible to the pusher is
// visible now.
MPK_FN u32 pop(const Run& run, u32 first) {
  for (u32 number = first; number < first + run.launch.ring_classes; ++number) {
    Ring& ring = ring_of(run, number);
    u32 end = ring.tasks * (run.epoch + 1);
    u32 head = load_relaxed(&ring.head);
    while (int(end - head) > 0 && int(load_relaxed(&ring.tail) - head) > 0) {
      u32 seen = compare_exchange(&ring.head, head, head + 1);
      if (seen == head) {
        u32* slot = slot_of(run, ring, head);
        u32 task;
        // Its place is taken: what belongs there is about to come.
        for (u32 spins = 1; (task = load_acquire(slot, u32(Scope::gpu_))) == 0; ++spins)
          spins <= run.patience ? relax() : yield();
        store_relaxed(slot, 0);
        return task - 1;
      }
      head = seen;
    }
  }
  return no_task;
}

// A place in a ring that a worker has reserved, perhaps before anything was pushed there.
struct Turn {
  u32 at = 0;
  bool held = false;
};

// The same for workers that never leave the pool, from one ring: with a hundred of them most exchanges would fail,
// while an addition gives each a turn of its own. A turn may be kept for the next iteration.
MPK_FN u32 pop_in_turn(const Run& run, u32 number, Turn& turn) {
  Ring& ring = ring_of(run, number);
  u32 end = ring.tasks * (run.epoch + 1);
  if (!turn.held) {
    u32 head = load_relaxed(&ring.head);
    if (int(end - head) <= 0 || int(load_relaxed(&ring.tail) - head) <= 0) return no_task;
    turn.at = add_relaxed(&ring.head, 1);
    turn.held = true;
  }
  if (int(end - turn.at) <= 0) return no_task;
  u32* slot = slot_of(run, ring, turn.at);
  u32 task = load_acquire(slot, u32(Scope::gpu_));
  if (task == 0) return no_task;
  store_relaxed(slot, 0);
  turn.held = false;
  return task - 1;
}

// Pushes those of some tasks that waited for nothing else; `part` of `parts` threads that share the work.
MPK_FN void hand_out(const Run& run, u32 first, u32 count, u32 part = 0, u32 parts = 1) {
  const Trigger* triggered = (const Trigger*)run.launch.triggered + first;
  for (u32 i = part; i < count; i += parts) {
    const Trigger& next = triggered[i];
    if (next.waits > 1) {
      u32 met = add_acq_rel((u32*)run.launch.pending + next.task, 1, u32(Scope::gpu_)) + 1;
      if (met != next.waits * (run.epoch + 1)) continue;
    }
    push(run, next.ring, next.task);
  }
}

MPK_FN u32 need_of(const Run& run, const Event& event) {
  return event.word == no_word ? u32(event.need) : load_acquire((const u32*)run.launch.words + event.word, 0);
}

// Adds a signal. True: it was the last one that its event needed, and the event is this worker's to act on.
MPK_FN bool completes(const Run& run, u32* counter, const Signal& signal) {
  const Event& event = event_of(run, signal.event);
  if (event.n_tasks == 0) {
    add_release(counter, signal.weight, signal.scope);
    return false;
  }
  u32 now = add_acq_rel(counter, signal.weight, signal.scope) + signal.weight;
  return now == need_of(run, event) * (run.epoch + 1);
}

// A signal of a task that has ended. True: there are tasks to hand out.
MPK_FN bool signal_pool(const Run& run, const Signal& signal) {
  bool last = completes(run, run.counter(signal.event), signal);
  return last && run.launch.promised == 0;
}

// Early push. A task was popped, or one of a queue has passed its waits: the tasks that wait only for such tasks go out
// and wait where they are popped. This cannot lock up: each worker computes in the order in which it pops, so of all
// tasks promised and not ended the one promised first has nothing before it on its worker, and all it waits for was
// promised earlier and has ended. True: there are tasks to hand out.
MPK_FN bool promise(const Run& run, const Signal& signal) {
  return completes(run, (u32*)run.launch.promised + u64(signal.event) * event_stride, signal);
}

MPK_FN void hand_out_event(const Run& run, u32 number, u32 part = 0, u32 parts = 1) {
  const Event& event = event_of(run, number);
  hand_out(run, event.tasks, event.n_tasks, part, parts);
}

// Where there are pools a worker may have had nothing to do for an iteration, so before a StepControl is overwritten
// all must have said that they have read it.
MPK_FN void step_read(const Run& run) {
  add_release(run.control()->readers + (run.iteration & 1), 1, u32(Scope::gpu_));
}
MPK_FN bool wait_for_readers(const Run& run, u32 workers, u32 task) {
  u32 next = run.iteration + 1;  // overwrites the one of two iterations before
  if (next < 2) return true;
  return wait_word(run, run.control()->readers + (next & 1), workers * (next / 2), u32(Scope::gpu_), task, step_event);
}

// After the next StepControl was published by this worker: its tasks that wait for nothing.
MPK_FN void open_iteration(const Run& run, bool stop, u32 part = 0, u32 parts = 1) {
  if (!stop && run.iteration + 1 < run.launch.iterations) hand_out(run, 0, run.launch.n_opening, part, parts);
}

// Without a step task. True: all tasks of the iteration have ended, and this worker is the one to publish the next.
MPK_FN bool ends_iteration(const Run& run) {
  u32 ended = add_acq_rel(&run.control()->finished, 1, u32(Scope::gpu_)) + 1;
  return ended == run.launch.n_tasks * (run.epoch + 1);
}

// What a drain lasts until: an event of this iteration, or the StepControl of the next.
struct Goal {
  const u32* word;
  u32 target, event;
};

MPK_FN Goal goal_of(const Run& run, const Entry& drain) {
  if (drain.task == no_word) return {&run.control()->published, run.iteration + 2, step_event};
  u32 need = need_of(run, event_of(run, drain.task));
  return {run.counter(drain.task), need * (run.epoch + 1), drain.task};
}
MPK_FN bool reached(const Goal& goal) { return int(load_acquire(goal.word, u32(Scope::gpu_)) - goal.target) >= 0; }

// A number that changes whenever any worker gets anything done; never 0 in a run.
MPK_FN u32 progress_of(const Run& run) {
  u32 sum = load_relaxed(&run.control()->published);
  for (u32 i = 0; i < run.launch.n_events; ++i) sum += load_relaxed(run.counter(i));
  for (u32 i = 0; i < run.launch.n_rings; ++i) sum += load_relaxed(&ring_of(run, i).head);
  return sum;
}

// How long a worker has found nothing to do, and whether others still get anything done.
struct Idle {
  u32 spins = 0, progress = 0;
  u64 begin = 0;

  // False: the run was aborted, or has just been because nobody gets anything done.
  MPK_FN bool go_on(const Run& run, const Goal& goal) {
    bool patient = ++spins <= run.patience;
    patient ? relax() : yield();
    if (spins % 64 != 0 && patient) return true;
    if (run.aborted()) return false;
    u64 now = clock_now();
    if (begin == 0) begin = now;
    u64 waited = now - begin, limit = run.launch.wait_limit;
    if (waited > limit / 2 && progress == 0) progress = progress_of(run);
    if (waited <= limit) return true;
    u32 sum = progress_of(run);
    if (progress == sum) {
      report_fault(run, no_word, goal.event, load_relaxed(goal.word), goal.target, waited);
      return false;
    }
    progress = sum, begin = now;
    return true;
  }
};

}  // namespace mpk
