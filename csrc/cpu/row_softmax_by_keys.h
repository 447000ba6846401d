// Row softmax losses over many keys without packed copies of them: what the workspace takes does not grow
// with keys x depth, and the gradient of the keys is summed where it ends.
//
// Threads own keys, not rows. A panel holds the scores transposed, key by key, so that the keys are read
// where they lie: as A of St = K Qt, and a copy of one tile at a time as B of dQ = W K. Only queries are
// packed. A maximum or a sum over keys is an elementwise operation on the rows of such a panel.
#pragma once

#include "cpu/row_softmax.h"

namespace thawkit {
namespace THAWKIT_ISA {

// A[r, k] = at[r * stride + k] for a stride that the compiler does not know. Three pointers reach all rows of
// a tile by address arithmetic that instructions have for nothing.
struct StridedLeft {
  static constexpr int kTogether = 1;
  const float *first, *middle, *last;
  int64_t stride;

  StridedLeft(const float* at, int64_t stride)
      : first(at), middle(at + 5 * stride), last(at + 10 * stride), stride(stride) {}
  inline float operator()(int64_t row, int64_t k) const {
    const float* const near = row < 5 ? first : row < 10 ? middle : last;
    return near[row % 5 * stride + k];
  }
  inline StridedLeft from(int64_t row) const { return {first + row * stride, stride}; }
};

// Piece `piece` of `pieces` of what will be read soon, so that the requests are spread over the work before.
static inline void prefetch_piece(const float* rows, int64_t count, int64_t width, int64_t stride,
                                  int64_t piece, int64_t pieces) {
  const int64_t lines = ceil_div(width, kLineFloats), all = count * lines;
  for (int64_t i = all * piece / pieces; i < all * (piece + 1) / pieces; ++i)
    __builtin_prefetch(rows + i / lines * stride + i % lines * kLineFloats, 0, 2);
}

// kQueries: rows of a panel, whole tiles. Operand is what the products multiply, float32 numbers; where it is
// plain, the keys serve all products where they lie.
template <int64_t kQueries, class Operand>
struct RowSoftmaxByKeys {
  static constexpr int64_t kPanel = kQueries;
  // An odd number of cache lines, as in a block of the other layout.
  static constexpr int64_t kStride = kQueries + 16;
  static constexpr int64_t kChunk = 32 * kTileRows;  // keys whose scores stay in the second-level cache

  const RowSoftmaxArgs& a;
  const float *const q, *const k;
  float *const dq, *const dk;
  const bool gradient;
  const int asked, threads;  // can be fewer than were asked for
  int64_t workspace_floats;
  float *scores, *queries_packed, *queries_rows, *factors;  // of all threads
  SoftmaxRow* statistics;
  float *maxima, *sums, *weighted, *query_sums;  // [threads], the thread's own
  float *all_maxima, *all_sums, *all_weighted, *all_query_sums;
  float *row_maxima, *chunk_sums, *chunk_weighted, *keys_tile;  // the thread's own
  double* totals;
  Scratch scratch;

  RowSoftmaxByKeys(const RowSoftmaxArgs& args, int thread, int team)
      : a(args),
        q(static_cast<const float*>(a.q)),
        k(static_cast<const float*>(a.k)),
        dq(static_cast<float*>(a.dq)),
        dk(static_cast<float*>(a.dk)),
        gradient(a.dq || a.dk || a.dscale),
        asked(useful_threads(double(a.rows) * a.keys * a.depth * (gradient ? 3 : 1), a.threads)),
        threads(team) {
    Workspace workspace(a.workspace);
    scores = workspace.take(a.keys * kStride);
    queries_packed = workspace.take(kQueries * a.depth);
    queries_rows = workspace.take(a.dk ? kQueries * round_up(a.depth, kTileCols) : 0);
    factors = workspace.take(kQueries);
    statistics = reinterpret_cast<SoftmaxRow*>(
        workspace.take(kQueries * static_cast<int64_t>(sizeof(SoftmaxRow) / sizeof(float))));
    totals = reinterpret_cast<double*>(workspace.take(2 * asked));
    all_maxima = workspace.take(kQueries * asked);
    all_sums = workspace.take(kQueries * asked);
    all_weighted = workspace.take(kQueries * asked);
    const int64_t query_sum = round_up(a.dq ? kQueries * a.depth : 0, Workspace::kLine);
    all_query_sums = workspace.take(query_sum * asked);
    maxima = all_maxima + kQueries * thread;
    sums = all_sums + kQueries * thread;
    weighted = all_weighted + kQueries * thread;
    query_sums = all_query_sums + query_sum * thread;
    row_maxima = own(workspace, kQueries, thread);
    chunk_sums = own(workspace, kQueries, thread);
    chunk_weighted = own(workspace, kQueries, thread);
    keys_tile = own(workspace, Operand::kPlain ? 0 : kChunk * kTileCols, thread);
    scratch = workspace.scratch(a.depth, asked);
    workspace_floats = workspace.total();
  }

