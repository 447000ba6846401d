// What the drivers of the pairwise engine share: the layout of a panel of scores, and how rows are split
// into panels and panels over threads.
#pragma once

#include <omp.h>

#include "cpu/huge_pages.h"
#include "cpu/kernels.h"
#include "cpu/packing.h"

namespace thawkit {
namespace THAWKIT_ISA {

struct Panel {
  float* scores;
  int64_t rows;       // capacity
  int64_t first = 0;  // the block that comes first

  float* at(int64_t block, int64_t row) const {
    return scores + ((block - first) * rows + row) * kBlockStride;
  }
  float& entry(int64_t row, int64_t column) const {
    return at(column / kBlockCols, row)[column % kBlockCols];
  }
};

static inline int64_t panel_floats(int64_t rows, int64_t columns) {
  return ceil_div(columns, kBlockCols) * rows * kBlockStride;
}

// How the rows are worked through. Where memory allows, every thread takes panels of its own, one after the
// other, and has its own sum of the transposed product: nobody waits and no cache line changes hands. Else
// all threads share one panel and one sum, each taking rows of the former and columns of the latter.
struct Teams {
  int threads;    // of all
  int count;      // teams, each with a panel and a sum
  int64_t panel;  // rows of a team's panel

  // `rows` against `columns`; panels are multiples of `multiple`; a sum has `sum` floats.
  Teams(int64_t rows, int64_t columns, int64_t multiple, int64_t sum, int threads) : threads(threads) {
#ifdef THAWKIT_ONE_TEAM
    constexpr int64_t kOwnSums = 0;
#else
    constexpr int64_t kOwnSums = int64_t(16) << 20;
#endif
    count = threads * sum <= kOwnSums ? threads : 1;
    // Enough rows to feed the product whose inner dimension they are, few enough that the panel stays in the
    // last-level cache.
    constexpr int64_t kPanelFloats = int64_t(4) << 20;
    const int64_t fit = kPanelFloats / threads / (columns > 0 ? columns : 1);
    const int64_t most = fit < 96 ? 96 : smaller(fit, 192);
    const int64_t rounds = ceil_div(rows > 0 ? rows : 1, threads * most);
    panel = round_up(ceil_div(rows > 0 ? rows : 1, threads * rounds), multiple);
    if (count == 1) panel *= threads;
  }
};

// One thread's place in its team, and the team's panels: for (round = 0; top(round) < rows; ++round). The
// order is fixed, so that the sums are the same in every run; it turns back and forth, so that panels that
// become cheaper are shared out evenly.
struct Member {
  int teams, team, thread, threads;
  int64_t panel;

  explicit Member(const Teams& of)
      : teams(1), team(0), thread(omp_get_thread_num()), threads(omp_get_num_threads()), panel(of.panel) {
    if (of.count == 1) return;
    teams = threads;  // can be fewer than were asked for
    team = thread;
    thread = 0;
    threads = 1;
  }
  int64_t top(int64_t round) const { return (round * teams + (round % 2 ? teams - 1 - team : team)) * panel; }
  // A row has one owner at a time, and a panel is read by all of the team.
  void wait() const {
    if (threads > 1) {
#pragma omp barrier
    }
  }
};

// Below this many multiply-adds a thread costs more to wake than it computes.
static inline int useful_threads(double multiply_adds, int threads) {
  constexpr double kWorthAThread = 4e5;
  const double most = multiply_adds / kWorthAThread;
  return most < 1 ? 1 : most < threads ? static_cast<int>(most) : threads;
}

static inline void zero(float* memory, int64_t floats) {
  if (floats > 0) memset(memory, 0, static_cast<size_t>(floats) * sizeof(float));
}

struct Share {
  int64_t first, last;
};

static inline Share share_of(int64_t count, int thread, int threads, int64_t multiple) {
  const int64_t each = round_up(ceil_div(count, threads), multiple);
  const int64_t first = smaller(thread * each, count);
  return {first, smaller(first + each, count)};
}

// The member's share of its team's sum of the transposed product.
static inline void clear_sum(float* sum, int64_t floats, const Member& member) {
  const Share own = share_of(floats, member.thread, member.threads, 16);
  zero(sum + own.first, own.last - own.first);
}

// Hands out pieces of one allocation, each on a cache line.
struct Workspace {
  static constexpr int64_t kLine = kLineFloats;
  float* next;
  int64_t taken;

