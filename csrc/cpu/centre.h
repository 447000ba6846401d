// The point about which rows are put before distances are computed from products.
#pragma once

#include "cpu/pairwise.h"

namespace thawkit {
namespace THAWKIT_ISA {

// Batcher's odd-even merge sort of each lane, ascending. `count` is a power of two, as are runs and steps.
static inline void sort_lanes(Floats* x, int64_t count) {
  for (int64_t run = 1; run < count; run *= 2)
    for (int64_t step = run; step >= 1; step /= 2)
      for (int64_t start = step % run; start + step < count; start += 2 * step)
        for (int64_t i = start; i < start + step && i + step < count; ++i) {
          if ((i ^ (i + step)) >= 2 * run) continue;  // they are of different runs
          const Floats low = x[i], high = x[i + step];
          x[i] = min(low, high);
          x[i + step] = max(low, high);
        }
}

static inline float squared_distance(const float* x, const float* y, int64_t depth) {
  Floats total = {};
  for (int64_t k = 0; k < depth; k += kLanes) {
    const Floats gap = load_up_to(x + k, depth - k) - load_up_to(y + k, depth - k);
    total += gap * gap;
  }
  return sum(total);
}

// Distances do not see a common shift, but |u|^2 + |v|^2 - 2 <u, v> loses digits to it, so rows are put about
// a point amid them: the median of each feature over a sample of evenly spaced rows. The mean would not do:
// one row far away drags it, and then every distance loses its digits. Rows that are not finite do not take
// part. `row(i)` is row i of `count`. Returns how far a row is from that point, the square of the median over
// the sample.
template <class Row>
static float find_centre(Row row, int64_t count, int64_t depth, float* centre) {
  constexpr int64_t kSample = 64;
  const float* sample[kSample];
  const int64_t parts = smaller(count, kSample);
  int64_t found = 0, whole = 1;
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t i = count * part / parts; i < count * (part + 1) / parts; ++i)
      if (dot(row(i), row(i), depth) <= __FLT_MAX__) {
        sample[found++] = row(i);
        break;
      }
  zero(centre, depth);
  if (!found) return 0.f;
  while (whole < found) whole *= 2;
  Floats sorted[kSample];
  const auto median = [&]() {
    for (int64_t i = found; i < whole; ++i) sorted[i] = splat(__builtin_inff());
    sort_lanes(sorted, whole);
    return sorted[(found - 1) / 2];
  };
  for (int64_t k = 0; k < depth; k += kLanes) {
    for (int64_t i = 0; i < found; ++i) sorted[i] = load_up_to(sample[i] + k, depth - k);
    store_up_to(centre + k, median(), depth - k);
  }
  for (int64_t i = 0; i < found; ++i) sorted[i] = splat(squared_distance(sample[i], centre, depth));
  return median()[0];
}

// The same, and then the mean of the rows that are not much farther from that point than is usual.
template <class Row>
static void find_mean_of_near(Row row, int64_t count, int64_t depth, float* centre, double* sum) {
  const float most = 16 * find_centre(row, count, depth, centre);
  int64_t near = 0;
  for (int64_t k = 0; k < depth; ++k) sum[k] = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (!(squared_distance(row(i), centre, depth) <= most)) continue;
    ++near;
    for (int64_t k = 0; k < depth; ++k) sum[k] += row(i)[k];
  }
  for (int64_t k = 0; near && k < depth; ++k) centre[k] = static_cast<float>(sum[k] / double(near));
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
