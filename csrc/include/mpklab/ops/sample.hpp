// sample_partial and sample_reduce: a token for each row, drawn by the rules of that row.
#pragma once

#include "mpklab/context.h"
#include "mpklab/host/vector.hpp"
#include "mpklab/ops/sample.h"

#pragma GCC visibility push(hidden)

namespace mpk::ops {

// What the two stages need of those who work on a tile together: here one thread.
struct Alone {
  static constexpr int threads = 1, warps = 1, lanes = 1;
  int thread() const { return 0; }
  int warp() const { return 0; }
  int lane() const { return 0; }
  void sync() const {}
  template <class T>
  T load(const T* at) const {
    return *at;
  }
  template <class T>
  void add(T* at, T value) const {
    *at += value;
  }
  void maximum(u32* at, u32 value) const { *at = *at < value ? value : *at; }
  u32 next(u32* counts, int bin, bool) const { return counts[bin]++; }
  u64 before(u64) const { return 0; }
  void last(bool, u64&, u32&) const {}
  sample::Draw best(const sample::Draw& draw, sample::Draw*) const { return draw; }
};

// Operands: x TX[B,V], seen i32[B,V/32] (bit i % 32 of word i / 32: token i has occurred), sampling f32[B,5]
// (temperature, top_k, top_p, min_p, penalty), seed i32[B,3] (low, high, request), position i32[B], value f32[B,P],
// index i32[B,P], score f32[B,V], token i32[B,V], words i64[B,P,48]. Tile: columns [begin, end), part.
template <class TX, int V, int P, int Rows, int Dim>
struct SamplePartial {
  static constexpr unsigned scratch_bytes = sizeof(sample::PartialScratch<Alone>);

  static void compute(const Context& c) {
    int begin = c.task.tile[0], end = c.task.tile[1], p = c.task.tile[2], rows = c.rows(Dim, Rows);
    Alone team;
    for (int b = 0; b < rows; ++b) {
      const TX* x = c.data<TX>(0) + (long)b * V;
      const int* seen = c.data<int>(1) + (long)b * ((V + 31) / 32);
      sample::Rules rules = sample::Rules::load(team, c.data<float>(2), c.data<int>(3), c.data<int>(4), b);
      bool remembers = rules.penalty != 1.0f;
      auto load = [&](int i, bool& known) {
        known = remembers && (seen[i / 32] >> (i % 32) & 1);
        return widen(x[i]);
      };
      sample::part(team, *(sample::PartialScratch<Alone>*)c.scratch, rules, rules.filters(V), begin, end, load,
                   c.data<float>(5) + b * P + p, c.data<int>(6) + b * P + p, c.data<float>(7) + (long)b * V,
                   c.data<int>(8) + (long)b * V, c.data<u64>(9) + (long)(b * P + p) * sample::bins);
    }
  }
};

// Operands: value, index, score, token, words as above, sampling, seed, position, seen (the token's bit is set), out
// i32[B], cut f32[B] (the smallest score that the filters let pass). Tile: none.
template <int V, int P, int Rows, int Dim>
struct SampleReduce {
  static constexpr int held = 1;  // candidates are read where they lie
  static constexpr unsigned scratch_bytes = sizeof(sample::ReduceScratch<Alone, P, held>);

  static void compute(const Context& c) {
    int rows = c.rows(Dim, Rows);
    Alone team;
    for (int b = 0; b < rows; ++b) {
      sample::Rules rules = sample::Rules::load(team, c.data<float>(5), c.data<int>(6), c.data<int>(7), b);
      sample::Reduce<Alone, P, held> reduce{team,
                                            *(sample::ReduceScratch<Alone, P, held>*)c.scratch,
                                            rules,
                                            c.data<float>(0) + (long)b * P,
                                            c.data<int>(1) + (long)b * P,
                                            c.data<float>(2) + (long)b * V,
                                            c.data<int>(3) + (long)b * V,
                                            c.data<u64>(4) + (long)b * P * sample::bins,
                                            V};
      int token = reduce.draw(c.data<float>(10)[b]);
      c.data<int>(9)[b] = token;
      c.data<int>(8)[(long)b * ((V + 31) / 32) + token / 32] |= int(1u << (token % 32));
    }
  }
};

}  // namespace mpk::ops

#pragma GCC visibility pop
