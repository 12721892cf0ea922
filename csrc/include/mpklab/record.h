// The profile's writer: 8 bytes a record, no fence, no atomic, never past the end. Level 0 compiles to nothing.
#pragma once

#include "mpklab/platform.h"

namespace mpk {

template <int Level>
struct Recorder {
  Record* records = nullptr;
  u32 capacity = 0, written = 0;
  bool open = false;  // inside the capture window

  MPK_FN void start(const Launch& launch, u32 worker, Role role) {
    if (launch.lanes == 0 || u32(role) >= launch.lanes_per_worker) return;
    u64 bytes = sizeof(Lane) + u64(launch.lane_capacity) * sizeof(Record);
    Lane* lane = (Lane*)(launch.lanes + bytes * (u64(worker) * launch.lanes_per_worker + u32(role)));
    records = (Record*)(lane + 1);
    capacity = launch.lane_capacity;
    open = launch.window_skip == 0;
    lane->magic = lane_magic;
    lane->version = u16(abi_version);
    lane->rank = u16(launch.rank);
    lane->worker = u16(worker);
    lane->role = (unsigned char)role;
    lane->clock_unit = (unsigned char)clock_unit;
    lane->sm = place();
    lane->capacity = capacity;
    lane->level = u16(Level);
    lane->wrapped = 0;
    lane->begin_clock = clock_now();
    lane->begin_global_ns = global_ns();
  }

  // The window opens and closes between iterations, so every recorded iteration is whole.
  MPK_FN void window(const Launch& launch, u32 epoch) {
    if (!records) return;
    u32 from = launch.window_skip, count = launch.window_record;
    open = epoch >= from && (count == 0 || epoch - from < count);
  }

  MPK_FN void write(u32 tag, u32 clock) {
    if (written < capacity) store_record(records + written, tag, clock);
    ++written;
  }
  template <int From>
  MPK_FN void put(Kind kind, Phase phase, u32 arg) {
    if constexpr (Level >= From)
      if (open) write(u32(kind) | u32(phase) << 2 | arg << 8, clock_low());
  }
  template <int From>
  MPK_FN void begin(Phase phase, u32 arg) {
    put<From>(Kind::begin_, phase, arg);
  }
  // For a phase that turns out only later to be worth a record.
  template <int From>
  MPK_FN void begin_at(Phase phase, u32 arg, u32 clock) {
    if constexpr (Level >= From)
      if (open) write(u32(Kind::begin_) | u32(phase) << 2 | arg << 8, clock);
  }
  template <int From>
  MPK_FN void next(Phase phase, u32 arg) {
    put<From>(Kind::next_, phase, arg);
  }
  template <int From>
  MPK_FN void end(Phase phase, u32 arg) {
    put<From>(Kind::end_, phase, arg);
  }

  // A clock anchor: goes right behind the record whose clock was read at `ns` of the global timer.
  MPK_FN void anchor_at(u64 ns) {
    if (open) write(u32(Kind::value_) | u32(Phase::global_time_) << 2 | u32(ns >> 32) << 8, u32(ns));
  }
  MPK_FN void anchor() {
    if (open) anchor_at(global_ns());
  }
  // A timed record with an anchor of the same instant: both clocks are read before a store can hold the thread up.
  template <int From>
  MPK_FN void put_anchored(Kind kind, Phase phase, u32 arg) {
    if constexpr (Level >= From) {
      if (!open) return;
      u32 clock = clock_low();
      u64 ns = global_ns();
      write(u32(kind) | u32(phase) << 2 | arg << 8, clock);
      anchor_at(ns);
    }
  }

  MPK_FN void finish() {
    if (!records) return;
    Lane* lane = (Lane*)records - 1;
    lane->written = written;
    lane->dropped = written > capacity ? written - capacity : 0;
    lane->end_clock = clock_now();
    lane->end_global_ns = global_ns();
  }
};

template <>
struct Recorder<0> {
  MPK_FN void start(const Launch&, u32, Role) {}
  MPK_FN void window(const Launch&, u32) {}
  template <int>
  MPK_FN void begin(Phase, u32) {}
  template <int>
  MPK_FN void next(Phase, u32) {}
  template <int>
  MPK_FN void end(Phase, u32) {}
  MPK_FN void anchor() {}
  template <int>
  MPK_FN void put_anchored(Kind, Phase, u32) {}
  MPK_FN void finish() {}
};

}  // namespace mpk
