// The row-wise softmax losses (InfoNCE, cross-entropy of a linear classifier, log-sum-exp over some of the
// columns): driver over row panels and its epilogue.
#pragma once

#include "cpu/pairwise.h"

namespace thawkit {
namespace THAWKIT_ISA {

// Weight of the positive among the others: nothing, but of the sign that its own weight will have, so that an
// infinite key makes the gradient infinite and not NaN.
constexpr float kTakenOut = -__FLT_MIN__;

constexpr float kNothing = -__builtin_inff();  // the logit of a column that does not count

// What is known of one row of logits, which are scaled by log2(e) so that powers of two serve for
// exponentials (maximum, positive and weighted are in that unit). The positive stays out of the sums and is
// added at the end, so that neither the loss nor its gradient cancels when it dominates.
struct SoftmaxRow {
  float maximum;
  float positive;  // kNothing where there is none
  float others;    // sum_{j != positive} 2^(logit_j - maximum)
  float weighted;  // sum_{j != positive} 2^(logit_j - maximum) (logit_j - maximum)
};

static inline float segment_maximum(const float* x, int64_t width) {
  Floats m0 = load(x), m1 = m0;
  for (int64_t j = 0; j < width; j += 2 * kLanes) {
    m0 = max(m0, load(x + j));
    m1 = max(m1, load(x + j + kLanes));
  }
  return max_lane(max(m0, m1));
}

// 2^(logits - maximum) in place, unnormalised: 1/z goes into the small operands of the products instead. A
// masked entry (-inf) becomes 0, not nearly 0: an infinite key times it has to be NaN, as in torch.
// `width` is a multiple of two vectors.
template <bool Weighted>
static inline void softmax_segment(float* x, int64_t width, SoftmaxRow& row) {
  Floats z0 = {}, z1 = {}, t0 = {}, t1 = {};
  for (int64_t j = 0; j < width; j += 2 * kLanes) {
    const Floats a = load(x + j) - row.maximum, b = load(x + j + kLanes) - row.maximum;
    const Floats ea = exp2_negative(a), eb = exp2_negative(b);
    z0 += ea;
    z1 += eb;
    if constexpr (Weighted) {
      t0 += ea * max(splat(kLowestPower), a);
      t1 += eb * max(splat(kLowestPower), b);
    }
    store(x + j, ea);
    store(x + j + kLanes, eb);
  }
  row.others += sum(z0 + z1);
  if constexpr (Weighted) row.weighted += sum(t0 + t1);
}

// Columns whose label is (or is not) `own` do not count.
static inline void mask_segment(float* x, const int32_t* labels, int64_t width, int32_t own, bool drop_same) {
  for (int64_t j = 0; j < width; j += kLanes) {
    const Ints same = load(labels + j) == splat(own);
    store(x + j, drop_same ? select(same, splat(kNothing), load(x + j))
                           : select(same, load(x + j), splat(kNothing)));
  }
}

// Columns beyond the limit do not count: those above it, or else those below.
static inline void cut_segment(float* x, int64_t width, float limit, bool above) {
  for (int64_t j = 0; j < width; j += kLanes) {
    const Floats a = load(x + j);
    store(x + j, select(above ? a > splat(limit) : a < splat(limit), splat(kNothing), a));
  }
}

// A row without a positive whose largest logit is +inf. As in torch its log-sum-exp is +inf, or NaN where it
// holds one, and its gradient is 0 but for the infinite logits, where it is NaN. Powers relative to +inf are
// just that, but their sum is always NaN: this is what takes its place.
static inline bool is_unbounded(float maximum, bool has_positive) {
  return !has_positive && maximum == __builtin_inff();
}
static inline float unbounded_sum(const float* x, int64_t count, int64_t step) {
  float s = 0;
  for (int64_t i = 0; i < count; ++i)
    if (!(x[i * step] < __builtin_inff())) s += x[i * step];
  return s;
}

struct FinishedRow {
  double weighted_loss;
  float factor;  // of the unnormalised weights, in the gradient of the logits
  bool ignored;  // of weight 0, so that the unnormalised weights, which may be no numbers, are to become 0
};

// Writes what is asked for of row g: its loss, its positive's logit, its part of the scale's gradient.
static inline FinishedRow finish_row(const RowSoftmaxArgs& a, const SoftmaxRow& row, int64_t g,
                                     bool has_positive) {
  const float gap = has_positive ? (row.maximum - row.positive) * kLn2 : 0.f;  // >= 0
  const float z = has_positive ? row.others + __builtin_expf(-gap) : row.others;
  if (!has_positive)
    a.loss[g] = row.maximum * kLn2 + __builtin_logf(z);
  else
    a.loss[g] = gap == 0.f ? __builtin_log1pf(row.others) : __builtin_logf(z) + gap;
  if (a.positive) a.positive[g] = has_positive ? row.positive * kLn2 : __builtin_nanf("");
  // A maximum loses a NaN, the sum does not; relative to +inf it is one anyway.
  if (a.maximum && row.others != row.others && row.maximum != __builtin_inff()) a.maximum[g] = row.others;
  const float weight = a.row_weight ? a.row_weight[g] : a.weight;
  const float factor = z == 0.f || weight == 0.f ? 0.f : z == __builtin_inff() ? weight : weight / z;
  if (a.dscale) {
    const float above = has_positive ? gap : row.maximum * kLn2;
    a.dscale[g] = factor == 0.f ? 0.f : factor * (row.weighted * kLn2 + row.others * above) / a.scale;
  }
  const bool ignored = weight == 0.f && !(__builtin_fabsf(a.loss[g]) <= __FLT_MAX__);
  return {weight == 0.f ? 0. : double(weight) * a.loss[g], factor, ignored};
}

// Everything that a thread needs to know, so that the phases below can be functions. Storage is the type of
// q, k and their gradients, Operand what the products multiply.
template <class Storage, class Operand>
struct RowSoftmaxRun {
  static constexpr bool kWide = sizeof(Storage) == sizeof(float);  // gradients are summed where they end

