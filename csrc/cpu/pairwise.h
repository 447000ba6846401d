// What the drivers of the pairwise engine share: how rows are split into panels and panels over threads.
#pragma once

#include <omp.h>

#include "cpu/gemm.h"
#include "cpu/kernels.h"

namespace thawkit {
namespace THAWKIT_ISA {

// Depth of one pass of dQ = W K: a panel of K of this many rows stays in the second-level cache.
constexpr int64_t kDepthBlock = 512;
// Columns of S whose transposed product runs between two passes over the packed panel of Q.
constexpr int64_t kColumnBlock = 384;
// Columns that separate two rows of S beyond their length, so that rows do not share cache sets.
constexpr int64_t kRowGap = 16;

// Rows of S that one thread holds: a multiple of the tile, enough of them to feed the product whose inner
// dimension they are, few enough that S stays in the last-level cache.
static inline int64_t panel_rows(int64_t rows, int64_t keys, int threads) {
  constexpr int64_t kPanelFloats = 1 << 20;
  int64_t height = kPanelFloats / (keys > 0 ? keys : 1);
  height = height < 8 * kTileRows ? 8 * kTileRows : height;
  height = smaller(height, 384);
  height = smaller(height, ceil_div(rows > 0 ? rows : 1, threads));
  return round_up(height, kTileRows);
}

// Below this many multiply-adds a thread costs more to wake than it computes.
static inline int useful_threads(double multiply_adds, int threads) {
  constexpr double kWorthAThread = 4e5;
  const double most = multiply_adds / kWorthAThread;
  return most < 1 ? 1 : most < threads ? static_cast<int>(most) : threads;
}

struct Share {
  int64_t first, last;
};

static inline Share share_of(int64_t count, int thread, int threads, int64_t multiple) {
  const int64_t each = round_up(ceil_div(count, threads), multiple);
  const int64_t first = smaller(thread * each, count);
  return {first, smaller(first + each, count)};
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
