// Activations that keep a bit an element, and the gradients that the bits give, on CUDA.
#include "cuda/bits.cuh"
#include "cuda/common.cuh"
#include "cuda/kernels.h"

namespace thawkit::cuda {
namespace {

constexpr int kThreads = 256;

template <Packed Kind>
__device__ __forceinline__ float value_of(float x, float a, float b) {
  if constexpr (Kind == Packed::kRelu || Kind == Packed::kClamp) return min(b, max(a, x));
  if constexpr (Kind == Packed::kThreshold) return x <= a ? b : x;
  if constexpr (Kind == Packed::kLeaky) return x > 0.f ? x : x * a;
  if constexpr (Kind == Packed::kHardsigmoid) return min(6.f, max(0.f, x + 3.f)) / 6.f;
  return fabsf(x);
}

// A warp votes on 32 neighbours and writes one word.
template <Packed Kind, class T>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const T* x, T* y, uint8_t* __restrict__ mask, int64_t n, float a, float b) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  const bool bounded = b < INFINITY;
  const float rounded_a = to_float(from_float<T>(a)), rounded_b = to_float(from_float<T>(b));
  // torch's clamp compares with the numbers that T has; so does this where x is clamped already
  const bool round = Kind == Packed::kClamp || (Kind == Packed::kRelu && !y);
  const float lower = round ? rounded_a : a, upper = round ? rounded_b : b;
  // every lane of a warp takes the same number of steps, so the vote always has 32 voters
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i - threadIdx.x % 32 < n; i += stride) {
    const float v = i < n ? to_float(x[i]) : 0.f;
    const uint32_t bits = __ballot_sync(~0u, i < n && bit_of<Kind>(v, lower, upper, bounded));
    const uint32_t negative = Kind == Packed::kAbs ? __ballot_sync(~0u, i < n && v < 0.f) : 0;
    if (y && i < n) y[i] = from_float<T>(value_of<Kind>(v, a, b));
    if (threadIdx.x % 32 == 0) {
      store_word(mask, n, i, bits);
      if (Kind == Packed::kAbs) store_word(mask + (n + 7) / 8, n, i, negative);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    pack_bytes_kernel(const uint8_t* __restrict__ x, uint8_t* __restrict__ mask, int64_t n) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i - threadIdx.x % 32 < n; i += stride) {
    const uint32_t bits = __ballot_sync(~0u, i < n && x[i]);
    if (threadIdx.x % 32 == 0) store_word(mask, n, i, bits);
  }
}

template <Packed Kind, class T>
const char* pack_as(const PackArgs& a, void* stream) {
  return launch(pack_kernel<Kind, T>, grid_for(a.n, kThreads), kThreads, stream, static_cast<const T*>(a.x),
                static_cast<T*>(a.y), a.mask, a.n, a.a, a.b);
}

template <class T>
const char* pack_by_kind(const PackArgs& a, void* stream) {
  switch (a.kind) {
    case Packed::kRelu:
      return pack_as<Packed::kRelu, T>(a, stream);
    case Packed::kClamp:
      return pack_as<Packed::kClamp, T>(a, stream);
    case Packed::kThreshold:
      return pack_as<Packed::kThreshold, T>(a, stream);
    case Packed::kLeaky:
      return pack_as<Packed::kLeaky, T>(a, stream);
    case Packed::kHardsigmoid:
      return pack_as<Packed::kHardsigmoid, T>(a, stream);
    case Packed::kAbs:
      return pack_as<Packed::kAbs, T>(a, stream);
    case Packed::kTrue:
      return launch(pack_bytes_kernel, grid_for(a.n, kThreads), kThreads, stream,
                    static_cast<const uint8_t*>(a.x), a.mask, a.n);
  }
  return "unknown kind";
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    masked_kernel(Masked kind, const T* g, T* dx, const uint8_t* __restrict__ mask, int64_t n, float yes,
                  float no) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    const bool negative = kind == Masked::kSign && bit_at(mask + (n + 7) / 8, i);
    dx[i] = from_float<T>(gradient(kind, to_float(g[i]), bit_at(mask, i), negative, yes, no));
  }
}

template <class T>
const char* masked_as(const MaskedArgs& a, void* stream) {
  return launch(masked_kernel<T>, grid_for(a.n, kThreads), kThreads, stream, a.kind,
                static_cast<const T*>(a.g), static_cast<T*>(a.dx), a.mask, a.n, a.yes, a.no);
}

}  // namespace

const char* pack(const PackArgs& a, void* stream) {
  if (a.n == 0) return nullptr;
  return by_dtype(a.dtype, [&](auto t) { return pack_by_kind<decltype(t)>(a, stream); });
}

const char* masked(const MaskedArgs& a, void* stream) {
  if (a.n == 0) return nullptr;
  return by_dtype(a.dtype, [&](auto t) { return masked_as<decltype(t)>(a, stream); });
}

}  // namespace thawkit::cuda
