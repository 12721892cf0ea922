// For tests of the analyses: tasks that last longer than they need, where the entry file asks for it.
#pragma once

#include "mpklab/platform.h"

namespace mpk {

enum class Delayed { execution, signals };

// Holds up MPK_DELAYED of each task for which MPK_DELAYS(task, worker) is true by MPK_DELAY_NS, if these are defined.
template <Delayed What>
MPK_FN void delay([[maybe_unused]] u32 task, [[maybe_unused]] u32 worker) {
#ifdef MPK_DELAY_NS
  if (What != Delayed::MPK_DELAYED || !(MPK_DELAYS(task, worker))) return;
  u64 until = global_ns() + MPK_DELAY_NS;
  while (global_ns() < until) relax();
#endif
}

}  // namespace mpk
