// Softmax focal loss, tile by tile: some positions, all of their classes, kept in cache between the passes.
//
// With m the largest logit of a position, e_c = exp(z_c - m) and `rest` the sum of all e but one that is 1,
// log p_c = (z_c - m) - log(1 + rest) and 1 - p_c = (rest + (1 - e_c)) / (1 + rest): neither cancels, however
// sure the softmax is.
#pragma once

#include <omp.h>

#include "cpu/huge_pages.h"
#include "cpu/kernels.h"
#include "cpu/sigmoid_focal.h"
#include "cpu/simd.h"

namespace thawkit {
namespace THAWKIT_ISA {

constexpr int64_t kMostPositions = 128;

// How the positions are cut into tiles. Many classes of adjacent logits stand in rows, a vector holding
// classes; otherwise classes stand in rows and a vector holds positions.
struct Tiles {
  bool by_class;      // a vector holds classes
  bool adjacent;      // or positions that are adjacent in memory, of one n
  int64_t positions;  // of a tile, at most
  int64_t stride;     // of its rows
  int64_t count;      // tiles
  int64_t of_each;    // tiles of one n, where adjacent
  int64_t size;       // floats of one copy of a tile
  int64_t floats;     // of a thread's workspace

  static Tiles of(const SoftmaxFocalArgs& a) {
    Tiles t;
    const int64_t all = a.n * a.inner;
    t.by_class = a.inner == 1 && a.classes >= 2 * kLanes;
    t.adjacent = a.inner >= kLanes;
    t.of_each = 0;
    if (t.by_class) {
      t.positions = bounded(4096 / a.classes, 1, kLanes);
      t.stride = (a.classes + kLanes - 1) / kLanes * kLanes;
      t.count = (all + t.positions - 1) / t.positions;
      t.size = t.positions * t.stride;
    } else {
      t.positions = bounded(8192 / a.classes, kLanes, kMostPositions) / kLanes * kLanes;
      t.stride = t.positions;
      t.of_each = t.adjacent ? (a.inner + t.positions - 1) / t.positions : 0;
      t.count = t.adjacent ? a.n * t.of_each : (all + t.positions - 1) / t.positions;
      t.size = a.classes * t.stride;
    }
    const bool dense = a.probability || a.smoothing != 0.f;
    t.floats = t.size * (dense ? 3 : 1);
    return t;
  }

 private:
  static int64_t bounded(int64_t x, int64_t least, int64_t most) {
    return x < least ? least : x > most ? most : x;
  }
};

// f = -(1 - p)^gamma log p and df / d log p, of log p, p and q = 1 - p.
template <FocalPower Power>
FocalTerm<Floats> softmax_focal_term(Floats log_p, Floats p, Floats q, float gamma) {
  if constexpr (Power == FocalPower::kZero) {
    return {-log_p, splat(-1.f)};
  } else if constexpr (Power == FocalPower::kOne) {
    return {-q * log_p, log_p * p - q};
  } else if constexpr (Power == FocalPower::kTwo) {
    const Floats squared = q * q;
    return {-squared * log_p, 2.f * q * (log_p * p) - squared};
  } else {
    const Floats power = exp_negative(gamma * log_unit(q));
    return {-power * log_p, power * (gamma * select(q > splat(0.f), log_p * p / q, splat(0.f)) - 1.f)};
  }
}

template <FocalPower Power, class T>
class SoftmaxTile {
 public:
  SoftmaxTile(const SoftmaxFocalArgs& a, const Tiles& tiles, float* workspace)
      : a(a), tiles(tiles), z(workspace), e(dense() ? z + tiles.size : z), shares(e + tiles.size) {}

  double run(int64_t tile) {
    place(tile);
    if (tiles.by_class)
      stage_rows();
    else
      stage_positions();
    exponentials();
    const double total = of_targets();
    const double others = dense() ? of_all_classes() : 0;
    if (a.loss) write_losses();
    if (a.grad) write_gradients();
    return total + others;
  }

