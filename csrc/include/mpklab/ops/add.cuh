// add: the sum of two tensors.
#pragma once

#include "mpklab/device/worker.cuh"

namespace mpk::ops {

// Operands: a, b, out T[B,N]. Tile: columns [begin, end).
template <class T, int N, int Rows, int Dim>
struct Add {
  template <class S>
  static constexpr int scratch_bytes = 0;
  template <class S>
  static constexpr bool loads = false;

  template <class S>
  struct Work : Plain {
    MPK_FN void compute(WorkContext<S>& c) {
      int begin = c.task().tile[0], width = c.task().tile[1] - begin, rows = c.rows(Dim, Rows);
      const T *a = c.template data<T>(0), *b = c.template data<T>(1);
      T* out = c.template data<T>(2);
      for (int i = c.thread(); i < rows * width; i += S::threads) {
        long at = long(i / width) * N + begin + i % width;
        out[at] = narrow<T>(widen(load_one(a + at)) + widen(load_one(b + at)));
      }
    }
  };
};

}  // namespace mpk::ops
