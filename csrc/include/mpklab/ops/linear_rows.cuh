// linear for up to 16 rows of activations: pages are a few weight rows × a span of k, and a warp holds its part of two
// spans of the activations in registers.
#pragma once

#include "mpklab/ops/linear_traits.cuh"

namespace mpk::ops {

// A page is cut along k into one slice per warp. Long spans are wanted: a bulk copy brings one row of a page, and
// copies of 1 KB reach four fifths of the bandwidth that copies of 2 and 4 KB do. What limits them is the registers
// behind a warp's slice of the activations.
template <class L, class S>
struct RowsGeometry {
  static constexpr int warps = S::warps;
  static constexpr int columns = divide_up(L::Rows, 8);  // blocks of 8 activation rows
  static constexpr int shortest = larger(warps * L::run, S::page_bytes / 64);
  static constexpr int longest = larger(shortest, smaller(S::page_bytes / 16, warps * 256 / columns));
  // The longest of at most `from` elements whose last piece leaves less than a quarter of the row's pages empty.
  static constexpr __host__ __device__ int span_below(int from) {
    return from <= shortest ? shortest : divide_up(L::K, from) * from - L::K <= L::K / 4 ? from : span_below(from / 2);
  }
  static constexpr int span = span_below(longest);
  static constexpr int spans = divide_up(L::K, span);
  static constexpr bool ragged = L::K % span != 0;
  static constexpr int slice = span / warps;  // of one warp
  static constexpr int pairs = slice / 64;

  // Sums of one group of weight rows are kept until all of k has passed: 8 × 8 results of a block, by every warp.
  static constexpr int block = columns * 64;
  static constexpr int most_blocks = larger(1, 24576 / (L::streams * warps * block * 4));
  static constexpr int page_blocks = smaller(most_blocks, S::page_bytes / (span * 16)), page_rows = page_blocks * 8;
  static_assert(page_blocks >= 1, "a page holds 8 rows of 64 elements for every consumer warp");
  static_assert(page_rows <= 32, "a lane copies one row of a page");
  static constexpr int group_blocks = most_blocks / page_blocks * page_blocks;
  static constexpr int group_rows = group_blocks * 8;
  static constexpr int sums = group_blocks * L::streams * warps * block;
};

template <class L, class S>
struct LinearRows {
  using G = RowsGeometry<L, S>;
  using T = typename L::T;
  static constexpr int finishers = S::threads / G::block;  // threads behind one result of a block
  static constexpr int scratch_bytes = (G::sums + G::warps * 16) * 4 + 16 * finishers * int(sizeof(Best));
  static_assert(S::threads % G::block == 0, "a thread finishes results of one activation row");

  static MPK_FN void load(LoadContext<S>& c) {
    int begin = c.task().tile[0], end = c.task().tile[1];
    const T* base = c.template data<T>(1);  // null where the rows lie in several pieces
    Context matrix{c.launch, c.task(), c.step, nullptr, nullptr};
    for (int r = begin; r < end; r += G::group_rows)
      for (int k = 0; k < L::K; k += G::span) {
        u32 bytes = u32(min(G::span, L::K - k)) * 2;
        for (int first = r; first < min(r + G::group_rows, end); first += G::page_rows)
          for (int s = 0; s < L::streams; ++s) {
            u32 rows = u32(min(G::page_rows, end - first));
            char* page = c.begin_page(rows * bytes);
            if (!page) return;
            if constexpr (G::span == L::K) {
              copy_weights(c, page, 1, u64(L::K) * 2, u64(s * L::N + first) * L::K * 2, rows * bytes);
            } else {
              if (u32(c.lane()) < rows) {
                int n = s * L::N + first + c.lane();
                const T* from = base ? base + u64(n) * L::K : matrix.template row<T>(1, n, L::K);
                c.copy_by_lane(page + c.lane() * (G::span * 2), from + k, bytes, c.weights_policy);
              }
              __syncwarp();
            }
            c.end_page();
          }
      }
  }

  // Where there are more than two spans, each makes room for the one after the next.
  static constexpr int held = smaller(2, G::spans);
  uint4 x[held][G::columns][2 * G::pairs];
  uint4 gain[held];  // of the norm, for the warp's slice: eight elements a lane
  float square[G::columns], added[2];

  MPK_FN void prepare(WorkContext<S>& c) {
#pragma unroll
    for (int u = 0; u < held; ++u) fetch_gains(c, u, u);
  }
  MPK_FN void gather(WorkContext<S>& c) {
#pragma unroll
    for (int u = 0; u < held; ++u) fetch(c, u, u);
    int live = c.rows(L::Dim, L::Rows), begin = c.task().tile[0], end = c.task().tile[1];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Result y = result(c, i, begin);
      added[i] = y.n < end && y.b < live ? L::residual_of(c, y.b, y.n) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < G::columns; ++i) square[i] = 0.0f;
  }

