// Losses whose slope d loss / d logit_ij is known from the logit and from what is known of row i and column j
// beforehand: CLIP and NT-Xent (two passes: row and column sums, then slopes) and SigLIP (one pass).
#pragma once

#include "cpu/pairwise.h"

namespace thawkit {
namespace THAWKIT_ISA {

// The logit of an entry that does not count: finite, so that its product with a slope of 0 is 0.
constexpr float kFar = -1e30f;
// Powers of two of numbers this far apart share one reference: what is lost below 2^-126 is below 2^-66 of
// every sum that it would be part of.
constexpr float kNear = 60.f;

static inline bool counts(float logit) { return !(logit <= 0.5f * kFar); }

// (maximum, sum) of powers of two, each relative to its maximum: theirs into ours. A null `maxima` is
// `reference` for all.
static inline void merge_sums(float* our_maxima, float* our_sums, const float* maxima, float reference,
                              const float* sums, int64_t count) {
  for (int64_t j = 0; j < count; j += kLanes) {
    const int64_t present = smaller(kLanes, count - j);
    const Floats m = load_part(our_maxima + j, present);
    const Floats n = maxima ? load_part(maxima + j, present) : splat(reference);
    const Floats more = max(m, n);
    const Floats sum = load_part(our_sums + j, present) * exp2_negative(m - more) +
                       load_part(sums + j, present) * exp2_negative(n - more);
    store_part(our_maxima + j, more, present);
    store_part(our_sums + j, sum, present);
  }
}

constexpr float kLog1p[] = {1.f,           -0.4999990242f,  0.3332996241f, -0.2495413356f,
                            0.1967593877f, -0.1530559116f,  0.1060365249f, -0.05695951055f,
                            0.0198514497f, -0.003244022358f};

// log(1 + e) for 0 <= e <= 1, at most 2e-7 relative: the polynomial e * P(e) of the least relative error.
static inline Floats log1p_polynomial(Floats e) {
  const Floats e2 = e * e, e4 = e2 * e2;
  const Floats low = (e * kLog1p[1] + kLog1p[0]) + e2 * (e * kLog1p[3] + kLog1p[2]);
  const Floats high = (e * kLog1p[5] + kLog1p[4]) + e2 * (e * kLog1p[7] + kLog1p[6]);
  const Floats top = e * kLog1p[9] + kLog1p[8];
  return e * (low + e4 * (high + e4 * top));
}

struct SegmentSums {
  float loss, slope, slope_logit;  // of the entries
};

// Storage is the type of x, y and their gradients, Operand what the products multiply.
template <PairLoss Loss, class Storage, class Operand>
struct PairRun {
  static constexpr bool kWide = sizeof(Storage) == sizeof(float);  // gradients are summed where they end
  static constexpr bool kSymmetric = Loss == PairLoss::kNTXent;
  static constexpr bool kStatistics = Loss != PairLoss::kSigLip;

  const PairArgs& a;
  const Storage *const x, *const y;
  const bool gradient, want_dy;
  const int64_t columns, blocks, padded, line, column_sum;
  const Teams teams;
  const bool alone;  // every thread has its own panels and sums
  int64_t workspace_floats;
  float *transposed, *packed, *x_norm, *y_norm, *column_rest, *dx_sums, *column_sums;  // of all teams
  float *row_maxima, *row_sums, *column_maxima, *partial_sums, *positives;
  float *row_log, *column_log, *row_slope, *column_slope, *column_weight;
  double* totals;  // value, slope and slope times logit of each thread
  Panel panel;
  float *own_column_sum, *panel_rows, *row_rest, *panel_columns, *tile_maxima, *tile_sums;
  Scratch scratch;
  float middle = 0.f;
  bool near = false;

  static int threads_of(const PairArgs& a) {
    const double pairs = double(a.rows) * a.columns * (kSymmetric ? 0.5 : 1);
    const int products = 1 + (a.dx || a.dscale) + (a.dy || (kSymmetric && a.dx));
    return useful_threads(pairs * a.depth * products, a.threads);
  }

