// argmax_reduce: the best of each row's parts.
#pragma once

#include "mpklab/context.h"
#include "mpklab/host/vector.hpp"

#pragma GCC visibility push(hidden)

namespace mpk::ops {

// Operands: value f32[B,P], index i32[B,P], out i32[B]. Tile: none.
template <int P, int Rows, int Dim>
struct ArgmaxReduce {
  static constexpr unsigned scratch_bytes = 0;

  static void compute(const Context& c) {
    int rows = c.rows(Dim, Rows);
    for (int b = 0; b < rows; ++b) {
      const float* value = c.data<float>(0) + (long)b * P;
      const int* index = c.data<int>(1) + (long)b * P;
      int best = 0;
      for (int p = 1; p < P; ++p)
        if (beats(value[p], index[p], value[best], index[best])) best = p;
      c.data<int>(2)[b] = index[best];
    }
  }
};

}  // namespace mpk::ops

#pragma GCC visibility pop