  float* own(Workspace& workspace, int64_t floats, int thread) const {
    float* const all = workspace.take(floats * asked);
    return all ? all + floats * thread : nullptr;
  }

  float* row(int64_t key) const { return scores + key * kStride; }
  int64_t positive_of(int64_t g) const { return a.target ? a.target[g] : g + a.offset; }

  // The thread's tiles of queries, as B of St = K Qt, plain ones as rows. Missing rows are 0.
  void pack_queries(int64_t top, int64_t height, int thread) const {
    const Share tiles = share_of(ceil_div(height, kTileCols), thread, threads, 1);
    for (int64_t tile = tiles.first; tile < tiles.last; ++tile) {
      const int64_t start = tile * kTileCols, present = smaller(kTileCols, height - start);
      float* const packed = queries_packed + start * a.depth;
      for (int64_t j = 0; j < present; ++j)
        scale_row(Operand::kPlain ? packed + j * a.depth : scratch.row(j), q + (top + start + j) * a.depth,
                  a.depth, a.scale * kLog2E);
      if constexpr (Operand::kPlain)
        zero(packed + present * a.depth, (kTileCols - present) * a.depth);
      else
        interleave(scratch, present, kTileCols, a.depth, packed);
      for (int64_t j = start; j < start + kTileCols; ++j) statistics[j] = {kNothing, kNothing, 0.f, 0.f};
    }
  }

  // Scores of keys `first` to `last`, of which the thread owns some more up to `end`.
  void multiply_keys(int64_t first, int64_t last, int64_t width, int64_t end) const {
    if constexpr (Operand::kPlain) {
      multiply_plain(last - first, width, a.depth, As::kItself, k + first * a.depth, a.depth, As::kTransposed,
                     queries_packed, a.depth, false, row(first), kStride);
      return;
    }
    const Parts parts(last - first);
    for (int64_t part = 0; part < parts.count; ++part) {
      const int64_t key = first + parts.start(part);
      const int64_t height_of = parts.height(part), ahead = smaller(key + height_of + kTileRows, end);
      for (int64_t tile = 0; tile < width; tile += kTileCols) {
        const float* const packed = queries_packed + tile * a.depth;
        prefetch_piece(k + (key + height_of) * a.depth, 1, (ahead - key - height_of) * a.depth, 0,
                       tile / kTileCols, width / kTileCols);
        multiply_part<false, OneFloat>(height_of, a.depth, StridedLeft(k + key * a.depth, a.depth),
                                       {packed, kTileCols, nullptr}, row(key) + tile, kStride);
      }
    }
  }

  // Scores of the thread's keys and the maximum over them for each query; positives are taken out.
  void score(int64_t top, int64_t height, Share keys) const {
    const int64_t width = round_up(height, kTileCols);
    for (int64_t j = 0; j < width; j += kLanes) store(maxima + j, splat(kNothing));
    for (int64_t first = keys.first; first < keys.last; first += kChunk) {
      const int64_t last = smaller(first + kChunk, keys.last);
      multiply_keys(first, last, width, keys.last);
      for (int64_t key = first; a.bias && key < last; ++key)
        for (int64_t j = 0; j < width; j += kLanes)
          store(row(key) + j, load(row(key) + j) + a.bias[key] * kLog2E);
      for (int64_t i = 0; i < height; ++i) {
        const int64_t t = positive_of(top + i);
        if (t < first || t >= last) continue;
        statistics[i].positive = row(t)[i];
        row(t)[i] = kNothing;
      }
      for (int64_t key = first; key < last; ++key)
        for (int64_t j = 0; j < width; j += kLanes)
          store(maxima + j, max(load(maxima + j), load(row(key) + j)));
    }
  }

  // What the powers are taken relative to: the same in every thread.
  void find_maxima(int64_t top, int64_t height, int thread) const {
    const int64_t width = round_up(height, kTileCols);
    for (int64_t i = 0; i < width; ++i) {
      float m = kNothing;
      for (int t = 0; t < threads; ++t)
        m = all_maxima[t * kQueries + i] > m ? all_maxima[t * kQueries + i] : m;
      const bool has_positive = i < height && positive_of(top + i) >= 0;
      if (has_positive && !(m > statistics[i].positive)) m = statistics[i].positive;
      if (a.maximum && thread == 0 && i < height) a.maximum[top + i] = m * kLn2;
      row_maxima[i] = m == kNothing && !has_positive ? 0.f : m;
    }
  }