  PairRun(const PairArgs& args, int team)
      : a(args),
        x(static_cast<const Storage*>(a.x)),
        y(kSymmetric ? x : static_cast<const Storage*>(a.y)),
        gradient(a.dx || a.dy || a.dscale || a.dbias),
        want_dy(kSymmetric ? a.dx != nullptr : a.dy != nullptr),
        columns(a.columns),
        blocks(ceil_div(columns, kBlockCols)),
        padded(round_up(columns, kTileCols)),
        line(round_up(padded + kLanes, Workspace::kLine)),
        column_sum(round_up(want_dy ? padded * a.depth : 0, Workspace::kLine)),
        teams(a.rows, columns, kSymmetric ? kTileCols : Operand::kTogether, column_sum, threads_of(a)),
        alone(teams.count == teams.threads) {
    Workspace workspace(a.workspace);
    transposed = workspace.take(padded * units<Operand>(a.depth));
    packed = Operand::kPlain
                 ? transposed
                 : workspace.take(a.dx ? round_up(a.depth, kTileCols) * units<Operand>(columns) : 0);
    x_norm = workspace.take(a.normalize ? a.rows : 0);
    y_norm = kSymmetric ? x_norm : workspace.take(a.normalize ? columns : 0);
    column_rest = Operand::kRounds && a.normalize ? workspace.take(padded) : nullptr;
    dx_sums = kWide ? static_cast<float*>(a.dx) : workspace.take(a.dx ? a.rows * a.depth : 0);
    totals = reinterpret_cast<double*>(workspace.take(6 * teams.threads));
    const int64_t each = kStatistics ? line : 0, row_line = round_up(a.rows + kLanes, Workspace::kLine);
    row_maxima = workspace.take(kStatistics ? row_line : 0);
    row_sums = workspace.take(row_line);
    column_maxima = workspace.take(each * teams.threads);
    partial_sums = workspace.take(each * teams.threads);
    positives = workspace.take(kStatistics ? row_line : 0);
    row_log = workspace.take(kStatistics ? row_line : 0);
    column_log = workspace.take(each);
    row_slope = workspace.take(kStatistics ? row_line : 0);
    column_slope = workspace.take(each);
    column_weight = workspace.take(each);
    column_sums = workspace.take(column_sum * teams.count);
    own_column_sum = column_sums + column_sum * team;
    // A thread that has its own sums uses a block up at once; a team keeps the panel for the columns'
    // product.
    panel = {workspace.take(panel_floats(teams.panel, alone ? 1 : columns), teams, team), teams.panel};
    panel_rows = workspace.take(teams.panel * units<Operand>(a.depth), teams, team);
    row_rest = workspace.take(teams.panel, teams, team);
    panel_columns = workspace.take(want_dy ? units<Operand>(teams.panel) * a.depth : 0, teams, team);
    tile_maxima = workspace.take(teams.panel + kLanes, teams, team);
    tile_sums = workspace.take(teams.panel + kLanes, teams, team);
    scratch = workspace.scratch(a.depth, teams.threads);
    workspace_floats = workspace.total();
  }

  int64_t positive_of(int64_t row) const {
    if (!kSymmetric) return row + a.offset;
    return row < columns / 2 ? row + columns / 2 : row - columns / 2;
  }
  float weight_of(int64_t row) const {
    return (a.row_weight ? a.row_weight[row] : a.weight) * (Loss == PairLoss::kClip ? 0.5f : 1.f);
  }

  // Norms first: where y is x, rows and columns are shared out differently but have the same ones.
  void measure(int thread, int threads) const {
    if (!a.normalize) return;
    const Share rows = share_of(a.rows, thread, threads, 1);
    for (int64_t i = rows.first; i < rows.last; ++i) x_norm[i] = inverse_norm(x + i * a.depth, a.depth);
    if constexpr (!kSymmetric) {
      const Share own = share_of(columns, thread, threads, 1);
      for (int64_t j = own.first; j < own.last; ++j) y_norm[j] = inverse_norm(y + j * a.depth, a.depth);
    }
  }

