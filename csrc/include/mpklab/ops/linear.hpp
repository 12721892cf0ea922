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

  // The weight row that `compute` reads as number `piece`.
  static unsigned prefetch(const Context& c, unsigned piece) {
    int row = int(piece), begin = c.task.tile[0], end = c.task.tile[1];
    bool second = false;
    if constexpr (gated) {
      int first = row / (2 * lanes) * lanes, width = end - begin - first < lanes ? end - begin - first : lanes;
      int within = row - 2 * first;
      if (width <= 0 || within >= 2 * width) return 0;
      second = within >= width;
      row = first + within % width;
    }
    if (begin + row >= end) return 0;
    const char* at = (const char*)c.row<T>(1, begin + row + (second ? N : 0), K);
    for (unsigned i = 0; i < K * sizeof(T); i += 64) __builtin_prefetch(at + i, 0, 2);
    return K * sizeof(T);
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

  // A row has this many pairs of running sums, so that one addition need not wait for the last. Out-of-order execution
  // overlaps rows too, and the wider the vectors, the fewer sums are needed to keep up with the memory.
  static constexpr int chains = 16 / lanes;
  // Rows of x, and of the weights, that are multiplied at a time once there are enough rows of x.
  static constexpr int batch = lanes == 16 && Rows >= 4 ? 4 : Rows >= 2 ? 2 : 1;
  static constexpr int pair = lanes == 16 ? 2 : 1;
  // One row after the other is a plain stream: begin to read it this far ahead.
  static constexpr int ahead_bytes = 8192;

  // Weight rows [n, n + count) times every live row. The weights are read from memory once, in order.
  static void multiply(const Context& c, int n, int count, const float* x, int rows, float (*y)[lanes]) {
    if (rows > Rows) __builtin_unreachable();
    Floats partial[Rows][lanes];
    int i = 0;
    if constexpr (Rows > 1)
      if (rows >= batch)
        for (; i + pair <= count; i += pair) multiply_rows<pair, batch>(c, n + i, x, rows, partial, i);
    for (; i < count; ++i) multiply_rows<1, batch>(c, n + i, x, rows, partial, i);
    for (int b = 0; b < rows; ++b) {
      for (i = count; i < lanes; ++i) partial[b][i] = Floats{};
      store(y[b], sums(partial[b]));
    }
  }

  template <int R, int B>
  static MPK_INLINE void multiply_rows(const Context& c, int n, const float* x, int rows, Floats (*partial)[lanes],
                                       int at) {
    const T* w[R];
    for (int r = 0; r < R; ++r) w[r] = c.row<T>(1, n + r, K);
    int b = 0;
    for (; b + B <= rows; b += B) dots<R, B>(w, x + b * padded, partial + b, at);
    if constexpr (B > 1)
      for (; b < rows; ++b) dots<R, 1>(w, x + b * padded, partial + b, at);
  }

  template <int R, int B>
  static MPK_INLINE void dots(const T* const (&w)[R], const float* x, Floats (*partial)[lanes], int at) {
    Floats sum[R][B][2 * chains] = {};
    constexpr int unit = chains * pair_lanes, whole = K / unit * unit;
    for (int k = 0; k < whole; k += unit) {
#pragma GCC unroll 4
      for (int i = 0; i < chains; ++i) block(w, x, k + i * pair_lanes, pair_lanes, i, sum);
    }
#pragma GCC unroll 4
    for (int i = 0; i < chains; ++i)
      if (int k = whole + i * pair_lanes; k < K) block(w, x, k, K - k, i, sum);
    for (int r = 0; r < R; ++r)
      for (int b = 0; b < B; ++b) {
        for (int i = 2; i < 2 * chains; ++i) sum[r][b][i % 2] = sum[r][b][i % 2] + sum[r][b][i];
        partial[b][at + r] = sum[r][b][0] + sum[r][b][1];
      }
  }

  template <int R, int B>
  static MPK_INLINE void block(const T* const (&w)[R], const float* x, int k, int n, int chain,
                               Floats (&sum)[R][B][2 * chains]) {
    Floats a[R], z[R];
    for (int r = 0; r < R; ++r) {
      split(w[r] + k, a[r], z[r], n);
      __builtin_prefetch((const char*)(w[r] + k) + ahead_bytes, 0, 0);
    }
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
      Floats first = load(x + b * padded + k), second = load(x + b * padded + k + lanes);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        sum[r][b][2 * chain] = a[r] * first + sum[r][b][2 * chain];
        sum[r][b][2 * chain + 1] = z[r] * second + sum[r][b][2 * chain + 1];
      }
    }
  }
};

}  // namespace mpk::ops

#pragma GCC visibility pop
