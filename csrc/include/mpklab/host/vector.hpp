// Float vectors of the machine's own width through the compiler's vector extensions: loads, stores, sums and exp.
#pragma once

#include <utility>

#include "mpklab/platform.h"

#pragma GCC visibility push(hidden)

#define MPK_INLINE inline __attribute__((always_inline))

namespace mpk {

// The upper half of a float32; arithmetic happens in float32 only.
struct bf16 {
  u16 bits;
};

#if defined(__AVX512F__) && defined(__AVX512BW__)
constexpr int lanes = 16;
#elif defined(__AVX__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif

typedef float Floats __attribute__((vector_size(lanes * 4)));
typedef u32 Words __attribute__((vector_size(lanes * 4)));
typedef int Ints __attribute__((vector_size(lanes * 4)));
typedef u16 Halves __attribute__((vector_size(lanes * 2)));

constexpr float infinity = __builtin_inff();
constexpr int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

MPK_INLINE Floats splat(float x) { return Floats{} + x; }
MPK_INLINE Ints counted() {
  Ints v{};
  for (int i = 0; i < lanes; ++i) v[i] = i;
  return v;
}
template <class To, class From>
MPK_INLINE To bits(From x) {
  return __builtin_bit_cast(To, x);
}

MPK_INLINE float widen(bf16 x) { return bits<float>(u32(x.bits) << 16); }
MPK_INLINE float widen(float x) { return x; }
template <class T>
MPK_INLINE T narrow(float x);
template <>
MPK_INLINE float narrow<float>(float x) {
  return x;
}
// To nearest, ties to even; a NaN stays one.
template <>
MPK_INLINE bf16 narrow<bf16>(float x) {
  u32 w = bits<u32>(x);
  return {u16(x != x ? w >> 16 | 0x40u : (w + 0x7fffu + (w >> 16 & 1u)) >> 16)};
}

// The bf16 bits of each lane, in the lower halves.
MPK_INLINE Words narrowed(Floats x) {
  Words w = bits<Words>(x);
  Words even = (w + 0x7fffu + (w >> 16 & 1u)) >> 16;
  return x == x ? even : (w >> 16 | 0x40u);
}

// `lanes` elements in memory order.
MPK_INLINE Floats load(const float* p) {
  Floats v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
MPK_INLINE Floats load(const bf16* p) {
  Halves h;
  __builtin_memcpy(&h, p, sizeof h);
  return bits<Floats>(__builtin_convertvector(h, Words) << 16);
}
MPK_INLINE void store(float* p, Floats v) { __builtin_memcpy(p, &v, sizeof v); }
MPK_INLINE void store(bf16* p, Floats v) {
  Halves h = __builtin_convertvector(narrowed(v), Halves);
  __builtin_memcpy(p, &h, sizeof h);
}
// The first n elements; nothing behind them is touched, lanes behind them are zero.
template <class T>
MPK_INLINE Floats load(const T* p, int n) {
  if (n >= lanes) return load(p);
  T part[lanes] = {};
  for (int i = 0; i < n; ++i) part[i] = p[i];
  return load(part);
}
template <class T>
MPK_INLINE void store(T* p, Floats v, int n) {
  if (n >= lanes) return store(p, v);
  T part[lanes];
  store(part, v);
  for (int i = 0; i < n; ++i) p[i] = part[i];
}

// A dot product needs no order among the elements, so bf16 pairs are split where they lie: evens first, then odds.
// What is multiplied with them is packed the same way. One call covers 2 * lanes elements.
constexpr int pair_lanes = 2 * lanes;
MPK_INLINE void split(const float* p, Floats& a, Floats& b) {
  a = load(p);
  b = load(p + lanes);
}
MPK_INLINE void split(const bf16* p, Floats& a, Floats& b) {
  Words w;
  __builtin_memcpy(&w, p, sizeof w);
  a = bits<Floats>(w << 16);
  b = bits<Floats>(w & 0xffff0000u);
}
template <class T>
MPK_INLINE void split(const T* p, Floats& a, Floats& b, int n) {
  if (n >= pair_lanes) return split(p, a, b);
  T part[pair_lanes] = {};
  for (int i = 0; i < n; ++i) part[i] = p[i];
  split(part, a, b);
}
// Where element k of a row lies once the row is packed for weights of type T.
template <class T>
constexpr int packed_index(int k) {
  if (sizeof(T) == 4) return k;
  int r = k % pair_lanes;
  return k - r + (r & 1) * lanes + r / 2;
}

template <int... I>
MPK_INLINE Floats shuffled(Floats a, Floats b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, Ints{I...});
#endif
}

// The sum over lanes, always by the same tree: the upper half onto the lower, until one is left.
template <int Half, int... I>
MPK_INLINE Floats mirrored(Floats v, std::integer_sequence<int, I...>) {
  return shuffled(v, v, std::integer_sequence<int, (I ^ Half)...>());
}
template <int Half = lanes / 2>
MPK_INLINE float sum(Floats v) {
  v = v + mirrored<Half>(v, std::make_integer_sequence<int, lanes>());
  if constexpr (Half > 1) return sum<Half / 2>(v);
  return v[0];
}

// Lane i of the result is sum(v[i]), bit for bit: all the trees at once.
template <int Half, int... I>
MPK_INLINE Floats folded(Floats a, Floats b, std::integer_sequence<int, I...>) {
  return shuffled(a, b, std::integer_sequence<int, (I % (2 * Half) < Half ? I : lanes + I - Half)...>()) +
         shuffled(a, b, std::integer_sequence<int, (I % (2 * Half) < Half ? I + Half : lanes + I)...>());
}
template <int Half = lanes / 2>
MPK_INLINE Floats sums(Floats* v) {
  for (int i = 0; i < Half; ++i) v[i] = folded<Half>(v[i], v[i + Half], std::make_integer_sequence<int, lanes>());
  if constexpr (Half > 1) return sums<Half / 2>(v);
  return v[0];
}
MPK_INLINE float largest(Floats v) {
  float most = v[0];
  for (int i = 1; i < lanes; ++i) most = v[i] > most ? v[i] : most;
  return most;
}
MPK_INLINE Floats max(Floats a, Floats b) { return a > b ? a : b; }

// exp to 2 ulp, infinities, denormals and NaN included: 2^n * e^r with |r| <= ln(2)/2; the scale is applied in two
// halves, so that neither half leaves the exponent's range.
MPK_INLINE Floats exp(Floats x) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  x = x < -104.0f ? splat(-104.0f) : x;
  x = x > 89.0f ? splat(89.0f) : x;
  Floats shifted = x * 1.44269504f + magic;
  Floats n = shifted - magic;
  Floats r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r;
  p = p + 1.0f;
  Ints whole = bits<Ints>(shifted) - bits<int>(magic);
  Ints half = whole >> 1;
  Floats first = bits<Floats>((half + 127) << 23), second = bits<Floats>((whole - half + 127) << 23);
  return p * first * second;
}
MPK_INLINE float exp(float x) { return exp(splat(x))[0]; }

