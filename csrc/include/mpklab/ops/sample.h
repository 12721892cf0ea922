// Drawing tokens, on both backends from this one text: scores, weights, random numbers, and who survives the filters.
//
// A float is only ever added to, multiplied or divided by functions that round once, and whole numbers do all sums. So
// equal logits give equal survivors and equal tokens, bit for bit, however they are cut into parts and wherever they
// run. The order of the filters is that of transformers: penalty, temperature, top-k, top-p, min-p.
#pragma once

#include "mpklab/platform.h"

namespace mpk::sample {

#if MPK_CUDA
MPK_FN float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
MPK_FN float times(float a, float b) { return __fmul_rn(a, b); }
MPK_FN float plus(float a, float b) { return __fadd_rn(a, b); }
MPK_FN float over(float a, float b) { return __fdiv_rn(a, b); }
MPK_FN int nearest(float x) { return __float2int_rn(x); }
MPK_FN u32 float_bits(float x) { return __float_as_uint(x); }
MPK_FN float from_bits(u32 x) { return __uint_as_float(x); }
MPK_FN int leading_zeros(u32 x) { return __clz(int(x)); }
#else
// No product below feeds a sum outside `fused`, so there is nothing that a compiler could contract.
MPK_FN float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
MPK_FN float times(float a, float b) { return a * b; }
MPK_FN float plus(float a, float b) { return a + b; }
MPK_FN float over(float a, float b) { return a / b; }
MPK_FN int nearest(float x) { return int(__builtin_rintf(x)); }
MPK_FN u32 float_bits(float x) { return __builtin_bit_cast(u32, x); }
MPK_FN float from_bits(u32 x) { return __builtin_bit_cast(float, x); }
MPK_FN int leading_zeros(u32 x) { return __builtin_clz(x); }
#endif

// --- numbers ---

constexpr float ln2 = 0.693147182f, ln2_rest = -1.90465421e-9f, log2e = 1.44269502f;

// log(2^exponent * (1 + f)) for f between sqrt(1/2) - 1 and sqrt(2) - 1, to 2 ulp. The polynomial is fitted.
MPK_FN float log_parts(float f, float exponent) {
  float p = fused(0.07149754f, f, -0.115712006f);
  p = fused(p, f, 0.11661511f);
  p = fused(p, f, -0.124110505f);
  p = fused(p, f, 0.14249937f);
  p = fused(p, f, -0.1666848f);
  p = fused(p, f, 0.20000708f);
  p = fused(p, f, -0.2499999f);
  p = fused(p, f, 0.3333333f);
  float square = times(f, f);
  float y = fused(times(f, square), p, fused(-0.5f, square, f));
  return fused(exponent, ln2, fused(exponent, ln2_rest, y));
}

// The logarithm of a positive, normal number.
MPK_FN float log(float x) {
  int exponent = (int(float_bits(x)) - 0x3f3504f3) >> 23;
  return log_parts(plus(from_bits(float_bits(x) - u32(exponent) * 0x800000u), -1.0f), float(exponent));
}

// exp(score) = mantissa * 2^(octave - 24), the mantissa a whole number around 2^24. Octaves rise with scores.
constexpr float most = 8388608.0f;  // scores lie between -most and most, so that octaves are exact floats
MPK_FN int octave(float score) { return nearest(times(score, log2e)); }
MPK_FN u32 mantissa(float score, int octave) {
  float r = fused(-float(octave), ln2_rest, fused(-float(octave), ln2, score));
  float p = fused(0.0013937184f, r, 0.008365537f);
  p = fused(p, r, 0.041666433f);
  p = fused(p, r, 0.16666563f);
  p = fused(p, r, 0.5f);
  return u32(int(times(plus(fused(times(r, r), p, r), 1.0f), 16777216.0f)));
}

// Keys rise with the floats they come from.
MPK_FN u32 key_of(float x) {
  u32 word = float_bits(x);
  return word ^ (word >> 31 ? 0xffffffffu : 0x80000000u);
}
MPK_FN float of_key(u32 key) { return from_bits(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu)); }

// --- one row's rules ---

constexpr int columns = 5;  // of the operand `sampling`

struct Rules {
  float temperature, top_p, min_p, penalty;
  u32 top_k, seed_low, seed_high, request, position;  // position: of the token that is drawn

