// linear: rows of a weight matrix times the activations, with what comes before and after fused in.
#pragma once

#include "mpklab/ops/linear_plain.cuh"
#include "mpklab/ops/linear_row.cuh"
#include "mpklab/ops/linear_rows.cuh"

namespace mpk::ops {

// Operands: 0 x T[B,K] or partial TP[B,HQ,SPLITS,D], 1 weight T[N or 2N,K], 2 out TO[B,N], 3 norm_weight T[K],
// 4 residual T[B,N], 5 bias T[N or 2N], 6 stats f32[B,HQ,SPLITS,2], 7 value f32[B,P], 8 index i32[B,P]; 3 to 8 only
// where the variant has them. Tile: weight rows [begin, end), part. A row's sum is made in one order whatever the tile,
// so every split of the rows gives the same bits.
template <class T, class TO, int N, int K, int Rows, int Dim, int NORM, unsigned EPS, Epilogue EPILOGUE, int BIAS,
          int SPLITS, int D, class TP, int PARTS>
struct Linear {
  using Is = LinearTraits<T, TO, N, K, Rows, Dim, NORM, EPS, EPILOGUE, BIAS, SPLITS, D, TP, PARTS>;

  // One row of activations: tensor cores over contiguous pages. Up to 16: tensor cores over blocks of rows. Else:
  // plain.
  template <class S>
  static constexpr bool row = Is::matrix && Rows == 1 && RowGeometry<Is, S>::blocks <= 4;
  template <class S>
  static constexpr bool rows = Is::matrix && !row<S> && Rows <= 16;

  template <bool A, bool B, class S>
  struct Choose {
    using Path = LinearPlain<Is, S>;
  };
  template <bool B, class S>
  struct Choose<true, B, S> {
    using Path = LinearRow<Is, S>;
  };
  template <class S>
  struct Choose<false, true, S> {
    using Path = LinearRows<Is, S>;
  };
  template <class S>
  using Work = typename Choose<row<S>, rows<S>, S>::Path;
  template <class S>
  static constexpr int scratch_bytes = Work<S>::scratch_bytes;
  template <class S>
  static constexpr bool loads = row<S> || rows<S>;
  template <class S>
  static MPK_FN void load(LoadContext<S>& c) {
    Work<S>::load(c);
  }
  // The weights this tile reads first. Segmented weights stay out: where they begin is not worth another trip to
  // memory.
  template <class S>
  static MPK_FN Ahead ahead(const Descriptor& described) {
    constexpr u64 row_bytes = u64(K) * sizeof(T);
    int begin = described.task.tile[0], end = described.task.tile[1];
    u32 all = u32(end - begin) * u32(Is::streams * row_bytes);
    u32 most = min(u32(S::l2_bytes), all) / Is::streams / 16 * 16;
    u64 base = described.bases[1];
    return {base + u64(begin) * row_bytes, N * row_bytes, base ? u32(Is::streams) : 0u, most, all};
  }
};

}  // namespace mpk::ops
