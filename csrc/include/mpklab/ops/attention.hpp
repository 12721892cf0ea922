// attention: one KV head's queries over one split of its cache, with q/k norm, rope and the append fused in.
#pragma once

#include "mpklab/context.h"
#include "mpklab/host/vector.hpp"

#pragma GCC visibility push(hidden)

namespace mpk::ops {

// Operands: 0 q, 1 k, 2 v (rows of QS, KS, VS elements; heads from QOFF, KOFF, VOFF), 3 q_norm T[D], 4 k_norm T[D],
// 5 rope f32[C,D], 6 k_cache T[B,HKV,C,D], 7 v_cache T[B,HKV,C,D], 8 position i32[B], 9 out T[B,HQ*D] or partial
// TP[B,HQ,SPLITS,D], 10 stats f32[B,HQ,SPLITS,2]. Tile: batch, kv_head, split. The split that holds the position
// appends its row first and then reads it back, so that what is attended to is what is cached. With EVERY, the columns
// of one KV head's q, k and v begin EVERY after the last one's. ROWS_FIRST: the caches are stored as [B,C,HKV,D].
template <class T, int HQ, int HKV, int D, int C, int SPLITS, int QOFF, int KOFF, int VOFF, int QS, int KS, int VS,
          int QKNORM, unsigned EPS, class TP, int Rows, int Dim, int EVERY = 0, bool ROWS_FIRST = false>
struct Attention {
  static constexpr int group = HQ / HKV;
  static constexpr long step = ROWS_FIRST ? HKV * D : D;  // from one row of a head's cache to the next
  static constexpr int query_step = EVERY ? EVERY : group * D, key_step = EVERY ? EVERY : D;
  static constexpr int chunks = (D + lanes - 1) / lanes;
  static constexpr int block = 64;  // cache rows between two rescalings
  static constexpr int padded = chunks * lanes;
  static constexpr unsigned scratch_bytes = unsigned(group) * (2 * padded + block) * 4;

  static void compute(const Context& c) {
    int b = c.task.tile[0], kv = c.task.tile[1], split = c.task.tile[2];
    if (b >= c.rows(Dim, Rows)) return;
    float* query = (float*)c.scratch;       // [group][padded]
    float* sums = query + group * padded;   // [group][padded], the values so far
    float* scores = sums + group * padded;  // [group][block]
    float most[group], total[group];
    for (int g = 0; g < group; ++g) most[g] = -infinity, total[g] = 0.0f;
    for (int i = 0; i < group * padded; ++i) sums[i] = 0.0f;

    long position = c.data<int>(8)[b];
    bool valid = position >= 0 && position < C;
    int begin = valid ? int((position + 1) * split / SPLITS) : 0;
    int end = valid ? int((position + 1) * (split + 1) / SPLITS) : 0;
    if (begin < end) {
      long head = (long)b * HKV * C * D + kv * (ROWS_FIRST ? D : (long)C * D);
      T *keys = c.data<T>(6) + head, *values = c.data<T>(7) + head;
      const float* rope = c.data<float>(5) + position * D;
      for (int g = 0; g < group; ++g) {
        float* q = query + g * padded;
        rotated(c.data<T>(0) + (long)b * QS + QOFF + kv * query_step + g * D, QKNORM ? c.data<T>(3) : nullptr, rope, q);
        for (int i = 0; i < D; ++i) q[i] *= root;
      }
      if (end == position + 1) append(c, b, kv, rope, keys + position * step, values + position * step);
      for (int at = begin; at < end; at += block) {
        int n = end - at < block ? end - at : block;
        score(query, keys + at * step, values + at * step, n, scores);
        for (int g = 0; g < group; ++g) soften(scores + g * block, n, most[g], total[g], sums + g * padded);
        add_values(scores, values + at * step, n, sums);
      }
    }
    for (int g = 0; g < group; ++g) {
      long head = (long)b * HQ + kv * group + g;
      // No rows: nothing to add to the merge. No valid position: NaN, so that nobody takes it for a result.
      float scale = begin < end ? 1.0f / total[g] : valid ? 0.0f : __builtin_nanf("");
      if constexpr (SPLITS == 1) {
        write(c.data<T>(9) + head * D, sums + g * padded, scale);
      } else {
        write(c.data<TP>(9) + (head * SPLITS + split) * D, sums + g * padded, scale);
        float* stats = c.data<float>(10) + (head * SPLITS + split) * 2;
        stats[0] = most[g];
        stats[1] = valid ? total[g] : __builtin_nanf("");
      }
    }
  }

