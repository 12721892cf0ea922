// attention: one KV head's queries over one split of its cache, with q/k norm, rope and the append fused in.
#pragma once

#include "mpklab/device/worker.cuh"

namespace mpk::ops {

// Operands: 0 q, 1 k, 2 v (rows of QS, KS, VS elements; heads from QOFF, KOFF, VOFF), 3 q_norm T[D], 4 k_norm T[D],
// 5 rope f32[C,D], 6 k_cache T[B,HKV,C,D], 7 v_cache T[B,HKV,C,D], 8 position i32[B], 9 out T[B,HQ*D] or partial
// TP[B,HQ,SPLITS,D], 10 stats f32[B,HQ,SPLITS,2]. Tile: batch, kv_head, split. The last split holds the position: it
// appends that row, and attends to it as it was rounded for the cache. Rows below the position come through the ring,
// keys in the first half of a page and values in the second. With EVERY, the columns of one KV head's q, k and v begin
// EVERY after the last one's. ROWS_FIRST: the caches are stored as [B,C,HKV,D].
template <class T, int HQ, int HKV, int D, int C, int SPLITS, int QOFF, int KOFF, int VOFF, int QS, int KS, int VS,
          int QKNORM, unsigned EPS, class TP, int Rows, int Dim, int EVERY = 0, bool ROWS_FIRST = false>
struct Attention {
  static constexpr int group = HQ / HKV;
  static constexpr long step = ROWS_FIRST ? HKV * D : D;  // from one row of a head's cache to the next
  static constexpr int query_step = EVERY ? EVERY : group * D, key_step = EVERY ? EVERY : D;
  static MPK_FN long head_at(int b, int kv) { return long(b) * HKV * C * D + kv * (ROWS_FIRST ? D : long(C) * D); }
  // Tensor cores want 16-bit rows and at most 8 heads; anything else is computed element by element.
  static constexpr bool matrix = same<T, bf16> && D % 32 == 0 && group <= 8;
  template <class S>
  static constexpr int page_rows = S::page_bytes / (4 * D) / 32 * 32;
  template <class S>
  static constexpr bool streamed = matrix&& page_rows<S> >= 32;
  template <class S>
  static constexpr int score_stride = page_rows<S> + 8;  // so that the heads' scores start in different banks

  template <class S>
  static constexpr int scratch_bytes = streamed<S> ? (8 + 2) * D * 2 + 2 * 8 * score_stride<S> * 4 + 8 * 4
                                                   : (group + 2) * D * 4 + group * 32 * 4 + group* D * 4;
  template <class S>
  static constexpr bool loads = streamed<S>;

  struct Span {
    int begin, end, position;  // cache rows of the split; a position outside the cache gives none
    bool valid;
  };
  static MPK_FN Span span_of(int position, int split) {
    bool valid = position >= 0 && position < C;
    long rows = valid ? position + 1 : 0;
    return {int(rows * split / SPLITS), int(rows * (split + 1) / SPLITS), position, valid};
  }

  template <class S>
  static MPK_FN void load(LoadContext<S>& c) {
    if (!c.acquire()) return;
    int b = c.task().tile[0];
    if (b >= c.rows(Dim, Rows)) return;
    if (!c.wait_for_operands()) return;
    Span span = span_of(c.position(8, b), c.task().tile[2]);
    long head = head_at(b, c.task().tile[1]);
    const T *keys = c.template data<T>(6) + head, *values = c.template data<T>(7) + head;
    int end = min(span.end, span.position);
    for (int r = span.begin; r < end; r += page_rows<S>) {
      u32 rows = u32(min(page_rows<S>, end - r)), bytes = rows * D * 2;
      char* page = c.begin_page(2 * bytes);
      if (!page) return;
      if constexpr (step == D) {
        c.copy(page, keys + r * step, bytes, c.rows_policy);
        c.copy(page + S::page_bytes / 2, values + r * step, bytes, c.rows_policy);
      } else {
        for (u32 i = u32(c.lane()); i < rows; i += 32) {
          c.copy_by_lane(page + i * D * 2, keys + (r + i) * step, D * 2, c.rows_policy);
          c.copy_by_lane(page + S::page_bytes / 2 + i * D * 2, values + (r + i) * step, D * 2, c.rows_policy);
        }
        __syncwarp();
      }
      c.end_page();
    }
  }

