// What differs between a CPU thread and an SM: atomics, clocks, pauses. Everything above this file is shared.
#pragma once

#include "mpklab/abi.h"

#if defined(__CUDACC__)
#define MPK_CUDA 1
#define MPK_FN __device__ __forceinline__
#include "mpklab/device/ptx.cuh"
#else
#define MPK_CUDA 0
#define MPK_FN inline
#include <sched.h>
#include <time.h>
#endif

namespace mpk {

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

#if MPK_CUDA

MPK_FN u32 load_relaxed(const u32* at) { return ptx::load_relaxed(at); }
MPK_FN u32 load_acquire(const u32* at, u32 scope) {
  return scope == u32(Scope::gpu_) ? ptx::load_acquire_gpu(at) : ptx::load_acquire_sys(at);
}
MPK_FN void store_release(u32* at, u32 value) { ptx::store_release_gpu(at, value); }
MPK_FN void store_host(u32* at, u32 value) { ptx::store_release_sys(at, value); }
MPK_FN void add_release(u32* at, u32 value, u32 scope) {
  if (scope == u32(Scope::gpu_))
    ptx::add_release_gpu(at, value);
  else
    ptx::add_release_sys(at, value);
}
MPK_FN u32 add_acq_rel(u32* at, u32 value, u32 scope) {
  return scope == u32(Scope::gpu_) ? ptx::add_acq_rel_gpu(at, value) : ptx::add_acq_rel_sys(at, value);
}
MPK_FN u32 exchange(u32* at, u32 value) { return atomicExch(at, value); }
// Returns what was there: `expected` when it is now `value`. Orders nothing.
MPK_FN u32 compare_exchange(u32* at, u32 expected, u32 value) { return atomicCAS(at, expected, value); }
MPK_FN u32 add_relaxed(u32* at, u32 value) { return atomicAdd(at, value); }
MPK_FN void store_relaxed(u32* at, u32 value) { *(volatile u32*)at = value; }
MPK_FN u64 clock_now() { return ptx::clock64(); }
MPK_FN u32 clock_low() { return ptx::clock32(); }
MPK_FN u64 global_ns() { return ptx::global_timer(); }
MPK_FN u32 place() { return ptx::sm_id(); }
MPK_FN void relax() {}
MPK_FN void yield() {}
MPK_FN void store_record(Record* at, u32 tag, u32 clock) { ptx::store_streaming(at, tag, clock); }
constexpr u32 clock_unit = u32(Clock::sm_cycles_);

#else

MPK_FN u32 load_relaxed(const u32* at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }
MPK_FN u32 load_acquire(const u32* at, u32) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
MPK_FN void store_release(u32* at, u32 value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
MPK_FN void store_host(u32* at, u32 value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
MPK_FN void add_release(u32* at, u32 value, u32) { __atomic_fetch_add(at, value, __ATOMIC_RELEASE); }
MPK_FN u32 add_acq_rel(u32* at, u32 value, u32) { return __atomic_fetch_add(at, value, __ATOMIC_ACQ_REL); }
MPK_FN u32 exchange(u32* at, u32 value) { return __atomic_exchange_n(at, value, __ATOMIC_ACQ_REL); }
MPK_FN u32 compare_exchange(u32* at, u32 expected, u32 value) {
  __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
MPK_FN u32 add_relaxed(u32* at, u32 value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
MPK_FN void store_relaxed(u32* at, u32 value) { __atomic_store_n(at, value, __ATOMIC_RELAXED); }
MPK_FN u64 global_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return u64(t.tv_sec) * 1000000000ull + u64(t.tv_nsec);
}
#if defined(__x86_64__)
// Behind the fence, or the clock is read while the load before it is still under way and tells a time too early.
MPK_FN u64 clock_now() {
  __builtin_ia32_lfence();
  return __builtin_ia32_rdtsc();
}
constexpr u32 clock_unit = u32(Clock::tsc_cycles_);
#else
MPK_FN u64 clock_now() { return global_ns(); }
constexpr u32 clock_unit = u32(Clock::nanoseconds_);
#endif
MPK_FN u32 clock_low() { return u32(clock_now()); }
MPK_FN u32 place() {
#if defined(__linux__)
  int cpu = sched_getcpu();
  return cpu < 0 ? 0u : u32(cpu);
#else
  return 0;
#endif
}
MPK_FN void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}
MPK_FN void yield() { sched_yield(); }
MPK_FN void store_record(Record* at, u32 tag, u32 clock) {
  at->tag = tag;
  at->clock = clock;
}

#endif

}  // namespace mpk
