// rms_norm: each row divided by its root mean square, times a weight.
#pragma once

#include "mpklab/context.h"
#include "mpklab/host/vector.hpp"

#pragma GCC visibility push(hidden)

namespace mpk::ops {

// The sum of squares of n elements.
template <class T>
inline float square_sum(const T* x, int n) {
  Floats first{}, second{}, a, b;
  int i = 0;
  for (; i + pair_lanes <= n; i += pair_lanes) {
    split(x + i, a, b);
    first = a * a + first;
    second = b * b + second;
  }
  if (i < n) {
    split(x + i, a, b, n - i);
    first = a * a + first;
    second = b * b + second;
  }
  return sum(first + second);
}

// Operands: x T[B,H], weight T[H], out T[B,H]. Tile: rows [begin, end).
template <class T, int H, unsigned EPS, int Rows, int Dim>
struct RmsNorm {
  static constexpr unsigned scratch_bytes = 0;

  static void compute(const Context& c) {
    const T* weight = c.data<T>(1);
    int live = c.rows(Dim, Rows), end = c.task.tile[1] < live ? c.task.tile[1] : live;
    for (int b = c.task.tile[0]; b < end; ++b) {
      const T* x = c.data<T>(0) + (long)b * H;
      T* out = c.data<T>(2) + (long)b * H;
      float scale = inverse_root(square_sum(x, H) / float(H), EPS);
      for (int i = 0; i < H; i += lanes) store(out + i, load(x + i, H - i) * scale * load(weight + i, H - i), H - i);
    }
  }
};

}  // namespace mpk::ops

#pragma GCC visibility pop
