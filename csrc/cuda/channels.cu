// Gradients with their sums by channel, and what is scaled by channel, on CUDA.
#include "cuda/bits.cuh"
#include "cuda/common.cuh"
#include "cuda/kernels.h"

namespace thawkit::cuda {
namespace {

constexpr int kThreads = 256;

// One block a group of `width` neighbouring channels: threadIdx.x % width tells which, so that channels that
// are innermost are read side by side. A thread's own sum is compensated (Kahan), which keeps it as near the
// truth as a tree of any depth.
template <class T>
__global__ void __launch_bounds__(kThreads) channel_sum_kernel(ChannelSumArgs a, int width) {
  __shared__ float partial[kThreads];
  const T* g = static_cast<const T*>(a.g);
  T* dx = static_cast<T*>(a.dx);
  const int lane = threadIdx.x % width, row = threadIdx.x / width, rows = kThreads / width;
  const int64_t c = int64_t(blockIdx.x) * width + lane;
  float sum = 0, lost = 0;
  if (c < a.channels) {
    const float no = a.factors ? a.factors[c] : a.no;
    for (int64_t r = row; r < a.outer * a.inner; r += rows) {
      const int64_t i = (r / a.inner * a.channels + c) * a.inner + r % a.inner;
      const float d = gradient(a.kind, to_float(g[i]), !a.mask || bit_at(a.mask, i), false, a.yes, no);
      if (dx) dx[i] = from_float<T>(d);
      const float more = d - lost, next = sum + more;
      lost = isfinite(next) ? (next - sum) - more : 0.f;
      sum = next;
    }
  }
  partial[threadIdx.x] = sum;
  __syncthreads();
  for (int half = rows / 2; half; half /= 2) {
    if (row < half) partial[threadIdx.x] += partial[threadIdx.x + half * width];
    __syncthreads();
  }
  if (a.sums && row == 0 && c < a.channels) a.sums[c] = partial[lane];
}

template <class T>
const char* channel_sum_as(const ChannelSumArgs& a, void* stream) {
  const int width = a.inner == 1 ? 32 : 1;
  return launch(channel_sum_kernel<T>, static_cast<unsigned>((a.channels + width - 1) / width), kThreads,
                stream, a, width);
}

// As pack_kernel, of a value that is made on the way.
template <class T>
__global__ void __launch_bounds__(kThreads) channel_affine_kernel(ChannelAffineArgs a, int64_t n) {
  const T* x = static_cast<const T*>(a.x);
  const T* other = static_cast<const T*>(a.other);
  T* y = static_cast<T*>(a.y);
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  const bool bounded = a.upper < INFINITY;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i - threadIdx.x % 32 < n; i += stride) {
    float v = 0;
    if (i < n) {
      const int64_t c = i / a.inner % a.channels;
      v = to_float(x[i]) * a.scale[c] + a.shift[c];
      if (other) v += to_float(other[i]);
      if (a.mask) v = to_float(from_float<T>(v));
      y[i] = from_float<T>(a.mask ? min(a.upper, max(a.lower, v)) : v);
      if (a.mask && v != v) y[i] = from_float<T>(v);
    }
    if (!a.mask) continue;
    const uint32_t bits = __ballot_sync(~0u, i < n && bit_of<Packed::kRelu>(v, a.lower, a.upper, bounded));
    if (threadIdx.x % 32 == 0) store_word(a.mask, n, i, bits);
  }
}

template <class T>
const char* channel_affine_as(const ChannelAffineArgs& a, void* stream) {
  const int64_t n = a.outer * a.channels * a.inner;
  return launch(channel_affine_kernel<T>, grid_for(n, kThreads), kThreads, stream, a, n);
}

// As channel_sum_kernel, with two sums.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    channel_affine_backward_kernel(ChannelAffineArgs a, int width) {
  __shared__ float partial[2][kThreads];
  const T* g = static_cast<const T*>(a.g);
  const T* x = static_cast<const T*>(a.x);
  T* dx = static_cast<T*>(a.dx);
  T* dother = static_cast<T*>(a.dother);
  const int lane = threadIdx.x % width, row = threadIdx.x / width, rows = kThreads / width;
  const int64_t c = int64_t(blockIdx.x) * width + lane;
  float sums[2] = {0, 0}, lost[2] = {0, 0};
  if (c < a.channels) {
    const float scale = a.scale[c], centre = a.shift[c];
    for (int64_t r = row; r < a.outer * a.inner; r += rows) {
      const int64_t i = (r / a.inner * a.channels + c) * a.inner + r % a.inner;
      const bool bit = !a.mask || bit_at(a.mask, i);
      const float d = bit ? to_float(g[i]) : 0.f;
      if (dx) dx[i] = from_float<T>(d * scale);
      if (dother) dother[i] = from_float<T>(d);
      const float terms[2] = {d, bit && x ? d * (to_float(x[i]) - centre) : 0.f};
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const float more = terms[k] - lost[k], next = sums[k] + more;
        lost[k] = isfinite(next) ? (next - sums[k]) - more : 0.f;
        sums[k] = next;
      }
    }
  }
  for (int k = 0; k < 2; ++k) partial[k][threadIdx.x] = sums[k];
  __syncthreads();
  for (int half = rows / 2; half; half /= 2) {
    if (row < half)
      for (int k = 0; k < 2; ++k) partial[k][threadIdx.x] += partial[k][threadIdx.x + half * width];
    __syncthreads();
  }
  if (row == 0 && c < a.channels)
    for (int k = 0; k < 2; ++k) a.sums[k * a.channels + c] = partial[k][lane];
}

template <class T>
const char* channel_affine_backward_as(const ChannelAffineArgs& a, void* stream) {
  const int width = a.inner == 1 ? 32 : 1;
  return launch(channel_affine_backward_kernel<T>, static_cast<unsigned>((a.channels + width - 1) / width),
                kThreads, stream, a, width);
}

}  // namespace

const char* channel_sum(const ChannelSumArgs& a, void* stream) {
  if (a.channels == 0) return nullptr;
  return by_dtype(a.dtype, [&](auto t) { return channel_sum_as<decltype(t)>(a, stream); });
}

const char* channel_affine(const ChannelAffineArgs& a, void* stream) {
  if (a.outer * a.channels * a.inner == 0) return nullptr;
  return by_dtype(a.dtype, [&](auto t) { return channel_affine_as<decltype(t)>(a, stream); });
}

const char* channel_affine_backward(const ChannelAffineArgs& a, void* stream) {
  if (a.channels == 0) return nullptr;
  return by_dtype(a.dtype, [&](auto t) { return channel_affine_backward_as<decltype(t)>(a, stream); });
}

}  // namespace thawkit::cuda
