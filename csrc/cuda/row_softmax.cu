// Softmax cross-entropies of the pairwise engine on CUDA: they run on panels of cuBLAS products.
#include "cuda/common.cuh"
#include "cuda/kernels.h"
#include "cuda/panel.cuh"

namespace thawkit::cuda {
namespace {

// What of a row decides which columns count.
struct Row {
  int64_t own, excluded;  // columns; below 0: none
  int32_t label;
  float limit;  // similarities above it do not count
};

struct Entries {
  Neighbours<float> raw;     // similarities
  float logit[kNeighbours];  // scale * raw + bias
  bool counts[kNeighbours];  // but for the margin, and unless it is the positive
};

__device__ __forceinline__ Entries entries(const SoftmaxPanelArgs& a, const Row& row, const float* scores,
                                           float scale, int64_t column, int count, bool wide) {
  Entries out;
  out.raw = load_neighbours(scores + column, count, wide);
  Neighbours<float> bias = {};
  if (a.bias) bias = load_neighbours(a.bias + column, count, wide);
  Neighbours<int32_t> label = {};
  if (a.labels != Labels::kIgnored) label = load_neighbours(a.key_labels + column, count, wide);
#pragma unroll
  for (int e = 0; e < kNeighbours; ++e) {
    out.logit[e] = scale * out.raw.lane[e] + bias.lane[e];
    out.counts[e] = e < count && column + e != row.own && column + e != row.excluded;
    if (a.labels != Labels::kIgnored)
      out.counts[e] = out.counts[e] && (label.lane[e] == row.label) == (a.labels == Labels::kKeepSame);
  }
  return out;
}

// One block a row: its maximum and sum of exponentials in one read, its slopes in another.
template <class T>
__global__ void __launch_bounds__(kPanelThreads, 4) softmax_kernel(SoftmaxPanelArgs a, bool wide) {
  __shared__ float shared[32];
  const int64_t here = blockIdx.x, number = a.panel.first + here, columns = a.panel.columns;
  const float* const scores = scores_of(a.panel, here);
  const float scale = *a.panel.scale;
  const int64_t own = a.target ? a.target[here] : number + a.offset;
  const bool paired = own >= 0;
  // a target that is no column has no number
  const float own_score = !paired ? 0.f : own < columns ? scores[own] : NAN;
  const float positive = scale * own_score + (a.bias && paired && own < columns ? a.bias[own] : 0.f);
  const Row row = {own, a.excluded >= 0 ? number + a.excluded : -1,
                   a.labels != Labels::kIgnored ? a.row_labels[here] : 0,
                   paired ? own_score + a.margin : INFINITY};

  // The positive stays out of the sum, so that nothing cancels where it dominates.
  ExponentialSum sum;
  float beyond = -INFINITY;
  for (int64_t j = int64_t(threadIdx.x) * kNeighbours; j < columns; j += kPanelStep) {
    Entries v = entries(a, row, scores, scale, j, neighbours_from(j, columns), wide);
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e) {
      if (v.counts[e]) beyond = fmaxf(beyond, v.logit[e]);
      if (!v.counts[e] || v.raw.lane[e] > row.limit) v.logit[e] = -INFINITY;
    }
    sum.add(v.logit);
  }
  const float maximum = block_reduce<true>(sum.maximum, shared);
  float larger = paired ? fmaxf(maximum, positive) : maximum;
  if (larger == -INFINITY) larger = 0.f;
  const float others = block_reduce<false>(sum.total * __expf(sum.maximum - larger), shared);
  const float both = others + (paired ? __expf(positive - larger) : 0.f);
  if (a.maximum) beyond = block_reduce<true>(beyond, shared);
  if (threadIdx.x == 0) {
    const float log_sum = larger + logf(both);
    const float loss = positive >= maximum ? log1pf(others) : logf(both) + (larger - positive);
    a.loss[here] = paired ? loss : log_sum;
    if (a.log_sum) a.log_sum[here] = log_sum;
    if (a.missing) a.missing[here] = others / both;
    if (a.positive) a.positive[here] = paired ? positive : NAN;
    if (a.maximum) a.maximum[here] = paired ? fmaxf(beyond, positive) : beyond;
  }
  T* const slopes = slopes_of<T>(a.panel, here);
  if (!slopes && !a.dscale) return;

  const float weight = slope_weight(a.panel, here), share = weight / both;
  float dscale = 0.f;
  for (int64_t j = int64_t(threadIdx.x) * kNeighbours; j < columns; j += kPanelStep) {
    const int count = neighbours_from(j, columns);
    const Entries v = entries(a, row, scores, scale, j, count, wide);
    Neighbours<T> w;
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e) {
      // a row of weight 0 has no gradient, whatever it holds
      const bool has = v.counts[e] && !(v.raw.lane[e] > row.limit) && weight != 0.f;
      float slope = has ? __expf(v.logit[e] - larger) * share : 0.f;
      if (slope != 0.f) dscale += slope * (v.raw.lane[e] - own_score);
      if (j + e == own) slope = weight != 0.f ? -others * share : 0.f;
      w.lane[e] = from_float<T>(slope);
    }
    if (slopes) store_neighbours(slopes + j, w, count, wide);
  }
  if (!a.dscale) return;
  dscale = block_reduce<false>(dscale, shared);
  if (threadIdx.x == 0) a.dscale[here] = dscale;
}

template <class T>
const char* softmax_as(const SoftmaxPanelArgs& a, void* stream) {
  const bool wide =
      aligned_rows<T>(a.panel) && aligned_to_neighbours(a.bias) && aligned_to_neighbours(a.key_labels);
  return launch(softmax_kernel<T>, static_cast<unsigned>(a.panel.rows), kPanelThreads, stream, a, wide);
}

}  // namespace

const char* softmax_panel(const SoftmaxPanelArgs& a, void* stream) {
  if (a.panel.rows == 0) return nullptr;
  return by_dtype(a.panel.dtype, [&](auto t) { return softmax_as<decltype(t)>(a, stream); });
}

}  // namespace thawkit::cuda