  // The columns in both packed forms, and where sums begin.
  void pack(int thread, int threads) const {
    const Share rows = share_of(a.rows, thread, threads, 1);
    for (int64_t i = rows.first; i < rows.last; ++i) {
      if (kStatistics) row_maxima[i] = kFar;
      row_sums[i] = 0.f;
    }
    if (a.dx) zero(dx_sums + rows.first * a.depth, (rows.last - rows.first) * a.depth);
    for (int64_t j = 0; kStatistics && j < line; ++j) {
      column_maxima[thread * line + j] = kFar;
      partial_sums[thread * line + j] = 0.f;
    }
    const Share tiles = share_of(padded / kTileCols, thread, threads, 1);
    pack_columns<Operand>(y, columns, a.depth, a.normalize ? y_norm : nullptr, transposed, column_rest,
                          a.dx ? packed : nullptr, tiles.first, tiles.last, scratch);
  }

  float factor_of(int64_t row) const { return a.scale * (a.normalize ? x_norm[row] : 1.f); }

  // The thread's rows of a panel times the scale, in units of log2(e).
  void take_rows(int64_t top, Share own) const {
    for (int64_t i = own.first; i < own.last; ++i) row_rest[i] = factor_of(top + i) * kLog2E;
    pack_rows<Operand>(x + (top + own.first) * a.depth, own.last - own.first, a.depth, row_rest + own.first,
                       panel_rows + own.first * units<Operand>(a.depth), scratch);
  }

  // A block of the panel from its column `first` on. Of a symmetric matrix, columns before `seam` lie inside
  // the panel, where both orders of a pair are computed, and after it one order stands for both.
  struct Block {
    int64_t number, start, first, seam, end;
    int64_t inside() const { return seam - first; }
    int64_t width() const { return end - first; }
  };

  int64_t first_block(int64_t top) const { return kSymmetric ? top / kBlockCols : 0; }
  Block block_of(int64_t number, int64_t top, int64_t height) const {
    const int64_t start = number * kBlockCols, end = smaller(start + kBlockCols, padded);
    if (!kSymmetric) return {number, start, start, start, end};
    const int64_t first = start < top ? top : start, after = top + height;
    return {number, start, first, after >= columns ? end : after < first ? first : smaller(after, end), end};
  }

  Panel panel_of(int64_t block) const { return {panel.scores, panel.rows, alone ? block : 0}; }
  float* scores_of(const Block& b, int64_t i) const {
    return panel_of(b.number).at(b.number, i) + (b.first - b.start);
  }

  // The thread's logits of a block, in units of log2(e); positives, padding and a row's product with itself
  // are taken out.
  void score(const Block& b, int64_t top, Share own, bool keep_positives) const {
    const int64_t depth_units = units<Operand>(a.depth);
    score_block<Operand>(panel_of(b.number), b.number, own.first, own.last - own.first,
                         panel_rows + own.first * depth_units, depth_units, transposed, b.first, b.end);
    for (int64_t i = own.first; i < own.last; ++i) {
      complete_scores<Operand>(scores_of(b, i), b.width(), row_rest[i],
                               column_rest ? column_rest + b.first : nullptr);
      float* const x = scores_of(b, i) - b.first;
      const int64_t row = top + i, positive = positive_of(row);
      if (b.first <= positive && positive < b.end) {
        if (keep_positives) {
          positives[row] = x[positive];
          if (kSymmetric) positives[positive] = x[positive];
        }
        if (kStatistics) x[positive] = kFar;
      }
      if (kSymmetric && b.first <= row && row < b.end) x[row] = kFar;
      for (int64_t j = columns < b.first ? b.first : columns; j < b.end; ++j) x[j] = kFar;
    }
  }

  // ---- the first pass: sums of the powers of rows and columns

