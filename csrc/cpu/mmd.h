// Multi-kernel RBF MMD: driver over the upper triangle and its epilogue.
#pragma once

#include "cpu/pairwise.h"

namespace thawkit {
namespace THAWKIT_ISA {

struct MMDPlan {
  int threads;
  int64_t panel, row_length, width, padded;
  int64_t centred, transposed, rows_packed, scores, vectors;  // floats of each buffer
  int64_t total() const { return centred + transposed + rows_packed + scores + vectors + 16; }
};

static inline MMDPlan plan(const MMDArgs& a) {
  MMDPlan p;
  p.threads = useful_threads(double(a.rows) * a.rows * a.depth * (a.dz ? 1.5 : 0.5), a.threads);
  p.panel = panel_rows(a.rows, a.rows, p.threads) * p.threads;
  p.width = round_up(a.rows, kTileCols);
  p.row_length = p.width + kRowGap;
  p.padded = p.width + kLanes;
  p.centred = a.rows * a.depth;
  p.transposed = p.width * a.depth;
  p.rows_packed = a.dz ? round_up(a.depth, kTileCols) * a.rows : 0;
  p.scores = p.panel * p.row_length;
  // squared norms, coefficients against x and against y, row sums of W a thread, centre
  p.vectors = p.padded * (3 + p.threads) + a.depth;
  return p;
}

struct PairSums {
  float value, weight;
};

// One row of inner products in, W_ij = c(i, j) sum_b gamma_b exp(-gamma_b d2_ij) out, for columns
// first <= j < last (last - first may be ragged: the coefficient of columns past the end is 0).
template <bool Doubling, bool Columns>
static inline PairSums mmd_row(float* x, int64_t first, int64_t last, float own_norm, const float* norms,
                               const float* coefficients, const float* gamma, int64_t bandwidths,
                               float* column_sums) {
  Floats value = {}, weight = {};
  for (int64_t j = first; j < last; j += kLanes) {
    Floats d2 = own_norm + load(norms + j) - 2.f * load(x + j);
    d2 = max(splat(0.f), d2);
    Floats k, w;
    if constexpr (Doubling) {
      Floats e = exp_negative(d2 * -gamma[0]);
      k = e;
      w = e;
      float ratio = 1.f;
      for (int64_t b = 1; b < bandwidths; ++b) {
        e = e * e;
        ratio *= 2.f;
        k += e;
        w += ratio * e;
      }
      w = w * gamma[0];
    } else {
      k = w = Floats{};
      for (int64_t b = 0; b < bandwidths; ++b) {
        const Floats e = exp_negative(d2 * -gamma[b]);
        k += e;
        w += gamma[b] * e;
      }
    }
    const Floats c = load(coefficients + j);
    value += c * k;
    const Floats cw = c * w;
    weight += cw;
    if constexpr (Columns) store(column_sums + j, load(column_sums + j) + cw);
    store(x + j, cw);
  }
  return {sum(value), sum(weight)};
}

template <bool Doubling>
static void mmd_panels(const MMDArgs& a, const MMDPlan& p) {
  float* next = a.workspace + (16 - (reinterpret_cast<uintptr_t>(a.workspace) / 4) % 16) % 16;
  const auto take = [&](int64_t floats) {
    float* here = next;
    next += floats;
    return here;
  };
  float* const transposed = take(p.transposed);
  float* const scores = take(p.scores);
  float* const packed = take(p.rows_packed);
  float* const z = take(p.centred);
  float* const norms = take(p.padded);
  float* const against_x = take(p.padded);
  float* const against_y = take(p.padded);
  float* const row_sums = take(p.padded * p.threads);
  float* const centre = take(a.depth);
  const int64_t depth = a.depth, blocks = p.width / kTileCols;

  // Distances do not see a common shift, but |z_i|^2 + |z_j|^2 - 2 <z_i, z_j> loses digits to it.
  for (int64_t d = 0; d < depth; ++d) centre[d] = 0.f;
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t d = 0; d < depth; ++d) centre[d] += a.z[i * depth + d];
  for (int64_t d = 0; d < depth; ++d) centre[d] /= static_cast<float>(a.rows);
  memset(row_sums, 0, static_cast<size_t>(p.padded * p.threads) * 4);
  for (int64_t j = 0; j < p.padded; ++j) {
    norms[j] = 0.f;
    against_x[j] = j < a.split ? a.cxx : j < a.rows ? a.cxy : 0.f;
    against_y[j] = j < a.split ? a.cxy : j < a.rows ? a.cyy : 0.f;
  }
  double total = 0;

#pragma omp parallel num_threads(p.threads) reduction(+ : total)
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const Share packing = share_of(blocks, thread, threads, 1);
    const Share mine{packing.first * kTileCols, smaller(packing.last * kTileCols, a.rows)};
    for (int64_t i = mine.first; i < mine.last; ++i) {
      for (int64_t d = 0; d < depth; ++d) z[i * depth + d] = a.z[i * depth + d] - centre[d];
      norms[i] = dot(z + i * depth, z + i * depth, depth);
      if (a.dz) pack_row(z + i * depth, depth, 1.f, packed, a.rows, i);
    }
    pack_transposed(z, a.rows, depth, nullptr, transposed, packing.first, packing.last);
    if (a.dz && mine.last > mine.first)
      memset(a.dz + mine.first * depth, 0, static_cast<size_t>((mine.last - mine.first) * depth) * 4);
    float* const sums = row_sums + thread * p.padded;
#pragma omp barrier

