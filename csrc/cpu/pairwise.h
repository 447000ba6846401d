// What the drivers of the pairwise engine share: the layout of a panel of scores, and how rows are split
// into panels and panels over threads.
#pragma once

#include <omp.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include "cpu/gemm.h"
#include "cpu/kernels.h"

namespace thawkit {
namespace THAWKIT_ISA {

// A panel of scores is stored as blocks of columns, each block row by row. A block of one thread's rows stays
// in the second-level cache between the product that makes it, its epilogue and the product that uses it,
// and the transposed product walks memory in steps of one short row instead of one long one.
constexpr int64_t kBlockCols = 384;
// Rows of a block are an odd number of cache lines apart, so that they do not share cache sets.
constexpr int64_t kBlockStride = kBlockCols + 16;

static_assert(kBlockCols % kTileCols == 0, "blocks are whole tiles");

struct Panel {
  float* scores;
  int64_t rows;  // capacity

  float* at(int64_t block, int64_t row) const { return scores + (block * rows + row) * kBlockStride; }
  float& entry(int64_t row, int64_t column) const {
    return at(column / kBlockCols, row)[column % kBlockCols];
  }
};

static inline int64_t panel_floats(int64_t rows, int64_t columns) {
  return ceil_div(columns, kBlockCols) * rows * kBlockStride;
}

// Rows of a panel that one thread holds: whole tiles of columns, where the panel's other side starts; enough
// to feed the product whose inner dimension they are, few enough that the panel stays in the last-level
// cache.
static inline int64_t rows_per_thread(int64_t rows, int64_t columns, int threads) {
  constexpr int64_t kPanelFloats = int64_t(4) << 20;
  int64_t height = kPanelFloats / threads / (columns > 0 ? columns : 1);
  height = height < 96 ? 96 : smaller(height, 192);
  height = smaller(height, ceil_div(rows > 0 ? rows : 1, threads));
  return round_up(height, kTileCols);
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

// Hands out pieces of one allocation, each on a cache line.
struct Workspace {
  static constexpr int64_t kLine = 16;
  float* next;

  // Huge pages spare the page faults of a fresh allocation and the address translations of strided reads. The
  // system may decline; the hint changes no contents.
  Workspace(float* memory, int64_t floats) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory);
    next = memory + (kLine - static_cast<int64_t>(start / 4) % kLine) % kLine;
#ifdef __linux__
    constexpr uintptr_t kHugePage = uintptr_t(2) << 20;
    const uintptr_t first = (start + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t last = reinterpret_cast<uintptr_t>(memory + floats) / kHugePage * kHugePage;
    if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  }
  float* take(int64_t floats) {
    float* here = next;
    next += round_up(floats, kLine);
    return here;
  }
};

// The tiles of one block of scores: S[rows x block] = A[rows x depth] Kt, A contiguous.
static inline void score_block(const Panel& panel, int64_t block, int64_t first_row, int64_t rows,
                               const float* A, int64_t depth, const float* transposed, int64_t width) {
  const int64_t first = block * kBlockCols, last = smaller(first + kBlockCols, width);
  for (int64_t column = first; column < last; column += kTileCols) {
    const float* packed = transposed + column * depth;
    multiply_full<false>(rows, depth, {A, depth, 1}, {packed, kTileCols, packed + depth * kTileCols},
                         panel.at(block, first_row) + (column - first), kBlockStride);
  }
}

// out[rows x depth] += W[rows x (first, last)] K for columns of one block.
static inline void times_rows(const Panel& panel, int64_t block, int64_t first_row, int64_t rows,
                              int64_t first, int64_t last, const float* packed, int64_t packed_rows,
                              int64_t depth, float* out) {
  const float* W = panel.at(block, first_row) + (first - block * kBlockCols);
  for (int64_t d = 0; d < depth; d += kTileCols) {
    const float* K = packed + (d / kTileCols * packed_rows + first) * kTileCols;
    multiply<true>(rows, last - first, {W, kBlockStride, 1}, {K, kTileCols, K + packed_rows * kTileCols},
                   out + d, depth, depth - d);
  }
}

// out[key][d] += sum_row W[row, key] Q[row, d] for the tiles of keys first <= tile < last and all rows of the
// panel, out being packed as unpack_transposed reads it, Q as pack_column leaves it. With the keys along the
// vectors every step reads whole cache lines of W.
static inline void transposed_times_rows(const Panel& panel, int64_t rows, int64_t first, int64_t last,
                                         const float* packed, int64_t packed_rows, int64_t depth,
                                         float* out) {
  const Parts parts(depth);
  for (int64_t tile = first; tile < last; ++tile) {
    const float* W = &panel.entry(0, tile * kTileCols);
    const float* next = &panel.entry(0, (tile + 1 < last ? tile + 1 : tile) * kTileCols);
    for (int64_t part = 0; part < parts.count; ++part) {
      const int64_t height = parts.height(part), start = parts.start(part);
      const Left Q{packed + start * packed_rows, 1, height};
      float* const o = out + (tile * depth + start) * kTileCols;
      if (part == 0)
        tile_of<kTileRows, true, true>(height, rows, Q, {W, kBlockStride, next}, o, kTileCols);
      else
        tile_of<kTileRows, true, false>(height, rows, Q, {W, kBlockStride, nullptr}, o, kTileCols);
    }
  }
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
