// Bits kept for a backward pass: how they are stored, when they are set, and the gradient they give.
#pragma once

#include <cstdint>

#include "cuda/common.cuh"
#include "cuda/kernels.h"

namespace thawkit::cuda {

// A plane of bits has ceil(n / 8) bytes: the last word is written byte by byte where it is not whole, or
// where the plane does not begin at a multiple of four bytes.
__device__ __forceinline__ void store_word(uint8_t* mask, int64_t n, int64_t first, uint32_t bits) {
  const int64_t bytes = (n + 7) / 8 - first / 8;
  uint8_t* to = mask + first / 8;
  if (bytes >= 4 && reinterpret_cast<uintptr_t>(to) % 4 == 0)
    *reinterpret_cast<uint32_t*>(to) = bits;
  else
    for (int64_t b = 0; b < bytes && b < 4; ++b) to[b] = uint8_t(bits >> (8 * b));
}

__device__ __forceinline__ bool bit_at(const uint8_t* mask, int64_t i) { return mask[i / 8] >> (i % 8) & 1; }

template <Packed Kind>
__device__ __forceinline__ bool bit_of(float x, float a, float b, bool bounded) {
  if constexpr (Kind == Packed::kRelu) return bounded ? x > a && x < b : !(x <= a);
  if constexpr (Kind == Packed::kClamp) return bounded ? x < b && (x > a || a == -INFINITY) : x > a;
  if constexpr (Kind == Packed::kThreshold) return !(x <= a);
  if constexpr (Kind == Packed::kHardsigmoid) return x > -3.f && x < 3.f;
  return x > 0.f;
}

__device__ __forceinline__ float gradient(Masked kind, float g, bool bit, bool negative, float yes,
                                          float no) {
  switch (kind) {
    case Masked::kPass:
      return bit ? g : 0.f;
    case Masked::kPart:
      return bit ? g * yes : 0.f;
    case Masked::kTwo:
      return g * (bit ? yes : no);
    case Masked::kSign:
      return g * (bit ? 1.f : negative ? -1.f : 0.f);
  }
  return 0.f;
}

}  // namespace thawkit::cuda
