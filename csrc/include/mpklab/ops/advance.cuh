// advance: the chosen token becomes the next input, and the run stops when every request is done.
#pragma once

#include "mpklab/device/worker.cuh"

namespace mpk::ops {

// Operands: next_token i32[B], eos i32[E], limit i32[B], token i32[B], position i32[B], done i32[B], generated
// G[B,C]. The last four are written. limit counts the prompt: no token is generated at or past it. One lane a
// request.
template <int E, int C, int Rows, int Dim, class G = int>
struct Advance {
  template <class S>
  static constexpr int scratch_bytes = 0;
  template <class S>
  static constexpr bool loads = false;

  template <class S>
  struct Work : Plain {
    MPK_FN void compute(WorkContext<S>& c) {
      if (c.warp() != 0) return;
      int rows = c.rows(Dim, Rows);
      bool working = false;
      for (int b = c.lane(); b < rows; b += 32) {
        if (load_one(c.template data<int>(5) + b)) continue;
        int chosen = load_one(c.template data<int>(0) + b), at = load_one(c.template data<int>(4) + b) + 1;
        c.template data<int>(3)[b] = chosen;
        c.template data<int>(4)[b] = at;
        if (at >= 0 && at < C) c.template data<G>(6)[long(b) * C + at] = chosen;
        bool last = at + 1 >= load_one(c.template data<int>(2) + b) || at + 1 >= C;
        for (int i = 0; i < E; ++i) last |= chosen == load_one(c.template data<int>(1) + i);
        c.template data<int>(5)[b] = last;
        working |= !last;
      }
      bool any = __any_sync(0xffffffffu, working);
      if (!any && c.next && c.lane() == 0) c.next->stop = 1;
    }
  };
};

}  // namespace mpk::ops