  // Which rows of the caches are read is known only with the step.
  template <class S>
  static MPK_FN Ahead ahead(const Descriptor&) {
    return {0, 0, 0, 0, S::ring_bytes};
  }

  // A head after its norm and the rotation of its halves, by one warp: lane l holds elements l, l + 32 … of each half.
  static constexpr int each = divide_up(D / 2, 32);
  struct Rotation {
    float cosine[each], sine[each], low_gain[each], high_gain[each];

    MPK_FN void read(const T* norm, const float* rope, int lane) {
#pragma unroll
      for (int i = 0; i < each; ++i) {
        int d = i * 32 + lane;
        cosine[i] = sine[i] = low_gain[i] = high_gain[i] = 0.0f;
        if (d >= D / 2) continue;
        cosine[i] = constant(rope + d), sine[i] = constant(rope + D / 2 + d);
        if constexpr (QKNORM) low_gain[i] = constant(norm + d), high_gain[i] = constant(norm + D / 2 + d);
      }
    }
    static MPK_FN float constant(const float* at) { return __uint_as_float(ptx::load_constant((const unsigned*)at)); }
    static MPK_FN float constant(const bf16* at) { return widen(bf16{ptx::load_constant((const u16*)at)}); }
  };
  static MPK_FN void rotate(const T* from, const Rotation& by, int lane, float (&low)[each], float (&high)[each]) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < each; ++i) {
      int d = i * 32 + lane;
      low[i] = high[i] = 0.0f;
      if (d < D / 2) low[i] = widen(load_one(from + d)), high[i] = widen(load_one(from + D / 2 + d));
      squares += low[i] * low[i] + high[i] * high[i];
    }
    if constexpr (QKNORM) {
      float scale = inverse_root(lane_sum(squares) / float(D), EPS);
#pragma unroll
      for (int i = 0; i < each; ++i) low[i] *= scale * by.low_gain[i], high[i] *= scale * by.high_gain[i];
    }
#pragma unroll
    for (int i = 0; i < each; ++i) {
      float l = low[i], h = high[i];
      low[i] = l * by.cosine[i] - h * by.sine[i];
      high[i] = h * by.cosine[i] + l * by.sine[i];
    }
  }

  static constexpr float log2e = 1.44269504f;
  static MPK_FN float root() { return rsqrtf(float(D)); }

  // What the first item of this warp needs and no task of this iteration writes.
  template <class S>
  static MPK_FN Rotation first_rotation(WorkContext<S>& c, const Span& span) {
    Rotation by{};
    if (span.begin < span.end && c.warp() <= group) by = rotation(c, span, c.warp() == group);
    return by;
  }
  template <class S>
  static MPK_FN Rotation rotation(WorkContext<S>& c, const Span& span, bool is_key) {
    Rotation by;
    by.read(QKNORM ? c.template data<T>(is_key ? 4 : 3) : nullptr, c.template data<float>(5) + long(span.position) * D,
            c.lane());
    return by;
  }

  // Queries, and in the last split the new row's key and value, into shared memory and the cache.
  template <class S, class X>
  static MPK_FN void make_rows(WorkContext<S>& c, const Span& span, const Rotation& first, X* query, X* key, X* value) {
    int b = c.task().tile[0], kv = c.task().tile[1], lane = c.lane();
    bool appends = span.end == span.position + 1 && span.valid;
    for (int item = c.warp(); item < group + (appends ? 2 : 0); item += S::warps) {
      long row = head_at(b, kv) + span.position * step;
      if (item == group + 1) {
        const T* from = c.template data<T>(2) + long(b) * VS + VOFF + kv * key_step;
        for (int d = lane; d < D; d += 32) {
          T v = load_one(from + d);
          value[d] = narrow<X>(widen(v));
          c.template data<T>(7)[row + d] = v;
        }
        continue;
      }
      bool is_key = item == group;
      const T* from = is_key ? c.template data<T>(1) + long(b) * KS + KOFF + kv * key_step
                             : c.template data<T>(0) + long(b) * QS + QOFF + kv * query_step + item * D;
      float low[each], high[each];
      if (group + 2 <= S::warps || item == c.warp())
        rotate(from, first, lane, low, high);
      else
        rotate(from, rotation(c, span, is_key), lane, low, high);
#pragma unroll
      for (int i = 0; i < each; ++i) {
        int d = i * 32 + lane;
        if (d >= D / 2) continue;
        X* to = is_key ? key : query + item * D;
        to[d] = narrow<X>(widen(narrow<T>(low[i]))), to[D / 2 + d] = narrow<X>(widen(narrow<T>(high[i])));
        if (is_key) {
          c.template data<T>(6)[row + d] = narrow<T>(low[i]);
          c.template data<T>(6)[row + D / 2 + d] = narrow<T>(high[i]);
        }
      }
    }
  }

  template <class S>
  static MPK_FN void write_stats(WorkContext<S>& c, const Span& span, int g, float most, float total) {
    if constexpr (SPLITS > 1) {
      long head = long(c.task().tile[0]) * HQ + c.task().tile[1] * group + g;
      float* stats = c.template data<float>(10) + (head * SPLITS + c.task().tile[2]) * 2;
      stats[0] = most;
      stats[1] = span.valid ? total : not_a_number();
    }
  }
  // No rows: nothing to add to the merge. No valid position: NaN, so that nobody takes it for a result.
  static MPK_FN float share(const Span& span, float total) {
    return span.begin < span.end ? 1.0f / total : span.valid ? 0.0f : not_a_number();
  }
  template <class S>
  static MPK_FN void write(WorkContext<S>& c, int g, int d, float x) {
    long head = long(c.task().tile[0]) * HQ + c.task().tile[1] * group + g;
    if constexpr (SPLITS == 1)
      c.template data<T>(9)[head * D + d] = narrow<T>(x);
    else
      c.template data<TP>(9)[(head * SPLITS + c.task().tile[2]) * D + d] = narrow<TP>(x);
  }

  // Scores as products queries × keysᵀ: a warp takes 8 cache rows at a time. Sums as weights × values: a warp takes 8
  // columns of the head. Scores cross from one to the other through shared memory, a page at a time.
  template <class S>
  struct Streamed {
    static constexpr int slices = divide_up(D / 8, S::warps);  // of 8 columns, per warp
    Span span;
    Rotation rotation_of_mine;

    // The step that this iteration began with wrote the position.
    MPK_FN void prepare(WorkContext<S>& c) {
      int b = c.task().tile[0];
      span = Span{0, 0, 0, true};
      if (b < c.rows(Dim, Rows)) span = span_of(load_one(c.template data<int>(8) + b), c.task().tile[2]);
      rotation_of_mine = first_rotation(c, span);
    }

    MPK_FN void gather(WorkContext<S>& c) {
      bf16* query = (bf16*)c.scratch;
      if (span.begin < span.end) make_rows(c, span, rotation_of_mine, query, query + 8 * D, query + 9 * D);
    }

    MPK_FN void compute(WorkContext<S>& c) {
      if (c.task().tile[0] >= c.rows(Dim, Rows)) return;
      int g = c.lane() / 4, t = c.lane() % 4;
      const bf16 *query = (const bf16*)c.scratch, *key = query + 8 * D, *value = key + D;
      float* scores = (float*)(c.scratch + 10 * D * 2);
      float* newest = scores + 2 * 8 * score_stride<S>;
      float most = -infinity(), total = 0.0f, sums[slices][4] = {};
      bool appends = span.end == span.position + 1 && span.begin < span.end;
      int end = min(span.end, span.position);
      c.sync();
      if (appends && c.warp() == S::warps - 1) {
        float s[4] = {};
        multiply_rows(s, query, key, g == 0, g, t);
        if (t == 0) newest[g] = s[0] * root() * log2e;
      }
      // Without a page there is no barrier below that shows the newest score to all.
      if (appends && span.begin >= end) {
        c.sync();
        start_with_newest(c, newest, value, most, total, sums);
      }
      int round = 0;
      for (int r = span.begin; r < end; r += page_rows<S>, round ^= 1) {
        int rows = min(page_rows<S>, end - r);
        float* page_scores = scores + round * 8 * score_stride<S>;
        const char* page = c.page();
        for (int first = c.warp() * 8; first < rows; first += S::warps * 8) {
          float s[4] = {};
          multiply_rows(s, query, (const bf16*)page + first * D, true, g, t);
          *(float2*)(page_scores + g * score_stride<S> + first + 2 * t) =
              make_float2(s[0] * root() * log2e, s[1] * root() * log2e);
        }
        c.sync();
        if (appends && r == span.begin) start_with_newest(c, newest, value, most, total, sums);
        add_values(page_scores, page + S::page_bytes / 2, rows, c.warp(), g, t, most, total, sums);
        c.release();
      }
      total = lane_sum<4>(total);
      if (g >= group) return;
      float scale = share(span, total);
#pragma unroll
      for (int i = 0; i < slices; ++i) {
        int d = (c.warp() + i * S::warps) * 8 + 2 * t;
        if (d >= D) continue;
        write(c, g, d, sums[i][0] * scale);
        write(c, g, d + 1, sums[i][1] * scale);
      }
      if (c.warp() == 0 && t == 0) write_stats(c, span, g, most / log2e, total);
    }

   private:
    // s[head][row] += query · key, of 8 rows from `keys` on; k is permuted alike in both. Lanes with `mine` false feed
    // 0.
    static MPK_FN void multiply_rows(float (&s)[4], const bf16* query, const bf16* keys, bool mine, int g, int t) {
      uint4 q[D / 32], k[D / 32];
#pragma unroll
      for (int i = 0; i < D / 32; ++i) {
        q[i] = k[i] = make_uint4(0, 0, 0, 0);
        if (g < group) q[i] = ptx::load_shared(query + g * D + i * 32 + t * 8);
        if (mine) k[i] = ptx::load_shared(keys + g * D + i * 32 + t * 8);
      }
      float other[4] = {};
#pragma unroll
      for (int i = 0; i < D / 32; ++i) {
        ptx::multiply(s, q[i].x, 0, q[i].y, 0, k[i].x, k[i].y);
        ptx::multiply(other, q[i].z, 0, q[i].w, 0, k[i].z, k[i].w);
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) s[e] += other[e];
    }

    MPK_FN void start_with_newest(WorkContext<S>& c, const float* newest, const bf16* value, float& most, float& total,
                                  float (&sums)[slices][4]) {
      int g = c.lane() / 4, t = c.lane() % 4;
      if (g >= group) return;
      most = newest[g];
      total = t == 0 ? 1.0f : 0.0f;
#pragma unroll
      for (int i = 0; i < slices; ++i) {
        int d = (c.warp() + i * S::warps) * 8 + 2 * t;
        if (d < D) sums[i][0] = widen(value[d]), sums[i][1] = widen(value[d + 1]);
      }
    }

    static MPK_FN void add_values(const float* scores, const char* values, int rows, int warp, int g, int t,
                                  float& most, float& total, float (&sums)[slices][4]) {
      constexpr int steps = page_rows<S> / 16;
      float p[steps][4];
      float now = most;
      const float* mine = scores + g * score_stride<S>;
#pragma unroll
      for (int k = 0; k < steps; ++k) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          int row = k * 16 + h * 8 + 2 * t;
          p[k][2 * h] = row < rows ? mine[row] : -infinity();
          p[k][2 * h + 1] = row + 1 < rows ? mine[row + 1] : -infinity();
          now = fmaxf(now, fmaxf(p[k][2 * h], p[k][2 * h + 1]));
        }
      }
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
      float shrink = ptx::exp2(most - now);
      most = now;
      total *= shrink;
