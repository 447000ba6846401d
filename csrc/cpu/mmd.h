// Multi-kernel RBF MMD: driver over the upper triangle and its epilogue.
#pragma once

#include "cpu/pairwise.h"

namespace thawkit {
namespace THAWKIT_ISA {

struct MMDPlan {
  int threads;
  int64_t panel, blocks, width, padded;
  // floats of each buffer
  int64_t centred, transposed, packed, columns, columns_gradient, scores, vectors;
  int64_t total() const {
    return centred + transposed + packed + columns + columns_gradient + scores + vectors +
           13 * Workspace::kLine;
  }
};

static inline MMDPlan plan(const MMDArgs& a) {
  MMDPlan p;
  p.threads = useful_threads(double(a.rows) * a.rows * a.depth * (a.dz ? 1.5 : 0.5), a.threads);
  p.panel = rows_per_thread(a.rows, a.rows, p.threads) * p.threads;
  p.blocks = ceil_div(a.rows, kBlockCols);
  p.width = round_up(a.rows, kTileCols);
  p.padded = round_up(p.width + kLanes, Workspace::kLine);
  p.centred = a.rows * a.depth;
  p.transposed = p.width * a.depth;
  p.packed = a.dz ? round_up(a.depth, kTileCols) * a.rows : 0;
  // one panel alone has nothing right of it
  p.columns = a.dz && a.rows > p.panel ? p.panel * a.depth : 0;
  p.columns_gradient = a.dz && a.rows > p.panel ? p.width * a.depth : 0;
  p.scores = panel_floats(p.panel, a.rows);
  // squared norms, coefficients against x and against y, row sums of W a thread, centre, exponents
  p.vectors = p.padded * (3 + p.threads) + a.depth + a.bandwidths;
  return p;
}

struct PairSums {
  float value, weight;
};

// Inner products of one row with columns [first, last) in, W_ij = c(i, j) sum_b gamma_b exp(-gamma_b d2_ij)
// out; exponents are -gamma_b log2(e). Lanes past `last` are neither counted nor written; x, norms and
// coefficients start at column `first`.
template <bool Doubling, bool Columns>
static inline PairSums mmd_segment(float* x, int64_t count, float own_norm, const float* norms,
                                   const float* coefficients, const float* gamma, const float* exponents,
                                   int64_t bandwidths, float* column_sums) {
  Floats value = {}, weight = {};
  for (int64_t j = 0; j < count; j += kLanes) {
    const int64_t present = smaller(kLanes, count - j);
    const bool whole = present == kLanes;
    const Floats s = whole ? load(x + j) : load_part(x + j, present);
    const Floats n = whole ? load(norms + j) : load_part(norms + j, present);
    const Floats c = whole ? load(coefficients + j) : load_part(coefficients + j, present);
    const Floats d2 = max(splat(0.f), own_norm + n - 2.f * s);
    Floats k, w;
    if constexpr (Doubling) {
      Floats e = exp2_clamped(d2 * exponents[0]);
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
        const Floats e = exp2_clamped(d2 * exponents[b]);
        k += e;
        w += gamma[b] * e;
      }
    }
    value += c * k;
    const Floats cw = c * w;
    weight += cw;
    if (whole) {
      if constexpr (Columns) store(column_sums + j, load(column_sums + j) + cw);
      store(x + j, cw);
    } else {
      if constexpr (Columns) store_part(column_sums + j, load_part(column_sums + j, present) + cw, present);
      store_part(x + j, cw, present);
    }
  }
  return {sum(value), sum(weight)};
}

template <bool Doubling>
struct MMDRun {
  const MMDArgs& a;
  const MMDPlan p;
  Panel panel;
  float *transposed, *packed, *panel_columns, *columns_gradient, *z, *norms, *against_x, *against_y,
      *row_sums, *centre, *exponents;

  explicit MMDRun(const MMDArgs& args) : a(args), p(plan(args)) {
    Workspace workspace(a.workspace, p.total());
    panel = {workspace.take(p.scores), p.panel};
    transposed = workspace.take(p.transposed);
    packed = workspace.take(p.packed);
    panel_columns = workspace.take(p.columns);
    columns_gradient = workspace.take(p.columns_gradient);
    z = workspace.take(p.centred);
    norms = workspace.take(p.padded);
    against_x = workspace.take(p.padded);
    against_y = workspace.take(p.padded);
    row_sums = workspace.take(p.padded * p.threads);
    centre = workspace.take(a.depth);
    exponents = workspace.take(a.bandwidths);
  }

  // Distances do not see a common shift, but |z_i|^2 + |z_j|^2 - 2 <z_i, z_j> loses digits to it.
  void prepare() const {
    memset(centre, 0, static_cast<size_t>(a.depth) * 4);
    for (int64_t i = 0; i < a.rows; ++i)
      for (int64_t d = 0; d < a.depth; ++d) centre[d] += a.z[i * a.depth + d];
    for (int64_t d = 0; d < a.depth; ++d) centre[d] /= static_cast<float>(a.rows);
    for (int64_t b = 0; b < a.bandwidths; ++b) exponents[b] = -a.gamma[b] * kLog2E;
    memset(row_sums, 0, static_cast<size_t>(p.padded * p.threads) * 4);
    for (int64_t j = 0; j < a.rows; ++j) {
      against_x[j] = j < a.split ? a.cxx : a.cxy;
      against_y[j] = j < a.split ? a.cxy : a.cyy;
    }
  }

