// Arithmetic of rounded activations, shared by the CPU kernels (V = a SIMD vector) and the CUDA ones
// (V = float). `strange` is 0, or NaN where a group holds a number that is not finite: then so are its
// levels.
#pragma once

#include <cstdint>

#ifndef THAWKIT_INLINE
#ifdef __CUDACC__
#define THAWKIT_INLINE __host__ __device__ __forceinline__
#else
#define THAWKIT_INLINE inline __attribute__((always_inline))
#endif
#endif

constexpr THAWKIT_INLINE int group_size(int bits) { return bits == 2 ? 256 : 64; }
constexpr THAWKIT_INLINE int numbers_a_group(int bits) { return bits == 2 ? 4 : 2; }

// 8 and 4 bits: levels at even distances from the least to the greatest value of a group. A code is
// (x - lowest) per_step rounded to even. Values too far apart for float32 give a step that is infinite.
struct EvenLevels {
  float lowest, step, per_step;
};

static THAWKIT_INLINE EvenLevels even_levels(float lowest, float highest, float strange, int bits) {
  const float step = (highest - lowest) / (bits == 8 ? 255.f : 15.f);
  const bool one_level = step < 1.17549435e-38f;  // its inverse might be infinite
  return {lowest + strange, step + strange, one_level ? 0.f : 1.f / step};
}

template <class V>
static THAWKIT_INLINE V even_position(V x, const EvenLevels& levels) {
  return (x - levels.lowest) * levels.per_step;
}

// 2 bits: levels at the means of the four parts into which a group falls at its mean and at 1.2304 mean
// deviations, which are 0.9816 standard deviations of normal numbers, to both sides. There the error of
// normal numbers is the least that four levels leave (Max 1960, Lloyd 1982).
struct Thresholds {
  float low, middle, high;
};

static THAWKIT_INLINE Thresholds thresholds(float mean, float mean_deviation) {
  const float half_width = 1.2304f * mean_deviation;
  return {mean - half_width, mean, mean + half_width};
}

static THAWKIT_INLINE float level_of(float sum, float count, float mean, float strange) {
  return (count > 0.f ? sum / count : mean) + strange;
}