  const RowSoftmaxArgs& a;
  const Storage *const q, *const k;
  const bool gradient;
  const int64_t blocks, padded_keys;
  const int64_t sum_depth, key_sum;  // the bias is one more feature of the keys, which all queries have as 1
  const int64_t depth_units;
  const Teams teams;
  int64_t workspace_floats;
  float *transposed, *keys_rows, *key_sums, *q_norm, *k_norm, *key_rest, *bias;  // of all teams
  int32_t* labels;
  Panel panel;
  float *own_key_sum, *queries, *queries_packed, *query_sums, *query_rest;
  Scratch scratch;
  SoftmaxRow* statistics;
  double* totals;  // of each thread

  static int threads_of(const RowSoftmaxArgs& a, bool gradient) {
    return useful_threads(double(a.rows) * a.keys * a.depth * (gradient ? 3 : 1), a.threads);
  }

  RowSoftmaxRun(const RowSoftmaxArgs& args, int team)
      : a(args),
        q(static_cast<const Storage*>(a.q)),
        k(static_cast<const Storage*>(a.k)),
        gradient(a.dq || a.dk || a.dscale),
        blocks(ceil_div(a.keys, kBlockCols)),
        padded_keys(round_up(a.keys, kTileCols)),
        sum_depth(a.depth + (a.dbias != nullptr)),
        key_sum(round_up(a.dk ? padded_keys * sum_depth : 0, Workspace::kLine)),
        depth_units(units<Operand>(a.depth)),
        teams(a.rows, a.keys, Operand::kTogether, key_sum, threads_of(a, gradient)) {
    Workspace workspace(a.workspace);
    transposed = workspace.take(padded_keys * depth_units);
    keys_rows = Operand::kPlain
                    ? transposed
                    : workspace.take(a.dq ? round_up(a.depth, kTileCols) * units<Operand>(a.keys) : 0);
    q_norm = workspace.take(a.normalize ? a.rows : 0);
    k_norm = workspace.take(a.normalize ? a.keys : 0);
    key_rest = a.normalize && Operand::kRounds ? workspace.take(padded_keys) : nullptr;
    bias = workspace.take(a.bias ? padded_keys : 0);
    labels = reinterpret_cast<int32_t*>(workspace.take(a.labels != Labels::kIgnored ? padded_keys : 0));
    totals = reinterpret_cast<double*>(workspace.take(2 * teams.threads));
    key_sums = workspace.take(key_sum * teams.count);
    own_key_sum = key_sums + key_sum * team;
    panel = {workspace.take(panel_floats(teams.panel, a.keys), teams, team), teams.panel};
    queries = workspace.take(teams.panel * depth_units, teams, team);
    queries_packed = workspace.take(a.dk ? units<Operand>(teams.panel) * sum_depth : 0, teams, team);
    query_sums = workspace.take(a.dq && !kWide ? teams.panel * a.depth : 0, teams, team);
    query_rest = workspace.take(teams.panel, teams, team);
    scratch = workspace.scratch(a.depth, teams.threads);
    statistics = reinterpret_cast<SoftmaxRow*>(
        workspace.take(teams.panel * static_cast<int64_t>(sizeof(SoftmaxRow) / sizeof(float)), teams, team));
    workspace_floats = workspace.total();
  }