 private:
  const SoftmaxFocalArgs& a;
  const Tiles& tiles;
  // [positions, stride] or [classes, stride]: logits, their exponentials (in the place of the logits where
  // these are not needed again), the targets and then what the loss of each class gives as slope of its log p
  float *z, *e, *shares;
  int64_t first, positions,
      padded;  // the tile's first position of all [n, inner], how many, and in whole vectors
  // of each position
  alignas(64) float largest[kMostPositions], rest[kMostPositions], log_sum[kMostPositions],
      inverse[kMostPositions], own[kMostPositions], alpha[kMostPositions], loss[kMostPositions],
      slope[kMostPositions], at_target[kMostPositions], upstream[kMostPositions];
  alignas(64) int32_t target[kMostPositions];  // -1: none
  alignas(64) int32_t counts[kMostPositions];  // -1, or 0 for positions that cost nothing
  bool ignoring;                               // whether there are any of these

  bool plain() const { return a.scale == 1.f && !a.offset; }
  bool dense() const { return a.probability || a.smoothing != 0.f; }

  void place(int64_t tile) {
    int64_t end = a.n * a.inner;
    if (!tiles.by_class && tiles.adjacent) {
      first = tile / tiles.of_each * a.inner + tile % tiles.of_each * tiles.positions;
      end = (tile / tiles.of_each + 1) * a.inner;
    } else {
      first = tile * tiles.positions;
    }
    positions = end - first < tiles.positions ? end - first : tiles.positions;
    padded = (positions + kLanes - 1) / kLanes * kLanes;
    for (int64_t w = 0; w < padded; w += kLanes) {
      store(counts + w, (lane_numbers() < static_cast<int32_t>(positions - w)) & -1);
      store(target + w, splat(-1));
      store(alpha + w, splat(1.f - a.smoothing));
      store(upstream + w, splat(a.factor * a.scale));
      if (a.upstream) store(upstream + w, load_up_to(a.upstream + first + w, positions - w) * a.scale);
      store(largest + w, splat(0.f));
    }
    ignoring = false;
    if (a.target) find_targets();
  }

  void find_targets() {
    const int64_t* const from = a.target + first;
    for (int64_t w = 0; w < positions; ++w) {
      const int64_t y = from[w];
      const bool counted = y >= 0 && y < a.classes && y != a.ignored;
      if (!counted && y != a.ignored) __atomic_store_n(a.strange, y, __ATOMIC_RELAXED);
      target[w] = counted ? static_cast<int32_t>(y) : -1;
      if (counted) continue;
      counts[w] = 0;
      upstream[w] = 0.f;
      ignoring = true;
    }
    if (a.alpha)
      for (int64_t w = 0; w < positions; ++w) alpha[w] *= a.alpha[target[w] >= 0 ? target[w] : 0];
  }

  // Where the logit of class 0 at a position stands in memory; the next class is a.inner further.
  int64_t address(int64_t position) const {
    return position / a.inner * a.classes * a.inner + position % a.inner;
  }

  float& entry(float* tile, int64_t c, int64_t w) const {
    return tiles.by_class ? tile[w * tiles.stride + c] : tile[c * tiles.stride + w];
  }

  template <class S>
  static Floats load_up_to(const S* p, int64_t count) {
    return count >= kLanes ? load(p) : load_part(p, count);
  }
  template <class S>
  static void store_up_to(S* p, Floats v, int64_t count) {
    if (count >= kLanes)
      store_gradient(p, v);
    else
      store_part(p, v, count);
  }

  static Floats below(int64_t count, Floats yes, Floats no) {
    return select(lane_numbers() < static_cast<int32_t>(count < kLanes ? count : kLanes), yes, no);
  }

  // ---- logits into z, and the largest of each position