  MPK_FN void compute(WorkContext<S>& c) {
    int begin = c.task().tile[0], end = c.task().tile[1], live = c.rows(L::Dim, L::Rows);
    float* sums = (float*)c.scratch;
    float* squares = sums + G::sums;
    Best best = Best::none();
    float scale = 1.0f;
    if constexpr (L::NORM && G::spans <= 2) {
#pragma unroll
      for (int u = 0; u < held; ++u) apply_gains(c, u, true);
    }
    for (int r = begin; r < end; r += G::group_rows) {
      int stop = min(r + G::group_rows, end);
      for (int round = 0; round < G::spans; round += held)
#pragma unroll
        for (int u = 0; u < held; ++u) {
          int span = round + u;
          if (span < G::spans) {
            if constexpr (L::NORM && G::spans > 2) apply_gains(c, u, r == begin);
            float* to = sums + c.warp() * G::block + c.lane() * 2;
#pragma unroll 1
            for (int first = r; first < stop;
                 first += G::page_rows, to += G::page_blocks * L::streams * G::warps * G::block)
#pragma unroll
              for (int s = 0; s < L::streams; ++s) multiply_page(c, span, x[u], to + s * G::warps * G::block);
            if constexpr (G::spans > 2) {
              int next = span + 2 < G::spans ? span + 2 : u;
              if (span + 2 < G::spans || stop < end) fetch(c, u, next), fetch_gains(c, u, next);
            }
          }
        }
      if constexpr (L::NORM) {
        if (r == begin) store_squares(c, squares);
      }
      c.sync();
      if constexpr (L::NORM) {
        if (r == begin) scale = scale_of(c, squares);
      }
      int i = 0;
#pragma unroll 1
      for (Result y = result(c, i, r); y.block * 8 < stop - r; y = result(c, ++i, r)) {
        float value = add_up(sums, y, 0) * scale, up = 0.0f;
        if constexpr (L::gated) up = add_up(sums, y, 1) * scale;
        if (y.n < stop && y.b < live) {
          float more = r == begin && i < 2 ? (i == 0 ? added[0] : added[1]) : L::residual_of(c, y.b, y.n);
          float stored = L::finish(c, y.b, y.n, value, up, more);
          if constexpr (L::PARTS > 0) best.see(stored, y.n);
        }
      }
      if (stop < end) c.sync();
    }
    if constexpr (L::PARTS > 0) reduce_best(c, best, live);
  }

 private:
  // A thread's results of a group, one after the other: weight row n, activation row b, element e of a block.
  struct Result {
    int block, e, n, b;
  };
  static MPK_FN Result result(const WorkContext<S>& c, int i, int r) {
    int at = i * S::threads + c.thread(), block = at / G::block, n = at % 8, b = at % G::block / 8;
    return {block, b / 8 * 64 + n * 8 + b % 8, r + block * 8 + n, b};
  }

  static MPK_FN int first_element(const WorkContext<S>& c, int span, int j) {
    return span * G::span + c.warp() * G::slice + j * 32 + c.lane() % 4 * 8;
  }
  MPK_FN void fetch(WorkContext<S>& c, int u, int span) {
    int live = c.rows(L::Dim, L::Rows);
#pragma unroll
    for (int i = 0; i < G::columns; ++i)
#pragma unroll
      for (int j = 0; j < 2 * G::pairs; ++j) {
        int b = i * 8 + c.lane() / 4, k = first_element(c, span, j);
        x[u][i][j] = make_uint4(0, 0, 0, 0);
        if (b < live && (!G::ragged || k < L::K)) x[u][i][j] = L::activations(c, b, k);
      }
  }
  MPK_FN void fetch_gains(WorkContext<S>& c, int u, int span) {
    static_assert(G::slice <= 32 * 8, "one lane holds eight gains");
    if constexpr (L::NORM) {
      int k = span * G::span + c.warp() * G::slice + c.lane() * 8;
      gain[u] = make_uint4(0, 0, 0, 0);
      if (c.lane() * 8 < G::slice && (!G::ragged || k < L::K)) gain[u] = L::gains(c, k);
    }
  }
  MPK_FN void apply_gains(WorkContext<S>& c, int u, bool first) {
#pragma unroll
    for (int j = 0; j < 2 * G::pairs; ++j) {
      int from = j * 4 + c.lane() % 4;
      uint4 by = make_uint4(__shfl_sync(0xffffffffu, gain[u].x, from), __shfl_sync(0xffffffffu, gain[u].y, from),
                            __shfl_sync(0xffffffffu, gain[u].z, from), __shfl_sync(0xffffffffu, gain[u].w, from));
#pragma unroll
      for (int i = 0; i < G::columns; ++i) {
        if (first) square[i] += L::squares(x[u][i][j]);
        x[u][i][j] = L::times(x[u][i][j], by);
      }
    }
  }