  // Where the gradient of a query is summed.
  float* query_sum(int64_t top, int64_t i) const {
    return kWide ? static_cast<float*>(a.dq) + (top + i) * a.depth : query_sums + i * a.depth;
  }

  int64_t positive_of(int64_t row) const { return a.target ? a.target[row] : row + a.offset; }

  // The keys, normalised, in both packed forms, and what else there is of each.
  void pack_keys(int thread, int threads) const {
    const Share tiles = share_of(padded_keys / kTileCols, thread, threads, 1);
    const Share rows{tiles.first * kTileCols, smaller(tiles.last * kTileCols, a.keys)};
    for (int64_t j = rows.first; a.normalize && j < rows.last; ++j)
      k_norm[j] = inverse_norm(k + j * a.depth, a.depth);
    pack_columns<Operand>(k, a.keys, a.depth, a.normalize ? k_norm : nullptr, transposed, key_rest,
                          a.dq ? keys_rows : nullptr, tiles.first, tiles.last, scratch);
    for (int64_t j = rows.first; a.bias && j < tiles.last * kTileCols; ++j)
      bias[j] = j < a.keys ? a.bias[j] * kLog2E : 0.f;
    for (int64_t j = rows.first; a.labels != Labels::kIgnored && j < tiles.last * kTileCols; ++j)
      labels[j] = j < a.keys ? a.key_labels[j] : 0;
  }

  // The thread's rows of logits and their maxima; the positive is taken out.
  void score(int64_t top, Share own) const {
    for (int64_t i = own.first; i < own.last; ++i) {
      query_rest[i] = a.scale * kLog2E;
      if (a.normalize) query_rest[i] *= q_norm[top + i] = inverse_norm(q + (top + i) * a.depth, a.depth);
      statistics[i] = {kNothing, kNothing, 0.f, 0.f};
    }
    pack_rows<Operand>(q + (top + own.first) * a.depth, own.last - own.first, a.depth, query_rest + own.first,
                       queries + own.first * depth_units, scratch);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = block * kBlockCols, width = smaller(kBlockCols, padded_keys - first);
      score_block<Operand>(panel, block, own.first, own.last - own.first, queries + own.first * depth_units,
                           depth_units, transposed, first, first + width);
      for (int64_t i = own.first; i < own.last; ++i) {
        float* x = panel.at(block, i);
        complete_scores<Operand>(x, width, query_rest[i], key_rest ? key_rest + first : nullptr);
        keep_what_counts(x, first, width, top + i, statistics[i]);
        const float m = segment_maximum(x, width);
        statistics[i].maximum = statistics[i].maximum > m ? statistics[i].maximum : m;
      }
    }
    for (int64_t i = own.first; i < own.last; ++i) {
      SoftmaxRow& row = statistics[i];
      const bool has_positive = positive_of(top + i) >= 0;
      if (has_positive && !(row.maximum > row.positive)) row.maximum = row.positive;
      if (a.maximum) a.maximum[top + i] = row.maximum * kLn2;
      if (a.margin < __builtin_inff() && has_positive) leave_out_of_maximum(row);
      if (row.maximum == kNothing && !has_positive) row.maximum = 0.f;  // nothing counts: all powers are 0
    }
  }

