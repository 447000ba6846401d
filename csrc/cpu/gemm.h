// Packing and the register-tile microkernel of the pairwise engine, written once over the vector width.
//
// torch's own float32 products stop at 40 % of the FMA peak of an AVX-512 AMD CPU; these reach 80-95 % of
// it. B comes in panels of kTileCols columns, packed or in place; A is read in place, at any row and column
// stride, so the same kernel serves S = Q Kt, dQ = W K and dKt = Qt W.
#pragma once

#include "cpu/simd.h"

namespace thawkit {
namespace THAWKIT_ISA {

constexpr int kTileCols = 2 * kLanes;
// Two columns of accumulators for each row, two registers for B, one for the broadcast of A.
#if THAWKIT_VECTOR_BYTES == 64 || defined(__ARM_NEON)
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 6;
#endif

constexpr int kLineFloats = 16;

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows of C are cut into parts of at most kTileRows, all of nearly the same height: a last part of one or two
// rows would have too few independent sums to keep the multipliers busy. Parts start at multiples of
// `together`.
struct Parts {
  int64_t rows, together, count;
  int64_t low, high;  // the first `high` parts have (low + 1) * together rows, the others low * together

  explicit Parts(int64_t rows, int64_t together = 1)
      : rows(rows),
        together(together),
        count(ceil_div(rows, kTileRows)),
        low(count ? ceil_div(rows, together) / count : 0),
        high(count ? ceil_div(rows, together) % count : 0) {}
  int64_t start(int64_t part) const { return (part * low + smaller(part, high)) * together; }
  int64_t height(int64_t part) const { return smaller((low + (part < high)) * together, rows - start(part)); }
};

// One step along the inner dimension: the sum takes the product of one number of A with a vector of B.
struct OneFloat {
  static inline Floats add(Floats sum, float a, Floats b) { return sum + a * b; }
};

// A[r, k] = at[k * step + r]: as packing leaves it. What the compiler knows of the strides spares it a
// pointer for each row, of which there are more than registers.
struct PackedLeft {
  static constexpr int kTogether = 1;
  const float* at;
  int64_t step;

  inline float operator()(int64_t row, int64_t k) const { return at[k * step + row]; }
  inline PackedLeft from(int64_t row) const { return {at + row, step}; }
};

// A[r, k] = at[r * Stride + k]
template <int64_t Stride>
struct RowsLeft {
  static constexpr int kTogether = 1;
  const float* at;

  inline float operator()(int64_t row, int64_t k) const { return at[row * Stride + k]; }
  inline RowsLeft from(int64_t row) const { return {at + row * Stride}; }
};

// B[k, 0..kTileCols) = at[k * stride + ...]; `next` is where the panel after this one lies: its rows are
// prefetched while this one is used for the first time.
struct Right {
  const float* at;
  int64_t stride;
  const float* next;
};

// Every cache line of one row of a tile; Write is 1 where it will be written.
template <int Write>
static inline void prefetch_row(const float* row) {
#pragma GCC unroll 4
  for (int i = 0; i < kTileCols; i += kLineFloats) __builtin_prefetch(row + i, Write);
}

// C[Rows x kTileCols] (+)= A[Rows x depth] * B[depth x kTileCols]
template <int Rows, bool Accumulate, bool Prefetch, class Step, class A>
static inline __attribute__((always_inline)) void tile(int64_t depth, A left, Right B, float* C,
                                                       int64_t ldc) {
  Floats c0[Rows], c1[Rows];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) c0[i] = c1[i] = Floats{};
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) prefetch_row<1>(C + i * ldc);
  for (int64_t k = 0; k < depth; ++k) {
    const Floats b0 = load(B.at + k * B.stride), b1 = load(B.at + k * B.stride + kLanes);
    if constexpr (Prefetch) prefetch_row<0>(B.next + k * B.stride);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const float s = left(i, k);
      c0[i] = Step::add(c0[i], s, b0);
      c1[i] = Step::add(c1[i], s, b1);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    float* c = C + i * ldc;
    store(c, Accumulate ? load(c) + c0[i] : c0[i]);
    store(c + kLanes, Accumulate ? load(c + kLanes) + c1[i] : c1[i]);
  }
}

template <int Rows, bool Accumulate, bool Prefetch, class Step, class A>
static inline void tile_of(int64_t rows, int64_t depth, A left, Right B, float* C, int64_t ldc) {
  if constexpr (Rows > 0) {
    if (rows == Rows)
      tile<Rows, Accumulate, Prefetch, Step>(depth, left, B, C, ldc);
    else
      tile_of<Rows - 1, Accumulate, Prefetch, Step>(rows, depth, left, B, C, ldc);
  }
}

// C[rows x kTileCols] (+)= A[rows x depth] * B for one part's rows.
template <bool Accumulate, class Step, class A>
static inline void multiply_part(int64_t rows, int64_t depth, A left, Right B, float* C, int64_t ldc) {
  if (B.next)
    tile_of<kTileRows, Accumulate, true, Step>(rows, depth, left, B, C, ldc);
  else
    tile_of<kTileRows, Accumulate, false, Step>(rows, depth, left, B, C, ldc);
}

// As above for any number of rows.
template <bool Accumulate, class Step, class A>
static void multiply_full(int64_t rows, int64_t depth, A left, Right B, float* C, int64_t ldc) {
  const Parts parts(rows, A::kTogether);
  for (int64_t part = 0; part < parts.count; ++part) {
    const int64_t start = parts.start(part);
    multiply_part<Accumulate, Step>(parts.height(part), depth, left.from(start), B, C + start * ldc, ldc);
    B.next = nullptr;
  }
}

// As above for a panel of which only `cols` columns exist in C: computed beside it, then copied.
template <bool Accumulate, class Step, class A>
static void multiply(int64_t rows, int64_t depth, A left, Right B, float* C, int64_t ldc, int64_t cols) {
  if (cols >= kTileCols) {
    multiply_full<Accumulate, Step>(rows, depth, left, B, C, ldc);
    return;
  }
  float beside[kTileRows * kTileCols];
  for (int64_t i = 0; i < rows; i += kTileRows) {
    const int64_t height = smaller(kTileRows, rows - i);
    multiply_full<false, Step>(height, depth, left.from(i), B, beside, kTileCols);
    for (int64_t r = 0; r < height; ++r)
      for (int64_t j = 0; j < cols; ++j) {
        float& c = C[(i + r) * ldc + j];
        c = Accumulate ? c + beside[r * kTileCols + j] : beside[r * kTileCols + j];
      }
  }
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
