// Every host header, each operator instantiated: what CI compiles so that no header rots unseen.
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
#include "mpklab/ops/sample.hpp"
#include "mpklab/ops/silu_mul.hpp"

namespace {

using namespace mpk;
using namespace mpk::ops;
constexpr unsigned eps = 0x3727c5acu;  // 1e-5

template <class T, class TP, int Rows, int Dim>
using All =
    Variants<Embedding<T, 97, 40, Rows, Dim>, RmsNorm<T, 40, eps, Rows, Dim>, SiluMul<T, 24, 0, 24, 48, 48, Rows, Dim>,
             Add<T, 40, Rows, Dim>, ArgmaxPartial<float, 97, 3, Rows, Dim>, ArgmaxReduce<3, Rows, Dim>,
             Advance<2, 64, Rows, Dim>, SamplePartial<T, 97, 3, Rows, Dim>, SampleReduce<97, 3, Rows, Dim>,
             AttentionMerge<T, 4, 8, 3, TP, Rows, Dim>,
             Attention<T, 4, 2, 8, 64, 1, 0, 32, 48, 64, 64, 64, 0, eps, T, Rows, Dim>,
             Attention<T, 4, 2, 8, 64, 3, 0, 32, 48, 64, 64, 64, 1, eps, TP, Rows, Dim>,
             Attention<T, 6, 2, 64, 90, 2, 0, 192, 256, 640, 640, 640, 1, eps, TP, Rows, Dim, 320, true>,
             SiluMul<T, 24, 0, 6, 48, 48, Rows, Dim, 4>, Advance<1, 64, Rows, Dim, long long>,
             Linear<T, T, 64, 40, Rows, Dim, 1, eps, Epilogue::none, 1, 0, 1, T, 0>,
             Linear<T, T, 24, 40, Rows, Dim, 1, eps, Epilogue::silu_mul, 0, 0, 1, T, 0>,
             Linear<T, T, 40, 32, Rows, Dim, 0, eps, Epilogue::residual, 0, 3, 8, TP, 0>,
             Linear<T, float, 97, 40, Rows, Dim, 1, eps, Epilogue::none, 0, 0, 1, T, 3>>;

}  // namespace

extern "C" int mpk_run_float(const Launch* launch, unsigned level, const int* cpus) {
  return run_host<All<float, float, 1, -1>>(*launch, level, cpus);
}
extern "C" int mpk_run_bfloat(const Launch* launch, unsigned level, const int* cpus) {
  return run_host<All<bf16, float, 5, 0>>(*launch, level, cpus);
}
extern "C" int mpk_run_narrow_partials(const Launch* launch, unsigned level, const int* cpus) {
  return run_host<All<bf16, bf16, 1, -1>>(*launch, level, cpus);
}
