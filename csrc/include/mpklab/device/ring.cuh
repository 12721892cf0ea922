// The ring of shared-memory pages between the loader warp and the consumer warps of a block.
#pragma once

#include "mpklab/platform.h"

namespace mpk {

// What a kernel chooses about its blocks.
template <int Level, int ConsumerWarps, int PageBytes, int Pages, int InFlight, int L2Bytes>
struct Shape {
  static constexpr int level = Level, warps = ConsumerWarps, threads = 32 * ConsumerWarps;
  static constexpr int page_bytes = PageBytes, pages = Pages, ring_bytes = PageBytes * Pages;
  static constexpr int l2_bytes = L2Bytes;  // of the next task's weights that may be sent ahead to the L2
  // Pages asked for and not yet landed. More than keep the memory busy only lengthen the queue in front of every
  // other access of the SM: signals, polls and activations wait behind them.
  static constexpr int in_flight = InFlight;
  static_assert(InFlight >= 1 && InFlight <= Pages, "between one page and all of them");
  static_assert(ConsumerWarps >= 4 && ConsumerWarps <= 16, "8 or 16 consumer warps are meant");
  static_assert(PageBytes % 4096 == 0, "a page holds whole runs of every consumer warp");
};

// The shape of a kernel that holds one operator and runs its tasks once: the order of the grids stands for the events.
template <class S>
struct OneOperator : S {};
template <class S>
constexpr bool one_operator = false;
template <class S>
constexpr bool one_operator<OneOperator<S>> = true;
// What its launch says beside what every launch says.
struct Operands {
  u16 slots[max_slots];
};

// The shape of a kernel in which some tensors are handed over by their own words.
template <class S>
struct ByWords : S {};
template <class S>
constexpr bool by_words = false;
template <class S>
constexpr bool by_words<ByWords<S>> = true;

// Two barriers a page: `full` ends a phase when the page's bytes have landed, `empty` when every consumer warp let go.
template <class S>
struct RingBarriers {
  u64 full[S::pages], empty[S::pages];

  MPK_FN void init() {
    for (int i = 0; i < S::pages; ++i) {
      ptx::barrier_init(full + i, MPK_BULK ? 1 : 32);
      ptx::barrier_init(empty + i, S::warps);
    }
  }
};

// A position in the ring: which page, and the parity of its current phase.
template <class S>
struct RingPosition {
  u32 page = 0, parity = 0;

  MPK_FN void advance() {
    if (++page == u32(S::pages)) page = 0, parity ^= 1;
  }
  // The position `count` pages ago, at most once around.
  MPK_FN RingPosition back(u32 count) const {
    return page >= count ? RingPosition{page - count, parity} : RingPosition{page + u32(S::pages) - count, parity ^ 1};
  }
};

}  // namespace mpk
