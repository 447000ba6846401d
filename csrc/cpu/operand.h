// What the products multiply: float32 numbers, or bfloat16 numbers in pairs that lie together along the inner
// dimension. Sums are float32 either way, and so are scores until their epilogue is through. A pair travels
// in the bits of one float, so both kinds share the packing and the microkernel; a driver takes one of the
// structs below as a template parameter.
#pragma once

#include "cpu/gemm.h"

namespace thawkit {
namespace THAWKIT_ISA {

// A panel of scores is stored as blocks of columns, each block row by row. A block of one thread's rows stays
// in the second-level cache between the product that makes it, its epilogue and the product that uses it,
// and the transposed product walks memory in steps of one short row instead of one long one.
constexpr int64_t kBlockCols = 384;
// Rows of a block are an odd number of cache lines apart, so that they do not share cache sets.
constexpr int64_t kBlockStride = kBlockCols + 16;

static_assert(kBlockCols % kTileCols == 0, "blocks are whole tiles");

// ---- rows of either storage type as floats, and back

static inline const float* as_floats(const float* row, int64_t, float*) { return row; }
static inline const float* as_floats(const bfloat16* row, int64_t count, float* scratch) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(scratch + i, load(row + i));
  if (i < count) store_part(scratch + i, load_part(row + i, count - i), count - i);
  return scratch;
}

template <class To>
static inline void store_row(To* out, const float* row, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(row + i));
  if (i < count) store_part(out + i, load_part(row + i, count - i), count - i);
}

template <class To, class From>
static inline void scale_row(To* out, const From* row, int64_t count, float factor) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(row + i) * factor);
  if (i < count) store_part(out + i, load_part(row + i, count - i) * factor, count - i);
}

// ---- the two kinds

struct Float32 {
  static constexpr int kTogether = 1;  // numbers of one unit
  static constexpr bool kRounds = false;
  typedef OneFloat Step;
  typedef RowsLeft<kBlockStride> Weights;

  // Units of a row along its features: out[d] = factor * row[d].
  template <class Source>
  static inline void along(const Source* row, int64_t depth, float factor, float* out) {
    scale_row(out, row, depth, factor);
  }
  // Units of kTogether rows across them, one a feature, from what `along` made of each; `apart` is the
  // distance of the rows. There can be fewer rows.
  static inline const float* across(const float* rows, int64_t, int64_t, int64_t, float*) { return rows; }

  // Float32 weights of the row pair x, y of a block become what the products read; y may be missing.
  static inline void round_weights(float*, float*, bool, int64_t) {}
  // Changes what the transposed product sees in the block that starts at `rows`.
  static inline void set_weight(float* rows, int64_t row, int64_t column, float value) {
    rows[row * kBlockStride + column] = value;
  }
};

#if defined(THAWKIT_AVX512_BF16)

struct OnePair {
  static inline Floats add(Floats sum, float a, Floats b) {
    return bit_cast<Floats>(
        _mm512_dpbf16_ps(bit_cast<__m512>(sum), bit_cast<__m512bh>(splat_bits(a)), bit_cast<__m512bh>(b)));
  }
  static inline __m512 splat_bits(float a) { return _mm512_set1_ps(a); }
};

// The weights of rows 2 i and 2 i + 1 share the place of their scores: the row of 2 i holds pairs along the
// rows, one a column, as B of the transposed product; that of 2 i + 1 pairs along the columns, eight of row
// 2 i and then eight of row 2 i + 1, as A of the other.
struct PairedWeights {
  static constexpr int kTogether = 2;
  const float* at;

  inline float operator()(int64_t row, int64_t k) const {
    return at[(row | 1) * kBlockStride + (row & 1) * 8 + k + (k & ~int64_t(7))];
  }
  inline PairedWeights from(int64_t row) const { return {at + row * kBlockStride}; }
};

struct BFloat16 {
  static constexpr int kTogether = 2;
  static constexpr bool kRounds = true;
  typedef OnePair Step;
  typedef PairedWeights Weights;

