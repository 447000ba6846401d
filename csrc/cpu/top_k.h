// The k largest similarities of each row: driver over row panels, and the filter that keeps candidates.
#pragma once

#include "cpu/centre.h"

namespace thawkit {
namespace THAWKIT_ISA {

// Floats other than NaN and -0 in the order of integers; its own inverse.
static inline Ints ordered(Ints bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }
static inline int32_t ordered(int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

constexpr int32_t kLowestOrder = static_cast<int32_t>(0x807fffffu);  // of -inf
constexpr int32_t kNoOrder = static_cast<int32_t>(0x80000000u);      // below every candidate

static inline int64_t total(Ints counts) {
  int64_t sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += counts[lane];
  return sum;
}

// Candidates of one row in the order of their columns. As soon as there are more than `limit`, those that k
// others beat are dropped, and what comes later has to be better than the k-th best of then: of equal ones
// the first stay. A NaN is never a candidate.
struct Candidates {
  int32_t* orders;
  int32_t* columns;
  int64_t count = 0;
  float least = -__builtin_inff();  // what the next one has to reach
  int32_t low = kLowestOrder;       // no candidate is below

  Candidates(int32_t* orders, int32_t* columns) : orders(orders), columns(columns) {}

  int64_t at_least(int32_t order) const {
    Ints found = {};
    for (int64_t i = 0; i < count; i += kLanes) found -= load(orders + i) >= splat(order);
    return total(found);
  }

  // Keeps the k best, or up to `slack` more. Requires more than that many candidates.
  void shrink(int64_t k, int64_t slack) {
    store(orders + count, splat(kNoOrder));
    Ints highest = load(orders);
    for (int64_t i = 0; i < count; i += kLanes) {
      const Ints x = load(orders + i);
      highest = x > highest ? x : highest;
    }
    // at least k candidates reach `low`, fewer than k reach `high`
    int64_t high = highest[0], reach = count;
    for (int lane = 1; lane < kLanes; ++lane) high = highest[lane] > high ? highest[lane] : high;
    ++high;
    while (reach > k + slack && high - low > 1) {
      const int32_t middle = static_cast<int32_t>(low + (high - low) / 2);
      const int64_t found = at_least(middle);
      if (found >= k) {
        low = middle;
        reach = found;
      } else {
        high = middle;
      }
    }
    // ties at the k-th place: the first of them stay
    int64_t equal_wanted = reach > k + slack ? k - at_least(low + 1) : count;
    int64_t kept = 0;
    for (int64_t i = 0; i < count; i += kLanes) {
      const Ints x = load(orders + i), column = load(columns + i);
      const uint32_t above = to_bits(x > splat(low));
      uint32_t equal = to_bits(x == splat(low));
      while (__builtin_popcount(equal) > equal_wanted) equal &= ~(1u << (31 - __builtin_clz(equal)));
      equal_wanted -= __builtin_popcount(equal);
      store_compressed(orders + kept, x, above | equal);
      store_compressed(columns + kept, column, above | equal);
      kept += __builtin_popcount(above | equal);
    }
    count = kept;
    least = bit_cast<float>(ordered(low + 1));
  }
};

// Takes the row's columns first, first + 1, ... whose scores x (plus bias) are good enough. Reads up to
// kFilterStep columns past `count`.
constexpr int kFilterStep = 4 * kLanes;

template <bool Biased>
static inline void filter(const float* x, const float* bias, int64_t count, int64_t first, int64_t k,
                          int64_t slack, int64_t limit, Candidates& row) {
  Floats least = splat(row.least);
  for (int64_t j = 0; j < count; j += kFilterStep) {
    Floats s[4];
    uint32_t good[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      s[v] = load(x + j + v * kLanes);
      if constexpr (Biased) s[v] += load(bias + j + v * kLanes);
      good[v] = at_least_bits(s[v], least);
    }
    if (!(good[0] | good[1] | good[2] | good[3])) continue;
    for (int v = 0; v < 4; ++v) {
      const int64_t present = count - j - v * kLanes;
      const uint32_t bits = present >= kLanes ? good[v] : present > 0 ? good[v] & ((1u << present) - 1) : 0;
      if (!bits) continue;
      store_compressed(row.orders + row.count, ordered(bit_cast<Ints>(s[v] + 0.f)), bits);  // -0 to 0
      store_compressed(row.columns + row.count, lane_numbers() + static_cast<int32_t>(first + j + v * kLanes),
                       bits);
      row.count += __builtin_popcount(bits);
    }
    if (row.count > limit) {
      row.shrink(k, slack);
      least = splat(row.least);
    }
  }
}

struct Sequence {
  int32_t *orders, *columns;
};

// Descending, equal ones as they come. Each counts who goes before it. orders[count..] up to a whole vector
// is kNoOrder.
static inline void sort_by_counting(Sequence from, int64_t count, Sequence to) {
  for (int64_t i = 0; i < count; ++i) {
    Ints before = {};
    const Ints own = splat(from.orders[i]), place = splat(static_cast<int32_t>(i));
    for (int64_t j = 0; j < count; j += kLanes) {
      const Ints others = lane_numbers() + static_cast<int32_t>(j);
      before -= load(from.orders + j) > own + (others < place);
    }
    const int64_t rank = total(before);
    to.orders[rank] = from.orders[i];
    to.columns[rank] = from.columns[i];
  }
}

// The same by distribution over bytes, from the lowest up: an even number of times, so that `row` holds the
// result.
static inline void sort_by_bytes(Sequence row, int64_t count, Sequence spare) {
  int32_t places[4][256] = {};
  const auto byte = [](int32_t order, int which) {
    return (static_cast<uint32_t>(order ^ 0x7fffffff) >> (8 * which)) & 0xff;
  };
  for (int64_t i = 0; i < count; ++i)
    for (int which = 0; which < 4; ++which) ++places[which][byte(row.orders[i], which)];
  for (int which = 0; which < 4; ++which) {
    int32_t start = 0;
    for (int32_t& place : places[which]) {
      const int32_t here = place;
      place = start;
      start += here;
    }
    const Sequence from = which % 2 ? spare : row, to = which % 2 ? row : spare;
    for (int64_t i = 0; i < count; ++i) {
      const int32_t place = places[which][byte(from.orders[i], which)]++;
      to.orders[place] = from.orders[i];
      to.columns[place] = from.columns[i];
    }
  }
}

// Everything that a thread needs to know, so that the phases below can be functions.
struct TopKRun {
  const TopKArgs& a;
  const bool normalize, euclidean;
  const bool few;  // queries: packing the gallery would take longer than using it
  const int64_t blocks, padded_keys, slack, limit, capacity;
  int threads;
  int64_t height, panels;  // rows of a panel
  int64_t workspace_floats;
  float *transposed, *bias, *centre;  // of all threads
  float *scores, *queries, *q_norm, *factors, *centred;
  int32_t *orders, *columns;
  Sequence spare;
  Candidates* candidates;
  Scratch scratch;

  TopKRun(const TopKArgs& args, int thread)
      : a(args),
        normalize(a.similarity == Similarity::kCosine),
        euclidean(a.similarity == Similarity::kEuclidean),
        few(a.rows <= kFew),
        blocks(ceil_div(a.keys, kBlockCols)),
        padded_keys(round_up(a.keys, kTileCols)),
        slack(a.k / 4),
        limit(smaller(a.keys, 2 * a.k + kSpareCandidates)),
        capacity(round_up(limit + kFilterStep + kLanes, Workspace::kLine)),
        threads(useful_threads(double(a.rows) * a.keys * a.depth, a.threads)) {
    const int64_t most = most_rows();
    panels = round_up(ceil_div(a.rows > 0 ? a.rows : 1, most), threads);
    height = ceil_div(a.rows > 0 ? a.rows : 1, panels);
    Workspace workspace(a.workspace);
    transposed = workspace.take(few ? 0 : padded_keys * a.depth);
    bias = workspace.take(euclidean ? padded_keys + kFilterStep : 0);
    centre = workspace.take(euclidean ? a.depth : 0);
    const auto own = [&](int64_t floats) {
      const int64_t each = round_up(floats, Workspace::kLine);
      float* all = workspace.take(each * threads);
      return all ? all + each * thread : nullptr;
    };
    const auto own_ints = [&](int64_t ints) { return reinterpret_cast<int32_t*>(own(ints)); };
    scores = own(height * kBlockStride + kFilterStep);
    queries = own(height * a.depth);
    q_norm = own(height);
    factors = own(height);
    centred = own(euclidean ? (height > kTileCols ? height : kTileCols) * a.depth : 0);
    orders = own_ints(height * capacity);
    columns = own_ints(height * capacity);
    spare = {own_ints(capacity), own_ints(capacity)};
    candidates =
        reinterpret_cast<Candidates*>(own(height * static_cast<int64_t>(sizeof(Candidates) / sizeof(float))));
    scratch = workspace.scratch(a.depth, threads);
    workspace_floats = workspace.total();
  }

  static constexpr int64_t kFew = 20;
  static constexpr int64_t kSpareCandidates = 32;
  static constexpr int64_t kCount = 8 * kLanes;  // as many are sorted faster by counting

  // Many rows share what is read of the gallery, which matters where a key is long; few leave a panel's
  // scores and candidates in the second-level cache.
  int64_t most_rows() const {
    constexpr int64_t kPanelFloats = 320 << 10;
    const int64_t fit = kPanelFloats / (a.depth + kBlockStride + 2 * capacity) / kTileRows * kTileRows;
    return fit < 2 * kTileRows ? 2 * kTileRows : smaller(fit, a.depth < 256 ? 96 : 192);
  }

  // About the centre; returns the square of the norm.
  float centre_row(const float* row, float* out) const {
    for (int64_t d = 0; d < a.depth; ++d) out[d] = row[d] - centre[d];
    return dot(out, out, a.depth);
  }

  // -|k|^2 / 2, NaN where it is not finite
  static float bias_of(float norm) { return norm - norm - 0.5f * norm; }

  void pack_keys(int thread, int team) const {
    const Share tiles = share_of(padded_keys / kTileCols, thread, team, 1);
    for (int64_t tile = tiles.first; tile < tiles.last; ++tile) {
      const int64_t first = tile * kTileCols, present = smaller(kTileCols, a.keys - first);
      const float* rows = a.gallery + first * a.depth;
      float factor[kTileCols];
      if (normalize)
        for (int64_t j = 0; j < present; ++j) factor[j] = inverse_norm(rows + j * a.depth, a.depth);
      if (euclidean) {
        for (int64_t j = 0; j < present; ++j)
          bias[first + j] = bias_of(centre_row(rows + j * a.depth, centred + j * a.depth));
        rows = centred;
      }
      pack_columns<Float32>(rows, present, a.depth, normalize ? factor : nullptr,
                            transposed + first * a.depth, nullptr, nullptr, 0, 1, scratch);
    }
  }

  void pack_queries(int64_t top, int64_t count) const {
    const float* rows = a.queries + top * a.depth;
    for (int64_t i = 0; i < count; ++i) {
      candidates[i] = {orders + i * capacity, columns + i * capacity};
      factors[i] = normalize ? inverse_norm(rows + i * a.depth, a.depth) : 1.f;
      if (!euclidean) continue;
      q_norm[i] = centre_row(rows + i * a.depth, centred + i * a.depth);
      factors[i] += q_norm[i] - q_norm[i];  // NaN where it is not finite
    }
    if (euclidean) rows = centred;
    if (few)
      for (int64_t i = 0; i < count; ++i)
        scale_row(queries + i * a.depth, rows + i * a.depth, a.depth, factors[i]);
    else
      pack_rows<Float32>(rows, count, a.depth, factors, queries, scratch);
  }

  // One column of scores, of few queries.
  void score_key(int64_t j, int64_t count, float* out) const {
    const float* key = a.gallery + j * a.depth;
    float added = 0.f;
    const float factor = normalize ? inverse_norm(key, a.depth) : 1.f;
    if (euclidean) {
      added = bias_of(centre_row(key, centred));
      key = centred;
    }
    for (int64_t i = 0; i < count; ++i)
      out[i * kBlockStride] = dot(queries + i * a.depth, key, a.depth) * factor + added;
  }

  void take(int64_t i, const float* x, int64_t first, int64_t last, int64_t start) const {
    x += first - start;
    if (euclidean && !few)
      filter<true>(x, bias + first, last - first, first, a.k, slack, limit, candidates[i]);
    else
      filter<false>(x, nullptr, last - first, first, a.k, slack, limit, candidates[i]);
  }

  // Scores of a block of columns, and their filter while they are in cache.
  void search(int64_t top, int64_t count) const {
    const Panel panel{scores, height};
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t start = block * kBlockCols, last = smaller(start + kBlockCols, a.keys);
      if (few)
        for (int64_t j = start; j < last; ++j) score_key(j, count, scores + (j - start));
      else
        score_block<Float32>(panel, 0, 0, count, queries, a.depth, transposed + start * a.depth, 0,
                             round_up(last - start, kTileCols));
      for (int64_t i = 0; i < count; ++i) {
        const float* x = panel.at(0, i);
        const int64_t excluded = a.excluded ? a.excluded[top + i] : -1;
        if (excluded < start || excluded >= last) {
          take(i, x, start, last, start);
        } else {
          take(i, x, start, excluded, start);
          take(i, x, excluded + 1, last, start);
        }
      }
    }
  }

  void finish(int64_t top, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      Candidates& row = candidates[i];
      if (row.count > a.k) row.shrink(a.k, 0);
      store(row.orders + row.count, splat(kNoOrder));
      Sequence sorted{row.orders, row.columns};
      if (row.count <= kCount) {
        sort_by_counting(sorted, row.count, spare);
        sorted = spare;
      } else {
        sort_by_bytes(sorted, row.count, spare);
      }
      float* const values = a.values + (top + i) * a.k;
      int64_t* const indices = a.indices + (top + i) * a.k;
      for (int64_t j = 0; j < row.count; ++j) {
        const float score = bit_cast<float>(ordered(sorted.orders[j]));
        const float distance = q_norm[i] - 2.f * score;
        values[j] = !euclidean ? score : distance > 0.f ? -distance : 0.f;
        indices[j] = sorted.columns[j];
      }
      for (int64_t j = row.count; j < a.k; ++j) {
        values[j] = -__builtin_inff();
        indices[j] = -1;
      }
    }
  }
};

static void top_k_panels(const TopKArgs& a) {
  const TopKRun all(a, 0);
  prefer_huge_pages(a.workspace, all.workspace_floats * 4);
  if (all.euclidean)
    find_centre([&](int64_t i) { return a.gallery + i * a.depth; }, a.keys, a.depth, all.centre);
#pragma omp parallel num_threads(all.threads)
  {
    const int thread = omp_get_thread_num();
    const TopKRun run(a, thread);
    if (!run.few) run.pack_keys(thread, omp_get_num_threads());
#pragma omp barrier
#pragma omp for schedule(dynamic, 1)
    for (int64_t panel = 0; panel < all.panels; ++panel) {
      const int64_t top = panel * all.height, count = smaller(all.height, a.rows - top);
      if (count <= 0) continue;
      run.pack_queries(top, count);
      run.search(top, count);
      run.finish(top, count);
    }
  }
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
