// argmax_reduce: the best of each row's parts.
#pragma once

#include "mpklab/device/worker.cuh"

namespace mpk::ops {

// Operands: value f32[B,P], index i32[B,P], out i32[B]. Tile: none. One warp a row.
template <int P, int Rows, int Dim>
struct ArgmaxReduce {
  template <class S>
  static constexpr int scratch_bytes = 0;
  template <class S>
  static constexpr bool loads = false;

  template <class S>
  struct Work : Plain {
    MPK_FN void compute(WorkContext<S>& c) {
      int rows = c.rows(Dim, Rows);
      for (int b = c.warp(); b < rows; b += S::warps) {
        Best best = Best::none();
        for (int p = c.lane(); p < P; p += 32)
          best.see(load_one(c.template data<float>(0) + b * P + p), load_one(c.template data<int>(1) + b * P + p));
        best.see_lanes();
        if (c.lane() == 0) c.template data<int>(2)[b] = best.index;
      }
    }
  };
};

}  // namespace mpk::ops
