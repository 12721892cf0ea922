// linear for what the other two cannot do (float32, odd sizes, many rows): correct, in a fixed order, and slow.
#pragma once

#include "mpklab/ops/linear_traits.cuh"

namespace mpk::ops {

// One warp a weight row, weights straight from global memory.
template <class L, class S>
struct LinearPlain : Plain {
  using T = typename L::T;
  static constexpr int scratch_bytes = L::Rows * (4 + (L::PARTS > 0 ? S::warps * int(sizeof(Best)) : 0));

  MPK_FN void compute(WorkContext<S>& c) {
    int begin = c.task().tile[0], end = c.task().tile[1], live = c.rows(L::Dim, L::Rows);
    float* scales = (float*)c.scratch;
    Best* bests = (Best*)(scales + L::Rows);
    for (int b = c.warp(); b < live; b += S::warps) {
      float squares = 0.0f;
      if constexpr (L::NORM)
        for (int k = c.lane(); k < L::K; k += 32) squares += activation(c, b, k) * activation(c, b, k);
      squares = lane_sum(squares);
      if (c.lane() == 0) {
        scales[b] = L::NORM ? L::norm_scale(squares) : 1.0f;
        if constexpr (L::PARTS > 0)
          for (int w = 0; w < S::warps; ++w) bests[w * L::Rows + b] = Best::none();
      }
    }
    c.sync();
    for (int n = begin + c.warp(); n < end; n += S::warps)
      for (int b = 0; b < live; ++b) {
        float y = row_sum(c, b, n) * scales[b], up = 0.0f;
        if constexpr (L::gated) up = row_sum(c, b, L::N + n) * scales[b];
        if (c.lane() != 0) continue;
        float value = L::finish(c, b, n, y, up, L::residual_of(c, b, n));
        if constexpr (L::PARTS > 0) bests[c.warp() * L::Rows + b].see(value, n);
      }
    if constexpr (L::PARTS > 0) {
      c.sync();
      for (int b = c.thread(); b < live; b += S::threads) {
        Best best = bests[b];
        for (int w = 1; w < S::warps; ++w) best.see(bests[w * L::Rows + b].value, bests[w * L::Rows + b].index);
        L::write_best(c, b, best);
      }
    }
  }

 private:
  static MPK_FN float activation(WorkContext<S>& c, int b, int k) {
    if constexpr (L::SPLITS == 0) {
      return widen(load_one(c.template data<T>(0) + long(b) * L::K + k));
    } else {
      long head = long(b) * (L::K / L::D) + k / L::D;
      uint2 stats[L::SPLITS];
      float weight[L::SPLITS], x = 0.0f;
#pragma unroll
      for (int s = 0; s < L::SPLITS; ++s)
        stats[s] = ptx::load_shared_by_all((const uint2*)c.template data<float>(6) + head * L::SPLITS + s);
      merge_weights<L::SPLITS>(stats, weight);
#pragma unroll
      for (int s = 0; s < L::SPLITS; ++s)
        x += weight[s] * widen(load_one(c.template data<typename L::TP>(0) + (head * L::SPLITS + s) * L::D + k % L::D));
      return x;
    }
  }
  static MPK_FN float row_sum(WorkContext<S>& c, int b, int n) {
    const T* weights = c.template row<T>(1, n, L::K);
    const T* gains = c.template data<T>(3);
    float sum = 0.0f;
    for (int k = c.lane(); k < L::K; k += 32) {
      float x = activation(c, b, k);
      if constexpr (L::NORM) x *= widen(gains[k]);
      sum = fmaf(widen(weights[k]), x, sum);
    }
    return lane_sum(sum);
  }
};

}  // namespace mpk::ops
