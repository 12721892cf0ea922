// All inline PTX of the CUDA backend, one function per instruction; nothing here knows of tasks or operators.
#pragma once

namespace mpk {
struct Record;
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define MPK_BULK 1  // bulk asynchronous copies that complete on an mbarrier
#else
#define MPK_BULK 0  // cp.async of 16 bytes
#endif

namespace mpk::ptx {

#define MPK_PTX __device__ __forceinline__

// Global memory: order and scope.

MPK_PTX unsigned load_relaxed(const unsigned* at) {
  unsigned v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
  return v;
}
// Of a vector each word is an access of its own, in no order (PTX ISA, memory consistency model, vector data types).
MPK_PTX uint4 load_relaxed(const uint4* at) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at)
               : "memory");
  return v;
}
MPK_PTX void store_relaxed(unsigned* at, unsigned value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}
MPK_PTX void store_relaxed(uint4* at, uint4 value) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}
MPK_PTX unsigned load_relaxed_sys(const unsigned* at) {
  unsigned v;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
  return v;
}
MPK_PTX unsigned load_acquire_gpu(const unsigned* at) {
  unsigned v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
  return v;
}
MPK_PTX unsigned load_acquire_sys(const unsigned* at) {
  unsigned v;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
  return v;
}
MPK_PTX void store_release_gpu(unsigned* at, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}
MPK_PTX void store_release_sys(unsigned* at, unsigned value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}
MPK_PTX void add_release_gpu(unsigned* at, unsigned value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}
MPK_PTX void add_release_sys(unsigned* at, unsigned value) {
  asm volatile("red.release.sys.global.add.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}
MPK_PTX unsigned add_acq_rel_gpu(unsigned* at, unsigned value) {
  unsigned v;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(v) : "l"(at), "r"(value) : "memory");
  return v;
}
MPK_PTX unsigned add_acq_rel_sys(unsigned* at, unsigned value) {
  unsigned v;
  asm volatile("atom.acq_rel.sys.global.add.u32 %0, [%1], %2;" : "=r"(v) : "l"(at), "r"(value) : "memory");
  return v;
}

// Grids of one stream that overlap. Before sm_90 they follow one another, and there is nothing to say.

// The next grid may start: once every block of this one has said so or ended.
MPK_PTX void let_next_grid_start() {
#if MPK_BULK
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// The grids before this one have ended, and what they wrote is visible.
MPK_PTX void wait_for_grids() {
#if MPK_BULK
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Global memory: data. What a task wrote is read through L2; the other path is for what nobody writes during a launch.

MPK_PTX uint4 load_shared_by_all(const uint4* at) {
  uint4 v;
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at)
               : "memory");
  return v;
}
MPK_PTX uint2 load_shared_by_all(const uint2* at) {
  uint2 v;
  asm volatile("ld.global.cg.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(at) : "memory");
  return v;
}
MPK_PTX unsigned load_shared_by_all(const unsigned* at) {
  unsigned v;
  asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(at) : "memory");
  return v;
}
MPK_PTX unsigned short load_shared_by_all(const unsigned short* at) {
  unsigned short v;
  asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(at) : "memory");
  return v;
}
MPK_PTX uint4 load_constant(const uint4* at) {
  uint4 v;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(at));
  return v;
}
MPK_PTX uint2 load_constant(const uint2* at) {
  uint2 v;
  asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(at));
  return v;
}
MPK_PTX unsigned load_constant(const unsigned* at) {
  unsigned v;
  asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(at));
  return v;
}
MPK_PTX unsigned short load_constant(const unsigned short* at) {
  unsigned short v;
  asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(at));
  return v;
}
MPK_PTX void store_streaming(Record* at, unsigned first, unsigned second) {
  asm volatile("st.global.cs.v2.u32 [%0], {%1, %2};" ::"l"(at), "r"(first), "r"(second) : "memory");
}

// Clocks and places.

MPK_PTX unsigned clock32() {
  unsigned v;
  asm volatile("mov.u32 %0, %%clock;" : "=r"(v)::"memory");
  return v;
}
MPK_PTX unsigned long long clock64() {
  unsigned long long v;
  asm volatile("mov.u64 %0, %%clock64;" : "=l"(v)::"memory");
  return v;
}
MPK_PTX unsigned long long global_timer() {
  unsigned long long v;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(v)::"memory");
  return v;
}
MPK_PTX unsigned sm_id() {
  unsigned v;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(v));
  return v;
}