  void stage_rows() {
    const Floats lowest = splat(-__builtin_inff());
    Floats most[kLanes];
    for (int64_t w = 0; w < kLanes; ++w) most[w] = lowest;
    for (int64_t w = 0; w < positions; ++w) {
      if (!counts[w]) continue;
      const T* const x = static_cast<const T*>(a.x) + (first + w) * a.classes;
      float* const to = z + w * tiles.stride;
      Floats m = lowest;
      int64_t c = 0;
      for (; c + kLanes <= a.classes; c += kLanes) {
        Floats v = load(x + c);
        if (!plain()) v = shifted(v, c, kLanes);
        store(to + c, v);
        m = max(m, v);
      }
      if (c < a.classes) {
        Floats v = load_part(x + c, a.classes - c);
        if (!plain()) v = shifted(v, c, a.classes - c);
        v = below(a.classes - c, v, lowest);
        store(to + c, v);
        m = max(m, v);
      }
      if (a.margin && target[w] >= 0) {
        to[target[w]] -= a.margin[target[w]];
        m = lowest;
        for (c = 0; c < tiles.stride; c += kLanes) m = max(m, load(to + c));
      }
      most[w] = m;
    }
    store(largest, across(most, [](Floats x, Floats y) { return max(x, y); }));
  }

  Floats shifted(Floats v, int64_t c, int64_t count) const {
    v *= a.scale;
    return a.offset ? v + load_up_to(a.offset + c, count) : v;
  }

  // One number a row, of a vector a row.
  template <class Join>
  static Floats across(Floats (&rows)[kLanes], Join join) {
    transpose(rows);
    for (int i = 1; i < kLanes; ++i) rows[0] = join(rows[0], rows[i]);
    return rows[0];
  }

  // A tile of classes in rows.
  template <class S>
  void gather(const S* from, float* tile) const {
    if (a.inner == 1) return gather_rows(from, tile);
    for (int64_t c = 0; c < a.classes; ++c) {
      float* const row = tile + c * tiles.stride;
      if (tiles.adjacent) {
        const S* const p = from + address(first) + c * a.inner;
        for (int64_t w = 0; w < padded; w += kLanes) store(row + w, load_up_to(p + w, positions - w));
        continue;
      }
      for (int64_t w = 0; w < padded; w += kLanes) {
        S lanes[kLanes] = {};
        for (int64_t l = 0; l < kLanes && w + l < positions; ++l)
          lanes[l] = from[address(first + w + l) + c * a.inner];
        store(row + w, load(lanes));
      }
    }
  }

  // The same where each position's few classes are adjacent: across the diagonals of squares.
  template <class S>
  void gather_rows(const S* from, float* tile) const {
    const S* const p = from + first * a.classes;
    const int64_t count = positions * a.classes;
    for (int64_t w = 0; w < padded; w += kLanes)
      for (int64_t c = 0; c < a.classes; c += kLanes) {
        Floats square[kLanes];
        for (int64_t l = 0; l < kLanes; ++l) {
          const int64_t at = (w + l) * a.classes + c;
          square[l] = at < count ? load_up_to(p + at, count - at) : Floats{};
        }
        transpose(square);
        for (int64_t i = 0; i < kLanes && c + i < a.classes; ++i)
          store(tile + (c + i) * tiles.stride + w, square[i]);
      }
  }

  void scatter_rows(const float* tile, T* to) const {
    T* const p = to + first * a.classes;
    const int64_t count = positions * a.classes;
    for (int64_t w = 0; w < padded; w += kLanes) {
      Floats squares[2][kLanes];
      for (int64_t half = 0; half * kLanes < a.classes; ++half) {
        for (int64_t i = 0; i < kLanes; ++i) {
          const int64_t c = half * kLanes + i;
          squares[half][i] = c < a.classes ? load(tile + c * tiles.stride + w) : Floats{};
        }
        transpose(squares[half]);
      }
      // Whole vectors, in order: what one writes past its position's classes, the next ones overwrite.
      for (int64_t l = 0; l < kLanes && w + l < positions; ++l)
        for (int64_t half = 0; half * kLanes < a.classes; ++half) {
          const int64_t at = (w + l) * a.classes + half * kLanes;
          store_up_to(p + at, squares[half][l], count - at);
        }
    }
  }