  template <class Team>
  static MPK_FN Rules load(const Team& team, const float* sampling, const int* seed, const int* position, int row) {
    const float* s = sampling + row * columns;
    return {team.load(s),
            team.load(s + 2),
            team.load(s + 3),
            team.load(s + 4),
            u32(int(team.load(s + 1))),
            u32(team.load(seed + row * 3)),
            u32(team.load(seed + row * 3 + 1)),
            u32(team.load(seed + row * 3 + 2)),
            u32(team.load(position + row) + 1)};
  }
  MPK_FN bool greedy() const { return !(temperature > 0.0f); }
  MPK_FN bool counts(int vocabulary) const { return top_k > 0 && top_k < u32(vocabulary); }
  MPK_FN bool filters(int vocabulary) const {
    return !greedy() && (counts(vocabulary) || top_p < 1.0f || min_p > 0.0f);
  }
  MPK_FN float penalised(float x, bool seen) const {
    if (!seen || penalty == 1.0f) return x;
    return x < 0.0f ? times(x, penalty) : over(x, penalty);
  }
  // What is no number counts as the largest one. The sum makes one zero of two.
  MPK_FN float score(float x, bool seen) const {
    float z = over(penalised(x, seen), temperature);
    if (!(z < most)) return most;
    return z > -most ? plus(z, 0.0f) : -most;
  }
};

// Philox4x32-10 (Salmon and others, 2011) over (seed; group of four tokens, position, request, 0): a word a token.
MPK_FN void random_words(const Rules& r, u32 group, u32 (&out)[4]) {
  u32 a = group, b = r.position, c = r.request, d = 0, k0 = r.seed_low, k1 = r.seed_high;
  for (int round = 0; round < 10; ++round) {
    u64 first = u64(a) * 0xd2511f53u, second = u64(c) * 0xcd9e8d57u;
    a = u32(second >> 32) ^ b ^ k0, b = u32(second);
    c = u32(first >> 32) ^ d ^ k1, d = u32(first);
    k0 += 0x9e3779b9u, k1 += 0xbb67ae85u;
  }
  out[0] = a, out[1] = b, out[2] = c, out[3] = d;
}

// Gumbel noise: the token with the largest score + noise is a draw from softmax(scores). -log of an exponential number,
// whose small values are exact in proportion: they make the large noise that decides.
MPK_FN float noise(u32 word) {
  constexpr float scale = 2.3283064e-10f;  // 2^-32
  float exponential = word < 1257966796u ? -log_parts(-times(plus(float(word), 0.5f), scale), 0.0f)
                                         : -log(times(plus(float(~word), 0.5f), scale));
  return -log(exponential);
}

// The running best by (value, lowest index), NaN first.
struct Draw {
  float value = from_bits(0xff800000u);
  int index = 0x7fffffff;

  MPK_FN void see(float other, int at) {
    bool nan = value != value, other_nan = other != other;
    if (other == value || (nan && other_nan)) {
      if (at < index) index = at;
    } else if (other_nan || (!nan && other > value)) {
      value = other, index = at;
    }
  }
};

// --- the first stage: one part of a row ---

// Scores are sorted by octave. Bin i of a part holds what lies i octaves below its largest, the last bin the rest. What
// lies more than `heavy` octaves below a row's largest weighs nothing, so the rest never does.
constexpr int bins = 48, heavy = 40;
// A word counts elements (19 bits) and sums their mantissas (45 bits): vocabularies below 2^19.
constexpr int count_shift = 45;
MPK_FN u32 count_of(u64 word) { return u32(word >> count_shift); }
MPK_FN u64 mass_of(u64 word) { return word & ((u64(1) << count_shift) - 1); }
MPK_FN int bin_of(int top, int octave) { return top - octave < bins - 1 ? top - octave : bins - 1; }

template <class Team>
struct PartialScratch {
  u64 words[bins];
  u32 counts[Team::warps][bins];
  Draw draws[Team::warps];
  u32 top;
};

