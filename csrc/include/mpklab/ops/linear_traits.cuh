// What the three ways of computing a linear share: its sizes, how activations are read, and what follows a row's sum.
#pragma once

#include "mpklab/ops/attention_merge.cuh"

namespace mpk::ops {

template <class T_, class TO_, int N_, int K_, int Rows_, int Dim_, int NORM_, unsigned EPS_, Epilogue EPILOGUE_,
          int BIAS_, int SPLITS_, int D_, class TP_, int PARTS_>
struct LinearTraits {
  using T = T_;
  using TO = TO_;
  using TP = TP_;
  static constexpr int N = N_, K = K_, Rows = Rows_, Dim = Dim_, SPLITS = SPLITS_, D = D_, PARTS = PARTS_;
  static constexpr bool NORM = NORM_ != 0, BIAS = BIAS_ != 0;
  static constexpr unsigned EPS = EPS_;
  static constexpr bool gated = EPILOGUE_ == Epilogue::silu_mul, residual = EPILOGUE_ == Epilogue::residual;
  static constexpr int streams = gated ? 2 : 1;  // weight rows behind one output
  static constexpr int run = 64;  // elements of a weight row that one warp multiplies at a time: 128 bytes
  static constexpr bool matrix = same<T, bf16> && K % run == 0 && (SPLITS == 0 || D % 8 == 0);

  // Elements [k, k + 8) of activation row b as bf16, its splits merged; rows that are not live are the caller's matter.
  template <class S>
  static MPK_FN uint4 activations(const WorkContext<S>& c, int b, int k) {
    if constexpr (SPLITS == 0 && by_words<S>) {
      return ptx::load_relaxed((const uint4*)(c.template data<bf16>(0) + long(b) * K + k));
    } else if constexpr (SPLITS == 0) {
      return load_eight(c.template data<bf16>(0) + long(b) * K + k);
    } else {
      long head = long(b) * (K / D) + k / D;
      float x[8];
      merge_head<D, SPLITS>(c.template data<float>(6) + head * SPLITS * 2,
                            c.template data<TP>(0) + head * SPLITS * D + k % D, x);
      return make_uint4(ptx::pack_bf16(x[0], x[1]), ptx::pack_bf16(x[2], x[3]), ptx::pack_bf16(x[4], x[5]),
                        ptx::pack_bf16(x[6], x[7]));
    }
  }
  // Eight elements of the norm's weight, which no task writes.
  template <class S>
  static MPK_FN uint4 gains(const WorkContext<S>& c, int k) {
    return ptx::load_constant((const uint4*)(c.template data<bf16>(3) + k));
  }
  static MPK_FN float squares(const uint4& x) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(element(x, i), element(x, i), sum);
    return sum;
  }
  static MPK_FN uint4 times(const uint4& x, const uint4& gain) {
    return make_uint4(times(x.x, gain.x), times(x.y, gain.y), times(x.z, gain.z), times(x.w, gain.w));
  }
  static MPK_FN u32 times(u32 x, u32 gain) { return ptx::multiply_pairs(x, gain); }
  static MPK_FN float norm_scale(float sum_of_squares) { return inverse_root(sum_of_squares / float(K), EPS); }

  // Stores output n of row b from the sums of its weight rows; the norm's scale is already in them. Returns what is
  // compared for the argmax, which is what was stored.
  template <class S>
  static MPK_FN float finish(const WorkContext<S>& c, int b, int n, float y, float up, float added) {
    TO stored = outcome(c, n, y, up, added);
    c.template data<TO>(2)[long(b) * N + n] = stored;
    return widen(stored);
  }
  template <class S>
  static MPK_FN TO outcome(const WorkContext<S>& c, int n, float y, float up, float added) {
    if constexpr (BIAS) y += widen(*c.template row<T>(5, n, 1));
    if constexpr (gated) {
      if constexpr (BIAS) up += widen(*c.template row<T>(5, N + n, 1));
      y = silu(y) * up;
    }
    if constexpr (residual) y += added;
    return narrow<TO>(y);
  }
  template <class S>
  static MPK_FN float residual_of(const WorkContext<S>& c, int b, int n) {
    if constexpr (residual)
      return widen(load_one(c.template data<T>(4) + long(b) * N + n));
    else
      return 0.0f;
  }
  template <class S>
  static MPK_FN void write_best(const WorkContext<S>& c, int b, const Best& best) {
    long at = long(b) * PARTS + c.task().tile[2];
    c.template data<float>(7)[at] = best.value;
    c.template data<int>(8)[at] = best.index;
  }
};

}  // namespace mpk::ops