  void stage_positions() {
    gather(static_cast<const T*>(a.x), z);
    for (int64_t w = 0; w < padded; w += kLanes) store(largest + w, splat(-__builtin_inff()));
    for (int64_t c = 0; c < a.classes; ++c) {
      float* const row = z + c * tiles.stride;
      const float offset = a.offset ? a.offset[c] : 0.f;
      if (!plain())
        for (int64_t w = 0; w < padded; w += kLanes) store(row + w, load(row + w) * a.scale + offset);
      if (ignoring)
        for (int64_t w = 0; w < padded; w += kLanes)
          store(row + w, select(load(counts + w), load(row + w), splat(0.f)));
      for (int64_t w = 0; w < padded; w += kLanes) store(largest + w, max(load(largest + w), load(row + w)));
    }
    if (!a.margin) return;
    for (int64_t w = 0; w < positions; ++w)
      if (target[w] >= 0) entry(z, target[w], w) -= a.margin[target[w]];
    for (int64_t w = 0; w < padded; w += kLanes) {
      Floats m = splat(-__builtin_inff());
      for (int64_t c = 0; c < a.classes; ++c) m = max(m, load(z + c * tiles.stride + w));
      store(largest + w, m);
    }
  }

  // ---- exponentials, and their sum but for one that is 1

  // Adds one exponential to the sum: those of the largest logit are counted, not added.
  static Floats exponential(Floats difference, Floats& sum, Ints& largest) {
    const Floats value = exp_negative(difference);
    const Ints is_largest = difference == splat(0.f);
    sum += select(is_largest, splat(0.f), value);
    largest -= is_largest;
    return value;
  }

  void exponentials() {
    for (int64_t w = 0; w < padded; ++w) own[w] = target[w] >= 0 ? entry(z, target[w], w) : 0.f;
    const bool keep = a.grad || dense();
    if (tiles.by_class) {
      Floats sums[kLanes] = {}, ties[kLanes] = {};
      for (int64_t w = 0; w < positions; ++w) {
        if (!counts[w]) continue;
        const float* from = z + w * tiles.stride;
        float* const to = e + w * tiles.stride;
        const Floats m = splat(largest[w]);
        Floats sum = {};
        Ints tie = {};
        for (int64_t c = 0; c < tiles.stride; c += kLanes) {
          const Floats value = exponential(load(from + c) - m, sum, tie);
          if (keep) store(to + c, value);
        }
        sums[w] = sum;
        ties[w] = __builtin_convertvector(tie, Floats);
      }
      const auto add = [](Floats x, Floats y) { return x + y; };
      store(rest, across(sums, add) + (across(ties, add) - 1.f));
      return;
    }
    for (int64_t w = 0; w < padded; w += kLanes) {
      const Floats m = load(largest + w);
      Floats sum = {};
      Ints tie = {};
      for (int64_t c = 0; c < a.classes; ++c) {
        const Floats value = exponential(load(z + c * tiles.stride + w) - m, sum, tie);
        if (keep) store(e + c * tiles.stride + w, value);
      }
      store(rest + w, sum + (__builtin_convertvector(tie, Floats) - 1.f));
    }
  }

  // ---- the losses

  // The loss of the target's class, and what it gives as slope.
  double of_targets() {
    Floats total = {};
    for (int64_t w = 0; w < padded; w += kLanes) {
      const Floats others = load(rest + w), logarithm = log1p_positive(others), ratio = 1.f / (1.f + others);
      store(log_sum + w, logarithm);
      store(inverse + w, ratio);
      if (!a.target) {
        store(loss + w, splat(0.f));
        store(slope + w, splat(0.f));
        continue;
      }
      const Floats difference = load(own + w) - load(largest + w), at = exp_negative(difference);
      const Floats q = (others + (1.f - at)) * ratio, weight = load(alpha + w);
      auto term = softmax_focal_term<Power>(difference - logarithm, at * ratio, q, a.gamma);
      const Ints count = load(counts + w);
      term.loss = select(count, term.loss * weight, splat(0.f));
      const Floats by = term.gradient * weight * load(upstream + w);
      total += term.loss;
      store(loss + w, term.loss);
      store(slope + w, by);
      store(at_target + w, by * q);
    }
    return double(sum(total));
  }