  void sum_block(const Block& b, int64_t top, Share own, int thread) const {
    float highest[kBlockCols], sums[kBlockCols];
    const int64_t inside = b.inside(), width = b.width();
    for (int64_t j = inside; j < width; ++j) highest[j] = kFar, sums[j] = 0.f;
    float most = kFar, least = -kFar;
    for (int64_t i = own.first; i < own.last; ++i) {
      const float* x = scores_of(b, i);
      Floats m = splat(kFar);
      for (int64_t j = 0; j < inside; j += kLanes) m = max(m, load(x + j));
      for (int64_t j = inside; j < width; j += kLanes) {
        const Floats v = load(x + j);
        m = max(m, v);
        store(highest + j, max(load(highest + j), v));
      }
      tile_maxima[i] = max_lane(m);
      most = most > tile_maxima[i] ? most : tile_maxima[i];
      least = least < tile_maxima[i] ? least : tile_maxima[i];
    }
    for (int64_t j = inside; j < smaller(width, columns - b.first); ++j)
      least = least < highest[j] ? least : highest[j];
    const bool together = counts(most) && most - least <= kNear;
    if (together)
      add_powers<true>(b, own, most, highest, sums);
    else
      add_powers<false>(b, own, most, highest, sums);
    const int64_t rows = own.last - own.first;
    merge_sums(row_maxima + top + own.first, row_sums + top + own.first,
               together ? nullptr : tile_maxima + own.first, most, tile_sums + own.first, rows);
    merge_sums(column_maxima + thread * line + b.first + inside,
               partial_sums + thread * line + b.first + inside, together ? nullptr : highest + inside, most,
               sums + inside, width - inside);
  }

  // Powers relative to one maximum of the whole block where that serves all its rows and columns, else
  // relative to those of each row and each column.
  template <bool Together>
  void add_powers(const Block& b, Share own, float most, const float* highest, float* sums) const {
    const int64_t inside = b.inside(), width = b.width();
    for (int64_t i = own.first; i < own.last; ++i) {
      const float* x = scores_of(b, i);
      const float reference = Together ? most : counts(tile_maxima[i]) ? tile_maxima[i] : 0.f;
      Floats s0 = {}, s1 = {};
      int64_t j = 0;
      for (; j < inside; j += kLanes) s0 += exp2_negative(load(x + j) - reference);
      for (; j < width; j += 2 * kLanes) {
        const Floats u = load(x + j), v = load(x + j + kLanes);
        const Floats eu = exp2_negative(u - reference), ev = exp2_negative(v - reference);
        s0 += eu;
        s1 += ev;
        if constexpr (Together) {
          store(sums + j, load(sums + j) + eu);
          store(sums + j + kLanes, load(sums + j + kLanes) + ev);
        } else {
          store(sums + j, load(sums + j) + power_of(u, highest + j));
          store(sums + j + kLanes, load(sums + j + kLanes) + power_of(v, highest + j + kLanes));
        }
      }
      tile_sums[i] = sum(s0 + s1);
    }
  }

  static Floats power_of(Floats x, const float* maxima) {
    const Floats m = load(maxima);
    return exp2_negative(x - select(m <= splat(0.5f * kFar), splat(0.f), m));
  }

  // All threads' sums into one; a share of the columns.
  void merge_columns(int thread, int threads) const {
    const Share own = share_of(columns, thread, threads, Workspace::kLine);
    const int64_t count = own.last - own.first;
    for (int t = 1; t < threads; ++t)
      merge_sums(column_maxima + own.first, partial_sums + own.first, column_maxima + t * line + own.first,
                 0.f, partial_sums + t * line + own.first, count);
    if (kSymmetric)
      merge_sums(row_maxima + own.first, row_sums + own.first, column_maxima + own.first, 0.f,
                 partial_sums + own.first, count);
  }

  struct Softmax {
    float loss, log, slope;  // log-sum-exp in units of log2(e), and how far the positive is from 1
  };

  static Softmax softmax(float maximum, float others, float positive) {
    const float top = maximum > positive ? maximum : positive;
    const float rest = others * __builtin_exp2f(maximum - top), gap = (top - positive) * kLn2;
    const float z = rest + __builtin_expf(-gap);
    return {gap == 0.f ? __builtin_log1pf(rest) : __builtin_logf(z) + gap, top + __builtin_log2f(z),
            rest / z};
  }