 private:
  static constexpr double root_of(double x) {
    double r = x;
    for (int i = 0; i < 64; ++i) r = 0.5 * (r + x / r);
    return r;
  }
  static constexpr float root = float(1.0 / root_of(D));

  // A head after its norm and the rotation of its halves; the padding is zero.
  static void rotated(const T* x, const T* norm, const float* rope, float* out) {
    float h[D], squares = 0.0f;
    for (int i = 0; i < D; ++i) h[i] = widen(x[i]);
    if constexpr (QKNORM) {
      Floats sum_of_squares{};
      for (int i = 0; i < D; i += lanes) {
        Floats v = load(h + i, D - i);
        sum_of_squares = v * v + sum_of_squares;
      }
      squares = inverse_root(sum(sum_of_squares) / float(D), EPS);
      for (int i = 0; i < D; ++i) h[i] = h[i] * squares * widen(norm[i]);
    }
    for (int i = 0; i < D / 2; ++i) {
      float cosine = rope[i], sine = rope[D / 2 + i], low = h[i], high = h[D / 2 + i];
      out[i] = low * cosine - high * sine;
      out[D / 2 + i] = high * cosine + low * sine;
    }
    for (int i = D; i < padded; ++i) out[i] = 0.0f;
  }

  static void append(const Context& c, int b, int kv, const float* rope, T* key, T* value) {
    float k[padded];
    rotated(c.data<T>(1) + (long)b * KS + KOFF + kv * key_step, QKNORM ? c.data<T>(4) : nullptr, rope, k);
    const T* v = c.data<T>(2) + (long)b * VS + VOFF + kv * key_step;
    for (int i = 0; i < D; ++i) key[i] = narrow<T>(k[i]), value[i] = v[i];
  }

  // The rows of one block are read one after the other; the values they belong to, and the next block's keys, are on
  // their way meanwhile.
  static void score(const float* query, const T* keys, const T* values, int n, float* scores) {
    for (int j = 0; j < n; j += lanes) {
      Floats products[group][lanes] = {};
      for (int r = 0; r < lanes && j + r < n; ++r) {
        const T* key = keys + (j + r) * step;
        for (int i = 0; i < D * int(sizeof(T)); i += 64) {
          __builtin_prefetch((const char*)(key + block * step) + i);
          __builtin_prefetch((const char*)(values + (j + r) * step) + i);
        }
        for (int i = 0; i < chunks; ++i) {
          Floats k = load(key + i * lanes, D - i * lanes);
          for (int g = 0; g < group; ++g) products[g][r] = load(query + g * padded + i * lanes) * k + products[g][r];
        }
      }
      for (int g = 0; g < group; ++g) store(scores + g * block + j, sums(products[g]));
    }
  }

  // Scores to exponentials under the running maximum; what was summed before is brought to the new one.
  static void soften(float* scores, int n, float& most, float& total, float* sums) {
    for (int j = n; j < round_up(n, lanes); ++j) scores[j] = -infinity;
    Floats highest = splat(most);
    for (int j = 0; j < n; j += lanes) highest = max(load(scores + j), highest);
    float now = largest(highest);
    float shrink = exp(most - now);
    most = now;
    Floats added{};
    for (int j = 0; j < n; j += lanes) {
      Floats e = exp(load(scores + j) - now);
      store(scores + j, e);
      added = added + e;
    }
    total = total * shrink + sum(added);
    for (int i = 0; i < padded; i += lanes) store(sums + i, load(sums + i) * shrink);
  }

  static void add_values(const float* scores, const T* values, int n, float* sums) {
    for (int i = 0; i < chunks; ++i) {
      Floats s[group];
      for (int g = 0; g < group; ++g) s[g] = load(sums + g * padded + i * lanes);
      for (int j = 0; j < n; ++j) {
        Floats v = load(values + j * step + i * lanes, D - i * lanes);
        for (int g = 0; g < group; ++g) s[g] = v * scores[g * block + j] + s[g];
      }
      for (int g = 0; g < group; ++g) store(sums + g * padded + i * lanes, s[g]);
    }
  }

  template <class O>
  static void write(O* out, const float* sums, float scale) {
    for (int i = 0; i < D; i += lanes) store(out + i, load(sums + i) * scale, D - i);
  }
};

}  // namespace mpk::ops

#pragma GCC visibility pop
