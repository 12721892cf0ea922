// Every device header, each operator instantiated: what CI compiles for every architecture so that no header rots
// unseen.
#include "mpklab/device/worker.cuh"
#include "mpklab/ops/add.cuh"
#include "mpklab/ops/advance.cuh"
#include "mpklab/ops/argmax_partial.cuh"
#include "mpklab/ops/argmax_reduce.cuh"
#include "mpklab/ops/attention.cuh"
#include "mpklab/ops/attention_merge.cuh"
#include "mpklab/ops/embedding.cuh"
#include "mpklab/ops/linear.cuh"
#include "mpklab/ops/rms_norm.cuh"
#include "mpklab/ops/sample.cuh"
#include "mpklab/ops/silu_mul.cuh"

using namespace mpk;
using namespace mpk::ops;
constexpr unsigned eps = 0x358637bdu;  // 1e-6

// A decode step of Qwen3-0.6B's sizes: what is tuned.
template <int Rows, int Dim>
using Decode = Variants<Embedding<bf16, 151936, 1024, Rows, Dim>,
                        Linear<bf16, bf16, 4096, 1024, Rows, Dim, 1, eps, Epilogue::none, 0, 0, 1, bf16, 0>,
                        Attention<bf16, 16, 8, 128, 1024, 16, 0, 2048, 3072, 4096, 4096, 4096, 1, eps, bf16, Rows, Dim>,
                        Linear<bf16, bf16, 1024, 2048, Rows, Dim, 0, eps, Epilogue::residual, 0, 16, 128, bf16, 0>,
                        Linear<bf16, bf16, 3072, 1024, Rows, Dim, 1, eps, Epilogue::silu_mul, 0, 0, 1, bf16, 0>,
                        Linear<bf16, bf16, 1024, 3072, Rows, Dim, 0, eps, Epilogue::residual, 0, 0, 1, bf16, 0>,
                        Linear<bf16, float, 151936, 1024, Rows, Dim, 1, eps, Epilogue::none, 0, 0, 1, bf16, 132>,
                        ArgmaxReduce<132, Rows, Dim>, Advance<1, 1024, Rows, Dim>>;

// The same step's end where tokens are drawn.
template <int Rows, int Dim>
using Drawn = Variants<SamplePartial<float, 151936, 132, Rows, Dim>, SamplePartial<bf16, 97, 3, Rows, Dim>,
                       SampleReduce<151936, 132, Rows, Dim>, SampleReduce<97, 3, Rows, Dim>>;

// Small, odd and float32: what must be right.
template <class T, class TP, int Rows, int Dim>
using Odd =
    Variants<Embedding<T, 97, 40, Rows, Dim>, RmsNorm<T, 40, eps, Rows, Dim>, SiluMul<T, 24, 0, 24, 48, 48, Rows, Dim>,
             Add<T, 40, Rows, Dim>, ArgmaxPartial<T, 97, 3, Rows, Dim>, AttentionMerge<T, 4, 8, 3, TP, Rows, Dim>,
             Attention<T, 4, 2, 8, 64, 1, 0, 32, 48, 64, 64, 64, 0, eps, T, Rows, Dim>,
             Attention<T, 9, 3, 64, 64, 3, 0, 576, 768, 960, 960, 960, 1, eps, TP, Rows, Dim>,
             Attention<T, 6, 2, 64, 90, 2, 0, 192, 256, 640, 640, 640, 1, eps, TP, Rows, Dim, 320, true>,
             SiluMul<T, 24, 0, 6, 48, 48, Rows, Dim, 4>, Advance<1, 64, Rows, Dim, long long>,
             Linear<T, T, 64, 40, Rows, Dim, 1, eps, Epilogue::none, 1, 0, 1, T, 0>,
             Linear<T, T, 24, 576, Rows, Dim, 1, eps, Epilogue::silu_mul, 0, 0, 1, T, 0>,
             Linear<T, T, 40, 192, Rows, Dim, 0, eps, Epilogue::residual, 0, 3, 64, TP, 0>,
             Linear<T, float, 97, 40, Rows, Dim, 1, eps, Epilogue::none, 0, 0, 1, T, 3>>;

#define MPK_KERNEL(name, operators, level, warps)                                                                      \
  extern "C" __global__ void __launch_bounds__(mpk::threads<warps>(), 1) name(const __grid_constant__ Launch launch) { \
    run_device<operators, level, warps, 32768, 6>(launch);                                                             \
  }

using DecodeOne = Decode<1, -1>;
using DecodeEight = Decode<8, 0>;
using DrawnOne = Drawn<1, -1>;
using DrawnFive = Drawn<5, 0>;
using OddOne = Odd<bf16, float, 1, -1>;
using OddFive = Odd<bf16, bf16, 5, 0>;
using OddFloat = Odd<float, float, 3, 0>;

MPK_KERNEL(mpk_decode_one, DecodeOne, 0, 16)
MPK_KERNEL(mpk_decode_one_profiled, DecodeOne, 3, 16)
MPK_KERNEL(mpk_decode_eight, DecodeEight, 0, 16)
MPK_KERNEL(mpk_drawn_one, DrawnOne, 0, 16)
MPK_KERNEL(mpk_drawn_five, DrawnFive, 3, 8)
MPK_KERNEL(mpk_odd_one, OddOne, 1, 8)
MPK_KERNEL(mpk_odd_five, OddFive, 2, 8)
MPK_KERNEL(mpk_odd_float, OddFloat, 0, 8)

// Some tensors handed over by their own words.
#define MPK_WORDS(name, operators, level, warps)                                                                       \
  extern "C" __global__ void __launch_bounds__(mpk::threads<warps>(), 1) name(const __grid_constant__ Launch launch) { \
    run_device<operators, level, warps, 32768, 6, 2, 32768, Holds::words>(launch);                                     \
  }

MPK_WORDS(mpk_words_decode_one, DecodeOne, 0, 16)
MPK_WORDS(mpk_words_odd_one, OddOne, 2, 8)

// One kernel per operator, two blocks of which share an SM.
#define MPK_OPERATOR(name, variant)                                                            \
  extern "C" __global__ void __launch_bounds__(mpk::threads<8>(), 2)                           \
      name(const __grid_constant__ Launch launch, const __grid_constant__ Operands operands) { \
    run_device<Variants<variant>, 0, 8, 32768, 3, 2, 0, Holds::operator_>(launch, operands);   \
  }

using Down = Linear<bf16, bf16, 1024, 3072, 1, -1, 0, eps, Epilogue::residual, 0, 0, 1, bf16, 0>;
using Attend = Attention<bf16, 16, 8, 128, 1024, 16, 0, 2048, 3072, 4096, 4096, 4096, 1, eps, bf16, 1, -1>;
using Next = Advance<1, 1024, 1, -1>;

static_assert(blocks_together<Variants<Down>, 8, 32768, 3>(232448) == 2);
static_assert(blocks_together<Variants<Down>, 8, 32768, 6>(232448) == 1);
static_assert(blocks_together<Variants<Down>, 16, 32768, 3>(232448) == 1);

MPK_OPERATOR(mpk_operator_down, Down)
MPK_OPERATOR(mpk_operator_attention, Attend)
MPK_OPERATOR(mpk_operator_advance, Next)
