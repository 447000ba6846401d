// The row-wise softmax loss: driver over row panels and its epilogue.
#pragma once

#include "cpu/pairwise.h"

namespace thawkit {
namespace THAWKIT_ISA {

// Weight of the positive among the others: nothing, but of the sign that its own weight will have, so that an
// infinite key makes the gradient infinite and not NaN.
constexpr float kTakenOut = -__FLT_MIN__;

// What is known of one row of logits, which are scaled by log2(e) so that powers of two serve for
// exponentials (maximum, positive and weighted are in that unit). The positive stays out of the sums and is
// added at the end, so that neither the loss nor its gradient cancels when it dominates.
struct SoftmaxRow {
  float maximum;
  float positive;
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

static inline float inverse_norm(const float* x, int64_t depth) {
  const float norm = __builtin_sqrtf(dot(x, x, depth));
  return 1.f / (norm < 1e-12f ? 1e-12f : norm);  // torch.nn.functional.normalize's eps
}

// Gradient with respect to x of f(x / |x|), from g = f'(x / |x|), in place.
static inline void through_norm(float* g, const float* x, float inverse, int64_t depth) {
  // below eps the norm is a constant
  const float along = inverse < 1e12f ? dot(g, x, depth) * inverse * inverse : 0.f;
  for (int64_t d = 0; d < depth; ++d) g[d] = (g[d] - along * x[d]) * inverse;
}

// Everything that a thread needs to know, so that the phases below can be functions.
struct InfoNCERun {
  const InfoNCEArgs& a;
  const bool gradient;
  const int64_t blocks, padded_keys, key_sum;
  const Teams teams;
  int64_t workspace_floats;
  float *transposed, *keys_rows, *key_sums, *q_norm, *k_norm;  // of all teams
  Panel panel;
  float *own_key_sum, *queries, *queries_packed;
  SoftmaxRow* statistics;
  double* totals;  // of each thread

  static int threads_of(const InfoNCEArgs& a, bool gradient) {
    return useful_threads(double(a.rows) * a.keys * a.depth * (gradient ? 3 : 1), a.threads);
  }

  InfoNCERun(const InfoNCEArgs& args, int team)
      : a(args),
        gradient(a.dq || a.dk || a.dscale),
        blocks(ceil_div(a.keys, kBlockCols)),
        padded_keys(round_up(a.keys, kTileCols)),
        key_sum(round_up(a.dk ? padded_keys * a.depth : 0, Workspace::kLine)),
        teams(a.rows, a.keys, 1, key_sum, threads_of(a, gradient)) {
    Workspace workspace(a.workspace);
    transposed = workspace.take(padded_keys * a.depth);
    keys_rows = workspace.take(a.dq ? round_up(a.depth, kTileCols) * a.keys : 0);
    q_norm = workspace.take(a.normalize ? a.rows : 0);
    k_norm = workspace.take(a.normalize ? a.keys : 0);
    totals = reinterpret_cast<double*>(workspace.take(2 * teams.threads));
    key_sums = workspace.take(key_sum * teams.count);
    own_key_sum = key_sums + key_sum * team;
    panel = {workspace.take(panel_floats(teams.panel, a.keys), teams, team), teams.panel};
    queries = workspace.take(teams.panel * a.depth, teams, team);
    queries_packed = workspace.take(a.dk ? teams.panel * a.depth : 0, teams, team);
    statistics = reinterpret_cast<SoftmaxRow*>(
        workspace.take(teams.panel * static_cast<int64_t>(sizeof(SoftmaxRow) / sizeof(float)), teams, team));
    workspace_floats = workspace.total();
  }

  // The keys, normalised, in both packed forms.
  void pack_keys(int thread, int threads) const {
    const Share tiles = share_of(padded_keys / kTileCols, thread, threads, 1);
    const Share rows{tiles.first * kTileCols, smaller(tiles.last * kTileCols, a.keys)};
    for (int64_t j = rows.first; j < rows.last; ++j) {
      if (a.normalize) k_norm[j] = inverse_norm(a.k + j * a.depth, a.depth);
      if (a.dq) pack_row(a.k + j * a.depth, a.depth, a.normalize ? k_norm[j] : 1.f, keys_rows, a.keys, j);
    }
    pack_transposed(a.k, a.keys, a.depth, a.normalize ? k_norm : nullptr, transposed, tiles.first,
                    tiles.last);
  }