  // The product of such keys with their weights.
  void add_to_query_sums(int64_t first, int64_t last, int64_t height, int64_t end) const {
    if constexpr (Operand::kPlain) {
      multiply_plain(height, a.depth, last - first, As::kTransposed, row(first), kStride, As::kItself,
                     k + first * a.depth, a.depth, true, query_sums, a.depth);
      return;
    }
    for (int64_t d = 0; d < a.depth; d += kTileCols) {
      const int64_t present = smaller(kTileCols, a.depth - d);
      for (int64_t key = first; key < last; ++key) {
        float* const to = keys_tile + (key - first) * kTileCols;
        const float* const from = k + key * a.depth + d;
        if (present == kTileCols) {
          memcpy(to, from, kTileCols * sizeof(float));
          continue;
        }
        memcpy(to, from, static_cast<size_t>(present) * sizeof(float));
        zero(to + present, kTileCols - present);
      }
      const bool more = d + kTileCols < a.depth;
      const Parts parts(height);
      for (int64_t part = 0; part < parts.count; ++part) {
        const int64_t start = parts.start(part);
        prefetch_piece(k + (more ? first * a.depth + d + kTileCols : last * a.depth),
                       more ? last - first : smaller(last + kChunk, end) - last, kTileCols, a.depth, part,
                       parts.count);
        multiply<true, OneFloat>(parts.height(part), last - first, PackedLeft{row(first) + start, kStride},
                                 {keys_tile, kTileCols, nullptr}, query_sums + start * a.depth + d, a.depth,
                                 present);
      }
    }
  }

  // Softmax weights of the thread's keys, unnormalised, their sums, and their product with the keys.
  void weigh(int64_t top, int64_t height, Share keys) const {
    const int64_t width = round_up(height, kTileCols);
    zero(sums, width);
    zero(weighted, width);
    if (dq) zero(query_sums, height * a.depth);
    const auto unbounded = [&](int64_t i) { return is_unbounded(row_maxima[i], positive_of(top + i) >= 0); };
    float unbounded_sums[kQueries] = {};
    for (int64_t first = keys.first; first < keys.last; first += kChunk) {
      const int64_t last = smaller(first + kChunk, keys.last);
      for (int64_t i = 0; i < height; ++i)
        if (unbounded(i)) unbounded_sums[i] += unbounded_sum(row(first) + i, last - first, kStride);
      if (a.dscale)
        softmax_rows<true>(first, last, width);
      else
        softmax_rows<false>(first, last, width);
      for (int64_t i = 0; i < height; ++i) {
        const int64_t t = positive_of(top + i);
        if (first <= t && t < last) row(t)[i] = kTakenOut;
      }
      if (dq) add_to_query_sums(first, last, height, keys.last);
    }
    for (int64_t i = 0; i < height; ++i)
      if (unbounded(i)) sums[i] = unbounded_sums[i];
  }

  template <bool Weighted>
  void softmax_rows(int64_t first, int64_t last, int64_t width) const {
    zero(chunk_sums, width);  // of few terms, so that they lose no digits
    if constexpr (Weighted) zero(chunk_weighted, width);
    for (int64_t key = first; key < last; ++key) {
      float* const x = row(key);
      for (int64_t j = 0; j < width; j += kLanes) {
        const Floats below = load(x + j) - load(row_maxima + j), e = exp2_negative(below);
        store(chunk_sums + j, load(chunk_sums + j) + e);
        if constexpr (Weighted)
          store(chunk_weighted + j, load(chunk_weighted + j) + e * max(splat(kLowestPower), below));
        store(x + j, e);
      }
    }
    for (int64_t j = 0; j < width; j += kLanes) {
      store(sums + j, load(sums + j) + load(chunk_sums + j));
      if constexpr (Weighted) store(weighted + j, load(weighted + j) + load(chunk_weighted + j));
    }
  }

  // Losses of the thread's queries, their weighted sum, and what the positive and 1/z add to the gradients.
  double finish(int64_t top, int64_t height, int thread) const {
    double total = 0;
    const int64_t depth = a.depth;
    const Share own = share_of(height, thread, threads, 1);
    for (int64_t i = own.first; i < own.last; ++i) {
      SoftmaxRow& row_of = statistics[i];
      row_of.maximum = row_maxima[i];
      for (int t = 0; t < threads; ++t) {
        row_of.others += all_sums[t * kQueries + i];
        row_of.weighted += all_weighted[t * kQueries + i];
      }
      const int64_t g = top + i, t = positive_of(g);
      const FinishedRow result = finish_row(a, row_of, g, t >= 0);
      total += result.weighted_loss;
      if (!gradient) continue;
      factors[i] = result.factor;
      if (dk) {
        if (t >= 0) row(t)[i] = -row_of.others;
        for (int64_t key = 0; result.ignored && key < a.keys; ++key) row(key)[i] = 0.f;
        float* const scaled = Operand::kPlain ? queries_rows + i * depth : scratch.row(0);
        if (result.factor == 0.f)
          zero(scaled, depth);
        else
          scale_row(scaled, q + g * depth, depth, result.factor * a.scale);
        if constexpr (!Operand::kPlain) pack_across(scaled, depth, queries_rows, kQueries, i);
      }
      if (dq) {
        float* const out = dq + g * depth;
        const int64_t apart = round_up(kQueries * depth, Workspace::kLine);
        for (int64_t d = 0; d < depth; d += kLanes) {
          const int64_t some = smaller(kLanes, depth - d);
          Floats s = load_up_to(all_query_sums + i * depth + d, some);
          for (int part = 1; part < threads; ++part)
            s += load_up_to(all_query_sums + part * apart + i * depth + d, some);
          store_up_to(out + d, s, some);
        }
        const float own_weight = t >= 0 ? row_of.others + kTakenOut : 0.f;  // what stood in its place too
        const float f = result.factor * a.scale;
        if (f == 0.f)
          zero(out, depth);
        else
          less_row(out, k + (t >= 0 ? t : 0) * depth, depth, own_weight, f);
      }
    }
    return total;
  }