// Without filters the part's best draw stands in (value, index). With them value is the largest score, index where the
// part begins, and the part's scores and tokens stand sorted by bin, in the order of tokens within one; words[i] tells
// of bins 0 … i together.
template <class Team, class Load>
MPK_FN void part(const Team& team, PartialScratch<Team>& scratch, const Rules& rules, bool filters, int begin, int end,
                 Load&& load, float* value, int* index, float* scores, int* tokens, u64* words) {
  team.sync();  // the row before has been read
  if (!filters) {
    Draw best;
    for (int group = begin / 4 + team.thread(); group * 4 < end; group += Team::threads) {
      u32 random[4];
      if (!rules.greedy()) random_words(rules, u32(group), random);
      for (int j = 0; j < 4; ++j) {
        int i = group * 4 + j;
        if (i < begin || i >= end) continue;
        bool seen;
        float x = load(i, seen);
        best.see(rules.greedy() ? rules.penalised(x, seen) : plus(rules.score(x, seen), noise(random[j])), i);
      }
    }
    best = team.best(best, scratch.draws);
    if (team.thread() == 0) *value = best.value, *index = best.index;
    return;
  }
  auto score = [&](int i) {
    bool seen;
    float x = load(i, seen);
    return rules.score(x, seen);
  };
  for (int i = team.thread(); i < bins; i += Team::threads) scratch.words[i] = 0;
  for (int i = team.thread(); i < Team::warps * bins; i += Team::threads) scratch.counts[i / bins][i % bins] = 0;
  if (team.thread() == 0) scratch.top = key_of(-most);
  team.sync();
  u32 top_key = 0;
  for (int i = begin + team.thread(); i < end; i += Team::threads) {
    u32 key = key_of(score(i));
    if (key > top_key) top_key = key;
  }
  team.maximum(&scratch.top, top_key);
  team.sync();
  float largest = of_key(scratch.top);
  int top = octave(largest);
  // Each warp has a stretch of the part.
  constexpr int width = Team::warps * Team::lanes;
  int stretch = (end - begin + width - 1) / width * Team::lanes;
  int first = begin + team.warp() * stretch, last = first + stretch < end ? first + stretch : end;
  for (int i = first + team.lane(); i < last; i += Team::lanes) {
    float z = score(i);
    int o = octave(z), bin = bin_of(top, o);
    team.add(&scratch.words[bin], (u64(1) << count_shift) + (bin < bins - 1 ? mantissa(z, o) : 0));
    team.add(&scratch.counts[team.warp()][bin], 1u);
  }
  team.sync();
  for (int bin = team.thread(); bin < bins; bin += Team::threads) {
    u32 before = 0;
    for (int w = 0; w < Team::warps; ++w) {
      u32 count = scratch.counts[w][bin];
      scratch.counts[w][bin] = before;
      before += count;
    }
  }
  if (team.thread() == 0)
    for (int bin = 1; bin < bins; ++bin) scratch.words[bin] += scratch.words[bin - 1];
  team.sync();
  for (int i = first; i < last; i += Team::lanes) {
    bool mine = i + team.lane() < last;
    float z = mine ? score(i + team.lane()) : 0.0f;
    int bin = bin_of(top, octave(z));
    u32 at = team.next(scratch.counts[team.warp()], bin, mine);
    if (bin > 0 && mine) at += count_of(scratch.words[bin - 1]);
    if (mine) scores[begin + int(at)] = z, tokens[begin + int(at)] = i + team.lane();
  }
  for (int bin = team.thread(); bin < bins; bin += Team::threads) words[bin] = scratch.words[bin];
  if (team.thread() == 0) *value = largest, *index = begin;
}

// --- the second stage: all parts of a row ---

constexpr int digits = 256;

template <class Team, int Parts, int Kept>
struct ReduceScratch {
  u64 totals[bins];
  u64 histogram[digits];
  Draw draws[Team::warps];
  int octaves[Parts], begins[Parts];
  u32 first[Parts + 1];
  float scores[Kept];  // as many of the candidates as there is room for, if there is room for all
  int tokens[Kept];
  u32 top;
};

// What a search found: the smallest key that stays, and words of the elements of its bin above it, and from it on.
struct Cut {
  u32 key;
  u64 above, from;
};

template <class Team, int Parts, int Kept>
struct Reduce {
  const Team& team;
  ReduceScratch<Team, Parts, Kept>& scratch;
  const Rules& rules;
  const float* values;
  const int* begins;
  const float* scores;
  const int* tokens;
  const u64* words;  // [Parts][bins]
  int vocabulary;
  int top = 0;
  u32 candidates = 0;
  bool held = false;  // all of them, in scratch