MPK_INLINE Floats silu(Floats x) { return x / (1.0f + exp(-x)); }

MPK_INLINE float inverse_root(float mean_square, unsigned eps_bits) {
  return 1.0f / __builtin_sqrtf(mean_square + bits<float>(eps_bits));
}

// The order of torch.argmax: NaN above everything, then by value, then the lowest index.
MPK_INLINE bool beats(float value, int index, float best, int best_index) {
  bool nan = value != value, best_nan = best != best;
  if (nan || best_nan) return nan && (!best_nan || index < best_index);
  return value > best || (value == best && index < best_index);
}

// The running best of a stream whose indices rise, one candidate a lane.
struct Best {
  Floats value = splat(-infinity);
  Ints index = Ints{} + 0x7fffffff;

  // Lane i is element first + i; those from n on are not looked at.
  MPK_INLINE void see(Floats v, int first, int n) {
    Ints at = counted();
    Ints better = (v > value) | ((v != v) & (value == value)) | (index == 0x7fffffff);
    better &= at < n;
    value = better ? v : value;
    index = better ? at + first : index;
  }
  MPK_INLINE void result(float& best, int& best_index) const {
    best = -infinity;
    best_index = 0x7fffffff;
    for (int i = 0; i < lanes; ++i)
      if (beats(value[i], index[i], best, best_index)) best = value[i], best_index = index[i];
  }
};

}  // namespace mpk

#pragma GCC visibility pop
