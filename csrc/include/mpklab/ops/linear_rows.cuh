// linear for up to 16 rows of activations: pages are blocks of weight rows × a span of k, sums stay in registers while
// k passes, so that the activations are read once for each group of weight rows.
#pragma once

#include "mpklab/ops/linear_traits.cuh"

namespace mpk::ops {

template <class L, class S>
struct LinearRows {
  using T = typename L::T;
  static constexpr int warps = S::warps;
  static constexpr int columns = divide_up(L::Rows, 8);  // blocks of 8 activation rows
  static constexpr int span = warps * L::run;            // of k, in one page
  static constexpr int page_rows = S::page_bytes / (span * 2);
  static constexpr int fragments = page_rows / 16;                                                  // of one page
  static constexpr int group_pages = larger(1, 6 / columns / fragments / L::streams) * L::streams;  // of one span
  static constexpr int group_rows = group_pages / L::streams * page_rows;  // outputs of one group
  static constexpr int block = columns * 128;                              // results of 16 weight rows
  static constexpr int buffers = larger(1, 6144 / (warps * block));
  static constexpr int scratch_bytes = (buffers * warps * block + warps * 16 + block) * 4 + block * int(sizeof(Best));
  static_assert(page_rows % 16 == 0 && page_rows <= 32, "a lane copies one row of a page");

  static MPK_FN int page_first(int page) { return page % (group_pages / L::streams) * page_rows; }
  static MPK_FN int page_stream(int page) { return page / (group_pages / L::streams); }

  static MPK_FN void load(LoadContext<S>& c) {
    int begin = c.task().tile[0], end = c.task().tile[1];
    Context matrix{c.launch, c.task(), c.step, nullptr, nullptr};
    for (int r = begin; r < end; r += group_rows)
      for (int k = 0; k < L::K; k += span) {
        u32 bytes = u32(min(span, L::K - k)) * 2;
        for (int p = 0; p < group_pages; ++p) {
          int first = r + page_first(p), rows = min(page_rows, end - first);
          if (rows <= 0) continue;
          char* page = c.begin_page(u32(rows) * bytes);
          if (!page) return;
          if (c.lane() < rows) {
            const T* from = matrix.template row<T>(1, page_stream(p) * L::N + first + c.lane(), L::K) + k;
            c.copy_by_lane(page + c.lane() * (span * 2), from, bytes, c.weights_policy);
          }
          __syncwarp();
          c.end_page();
        }
      }
  }

  uint4 ahead[columns][2];  // activations of the next span

  MPK_FN void prepare(WorkContext<S>&) {}
  MPK_FN void gather(WorkContext<S>& c) { fetch(c, 0); }

  MPK_FN void compute(WorkContext<S>& c) {
    int begin = c.task().tile[0], end = c.task().tile[1], live = c.rows(L::Dim, L::Rows);
    float* partial = (float*)c.scratch;
    float* squares = partial + buffers * warps * block;
    float square[columns] = {};
    Best best = Best::none();
    float scale = 1.0f;
    int round = 0;
    for (int r = begin; r < end; r += group_rows) {
      float sums[group_pages][fragments][columns][4];
#pragma unroll
      for (int p = 0; p < group_pages; ++p)
#pragma unroll
        for (int q = 0; q < fragments; ++q)
#pragma unroll
          for (int i = 0; i < columns; ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[p][q][i][e] = 0.0f;
      for (int k = 0; k < L::K; k += span) {
        uint4 x[columns][2];
        take(c, k, r == begin, x, square);
        int next = k + span < L::K ? k + span : 0;
        if (L::K > span || r + group_rows < end) fetch(c, next);
#pragma unroll
        for (int p = 0; p < group_pages; ++p)
          if (r + page_first(p) < end) multiply_page(c, k, x, sums[p]);
      }
      if constexpr (L::NORM) {
        if (r == begin) scale = scale_of(c, square, squares);
      }
#pragma unroll
      for (int p = 0; p < group_pages / L::streams; ++p)
#pragma unroll
        for (int q = 0; q < fragments; ++q) {
          int first = r + page_first(p) + q * 16;
          if (first < end) {
            float y = add_up(c, sums[p][q], round) * scale, up = 0.0f;
            if constexpr (L::gated) up = add_up(c, sums[p + group_pages / 2][q], round) * scale;
            int n = first + row_of(c.thread()), b = column_of(c.thread());
            if (c.thread() < block && n < end && b < live) {
              float value = L::finish(c, b, n, y, up, L::residual_of(c, b, n));
              if constexpr (L::PARTS > 0) best.see(value, n);
            }
          }
        }
    }
    if constexpr (L::PARTS > 0) reduce_best(c, best, live);
  }

 private:
  static_assert(S::threads >= block, "one thread finishes one result");

  // Where a result of one fragment lies: weight row and activation row of element e of a block.
  static MPK_FN int row_of(int e) { return e % 128 / 16 + (e & 2) * 4; }
  static MPK_FN int column_of(int e) { return e / 128 * 8 + e % 16 / 4 * 2 + (e & 1); }

  MPK_FN void fetch(WorkContext<S>& c, int k) {
    int live = c.rows(L::Dim, L::Rows), at = k + c.warp() * L::run + c.lane() % 4 * 8;
#pragma unroll
    for (int i = 0; i < columns; ++i) {
      int b = i * 8 + c.lane() / 4;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        ahead[i][j] = make_uint4(0, 0, 0, 0);
        if (b < live && k + c.warp() * L::run < L::K) ahead[i][j] = L::activations(c, b, at + j * 32);
      }
    }
  }