  // The token, and in `cut` the smallest score that survives. Valid in the first thread.
  MPK_FN int draw(float& cut) {
    team.sync();  // the row before has been read
    if (!rules.filters(vocabulary)) {
      Draw best;
      for (int p = team.thread(); p < Parts; p += Team::threads) best.see(team.load(values + p), team.load(begins + p));
      best = team.best(best, scratch.draws);
      cut = rules.greedy() ? best.value : from_bits(0xff800000u);
      return best.index;
    }
    float largest = add_up();
    int top_k_bin = -1, top_p_bin = -1;
    u64 mass = 0;  // of what top-k leaves
    u32 key = 0;
    float least = rules.min_p > 0.0f ? plus(plus(largest, log(rules.min_p)), 0.0f) : -most;
    int last = bin_of(top, octave(least));
    if (rules.counts(vocabulary)) {
      for (top_k_bin = 0; count_of(scratch.totals[top_k_bin]) < rules.top_k;) ++top_k_bin;
      last = top_k_bin;
    } else if (rules.top_p < 1.0f) {
      mass = mass_before(heavy + 1);
      top_p_bin = last = bin_at(double(rules.top_p) * double(mass), heavy);
    }
    collect(last);
    if (top_k_bin >= 0) {
      u32 before = top_k_bin ? count_of(scratch.totals[top_k_bin - 1]) : 0;
      Cut found = search<false>(top_k_bin, before, double(rules.top_k));
      key = found.key;
      if (rules.top_p < 1.0f) {
        mass = mass_before(top_k_bin) + weighed(found.from, top_k_bin);
        int deepest = top_k_bin < heavy ? top_k_bin : heavy;
        top_p_bin = bin_at(double(rules.top_p) * double(mass), deepest);
      }
    }
    if (top_p_bin >= 0) {
      Cut found = search<true>(top_p_bin, mass_before(top_p_bin), double(rules.top_p) * double(mass));
      if (found.key > key) key = found.key;
    }
    if (rules.min_p > 0.0f && key_of(least) > key) key = key_of(least);
    Draw best;
    each(0, bin_of(top, octave(of_key(key))), [&](float z, int at) {
      if (key_of(z) < key) return;
      int token = held ? scratch.tokens[at] : team.load(tokens + at);
      u32 random[4];
      random_words(rules, u32(token) / 4, random);
      u32 j = u32(token) % 4;
      best.see(plus(z, noise(j == 0 ? random[0] : j == 1 ? random[1] : j == 2 ? random[2] : random[3])), token);
    });
    best = team.best(best, scratch.draws);
    cut = of_key(key);
    return best.index;
  }

 private:
  static constexpr int together = 8;  // loads under way at a time

  // Bins 0 … bin of the row, as far as this part has any of them. Always loads, so that loads can follow one another.
  MPK_FN u64 word(int part, int bin) const {
    int own = bin < bins - 1 ? bin - (top - scratch.octaves[part]) : bins - 1;
    u64 found = team.load(words + part * bins + (own < 0 ? 0 : own));
    return own < 0 ? 0 : found;
  }

  MPK_FN float add_up() {
    for (int i = team.thread(); i < bins; i += Team::threads) scratch.totals[i] = 0;
    if (team.thread() == 0) scratch.top = key_of(-most);
    team.sync();
    u32 top_key = 0;
    for (int p = team.thread(); p < Parts; p += Team::threads) {
      float value = team.load(values + p);
      scratch.begins[p] = team.load(begins + p);
      scratch.octaves[p] = octave(value);
      if (key_of(value) > top_key) top_key = key_of(value);
    }
    team.maximum(&scratch.top, top_key);
    team.sync();
    float largest = of_key(scratch.top);
    top = octave(largest);
    constexpr int groups = Team::threads / bins > 0 ? Team::threads / bins : 1;
    for (int i = team.thread(); i < bins * groups; i += Team::threads) {
      u64 sum = 0;
      for (int p = i / bins; p < Parts; p += together * groups) {
        u64 few[together];
        for (int j = 0; j < together; ++j) few[j] = word(p + j * groups < Parts ? p + j * groups : Parts - 1, i % bins);
        for (int j = 0; j < together; ++j) sum += p + j * groups < Parts ? few[j] : 0;
      }
      team.add(&scratch.totals[i % bins], sum);
    }
    team.sync();
    return largest;
  }

  // Masses in units of 2^-40 of a mantissa of the top octave.
  static MPK_FN u64 weighed(u64 word, int bin) { return bin > heavy ? 0 : mass_of(word) << 16 >> bin; }
  MPK_FN u64 in_bin(int bin) const { return scratch.totals[bin] - (bin ? scratch.totals[bin - 1] : 0); }
  MPK_FN u64 mass_before(int bin) const {
    u64 sum = 0;
    for (int i = 0; i < bin && i <= heavy; ++i) sum += weighed(in_bin(i), i);
    return sum;
  }
  // The last bin, not after `deepest`, that has elements and less than the limit before it.
  MPK_FN int bin_at(double limit, int deepest) const {
    u64 before = 0;
    int found = 0;
    for (int i = 0; i <= deepest && double(before) < limit; ++i) {
      u64 here = in_bin(i);
      if (count_of(here)) found = i;
      before += weighed(here, i);
    }
    return found;
  }

