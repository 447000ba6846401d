// Multi-kernel RBF MMD: driver over the upper triangle and its epilogue.
#pragma once

#include "cpu/centre.h"

namespace thawkit {
namespace THAWKIT_ISA {

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
      Floats e = exp2_negative(d2 * exponents[0]);
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
        const Floats e = exp2_negative(d2 * exponents[b]);
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

// Everything that a thread needs to know, so that the phases below can be functions. Operand is what the
// products multiply, float32 numbers.
template <class Operand>
struct MMDRun {
  const MMDArgs& a;
  const bool gradient;
  const int64_t count, blocks, width, padded;
  const Teams teams;
  int64_t workspace_floats, column_sum;
  float *z, *dz, *transposed, *packed, *norms, *against_x, *against_y, *centre;  // of all teams
  float *row_sums, *column_sums;
  double *totals, *sums;  // the former of each thread
  Panel panel;
  float *gamma, *exponents, *own_column_sum, *panel_rows, *panel_columns;
  Scratch scratch;

  static int threads_of(const MMDArgs& a) {
    const double count = double(a.n + a.m);
    return useful_threads(count * count * a.depth * (a.dx ? 1.5 : 0.5), a.threads);
  }

  MMDRun(const MMDArgs& args, int team)
      : a(args),
        gradient(a.dx),
        count(a.n + a.m),
        blocks(ceil_div(count, kBlockCols)),
        width(round_up(count, kTileCols)),
        padded(round_up(width + kLanes, Workspace::kLine)),
        teams(count, count, kTileCols, gradient ? width * a.depth : 0, threads_of(a)),
        // one panel alone has nothing right of it
        column_sum(gradient && count > teams.panel ? round_up(width * a.depth, Workspace::kLine) : 0) {
    Workspace workspace(a.workspace);
    z = workspace.take(count * a.depth);
    dz = workspace.take(gradient ? count * a.depth : 0);
    transposed = workspace.take(width * a.depth);
    packed =
        Operand::kPlain ? transposed : workspace.take(gradient ? round_up(a.depth, kTileCols) * count : 0);
    norms = workspace.take(padded);
    against_x = workspace.take(padded);
    against_y = workspace.take(padded);
    centre = workspace.take(a.depth);
    sums = reinterpret_cast<double*>(workspace.take(2 * a.depth));
    row_sums = workspace.take(padded * teams.threads);
    totals = reinterpret_cast<double*>(workspace.take(2 * teams.threads));
    column_sums = workspace.take(column_sum * teams.count);
    own_column_sum = column_sums + column_sum * team;
    panel = {workspace.take(panel_floats(teams.panel, count), teams, team), teams.panel};
    panel_rows = workspace.take(teams.panel * a.depth, teams, team);
    panel_columns = workspace.take(column_sum ? teams.panel * a.depth : 0, teams, team);
    scratch = workspace.scratch(a.depth, teams.threads);
    gamma = workspace.take(a.bandwidths);
    exponents = workspace.take(a.bandwidths);
    workspace_floats = workspace.total();
  }

  const float* sample(int64_t i) const { return i < a.n ? a.x + i * a.depth : a.y + (i - a.n) * a.depth; }

  void prepare() const {
    find_mean_of_near([&](int64_t i) { return sample(i); }, count, a.depth, centre, sums);
    zero(row_sums, padded * teams.threads);
    for (int t = 0; t < teams.threads; ++t) totals[t] = 0;
    for (int64_t j = 0; j < count; ++j) {
      against_x[j] = j < a.n ? a.cxx : a.cxy;
      against_y[j] = j < a.n ? a.cxy : a.cyy;
    }
  }

  void pack(int thread, int threads) const {
    const Share tiles = share_of(width / kTileCols, thread, threads, 1);
    const Share rows{tiles.first * kTileCols, smaller(tiles.last * kTileCols, count)};
    for (int64_t i = rows.first; i < rows.last; ++i) {
      const float* row = sample(i);
      float* const own = z + i * a.depth;
      for (int64_t d = 0; d < a.depth; ++d) own[d] = row[d] - centre[d];
      norms[i] = dot(own, own, a.depth);
    }
    pack_columns<Operand>(z, count, a.depth, nullptr, transposed, nullptr, gradient ? packed : nullptr,
                          tiles.first, tiles.last, scratch);
    if (gradient) zero(dz + rows.first * a.depth, (rows.last - rows.first) * a.depth);
  }

  // The square of the mean of z, times their number.
  double squared_mean() const {
    for (int64_t d = 0; d < a.depth; ++d) sums[d] = 0;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < a.depth; ++d) sums[d] += z[i * a.depth + d];
    double square = 0;
    for (int64_t d = 0; d < a.depth; ++d) square += sums[d] * sums[d];
    return square / double(count);
  }

  // The mean of |z_i - z_j|^2 over i != j is 2 / (count - 1) sum_i |z_i - mean z|^2.
  void set_bandwidths() const {
    constexpr float kLargestGamma = 1e37f;
    float unit = 1.f;
    if (a.relative) {
      constexpr double kLeast = 2.6e-29;  // coinciding points: keep gamma finite
      double spread = -squared_mean();
      for (int64_t i = 0; i < count; ++i) spread += norms[i];
      const double mean = 2 * spread / double(count > 1 ? count - 1 : 1);
      unit = static_cast<float>(1 / (mean < kLeast ? kLeast : mean));
    }
    for (int64_t b = 0; b < a.bandwidths; ++b) {
      // Finite and not 0 even where float32 has no such gamma: an infinite distance times it stays infinite.
      const float g = a.gamma[b] * unit;
      gamma[b] = g < __FLT_MIN__ ? __FLT_MIN__ : g > kLargestGamma ? kLargestGamma : g;
      exponents[b] = -gamma[b] * kLog2E;
    }
  }

