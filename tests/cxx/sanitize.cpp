// A toy decoder of every operator on several workers, for builds with a sanitizer: prints "clean" when all runs agree.
#include <stdio.h>
#include <string.h>

#include <memory>
#include <vector>

#include "mpklab/host/worker.hpp"
#include "mpklab/ops/add.hpp"
#include "mpklab/ops/advance.hpp"
#include "mpklab/ops/argmax_partial.hpp"
#include "mpklab/ops/argmax_reduce.hpp"
#include "mpklab/ops/attention.hpp"
#include "mpklab/ops/attention_merge.hpp"
#include "mpklab/ops/embedding.hpp"
#include "mpklab/ops/linear.hpp"
#include "mpklab/ops/rms_norm.hpp"
#include "mpklab/ops/silu_mul.hpp"

namespace {

using namespace mpk;
using namespace mpk::ops;

constexpr int B = 2, H = 40, HQ = 4, HKV = 2, D = 12, QKV = (HQ + 2 * HKV) * D, C = 24, F = 36, V = 61, P = 3, S = 2;
constexpr unsigned eps = 0x3727c5acu;
using T = bf16;

enum {
  embed,
  norm,
  qkv,
  attend,
  merge,
  project,
  merge_project,
  gate_up,
  down,
  both,
  gated,
  plain_down,
  sum,
  head,
  best,
  reduce,
  advance
};
using Kernel =
    Variants<Embedding<T, V, H, B, 0>, RmsNorm<T, H, eps, B, 0>,
             Linear<T, T, QKV, H, B, 0, 0, eps, Epilogue::none, 1, 0, 1, T, 0>,
             Attention<T, HQ, HKV, D, C, S, 0, HQ * D, (HQ + HKV) * D, QKV, QKV, QKV, 1, eps, float, B, 0>,
             AttentionMerge<T, HQ, D, S, float, B, 0>,
             Linear<T, T, H, HQ * D, B, 0, 0, eps, Epilogue::residual, 0, 0, 1, T, 0>,
             Linear<T, T, H, HQ * D, B, 0, 0, eps, Epilogue::residual, 0, S, D, float, 0>,
             Linear<T, T, F, H, B, 0, 1, eps, Epilogue::silu_mul, 0, 0, 1, T, 0>,
             Linear<T, T, H, F, B, 0, 0, eps, Epilogue::residual, 0, 0, 1, T, 0>,
             Linear<T, T, 2 * F, H, B, 0, 1, eps, Epilogue::none, 0, 0, 1, T, 0>,
             SiluMul<T, F, 0, F, 2 * F, 2 * F, B, 0>, Linear<T, T, H, F, B, 0, 0, eps, Epilogue::none, 0, 0, 1, T, 0>,
             Add<T, H, B, 0>, Linear<T, float, V, H, B, 0, 1, eps, Epilogue::none, 0, 0, 1, T, P>,
             ArgmaxPartial<float, V, P, B, 0>, ArgmaxReduce<P, B, 0>, Advance<1, C, B, 0>>;

// One run: its memory (each tensor an allocation of its own, so that a step over its edge shows) and its tables.
struct Toy {
  std::vector<std::unique_ptr<char[]>> memory;
  std::vector<Slot> slots;
  std::vector<Task> tasks;
  std::vector<Wait> waits;
  std::vector<Signal> signals;
  std::vector<int> needs;
  u32 random = 1;
  u32 last = no_word;  // the event of the stage before
  int limit = 9;

  float uniform() {
    random = random * 1664525u + 1013904223u;
    return float(random >> 8) / float(1 << 23) - 1.0f;
  }
  template <class X>
  X* tensor(int n, u16& slot) {
    memory.emplace_back(new char[n * sizeof(X)]());
    slot = u16(slots.size());
    Slot s{};
    s.base = (u64)memory.back().get();
    slots.push_back(s);
    return (X*)memory.back().get();
  }
  u16 weight(int n) {
    u16 slot;
    T* w = tensor<T>(n, slot);
    for (int i = 0; i < n; ++i) w[i] = narrow<T>(uniform());
    return slot;
  }
  template <class X>
  u16 space(int n) {
    u16 slot;
    tensor<X>(n, slot);
    return slot;
  }
  u16 numbers(int a, int b) {
    u16 slot;
    int* x = tensor<int>(2, slot);
    x[0] = a, x[1] = b;
    return slot;
  }

  // Tasks that wait for the stage before and together make one event happen.
  void stage(int variant, std::vector<u16> operands, std::vector<std::vector<int>> tiles, int flags = 0) {
    u32 event = u32(needs.size());
    needs.push_back(int(tiles.size()));
    for (auto& tile : tiles) {
      Task t{};
      t.variant = u16(variant), t.flags = (unsigned char)flags;
      for (size_t i = 0; i < tile.size(); ++i) t.tile[i] = tile[i];
      for (size_t i = 0; i < operands.size(); ++i) t.slots[i] = operands[i];
      t.waits = u32(waits.size()), t.n_waits = 1;
      waits.push_back({last == no_word ? 0 : last, 0, no_word, last == no_word, 0, 0, 0});
      t.signals = u32(signals.size()), t.n_signals = 1;
      signals.push_back({event, 1, 0, 0});
      tasks.push_back(t);
    }
    last = event;
  }
  static std::vector<std::vector<int>> cut(int n, int parts) {
    std::vector<std::vector<int>> tiles;
    for (int i = 0; i < parts; ++i) tiles.push_back({n * i / parts, n * (i + 1) / parts, i});
    return tiles;
  }