  // Makes candidates of all elements of bins 0 … last.
  MPK_FN void collect(int last) {
    for (int p = team.thread(); p < Parts; p += Team::threads) scratch.first[p] = count_of(word(p, last));
    team.sync();
    if (team.warp() == 0) {
      constexpr int each = (Parts + Team::lanes - 1) / Team::lanes;
      u64 sum = 0;
      for (int i = 0, p = team.lane() * each; i < each && p < Parts; ++i, ++p) sum += scratch.first[p];
      u32 before = u32(team.before(sum));
      for (int i = 0, p = team.lane() * each; i < each && p < Parts; ++i, ++p) {
        u32 count = scratch.first[p];
        scratch.first[p] = before;
        before += count;
        if (p == Parts - 1) scratch.first[Parts] = before;
      }
    }
    team.sync();
    candidates = scratch.first[Parts];
    held = candidates <= u32(Kept);
    if (held)
      for (u32 i = u32(team.thread()); i < candidates; i += Team::threads) {
        int low = 0, high = Parts;  // the last part that begins at or before i
        while (high - low > 1) {
          int middle = (low + high) / 2;
          if (scratch.first[middle] <= i)
            low = middle;
          else
            high = middle;
        }
        int at = scratch.begins[low] + int(i - scratch.first[low]);
        scratch.scores[i] = team.load(scores + at);
        scratch.tokens[i] = team.load(tokens + at);
      }
    team.sync();
  }

  // Calls f(score, where it lies) for the candidates of bins first … last, or for all where they are at hand; each
  // warp takes parts of its own, and loads several scores before it looks at any.
  template <class F>
  MPK_FN void each(int first, int last, F&& f) const {
    if (held) {
      for (u32 i = u32(team.thread()); i < candidates; i += Team::threads) f(scratch.scores[i], int(i));
      return;
    }
    for (int p = team.warp(); p < Parts; p += Team::warps) {
      int base = scratch.begins[p], end = base + int(count_of(word(p, last)));
      int begin = base + (first > 0 ? int(count_of(word(p, first - 1))) : 0);
      for (int i = begin + team.lane(); i < end; i += together * Team::lanes) {
        float few[together];
        for (int j = 0; j < together; ++j)
          few[j] = team.load(scores + (i + j * Team::lanes < end ? i + j * Team::lanes : i));
        for (int j = 0; j < together; ++j)
          if (i + j * Team::lanes < end) f(few[j], i + j * Team::lanes);
      }
    }
  }

  // Of a bin's elements those stay that have less than `limit` above them, `before` in the bins above and the rest in
  // their own: counted or by mass. A digit of their keys at a time.
  template <bool ByMass>
  MPK_FN Cut search(int bin, u64 before, double limit) {
    float centre = float(top - bin), slack = 0.01f + times(centre < 0.0f ? -centre : centre, 1e-6f);
    u32 low = bin == bins - 1 ? 0 : key_of(times(centre - 0.5f, ln2) - slack);
    u32 high = key_of(times(centre + 0.5f, ln2) + slack);
    u64 above = 0;
    for (;;) {
      u32 span = high - low;
      int shift = span > 255 ? 24 - leading_zeros(span) : 0;
      for (int i = team.thread(); i < digits; i += Team::threads) scratch.histogram[i] = 0;
      team.sync();
      each(bin, bin, [&](float z, int) {
        int o = octave(z);
        u32 key = key_of(z);
        if (bin_of(top, o) != bin || key < low || key > high) return;
        team.add(&scratch.histogram[(key - low) >> shift], (u64(1) << count_shift) + mantissa(z, o));
      });
      team.sync();
      // Every warp looks for the digit: the lanes side by side, from the largest digit down.
      constexpr int each = digits / Team::lanes;
      u64 sum = 0;
      for (int i = 0; i < each; ++i) sum += scratch.histogram[digits - 1 - team.lane() * each - i];
      u64 so_far = above + team.before(sum);
      bool found = false;
      u64 found_above = 0;
      u32 found_digit = 0;
      for (int i = 0; i < each; ++i) {
        u32 digit = u32(digits - 1 - team.lane() * each - i);
        u64 here = scratch.histogram[digit];
        u64 measure = before + (ByMass ? weighed(so_far, bin) : count_of(so_far));
        if (here && double(measure) < limit) found = true, found_above = so_far, found_digit = digit;
        so_far += here;
      }
      team.last(found, found_above, found_digit);
      u64 here = scratch.histogram[found_digit];
      team.sync();  // all have read the digits
      above = found_above;
      low += found_digit << shift;
      if (shift == 0) return {low, above, above + here};
      u32 end = low + ((1u << shift) - 1);
      high = end < high ? end : high;
    }
  }
};

// How many candidates a block keeps at hand; more are read again where they lie.
constexpr int kept = 1024;

}  // namespace mpk::sample
