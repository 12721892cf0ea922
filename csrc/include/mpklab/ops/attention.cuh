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
  static constexpr bool streamed = matrix && page_rows<S> >= 32;
  // Where a thread has few registers, two warps share a chunk of rows: one half of the head's columns each. There are
  // as many pairs, or warps, as have room for their sums.
  template <class S>
  static constexpr int sides = S::warps > 8 && D % 128 == 0 ? 2 : 1;
  template <class S>
  static constexpr int teams = power_below(smaller(S::warps / sides<S>, larger(1, 16384 / (group * D * 4))));

  template <class S>
  static constexpr int scratch_bytes = streamed<S> ? (8 + 2) * D * 2 + teams<S> * (group * D * 4 + 8 * 8)
                                                   : (group + 2) * D * 4 + group * 32 * 4 + group * D * 4;
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
  // Its elements as they come, once they are there.
  template <class S>
  static MPK_FN void read_halves(WorkContext<S>& c, int operand, const T* from, float (&low)[each],
                                 float (&high)[each]) {
    c.await(operand, [&] {
      bool all = true;
#pragma unroll
      for (int i = 0; i < each; ++i) {
        int d = i * 32 + c.lane();
        low[i] = high[i] = 0.0f;
        if (d >= D / 2) continue;
        if constexpr (by_words<S> && matrix) {
          u32 first = ptx::load_relaxed((const u32*)from + u32(d) / 2);
          u32 second = ptx::load_relaxed((const u32*)from + u32(D / 2 + d) / 2);
          all &= first != missing && second != missing;
          low[i] = widen(half_of(first, d)), high[i] = widen(half_of(second, d));
        } else {
          low[i] = widen(load_one(from + d)), high[i] = widen(load_one(from + D / 2 + d));
        }
      }
      return all;
    });
  }
  static MPK_FN void rotate(const Rotation& by, float (&low)[each], float (&high)[each]) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < each; ++i) squares += low[i] * low[i] + high[i] * high[i];
    if constexpr (QKNORM) {
      float scale = inverse_root(lane_sum(squares) / float(D), EPS);
#pragma unroll
      for (int i = 0; i < each; ++i) low[i] *= scale * by.low_gain[i], high[i] *= scale * by.high_gain[i];
    }
