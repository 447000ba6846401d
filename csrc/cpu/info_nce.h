// The row-wise softmax loss: driver over row panels and its epilogue.
#pragma once

#include "cpu/pairwise.h"

namespace thawkit {
namespace THAWKIT_ISA {

struct SoftmaxRow {
  float loss;
  float denominator;   // z: the softmax is (row / z), the positive's entry being -(z - e_positive)
  float weighted_sum;  // sum_j W_ij logits_ij before the division by z
};

// One row of logits in, exp(logits - maximum) out, unnormalised: 1/z goes into the small operands of the
// products instead. The positive is left out of the sum and added at the end, so that neither the loss
// nor its gradient cancels when the positive dominates. `width` is a multiple of the vector length; columns
// past `keys` hold -inf.
static inline SoftmaxRow softmax_row(float* x, int64_t keys, int64_t width, int64_t positive) {
  const float infinity = __builtin_inff();
  for (int64_t j = keys; j < width; ++j) x[j] = -infinity;
  Floats m0 = load(x), m1 = m0;
  int64_t j = 0;
  for (; j + 2 * kLanes <= width; j += 2 * kLanes) {
    m0 = max(m0, load(x + j));
    m1 = max(m1, load(x + j + kLanes));
  }
  const float maximum = max_lane(max(m0, m1));
  const float own = x[positive];
  x[positive] = -infinity;

  Floats z0 = {}, z1 = {}, t0 = {}, t1 = {};
  const Floats lowest = splat(-88.f);
  for (j = 0; j + 2 * kLanes <= width; j += 2 * kLanes) {
    const Floats a = max(lowest, load(x + j) - maximum), b = max(lowest, load(x + j + kLanes) - maximum);
    const Floats ea = exp_negative(a), eb = exp_negative(b);
    z0 += ea;
    z1 += eb;
    t0 += ea * a;
    t1 += eb * b;
    store(x + j, ea);
    store(x + j + kLanes, eb);
  }
  const float others = sum(z0 + z1);
  const float gap = maximum - own;  // >= 0
  const float z = others + __builtin_expf(-gap);
  x[positive] = -others;
  const float loss = gap == 0.f ? __builtin_log1pf(others) : __builtin_logf(z) + gap;
  return {loss, z, sum(t0 + t1) + others * gap};
}

struct InfoNCEPlan {
  int threads;
  int64_t panel, row_length, width;
  int64_t keys_transposed, keys_rows, scores, queries, queries_packed, norms;  // floats of each buffer
  int64_t total() const {
    return keys_transposed + keys_rows + scores + queries + queries_packed + norms + 16;
  }
};

static inline InfoNCEPlan plan(const InfoNCEArgs& a) {
  InfoNCEPlan p;
  const bool gradient = a.dq || a.dk || a.dscale;
  p.threads = useful_threads(double(a.rows) * a.keys * a.depth * (gradient ? 3 : 1), a.threads);
  const int64_t each = panel_rows(a.rows, a.keys, p.threads);
  p.panel = each * p.threads;
  p.width = round_up(a.keys, kTileCols);
  p.row_length = p.width + kRowGap;
  const int64_t depth_padded = round_up(a.depth, kTileCols);
  p.keys_transposed = p.width * a.depth;
  p.keys_rows = a.dq ? depth_padded * a.keys : 0;
  p.scores = p.panel * p.row_length;
  p.queries = p.panel * a.depth;
  p.queries_packed = a.dk ? depth_padded * p.panel : 0;
  p.norms = (a.normalize ? a.rows + a.keys : 0) + p.panel;
  return p;
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

static void info_nce_panels(const InfoNCEArgs& a, const InfoNCEPlan& p) {
  float* next = a.workspace + (16 - (reinterpret_cast<uintptr_t>(a.workspace) / 4) % 16) % 16;
  const auto take = [&](int64_t floats) {
    float* here = next;
    next += floats;
    return here;
  };
  float* const keys_transposed = take(p.keys_transposed);
  float* const scores = take(p.scores);
  float* const keys_rows = take(p.keys_rows);
  float* const queries = take(p.queries);
  float* const queries_packed = take(p.queries_packed);
  float* const factor = take(p.panel);
  float* const q_norm = a.normalize ? take(a.rows) : nullptr;
  float* const k_norm = a.normalize ? take(a.keys) : nullptr;
  const int64_t blocks = p.width / kTileCols, depth = a.depth;
  const bool gradient = a.dq || a.dk || a.dscale;

#pragma omp parallel num_threads(p.threads)
  {
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const Share packing = share_of(blocks, thread, threads, 1);
    const Share mine{packing.first * kTileCols, smaller(packing.last * kTileCols, a.keys)};
    if (a.normalize)
      for (int64_t j = mine.first; j < mine.last; ++j) k_norm[j] = inverse_norm(a.k + j * depth, depth);
    pack_transposed(a.k, a.keys, depth, k_norm, keys_transposed, packing.first, packing.last);
    if (a.dq)
      for (int64_t j = mine.first; j < mine.last; ++j)
        pack_row(a.k + j * depth, depth, k_norm ? k_norm[j] : 1.f, keys_rows, a.keys, j);
    if (a.dk && mine.last > mine.first)
      memset(a.dk + mine.first * depth, 0, static_cast<size_t>((mine.last - mine.first) * depth) * 4);
#pragma omp barrier

    for (int64_t top = 0; top < a.rows; top += p.panel) {
      const int64_t height = smaller(p.panel, a.rows - top);
      const Share own = share_of(height, thread, threads, kTileRows);
      const int64_t rows = own.last - own.first;
      float* const s = scores + own.first * p.row_length;
      float* const q = queries + own.first * depth;
      for (int64_t i = own.first; i < own.last; ++i) {
        const float* source = a.q + (top + i) * depth;
        float f = a.scale;
        if (a.normalize) f *= q_norm[top + i] = inverse_norm(source, depth);
        for (int64_t d = 0; d < depth; ++d) queries[i * depth + d] = source[d] * f;
      }
      for (int64_t b = 0; b < blocks; ++b)
        multiply_full<false>(rows, depth, q, depth, 1, keys_transposed + b * depth * kTileCols,
                             s + b * kTileCols, p.row_length);
      for (int64_t i = own.first; i < own.last; ++i) {
        const SoftmaxRow row =
            softmax_row(scores + i * p.row_length, a.keys, p.width, top + i);
        a.loss[top + i] = row.loss;
        if (!gradient) continue;
        factor[i] = (a.row_weight ? a.row_weight[top + i] : a.weight) / row.denominator;
        if (a.dscale) a.dscale[top + i] = factor[i] * row.weighted_sum / a.scale;
        if (a.dk) pack_row(queries + i * depth, depth, factor[i], queries_packed, p.panel, i);
      }
      if (a.dq) {
        float* const dq = a.dq + (top + own.first) * depth;
        for (int64_t k0 = 0; k0 < a.keys; k0 += kDepthBlock) {
          const int64_t kc = smaller(kDepthBlock, a.keys - k0);
          for (int64_t d = 0; d < depth; d += kTileCols) {
            const float* B = keys_rows + (d / kTileCols * a.keys + k0) * kTileCols;
            if (k0 == 0)
              multiply<false>(rows, kc, s + k0, p.row_length, 1, B, dq + d, depth, depth - d);
            else
              multiply<true>(rows, kc, s + k0, p.row_length, 1, B, dq + d, depth, depth - d);
          }
        }
        for (int64_t i = 0; i < rows; ++i) {
          float* g = dq + i * depth;
          const float f = factor[own.first + i] * a.scale;
          for (int64_t d = 0; d < depth; ++d) g[d] *= f;
          if (a.normalize)
            through_norm(g, a.q + (top + own.first + i) * depth, q_norm[top + own.first + i], depth);
        }
      }
      if (a.dk) {
#pragma omp barrier
        const Share columns = share_of(a.keys, thread, threads, kTileRows);
        for (int64_t j = columns.first; j < columns.last; j += kColumnBlock) {
          const int64_t count = smaller(kColumnBlock, columns.last - j);
          for (int64_t d = 0; d < depth; d += kTileCols)
            multiply<true>(count, height, scores + j, 1, p.row_length,
                           queries_packed + d / kTileCols * p.panel * kTileCols, a.dk + j * depth + d, depth,
                           depth - d);
        }
#pragma omp barrier
      }
    }
    if (a.dk && a.normalize) {
      const Share columns = share_of(a.keys, thread, threads, kTileRows);
      for (int64_t j = columns.first; j < columns.last; ++j)
        through_norm(a.dk + j * depth, a.k + j * depth, k_norm[j], depth);
    }
  }
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
