// Sorting numbers. Plain code, since the files compiled once per instruction set take nothing of the standard
// library's templates.
#pragma once

#include "cpu/simd.h"

namespace thawkit {
namespace THAWKIT_ISA {

// A number and where it was found, as one integer that sorts as the number does; NaN sorts as infinity.
static inline uint64_t sortable(float x, int64_t place) {
  const uint32_t bits = bit_cast<uint32_t>(x == x ? x : __builtin_inff());
  const uint32_t ordered = bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
  return uint64_t(ordered) << 32 | static_cast<uint32_t>(place);
}
static inline int64_t place_of(uint64_t sortable) { return static_cast<uint32_t>(sortable); }

// By the numbers, ascending; equal ones keep their order. `spare` has room for as many. Radix sort, a byte at
// a time.
static void sort_by_number(uint64_t* x, int64_t count, uint64_t* spare) {
  constexpr int kPasses = 4, kDigits = 256;
  const auto digit = [](uint64_t x, int pass) { return x >> (32 + 8 * pass) & (kDigits - 1); };
  uint32_t starts[kPasses][kDigits] = {};
  for (int64_t i = 0; i < count; ++i)
    for (int pass = 0; pass < kPasses; ++pass) ++starts[pass][digit(x[i], pass)];
  uint64_t *from = x, *to = spare;
  for (int pass = 0; pass < kPasses; ++pass) {
    uint32_t before = 0;
    for (uint32_t& start : starts[pass]) {
      const uint32_t here = start;
      start = before;
      before += here;
    }
    for (int64_t i = 0; i < count; ++i) to[starts[pass][digit(from[i], pass)]++] = from[i];
    uint64_t* const sorted = to;
    to = from;
    from = sorted;
  }
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
