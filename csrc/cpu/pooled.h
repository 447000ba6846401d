// The rows of two samples, one after the other, as kernels of distances want them: about a point amid them,
// and of a size whose squares float32 holds.
#pragma once

#include "cpu/centre.h"

namespace thawkit {
namespace THAWKIT_ISA {

// A power of two: 1 unless squares of the rows, of which `row(i)` is one, would leave float32.
template <class Row>
static float unit_of(Row row, int64_t count, int64_t depth) {
  Floats most = {};
  for (int64_t i = 0; i < count; ++i)
    for (int64_t d = 0; d < depth; d += kLanes) {
      const Floats size = abs(load_up_to(row(i) + d, depth - d));
      most = max(select(size < splat(__builtin_inff()), size, splat(0.f)), most);
    }
  const float largest = max_lane(most);
  constexpr float kSmall = 1e-9f, kLarge = 1e15f;
  if (largest == 0.f || (kSmall <= largest && largest <= kLarge)) return 1.f;
  int32_t exponent = 254 - (bit_cast<int32_t>(largest) >> 23);
  exponent = exponent < 1 ? 1 : exponent > 253 ? 253 : exponent;
  return bit_cast<float>(exponent << 23);
}

struct Pooled {
  const float* x;
  const float* y;
  int64_t n, count, depth;
  bool centred;
  float *z, *norms, *centre, *unit;  // unit is one number
  double* sums;

  Pooled() = default;
  Pooled(const float* x, const float* y, int64_t n, int64_t m, int64_t depth, bool centred,
         Workspace& workspace)
      : x(x), y(y), n(n), count(n + m), depth(depth), centred(centred) {
    z = workspace.take(count * depth);
    norms = workspace.take(round_up(count, kTileCols) + kLanes);
    centre = workspace.take(depth);
    unit = workspace.take(1);
    sums = reinterpret_cast<double*>(workspace.take(2 * depth));
  }

  const float* given(int64_t i) const { return i < n ? x + i * depth : y + (i - n) * depth; }

  // Before rows are placed, which threads can share.
  void prepare() const {
    const auto row = [&](int64_t i) { return given(i); };
    *unit = 1.f;
    if (!centred) return zero(centre, depth);
    *unit = unit_of(row, count, depth);
    if (*unit == 1.f) return find_mean_of_near(row, count, depth, centre, sums);
    for (int64_t i = 0; i < count; ++i) scale_row(z + i * depth, given(i), depth, *unit);
    find_mean_of_near([&](int64_t i) { return z + i * depth; }, count, depth, centre, sums);
  }

  void place(int64_t first, int64_t last) const {
    for (int64_t i = first; i < last; ++i) {
      float* const own = z + i * depth;
      const float* const row = *unit == 1.f ? given(i) : own;
      for (int64_t d = 0; d < depth; ++d) own[d] = row[d] - centre[d];
      norms[i] = dot(own, own, depth);
    }
  }
};

}  // namespace THAWKIT_ISA
}  // namespace thawkit
