// advance: the chosen token becomes the next input, and the run stops when every request is done.
#pragma once

#include "mpklab/context.h"

#pragma GCC visibility push(hidden)

namespace mpk::ops {

// Operands: next_token i32[B], eos i32[E], limit i32[B], token i32[B], position i32[B], done i32[B], generated
// G[B,C]. The last four are written. limit counts the prompt: no token is generated at or past it.
template <int E, int C, int Rows, int Dim, class G = int>
struct Advance {
  static constexpr unsigned scratch_bytes = 0;

  static void compute(const Context& c) {
    const int* next_token = c.data<int>(0);
    const int* eos = c.data<int>(1);
    const int* limit = c.data<int>(2);
    int* token = c.data<int>(3);
    int* position = c.data<int>(4);
    int* done = c.data<int>(5);
    G* generated = c.data<G>(6);
    int rows = c.rows(Dim, Rows), working = 0;
    for (int b = 0; b < rows; ++b) {
      if (done[b]) continue;
      int chosen = next_token[b], at = position[b] + 1;
      token[b] = chosen;
      position[b] = at;
      if (at >= 0 && at < C) generated[(long)b * C + at] = chosen;
      bool last = at + 1 >= limit[b] || at + 1 >= C;
      for (int i = 0; i < E; ++i) last |= chosen == eos[i];
      done[b] = last;
      working += !last;
    }
    if (working == 0 && c.next) c.next->stop = 1;
  }
};

}  // namespace mpk::ops

#pragma GCC visibility pop
