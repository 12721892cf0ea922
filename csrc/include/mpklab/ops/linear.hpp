// linear: rows of a weight matrix times the activations, with what comes before and after fused in.
#pragma once

#include "mpklab/context.h"
#include "mpklab/host/vector.hpp"
#include "mpklab/ops/attention_merge.hpp"

#pragma GCC visibility push(hidden)

namespace mpk::ops {

// Operands: 0 x T[B,K] or partial TP[B,HQ,SPLITS,D], 1 weight T[N or 2N,K], 2 out TO[B,N], 3 norm_weight T[K],
// 4 residual T[B,N], 5 bias T[N or 2N], 6 stats f32[B,HQ,SPLITS,2], 7 value f32[B,P], 8 index i32[B,P]; 3 to 8 only
// where the variant has them. Tile: weight rows [begin, end), part. A row's sum is made in one order whatever the tile,
// so every split of the rows gives the same bits.
template <class T, class TO, int N, int K, int Rows, int Dim, int NORM, unsigned EPS, Epilogue EPILOGUE, int BIAS,
          int SPLITS, int D, class TP, int PARTS>
struct Linear {
  static constexpr int padded = round_up(K, pair_lanes);
  static constexpr bool gated = EPILOGUE == Epilogue::silu_mul;
  static constexpr unsigned scratch_bytes = unsigned(Rows) * padded * 4;

  static void compute(const Context& c) {
    int begin = c.task.tile[0], end = c.task.tile[1], rows = c.rows(Dim, Rows);
    if (rows <= 0) return;
    float* x = (float*)c.scratch;
    for (int b = 0; b < rows; ++b) gather(c, b, x + b * padded);

    Best best[PARTS > 0 ? Rows : 1];
    for (int n = begin; n < end; n += lanes) {
      int count = end - n < lanes ? end - n : lanes;
      alignas(64) float sums[Rows][lanes] = {}, ups[gated ? Rows : 1][lanes] = {};
      multiply(c, n, count, x, rows, sums);
      if constexpr (gated) multiply(c, N + n, count, x, rows, ups);
      for (int b = 0; b < rows; ++b) {
        Floats y = load(sums[b]);
        if constexpr (BIAS) y = y + bias(c, n, count);
        if constexpr (gated) {
          Floats up = load(ups[b]);
          if constexpr (BIAS) up = up + bias(c, N + n, count);
          y = silu(y) * up;
        }
        if constexpr (EPILOGUE == Epilogue::residual) y = y + load(c.data<T>(4) + (long)b * N + n, count);
        TO* out = c.data<TO>(2) + (long)b * N + n;
        store(out, y, count);
        // What is compared is what was stored.
        if constexpr (PARTS > 0) best[b].see(load(out, count), n, count);
      }
    }
    if constexpr (PARTS > 0) {
      int part = c.task.tile[2];
      for (int b = 0; b < rows; ++b)
        best[b].result(c.data<float>(7)[b * PARTS + part], c.data<int>(8)[b * PARTS + part]);
    }
  }

 private:
  // One row of activations as float32, packed like the weights, normalised if asked.
  static void gather(const Context& c, int b, float* x) {
    if constexpr (SPLITS > 0) {
      for (int h = 0; h < K / D; ++h) {
        long head = (long)b * (K / D) + h;
        float weight[SPLITS], natural[lanes];
        merge_weights<SPLITS>(c.data<float>(6) + head * SPLITS * 2, weight);
        for (int i = 0; i < D; i += lanes) {
          store(natural, merged<D, SPLITS>(c.data<TP>(0) + head * SPLITS * D, weight, i, D - i));
          for (int j = 0; j < lanes && i + j < D; ++j) x[packed_index<T>(h * D + i + j)] = natural[j];
        }
      }
      for (int i = K; i < padded; ++i) x[packed_index<T>(i)] = 0.0f;
    } else {
      const T* from = c.data<T>(0) + (long)b * K;
      for (int i = 0; i < K; i += pair_lanes) {
        Floats first, second;
        split(from + i, first, second, K - i);
        store(x + i, first);
        store(x + i + lanes, second);
      }
    }
    if constexpr (NORM) {
      Floats first{}, second{};
      for (int i = 0; i < padded; i += pair_lanes) {
        Floats a = load(x + i), z = load(x + i + lanes);
        first = a * a + first;
        second = z * z + second;
      }
      float scale = inverse_root(sum(first + second) / float(K), EPS);
      const T* weight = c.data<T>(3);
      for (int i = 0; i < K; i += pair_lanes) {
        Floats wa, wz;
        split(weight + i, wa, wz, K - i);
        store(x + i, load(x + i) * scale * wa);
        store(x + i + lanes, load(x + i + lanes) * scale * wz);
      }
    }
  }

  static MPK_INLINE Floats bias(const Context& c, int n, int count) {
    float v[lanes] = {};
    for (int i = 0; i < count; ++i) v[i] = widen(*c.row<T>(5, n + i, 1));
    return load(v);
  }

  // Weight rows [n, n + count) times every live row. Four weight rows at a time, read from memory once.
  static void multiply(const Context& c, int n, int count, const float* x, int rows, float (*sums)[lanes]) {
    int i = 0;
    for (; i + 4 <= count; i += 4) multiply_rows<4>(c, n + i, x, rows, sums, i);
    for (; i < count; ++i) multiply_rows<1>(c, n + i, x, rows, sums, i);
  }

  template <int R>
  static MPK_INLINE void multiply_rows(const Context& c, int n, const float* x, int rows, float (*sums)[lanes],
                                       int at) {
    const T* w[R];
    for (int r = 0; r < R; ++r) w[r] = c.row<T>(1, n + r, K);
    int b = 0;
    if constexpr (Rows >= 4)
      for (; b + 4 <= rows; b += 4) dots<R, 4>(w, x + b * padded, sums + b, at);
    for (; b < rows; ++b) dots<R, 1>(w, x + b * padded, sums + b, at);
  }

  template <int R, int B>
  static MPK_INLINE void dots(const T* const (&w)[R], const float* x, float (*sums)[lanes], int at) {
    Floats first[R][B] = {}, second[R][B] = {};
    constexpr int whole = K / pair_lanes * pair_lanes;
    for (int k = 0; k < whole; k += pair_lanes) block<R, B>(w, x, k, pair_lanes, first, second);
    if constexpr (whole < K) block<R, B>(w, x, whole, K - whole, first, second);
    for (int r = 0; r < R; ++r)
      for (int b = 0; b < B; ++b) sums[b][at + r] = sum(first[r][b] + second[r][b]);
  }

  template <int R, int B>
  static MPK_INLINE void block(const T* const (&w)[R], const float* x, int k, int n, Floats (&first)[R][B],
                               Floats (&second)[R][B]) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      Floats a, z;
      split(w[r] + k, a, z, n);
#pragma GCC unroll 4
      for (int b = 0; b < B; ++b) {
        first[r][b] = a * load(x + b * padded + k) + first[r][b];
        second[r][b] = z * load(x + b * padded + k + lanes) + second[r][b];
      }
    }
  }
};

}  // namespace mpk::ops

#pragma GCC visibility pop