  // Losses of a share of the rows, and what the slopes need to know of rows and columns.
  void losses(int thread, int threads) const {
    const Share own = share_of(a.rows, thread, threads, Workspace::kLine);
    for (int64_t i = own.first; i < own.last; ++i) {
      const float weight = weight_of(i);
      Softmax row = softmax(row_maxima[i], row_sums[i], positives[i]), column = row;
      if (!kSymmetric) column = softmax(column_maxima[i], partial_sums[i], positives[i]);
      a.loss[i] = kSymmetric ? row.loss : 0.5f * (row.loss + column.loss);
      totals[3 * thread] +=
          weight == 0.f ? 0. : double(weight) * (row.loss + (kSymmetric ? 0.f : column.loss));
      row_log[i] = row.log;
      column_log[i] = column.log;
      row_slope[i] = weight * row.slope;
      column_slope[i] = weight * column.slope;
      column_weight[i] = weight;
    }
    for (int64_t j = columns; thread == 0 && j < line; ++j) {
      column_log[j] = 0.f;
      column_weight[j] = 0.f;
    }
  }

  // Where the logarithms of all sums are near to each other, one power serves row and column.
  void choose_powers() {
    float most = -__builtin_inff(), least = __builtin_inff();
    bool finite = true;
    for (int64_t i = 0; i < 2 * a.rows; ++i) {
      const float l = i < a.rows ? row_log[i] : column_log[i - a.rows];
      finite = finite && l == l;
      most = most > l ? most : l;
      least = least < l ? least : l;
    }
    near = finite && most - least <= kNear;
    middle = 0.5f * (most + least);
  }

  // ---- the second pass: slopes, and their products

  // Slopes in the place of logits: w_i 2^(x - log_i) + w_j 2^(x - log_j).
  SegmentSums softmax_slopes(float* x, int64_t row, int64_t first, int64_t width,
                             const float* near_weight) const {
    const float own = row_log[row], weight = weight_of(row);
    Floats slope_logit = {};
    if (near) {
      const Floats ratio = splat(__builtin_exp2f(own - middle));
      for (int64_t j = 0; j < width; j += kLanes) {
        const Floats v = load(x + j);
        const Floats w = exp2_negative(v - own) * (ratio * load(near_weight + j) + weight);
        slope_logit += w * v;
        store(x + j, w);
      }
    } else {
      for (int64_t j = 0; j < width; j += kLanes) {
        const Floats v = load(x + j);
        const Floats w = exp2_negative(v - own) * weight +
                         exp2_negative(v - load(column_log + first + j)) * load(column_weight + first + j);
        slope_logit += w * v;
        store(x + j, w);
      }
    }
    return {0.f, 0.f, sum(slope_logit)};
  }

  // Of softplus(logit), the loss of a pair that does not belong together.
  SegmentSums sigmoid_slopes(float* x, int64_t row, int64_t width) const {
    const float weight = weight_of(row), bias = a.bias * kLog2E;
    Floats loss = {}, positive_part = {}, slope = {}, slope_logit = {};
    for (int64_t j = 0; j < width; j += kLanes) {
      const Floats v = load(x + j), u = v + bias;
      const Floats e = exp2_negative(-abs(u));
      const Floats w = select(u > splat(0.f), splat(1.f), e) / (e + 1.f) * weight;
      loss += log1p_polynomial(e);
      positive_part += max(splat(0.f), u);
      slope += w;
      slope_logit += w * v;
      store(x + j, w);
    }
    return {sum(loss) + sum(positive_part) * kLn2, sum(slope), sum(slope_logit)};
  }

  static float sigmoid(float u) {
    const float e = __builtin_expf(-__builtin_fabsf(u));
    return (u > 0.f ? 1.f : e) / (1.f + e);
  }

