// argmax_partial: the largest element of one part of each row, and where it is.
#pragma once

#include "mpklab/context.h"
#include "mpklab/host/vector.hpp"

#pragma GCC visibility push(hidden)

namespace mpk::ops {

// Operands: x TX[B,V], value f32[B,P], index i32[B,P]. Tile: columns [begin, end), part. An empty part never wins.
template <class TX, int V, int P, int Rows, int Dim>
struct ArgmaxPartial {
  static constexpr unsigned scratch_bytes = 0;

  static void compute(const Context& c) {
    int begin = c.task.tile[0], end = c.task.tile[1], part = c.task.tile[2], rows = c.rows(Dim, Rows);
    for (int b = 0; b < rows; ++b) {
      const TX* x = c.data<TX>(0) + (long)b * V;
      Best best;
      for (int i = begin; i < end; i += lanes) best.see(load(x + i, end - i), i, end - i);
      best.result(c.data<float>(1)[b * P + part], c.data<int>(2)[b * P + part]);
    }
  }
};

}  // namespace mpk::ops

#pragma GCC visibility pop
