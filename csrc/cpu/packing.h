// Rows of either storage type into the packed forms of an operand, and float32 sums back into rows.
#pragma once

#include "cpu/blas.h"

namespace thawkit {
namespace THAWKIT_ISA {

static inline Floats load_up_to(const float* p, int64_t count) {
  return count >= kLanes ? load(p) : load_part(p, count);
}
static inline void store_up_to(float* p, Floats v, int64_t count) {
  if (count >= kLanes)
    store(p, v);
  else
    store_part(p, v, count);
}

// Rows on the way into a packed form: a tile of them, which Arm's are higher than wide, and one more, for one
// thread.
struct Scratch {
  static constexpr int64_t kRows = (kTileCols > kTileRows ? kTileCols : kTileRows) + 1;
  float* rows;
  int64_t stride;

  // Also takes the sums of a tile of columns, which have one feature more at most.
  static int64_t stride_of(int64_t depth) { return round_up(depth + 2, kLineFloats); }
  float* row(int64_t i) const { return rows + i * stride; }
};

// g = (g - weight * x) * factor
template <class Storage>
static inline void less_row(float* g, const Storage* x, int64_t count, float weight, float factor) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(g + i, (load(g + i) - load(x + i) * weight) * factor);
  if (i < count) {
    const int64_t rest = count - i;
    store_part(g + i, (load_part(g + i, rest) - load_part(x + i, rest) * weight) * factor, rest);
  }
}

template <class Storage>
static inline float inverse_norm(const Storage* x, int64_t depth) {
  const float norm = __builtin_sqrtf(dot(x, x, depth));
  return 1.f / (norm < 1e-12f ? 1e-12f : norm);  // torch.nn.functional.normalize's eps
}

// Gradient with respect to x of f(x / |x|), from g = f'(x / |x|), in place.
template <class Storage>
static inline void through_norm(float* g, const Storage* x, float inverse, int64_t depth) {
  // below eps the norm is a constant
  const float along = inverse < 1e12f ? dot(g, x, depth) * inverse * inverse : 0.f;
  less_row(g, x, depth, along, inverse);
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

// out[u * width + r] = rows[r][u], 0 for the rows that are not present.
static inline void interleave(const Scratch& scratch, int64_t present, int64_t width, int64_t units,
                              float* out) {
  for (int64_t u = 0; u < units; u += kLanes) {
    const int64_t some = smaller(kLanes, units - u);
    for (int64_t r = 0; r < width; r += kLanes) {
      Floats square[kLanes];
      for (int i = 0; i < kLanes; ++i)
        square[i] = r + i < present ? load_up_to(scratch.row(r + i) + u, some) : Floats{};
      transpose(square);
      for (int64_t i = 0; i < some; ++i) {
        float* const o = out + (u + i) * width + r;
        // What reaches beyond a row that is shorter than a vector is written again with the next one.
        const bool whole = r + kLanes <= width || (r == 0 && (units - u - i) * width >= kLanes);
        store_up_to(o, square[i], whole ? kLanes : smaller(kLanes, width - r));
      }
    }
  }
}

// One row of units across as a row of B for W K: packed[tile][row][j] = units[tile * kTileCols + j].
static inline void pack_across(const float* units, int64_t depth, float* packed, int64_t rows, int64_t row) {
  for (int64_t d = 0; d < depth; d += kTileCols) {
    float* p = packed + (d / kTileCols * rows + row) * kTileCols;
    const int64_t present = smaller(kTileCols, depth - d);
    if (present == kTileCols) {
      memcpy(p, units + d, kTileCols * sizeof(float));
      continue;
    }
    memcpy(p, units + d, static_cast<size_t>(present) * sizeof(float));
    for (int64_t j = present; j < kTileCols; ++j) p[j] = 0.f;
  }
}

// The rows of K, each times its factor (a null factor is 1), for tiles first <= tile < last of them:
//   transposed[tile][unit of a row][row], B of S = Q Kt. It takes only what Operand::before_scores says of
//   the factor; the rest goes to `rest` (where not null), whose padding is 0
//   across[tile of features][unit of rows][feature], B of W K (where not null)
// or, where the operand is plain, transposed[row][feature] for both, `across` being the same memory or null.
template <class Operand, class Storage>
static void pack_columns(const Storage* K, int64_t count, int64_t depth, const float* factor,
                         float* transposed, float* rest, float* across, int64_t first, int64_t last,
                         const Scratch& scratch) {
  if constexpr (Operand::kPlain) {
    pack_plain(K, count, depth, factor, transposed, first * kTileCols, last * kTileCols);
    return;
  }
  constexpr int64_t kTogether = Operand::kTogether;
  for (int64_t tile = first; tile < last; ++tile) {
    const int64_t top = tile * kTileCols, present = smaller(kTileCols, count - top);
    for (int64_t j = 0; j < present; ++j) {
      const float f = factor ? factor[top + j] : 1.f, before = Operand::before_scores(f);
      Operand::along(K + (top + j) * depth, depth, before, scratch.row(j));
      if (rest) rest[top + j] = f / before;
    }
    for (int64_t j = present; rest && j < kTileCols; ++j) rest[top + j] = 0.f;
    const int64_t depth_units = units<Operand>(depth);
    interleave(scratch, present, kTileCols, depth_units, transposed + top * depth_units);
    if (!across) continue;
    for (int64_t j = 0; Operand::kRounds && factor && j < present; ++j)
      Operand::along(K + (top + j) * depth, depth, factor[top + j], scratch.row(j));
    for (int64_t j = 0; j < present; j += kTogether)
      pack_across(Operand::across(scratch.row(j), scratch.stride, present - j, depth, scratch.row(kTileCols)),
                  depth, across, units<Operand>(count), (top + j) / kTogether);
  }
}

// Rows of Q as A of S = Q Kt, in parts: packed[part][unit][row]. `factor` as above; what the scores are still
// to be multiplied by takes its place. Plain ones: packed[row][feature].
template <class Operand, class Storage>
static void pack_rows(const Storage* Q, int64_t count, int64_t depth, float* factor, float* packed,
                      const Scratch& scratch) {
  if constexpr (Operand::kPlain) {
    pack_plain(Q, count, depth, factor, packed, 0, count);
    for (int64_t r = 0; factor && r < count; ++r) factor[r] = 1.f;
    return;
  }
  const Parts parts(count);
  const int64_t depth_units = units<Operand>(depth);
  for (int64_t part = 0; part < parts.count; ++part) {
    const int64_t start = parts.start(part), height = parts.height(part);
    for (int64_t r = 0; r < height; ++r) {
      const float f = factor ? factor[start + r] : 1.f, before = Operand::before_scores(f);
      Operand::along(Q + (start + r) * depth, depth, before, scratch.row(r));
      if (factor) factor[start + r] = f / before;
    }
    interleave(scratch, height, height, depth_units, packed + start * depth_units);
  }
}

// What packing left out of a row's scores.
template <class Operand>
static inline void complete_scores(float* x, int64_t width, float row_rest, const float* column_rest) {
  if constexpr (Operand::kRounds) {
    for (int64_t j = 0; j < width; j += kLanes) {
      Floats v = load(x + j) * row_rest;
      if (column_rest) v *= load(column_rest + j);
      store(x + j, v);
    }
  }
}

// Rows of Q, one after the other, as A of Qt W: packed[part of the features][unit of rows][feature], plain
// ones packed[row][feature].
template <class Operand>
struct TransposedRows {
  const Parts parts;  // of the features
  const int64_t depth, row_units;
  float* const packed;
  const Scratch scratch;

  TransposedRows(int64_t depth, int64_t rows, float* packed, const Scratch& scratch)
      : parts(depth), depth(depth), row_units(units<Operand>(rows)), packed(packed), scratch(scratch) {}

  // Row i, of which `given` features are read, times the factor, which if 0 makes 0 of whatever the row
  // holds; then, if that is one less than there are, `more`. After the `last` row nothing is kept back.
  template <class Storage>
  inline void add(int64_t i, const Storage* row, int64_t given, float factor, float more, bool last) const {
    if constexpr (Operand::kPlain) {
      if (factor == 0.f)
        memset(packed + i * depth, 0, static_cast<size_t>(given) * sizeof(float));
      else
        scale_row(packed + i * depth, row, given, factor);
      if (given < depth) packed[i * depth + given] = more;
      return;
    }
    constexpr int64_t kTogether = Operand::kTogether;
    if (factor == 0.f)
      memset(scratch.row(i % kTogether), 0, static_cast<size_t>(units<Operand>(given)) * sizeof(float));
    else
      Operand::along(row, given, factor, scratch.row(i % kTogether));
    if (given < depth) Operand::append(scratch.row(i % kTogether), given, more);
    if (i % kTogether + 1 < kTogether && !last) return;
    const float* const across =
        Operand::across(scratch.rows, scratch.stride, i % kTogether + 1, depth, scratch.row(kTogether));
    for (int64_t part = 0; part < parts.count; ++part) {
      const int64_t height = parts.height(part), start = parts.start(part);
      copy_short<kTileRows>(across + start, height, packed + start * row_units + i / kTogether * height);
    }
  }
};

// The product Qt W leaves the gradient of the keys as [block][d][j], block * kTileCols + j being the key, or
// as rows where the operand is plain: where the first feature of key j lies, and how far apart features are.
template <class Operand>
static inline float* sum_of_key(float* packed, int64_t j, int64_t depth) {
  return packed + (Operand::kPlain ? j * depth : j / kTileCols * kTileCols * depth + j % kTileCols);
}
template <class Operand>
constexpr int64_t kSumStep = Operand::kPlain ? 1 : kTileCols;

// It does so in `sums` parts `apart` floats apart. One block of their sum, row by row from `out` on; where
// `last` is given, its place for the block's first key takes the feature after the `depth` of `out`.
template <class Operand>
static void unpack_transposed(float* packed, int64_t sums, int64_t apart, int64_t rows, int64_t depth,
                              float* out, float* last, int64_t block) {
  const int64_t floats = (depth + (last != nullptr)) * kTileCols;
  float* const p = packed + block * floats;
  for (int64_t part = 1; part < sums; ++part)
    for (int64_t i = 0; i < floats; i += kLanes) store(p + i, load(p + i) + load(p + part * apart + i));
  const int64_t present = smaller(kTileCols, rows - block * kTileCols);
  if constexpr (Operand::kPlain) {
    for (int64_t j = 0; j < present; ++j) {
      const float* const sum = p + j * (floats / kTileCols);
      memcpy(out + j * depth, sum, static_cast<size_t>(depth) * sizeof(float));
      if (last) last[j] = sum[depth];
    }
    return;
  }
  for (int64_t d = 0; d < depth; d += kLanes) {
    const int64_t some = smaller(kLanes, depth - d);
    for (int64_t j = 0; j < present; j += kLanes) {
      Floats square[kLanes];
      for (int i = 0; i < kLanes; ++i) square[i] = i < some ? load(p + (d + i) * kTileCols + j) : Floats{};
      transpose(square);
      for (int64_t i = 0; i < smaller(kLanes, present - j); ++i)
        store_up_to(out + (j + i) * depth + d, square[i], some);
    }
  }
  for (int64_t j = 0; last && j < present; ++j) last[j] = p[depth * kTileCols + j];
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