#pragma unroll
    for (int i = 0; i < each; ++i) {
      float l = low[i], h = high[i];
      // Which product is rounded is said here: a compiler may choose differently from kernel to kernel.
      low[i] = fmaf(l, by.cosine[i], -__fmul_rn(h, by.sine[i]));
      high[i] = fmaf(h, by.cosine[i], __fmul_rn(l, by.sine[i]));
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
        float low[each], high[each];
        read_halves(c, 2, c.template data<T>(2) + long(b) * VS + VOFF + kv * key_step, low, high);
        T* to = c.template data<T>(7) + row;
#pragma unroll
        for (int i = 0; i < each; ++i) {
          int d = i * 32 + lane;
          if (d >= D / 2) continue;
          value[d] = narrow<X>(low[i]), value[D / 2 + d] = narrow<X>(high[i]);
          to[d] = narrow<T>(low[i]), to[D / 2 + d] = narrow<T>(high[i]);
        }
        continue;
      }
      bool is_key = item == group;
      const T* from = is_key ? c.template data<T>(1) + long(b) * KS + KOFF + kv * key_step
                             : c.template data<T>(0) + long(b) * QS + QOFF + kv * query_step + item * D;
      float low[each], high[each];
      read_halves(c, is_key, from, low, high);
      if (group + 2 <= S::warps || item == c.warp())
        rotate(first, low, high);
      else
        rotate(rotation(c, span, is_key), low, high);
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

  // Each warp takes every so many chunks of 16 cache rows through scores and values on its own, with the largest score
  // it has met, so that no barrier stands between pages; at the end the warps' sums are joined in their order. Values
  // are the matrix of 16 rows (columns of the head), heads the 8 columns: what a lane holds of the scores is what it
  // feeds.
  template <class S>
  struct Streamed {
    static constexpr int own = divide_up(D / 8, 8 * sides<S>);  // blocks of 8 columns of the head that a lane feeds
    static constexpr bool paired = own % 2 == 0;
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
      c.arrived();
    }

    // What a warp knows of its rows. A lane's part is head lane / 4 in the first two, heads 2t and 2t + 1 in the
    // values: by pair of columns (low, 2t), (low, 2t + 1), (high, 2t), (high, 2t + 1).
    struct Sums {
      float most = -infinity(), total = 0.0f;
      float values[own][4][4] = {};
    };

    MPK_FN void compute(WorkContext<S>& c) {
      if (c.task().tile[0] >= c.rows(Dim, Rows)) return;
      const bf16 *query = (const bf16*)c.scratch, *key = query + 8 * D, *value = key + D;
      float* joined = (float*)(c.scratch + 10 * D * 2);
      float2* stats = (float2*)(joined + teams<S> * group * D);
      bool appends = span.end == span.position + 1 && span.begin < span.end, newest = team(c) == teams<S> - 1;
      int end = min(span.end, span.position);
      c.sync();
      Sums sums;
      if (appends && newest) start_with_newest(c, query, key, value, sums);
      for (int r = span.begin; r < end; r += page_rows<S>) {
        int rows = min(page_rows<S>, end - r), before = (r - span.begin) / 16;
        const char* page = c.page();
        if (side(c) < sides<S>)
          for (int i = (team(c) - before) & (teams<S> - 1); i * 16 < rows; i += teams<S>)
            add_chunk(c, query, (const bf16*)page, (const bf16*)(page + S::page_bytes / 2), i * 16, rows, sums);
        c.release();
      }
      int worked = min(teams<S>, divide_up(max(end - span.begin, 0), 16));
      if (side(c) < sides<S> && (team(c) < worked || (appends && newest))) store(c, sums, joined, stats);
      c.sync();
      join(c, joined, stats, worked, appends);
    }

   private:
    static MPK_FN int team(const WorkContext<S>& c) { return c.warp() % teams<S>; }
    static MPK_FN int side(const WorkContext<S>& c) { return c.warp() / teams<S>; }
    static MPK_FN int column(const WorkContext<S>& c, int o) { return ((side(c) * 8 + c.lane() / 4) * own + o) * 8; }

    // Scores of 8 rows from `keys` on. The queries are a matrix of 16 rows: a head's even words of four, and its odd
    // ones; half of the products are of no use, but no word has to move. Rows are a whole number of bank cycles apart:
    // those of odd lanes read pairs of 64 bytes in the other order and exchange them afterwards.
    static MPK_FN void multiply_rows(WorkContext<S>& c, const bf16* query, const bf16* keys, bool mine, float (&s)[2]) {
      constexpr int together = D % 64 == 0 ? 2 : 1;
      int g = c.lane() / 4, t = c.lane() % 4;
      float even[4] = {}, odd[4] = {};
// All at once where a thread has the registers: spilled ones cost every task a trip to the L2.
#pragma unroll(S::warps > 8 ? 1 : 8)
      for (int first = 0; first < D / 32; first += together) {
        uint4 q[together], k[together];
#pragma unroll
        for (int i = 0; i < together; ++i) {
          int at = first + (together == 2 ? i ^ (g & 1) : 0);
          q[i] = k[i] = make_uint4(0, 0, 0, 0);
          if (mine) k[i] = ptx::load_shared(keys + g * D + at * 32 + t * 8);
          if (g < group) q[i] = ptx::load_shared(query + g * D + at * 32 + t * 8);
        }
#pragma unroll
        for (int i = 0; i < together; ++i) {
          uint4 a = q[i], b = k[i];
          if constexpr (together == 2) a = chosen(g & 1, q[i ^ 1], q[i]), b = chosen(g & 1, k[i ^ 1], k[i]);
          ptx::multiply(even, a.x, a.y, a.z, a.w, b.x, b.z);
          ptx::multiply(odd, a.x, a.y, a.z, a.w, b.y, b.w);
        }
      }
      s[0] = (even[0] + odd[2]) * (root() * log2e), s[1] = (even[1] + odd[3]) * (root() * log2e);
    }

    static MPK_FN void start_with_newest(WorkContext<S>& c, const bf16* query, const bf16* key, const bf16* value,
                                         Sums& sums) {
      int g = c.lane() / 4, t = c.lane() % 4;
      float s[2];
      multiply_rows(c, query, key, g == 0, s);
      sums.most = __shfl_sync(0xffffffffu, s[0], g * 4);
      sums.total = t == 0 ? 1.0f : 0.0f;
#pragma unroll
      for (int o = 0; o < own; ++o)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          int d = column(c, o) + 2 * j;
          if (d >= D) continue;
          sums.values[o][j][0] = sums.values[o][j][1] = widen(value[d]);
          sums.values[o][j][2] = sums.values[o][j][3] = widen(value[d + 1]);
        }
    }

    // The 16 rows from `first` on, of `rows` in the page.
    static MPK_FN void add_chunk(WorkContext<S>& c, const bf16* query, const bf16* keys, const bf16* values, int first,
                                 int rows, Sums& sums) {
      int t = c.lane() % 4;
      float p[2][2];
#pragma unroll
      for (int i = 0; i < 2; ++i) multiply_rows(c, query, keys + (first + i * 8) * D, true, p[i]);
      // Of each eight rows 2t and 2t + 1. Lanes with odd t read pairs of blocks in the other order, as above.
      uint4 v[own][4];
#pragma unroll
      for (int o = 0; o < own; ++o)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          int d = column(c, paired ? o ^ (t & 1) : o);
          v[o][i] = make_uint4(0, 0, 0, 0);
          if (D % 64 == 0 || d < D) v[o][i] = ptx::load_shared(values + (first + i / 2 * 8 + 2 * t + i % 2) * D + d);
        }
      if (rows - first < 16) {  // what lies behind the last row may be NaN, which times zero is NaN
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (first + i / 2 * 8 + 2 * t + i % 2 >= rows) {
            p[i / 2][i % 2] = -infinity();
#pragma unroll
            for (int o = 0; o < own; ++o) v[o][i] = make_uint4(0, 0, 0, 0);
          }
      }
      float now = sums.most, shrink, total = 0.0f;
      u32 weights[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) now = fmaxf(now, fmaxf(p[i][0], p[i][1]));
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffffu, now, 2));
      shrink = ptx::exp2(sums.most - now);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        p[i][0] = ptx::exp2(p[i][0] - now), p[i][1] = ptx::exp2(p[i][1] - now);
        total += p[i][0] + p[i][1];
        weights[i] = ptx::pack_bf16(p[i][0], p[i][1]);
      }
      sums.most = now, sums.total = fmaf(sums.total, shrink, total);
      float shrinks[2] = {__shfl_sync(0xffffffffu, shrink, t * 8), __shfl_sync(0xffffffffu, shrink, t * 8 + 4)};
