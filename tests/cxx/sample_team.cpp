// Drawing by a team of threads, as on a GPU, against one thread: equal bits, and no two threads in each other's way.
#include <barrier>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "mpklab/ops/sample.hpp"

using namespace mpk;
using namespace mpk::sample;

constexpr int Warps = 3, Lanes = 8, Threads = Warps * Lanes, Parts = 7, Vocabulary = 1203;

struct Block {
  std::barrier<> all{Threads}, warp[Warps]{std::barrier<>(Lanes), std::barrier<>(Lanes), std::barrier<>(Lanes)};
  u64 words[Threads];
  u32 digits[Threads];
  bool found[Threads];
  Draw draws[Threads];
};

// What Together does with shuffles, done with memory and barriers.
struct Many {
  static constexpr int threads = Threads, warps = Warps, lanes = Lanes;
  Block& block;
  int index;

  int thread() const { return index; }
  int warp() const { return index / Lanes; }
  int lane() const { return index % Lanes; }
  void sync() const { block.all.arrive_and_wait(); }
  void meet() const { block.warp[warp()].arrive_and_wait(); }
  template <class T>
  T load(const T* at) const {
    return *at;
  }
  template <class T>
  void add(T* at, T value) const {
    __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
  }
  void maximum(u32* at, u32 value) const {
    u32 old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (old < value && !__atomic_compare_exchange_n(at, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }
  u32 next(u32* counts, int bin, bool mine) const {
    block.words[index] = mine ? u64(bin) : ~u64(0);
    meet();
    u32 lower = 0, same = 0, start = mine ? counts[bin] : 0;
    for (int l = 0; l < Lanes; ++l)
      if (mine && block.words[warp() * Lanes + l] == u64(bin)) ++same, lower += l < lane();
    meet();
    if (mine && lower == 0) counts[bin] = start + same;
    meet();
    return start + lower;
  }
  u64 before(u64 x) const {
    block.words[index] = x;
    meet();
    u64 sum = 0;
    for (int l = 0; l < lane(); ++l) sum += block.words[warp() * Lanes + l];
    meet();
    return sum;
  }
  void last(bool found, u64& above, u32& digit) const {
    block.found[index] = found, block.words[index] = above, block.digits[index] = digit;
    meet();
    for (int i = warp() * Lanes; i < (warp() + 1) * Lanes; ++i)
      if (block.found[i]) above = block.words[i], digit = block.digits[i];
    meet();
  }
  Draw best(Draw draw, Draw*) const {
    block.draws[index] = draw;
    sync();
    for (int i = 0; i < Threads; ++i) draw.see(block.draws[i].value, block.draws[i].index);
    sync();
    return draw;
  }
};

struct Row {
  std::vector<float> value = std::vector<float>(Parts), score = std::vector<float>(Vocabulary);
  std::vector<int> index = std::vector<int>(Parts), token = std::vector<int>(Vocabulary);
  std::vector<u64> words = std::vector<u64>(Parts * bins);
  int chosen = -1;
  float cut = 0;
};

template <int Kept, class Team>
void draw(const Team& team, PartialScratch<Team>& first, ReduceScratch<Team, Parts, Kept>& second, const Rules& rules,
          const std::vector<float>& x, const int* bounds, Row& row) {
  auto load = [&](int i, bool& seen) {
    seen = i % 5 == 0;
    return x[i];
  };
  for (int p = 0; p < Parts; ++p)
    part(team, first, rules, rules.filters(Vocabulary), bounds[p], bounds[p + 1], load, &row.value[p], &row.index[p],
         row.score.data(), row.token.data(), &row.words[p * bins]);
  team.sync();
  Reduce<Team, Parts, Kept> reduce{team,
                                   second,
                                   rules,
                                   row.value.data(),
                                   row.index.data(),
                                   row.score.data(),
                                   row.token.data(),
                                   row.words.data(),
                                   Vocabulary};
  float cut;
  int chosen = reduce.draw(cut);
  if (team.thread() == 0) row.chosen = chosen, row.cut = cut;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Few candidates fit into Kept: with most rules they are read where they lie.
template <int Kept>
int faults(const Rules& rules, const std::vector<float>& x, const int* bounds) {
  Row one, many;
  ops::Alone alone;
  static PartialScratch<ops::Alone> first_alone;
  static ReduceScratch<ops::Alone, Parts, 1> second_alone;
  draw<1>(alone, first_alone, second_alone, rules, x, bounds, one);
  static PartialScratch<Many> first;
  static ReduceScratch<Many, Parts, Kept> second;
  Block block;
  std::vector<std::thread> threads;
  for (int t = 0; t < Threads; ++t)
    threads.emplace_back([&, t] { draw<Kept>(Many{block, t}, first, second, rules, x, bounds, many); });
  for (std::thread& t : threads) t.join();
  bool equal = same(one.value, many.value) && same(one.index, many.index) && one.chosen == many.chosen &&
               std::memcmp(&one.cut, &many.cut, sizeof one.cut) == 0;
  if (rules.filters(Vocabulary))
    equal &= same(one.score, many.score) && same(one.token, many.token) && same(one.words, many.words);
  if (!equal) std::printf("Kept %d: %d %g and %d %g\n", Kept, one.chosen, one.cut, many.chosen, many.cut);
  return !equal;
}

int main() {
  // temperature, top_p, min_p, penalty, top_k
  const Rules all[] = {{1.0f, 1.0f, 0.0f, 1.0f, 0, 1, 2, 3, 4},     {0.0f, 1.0f, 0.0f, 1.3f, 0, 1, 2, 3, 4},
                       {0.7f, 0.9f, 0.0f, 1.2f, 0, 1, 2, 3, 4},     {1.0f, 1.0f, 0.0f, 1.0f, 40, 1, 2, 3, 4},
                       {1.5f, 0.95f, 0.01f, 0.9f, 300, 1, 2, 3, 4}, {1.0f, 0.999f, 0.0f, 1.0f, 0, 1, 2, 3, 4},
                       {1.0f, 0.99f, 0.0f, 1.0f, 1100, 1, 2, 3, 4}, {1.0f, 1.0f, 0.05f, 1.0f, 0, 1, 2, 3, 4},
                       {0.2f, 0.05f, 0.0f, 1.0f, 0, 1, 2, 3, 4},    {3.0f, 0.5f, 0.0f, 1.0f, 0, 1, 2, 3, 4}};
  const int bounds[Parts + 1] = {0, 100, 100, 411, 412, 800, 1201, Vocabulary};
  int wrong = 0;
  for (int seed = 0; seed < 2; ++seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> bell(0.0f, seed ? 0.3f : 4.0f);
    std::vector<float> x(Vocabulary);
    for (float& value : x) value = seed ? bell(random) : float(int(bell(random) * 8)) / 8;
    for (int i = 0; i < Vocabulary; i += 17) x[i] = -infinity;
    for (const Rules& rules : all) wrong += faults<64>(rules, x, bounds) + faults<2048>(rules, x, bounds);
  }
  std::printf("%d faults\n", wrong);
  return wrong != 0;
}
