// silu_mul: silu(gate) * up, element by element.
#pragma once

#include "mpklab/context.h"
#include "mpklab/host/vector.hpp"

#pragma GCC visibility push(hidden)

namespace mpk::ops {

// Operands: gate T[B,·], up T[B,·] (rows of GS and US elements, starting at GOFF and UOFF), out T[B,N]. Tile: columns.
template <class T, int N, int GOFF, int UOFF, int GS, int US, int Rows, int Dim>
struct SiluMul {
  static constexpr unsigned scratch_bytes = 0;

  static void compute(const Context& c) {
    int begin = c.task.tile[0], end = c.task.tile[1], rows = c.rows(Dim, Rows);
    for (int b = 0; b < rows; ++b) {
      const T* gate = c.data<T>(0) + (long)b * GS + GOFF;
      const T* up = c.data<T>(1) + (long)b * US + UOFF;
      T* out = c.data<T>(2) + (long)b * N;
      for (int i = begin; i < end; i += lanes)
        store(out + i, silu(load(gate + i, end - i)) * load(up + i, end - i), end - i);
    }
  }
};

}  // namespace mpk::ops

#pragma GCC visibility pop