#pragma unroll
      for (int o = 0; o < own; ++o) {
        uint4 x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          x[i] = v[o][i];
          if constexpr (paired) x[i] = chosen(t & 1, v[o ^ 1][i], v[o][i]);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float (&to)[4] = sums.values[o][j];
#pragma unroll
          for (int e = 0; e < 4; ++e) to[e] *= shrinks[e % 2];
          u32 low = word(x[0], j), high = word(x[1], j);
          u32 a = __byte_perm(low, high, 0x5410), b = __byte_perm(low, high, 0x7632);
          u32 next = word(x[2], j), last = word(x[3], j);
          ptx::multiply(to, a, b, __byte_perm(next, last, 0x5410), __byte_perm(next, last, 0x7632), weights[0],
                        weights[1]);
        }
      }
    }
    static MPK_FN u32 word(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

    static MPK_FN void store(WorkContext<S>& c, const Sums& sums, float* joined, float2* stats) {
      int g = c.lane() / 4, t = c.lane() % 4;
      float total = lane_sum<4>(sums.total);
      if (t == 0 && side(c) == 0) stats[team(c) * 8 + g] = make_float2(sums.most, total);
#pragma unroll
      for (int h = 0; h < 2; ++h)
        if (2 * t + h < group) {
          float* to = joined + (team(c) * group + 2 * t + h) * D;
#pragma unroll
          for (int o = 0; o < own; ++o)
#pragma unroll
            for (int j = 0; j < 4; j += 2) {
              const float (&a)[4] = sums.values[o][j], (&b)[4] = sums.values[o][j + 1];
              int d = column(c, o) + 2 * j;
              if (d < D) *(float4*)(to + d) = make_float4(a[h], a[2 + h], b[h], b[2 + h]);
            }
        }
    }

    MPK_FN void join(WorkContext<S>& c, const float* joined, const float2* stats, int worked, bool appends) {
      for (int at = c.thread() * 2; at < group * D; at += S::threads * 2) {
        int head = at / D;
        float most = -infinity(), total = 0.0f, x = 0.0f, y = 0.0f;
#pragma unroll
        for (int w = 0; w < teams<S>; ++w)
          if (w < worked || (appends && w == teams<S> - 1)) most = fmaxf(most, stats[w * 8 + head].x);
#pragma unroll
        for (int w = 0; w < teams<S>; ++w)
          if (w < worked || (appends && w == teams<S> - 1)) {
            float2 stat = stats[w * 8 + head], sum = *(const float2*)(joined + w * group * D + at);
            float weight = ptx::exp2(stat.x - most);
            total = fmaf(stat.y, weight, total), x = fmaf(sum.x, weight, x), y = fmaf(sum.y, weight, y);
          }
        float scale = share(span, total);
        write(c, head, at % D, x * scale);
        write(c, head, at % D + 1, y * scale);
        if (at % D == 0) write_stats(c, span, head, most / log2e, total);
      }
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
