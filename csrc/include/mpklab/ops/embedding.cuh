// embedding: the rows of a table that the tokens name.
#pragma once

#include "mpklab/device/worker.cuh"

namespace mpk::ops {

// Operands: token i32[B], weight T[V,H], out T[B,H]. Tile: columns [begin, end). A token outside the table makes NaN.
template <class T, int V, int H, int Rows, int Dim>
struct Embedding {
  template <class S>
  static constexpr int scratch_bytes = 0;
  template <class S>
  static constexpr bool loads = false;

  template <class S>
  struct Work : Plain {
    MPK_FN void compute(WorkContext<S>& c) {
      int begin = c.task().tile[0], width = c.task().tile[1] - begin, rows = c.rows(Dim, Rows);
      if constexpr (by_words<S> && same<T, bf16> && H % 2 == 0)
        if (c.handed(2)) return store_pairs(c, begin, width);
      for (int i = c.thread(); i < rows * width; i += S::threads) {
        int b = i / width, n = begin + i % width, token = load_one(c.template data<int>(0) + b);
        bool known = unsigned(token) < unsigned(V);
        c.template data<T>(2)[long(b) * H + n] = known ? c.template row<T>(1, token, H)[n] : narrow<T>(not_a_number());
      }
    }

   private:
    // One row in whole words. Each half is converted again, so that a NaN of the table is none of a missing word.
    static MPK_FN void store_pairs(WorkContext<S>& c, int begin, int width) {
      int token = load_one(c.template data<int>(0));
      bool known = unsigned(token) < unsigned(V);
      const T* row = known ? c.template row<T>(1, token, H) : nullptr;
      for (int n = begin + 2 * c.thread(); n < begin + width; n += 2 * S::threads) {
        float low = known ? widen(row[n]) : not_a_number(), high = known ? widen(row[n + 1]) : not_a_number();
        ptx::store_relaxed((u32*)(c.template data<T>(2) + n), ptx::pack_bf16(low, high));
      }
    }
  };
};

}  // namespace mpk::ops
