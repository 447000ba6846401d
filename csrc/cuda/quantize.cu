// Values rounded to a few bits in groups of neighbours, on CUDA.
#include "common/quantize.h"
#include "cuda/common.cuh"
#include "cuda/kernels.h"

namespace thawkit::cuda {
namespace {

constexpr int kThreads = 256;

// A warp has a group, a lane two neighbours of it or, of 2 bits, eight, whose codes are whole bytes.
template <int Bits, class T>
__global__ void __launch_bounds__(kThreads) quantize_kernel(QuantizeArgs a, int64_t groups) {
  constexpr int kGroup = group_size(Bits), kEach = kGroup / 32;
  const T* x = static_cast<const T*>(a.x);
  const int lane = threadIdx.x % 32;
  const int64_t stride = int64_t(gridDim.x) * (kThreads / 32);
  for (int64_t group = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32; group < groups;
       group += stride) {
    const int64_t first = group * kGroup, count = a.n - first < kGroup ? a.n - first : kGroup;
    float* numbers = a.numbers + group * numbers_a_group(Bits);
    float v[kEach], strange = 0.f;
    for (int e = 0; e < kEach; ++e) {
      const int64_t i = lane * kEach + e;
      v[e] = to_float(x[first + (i < count ? i : 0)]);  // past the end stands what changes no bound
      strange += v[e] * 0.f;
    }
    strange = warp_sum(strange);
    unsigned codes[kEach];
    if constexpr (Bits == 2) {
      const float each = 1.f / float(count);
      float mean = 0.f, deviation = 0.f;
      for (int e = 0; e < kEach; ++e)
        if (lane * kEach + e < count) mean += v[e] * each;
      mean = warp_sum(mean);
      for (int e = 0; e < kEach; ++e)
        if (lane * kEach + e < count) deviation += fabsf(v[e] - mean) * each;
      const Thresholds limits = thresholds(mean, warp_sum(deviation));
      float sums[4] = {}, counts[4] = {};
      for (int e = 0; e < kEach; ++e) {
        codes[e] = (v[e] > limits.low) + (v[e] > limits.middle) + (v[e] > limits.high);
        for (unsigned c = 0; c < 4; ++c)
          if (c == codes[e] && lane * kEach + e < count) sums[c] += v[e] * each, counts[c] += each;
      }
      for (int c = 0; c < 4; ++c) {
        const float level = level_of(warp_sum(sums[c]), warp_sum(counts[c]), mean, strange);
        if (lane == 0) numbers[c] = level;
      }
    } else {
      constexpr float kLast = Bits == 8 ? 255.f : 15.f;
      float lowest = v[0], highest = v[0];
      for (int e = 1; e < kEach; ++e) lowest = fminf(lowest, v[e]), highest = fmaxf(highest, v[e]);
      const EvenLevels levels = even_levels(-warp_max(-lowest), warp_max(highest), strange, Bits);
      for (int e = 0; e < kEach; ++e)
        codes[e] = __float2uint_rn(fminf(kLast, fmaxf(0.f, even_position(v[e], levels))));
      if (lane == 0) numbers[0] = levels.lowest, numbers[1] = levels.step;
    }
    constexpr int kInByte = 8 / Bits;
    for (int b = 0; b < kEach / kInByte; ++b) {
      unsigned byte = 0;
      for (int e = 0; e < kInByte; ++e)
        if (lane * kEach + b * kInByte + e < count) byte |= codes[b * kInByte + e] << (e * Bits);
      const int64_t place = lane * kEach / kInByte + b;
      if (place * kInByte < count) a.codes[first * Bits / 8 + place] = uint8_t(byte);
    }
  }
}

template <int Bits, class T>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(DequantizeArgs a) {
  const T* g = static_cast<const T*>(a.g);
  T* y = static_cast<T*>(a.y);
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < a.n; i += stride) {
    const float* numbers = a.numbers + i / group_size(Bits) * numbers_a_group(Bits);
    const int code = a.codes[i * Bits / 8] >> (i * Bits % 8) & ((1 << Bits) - 1);
    const float v = Bits == 2 ? numbers[code] : float(code) * numbers[1] + numbers[0];
    y[i] = from_float<T>(g ? v * to_float(g[i]) : v);
  }
}

template <int Bits, class T>
const char* quantize_as(const QuantizeArgs& a, void* stream) {
  const int64_t groups = (a.n + group_size(Bits) - 1) / group_size(Bits);
  return launch(quantize_kernel<Bits, T>, grid_for(groups, kThreads / 32), kThreads, stream, a, groups);
}

template <int Bits, class T>
const char* dequantize_as(const DequantizeArgs& a, void* stream) {
  return launch(dequantize_kernel<Bits, T>, grid_for(a.n, kThreads), kThreads, stream, a);
}

}  // namespace

const char* quantize(const QuantizeArgs& a, void* stream) {
  if (a.n == 0) return nullptr;
  return by_dtype(a.dtype, [&](auto t) {
    using T = decltype(t);
    return a.bits == 8   ? quantize_as<8, T>(a, stream)
           : a.bits == 4 ? quantize_as<4, T>(a, stream)
                         : quantize_as<2, T>(a, stream);
  });
}

const char* dequantize(const DequantizeArgs& a, void* stream) {
  if (a.n == 0) return nullptr;
  return by_dtype(a.dtype, [&](auto t) {
    using T = decltype(t);
    return a.bits == 8   ? dequantize_as<8, T>(a, stream)
           : a.bits == 4 ? dequantize_as<4, T>(a, stream)
                         : dequantize_as<2, T>(a, stream);
  });
}

}  // namespace thawkit::cuda