  // The losses of all classes, by the targets that smoothing or probabilities give them. The slopes' sums are
  // added to those of the targets.
  double of_all_classes() {
    const float spread = a.smoothing / static_cast<float>(a.classes);
    const bool given = a.probability;
    if (given) stage_probabilities(spread);
    double total = 0;
    if (tiles.by_class) {
      for (int64_t w = 0; w < positions; ++w) {
        if (!counts[w]) continue;
        const int64_t row = w * tiles.stride;
        const Floats m = splat(largest[w]), logarithm = splat(log_sum[w]), others = splat(rest[w]);
        const Floats ratio = splat(inverse[w]), by = splat(upstream[w]);
        Floats sum_loss = {}, sum_slope = {};
        for (int64_t c = 0; c < a.classes; c += kLanes) {
          Floats weight = given ? load(shares + row + c) : splat(spread);
          if (a.alpha) weight *= load_up_to(a.alpha + c, a.classes - c);
          const auto term = class_term(row + c, weight, m, logarithm, others, ratio, by);
          sum_loss += below(a.classes - c, term.loss, splat(0.f));
          sum_slope += below(a.classes - c, load(shares + row + c), splat(0.f));
        }
        const float l = sum(sum_loss);
        loss[w] += l;
        total += double(l);
        if (target[w] >= 0) shares[row + target[w]] += slope[w];
        slope[w] += sum(sum_slope);
      }
      return total;
    }
    for (int64_t w = 0; w < padded; w += kLanes) {
      const Floats m = load(largest + w), logarithm = load(log_sum + w), others = load(rest + w);
      const Floats ratio = load(inverse + w), by = load(upstream + w);
      Floats sum_loss = {}, sum_slope = {};
      for (int64_t c = 0; c < a.classes; ++c) {
        const int64_t at = c * tiles.stride + w;
        Floats weight = given ? load(shares + at) : splat(spread);
        if (a.alpha) weight *= a.alpha[c];
        sum_loss += class_term(at, weight, m, logarithm, others, ratio, by).loss;
        sum_slope += load(shares + at);
      }
      sum_loss = select(load(counts + w), sum_loss, splat(0.f));
      total += double(sum(sum_loss));
      store(loss + w, load(loss + w) + sum_loss);
      for (int64_t i = w; i < w + kLanes && i < positions; ++i)
        if (target[i] >= 0) entry(shares, target[i], i) += slope[i];
      store(slope + w, load(slope + w) + sum_slope);
    }
    return total;
  }

  FocalTerm<Floats> class_term(int64_t at, Floats weight, Floats m, Floats logarithm, Floats others,
                               Floats ratio, Floats by) {
    const Floats value = load(e + at);
    auto term = softmax_focal_term<Power>(load(z + at) - m - logarithm, value * ratio,
                                          (others + (1.f - value)) * ratio, a.gamma);
    term.loss *= weight;
    store(shares + at, term.gradient * weight * by);
    return term;
  }

  void stage_probabilities(float spread) {
    switch (a.probability_dtype) {
      case Dtype::kFloat32:
        return stage_probabilities_of<float>(spread);
      case Dtype::kBFloat16:
        return stage_probabilities_of<bfloat16>(spread);
      case Dtype::kFloat16:
        return stage_probabilities_of<float16>(spread);
    }
  }

  template <class S>
  void stage_probabilities_of(float spread) {
    const S* const from = static_cast<const S*>(a.probability);
    const float keep = 1.f - a.smoothing;
    if (tiles.by_class) {
      for (int64_t w = 0; w < positions; ++w)
        for (int64_t c = 0; c < a.classes; c += kLanes)
          store(shares + w * tiles.stride + c,
                load_up_to(from + (first + w) * a.classes + c, a.classes - c) * keep + spread);
      return;
    }
    gather(from, shares);
    for (int64_t c = 0; c < a.classes; ++c) {
      float* const row = shares + c * tiles.stride;
      for (int64_t w = 0; w < padded; w += kLanes) store(row + w, load(row + w) * keep + spread);
    }
  }

