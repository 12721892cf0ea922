// The machine's own limit: every SM reads a large buffer once, in 16-byte words, and keeps nothing.
extern "C" __global__ void mpk_read(const uint4* from, unsigned long long count, unsigned* sink) {
  unsigned seen = 0;
  unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
  unsigned long long at = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
  for (; at + 3 * step < count; at += 4 * step) {
    uint4 a = __ldcs(from + at), b = __ldcs(from + at + step);
    uint4 c = __ldcs(from + at + 2 * step), d = __ldcs(from + at + 3 * step);
    seen ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w ^ c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
  }
  // Never true for the data at hand, but the compiler cannot know: the reads stay.
  if (seen == 0x9e3779b9u) *sink = seen;
}