  // The logit beyond which the margin, one of similarities, leaves columns out.
  float limit_of(const SoftmaxRow& row) const { return row.positive + a.margin * a.scale * kLog2E; }

  // What the margin cuts must not make the others vanish beside it.
  void leave_out_of_maximum(SoftmaxRow& row) const {
    const float limit = limit_of(row), most = limit > row.positive ? limit : row.positive;
    if (a.scale < 0.f ? row.maximum < limit : row.maximum > most)
      row.maximum = a.scale < 0.f ? row.positive : most;
  }

  // One row's logits of a block: bias in; positive, padding and columns that do not count out.
  void keep_what_counts(float* x, int64_t first, int64_t width, int64_t g, SoftmaxRow& row) const {
    for (int64_t j = 0; a.bias && j < width; j += kLanes) store(x + j, load(x + j) + load(bias + first + j));
    const int64_t positive = positive_of(g) - first;
    if (0 <= positive && positive < width) row.positive = x[positive];
    if (a.labels != Labels::kIgnored)
      mask_segment(x, labels + first, width, a.row_labels[g], a.labels == Labels::kDropSame);
    const int64_t excluded = g + a.excluded - first;
    if (a.excluded >= 0 && 0 <= excluded && excluded < width) x[excluded] = kNothing;
    if (0 <= positive && positive < width) x[positive] = kNothing;
    for (int64_t j = a.keys - first; j < width; ++j) x[j] = kNothing;
  }

  // Softmax weights of the thread's rows, and their product with the keys while each block is in cache.
  void weigh(int64_t top, Share own) const {
    const int64_t rows = own.last - own.first;
    float* const dq = a.dq ? query_sum(top, own.first) : nullptr;
    if (dq) zero(dq, rows * a.depth);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = block * kBlockCols;
      const int64_t width = smaller(kBlockCols, padded_keys - first);
      for (int64_t i = own.first; i < own.last; ++i) {
        float* const x = panel.at(block, i);
        SoftmaxRow& row = statistics[i];
        const bool has_positive = positive_of(top + i) >= 0;
        if (a.margin < __builtin_inff() && has_positive) cut_segment(x, width, limit_of(row), a.scale >= 0.f);
        const bool unbounded = is_unbounded(row.maximum, has_positive);
        const float sum = unbounded ? row.others + unbounded_sum(x, width, 1) : 0.f;
        if (a.dscale)
          softmax_segment<true>(x, width, row);
        else
          softmax_segment<false>(x, width, row);
        if (unbounded) row.others = sum;
        const int64_t positive = positive_of(top + i) - first;
        if (0 <= positive && positive < width) x[positive] = kTakenOut;
      }
      if (dq || a.dk) round_weights<Operand>(panel, block, own.first, rows, first, first + width);
      if (dq)
        times_rows<Operand>(panel, block, own.first, rows, first, smaller(first + kBlockCols, a.keys),
                            keys_rows, units<Operand>(a.keys), a.depth, dq);
    }
  }