  // ---- what leaves

  void write_losses() {
    for (int64_t w = 0; w < positions; ++w) a.loss[first + w] = loss[w];
  }

  // d loss / dz_c = slope_c - p_c sum of slopes, as slope_c (1 - p_c) - p_c (sum - slope_c).
  Floats gradient(int64_t at, Floats others, Floats ratio, Floats sum_slope) const {
    const Floats value = load(e + at);
    if (!dense()) return value * (-ratio * sum_slope);
    const Floats share = load(shares + at);
    return share * ((others + (1.f - value)) * ratio) - value * ratio * (sum_slope - share);
  }

  void write_gradients() {
    T* const grad = static_cast<T*>(a.grad);
    if (tiles.by_class) {
      for (int64_t w = 0; w < positions; ++w) {
        T* const to = grad + (first + w) * a.classes;
        const int64_t row = w * tiles.stride;
        const Floats others = splat(rest[w]), ratio = splat(inverse[w]), sum_slope = splat(slope[w]);
        int64_t c = 0;
        if (!counts[w]) {
          memset(to, 0, static_cast<size_t>(a.classes) * sizeof(T));
          continue;
        }
        for (; c + kLanes <= a.classes; c += kLanes)
          store_gradient(to + c, gradient(row + c, others, ratio, sum_slope));
        if (c < a.classes) store_part(to + c, gradient(row + c, others, ratio, sum_slope), a.classes - c);
        if (!dense()) write_one(to + target[w], at_target[w]);
      }
      return;
    }
    for (int64_t c = 0; c < a.classes; ++c) {
      float* const row = e + c * tiles.stride;
      T* const to = grad + address(first) + c * a.inner;
      for (int64_t w = 0; w < padded; w += kLanes) {
        Floats value = gradient(c * tiles.stride + w, load(rest + w), load(inverse + w), load(slope + w));
        if (!dense()) value = select(load(target + w) == static_cast<int32_t>(c), load(at_target + w), value);
        if (tiles.adjacent)
          store_up_to(to + w, value, positions - w);
        else
          store(row + w, value);
      }
    }
    if (a.inner == 1)
      scatter_rows(e, grad);
    else if (!tiles.adjacent)
      scatter(e, grad);
  }

  void scatter(const float* tile, T* to) const {
    for (int64_t c = 0; c < a.classes; ++c)
      for (int64_t w = 0; w < padded; w += kLanes) {
        T lanes[kLanes];
        store(lanes, load(tile + c * tiles.stride + w));
        for (int64_t l = 0; l < kLanes && w + l < positions; ++l)
          to[address(first + w + l) + c * a.inner] = lanes[l];
      }
  }

  static void write_one(float* to, float value) { *to = value; }
  template <class S>
  static void write_one(S* to, float value) {
    store_part(to, splat(value), 1);
  }
};

template <FocalPower Power, class T>
void softmax_run(const SoftmaxFocalArgs& a) {
  const Tiles tiles = Tiles::of(a);
  double total = 0;
  const bool serial = a.n * a.classes * a.inner < kSerialBelow / 2;
#pragma omp parallel num_threads(serial ? 1 : a.threads) reduction(+ : total)
  {
    SoftmaxTile<Power, T> tile(a, tiles, a.workspace + omp_get_thread_num() * tiles.floats);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < tiles.count; ++i) total += tile.run(i);
  }
  if (a.total) *a.total = static_cast<float>(total * double(a.factor));
}

template <class T>
void softmax_by_power(const SoftmaxFocalArgs& a) {
  if (a.gamma == 2.f)
    softmax_run<FocalPower::kTwo, T>(a);
  else if (a.gamma == 1.f)
    softmax_run<FocalPower::kOne, T>(a);
  else if (a.gamma == 0.f)
    softmax_run<FocalPower::kZero, T>(a);
  else
    softmax_run<FocalPower::kAny, T>(a);
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