  void pack(int thread, int threads) const {
    const Share tiles = share_of(p.width / kTileCols, thread, threads, 1);
    const Share rows{tiles.first * kTileCols, smaller(tiles.last * kTileCols, a.rows)};
    for (int64_t i = rows.first; i < rows.last; ++i) {
      float* const own = z + i * a.depth;
      for (int64_t d = 0; d < a.depth; ++d) own[d] = a.z[i * a.depth + d] - centre[d];
      norms[i] = dot(own, own, a.depth);
      if (a.dz) pack_row(own, a.depth, 1.f, packed, a.rows, i);
    }
    pack_transposed(z, a.rows, a.depth, nullptr, transposed, tiles.first, tiles.last);
    const int64_t tile = kTileCols * a.depth;
    if (a.dz && rows.last > rows.first)
      memset(a.dz + rows.first * a.depth, 0, static_cast<size_t>((rows.last - rows.first) * a.depth) * 4);
    if (p.columns_gradient && tiles.last > tiles.first)
      memset(columns_gradient + tiles.first * tile, 0,
             static_cast<size_t>((tiles.last - tiles.first) * tile) * 4);
  }

  // The thread's rows against every column from the panel's first on: scores, weights and their product,
  // block by block while each is in cache. Inside the panel both orders of a pair are computed; right of it
  // one order stands for both.
  double rows(int64_t top, int64_t height, Share own, float* sums) const {
    const int64_t after = top + height, count = own.last - own.first;
    double total = 0;
    if (count <= 0) return 0;
    if (a.dz && after < a.rows) {
      const Parts parts(a.depth);
      for (int64_t i = own.first; i < own.last; ++i)
        pack_column(z + (top + i) * a.depth, parts, 1.f, panel_columns, p.panel, i);
    }
    for (int64_t block = top / kBlockCols; block < p.blocks; ++block) {
      score_block(panel, block, own.first, count, z + (top + own.first) * a.depth, a.depth, transposed,
                  p.width);
      const int64_t start = block * kBlockCols, end = smaller(start + kBlockCols, a.rows);
      const int64_t first = start < top ? top : start;
      const int64_t seam =
          after < first ? first : smaller(after, end);  // [first, seam) inside, [seam, end) right
      for (int64_t i = own.first; i < own.last; ++i) {
        float* const x = panel.at(block, i);
        const int64_t g = top + i;
        const float* c = g < a.split ? against_x : against_y;
        if (first <= g && g < seam) x[g - start] = -__builtin_inff();  // i = j: infinitely far, weight 0
        const PairSums inside =
            mmd_segment<Doubling, false>(x + (first - start), seam - first, norms[g], norms + first,
                                         c + first, a.gamma, exponents, a.bandwidths, nullptr);
        const PairSums right =
            mmd_segment<Doubling, true>(x + (seam - start), end - seam, norms[g], norms + seam, c + seam,
                                        a.gamma, exponents, a.bandwidths, sums + seam);
        total += double(inside.value) + 2.0 * double(right.value);
        sums[g] += inside.weight + right.weight;
      }
      if (a.dz)
        times_rows(panel, block, own.first, count, first, end, packed, a.rows, a.depth,
                   a.dz + (top + own.first) * a.depth);
    }
    return total;
  }

  // Rows right of the panel take its part of their gradient.
  void columns(int64_t top, int64_t height, int thread, int threads) const {
    const int64_t first = (top + height) / kTileCols, count = p.width / kTileCols - first;
    const Share tiles = share_of(count, thread, threads, 1);
    transposed_times_rows(panel, height, first + tiles.first, first + tiles.last, panel_columns, p.panel,
                          a.depth, columns_gradient);
  }

  // d value / d z_i = -4 (sum_j W_ij z_i - sum_j W_ij z_j)
  void finish(int thread, int threads) const {
    const Share rows = share_of(a.rows, thread, threads, 1);
    for (int64_t i = rows.first; i < rows.last; ++i) {
      float weight = 0;
      for (int t = 0; t < p.threads; ++t) weight += row_sums[t * p.padded + i];
      const float* right = columns_gradient + i / kTileCols * kTileCols * a.depth + i % kTileCols;
      for (int64_t d = 0; d < a.depth; ++d) {
        float& g = a.dz[i * a.depth + d];
        const float sum = p.columns_gradient ? g + right[d * kTileCols] : g;
        g = -4.f * (weight * z[i * a.depth + d] - sum);
      }
    }
  }
};

template <bool Doubling>
static void mmd_panels(const MMDArgs& a) {
  const MMDRun<Doubling> run(a);
  run.prepare();
  double total = 0;
#pragma omp parallel num_threads(run.p.threads) reduction(+ : total)
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    run.pack(thread, threads);
#pragma omp barrier
    for (int64_t top = 0; top < a.rows; top += run.p.panel) {
      const int64_t height = smaller(run.p.panel, a.rows - top);
      total += run.rows(top, height, share_of(height, thread, threads, kTileRows),
                        run.row_sums + thread * run.p.padded);
      // Also without dz: the next panel may be shared out differently, and a row has one owner at a time.
#pragma omp barrier
      if (a.dz && top + height < a.rows) {
        run.columns(top, height, thread, threads);
#pragma omp barrier
      }
    }
    if (a.dz) run.finish(thread, threads);
  }
  *a.value = total;
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