  u16 logits_slot, generated_slot;
  Toy() {
    u16 token = numbers(5, 17), position = numbers(0, 2), done = numbers(0, 0), next = numbers(0, 0);
    u16 limits = numbers(limit, limit - 1), eos = numbers(-1, -1);
    u16 x = space<T>(B * H), y = space<T>(B * H), z = space<T>(B * H), mixed = space<T>(B * QKV);
    u16 partial = space<float>(B * HQ * S * D), stats = space<float>(B * HQ * S * 2), attended = space<T>(B * HQ * D);
    u16 wide = space<T>(B * 2 * F), narrow_one = space<T>(B * F), logits = space<float>(B * V);
    u16 value = space<float>(B * P), index = space<int>(B * P), generated = space<int>(B * C), rope;
    float* angles = tensor<float>(C * D, rope);
    for (int i = 0; i < C * D; ++i) angles[i] = uniform();
    u16 keys = space<T>(B * HKV * C * D), values = space<T>(B * HKV * C * D);
    std::vector<std::vector<int>> heads;
    for (int b = 0; b < B; ++b)
      for (int kv = 0; kv < HKV; ++kv)
        for (int s = 0; s < S; ++s) heads.push_back({b, kv, s});

    stage(embed, {token, weight(V * H), x}, cut(H, 2));
    for (int layer = 0; layer < 2; ++layer) {
      stage(norm, {x, weight(H), y}, cut(B, 2));
      stage(qkv, {y, weight(QKV * H), mixed, 0, 0, weight(QKV)}, cut(QKV, 4));
      stage(attend, {mixed, mixed, mixed, weight(D), weight(D), rope, keys, values, position, partial, stats}, heads);
      if (layer == 0) {
        stage(merge, {partial, stats, attended}, {{0, 0, 3}, {0, 3, 4}, {1, 0, 4}});
        stage(project, {attended, weight(H * HQ * D), y, 0, x}, cut(H, 3));
        stage(gate_up, {y, weight(2 * F * H), narrow_one, weight(H)}, cut(F, 4));
        stage(down, {narrow_one, weight(H * F), x, 0, y}, cut(H, 3));
      } else {
        stage(merge_project, {partial, weight(H * HQ * D), y, 0, x, 0, stats}, cut(H, 3));
        stage(both, {y, weight(2 * F * H), wide, weight(H)}, cut(2 * F, 4));
        stage(gated, {wide, wide, narrow_one}, cut(F, 2));
        stage(plain_down, {narrow_one, weight(H * F), z}, cut(H, 3));
        stage(sum, {y, z, x}, cut(H, 2));
      }
    }
    u16 gain = weight(H);
    stage(head, {x, weight(V * H), logits, gain, 0, 0, 0, value, index}, cut(V, P));
    stage(best, {logits, value, index}, cut(V, P));
    stage(reduce, {value, index, next}, {{0}});
    stage(advance, {next, eos, limits, token, position, done, generated}, {{0}}, int(TaskFlag::step_));
    for (Wait& wait : waits) {
      if (wait.lag) wait.event = last;  // the first stage follows the last one of the iteration before
      wait.need = needs[wait.event];
    }
    logits_slot = logits, generated_slot = generated;
  }

  // How tasks reach workers: from queues, or from one ring or a ring each; hybrid leaves every third task in queues.
  struct Mode {
    bool pools, central, early, hybrid;
    u32 pop_ahead;
  };
  std::vector<Ring> rings;
  std::vector<Trigger> triggered;
  std::vector<Event> events;
  std::vector<u32> ready, pending, promised;
  static bool queued(const Mode& mode, u32 task) { return !mode.pools || (mode.hybrid && task % 3 == 0); }