    for (int64_t top = 0; top < a.rows; top += p.panel) {
      const int64_t height = smaller(p.panel, a.rows - top), after = top + height;
      const Share own = share_of(height, thread, threads, kTileRows);
      const int64_t rows = own.last - own.first;
      float* const s = scores + own.first * p.row_length;
      for (int64_t b = top / kTileCols; b < blocks; ++b)
        multiply_full<false>(rows, depth, z + (top + own.first) * depth, depth, 1,
                             transposed + b * depth * kTileCols, s + b * kTileCols, p.row_length);
      for (int64_t i = own.first; i < own.last; ++i) {
        float* const x = scores + i * p.row_length;
        const int64_t g = top + i;
        const float* c = g < a.split ? against_x : against_y;
        memset(x + p.width, 0, kRowGap * 4);  // the last vector may read it, with coefficient 0
        x[g] = -__builtin_inff();             // i = j: infinitely far, weight 0
        // Inside the panel both orders of a pair are computed; right of it one order stands for both. A
        // ragged end of the first part is computed on a copy, since its last vector lies across the seam.
        const int64_t whole = top + height / kLanes * kLanes;
        PairSums inside = mmd_row<Doubling, false>(x, top, whole, norms[g], norms, c, a.gamma, a.bandwidths,
                                                   nullptr);
        if (whole < after) {
          float part[kLanes], n[kLanes], k[kLanes];
          for (int64_t j = 0; j < kLanes; ++j) {
            const bool present = whole + j < after;
            part[j] = present ? x[whole + j] : 0.f;
            n[j] = present ? norms[whole + j] : 0.f;
            k[j] = present ? c[whole + j] : 0.f;
          }
          const PairSums rest =
              mmd_row<Doubling, false>(part, 0, kLanes, norms[g], n, k, a.gamma, a.bandwidths, nullptr);
          memcpy(x + whole, part, static_cast<size_t>(after - whole) * 4);
          inside.value += rest.value;
          inside.weight += rest.weight;
        }
        const PairSums right = mmd_row<Doubling, true>(x, after, a.rows, norms[g], norms, c, a.gamma,
                                                       a.bandwidths, sums);
        total += double(inside.value) + 2.0 * double(right.value);
        sums[g] += inside.weight + right.weight;
      }
      if (!a.dz) continue;
      for (int64_t k0 = top; k0 < a.rows; k0 += kDepthBlock) {
        const int64_t kc = smaller(kDepthBlock, a.rows - k0);
        for (int64_t d = 0; d < depth; d += kTileCols)
          multiply<true>(rows, kc, s + k0, p.row_length, 1, packed + (d / kTileCols * a.rows + k0) * kTileCols,
                         a.dz + (top + own.first) * depth + d, depth, depth - d);
      }
#pragma omp barrier
      const Share columns = share_of(a.rows - after, thread, threads, kTileRows);
      for (int64_t j = after + columns.first; j < after + columns.last; j += kColumnBlock) {
        const int64_t count = smaller(kColumnBlock, after + columns.last - j);
        for (int64_t d = 0; d < depth; d += kTileCols)
          multiply<true>(count, height, scores + j, 1, p.row_length,
                         packed + (d / kTileCols * a.rows + top) * kTileCols, a.dz + j * depth + d, depth,
                         depth - d);
      }
#pragma omp barrier
    }
    // d value / d z_i = -4 (sum_j W_ij z_i - sum_j W_ij z_j)
    if (a.dz) {
      const Share last = share_of(a.rows, thread, threads, 1);
      for (int64_t i = last.first; i < last.last; ++i) {
        float weight = 0;
        for (int t = 0; t < p.threads; ++t) weight += row_sums[t * p.padded + i];
        for (int64_t d = 0; d < depth; ++d) {
          float& g = a.dz[i * depth + d];
          g = -4.f * (weight * z[i * depth + d] - g);
        }
      }
    }
  }
  *a.value = total;
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