  template <class Source>
  static inline void along(const Source* row, int64_t depth, float factor, float* out) {
    bfloat16* const o = reinterpret_cast<bfloat16*>(out);
    scale_row(o, row, depth, factor);
    if (depth % 2) o[depth].bits = 0;
  }
  static inline const float* across(const float* rows, int64_t apart, int64_t count, int64_t depth,
                                    float* out) {
    const bfloat16* const r0 = reinterpret_cast<const bfloat16*>(rows);
    const bfloat16* const r1 = reinterpret_cast<const bfloat16*>(rows + apart);
    for (int64_t d = 0; d < depth; d += kLanes) {
      const Ints low = bit_cast<Ints>(d + kLanes <= depth ? load(r0 + d) : load_part(r0 + d, depth - d));
      Ints pair = bit_cast<Ints>(_mm512_srli_epi32(bit_cast<__m512i>(low), 16));
      if (count > 1)
        pair |= bit_cast<Ints>(d + kLanes <= depth ? load(r1 + d) : load_part(r1 + d, depth - d));
      if (d + kLanes <= depth)
        store(out + d, bit_cast<Floats>(pair));
      else
        store_part(out + d, bit_cast<Floats>(pair), depth - d);
    }
    return out;
  }

  static inline void round_weights(float* x, float* y, bool pair, int64_t width) {
    const __m512i alternate = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                               23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int64_t j = 0; j < width; j += kLanes) {
      const __m512 a = bit_cast<__m512>(load(x + j)), b = pair ? bit_cast<__m512>(load(y + j)) : __m512{};
      const __m512i rounded = bit_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));
      _mm512_storeu_si512(y + j, rounded);
      _mm512_storeu_si512(x + j, _mm512_permutexvar_epi16(alternate, rounded));
    }
  }
  static inline void set_weight(float* rows, int64_t row, int64_t column, float value) {
    float* const pair = rows + (row & ~int64_t(1)) * kBlockStride + column;
    store_part(reinterpret_cast<bfloat16*>(pair) + (row & 1), splat(value), 1);
  }
};

#endif

// ---- packing of units

template <class Operand>
static inline int64_t units(int64_t count) {
  return ceil_div(count, Operand::kTogether);
}

template <int Count>
static inline void copy_short(const float* source, int64_t count, float* out) {
  if constexpr (Count > 0) {
    if (count == Count)
      memcpy(out, source, Count * sizeof(float));
    else
      copy_short<Count - 1>(source, count, out);
  }
}

// A tile of B for S = Q Kt: packed[u][j] = row j's unit u, `present` rows `apart` floats apart, others 0.
static inline void pack_tile(const float* rows, int64_t apart, int64_t present, int64_t units,
                             float* packed) {
  for (int64_t u = 0; u < units; ++u) {
    for (int64_t j = 0; j < present; ++j) copy_short<1>(rows + j * apart + u, 1, packed + u * kTileCols + j);
    for (int64_t j = present; j < kTileCols; ++j) packed[u * kTileCols + j] = 0.f;
  }
}

// One part of A for S = Q Kt: packed[u][r] = row r's unit u.
static inline void pack_part(const float* rows, int64_t apart, int64_t height, int64_t units, float* packed) {
  for (int64_t u = 0; u < units; ++u)
    for (int64_t r = 0; r < height; ++r) copy_short<1>(rows + r * apart + u, 1, packed + u * height + r);
}

// One row of units across as a row of B for W K: packed[tile][row][j] = row[tile * kTileCols + j].
static inline void pack_right_row(const float* units, int64_t depth, float* packed, int64_t rows,
                                  int64_t row) {
  for (int64_t d = 0; d < depth; d += kTileCols) {
    float* p = packed + (d / kTileCols * rows + row) * kTileCols;
    const int64_t present = smaller(kTileCols, depth - d);
    if (present == kTileCols) {
      copy_short<kTileCols>(units + d, kTileCols, p);
      continue;
    }
    memcpy(p, units + d, static_cast<size_t>(present) * sizeof(float));
    for (int64_t j = present; j < kTileCols; ++j) p[j] = 0.f;
  }
}

// One row of units across as a column of A for Qt W: packed[part][row][r] = row[start(part) + r].
static inline void pack_left_row(const float* units, const Parts& parts, float* packed, int64_t rows,
                                 int64_t row) {
  for (int64_t part = 0; part < parts.count; ++part) {
    const int64_t height = parts.height(part), start = parts.start(part);
    copy_short<kTileRows>(units + start, height, packed + start * rows + row * height);
  }
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
