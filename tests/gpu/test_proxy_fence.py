"""The litmus of the proxy fence: what another SM wrote and signalled, read by a bulk copy, with the fence and without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mpklab import device

TRIALS = int(os.environ.get("MPKLAB_LITMUS_TRIALS", "2000000"))

# Pairs of blocks: the even one writes a row and releases a flag; the odd one acquires it, copies the row by the copy
# engine, counts stale words, and releases the flag back. Rows alternate, as those of a cache do.
SOURCE = """
#include "mpklab/device/ptx.cuh"
using namespace mpk;
typedef unsigned u32;
typedef unsigned long long u64;

template <bool Fence>
__device__ void play(u32* rows, u32* flags, u64* stale, u32 rounds) {
  __shared__ alignas(128) u32 page[256];
  __shared__ u64 full;
  u32 pair = blockIdx.x / 2, lane = threadIdx.x;
  u32 *written = flags + pair * 64, *read = flags + pair * 64 + 32;
  if (lane == 0) ptx::barrier_init(&full, 1), ptx::barrier_init_fence();
  __syncthreads();
  u64 policy = ptx::policy_evict_normal(), wrong = 0;
  for (u32 i = 1; i <= rounds; ++i) {
    u32* row = rows + (pair * 4 + i % 4) * 256;
    if (blockIdx.x % 2 == 0) {
      while (int(ptx::load_acquire_gpu(read) - (i - 1)) < 0) {
      }
      for (u32 k = lane; k < 256; k += 32) row[k] = i;
      __syncwarp();
      if (lane == 0) ptx::add_release_gpu(written, 1);
    } else {
      while (int(ptx::load_acquire_gpu(written) - i) < 0) {
      }
      __syncwarp();
      if (Fence) ptx::proxy_fence();
      if (lane == 0) {
        ptx::barrier_expect(&full, 1024);
        ptx::bulk_copy(page, row, 1024, &full, policy);
      }
      __syncwarp();
      while (!ptx::barrier_try(&full, (i - 1) & 1)) {
      }
      for (u32 k = lane; k < 256; k += 32) wrong += page[k] != i;
      __syncwarp();
      if (lane == 0) ptx::add_release_gpu(read, 1);
    }
  }
  if (wrong) atomicAdd(stale, wrong);
}
extern "C" __global__ void fenced(u64 rows, u64 flags, u64 stale, u64 rounds) {
  play<true>((u32*)rows, (u32*)flags, (u64*)stale, u32(rounds));
}
extern "C" __global__ void bare(u64 rows, u64 flags, u64 stale, u64 rounds) {
  play<false>((u32*)rows, (u32*)flags, (u64*)stale, u32(rounds));
}
"""


def stale_words(name: str, cubin: bytes, blocks: int, rounds: int) -> int:
    rows = torch.zeros(blocks // 2 * 4 * 256, dtype=torch.int32, device="cuda")
    flags = torch.zeros(blocks // 2 * 64, dtype=torch.int32, device="cuda")
    stale = torch.zeros(1, dtype=torch.int64, device="cuda")
    kernel = device.plain_kernel(cubin, name)
    kernel((blocks, 32), rows.data_ptr(), flags.data_ptr(), stale.data_ptr(), rounds)
    torch.cuda.synchronize()
    return int(stale)


def test_no_bulk_copy_sees_a_stale_word_behind_the_fence(tmp_path: Path) -> None:
    """MPKLAB_LITMUS_TRIALS=100000000 takes some ten seconds; the unfenced count is printed, whatever it is."""
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("below sm_90 there is no copy engine, and no other proxy")
    cubin, _ = device.compile_cubin(SOURCE, device.architecture(), "nvrtc", tmp_path)
    blocks = torch.cuda.get_device_properties(0).multi_processor_count // 2 * 2
    rounds = TRIALS // (blocks // 2)
    bare = stale_words("bare", cubin, blocks, rounds)
    fenced = stale_words("fenced", cubin, blocks, rounds)
    print(f"{rounds * (blocks // 2)} trials each: stale words {bare} without the fence, {fenced} with it")
    assert fenced == 0
