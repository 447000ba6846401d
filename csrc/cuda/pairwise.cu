// Epilogues of the pairwise engine on CUDA: they run on panels of cuBLAS products.
#include "cuda/common.cuh"
#include "cuda/kernels.h"

namespace thawkit::cuda {
namespace {

constexpr int kThreads = 256;

// One block a row: maximum, sum of exponentials and, in the same read as the latter's write, the weights. The
// scores come without their scale, whose gradient would else be a division by it.
__global__ void __launch_bounds__(kThreads, 4) info_nce_kernel(InfoNCEPanelArgs a) {
  __shared__ float shared[32];
  const int64_t i = blockIdx.x;
  float* const row = a.scores + i * a.stride;
  const int64_t positive = a.first + i;
  const float scale = *a.scale;

  float maximum = -INFINITY;
  bool nan = false;  // fmaxf drops a NaN, torch does not
  for (int64_t j = threadIdx.x; j < a.keys; j += kThreads) {
    const float x = scale * row[j];
    nan |= x != x;
    maximum = fmaxf(maximum, x);
  }
  if (nan) maximum = NAN;
  maximum = block_reduce<true>(maximum, shared);
  nan = __syncthreads_or(nan);
  if (nan) maximum = NAN;

  // The positive stays out of the sum, so that nothing cancels where it dominates.
  const float own = row[positive];
  float others = 0.f, weighted = 0.f;  // the latter: sum of exponential * (score - own score)
  for (int64_t j = threadIdx.x; j < a.keys; j += kThreads) {
    if (j == positive) continue;
    const float e = __expf(scale * row[j] - maximum);
    others += e;
    weighted += e == 0.f ? 0.f : e * (row[j] - own);
  }
  others = block_reduce<false>(others, shared);
  const float gap = maximum - scale * own;
  const float z = others + __expf(-gap);
  if (threadIdx.x == 0) a.loss[i] = gap == 0.f ? log1pf(others) : __logf(z) + gap;
  if (!a.gradient) return;

  weighted = block_reduce<false>(weighted, shared);
  const float factor = (a.row_weight ? a.row_weight[i] : a.weight) / z;
  if (threadIdx.x == 0 && a.dscale) a.dscale[i] = factor * weighted;
  __syncthreads();  // row[positive] has been read by all
  for (int64_t j = threadIdx.x; j < a.keys; j += kThreads)
    row[j] = factor * (j == positive ? -others : __expf(scale * row[j] - maximum));
}

}  // namespace

const char* info_nce_panel(const InfoNCEPanelArgs& a, void* stream) {
  if (a.rows == 0) return nullptr;
  return launch(info_nce_kernel, static_cast<unsigned>(a.rows), kThreads, stream, a);
}

int runtime_version() {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  return version;
}

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : -1;
}

}  // namespace thawkit::cuda
