// linear for one row of activations: a tile's weights stream through the ring as one run of bytes, and tensor cores
// multiply each page by the slices of the activations that its bytes meet.
#pragma once

#include "mpklab/ops/linear_traits.cuh"

namespace mpk::ops {

// A weight row is cut into runs of 64 elements. Counted through a batch of rows, run f belongs to warp f % warps and to
// its line f / warps. Sixteen lines are one matrix fragment, so a fragment's rows are not weight rows but pieces of
// them, and each needs its own piece of the activations: line v meets column v % columns. Of a product's 16 × 8 results
// one per line is wanted; it is the sum of run f and goes to partial[f]. A weight row's sum is then over its own runs
// in order.
//
// Lines are 128 bytes per warp, so lanes of neighbouring lines would meet in the same banks; odd lines therefore read
// their two halves in the other order, which is why there is an even number of columns.
template <class L, class S>
struct RowGeometry {
  static constexpr int runs = larger(1, L::K / L::run);  // of one weight row
  static constexpr int warps = S::warps;
  static constexpr int owners = greatest_common_divisor(runs, warps);  // warps that between them hold each run once
  static constexpr int distinct = runs / owners;                       // runs of the activations that one warp meets
  static constexpr bool swapped = distinct % 2 == 0 || distinct <= 8;
  static constexpr int columns = swapped && distinct % 2 ? 2 * distinct : distinct;
  static constexpr int blocks = divide_up(columns, 8);
  static constexpr int line_bytes = warps * L::run * 2;
  static constexpr int lines = S::page_bytes / line_bytes;  // of one page
  static constexpr int fragments = lines / 16;
  static constexpr int page_runs = lines * warps;
  static_assert(lines % 16 == 0, "a page holds whole fragments");

  // A batch is what one round of partial sums holds: whole weight rows, and whole pages where that is possible; of two
  // rings' worth of pages, so that a block with a small ring is small.
  static constexpr int capacity = larger(2 * S::pages * page_runs, 2 * L::streams * runs);
  static constexpr int most_rows = capacity / L::streams / runs;
  static constexpr int whole = page_runs / greatest_common_divisor(runs, page_runs);
  static constexpr int unit = whole % 2 ? 2 * whole : whole;  // rows are stored two by two
  static constexpr int batch = most_rows >= unit ? most_rows / unit * unit : most_rows / 2 * 2;
};

template <class L, class S>
struct LinearRow {
  using G = RowGeometry<L, S>;
  using T = typename L::T;
  static constexpr int partial_floats = G::batch * G::runs * L::streams;
  static constexpr int scratch_bytes = 2 * partial_floats * 4 + 16 * 4 + 16 * int(sizeof(Best));

  static MPK_FN void load(LoadContext<S>& c) {
    int begin = c.task().tile[0], end = c.task().tile[1];
    constexpr u64 row_bytes = u64(L::K) * 2;
    for (int r = begin; r < end; r += G::batch) {
      u32 bytes = u32(min(G::batch, end - r)) * u32(row_bytes);
      for (int s = 0; s < L::streams; ++s)
        for (u32 at = 0; at < bytes; at += S::page_bytes) {
          u32 n = min(u32(S::page_bytes), bytes - at);
          char* page = c.begin_page(n);
          if (!page) return;
          copy_weights(c, page, 1, row_bytes, u64(s * L::N + r) * row_bytes + at, n);
          c.end_page();
        }
    }
  }

  uint4 x[G::blocks][2], gain[L::NORM ? G::blocks : 1][2];
  float square = 0.0f;
  float added = 0.0f;  // the residual of the first row, by words the bits of its pair

  // The elements of column n that this lane feeds, half j as it meets them.
  MPK_FN static int first_element(int warp, int n, int j, int lane) {
    int run = int(u32(n * G::warps + warp) % u32(G::runs));
    int half = G::swapped ? j ^ (n & 1) : j;
    return run * L::run + half * 32 + lane % 4 * 8;
  }

  MPK_FN void prepare(WorkContext<S>& c) {
    if constexpr (L::NORM) {
#pragma unroll
      for (int i = 0; i < G::blocks; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          int n = i * 8 + c.lane() / 4;
          gain[i][j] = make_uint4(0, 0, 0, 0);
          if (n < G::columns) gain[i][j] = L::gains(c, first_element(c.warp(), n, j, c.lane()));
        }
    }
  }

