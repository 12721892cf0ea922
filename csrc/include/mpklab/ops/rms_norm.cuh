// rms_norm: each row divided by its root mean square, times a weight.
#pragma once

#include "mpklab/device/worker.cuh"

namespace mpk::ops {

// Operands: x T[B,H], weight T[H], out T[B,H]. Tile: rows [begin, end). One warp a row.
template <class T, int H, unsigned EPS, int Rows, int Dim>
struct RmsNorm {
  template <class S>
  static constexpr int scratch_bytes = 0;
  template <class S>
  static constexpr bool loads = false;

  template <class S>
  struct Work : Plain {
    MPK_FN void compute(WorkContext<S>& c) {
      const T* weight = c.template data<T>(1);
      int end = min(c.task().tile[1], c.rows(Dim, Rows));
      for (int b = c.task().tile[0] + c.warp(); b < end; b += S::warps) {
        const T* x = c.template data<T>(0) + long(b) * H;
        T* out = c.template data<T>(2) + long(b) * H;
        float squares = 0.0f;
        for (int i = c.lane(); i < H; i += 32) {
          float v = widen(load_one(x + i));
          squares += v * v;
        }
        float scale = inverse_root(lane_sum(squares) / float(H), EPS);
        for (int i = c.lane(); i < H; i += 32) out[i] = narrow<T>(widen(load_one(x + i)) * scale * widen(weight[i]));
      }
    }
  };
};

}  // namespace mpk::ops