#pragma unroll
      for (int i = 0; i < slices; ++i) sums[i][0] *= shrink, sums[i][1] *= shrink;
#pragma unroll
      for (int k = 0; k < steps; ++k)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          p[k][e] = ptx::exp2(p[k][e] - now);
          total += p[k][e];
        }
      int lane = g * 4 + t;
#pragma unroll
      for (int i = 0; i < slices; ++i) {
        int slice = warp + i * S::warps;
        if (slice * 8 >= D) continue;
        u32 at = ptx::shared_address(values) + lane * (D * 2) + slice * 16;
#pragma unroll
        for (int k = 0; k < steps; k += 2) {
          if (k * 16 >= rows) break;
          uint4 v = ptx::load_transposed(at + k * 16 * (D * 2));
          if ((k + 2) * 16 > rows) {  // what lies behind the last row may be NaN, which times zero is NaN
            v.x = within(v.x, k * 16 + 2 * t, rows), v.y = within(v.y, k * 16 + 8 + 2 * t, rows);
            v.z = within(v.z, k * 16 + 16 + 2 * t, rows), v.w = within(v.w, k * 16 + 24 + 2 * t, rows);
          }
          ptx::multiply(sums[i], ptx::pack_bf16(p[k][0], p[k][1]), 0, ptx::pack_bf16(p[k][2], p[k][3]), 0, v.x, v.y);
          ptx::multiply(sums[i], ptx::pack_bf16(p[k + 1][0], p[k + 1][1]), 0, ptx::pack_bf16(p[k + 1][2], p[k + 1][3]),
                        0, v.z, v.w);
        }
      }
    }
    static MPK_FN u32 within(u32 pair, int row, int rows) {
      return row + 1 < rows ? pair : row < rows ? pair & 0xffffu : 0u;
    }
  };

  // Element by element, rows straight from the cache: for float32 and odd shapes.
  template <class S>
  struct Direct : Plain {
    MPK_FN void compute(WorkContext<S>& c) {
      int b = c.task().tile[0], kv = c.task().tile[1];
      if (b >= c.rows(Dim, Rows)) return;
      Span span = span_of(load_one(c.template data<int>(8) + b), c.task().tile[2]);
      float* query = (float*)c.scratch;
      float *key = query + group * D, *value = key + D, *scores = value + D, *sums = scores + group * 32;
      if (span.begin < span.end) make_rows(c, span, first_rotation(c, span), query, key, value);
      for (int i = c.thread(); i < group * D; i += S::threads) sums[i] = 0.0f;
      c.sync();
      const T *keys = c.template data<T>(6) + head_at(b, kv), *values = c.template data<T>(7) + head_at(b, kv);
      float most[group], total[group];
#pragma unroll
      for (int g = 0; g < group; ++g) most[g] = -infinity(), total[g] = 0.0f;
      for (int r = span.begin; r < span.end; r += 32) {
        int rows = min(32, span.end - r);
        for (int i = c.warp(); i < rows * group; i += S::warps) {
          int row = r + i / group, g = i % group;
          float s = 0.0f;
          for (int d = c.lane(); d < D; d += 32)
            s += query[g * D + d] * (row == span.position ? key[d] : widen(load_one(keys + row * step + d)));
          s = lane_sum(s);
          if (c.lane() == 0) scores[g * 32 + i / group] = s * root();
        }
        c.sync();
        float shrink[group];
#pragma unroll
        for (int g = 0; g < group; ++g) {
          float now = most[g];
          for (int i = 0; i < rows; ++i) now = fmaxf(now, scores[g * 32 + i]);
          shrink[g] = ptx::exp2((most[g] - now) * log2e);
          most[g] = now;
          total[g] *= shrink[g];
          for (int i = 0; i < rows; ++i) total[g] += ptx::exp2((scores[g * 32 + i] - now) * log2e);
        }
        for (int i = c.thread(); i < group * D; i += S::threads) {
          int d = i % D;
          float sum = 0.0f;
#pragma unroll
          for (int g = 0; g < group; ++g) {
            if (g != i / D) continue;
            sum = sums[i] * shrink[g];
            for (int j = 0; j < rows; ++j) {
              float v = r + j == span.position ? value[d] : widen(load_one(values + (r + j) * step + d));
              sum += ptx::exp2((scores[g * 32 + j] - most[g]) * log2e) * v;
            }
          }
          sums[i] = sum;
        }
        c.sync();
      }
#pragma unroll
      for (int g = 0; g < group; ++g) {
        for (int d = c.thread(); d < D; d += S::threads) write(c, g, d, sums[g * D + d] * share(span, total[g]));
        if (c.thread() == 0) write_stats(c, span, g, most[g], total[g]);
      }
    }
  };

  template <bool Ring, class S>
  struct Choose {
    using Path = Direct<S>;
  };
  template <class S>
  struct Choose<true, S> {
    using Path = Streamed<S>;
  };
  template <class S>
  using Work = typename Choose<streamed<S>, S>::Path;
};

}  // namespace mpk::ops