  MPK_FN void gather(WorkContext<S>& c) {
    bool live = c.rows(L::Dim, 1) > 0;
    if (live && L::SPLITS == 0) ask_for_residual(c);
    const uint4* merged = nullptr;
    if constexpr (L::SPLITS > 0) {
      if (live) merged = merge(c);
    }
    c.await(0, [&] {
      bool all = true;
#pragma unroll
      for (int i = 0; i < G::blocks; ++i) {
        int n = i * 8 + c.lane() / 4;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          x[i][j] = make_uint4(0, 0, 0, 0);
          if (n < G::columns && live) {
            int k = first_element(c.warp(), n, j, c.lane());
            if constexpr (L::SPLITS > 0)
              x[i][j] = ptx::load_shared(merged + k / 8);
            else
              x[i][j] = L::activations(c, 0, k);
            if constexpr (by_words<S>) all &= !any_missing(x[i][j]);
          }
        }
      }
      return all;
    });
    if (live && L::SPLITS > 0) ask_for_residual(c);  // merging takes the registers
    c.arrived();
    if constexpr (L::SPLITS > 0) c.sync();  // the merged row lies where compute puts its partial sums
    if constexpr (L::NORM) {
#pragma unroll
      for (int i = 0; i < G::blocks; ++i) {
        int n = i * 8 + c.lane() / 4;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          if (n < G::distinct && c.warp() < G::owners) square += L::squares(x[i][j]);
          if (n < G::columns) x[i][j] = L::times(x[i][j], gain[i][j]);
        }
      }
    }
  }

  // The splits of an attention joined once per block, eight elements a thread, into the scratch.
  MPK_FN const uint4* merge(WorkContext<S>& c) {
    uint4* row = (uint4*)c.scratch;
    static_assert(L::K * 2 <= scratch_bytes, "the merged row fits the scratch");
    for (int i = c.thread(); i < L::K / 8; i += S::threads) row[i] = L::activations(c, 0, i * 8);
    c.sync();
    return row;
  }

  MPK_FN void compute(WorkContext<S>& c) {
    int begin = c.task().tile[0], end = c.task().tile[1];
    bool live = c.rows(L::Dim, 1) > 0;
    float* partial = (float*)c.scratch;
    float* squares = partial + 2 * partial_floats;
    Best best = Best::none();
    if constexpr (L::NORM) {
      float sum = lane_sum(square);
      if (c.lane() == 0) squares[c.warp()] = sum;
    }
    float scale = 1.0f;
    for (int r = begin; r < end; r += G::batch) {
      int rows = min(G::batch, end - r);
#pragma unroll
      for (int s = 0; s < L::streams; ++s)
        for (int first = 0; first < rows * G::runs; first += G::page_runs)
          multiply_page(c, first, rows * G::runs, partial + s * G::batch * G::runs);
      c.sync();
      if constexpr (L::NORM) {
        if (r == begin) {
          float sum = 0.0f;
#pragma unroll
          for (int w = 0; w < G::warps; ++w) sum += squares[w];
          scale = L::norm_scale(sum);
        }
      }
      if (live) add_up(c, r, rows, partial, scale, r == begin, best);
      // Two rounds of partial sums: this one is read while the next is written, and the barrier between keeps them
      // apart.
      partial = partial == (float*)c.scratch ? partial + partial_floats : (float*)c.scratch;
    }
    if constexpr (L::PARTS > 0) reduce_best(c, best, live);
  }

 private:
  static constexpr int vectors = G::runs % 4 == 0 ? G::runs / 4 : G::runs;  // loads behind one row's sum
  static constexpr int lanes = smaller(16, power_below(vectors));           // that add up one row
  static constexpr int groups = S::threads / lanes;

  // The residual of the first row that this thread finishes is asked for before the pages are waited for.
  MPK_FN static int first_row(WorkContext<S>& c) { return c.task().tile[0] + int(u32(c.thread()) / lanes); }
  MPK_FN static bool has_first_row(WorkContext<S>& c) {
    return u32(c.thread()) % lanes == 0 && first_row(c) < c.task().tile[1];
  }
  MPK_FN void ask_for_residual(WorkContext<S>& c) {
    if (!L::residual || !has_first_row(c)) return;
    if constexpr (by_words<S>)
      added = __uint_as_float(ptx::load_relaxed(residual_pair(c, first_row(c))));
    else
      added = L::residual_of(c, 0, first_row(c));
  }
  // By words: the pair in which the residual of a row lies. It is long there, so who adds it looks whether it is.
  MPK_FN static const u32* residual_pair(WorkContext<S>& c, int r) {
    return (const u32*)c.template data<bf16>(4) + u32(r) / 2;
  }
  MPK_FN float residual_of(WorkContext<S>& c, int r, bool asked_before) {
    if constexpr (by_words<S> && L::residual) {
      u32 pair = asked_before ? __float_as_uint(added) : missing;
      c.await(4, [&] {
        if (pair == missing) pair = ptx::load_relaxed(residual_pair(c, r));
        return pair != missing;
      });
      return widen(half_of(pair, r));
    } else {
      return asked_before ? added : L::residual_of(c, 0, r);
    }
  }

  MPK_FN void multiply_page(WorkContext<S>& c, int first, int total, float* partial) {
    int lane = c.lane(), g = lane / 4, t = lane % 4;
    const char* page = c.page();
    u32 at = ptx::shared_address(page) + g * G::line_bytes + c.warp() * (L::run * 2) + t * 16 +
             (G::swapped ? (g & 1) * 64 : 0);
    uint4 a[G::fragments][2][2];
#pragma unroll
    for (int q = 0; q < G::fragments; ++q)
#pragma unroll
      for (int j = 0; j < 2; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) a[q][j][h] = ptx::load_shared((at ^ (j * 64)) + (q * 16 + h * 8) * G::line_bytes);
    c.release();
#pragma unroll
    for (int q = 0; q < G::fragments; ++q) {
      // The halves are added up apart and then joined, so that their order makes no difference.
      float sums[G::blocks][2][4];
#pragma unroll
      for (int i = 0; i < G::blocks; ++i)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) sums[i][j][e] = 0.0f;
          const uint4 &low = a[q][j][0], &high = a[q][j][1], &b = x[i][j];
          ptx::multiply(sums[i][j], low.x, high.x, low.y, high.y, b.x, b.y);
          ptx::multiply(sums[i][j], low.z, high.z, low.w, high.w, b.z, b.w);
        }
      int line = first / G::warps + q * 16 + g;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        int v = line + h * 8, n = int(u32(v) % u32(G::columns)), run = v * G::warps + c.warp();
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < G::blocks; ++i) {
          float even = sums[i][0][2 * h] + sums[i][1][2 * h], odd = sums[i][0][2 * h + 1] + sums[i][1][2 * h + 1];
          float mine = n & 1 ? odd : even;
          sum = i == 0 ? mine : ptx::select(n / 8 == i, mine, sum);
        }
        if (n % 8 / 2 == t && run < total) partial[run] = sum;
      }
    }
  }

  MPK_FN static float row_sum(const float* partial, int j) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < divide_up(vectors, lanes); ++i)
      if (i * lanes + j < vectors) {
        if constexpr (G::runs % 4 == 0) {
          float4 v = ((const float4*)partial)[i * lanes + j];
          sum += (v.x + v.y) + (v.z + v.w);
        } else {
          sum += partial[i * lanes + j];
        }
      }
    return lane_sum<lanes>(sum);
  }

  MPK_FN void add_up(WorkContext<S>& c, int r, int rows, const float* partial, float scale, bool first, Best& best) {
    int j = int(u32(c.thread()) % lanes);
    for (int base = 0; base < rows; base += groups) {
      int i = base + int(u32(c.thread()) / lanes), from = min(i, rows - 1) * G::runs;
      float y = row_sum(partial + from, j) * scale, up = 0.0f;
      if constexpr (L::gated) up = row_sum(partial + G::batch * G::runs + from, j) * scale;
      bool mine = j == 0 && i < rows;
      float value = 0.0f;
      if constexpr (by_words<S> && same<typename L::TO, bf16>) {
        bf16 low{}, high{};
        if (mine) low = L::outcome(c, r + i, y, up, residual_of(c, r + i, first && base == 0));
        value = widen(low);
        // A word that is handed over is stored whole: a row and its neighbour, which the next lanes hold.
        high.bits = u16(__shfl_down_sync(0xffffffffu, u32(low.bits), lanes));
        bf16* to = c.template data<bf16>(2) + r + i;
        if (!c.handed(2)) {
          if (mine) *to = low;
        } else if (mine && i % 2 == 0) {
          ptx::store_relaxed((u32*)to, pair_of(low, high));
        }
      } else if (mine) {
        value = L::finish(c, 0, r + i, y, up, residual_of(c, r + i, first && base == 0));
      }
      if constexpr (L::PARTS > 0)
        if (mine) best.see(value, r + i);
    }
  }

  MPK_FN static void reduce_best(WorkContext<S>& c, Best best, bool live) {
    Best* bests = (Best*)((float*)c.scratch + 2 * partial_floats + 16);
    best.see_lanes();
    if (c.lane() == 0) bests[c.warp()] = best;
    c.sync();
    if (c.thread() == 0 && live) {
      for (int w = 1; w < G::warps; ++w) best.see(bests[w].value, bests[w].index);
      L::write_best(c, 0, best);
    }
  }
};

}  // namespace mpk::ops
