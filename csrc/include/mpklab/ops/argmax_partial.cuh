// argmax_partial: the largest element of one part of each row, and where it is.
#pragma once

#include "mpklab/device/worker.cuh"

namespace mpk::ops {

// Operands: x TX[B,V], value f32[B,P], index i32[B,P]. Tile: columns [begin, end), part. An empty part never wins.
template <class TX, int V, int P, int Rows, int Dim>
struct ArgmaxPartial {
  template <class S>
  static constexpr int scratch_bytes = S::warps * int(sizeof(Best));
  template <class S>
  static constexpr bool loads = false;

  template <class S>
  struct Work : Plain {
    MPK_FN void compute(WorkContext<S>& c) {
      int begin = c.task().tile[0], end = c.task().tile[1], part = c.task().tile[2], rows = c.rows(Dim, Rows);
      Best* bests = (Best*)c.scratch;
      for (int b = 0; b < rows; ++b) {
        const TX* x = c.template data<TX>(0) + long(b) * V;
        Best best = Best::none();
        for (int i = begin + c.thread(); i < end; i += S::threads) best.see(widen(load_one(x + i)), i);
        best.see_lanes();
        c.sync();  // the row before has been read
        if (c.lane() == 0) bests[c.warp()] = best;
        c.sync();
        if (c.thread() == 0) {
          for (int w = 1; w < S::warps; ++w) best.see(bests[w].value, bests[w].index);
          c.template data<float>(1)[b * P + part] = best.value;
          c.template data<int>(2)[b * P + part] = best.index;
        }
      }
    }
  };
};

}  // namespace mpk::ops