  explicit Workspace(float* memory) : next(memory), taken(0) {
    if (memory)
      next += (kLine - static_cast<int64_t>(reinterpret_cast<uintptr_t>(memory) / 4) % kLine) % kLine;
  }
  float* take(int64_t floats) {
    float* here = next;
    if (next) next += round_up(floats, kLine);
    taken += round_up(floats, kLine);
    return here;
  }
  // One piece for each team; that of `team`.
  float* take(int64_t floats, const Teams& teams, int team) {
    float* here = take(round_up(floats, kLine) * teams.count);
    return here ? here + round_up(floats, kLine) * team : nullptr;
  }
  // Every thread's own; that of the thread that asks.
  Scratch scratch(int64_t depth, int threads) {
    const int64_t stride = Scratch::stride_of(depth), each = Scratch::kRows * stride;
    float* const here = take(each * threads);
    return {here ? here + each * omp_get_thread_num() : nullptr, stride};
  }
  int64_t total() const { return taken + kLine; }
};

// The tiles of one block of scores, columns `first` (a multiple of a tile) to `last`: S[rows x (first, last)]
// = A Kt, A as pack_rows leaves it, of `units` units.
template <class Operand>
static inline void score_block(const Panel& panel, int64_t block, int64_t first_row, int64_t rows,
                               const float* A, int64_t units, const float* transposed, int64_t first,
                               int64_t last) {
  if constexpr (Operand::kPlain) {
    multiply_plain(rows, last - first, units, As::kItself, A, units, As::kTransposed,
                   transposed + first * units, units, false,
                   panel.at(block, first_row) + (first - block * kBlockCols), kBlockStride);
    return;
  }
  const Parts parts(rows);
  for (int64_t column = first; column < last; column += kTileCols) {
    const float* packed = transposed + column * units;
    const float* next = packed + units * kTileCols;
    for (int64_t part = 0; part < parts.count; ++part) {
      const int64_t height = parts.height(part), start = parts.start(part);
      multiply_part<false, typename Operand::Step>(
          height, units, PackedLeft{A + start * units, height},
          {packed, kTileCols, part == 0 ? next : nullptr},
          panel.at(block, first_row + start) + (column - block * kBlockCols), kBlockStride);
    }
  }
}

// Between the epilogue and the products, for whole tiles of one block: float32 weights become the operand's.
// `first_row` is even.
template <class Operand>
static inline void round_weights(const Panel& panel, int64_t block, int64_t first_row, int64_t rows,
                                 int64_t first, int64_t last) {
  if constexpr (Operand::kRounds)
    for (int64_t i = 0; i < rows; i += 2) {
      float* const x = panel.at(block, first_row + i) + (first - block * kBlockCols);
      Operand::round_weights(x, x + kBlockStride, i + 1 < rows, last - first);
    }
}

// out[rows x depth] += W[rows x (first, last)] K for columns of one block; `packed_rows` counts units.
template <class Operand>
static inline void times_rows(const Panel& panel, int64_t block, int64_t first_row, int64_t rows,
                              int64_t first, int64_t last, const float* packed, int64_t packed_rows,
                              int64_t depth, float* out) {
  if constexpr (Operand::kPlain) {
    multiply_plain(rows, depth, last - first, As::kItself,
                   panel.at(block, first_row) + (first - block * kBlockCols), kBlockStride, As::kItself,
                   packed + first * depth, depth, true, out, depth);
    return;
  }
  const typename Operand::Weights W{panel.at(block, first_row) + (first - block * kBlockCols)};
  for (int64_t d = 0; d < depth; d += kTileCols) {
    const float* K = packed + (d / kTileCols * packed_rows + first / Operand::kTogether) * kTileCols;
    multiply<true, typename Operand::Step>(rows, units<Operand>(last - first), W,
                                           {K, kTileCols, K + packed_rows * kTileCols}, out + d, depth,
                                           depth - d);
  }
}

// out[key][d] += sum_row W[row, key] Q[row, d] for the tiles of keys first <= tile < last and all rows of the
// panel, out being packed as sum_of_key says, Q as TransposedRows leaves it. With the keys along
// the vectors every step reads whole cache lines of W. `packed_rows` counts units.
template <class Operand>
static inline void transposed_times_rows(const Panel& panel, int64_t rows, int64_t first, int64_t last,
                                         const float* packed, int64_t packed_rows, int64_t depth,
                                         float* out) {
  if constexpr (Operand::kPlain) {
    for (int64_t key = first * kTileCols, end; key < last * kTileCols; key = end) {
      end = smaller((key / kBlockCols + 1) * kBlockCols, last * kTileCols);
      multiply_plain(end - key, depth, rows, As::kTransposed, &panel.entry(0, key), kBlockStride, As::kItself,
                     packed, depth, true, out + key * depth, depth);
    }
    return;
  }
  constexpr int64_t kStride = Operand::kTogether * kBlockStride;
  const Parts parts(depth);
  for (int64_t tile = first; tile < last; ++tile) {
    const float* W = &panel.entry(0, tile * kTileCols);
    const float* next = &panel.entry(0, (tile + 1 < last ? tile + 1 : tile) * kTileCols);
    for (int64_t part = 0; part < parts.count; ++part) {
      const int64_t height = parts.height(part), start = parts.start(part);
      const PackedLeft Q{packed + start * packed_rows, height};
      float* const o = out + (tile * depth + start) * kTileCols;
      multiply_part<true, typename Operand::Step>(height, units<Operand>(rows), Q,
                                                  {W, kStride, part == 0 ? next : nullptr}, o, kTileCols);
    }
  }
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