  // Losses, their weighted sum, and what the positive and 1/z add to the gradients.
  double finish(int64_t top, Share own) const {
    double total = 0;
    const int64_t depth = a.depth;
    const TransposedRows<Operand> packed(sum_depth, panel.rows, queries_packed, scratch);
    for (int64_t i = own.first; i < own.last; ++i) {
      const SoftmaxRow& row = statistics[i];
      const int64_t g = top + i, t = positive_of(g);
      const bool has_positive = t >= 0;
      const FinishedRow finished = finish_row(a, row, g, has_positive);
      const float factor = finished.factor;
      total += finished.weighted_loss;
      if (!gradient) continue;
      const Storage* const query = q + g * depth;
      if (a.dk) {
        if (has_positive) Operand::set_weight(panel.at(t / kBlockCols, 0), i, t % kBlockCols, -row.others);
        for (int64_t j = 0; finished.ignored && j < a.keys; ++j)
          Operand::set_weight(panel.at(j / kBlockCols, 0), i, j % kBlockCols, 0.f);
        packed.add(i, query, depth, factor == 0.f ? 0.f : factor * a.scale * (a.normalize ? q_norm[g] : 1.f),
                   factor, i + 1 == own.last);
      }
      if (a.dq) {
        float* const dq = query_sum(top, i);
        const float own_weight =  // what stood in its place comes off too
            has_positive ? (row.others + kTakenOut) * (a.normalize ? k_norm[t] : 1.f) : 0.f;
        const float f = factor * a.scale;
        if (f == 0.f) {  // whatever the row holds
          zero(dq, depth);
        } else {
          less_row(dq, k + (has_positive ? t : 0) * depth, depth, own_weight, f);
          if (a.normalize) through_norm(dq, query, q_norm[g], depth);
        }
        if constexpr (!kWide) scale_row(static_cast<Storage*>(a.dq) + g * depth, dq, depth, 1.f);
      }
    }
    return total;
  }

  // The thread's tiles of keys take the whole panel's part of their gradient.
  void key_gradient(int64_t height, const Member& member) const {
    const Share tiles = share_of(padded_keys / kTileCols, member.thread, member.threads, 1);
    transposed_times_rows<Operand>(panel, height, tiles.first, tiles.last, queries_packed,
                                   units<Operand>(panel.rows), sum_depth, own_key_sum);
  }

  void unpack_key_gradient(int sums, int thread, int threads) const {
    const Share tiles = share_of(padded_keys / kTileCols, thread, threads, 1);
    for (int64_t tile = tiles.first; tile < tiles.last; ++tile) {
      const int64_t first = tile * kTileCols;
      float* const dk = kWide ? static_cast<float*>(a.dk) + first * a.depth : scratch.rows;
      unpack_transposed<Operand>(key_sums, sums, key_sum, a.keys, a.depth, dk,
                                 a.dbias ? a.dbias + first : nullptr, tile);
      for (int64_t j = first; j < smaller(first + kTileCols, a.keys); ++j) {
        float* const row = dk + (j - first) * a.depth;
        if (a.normalize) through_norm(row, k + j * a.depth, k_norm[j], a.depth);
        if constexpr (!kWide) scale_row(static_cast<Storage*>(a.dk) + j * a.depth, row, a.depth, 1.f);
      }
    }
  }
};

template <class Storage, class Operand>
static void row_softmax_panels(const RowSoftmaxArgs& a) {
  typedef RowSoftmaxRun<Storage, Operand> Run;
  const Run all(a, 0);
  prefer_huge_pages(a.workspace, all.workspace_floats * 4);
  for (int t = 0; t < all.teams.threads; ++t) all.totals[t] = 0;
#pragma omp parallel num_threads(all.teams.threads)
  {
    const Member member(all.teams);
    const Run run(a, member.team);
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    run.pack_keys(thread, threads);
    if (a.dk) clear_sum(run.own_key_sum, run.key_sum, member);
#pragma omp barrier
    for (int64_t round = 0, top; (top = member.top(round)) < a.rows; ++round) {
      const int64_t height = smaller(run.panel.rows, a.rows - top);
      const Share own = share_of(height, member.thread, member.threads, kTileRows);
      run.score(top, own);
      run.weigh(top, own);
      run.totals[thread] += run.finish(top, own);
      member.wait();
      if (a.dk) {
        run.key_gradient(height, member);
        member.wait();
      }
    }
    if (a.dk) {
#pragma omp barrier
      run.unpack_key_gradient(member.teams, thread, threads);
    }
  }
  double total = 0;
  for (int t = 0; t < all.teams.threads; ++t) total += all.totals[t];
  *a.total = static_cast<float>(total);
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
