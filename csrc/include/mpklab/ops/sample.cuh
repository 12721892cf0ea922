// sample_partial and sample_reduce: a token for each row, drawn by the rules of that row.
#pragma once

#include "mpklab/device/worker.cuh"
#include "mpklab/ops/sample.h"

namespace mpk::ops {

// What the two stages need of those who work on a tile together: here all consumer warps.
template <class S>
struct Together {
  static constexpr int threads = S::threads, warps = S::warps, lanes = 32;
  const WorkContext<S>& c;

  MPK_FN int thread() const { return c.thread(); }
  MPK_FN int warp() const { return c.warp(); }
  MPK_FN int lane() const { return c.lane(); }
  MPK_FN void sync() const { c.sync(); }
  template <class T>
  MPK_FN T load(const T* at) const {
    return load_one(at);
  }
  MPK_FN u64 load(const u64* at) const {
    uint2 word = ptx::load_shared_by_all((const uint2*)at);
    return u64(word.y) << 32 | word.x;
  }
  // Whole numbers: their sums do not depend on who comes first.
  template <class T>
  MPK_FN void add(T* at, T value) const {
    atomicAdd(at, value);
  }
  MPK_FN void maximum(u32* at, u32 value) const {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
      u32 other = __shfl_xor_sync(0xffffffffu, value, d);
      value = other > value ? other : value;
    }
    if (lane() == 0) atomicMax(at, value);
  }
  // The next free places of each bin, to the lanes in their order.
  MPK_FN u32 next(u32* counts, int bin, bool mine) const {
    u32 same = __match_any_sync(0xffffffffu, mine ? bin : -1), lower = same & ((1u << lane()) - 1);
    u32 start = mine ? counts[bin] : 0;
    __syncwarp();
    if (mine && lower == 0) counts[bin] = start + u32(__popc(same));
    __syncwarp();
    return start + u32(__popc(lower));
  }
  // The sum over the lanes before this one.
  MPK_FN u64 before(u64 x) const {
    u64 sum = x;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      u64 other = __shfl_up_sync(0xffffffffu, sum, d);
      if (lane() >= d) sum += other;
    }
    return sum - x;
  }
  // To all lanes what the last lane holds that found something.
  MPK_FN void last(bool found, u64& above, u32& digit) const {
    int from = 31 - __clz(int(__ballot_sync(0xffffffffu, found)));
    from = from < 0 ? 0 : from;
    above = __shfl_sync(0xffffffffu, above, from);
    digit = __shfl_sync(0xffffffffu, digit, from);
  }
  // Of the whole block, known to the first thread.
  MPK_FN sample::Draw best(sample::Draw draw, sample::Draw* draws) const {
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
      float value = __shfl_xor_sync(0xffffffffu, draw.value, d);
      int index = __shfl_xor_sync(0xffffffffu, draw.index, d);
      draw.see(value, index);
    }
    if (lane() == 0) draws[warp()] = draw;
    sync();
    if (thread() == 0)
      for (int w = 1; w < warps; ++w) draw.see(draws[w].value, draws[w].index);
    return draw;
  }
};

// Operands: x TX[B,V], seen i32[B,V/32] (bit i % 32 of word i / 32: token i has occurred), sampling f32[B,5]
// (temperature, top_k, top_p, min_p, penalty), seed i32[B,3] (low, high, request), position i32[B], value f32[B,P],
// index i32[B,P], score f32[B,V], token i32[B,V], words i64[B,P,48]. Tile: columns [begin, end), part.
template <class TX, int V, int P, int Rows, int Dim>
struct SamplePartial {
  template <class S>
  static constexpr int scratch_bytes = int(sizeof(sample::PartialScratch<Together<S>>));
  template <class S>
  static constexpr bool loads = false;

  template <class S>
  struct Work : Plain {
    MPK_FN void compute(WorkContext<S>& c) {
      int begin = c.task().tile[0], end = c.task().tile[1], p = c.task().tile[2], rows = c.rows(Dim, Rows);
      Together<S> team{c};
      for (int b = 0; b < rows; ++b) {
        const TX* x = c.template data<TX>(0) + long(b) * V;
        const int* seen = c.template data<int>(1) + long(b) * ((V + 31) / 32);
        sample::Rules rules =
            sample::Rules::load(team, c.template data<float>(2), c.template data<int>(3), c.template data<int>(4), b);
        bool remembers = rules.penalty != 1.0f;
        auto load = [&](int i, bool& known) {
          known = remembers && (load_one(seen + i / 32) >> (i % 32) & 1);
          return widen(load_one(x + i));
        };
        sample::part(team, *(sample::PartialScratch<Together<S>>*)c.scratch, rules, rules.filters(V), begin, end, load,
                     c.template data<float>(5) + b * P + p, c.template data<int>(6) + b * P + p,
                     c.template data<float>(7) + long(b) * V, c.template data<int>(8) + long(b) * V,
                     c.template data<u64>(9) + long(b * P + p) * sample::bins);
      }
    }
  };
};

// Operands: value, index, score, token, words as above, sampling, seed, position, seen (the token's bit is set), out
// i32[B], cut f32[B] (the smallest score that the filters let pass). Tile: none.
template <int V, int P, int Rows, int Dim>
struct SampleReduce {
  template <class S>
  static constexpr int scratch_bytes = int(sizeof(sample::ReduceScratch<Together<S>, P, sample::kept>));
  template <class S>
  static constexpr bool loads = false;

  template <class S>
  struct Work : Plain {
    MPK_FN void compute(WorkContext<S>& c) {
      int rows = c.rows(Dim, Rows);
      Together<S> team{c};
      for (int b = 0; b < rows; ++b) {
        sample::Rules rules =
            sample::Rules::load(team, c.template data<float>(5), c.template data<int>(6), c.template data<int>(7), b);
        sample::Reduce<Together<S>, P, sample::kept> reduce{
            team,
            *(sample::ReduceScratch<Together<S>, P, sample::kept>*)c.scratch,
            rules,
            c.template data<float>(0) + long(b) * P,
            c.template data<int>(1) + long(b) * P,
            c.template data<float>(2) + long(b) * V,
            c.template data<int>(3) + long(b) * V,
            c.template data<u64>(4) + long(b) * P * sample::bins,
            V};
        float cut;
        int token = reduce.draw(cut);
        if (c.thread() == 0) {
          c.template data<int>(9)[b] = token;
          c.template data<float>(10)[b] = cut;
          int* word = c.template data<int>(8) + long(b) * ((V + 31) / 32) + token / 32;
          *word = load_one(word) | int(1u << (token % 32));
        }
      }
    }
  };
};

}  // namespace mpk::ops