  // Products of this warp's slice of a page, added to what earlier spans gave. Weight rows are a whole number of bank
  // cycles apart, so odd rows read the halves of 128 bytes in the other order and exchange them afterwards.
  static MPK_FN void multiply_page(WorkContext<S>& c, int span, const uint4 (&x)[G::columns][2 * G::pairs], float* to) {
    int g = c.lane() / 4, t = c.lane() % 4;
    bool swapped = g & 1;
    u32 at = ptx::shared_address(c.page()) + g * (G::span * 2) + c.warp() * (G::slice * 2) + (g & 1) * 64 + t * 16;
    uint4 w[G::page_blocks][G::pairs][2];
#pragma unroll
    for (int q = 0; q < G::page_blocks; ++q)
#pragma unroll
      for (int p = 0; p < G::pairs; ++p)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          if (inside(c, span, p)) w[q][p][h] = ptx::load_shared((at ^ (h * 64)) + q * 8 * (G::span * 2) + p * 128);
    c.release();
#pragma unroll
    for (int q = 0; q < G::page_blocks; ++q) {
      float even[G::columns][4] = {}, odd[G::columns][4] = {};
#pragma unroll
      for (int p = 0; p < G::pairs; ++p)
        if (inside(c, span, p)) {
          multiply(even, odd, chosen(swapped, w[q][p][1], w[q][p][0]), x, 2 * p);
          multiply(even, odd, chosen(swapped, w[q][p][0], w[q][p][1]), x, 2 * p + 1);
        }
#pragma unroll
      for (int i = 0; i < G::columns; ++i) {
        float2* at = (float2*)(to + q * (L::streams * G::warps * G::block) + i * 64);
        float2 sum = make_float2(even[i][0] + odd[i][2], even[i][1] + odd[i][3]);
        if (span > 0) {
          float2 before = *at;
          sum.x += before.x, sum.y += before.y;
        }
        *at = sum;
      }
    }
  }
  static MPK_FN bool inside(const WorkContext<S>& c, int span, int p) {
    return !G::ragged || span * G::span + c.warp() * G::slice + p * 64 < L::K;
  }
  // 8 weight rows × 32 elements of k, as a matrix of 16 rows: those of the even words of four, and those of the odd
  // ones. Half of the products are of no use, but no word has to move.
  static MPK_FN void multiply(float (&even)[G::columns][4], float (&odd)[G::columns][4], const uint4& w,
                              const uint4 (&x)[G::columns][2 * G::pairs], int j) {
#pragma unroll
    for (int i = 0; i < G::columns; ++i) {
      ptx::multiply(even[i], w.x, w.y, w.z, w.w, x[i][j].x, x[i][j].z);
      ptx::multiply(odd[i], w.x, w.y, w.z, w.w, x[i][j].y, x[i][j].w);
    }
  }

  static MPK_FN float add_up(const float* sums, const Result& y, int stream) {
    const float* from = sums + (y.block * L::streams + stream) * (G::warps * G::block) + y.e;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < G::warps; ++w) sum += from[w * G::block];
    return sum;
  }

  // The norm's scale of the activation row whose results this thread finishes.
  MPK_FN void store_squares(WorkContext<S>& c, float* squares) {
#pragma unroll
    for (int i = 0; i < G::columns; ++i) {
      float sum = lane_sum<4>(square[i]);
      if (c.lane() % 4 == 0) squares[c.warp() * 16 + i * 8 + c.lane() / 4] = sum;
    }
  }
  static MPK_FN float scale_of(WorkContext<S>& c, const float* squares) {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < G::warps; ++w) sum += squares[w * 16 + c.thread() % G::block / 8];
    return L::norm_scale(sum);
  }

  static MPK_FN void reduce_best(WorkContext<S>& c, Best best, int live) {
    Best* bests = (Best*)((float*)c.scratch + G::sums + G::warps * 16);
    best.see_lanes<8>();
    if (c.thread() % 8 == 0) bests[c.thread() % G::block / 8 * finishers + c.thread() / G::block] = best;
    c.sync();
    if (c.thread() < live) {
      best = bests[c.thread() * finishers];
      for (int i = 1; i < finishers; ++i)
        best.see(bests[c.thread() * finishers + i].value, bests[c.thread() * finishers + i].index);
      L::write_best(c, c.thread(), best);
    }
  }
};

}  // namespace mpk::ops
