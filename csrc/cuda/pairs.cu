// CLIP and SigLIP on CUDA, whose slopes are known entry by entry: they run on panels of cuBLAS products.
#include "cuda/common.cuh"
#include "cuda/kernels.h"
#include "cuda/panel.cuh"

namespace thawkit::cuda {
namespace {

#include "common/sigmoid.h"

constexpr int kColumns = 32, kStrands = kPanelThreads / kColumns;

// A block has a few columns, a warp every eighth of their rows.
__global__ void __launch_bounds__(kPanelThreads) column_sums_kernel(ColumnSumsPanelArgs a) {
  __shared__ float maxima[kStrands][kColumns], totals[kStrands][kColumns];
  const int lane = threadIdx.x % kColumns, strand = threadIdx.x / kColumns;
  const int64_t column = int64_t(blockIdx.x) * kColumns + lane, rows = a.panel.rows;
  const bool inside = column < a.panel.columns;
  const float scale = *a.panel.scale;
  ExponentialSum sum;
  for (int64_t first = strand; inside && first < rows; first += kStrands * kNeighbours) {
    float logits[kNeighbours];
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e) {
      const int64_t row = first + e * kStrands;
      const float raw = row < rows ? scores_of(a.panel, row)[column] : 0.f;
      logits[e] = row < rows && a.panel.first + row != column ? scale * raw : -INFINITY;
    }
    sum.add(logits);
  }
  maxima[strand][lane] = sum.maximum;
  totals[strand][lane] = sum.total;
  __syncthreads();
  if (strand != 0 || !inside) return;
  sum = {a.maximum[column], a.total[column]};
  for (int s = 0; s < kStrands; ++s) sum.add(ExponentialSum{maxima[s][lane], totals[s][lane]});
  a.maximum[column] = sum.maximum;
  a.total[column] = sum.total;
}

template <class T>
__global__ void __launch_bounds__(kPanelThreads, 4) clip_kernel(ClipPanelArgs a, bool wide) {
  __shared__ float shared[32];
  const int64_t here = blockIdx.x, own = a.panel.first + here, columns = a.panel.columns;
  const float* const scores = scores_of(a.panel, here);
  T* const slopes = slopes_of<T>(a.panel, here);
  const float scale = *a.panel.scale, log_sum = a.log_sum[here], missing = a.missing[here];
  const float weight = 0.5f * slope_weight(a.panel, here), factor = 0.5f * a.panel.factor;
  float dscale = 0.f;
  for (int64_t j = int64_t(threadIdx.x) * kNeighbours; j < columns; j += kPanelStep) {
    const int count = neighbours_from(j, columns);
    const Neighbours<float> raw = load_neighbours(scores + j, count, wide);
    const Neighbours<float> column_log_sum = load_neighbours(a.column_log_sum + j, count, wide);
    Neighbours<float> column_weight = {1.f, 1.f, 1.f, 1.f};
    if (a.column_weight) column_weight = load_neighbours(a.column_weight + j, count, wide);
    Neighbours<T> w;
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e) {
      const float logit = scale * raw.lane[e];
      float of_row = __expf(logit - log_sum), of_column = __expf(logit - column_log_sum.lane[e]);
      if (j + e == own) of_row = -missing, of_column = -a.column_missing[own];
      const float slope = weight * of_row + factor * column_weight.lane[e] * of_column;
      if (e < count) dscale += slope * raw.lane[e];
      w.lane[e] = from_float<T>(slope);
    }
    if (slopes) store_neighbours(slopes + j, w, count, wide);
  }
  if (!a.dscale) return;
  dscale = block_reduce<false>(dscale, shared);
  if (threadIdx.x == 0) a.dscale[here] = dscale;
}

template <class T>
__global__ void __launch_bounds__(kPanelThreads, 4) sigmoid_kernel(SigmoidPanelArgs a, bool wide) {
  __shared__ float shared[32];
  const int64_t here = blockIdx.x, columns = a.panel.columns;
  const int64_t own = a.paired ? a.panel.first + here + a.offset : -1;
  const float* const scores = scores_of(a.panel, here);
  T* const slopes = slopes_of<T>(a.panel, here);
  const float scale = *a.panel.scale, bias = *a.bias, weight = slope_weight(a.panel, here);
  float loss = 0.f, dscale = 0.f, dbias = 0.f;
  for (int64_t j = int64_t(threadIdx.x) * kNeighbours; j < columns; j += kPanelStep) {
    const int count = neighbours_from(j, columns);
    const Neighbours<float> raw = load_neighbours(scores + j, count, wide);
    Neighbours<T> w;
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e) {
      const float sign = j + e == own ? -1.f : 1.f, z = sign * (scale * raw.lane[e] + bias);
      const SigmoidParts<float> parts = sigmoid_parts(exp_negative(-abs(z)));
      const float slope = weight * sign * (z >= 0.f ? parts.larger : parts.smaller);
      if (e < count) {
        loss += max(0.f, z) + parts.softplus;
        dscale += slope * raw.lane[e];
        dbias += slope;
      }
      w.lane[e] = from_float<T>(slope);
    }
    if (slopes) store_neighbours(slopes + j, w, count, wide);
  }
  loss = block_reduce<false>(loss, shared);
  if (a.dscale) dscale = block_reduce<false>(dscale, shared);
  if (a.dbias) dbias = block_reduce<false>(dbias, shared);
  if (threadIdx.x != 0) return;
  a.loss[here] = loss;
  if (a.dscale) a.dscale[here] = dscale;
  if (a.dbias) a.dbias[here] = dbias;
}

template <class T>
const char* clip_as(const ClipPanelArgs& a, void* stream) {
  const bool wide = aligned_rows<T>(a.panel) && aligned_to_neighbours(a.column_log_sum) &&
                    aligned_to_neighbours(a.column_weight);
  return launch(clip_kernel<T>, static_cast<unsigned>(a.panel.rows), kPanelThreads, stream, a, wide);
}

template <class T>
const char* sigmoid_as(const SigmoidPanelArgs& a, void* stream) {
  return launch(sigmoid_kernel<T>, static_cast<unsigned>(a.panel.rows), kPanelThreads, stream, a,
                aligned_rows<T>(a.panel));
}

}  // namespace

const char* column_sums_panel(const ColumnSumsPanelArgs& a, void* stream) {
  if (a.panel.rows == 0 || a.panel.columns == 0) return nullptr;
  const int64_t blocks = (a.panel.columns + kColumns - 1) / kColumns;
  return launch(column_sums_kernel, static_cast<unsigned>(blocks), kPanelThreads, stream, a);
}

const char* clip_panel(const ClipPanelArgs& a, void* stream) {
  if (a.panel.rows == 0) return nullptr;
  return by_dtype(a.panel.dtype, [&](auto t) { return clip_as<decltype(t)>(a, stream); });
}

const char* sigmoid_panel(const SigmoidPanelArgs& a, void* stream) {
  if (a.panel.rows == 0) return nullptr;
  return by_dtype(a.panel.dtype, [&](auto t) { return sigmoid_as<decltype(t)>(a, stream); });
}

}  // namespace thawkit::cuda
