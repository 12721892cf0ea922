// embedding: the rows of a table that the tokens name.
#pragma once

#include "mpklab/context.h"
#include "mpklab/host/vector.hpp"

#pragma GCC visibility push(hidden)

namespace mpk::ops {

// Operands: token i32[B], weight T[V,H], out T[B,H]. Tile: columns [begin, end). A token outside the table makes NaN.
template <class T, int V, int H, int Rows, int Dim>
struct Embedding {
  static constexpr unsigned scratch_bytes = 0;

  static void compute(const Context& c) {
    const int* token = c.data<int>(0);
    T* out = c.data<T>(2);
    int begin = c.task.tile[0], end = c.task.tile[1], rows = c.rows(Dim, Rows);
    for (int b = 0; b < rows; ++b) {
      T* to = out + (long)b * H;
      if (unsigned(token[b]) >= unsigned(V)) {
        for (int i = begin; i < end; ++i) to[i] = narrow<T>(__builtin_nanf(""));
        continue;
      }
      const T* from = c.row<T>(1, token[b], H);
      for (int i = begin; i < end; ++i) to[i] = from[i];
    }
  }
};

}  // namespace mpk::ops

#pragma GCC visibility pop
