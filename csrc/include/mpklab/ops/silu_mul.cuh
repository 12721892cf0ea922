// silu_mul: silu(gate) * up, element by element.
#pragma once

#include "mpklab/device/worker.cuh"

namespace mpk::ops {

// Operands: gate T[B,·], up T[B,·] (rows of GS and US elements, starting at GOFF and UOFF), out T[B,N]. Tile: columns.
// With GROUPS, gate and up alternate in runs of N / GROUPS columns.
template <class T, int N, int GOFF, int UOFF, int GS, int US, int Rows, int Dim, int GROUPS = 1>
struct SiluMul {
  template <class S>
  static constexpr int scratch_bytes = 0;
  template <class S>
  static constexpr bool loads = false;

  template <class S>
  struct Work : Plain {
    MPK_FN void compute(WorkContext<S>& c) {
      int begin = c.task().tile[0], width = c.task().tile[1] - begin, rows = c.rows(Dim, Rows);
      const T *gate = c.template data<T>(0) + GOFF, *up = c.template data<T>(1) + UOFF;
      T* out = c.template data<T>(2);
      for (int i = c.thread(); i < rows * width; i += S::threads) {
        long b = i / width, n = begin + i % width;
        long at = GROUPS == 1 ? n : n + n / (N / GROUPS) * (N / GROUPS);  // past the runs of the other kind
        float g = widen(load_one(gate + b * GS + at)), u = widen(load_one(up + b * US + at));
        out[b * N + n] = narrow<T>(silu(g) * u);
      }
    }
  };
};

}  // namespace mpk::ops
