// What the products multiply: float32 numbers, or bfloat16 numbers in pairs that lie together along the inner
// dimension. Sums are float32 either way, and so are scores until their epilogue is through. A pair travels
// in the bits of one float, so both kinds share the packing and the microkernel; torch's BLAS has neither
// (blas.h). A driver takes one of the structs below as a template parameter.
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

template <class To, class From>
static inline void scale_row(To* out, const From* row, int64_t count, float factor) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(row + i) * factor);
  if (i < count) store_part(out + i, load_part(row + i, count - i) * factor, count - i);
}

struct Float32 {
  static constexpr int kTogether = 1;  // numbers of one unit
  static constexpr bool kRounds = false;
  static constexpr bool kPlain = false;  // packed as rows one after the other
  typedef OneFloat Step;
  typedef RowsLeft<kBlockStride> Weights;

  // The part of a factor that goes into the operands of the scores; the rest multiplies the scores.
  static inline float before_scores(float factor) { return factor; }
  // Units of a row along its features: out[d] = factor * row[d].
  template <class Storage>
  static inline void along(const Storage* row, int64_t depth, float factor, float* out) {
    scale_row(out, row, depth, factor);
  }
  // One more feature behind the `depth` of such a row.
  static inline void append(float* out, int64_t depth, float value) { out[depth] = value; }
  // Units of kTogether rows across them, one a feature, from what `along` made of each; `apart` is the
  // distance of the rows. There can be fewer rows.
  static inline const float* across(const float* rows, int64_t, int64_t, int64_t, float*) { return rows; }

  // Float32 weights of rows x and y of a block become what the products read; y may be missing.
  static inline void round_weights(float*, float*, bool, int64_t) {}
  // Changes what the transposed product sees in the block that starts at `rows`.
  static inline void set_weight(float* rows, int64_t row, int64_t column, float value) {
    rows[row * kBlockStride + column] = value;
  }
};

// The same for torch's BLAS, which takes plain rows in any order: one packing serves all three products.
struct TorchFloat32 : Float32 {
  static constexpr bool kPlain = true;
};

#if defined(THAWKIT_AVX512_BF16)

struct OnePair {
  static inline Floats add(Floats sum, float a, Floats b) {
    return bit_cast<Floats>(_mm512_dpbf16_ps(bit_cast<__m512>(sum), bit_cast<__m512bh>(_mm512_set1_ps(a)),
                                             bit_cast<__m512bh>(b)));
  }
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
  static constexpr bool kPlain = false;
  typedef OnePair Step;
  typedef PairedWeights Weights;

  // A power of two, so that bfloat16 rows are not rounded again; the rest is in [1, 2).
  static inline float before_scores(float factor) {
    const int32_t power = bit_cast<int32_t>(factor) & static_cast<int32_t>(0xff800000);
    return bit_cast<float>(power & 0x7f800000 ? power : power | 0x00800000);
  }
  template <class Storage>
  static inline void along(const Storage* row, int64_t depth, float factor, float* out) {
    bfloat16* const o = reinterpret_cast<bfloat16*>(out);
    scale_row(o, row, depth, factor);
    if (depth % 2) o[depth].bits = 0;
  }
  static inline void append(float* out, int64_t depth, float value) {
    bfloat16* const o = reinterpret_cast<bfloat16*>(out);
    store_part(o + depth, splat(value), 1);
    if (depth % 2 == 0) o[depth + 1].bits = 0;
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

template <class Operand>
static inline int64_t units(int64_t count) {
  return ceil_div(count, Operand::kTogether);
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