  void slopes(const Block& b, int64_t top, Share own, double* sums) const {
    float near_weight[kBlockCols];
    if (kStatistics && near)
      for (int64_t j = 0; j < b.width(); j += kLanes)
        store(near_weight + j,
              exp2_clamped(middle - load(column_log + b.first + j)) * load(column_weight + b.first + j));
    for (int64_t j = columns - b.first; j < b.width(); ++j) near_weight[j] = 0.f;
    double slope = 0, slope_logit = 0;
    for (int64_t i = own.first; i < own.last; ++i) {
      float* const x = scores_of(b, i);
      const int64_t row = top + i, positive = positive_of(row) - b.first;
      const bool here = 0 <= positive && positive < b.width();
      // both orders of a pair right of the seam
      const auto add = [&](SegmentSums s, double times) {
        slope += times * s.slope;
        slope_logit += times * s.slope_logit;
      };
      if constexpr (kStatistics) {
        add(softmax_slopes(x, row, b.first, b.inside(), near_weight), 0.5);
        const int64_t inside = b.inside();
        add(softmax_slopes(x + inside, row, b.first + inside, b.width() - inside, near_weight + inside), 1);
        if (here) {
          const float w = -(row_slope[row] + column_slope[positive + b.first]);
          x[positive] = w;
          slope_logit += (kSymmetric && positive < inside ? 0.5 : 1) * double(w) * positives[row];
        }
      } else {
        const float v = here ? x[positive] : 0.f, u = v + a.bias * kLog2E;
        if (here) x[positive] = kFar;
        const SegmentSums s = sigmoid_slopes(x, row, b.width());
        add(s, 1);
        row_sums[row] += s.loss;
        if (here) {
          const float w = -weight_of(row) * sigmoid(-u * kLn2);
          const float e = __builtin_exp2f(-__builtin_fabsf(u));
          row_sums[row] += __builtin_log1pf(e) + (u < 0.f ? -u * kLn2 : 0.f);
          x[positive] = w;
          slope += w;
          slope_logit += double(w) * v;
        }
      }
    }
    sums[1] += slope;
    sums[2] += slope_logit;
  }

  void times_columns(const Block& b, int64_t top, Share own) const {
    times_rows<Operand>(panel_of(b.number), b.number, own.first, own.last - own.first, b.first,
                        smaller(b.end, columns), packed, units<Operand>(columns), a.depth,
                        dx_sums + (top + own.first) * a.depth);
  }

  // The block's columns from the seam on take the panel's part of their gradient; a share of the tiles.
  void times_panel(const Block& b, int64_t height, const Member& member) const {
    const int64_t first = b.seam / kTileCols;
    const Share tiles = share_of(b.end / kTileCols - first, member.thread, member.threads, 1);
    transposed_times_rows<Operand>(panel_of(b.number), height, first + tiles.first, first + tiles.last,
                                   panel_columns, units<Operand>(panel.rows), a.depth, own_column_sum);
  }

  void pack_panel(int64_t top, Share own) const {
    const TransposedRows<Operand> rows(a.depth, panel.rows, panel_columns, scratch);
    for (int64_t i = own.first; i < own.last; ++i)
      rows.add(i, x + (top + i) * a.depth, a.depth, factor_of(top + i), 0.f, i + 1 == own.last);
  }

  void second_pass(int64_t top, int64_t height, Share own, const Member& member, double* sums) const {
    take_rows(top, own);
    if (want_dy) pack_panel(top, own);
    for (int64_t number = first_block(top); number < blocks; ++number) {
      const Block b = block_of(number, top, height);
      score(b, top, own, false);
      slopes(b, top, own, sums);
      if (a.dx || want_dy)
        round_weights<Operand>(panel_of(number), number, own.first, own.last - own.first, b.first, b.end);
      if (a.dx) times_columns(b, top, own);
      if (want_dy && alone) times_panel(b, height, member);
    }
    if constexpr (!kStatistics)
      for (int64_t i = own.first; i < own.last; ++i) {
        a.loss[top + i] = row_sums[top + i];
        sums[0] += double(weight_of(top + i)) * row_sums[top + i];
      }
    if (!want_dy || alone) return;
    member.wait();
    for (int64_t number = first_block(top); number < blocks; ++number)
      times_panel(block_of(number, top, height), height, member);
    member.wait();
  }