  void fill_pools(Launch& launch, u32 workers, const Mode& mode) {
    u32 n = u32(tasks.size()), capacity = 1;
    while (capacity < n) capacity *= 2;
    rings.assign(mode.central ? 1 : workers, {});
    triggered.clear();
    auto trigger = [&](u32 t, u16 waiting) { triggered.push_back({t, u16(mode.central ? 0 : t % workers), waiting}); };
    for (u32 t = 0; t < n; ++t)
      if (!queued(mode, t) && waits[tasks[t].waits].lag) trigger(t, 0);
    u32 opening = u32(triggered.size());
    events.assign(needs.size(), {});
    for (u32 e = 0; e < needs.size(); ++e) {
      events[e] = {needs[e], no_word, u32(triggered.size()), 0};
      for (u32 t = 0; t < n; ++t)
        if (!queued(mode, t) && waits[tasks[t].waits].event == e && !waits[tasks[t].waits].lag) trigger(t, 1);
      events[e].n_tasks = u32(triggered.size()) - events[e].tasks;
    }
    ready.assign(rings.size() * capacity, 0), pending.assign(n, 0);
    promised.assign(mode.early ? needs.size() * event_stride : 0, 0);
    for (u32 r = 0; r < rings.size(); ++r) {
      rings[r].base = r * capacity, rings[r].mask = capacity - 1;
      for (u32 t = 0; t < n; ++t) rings[r].tasks += !queued(mode, t) && (mode.central || t % workers == r);
    }
    for (u32 i = 0; i < opening; ++i) {
      Ring& ring = rings[triggered[i].ring];
      ready[ring.base + ring.tail++] = triggered[i].task + 1;
    }
    launch.pools = (u64)rings.data(), launch.ready = (u64)ready.data(), launch.pending = (u64)pending.data();
    launch.triggered = (u64)triggered.data(), launch.events = (u64)events.data();
    launch.promised = mode.early ? (u64)promised.data() : 0;
    launch.n_rings = u32(rings.size()), launch.ring_classes = 1, launch.n_opening = opening;
    launch.pop_ahead = mode.pop_ahead, launch.n_tasks = n, launch.n_events = u32(needs.size());
  }

  Control control{};
  Host host{};
  int run(u32 workers, unsigned level, u64 wait_limit = 1ull << 40, Mode mode = {}) {
    std::vector<Entry> entries;
    std::vector<u32> queues{0};
    for (u32 w = 0; w < workers; ++w) {
      u16 ring = u16(mode.central ? 0 : w);
      for (u32 t = w; t < tasks.size(); t += workers) {
        if (!queued(mode, t)) continue;
        const Wait& wait = waits[tasks[t].waits];
        if (mode.pools && !wait.lag) entries.push_back({wait.event, u16(EntryKind::drain_), ring});
        entries.push_back({t, 0, 0});
      }
      if (mode.pools) entries.push_back({no_word, u16(EntryKind::drain_), ring});
      queues.push_back(u32(entries.size()));
    }
    std::vector<u32> counters(needs.size() * event_stride);
    constexpr u32 capacity = 300;
    std::vector<u64> lanes(workers * (sizeof(Lane) / 8 + capacity));
    control = {}, host = {};
    control.published = 1;
    control.step[0].dims[0] = B;
    Launch launch{};
    launch.tasks = (u64)tasks.data(), launch.waits = (u64)waits.data(), launch.signals = (u64)signals.data();
    launch.entries = (u64)entries.data(), launch.queues = (u64)queues.data(), launch.slots = (u64)slots.data();
    launch.counters = (u64)counters.data(), launch.control = (u64)&control, launch.host = (u64)&host;
    launch.lanes = (u64)lanes.data(), launch.lane_capacity = capacity, launch.lanes_per_worker = 1;
    launch.n_workers = workers, launch.n_tables = 1, launch.iterations = 100, launch.steps = 1;
    launch.wait_limit = wait_limit, launch.prefetch = 1;
    if (mode.pools) fill_pools(launch, workers, mode);
    return run_host<Kernel>(launch, level, nullptr);
  }
  bool same(const Toy& other) const {
    return !memcmp((void*)slots[logits_slot].base, (void*)other.slots[logits_slot].base, B * V * sizeof(float)) &&
           !memcmp((void*)slots[generated_slot].base, (void*)other.slots[generated_slot].base, B * C * sizeof(int));
  }
};

}  // namespace

int main() {
  Toy reference;
  if (reference.run(1, 0) != 0 || reference.host.progress != u32(reference.limit - 1)) return puts("no reference"), 1;
  for (u32 workers : {2u, 4u, 7u}) {
    for (unsigned level = 0; level < 4; ++level) {
      Toy toy;
      if (toy.run(workers, level) != 0) return printf("%u workers, level %u failed\n", workers, level), 1;
      if (!toy.same(reference)) return printf("%u workers, level %u differ\n", workers, level), 1;
    }
  }
  for (u32 workers : {1u, 3u, 6u})
    for (Toy::Mode mode : {Toy::Mode{true, true, false, false, 0}, Toy::Mode{true, false, false, false, 1},
                           Toy::Mode{true, true, true, false, 2}, Toy::Mode{true, false, true, false, 0},
                           Toy::Mode{true, true, false, true, 0}, Toy::Mode{true, false, true, true, 1}}) {
      Toy toy;
      if (toy.run(workers, 2, 1ull << 40, mode) != 0) return printf("%u workers with a pool failed\n", workers), 1;
      if (!toy.same(reference)) return printf("%u workers with a pool differ\n", workers), 1;
    }
  Toy stuck;
  stuck.tasks[10].flags |= (unsigned char)TaskFlag::drop_signals_;
  if (stuck.run(4, 2, 100'000'000, {true, true, false, false, 0}) != 1 || stuck.host.fault.state != 1)
    return puts("a fault of a pool went unseen"), 1;
  Toy broken;
  broken.tasks[10].flags |= (unsigned char)TaskFlag::drop_signals_;
  if (broken.run(4, 2, 100'000'000) != 1 || broken.host.fault.state != 1) return puts("the fault went unseen"), 1;
  puts("clean");
}
