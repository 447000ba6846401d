// Ascending order of float32 numbers, and what is below a number in it. Plain code, since the files compiled
// once per instruction set take nothing of the standard library's templates.
#pragma once

#include "cpu/simd.h"

namespace thawkit {
namespace THAWKIT_ISA {

// The bits of numbers as unsigned integers of the same order.
static inline uint32_t to_ordered(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
static inline float from_ordered(uint32_t x) { return bit_cast<float>(x ^ (x >> 31 ? 0x80000000u : ~0u)); }

// Sorts numbers none of which is NaN; `spare` has room for twice as many.
static void sort_ascending(float* x, int64_t count, uint32_t* spare) {
  constexpr int64_t kFew = 48;
  if (count <= kFew) {
    for (int64_t i = 1; i < count; ++i) {
      const float moved = x[i];
      int64_t j = i;
      for (; j > 0 && x[j - 1] > moved; --j) x[j] = x[j - 1];
      x[j] = moved;
    }
    return;
  }
  constexpr int kPasses = 4, kDigits = 256;
  uint32_t starts[kPasses][kDigits] = {};
  uint32_t *from = spare, *to = spare + count;
  for (int64_t i = 0; i < count; ++i) {
    from[i] = to_ordered(x[i]);
    for (int p = 0; p < kPasses; ++p) ++starts[p][from[i] >> 8 * p & 255];
  }
  for (int p = 0; p < kPasses; ++p) {
    uint32_t before = 0;
    for (uint32_t& start : starts[p]) {
      const uint32_t here = start;
      start = before;
      before += here;
    }
    for (int64_t i = 0; i < count; ++i) to[starts[p][from[i] >> 8 * p & 255]++] = from[i];
    uint32_t* const sorted = to;
    to = from;
    from = sorted;
  }
  for (int64_t i = 0; i < count; ++i) x[i] = from_ordered(from[i]);
}

template <bool OrEqual, class Number>
static inline auto is_below(Number key, Number x) {
  if constexpr (OrEqual)
    return key <= x;
  else
    return key < x;
}

// How many of the keys, which ascend, are below x (or equal to it).
template <bool OrEqual>
static inline int32_t rank_of(float x, const float* keys, int64_t count) {
  if (count == 0) return 0;
  const float* base = keys;
  for (int64_t left = count; left > 1;) {
    const int64_t half = left / 2;
    base += is_below<OrEqual>(base[half - 1], x) ? half : 0;
    left -= half;
  }
  return static_cast<int32_t>(base - keys) + is_below<OrEqual>(*base, x);
}

// Up to here it is quicker to compare with every key, a vector of x at a time.
constexpr int64_t kFewKeys = 4 * kLanes;

// The rank of each x among few keys, and how many x each key is below (or equal to). There is room for whole
// vectors.
template <bool OrEqual>
static void rank_among_few(const float* x, int64_t size, const float* keys, int64_t count, int32_t* ranks,
                           int32_t* beyond) {
  constexpr int kTogether = 4;
  for (int64_t j = 0; count == 0 && j < size; ++j) ranks[j] = 0;
  for (int64_t first = 0; first < count; first += kTogether) {
    Floats key[kTogether];
    Ints found[kTogether] = {};
    for (int k = 0; k < kTogether; ++k)
      key[k] = splat(first + k < count ? keys[first + k] : __builtin_nanf(""));  // below nothing
    for (int64_t j = 0; j < size; j += kLanes) {
      const Floats v = load(x + j);
      Ints rank = {};
      if (first) memcpy(&rank, ranks + j, sizeof rank);
#pragma GCC unroll 4
      for (int k = 0; k < kTogether; ++k) {
        const Ints below = is_below<OrEqual>(key[k], v);
        found[k] -= below;
        rank -= below;
      }
      memcpy(ranks + j, &rank, sizeof rank);
    }
    for (int k = 0; k < kTogether && first + k < count; ++k) {
      beyond[first + k] = 0;
      for (int l = 0; l < kLanes; ++l) beyond[first + k] += found[k][l];
    }
  }
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
