// The machine's own limit on a CPU: each thread reads its share of a large buffer once, in order, and keeps nothing.
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <time.h>

namespace {

constexpr int most_threads = 256, unroll = 8;
typedef unsigned Words __attribute__((vector_size(64)));

struct Share {
  const char* from;
  unsigned long bytes;
  int cpu;
  unsigned seen;
  pthread_t thread;
};

void* read_share(void* argument) {
  Share& share = *(Share*)argument;
#if defined(__linux__)
  if (share.cpu >= 0) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(share.cpu, &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
  }
#endif
  Words seen[unroll] = {};
  for (unsigned long at = 0; at + unroll * sizeof(Words) <= share.bytes; at += unroll * sizeof(Words))
    for (int i = 0; i < unroll; ++i) {
      Words words;
      memcpy(&words, share.from + at + i * sizeof(Words), sizeof words);
      seen[i] ^= words;
    }
  for (int i = 1; i < unroll; ++i) seen[0] ^= seen[i];
  for (unsigned i = 0; i < sizeof(Words) / 4; ++i) share.seen ^= seen[0][i];
  return nullptr;
}

}  // namespace

// Seconds to read the buffer with so many threads, their start and end included; negative when one cannot be started.
extern "C" double mpk_read(const char* from, unsigned long bytes, int threads, const int* cpus, unsigned* sink) {
  if (threads < 1 || threads > most_threads) return -1.0;
  Share shares[most_threads] = {};
  unsigned long piece = bytes / threads / 4096 * 4096;
  timespec begin, end;
  clock_gettime(CLOCK_MONOTONIC, &begin);
  int started = 0;
  for (; started < threads; ++started) {
    shares[started].from = from + piece * started;
    shares[started].bytes = piece;
    shares[started].cpu = cpus ? cpus[started] : -1;
    if (pthread_create(&shares[started].thread, nullptr, read_share, shares + started) != 0) break;
  }
  for (int i = 0; i < started; ++i) {
    pthread_join(shares[i].thread, nullptr);
    *sink ^= shares[i].seen;
  }
  clock_gettime(CLOCK_MONOTONIC, &end);
  if (started < threads) return -1.0;
  return double(end.tv_sec - begin.tv_sec) + 1e-9 * double(end.tv_nsec - begin.tv_nsec);
}