  // The thread's rows of logits and their maxima; the positive is taken out.
  void score(int64_t top, Share own) const {
    for (int64_t i = own.first; i < own.last; ++i) {
      const float* source = a.q + (top + i) * a.depth;
      float factor = a.scale * kLog2E;
      if (a.normalize) factor *= q_norm[top + i] = inverse_norm(source, a.depth);
      for (int64_t d = 0; d < a.depth; ++d) queries[i * a.depth + d] = source[d] * factor;
      statistics[i] = {-__builtin_inff(), 0.f, 0.f, 0.f};
    }
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = block * kBlockCols, width = smaller(kBlockCols, padded_keys - first);
      score_block(panel, block, own.first, own.last - own.first, queries + own.first * a.depth, a.depth,
                  transposed, first, first + width);
      for (int64_t i = own.first; i < own.last; ++i) {
        float* x = panel.at(block, i);
        for (int64_t j = a.keys - first; j < width; ++j) x[j] = -__builtin_inff();
        const float m = segment_maximum(x, width);
        statistics[i].maximum = statistics[i].maximum > m ? statistics[i].maximum : m;
      }
    }
    for (int64_t i = own.first; i < own.last; ++i) {
      float& positive = panel.entry(i, top + i);
      statistics[i].positive = positive;
      positive = -__builtin_inff();
    }
  }

  // Softmax weights of the thread's rows, and their product with the keys while each block is in cache.
  void weigh(int64_t top, Share own) const {
    const int64_t rows = own.last - own.first;
    float* const dq = a.dq ? a.dq + (top + own.first) * a.depth : nullptr;
    if (dq) zero(dq, rows * a.depth);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = block * kBlockCols;
      for (int64_t i = own.first; i < own.last; ++i)
        if (a.dscale)
          softmax_segment<true>(panel.at(block, i), smaller(kBlockCols, padded_keys - first), statistics[i]);
        else
          softmax_segment<false>(panel.at(block, i), smaller(kBlockCols, padded_keys - first), statistics[i]);
      for (int64_t i = own.first; i < own.last; ++i)
        if ((top + i) / kBlockCols == block) panel.entry(i, top + i) = kTakenOut;
      if (dq)
        times_rows(panel, block, own.first, rows, first, smaller(first + kBlockCols, a.keys), keys_rows,
                   a.keys, a.depth, dq);
    }
  }

  // Losses, their weighted sum, and what the positive and 1/z add to the gradients.
  double finish(int64_t top, Share own) const {
    double total = 0;
    const int64_t depth = a.depth;
    const Parts parts(depth);
    for (int64_t i = own.first; i < own.last; ++i) {
      const SoftmaxRow& row = statistics[i];
      const int64_t g = top + i;
      const float gap = (row.maximum - row.positive) * kLn2;  // >= 0
      const float z = row.others + __builtin_expf(-gap);
      a.loss[g] = gap == 0.f ? __builtin_log1pf(row.others) : __builtin_logf(z) + gap;
      const float weight = a.row_weight ? a.row_weight[g] : a.weight;
      total += double(weight) * a.loss[g];
      if (!gradient) continue;
      const float factor = weight / z;
      if (a.dscale) a.dscale[g] = factor * (row.weighted * kLn2 + row.others * gap) / a.scale;
      if (a.dk) {
        panel.entry(i, g) = -row.others;
        pack_column(queries + i * depth, parts, factor * kLn2, queries_packed, panel.rows, i);
      }
      if (a.dq) {
        float* const dq = a.dq + g * depth;
        const float* key = a.k + g * depth;
        const float own_weight = row.others * (a.normalize ? k_norm[g] : 1.f), f = factor * a.scale;
        for (int64_t d = 0; d < depth; ++d) dq[d] = (dq[d] - own_weight * key[d]) * f;
        if (a.normalize) through_norm(dq, a.q + g * depth, q_norm[g], depth);
      }
    }
    return total;
  }

  // The thread's tiles of keys take the whole panel's part of their gradient.
  void key_gradient(int64_t height, const Member& member) const {
    const Share tiles = share_of(padded_keys / kTileCols, member.thread, member.threads, 1);
    transposed_times_rows(panel, height, tiles.first, tiles.last, queries_packed, panel.rows, a.depth,
                          own_key_sum);
  }

  void unpack_key_gradient(int sums, int thread, int threads) const {
    const Share tiles = share_of(padded_keys / kTileCols, thread, threads, 1);
    for (int64_t tile = tiles.first; tile < tiles.last; ++tile)
      unpack_transposed(key_sums, sums, key_sum, a.keys, a.depth, a.dk, tile);
    if (!a.normalize) return;
    for (int64_t j = tiles.first * kTileCols; j < smaller(tiles.last * kTileCols, a.keys); ++j)
      through_norm(a.dk + j * a.depth, a.k + j * a.depth, k_norm[j], a.depth);
  }
};

static void info_nce_panels(const InfoNCEArgs& a) {
  const InfoNCERun all(a, 0);
  prefer_huge_pages(a.workspace, all.workspace_floats * 4);
  for (int t = 0; t < all.teams.threads; ++t) all.totals[t] = 0;
#pragma omp parallel num_threads(all.teams.threads)
  {
    const Member member(all.teams);
    const InfoNCERun run(a, member.team);
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
