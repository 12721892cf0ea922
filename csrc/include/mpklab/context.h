// What an operator sees of its task: tile, operands, live sizes, scratch. Nothing here waits or signals.
#pragma once

#include "mpklab/platform.h"

namespace mpk {

struct Context {
  const Launch& launch;
  const Task& task;
  const Step& step;
  char* scratch;  // this worker's own memory, 128-byte aligned
  Step* next;     // the step task writes the next iteration's StepControl here, else null

  MPK_FN const Slot& slot(int operand) const { return ((const Slot*)launch.slots)[task.slots[operand]]; }
  template <class T>
  MPK_FN T* data(int operand) const {
    return (T*)slot(operand).base;
  }
  // A row of a tensor that may lie in several pieces (q, k and v as three allocations, say).
  template <class T>
  MPK_FN const T* row(int operand, int index, int columns) const {
    const Slot& s = slot(operand);
    const Segment* parts = (const Segment*)s.segments;
    for (u32 i = 0; i < s.n_segments; ++i)
      if (u32(index) < parts[i].end) return (const T*)parts[i].base + u64(u32(index) - parts[i].begin) * u64(columns);
    return (const T*)s.base + u64(index) * u64(columns);
  }
  // Live rows: the run-time size number `dim`, or `most` when the size is fixed.
  MPK_FN int rows(int dim, int most) const {
    if (dim < 0) return most;
    int live = step.dims[dim];
    return live < most ? live : most;
  }
};

template <class... V>
struct Variants {};

enum class Epilogue { none, silu_mul, residual };

}  // namespace mpk
