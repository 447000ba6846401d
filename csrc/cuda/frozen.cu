// Clamp with a one-bit mask on CUDA: a warp votes on 32 neighbours and writes one word.
#include "cuda/common.cuh"
#include "cuda/kernels.h"

namespace thawkit::cuda {
namespace {

constexpr int kThreads = 256;

// The mask has ceil(n / 8) bytes: the last word is written byte by byte where it is not whole.
__device__ __forceinline__ void store_word(uint8_t* mask, int64_t n, int64_t first, uint32_t bits) {
  const int64_t bytes = (n + 7) / 8 - first / 8;
  if (bytes >= 4)
    *reinterpret_cast<uint32_t*>(mask + first / 8) = bits;
  else
    for (int64_t b = 0; b < bytes; ++b) mask[first / 8 + b] = uint8_t(bits >> (8 * b));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* __restrict__ x, T* __restrict__ y, uint8_t* __restrict__ mask, int64_t n,
                   float lower, float upper) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  // every lane of a warp takes the same number of steps, so the vote always has 32 voters
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i - threadIdx.x % 32 < n; i += stride) {
    const float v = i < n ? to_float(x[i]) : lower;
    // at NaN torch's relu passes the gradient and its hardtanh does not
    const bool passes = upper == INFINITY ? !(v <= lower) : v > lower && v < upper;
    const uint32_t bits = __ballot_sync(~0u, i < n && passes);
    if (i < n) y[i] = from_float<T>(min(upper, max(lower, v)));
    if (threadIdx.x % 32 == 0) store_word(mask, n, i, bits);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) backward_kernel(const T* __restrict__ g, T* __restrict__ dx,
                                                            const uint8_t* __restrict__ mask, int64_t n) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride)
    dx[i] = (mask[i / 8] >> (i % 8) & 1) ? g[i] : from_float<T>(0.f);
}

template <class T>
const char* forward(const PackedReluArgs& a, cudaStream_t stream) {
  forward_kernel<T><<<grid_for(a.n, kThreads), kThreads, 0, stream>>>(
      static_cast<const T*>(a.x), static_cast<T*>(a.y), a.mask, a.n, a.lower, a.upper);
  return launch_error();
}

template <class T>
const char* backward(const PackedReluArgs& a, cudaStream_t stream) {
  backward_kernel<T><<<grid_for(a.n, kThreads), kThreads, 0, stream>>>(static_cast<const T*>(a.x),
                                                                       static_cast<T*>(a.y), a.mask, a.n);
  return launch_error();
}

}  // namespace

const char* packed_relu(const PackedReluArgs& a, void* stream) {
  if (a.n == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  switch (a.dtype) {
    case Dtype::kFloat32:
      return forward<float>(a, s);
    case Dtype::kBFloat16:
      return forward<__nv_bfloat16>(a, s);
    case Dtype::kFloat16:
      return forward<__half>(a, s);
  }
  return "unknown dtype";
}

const char* packed_relu_backward(const PackedReluArgs& a, void* stream) {
  if (a.n == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  switch (a.dtype) {
    case Dtype::kFloat32:
      return backward<float>(a, s);
    case Dtype::kBFloat16:
      return backward<__nv_bfloat16>(a, s);
    case Dtype::kFloat16:
      return backward<__half>(a, s);
  }
  return "unknown dtype";
}

}  // namespace thawkit::cuda