  // The span's activations, which were asked for one span ago.
  MPK_FN void take(WorkContext<S>& c, int k, bool first, uint4 (&x)[columns][2], float (&square)[columns]) {
#pragma unroll
    for (int i = 0; i < columns; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        x[i][j] = ahead[i][j];
        if constexpr (L::NORM) {
          if (first) square[i] += L::squares(x[i][j]);
          int at = k + c.warp() * L::run + c.lane() % 4 * 8 + j * 32;
          if (k + c.warp() * L::run < L::K) x[i][j] = L::times(x[i][j], L::gains(c, at));
        }
      }
  }

  MPK_FN static void multiply_page(WorkContext<S>& c, int k, const uint4 (&x)[columns][2],
                                   float (&sums)[fragments][columns][4]) {
    const char* page = c.page();
    bool mine = k + c.warp() * L::run < L::K;
    u32 at = ptx::shared_address(page) + c.lane() / 4 * (span * 2) + c.warp() * (L::run * 2) + c.lane() % 4 * 16;
    uint4 a[fragments][2][2];
#pragma unroll
    for (int q = 0; q < fragments; ++q)
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          if (mine) a[q][j][h] = ptx::load_shared(at + j * 64 + (q * 16 + h * 8) * (span * 2));
    c.release();
    if (!mine) return;
#pragma unroll
    for (int q = 0; q < fragments; ++q)
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int i = 0; i < columns; ++i) {
          const uint4 &low = a[q][j][0], &high = a[q][j][1], &b = x[i][j];
          ptx::multiply(sums[q][i], low.x, high.x, low.y, high.y, b.x, b.y);
          ptx::multiply(sums[q][i], low.z, high.z, low.w, high.w, b.z, b.w);
        }
  }

  // The sum over all warps of the block's result that this thread finishes.
  MPK_FN static float add_up(WorkContext<S>& c, const float (&sums)[columns][4], int& round) {
    float* partial = (float*)c.scratch + round * warps * block;
#pragma unroll
    for (int i = 0; i < columns; ++i)
      *(float4*)(partial + c.warp() * block + i * 128 + c.lane() * 4) =
          make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
    c.sync();
    float sum = 0.0f;
    if (c.thread() < block) {
#pragma unroll
      for (int w = 0; w < warps; ++w) sum += partial[w * block + c.thread()];
    }
    if constexpr (buffers == 1)
      c.sync();
    else
      round = round + 1 == buffers ? 0 : round + 1;
    return sum;
  }

  // The norm's scale of the activation row whose results this thread finishes.
  MPK_FN static float scale_of(WorkContext<S>& c, const float (&square)[columns], float* squares) {
#pragma unroll
    for (int i = 0; i < columns; ++i) {
      float sum = lane_sum<4>(square[i]);
      if (c.lane() % 4 == 0) squares[c.warp() * 16 + i * 8 + c.lane() / 4] = sum;
    }
    c.sync();
    float sum = 0.0f;
    if (c.thread() < block)
      for (int w = 0; w < warps; ++w) sum += squares[w * 16 + column_of(c.thread())];
    return L::norm_scale(sum);
  }

  MPK_FN static void reduce_best(WorkContext<S>& c, const Best& best, int live) {
    Best* bests = (Best*)((float*)c.scratch + buffers * warps * block + warps * 16);
    if (c.thread() < block) bests[column_of(c.thread()) * 16 + row_of(c.thread())] = best;
    c.sync();
    if (c.thread() < live) {
      Best most = Best::none();
      for (int i = 0; i < 16; ++i) most.see(bests[c.thread() * 16 + i].value, bests[c.thread() * 16 + i].index);
      L::write_best(c, c.thread(), most);
    }
  }
};

}  // namespace mpk::ops