  // Scale and norms into the gradients; of a symmetric matrix, the two parts of each row's.
  void finish(int sums, int thread, int threads) const {
    const Share tiles = share_of(padded / kTileCols, thread, threads, 1);
    const Share some{tiles.first * kTileCols, smaller(tiles.last * kTileCols, columns)};
    if (!kSymmetric && a.dy) {
      for (int64_t tile = tiles.first; tile < tiles.last; ++tile) {
        const int64_t first = tile * kTileCols;
        float* const dy = kWide ? static_cast<float*>(a.dy) + first * a.depth : scratch.rows;
        unpack_transposed<Operand>(column_sums, sums, column_sum, columns, a.depth, dy, nullptr, tile);
        for (int64_t j = first; j < smaller(first + kTileCols, columns); ++j)
          finish_row(static_cast<Storage*>(a.dy), dy + (j - first) * a.depth, y, y_norm, j);
      }
    }
    const Share rows = kSymmetric ? some : share_of(a.rows, thread, threads, 1);
    for (int64_t i = rows.first; a.dx && i < rows.last; ++i) {
      float* const g = dx_sums + i * a.depth;
      for (int64_t d = 0; d < a.depth; ++d) g[d] *= a.scale;
      for (int t = 0; kSymmetric && t < sums; ++t) {
        const float* const right = sum_of_key<Operand>(column_sums + t * column_sum, i, a.depth);
        for (int64_t d = 0; d < a.depth; ++d) g[d] += right[d * kSumStep<Operand>];
      }
      finish_row(static_cast<Storage*>(a.dx), g, x, x_norm, i);
    }
  }

  void finish_row(Storage* out, float* sum, const Storage* rows, const float* norm, int64_t i) const {
    if (a.normalize) through_norm(sum, rows + i * a.depth, norm[i], a.depth);
    if constexpr (!kWide) scale_row(out + i * a.depth, sum, a.depth, 1.f);
  }
};

template <PairLoss Loss, class Storage, class Operand>
static void pair_panels(const PairArgs& a) {
  typedef PairRun<Loss, Storage, Operand> Run;
  Run all(a, 0);
  prefer_huge_pages(a.workspace, all.workspace_floats * 4);
  for (int t = 0; t < 3 * all.teams.threads; ++t) all.totals[t] = 0;
#pragma omp parallel num_threads(all.teams.threads)
  {
    const Member member(all.teams);
    Run run(a, member.team);
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    run.measure(thread, threads);
#pragma omp barrier
    run.pack(thread, threads);
    if (run.want_dy) clear_sum(run.own_column_sum, run.column_sum, member);
#pragma omp barrier
    const auto panels = [&](auto work) {
      for (int64_t round = 0, top; (top = member.top(round)) < a.rows; ++round) {
        const int64_t height = smaller(run.panel.rows, a.rows - top);
        work(top, height, share_of(height, member.thread, member.threads, kTileRows));
      }
    };
    if constexpr (Run::kStatistics) {
      panels([&](int64_t top, int64_t height, Share own) {
        run.take_rows(top, own);
        for (int64_t number = run.first_block(top); number < run.blocks && own.first < own.last; ++number) {
          const auto block = run.block_of(number, top, height);
          run.score(block, top, own, true);
          run.sum_block(block, top, own, thread);
        }
        member.wait();  // the next panel can be shared out otherwise
      });
#pragma omp barrier
      run.merge_columns(thread, threads);
#pragma omp barrier
      run.losses(thread, threads);
#pragma omp barrier
      run.choose_powers();
    }
    if (run.gradient || !Run::kStatistics) {
      panels([&](int64_t top, int64_t height, Share own) {
        run.second_pass(top, height, own, member, run.totals + 3 * thread);
      });
#pragma omp barrier
      run.finish(member.teams, thread, threads);
    }
  }
  double total = 0, slope = 0, slope_logit = 0;
  for (int t = 0; t < all.teams.threads; ++t) {
    total += all.totals[3 * t];
    slope += all.totals[3 * t + 1];
    slope_logit += all.totals[3 * t + 2];
  }
  *a.total = static_cast<float>(total);
  if (a.dbias) *a.dbias = static_cast<float>(slope);
  if (a.dscale) *a.dscale = static_cast<float>(slope_logit * kLn2 / a.scale);
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
