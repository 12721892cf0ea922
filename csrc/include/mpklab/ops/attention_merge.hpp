// attention_merge: the splits of one attention head, weighted by their sums of exponentials.
#pragma once

#include "mpklab/context.h"
#include "mpklab/host/vector.hpp"

#pragma GCC visibility push(hidden)

namespace mpk::ops {

// The share of each split of one head in the whole; stats holds (largest score, sum of exponentials) per split.
template <int SPLITS>
inline void merge_weights(const float* stats, float* weight) {
  float most = stats[0], total = 0.0f;
  for (int s = 1; s < SPLITS; ++s) most = stats[2 * s] > most ? stats[2 * s] : most;
  for (int s = 0; s < SPLITS; ++s) {
    weight[s] = stats[2 * s + 1] == 0.0f ? 0.0f : exp(stats[2 * s] - most) * stats[2 * s + 1];
    total += weight[s];
  }
  for (int s = 0; s < SPLITS; ++s) weight[s] /= total;
}

// Elements [i, i + n) of a merged head.
template <int D, int SPLITS, class TP>
MPK_INLINE Floats merged(const TP* partial, const float* weight, int i, int n) {
  Floats x{};
  for (int s = 0; s < SPLITS; ++s) x = load(partial + s * D + i, n) * weight[s] + x;
  return x;
}

// Operands: partial TP[B,HQ,SPLITS,D], stats f32[B,HQ,SPLITS,2], out T[B,HQ*D]. Tile: batch, heads [begin, end).
template <class T, int HQ, int D, int SPLITS, class TP, int Rows, int Dim>
struct AttentionMerge {
  static constexpr unsigned scratch_bytes = 0;

  static void compute(const Context& c) {
    int b = c.task.tile[0];
    if (b >= c.rows(Dim, Rows)) return;
    for (int h = c.task.tile[1]; h < c.task.tile[2]; ++h) {
      long head = (long)b * HQ + h;
      const TP* partial = c.data<TP>(0) + head * SPLITS * D;
      float weight[SPLITS];
      merge_weights<SPLITS>(c.data<float>(1) + head * SPLITS * 2, weight);
      T* out = c.data<T>(2) + head * D;
      for (int i = 0; i < D; i += lanes) store(out + i, merged<D, SPLITS>(partial, weight, i, D - i), D - i);
    }
  }
};

}  // namespace mpk::ops

#pragma GCC visibility pop
