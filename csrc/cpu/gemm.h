// Packing and the register-tile microkernel of the pairwise engine, written once over the vector width.
//
// torch's own float32 products stop at 40 % of the FMA peak of an AVX-512 AMD CPU; these reach 80-95 % of
// it. B is packed in panels of kTileCols columns; A is read in place, at any row and column stride, so the
// same kernel serves S = Q Kt, dQ = W K and dK = Wt Q.
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

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// C[Rows x kTileCols] (+)= A[Rows x depth] * B[depth x kTileCols]
template <int Rows, bool Accumulate>
static inline __attribute__((always_inline)) void tile(int64_t depth, const float* A, int64_t row_stride,
                                                       int64_t depth_stride, const float* B, float* C,
                                                       int64_t ldc) {
  Floats c0[Rows], c1[Rows];
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    c0[i] = Accumulate ? load(C + i * ldc) : Floats{};
    c1[i] = Accumulate ? load(C + i * ldc + kLanes) : Floats{};
  }
  for (int64_t k = 0; k < depth; ++k) {
    const Floats b0 = load(B + k * kTileCols), b1 = load(B + k * kTileCols + kLanes);
    const float* a = A + k * depth_stride;
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const float s = a[i * row_stride];
      c0[i] += s * b0;
      c1[i] += s * b1;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i) {
    store(C + i * ldc, c0[i]);
    store(C + i * ldc + kLanes, c1[i]);
  }
}

template <int Rows, bool Accumulate>
static void last_rows(int64_t rows, int64_t depth, const float* A, int64_t row_stride, int64_t depth_stride,
                      const float* B, float* C, int64_t ldc) {
  if constexpr (Rows > 0) {
    if (rows == Rows)
      tile<Rows, Accumulate>(depth, A, row_stride, depth_stride, B, C, ldc);
    else
      last_rows<Rows - 1, Accumulate>(rows, depth, A, row_stride, depth_stride, B, C, ldc);
  }
}

// C[rows x kTileCols] (+)= A[rows x depth] * B, one packed panel of B.
template <bool Accumulate>
static void multiply_full(int64_t rows, int64_t depth, const float* A, int64_t row_stride,
                          int64_t depth_stride, const float* B, float* C, int64_t ldc) {
  int64_t i = 0;
  for (; i + kTileRows <= rows; i += kTileRows)
    tile<kTileRows, Accumulate>(depth, A + i * row_stride, row_stride, depth_stride, B, C + i * ldc, ldc);
  last_rows<kTileRows - 1, Accumulate>(rows - i, depth, A + i * row_stride, row_stride, depth_stride, B,
                                       C + i * ldc, ldc);
}

// As above for a panel of which only `cols` columns exist in C: computed beside it, then copied.
template <bool Accumulate>
static void multiply(int64_t rows, int64_t depth, const float* A, int64_t row_stride, int64_t depth_stride,
                     const float* B, float* C, int64_t ldc, int64_t cols) {
  if (cols >= kTileCols) {
    multiply_full<Accumulate>(rows, depth, A, row_stride, depth_stride, B, C, ldc);
    return;
  }
  float beside[kTileRows * kTileCols];
  for (int64_t i = 0; i < rows; i += kTileRows) {
    const int64_t height = smaller(kTileRows, rows - i);
    multiply_full<false>(height, depth, A + i * row_stride, row_stride, depth_stride, B, beside, kTileCols);
    for (int64_t r = 0; r < height; ++r)
      for (int64_t j = 0; j < cols; ++j) {
        float& c = C[(i + r) * ldc + j];
        c = Accumulate ? c + beside[r * kTileCols + j] : beside[r * kTileCols + j];
      }
  }
}

// packed[block][d][j] = factor[r] * K[r][d] with r = block * kTileCols + j, rows past the end are 0: B of
// S = Q Kt. Blocks first <= block < last. A null factor is 1.
static void pack_transposed(const float* K, int64_t rows, int64_t depth, const float* factor, float* packed,
                            int64_t first, int64_t last) {
  for (int64_t block = first; block < last; ++block) {
    float* p = packed + block * depth * kTileCols;
    const int64_t present = smaller(kTileCols, rows - block * kTileCols);
    const float* k = K + block * kTileCols * depth;
    float f[kTileCols];
    for (int64_t j = 0; j < present; ++j) f[j] = factor ? factor[block * kTileCols + j] : 1.f;
    for (int64_t d = 0; d < depth; ++d) {
      for (int64_t j = 0; j < present; ++j) p[d * kTileCols + j] = k[j * depth + d] * f[j];
      for (int64_t j = present; j < kTileCols; ++j) p[d * kTileCols + j] = 0.f;
    }
  }
}

// One row of B for the products W K and Wt Q: packed[block][row][j] = factor * source[block * kTileCols + j].
static inline void pack_row(const float* source, int64_t depth, float factor, float* packed, int64_t rows,
                            int64_t row) {
  for (int64_t block = 0; block * kTileCols < depth; ++block) {
    float* p = packed + (block * rows + row) * kTileCols;
    const float* s = source + block * kTileCols;
    const int64_t present = smaller(kTileCols, depth - block * kTileCols);
    if (present == kTileCols) {
      store(p, load(s) * factor);
      store(p + kLanes, load(s + kLanes) * factor);
      continue;
    }
    for (int64_t j = 0; j < present; ++j) p[j] = s[j] * factor;
    for (int64_t j = present; j < kTileCols; ++j) p[j] = 0.f;
  }
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
