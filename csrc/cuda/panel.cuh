// Rows of panels of the pairwise engine: one block a row, four neighbours a thread and step.
#pragma once

#include <cstdint>

#include "cuda/common.cuh"
#include "cuda/kernels.h"

namespace thawkit::cuda {

constexpr int kPanelThreads = 256, kNeighbours = 4, kPanelStep = kPanelThreads * kNeighbours;

template <class T>
struct alignas(kNeighbours * sizeof(T)) Neighbours {
  T lane[kNeighbours];
};

// Null counts as aligned.
template <class T>
inline bool aligned_to_neighbours(const T* row, int64_t stride = 0) {
  return reinterpret_cast<uintptr_t>(row) % sizeof(Neighbours<T>) == 0 && stride % kNeighbours == 0;
}

template <class T>
inline bool aligned_rows(const Panel& panel) {
  return aligned_to_neighbours(panel.scores, panel.stride) &&
         aligned_to_neighbours(static_cast<const T*>(panel.slopes), panel.slope_stride);
}

// One access of 16 bytes each.
__device__ __forceinline__ Neighbours<float> load_wide(const float* from) {
  const float4 v = __ldca(reinterpret_cast<const float4*>(from));
  return {v.x, v.y, v.z, v.w};
}

__device__ __forceinline__ Neighbours<int32_t> load_wide(const int32_t* from) {
  const int4 v = __ldca(reinterpret_cast<const int4*>(from));
  return {v.x, v.y, v.z, v.w};
}

// As many as `count` says, the others 0. `wide`: neighbours are aligned to one access.
template <class T>
__device__ __forceinline__ Neighbours<T> load_neighbours(const T* from, int count, bool wide) {
  if (wide && count == kNeighbours) return load_wide(from);
  Neighbours<T> v;
#pragma unroll
  for (int e = 0; e < kNeighbours; ++e) v.lane[e] = e < count ? from[e] : T{};
  return v;
}

template <class T>
__device__ __forceinline__ void store_neighbours(T* to, const Neighbours<T>& v, int count, bool wide) {
  if (wide && count == kNeighbours) {
    *reinterpret_cast<Neighbours<T>*>(to) = v;
    return;
  }
#pragma unroll
  for (int e = 0; e < kNeighbours; ++e)
    if (e < count) to[e] = v.lane[e];
}

__device__ __forceinline__ int neighbours_from(int64_t column, int64_t columns) {
  return columns - column < kNeighbours ? int(columns - column) : kNeighbours;
}

__device__ __forceinline__ const float* scores_of(const Panel& panel, int64_t row) {
  return panel.scores + row * panel.stride;
}

template <class T>
__device__ __forceinline__ T* slopes_of(const Panel& panel, int64_t row) {
  return panel.slopes ? static_cast<T*>(panel.slopes) + row * panel.slope_stride : nullptr;
}

__device__ __forceinline__ float slope_weight(const Panel& panel, int64_t row) {
  return panel.row_weight ? panel.factor * panel.row_weight[row] : panel.factor;
}

// The largest of some logits, and the sum of all exponentials relative to it. NaN is in the sum only.
struct ExponentialSum {
  float maximum = -INFINITY, total = 0.f;

  // -inf minus -inf were NaN.
  __device__ __forceinline__ float origin() const { return maximum == -INFINITY ? 0.f : maximum; }

  __device__ __forceinline__ void raise(float larger) {
    if (!(larger > maximum)) return;
    total *= __expf(maximum - larger);
    maximum = larger;
  }

  // What does not count is -inf.
  __device__ __forceinline__ void add(const float (&logits)[kNeighbours]) {
    float larger = maximum;
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e) larger = fmaxf(larger, logits[e]);
    raise(larger);
    const float zero = origin();
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e) total += __expf(logits[e] - zero);
  }

  __device__ __forceinline__ void add(const ExponentialSum& other) {
    raise(other.maximum);
    total += other.total * __expf(other.maximum - origin());
  }
};

}  // namespace thawkit::cuda