  // What the panel adds to the gradients of the thread's keys.
  void key_gradient(int64_t height, Share keys) const {
    for (int64_t first = keys.first; first < keys.last; first += kChunk) {
      const int64_t last = smaller(first + kChunk, keys.last);
      if constexpr (Operand::kPlain)
        multiply_plain(last - first, a.depth, height, As::kItself, row(first), kStride, As::kItself,
                       queries_rows, a.depth, true, dk + first * a.depth, a.depth);
      for (int64_t d = 0; !Operand::kPlain && d < a.depth; d += kTileCols)
        multiply<true, OneFloat>(last - first, height, RowsLeft<kStride>{row(first)},
                                 {queries_rows + d * kQueries, kTileCols,
                                  queries_rows + (d + kTileCols < a.depth ? d + kTileCols : 0) * kQueries},
                                 dk + first * a.depth + d, a.depth, a.depth - d);
      for (int64_t key = first; a.dbias && key < last; ++key) a.dbias[key] += dot(row(key), factors, height);
    }
  }
};

template <class Run>
static void row_softmax_by_keys(const RowSoftmaxArgs& a, const Run& all) {
  prefer_huge_pages(a.workspace, all.workspace_floats * 4);
  for (int t = 0; t < all.asked; ++t) all.totals[t] = 0;
#pragma omp parallel num_threads(all.asked)
  {
    const int thread = omp_get_thread_num();
    const Run run(a, thread, omp_get_num_threads());
    const Share keys = share_of(a.keys, thread, run.threads, kTileRows);
    if (a.dk) zero(run.dk + keys.first * a.depth, (keys.last - keys.first) * a.depth);
    if (a.dbias) zero(a.dbias + keys.first, keys.last - keys.first);
    for (int64_t top = 0; top < a.rows; top += Run::kPanel) {
      const int64_t height = smaller(Run::kPanel, a.rows - top);
      run.pack_queries(top, height, thread);
#pragma omp barrier
      run.score(top, height, keys);
#pragma omp barrier
      run.find_maxima(top, height, thread);
      run.weigh(top, height, keys);
#pragma omp barrier
      run.totals[thread] += run.finish(top, height, thread);
#pragma omp barrier
      if (a.dk) run.key_gradient(height, keys);
    }
  }
  double total = 0;
  for (int t = 0; t < all.asked; ++t) total += all.totals[t];
  *a.total = static_cast<float>(total);
}

// Whether this layout can say what is asked for and is the better one: of a classifier, whose weights are
// more than what they classify, copies are dear. It needs keys enough for all threads.
template <class Storage, class Operand>
static inline bool suits_keys(const RowSoftmaxArgs& a) {
  return sizeof(Storage) == sizeof(float) && !Operand::kRounds && a.target && !a.normalize &&
         a.labels == Labels::kIgnored && a.excluded < 0 && a.margin == __builtin_inff() &&
         a.keys >= 8 * kTileRows * a.threads;
}

// call(number of queries in a panel): the more, the less often the keys are read, but no more than what keeps
// the workspace near the size of the queries' gradient.
template <class Operand, class Call>
static inline auto with_panel_of_queries(const RowSoftmaxArgs& a, Call call) {
  constexpr int64_t kMany = 192, kFew = 96;
  static_assert(kMany % kTileCols == 0 && kFew % kTileCols == 0, "panels are whole tiles");
  typedef RowSoftmaxByKeys<kMany, Operand> Many;
  typedef RowSoftmaxByKeys<kFew, Operand> Few;
  const bool room = 4 * Many(a, 0, 1).workspace_floats <= 5 * a.rows * a.depth;
  return room ? call(Many(a, 0, 1)) : call(Few(a, 0, 1));
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
