// add: the sum of two tensors.
#pragma once

#include "mpklab/context.h"
#include "mpklab/host/vector.hpp"

#pragma GCC visibility push(hidden)

namespace mpk::ops {

// Operands: a, b, out T[B,N]. Tile: columns [begin, end).
template <class T, int N, int Rows, int Dim>
struct Add {
  static constexpr unsigned scratch_bytes = 0;

  static void compute(const Context& c) {
    int begin = c.task.tile[0], end = c.task.tile[1], rows = c.rows(Dim, Rows);
    for (int r = 0; r < rows; ++r) {
      const T* a = c.data<T>(0) + (long)r * N;
      const T* b = c.data<T>(1) + (long)r * N;
      T* out = c.data<T>(2) + (long)r * N;
      for (int i = begin; i < end; i += lanes) store(out + i, load(a + i, end - i) + load(b + i, end - i), end - i);
    }
  }
};

}  // namespace mpk::ops

#pragma GCC visibility pop
