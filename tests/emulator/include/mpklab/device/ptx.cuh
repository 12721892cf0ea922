// What csrc/include/mpklab/device/ptx.cuh has, instruction by instruction, for the emulator: it stands before that one.
#pragma once

namespace mpk {
struct Record;
}

// 1 as from sm_90 on, 0 as before: bulk copies that complete on an mbarrier, or cp.async of 16 bytes.
#ifndef MPK_BULK
#define MPK_BULK 1
#endif

namespace mpk::ptx {

// Global memory: order and scope.

inline unsigned load_relaxed(const unsigned* at) { return emulator::poll(at); }
// Each word is an access of its own, in no order.
inline uint4 load_relaxed(const uint4* at) {
  unsigned words[4], first = unsigned(emulator::machine->random());
  for (unsigned i = 0; i < 4; ++i) {
    words[(first + i) % 4] = ((const volatile unsigned*)at)[(first + i) % 4];
    emulator::touch(32);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}
inline void store_relaxed(unsigned* at, unsigned value) { emulator::store(at, value); }
inline void store_relaxed(uint4* at, uint4 value) {
  unsigned words[4] = {value.x, value.y, value.z, value.w}, first = unsigned(emulator::machine->random());
  for (unsigned i = 0; i < 4; ++i) emulator::store((unsigned*)at + (first + i) % 4, words[(first + i) % 4]);
}
inline unsigned load_relaxed_sys(const unsigned* at) { return emulator::poll(at); }
inline unsigned load_acquire_gpu(const unsigned* at) { return emulator::poll(at); }
inline unsigned load_acquire_sys(const unsigned* at) { return emulator::poll(at); }
inline void store_release_gpu(unsigned* at, unsigned value) { emulator::store(at, value); }
inline void store_release_sys(unsigned* at, unsigned value) { emulator::store(at, value); }
inline void add_release_gpu(unsigned* at, unsigned value) { emulator::add(at, value); }
inline void add_release_sys(unsigned* at, unsigned value) { emulator::add(at, value); }
inline unsigned add_acq_rel_gpu(unsigned* at, unsigned value) { return emulator::add(at, value); }
inline unsigned add_acq_rel_sys(unsigned* at, unsigned value) { return emulator::add(at, value); }

// Grids follow one another.

inline void let_next_grid_start() {}
inline void wait_for_grids() {}

// Global memory: data.

template <class T>
T load_shared_by_all(const T* at) {
  emulator::touch();
  return *at;
}
template <class T>
T load_constant(const T* at) {
  emulator::touch();
  return *at;
}
inline void store_streaming(Record* at, unsigned first, unsigned second) {
  ((unsigned*)at)[0] = first, ((unsigned*)at)[1] = second;
}

// Clocks and places.

inline unsigned long long clock64() { return emulator::machine->now * emulator::cycles_of_a_switch; }
inline unsigned clock32() { return unsigned(clock64()); }
inline unsigned long long global_timer() { return clock64() / 32 * 32; }
inline unsigned sm_id() { return blockIdx.x; }
inline int opaque(int x) { return x; }

// Shared memory and its barriers. Addresses count from the ring's begin: nothing else is named by one.

inline unsigned shared_address(const void* at) { return unsigned((const char*)at - mpk_pages); }

template <int Threads>
inline void named_barrier(int which) {
  emulator::named_barrier(unsigned(which), Threads);
}

inline void barrier_init(unsigned long long* barrier, unsigned count) {
  *(emulator::Mbarrier*)barrier = {0, count & 0x7fff, count & 0xffff, 0};
}
inline void barrier_init_fence() {}
inline void barrier_arrive(unsigned long long* barrier) { emulator::arrive(barrier, 0); }
inline bool barrier_try(unsigned long long* barrier, unsigned parity) { return emulator::try_wait(barrier, parity); }
inline unsigned long long policy_evict_first() { return 1; }
inline unsigned long long policy_evict_normal() { return 2; }

#if MPK_BULK

inline void barrier_expect(unsigned long long* barrier, unsigned bytes) { emulator::arrive(barrier, int(bytes)); }
inline void bulk_copy(void* to, const void* from, unsigned bytes, unsigned long long* barrier, unsigned long long) {
  emulator::copy_later(to, from, bytes, barrier, emulator::landing_time());
  emulator::touch();
}
inline void prefetch_l2(const void* at, unsigned bytes) {
  if ((unsigned long long)at % 16 || bytes % 16) emulator::fail("an L2 prefetch of %u bytes at %p", bytes, at);
}

#else

inline void async_copy(void* to, const void* from) {
  unsigned long long due = emulator::landing_time();
  emulator::lane().copied = emulator::lane().copied > due ? emulator::lane().copied : due;
  emulator::copy_later(to, from, 16, nullptr, due);
}
inline void barrier_arrive_after_copies(unsigned long long* barrier) {
  unsigned long long due =
      emulator::machine->now > emulator::lane().copied ? emulator::machine->now : emulator::lane().copied;
  emulator::block().copies.push({due + 1, nullptr, nullptr, 0, barrier, true, nullptr});
  emulator::touch();
}

#endif

inline void proxy_fence() {}

inline uint4 load_shared(unsigned address) {
  if (address % 16 || address + 16 > emulator::machine->ring_bytes)
    emulator::fail("a shared load at %u of a ring of %u bytes", address, emulator::machine->ring_bytes);
  emulator::touch(256);
  return *(const uint4*)(mpk_pages + address);
}
inline uint4 load_shared(const void* at) {
  emulator::touch(256);
  return *(const uint4*)at;
}
inline unsigned load_flag(const unsigned* at) { return emulator::poll(at); }
inline void store_flag(unsigned* at, unsigned value) { emulator::store(at, value); }

// Matrix fragments.

inline void multiply(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  const unsigned a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
  emulator::multiply(c, a, b);
}

// Numbers.

inline float select(bool first, float a, float b) { return first ? a : b; }
inline unsigned multiply_pairs(unsigned a, unsigned b) {
  unsigned low = emulator::to_bf16(emulator::from_bf16(a & 0xffff) * emulator::from_bf16(b & 0xffff));
  return emulator::to_bf16(emulator::from_bf16(a >> 16) * emulator::from_bf16(b >> 16)) << 16 | low;
}
inline unsigned pack_bf16(float low, float high) { return emulator::to_bf16(high) << 16 | emulator::to_bf16(low); }
inline unsigned short to_bf16(float x) { return (unsigned short)emulator::to_bf16(x); }
inline float exp2(float x) { return std::exp2(x); }
inline float inverse_root(float x) { return 1.0f / std::sqrt(x); }

}  // namespace mpk::ptx