  // The thread's rows against every column from the panel's first on: scores, weights and their product,
  // block by block while each is in cache. Inside the panel both orders of a pair are computed; right of it
  // one order stands for both.
  template <bool Doubling>
  double rows(int64_t top, int64_t height, Share own, float* sums) const {
    const int64_t after = top + height, own_rows = own.last - own.first;
    double total = 0;
    if (own_rows <= 0) return 0;
    pack_rows<Operand>(z + (top + own.first) * a.depth, own_rows, a.depth, nullptr,
                       panel_rows + own.first * a.depth, scratch);
    if (column_sum && after < count) {
      const TransposedRows<Operand> columns(a.depth, panel.rows, panel_columns, scratch);
      for (int64_t i = own.first; i < own.last; ++i)
        columns.add(i, z + (top + i) * a.depth, a.depth, 1.f, 0.f, i + 1 == own.last);
    }
    for (int64_t block = top / kBlockCols; block < blocks; ++block) {
      const int64_t start = block * kBlockCols, end = smaller(start + kBlockCols, count);
      const int64_t first = start < top ? top : start;
      score_block<Operand>(panel, block, own.first, own_rows, panel_rows + own.first * a.depth, a.depth,
                           transposed, first, smaller(start + kBlockCols, width));
      const int64_t seam =
          after < first ? first : smaller(after, end);  // [first, seam) inside, [seam, end) right
      for (int64_t i = own.first; i < own.last; ++i) {
        float* const x = panel.at(block, i);
        const int64_t g = top + i;
        const float* c = g < a.n ? against_x : against_y;
        if (first <= g && g < seam) x[g - start] = -__builtin_inff();  // i = j: infinitely far, weight 0
        const PairSums inside =
            mmd_segment<Doubling, false>(x + (first - start), seam - first, norms[g], norms + first,
                                         c + first, gamma, exponents, a.bandwidths, nullptr);
        const PairSums right =
            mmd_segment<Doubling, true>(x + (seam - start), end - seam, norms[g], norms + seam, c + seam,
                                        gamma, exponents, a.bandwidths, sums + seam);
        total += double(inside.value) + 2.0 * double(right.value);
        sums[g] += inside.weight + right.weight;
      }
      if (gradient)
        times_rows<Operand>(panel, block, own.first, own_rows, first, end, packed, count, a.depth,
                            dz + (top + own.first) * a.depth);
    }
    return total;
  }

  // Rows right of the panel take its part of their gradient.
  void columns(int64_t top, int64_t height, const Member& member) const {
    const int64_t first = (top + height) / kTileCols;
    const Share tiles = share_of(width / kTileCols - first, member.thread, member.threads, 1);
    transposed_times_rows<Operand>(panel, height, first + tiles.first, first + tiles.last, panel_columns,
                                   panel.rows, a.depth, own_column_sum);
  }

  // d value / d z_i = -4 (sum_j W_ij z_i - sum_j W_ij z_j)
  void finish(int sums, int thread, int threads) const {
    const Share rows = share_of(count, thread, threads, 1);
    for (int64_t i = rows.first; i < rows.last; ++i) {
      float weight = 0;
      for (int t = 0; t < teams.threads; ++t) weight += row_sums[t * padded + i];
      float* const g = dz + i * a.depth;
      float* const out = i < a.n ? a.dx + i * a.depth : a.dy + (i - a.n) * a.depth;
      for (int t = 0; column_sum && t < sums; ++t) {
        const float* const right = sum_of_key<Operand>(column_sums + t * column_sum, i, a.depth);
        for (int64_t d = 0; d < a.depth; ++d) g[d] += right[d * kSumStep<Operand>];
      }
      for (int64_t d = 0; d < a.depth; ++d) out[d] = -4.f * (weight * z[i * a.depth + d] - g[d]);
    }
  }
};

template <bool Doubling, class Operand>
static void mmd_panels(const MMDArgs& a) {
  typedef MMDRun<Operand> Run;
  const Run all(a, 0);
  prefer_huge_pages(a.workspace, all.workspace_floats * 4);
  all.prepare();
#pragma omp parallel num_threads(all.teams.threads)
  {
    const Member member(all.teams);
    const Run run(a, member.team);
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    run.pack(thread, threads);
    if (run.column_sum) clear_sum(run.own_column_sum, run.column_sum, member);
#pragma omp barrier
#pragma omp single
    run.set_bandwidths();
    for (int64_t round = 0, top; (top = member.top(round)) < run.count; ++round) {
      const int64_t height = smaller(run.panel.rows, run.count - top);
      run.totals[thread] +=
          run.template rows<Doubling>(top, height, share_of(height, member.thread, member.threads, kTileRows),
                                      run.row_sums + thread * run.padded);
      member.wait();
      if (run.column_sum && top + height < run.count) {
        run.columns(top, height, member);
        member.wait();
      }
    }
    if (run.gradient) {
#pragma omp barrier
      run.finish(member.teams, thread, threads);
    }
  }
  double value = a.diagonal;
  for (int t = 0; t < all.teams.threads; ++t) value += all.totals[t];
  *a.value = static_cast<float>(value);
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
