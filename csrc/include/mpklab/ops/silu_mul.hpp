// silu_mul: silu(gate) * up, element by element.
#pragma once

#include "mpklab/context.h"
#include "mpklab/host/vector.hpp"

#pragma GCC visibility push(hidden)

namespace mpk::ops {

// Operands: gate T[B,·], up T[B,·] (rows of GS and US elements, starting at GOFF and UOFF), out T[B,N]. Tile: columns.
// With GROUPS, gate and up alternate in runs of N / GROUPS columns.
template <class T, int N, int GOFF, int UOFF, int GS, int US, int Rows, int Dim, int GROUPS = 1>
struct SiluMul {
  static constexpr unsigned scratch_bytes = 0;

  static void compute(const Context& c) {
    int begin = c.task.tile[0], end = c.task.tile[1], rows = c.rows(Dim, Rows);
    for (int b = 0; b < rows; ++b) {
      const T* gate = c.data<T>(0) + (long)b * GS + GOFF;
      const T* up = c.data<T>(1) + (long)b * US + UOFF;
      T* out = c.data<T>(2) + (long)b * N;
      for (int first = begin, last; first < end; first = last) {
        constexpr int run = N / GROUPS;
        last = GROUPS > 1 && (first / run + 1) * run < end ? (first / run + 1) * run : end;
        int before = GROUPS == 1 ? 0 : first / run * run;  // columns of the other kind that lie before this run
        for (int i = first; i < last; i += lanes)
          store(out + i, silu(load(gate + before + i, last - i)) * load(up + before + i, last - i), last - i);
      }
    }
  }
};

}  // namespace mpk::ops

#pragma GCC visibility pop