// The same number, but the compiler cannot know: what is computed from it is computed where it is used, not kept in
// registers from task to task.
MPK_PTX int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// Shared memory and its barriers.

MPK_PTX unsigned shared_address(const void* at) { return unsigned(__cvta_generic_to_shared(at)); }

template <int Threads>
MPK_PTX void named_barrier(int which) {
  asm volatile("bar.sync %0, %1;" ::"r"(which), "n"(Threads) : "memory");
}

MPK_PTX void barrier_init(unsigned long long* barrier, unsigned count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
// Makes initialised barriers known to the copy engine.
MPK_PTX void barrier_init_fence() {
#if MPK_BULK
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
MPK_PTX void barrier_arrive(unsigned long long* barrier) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(shared_address(barrier))
               : "memory");
}
// One try: true when the phase of this parity is over. From sm_90 on the thread may sleep a little inside.
MPK_PTX bool barrier_try(unsigned long long* barrier, unsigned parity) {
  unsigned over;
#if MPK_BULK
  asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(over)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
#else
  asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(over)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
#endif
  return over != 0;
}

#if MPK_BULK

MPK_PTX void barrier_expect(unsigned long long* barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
MPK_PTX unsigned long long policy_evict_first() {
  unsigned long long policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
MPK_PTX unsigned long long policy_evict_normal() {
  unsigned long long policy;
  asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
// Multiples of 16 bytes, both addresses aligned to 16.
MPK_PTX void bulk_copy(void* to, const void* from, unsigned bytes, unsigned long long* barrier,
                       unsigned long long policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
}
// A hint: 16-byte units on their way to the L2.
MPK_PTX void prefetch_l2(const void* at, unsigned bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(at), "r"(bytes) : "memory");
}
// Orders what was acquired from other threads before the bulk copies that this thread issues next.
MPK_PTX void proxy_fence() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

#else

MPK_PTX unsigned long long policy_evict_first() { return 0; }
MPK_PTX unsigned long long policy_evict_normal() { return 0; }
MPK_PTX void async_copy(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
// This thread's arrival, when its copies so far have landed.
MPK_PTX void barrier_arrive_after_copies(unsigned long long* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}
MPK_PTX void proxy_fence() {}

#endif

MPK_PTX uint4 load_shared(const void* at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(shared_address(at))
               : "memory");
  return v;
}
MPK_PTX uint4 load_shared(unsigned address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
// A word that another thread of the block changes.
MPK_PTX unsigned load_flag(const unsigned* at) {
  unsigned v;
  asm volatile("ld.volatile.shared.u32 %0, [%1];" : "=r"(v) : "r"(shared_address(at)) : "memory");
  return v;
}
MPK_PTX void store_flag(unsigned* at, unsigned value) {
  asm volatile("st.volatile.shared.u32 [%0], %1;" ::"r"(shared_address(at)), "r"(value) : "memory");
}

// Matrix fragments.

// c[16,8] += a[16,16] * b[16,8], bf16 in, float32 out.
MPK_PTX void multiply(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Numbers.

// A choice that stays a choice: the compiler makes an index into local memory of a chain of plain ones.
MPK_PTX float select(bool first, float a, float b) {
  float v;
  asm("{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\nselp.f32 %0, %1, %2, p;\n}"
      : "=f"(v)
      : "f"(a), "f"(b), "r"(unsigned(first)));
  return v;
}
// Each half of `a` times that of `b`, rounded once: a product of two bf16 is exact in float32.
MPK_PTX unsigned multiply_pairs(unsigned a, unsigned b) {
  unsigned v;
#if MPK_BULK
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
#else
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(0x80008000u));
#endif
  return v;
}
// To nearest, ties to even: `low` ends up in the lower half.
MPK_PTX unsigned pack_bf16(float low, float high) {
  unsigned v;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}
MPK_PTX unsigned short to_bf16(float x) {
  unsigned short v;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(v) : "f"(x));
  return v;
}
// 2^x to 2 ulp.
MPK_PTX float exp2(float x) {
  float v;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
  return v;
}
MPK_PTX float inverse_root(float x) {
  float v;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(v) : "f"(x));
  return v;
}

#undef MPK_PTX

}  // namespace mpk::ptx
