// attention_merge: the splits of one attention head, weighted by their sums of exponentials.
#pragma once

#include "mpklab/device/worker.cuh"

namespace mpk::ops {

// The share of each split of one head in the whole, from (largest score, sum of exponentials) per split.
template <int SPLITS>
MPK_FN void merge_weights(const uint2 (&stats)[SPLITS], float (&weight)[SPLITS]) {
  float most = -infinity(), total = 0.0f;
#pragma unroll
  for (int s = 0; s < SPLITS; ++s) most = fmaxf(most, __uint_as_float(stats[s].x));
#pragma unroll
  for (int s = 0; s < SPLITS; ++s) {
    float sum = __uint_as_float(stats[s].y);
    // Not a product with zero: an empty split's largest score is -inf, and a NaN must stay one.
    weight[s] = sum == 0.0f ? 0.0f : ptx::exp2((__uint_as_float(stats[s].x) - most) * 1.44269504f) * sum;
    total += weight[s];
  }
#pragma unroll
  for (int s = 0; s < SPLITS; ++s) weight[s] /= total;
}

template <int D, int SPLITS, int Ahead, class TP>
MPK_FN void load_splits(const TP* partial, int from, uint4 (&words)[Ahead][sizeof(TP) / 2]) {
#pragma unroll
  for (int j = 0; j < Ahead; ++j)
    if (from + j < SPLITS)
#pragma unroll
      for (int h = 0; h < int(sizeof(TP)) / 2; ++h)
        words[j][h] = ptx::load_shared_by_all((const uint4*)(partial + (from + j) * D) + h);
}

// Eight neighbours of a merged head; `partial` is where they lie in the first split. Everything is asked for before
// anything is used: a trip to the L2 costs more than all the arithmetic.
template <int D, int SPLITS, class TP>
MPK_FN void merge_head(const float* stats, const TP* partial, float (&x)[8]) {
  constexpr int words = sizeof(TP) / 2;               // uint4 behind eight elements
  constexpr int ahead = smaller(SPLITS, 16 / words);  // splits in flight
  uint2 pairs[SPLITS];
  uint4 first[ahead][words];
#pragma unroll
  for (int s = 0; s < SPLITS; ++s) pairs[s] = ptx::load_shared_by_all((const uint2*)stats + s);
  load_splits<D, SPLITS, ahead>(partial, 0, first);
  float weight[SPLITS];
  merge_weights<SPLITS>(pairs, weight);
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = 0.0f;
#pragma unroll
  for (int s = 0; s < SPLITS; s += ahead) {
    if (s > 0) load_splits<D, SPLITS, ahead>(partial, s, first);
#pragma unroll
    for (int j = 0; j < ahead; ++j)
      if (s + j < SPLITS) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          float v;
          if constexpr (sizeof(TP) == 2) {
            v = element(first[j][0], i);
          } else {
            const uint4& w = first[j][i / 4];
            v = __uint_as_float(i % 4 == 0 ? w.x : i % 4 == 1 ? w.y : i % 4 == 2 ? w.z : w.w);
          }
          x[i] = fmaf(v, weight[s + j], x[i]);
        }
      }
  }
}

// Operands: partial TP[B,HQ,SPLITS,D], stats f32[B,HQ,SPLITS,2], out T[B,HQ*D]. Tile: batch, heads [begin, end).
template <class T, int HQ, int D, int SPLITS, class TP, int Rows, int Dim>
struct AttentionMerge {
  template <class S>
  static constexpr int scratch_bytes = 0;
  template <class S>
  static constexpr bool loads = false;
  static_assert(D % 8 == 0, "heads are read eight elements at a time");

  template <class S>
  struct Work : Plain {
    MPK_FN void compute(WorkContext<S>& c) {
      int b = c.task().tile[0], first = c.task().tile[1], heads = c.task().tile[2] - first;
      if (b >= c.rows(Dim, Rows)) return;
      for (int i = c.thread(); i < heads * (D / 8); i += S::threads) {
        long head = long(b) * HQ + first + i / (D / 8);
        int d = i % (D / 8) * 8;
        float x[8];
        merge_head<D, SPLITS>(c.template data<float>(1) + head * SPLITS * 2,
                              c.template data<TP>(0) + head * SPLITS * D + d, x);
        T* out = c.template data<T>(2) + head * D + d;
#pragma unroll
        for (int e = 0; e < 8; ++e) out[e] = narrow<T>(x[e]);
      }
    }
  };
};

}  // namespace mpk::ops
