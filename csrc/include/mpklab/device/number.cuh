// Element types, their loads and stores, and the order of argmax; arithmetic is float32 throughout.
#pragma once

#include "mpklab/platform.h"

namespace mpk {

// The upper half of a float32.
struct bf16 {
  u16 bits;
};

#define MPK_SIZE __host__ __device__ constexpr int
MPK_SIZE greatest_common_divisor(int a, int b) { return b == 0 ? a : greatest_common_divisor(b, a % b); }
MPK_SIZE smaller(int a, int b) { return a < b ? a : b; }
MPK_SIZE larger(int a, int b) { return a > b ? a : b; }
MPK_SIZE largest(int a) { return a; }
template <class... More>
MPK_SIZE largest(int a, More... more) {
  return larger(a, largest(more...));
}
MPK_SIZE divide_up(int a, int b) { return (a + b - 1) / b; }
// The largest power of two that is at most n.
MPK_SIZE power_below(int n) { return n < 2 ? 1 : 2 * power_below(n / 2); }
#undef MPK_SIZE

template <class A, class B>
constexpr bool same = false;
template <class A>
constexpr bool same<A, A> = true;

MPK_FN float infinity() { return __uint_as_float(0x7f800000u); }
MPK_FN float not_a_number() { return __uint_as_float(0x7fc00000u); }

MPK_FN float widen(float x) { return x; }
MPK_FN float widen(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }
MPK_FN float low_half(u32 pair) { return __uint_as_float(pair << 16); }
MPK_FN float high_half(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

template <class T>
MPK_FN T narrow(float x) {
  if constexpr (same<T, bf16>)
    return bf16{ptx::to_bf16(x)};
  else
    return x;
}

// One element that another task may have written.
template <class T>
MPK_FN T load_one(const T* at) {
  if constexpr (sizeof(T) == 2) {
    u16 word = ptx::load_shared_by_all((const u16*)at);
    return *(const T*)&word;
  } else {
    u32 word = ptx::load_shared_by_all((const u32*)at);
    return *(const T*)&word;
  }
}

// Eight neighbours, 16 bytes of bf16 or 32 of float32, packed as bf16.
MPK_FN uint4 load_eight(const bf16* at) { return ptx::load_shared_by_all((const uint4*)at); }

// What a word holds until its epoch's producer has stored it: two NaNs that no conversion to bf16 makes.
constexpr u32 missing = 0xffffffffu;
MPK_FN bool any_missing(const uint4& v) { return v.x == missing || v.y == missing || v.z == missing || v.w == missing; }
MPK_FN u32 pair_of(bf16 low, bf16 high) { return u32(high.bits) << 16 | low.bits; }
MPK_FN bf16 half_of(u32 pair, int index) { return bf16{u16(index % 2 ? pair >> 16 : pair)}; }

// The element `i` of eight packed ones.
MPK_FN float element(const uint4& v, int i) {
  u32 pair = i < 2 ? v.x : i < 4 ? v.y : i < 6 ? v.z : v.w;
  return i % 2 ? high_half(pair) : low_half(pair);
}

MPK_FN uint4 chosen(bool first, const uint4& a, const uint4& b) {
  return make_uint4(first ? a.x : b.x, first ? a.y : b.y, first ? a.z : b.z, first ? a.w : b.w);
}

// Adds up what the lanes hold: always the same tree, and the sum reaches every lane.
template <int Lanes = 32>
MPK_FN float lane_sum(float x) {
#pragma unroll
  for (int d = Lanes / 2; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  return x;
}

MPK_FN float silu(float x) { return x / (1.0f + ptx::exp2(-1.44269504f * x)); }
MPK_FN float inverse_root(float mean_square, unsigned eps_bits) {
  return ptx::inverse_root(mean_square + __uint_as_float(eps_bits));
}

// The order of torch.argmax: NaN above everything, then by value, then the lowest index.
struct Best {
  float value;
  int index;

  static MPK_FN Best none() { return {-infinity(), 0x7fffffff}; }
  MPK_FN void see(float other, int at) {
    bool nan = value != value, other_nan = other != other;
    bool same_value = other == value || (nan && other_nan);
    if (same_value ? at < index : (other_nan || other > value)) value = other, index = at;
  }
  // Over the lanes whose numbers differ in bits below Lanes and from bit First on.
  template <int Lanes = 32, int First = 1>
  MPK_FN void see_lanes() {
#pragma unroll
    for (int d = Lanes / 2; d >= First; d /= 2) {
      float other = __shfl_xor_sync(0xffffffffu, value, d);
      int at = __shfl_xor_sync(0xffffffffu, index, d);
      see(other, at);
    }
  }
};

}  // namespace mpk
