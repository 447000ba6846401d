// Sigmoid focal loss, block by block.
#pragma once

#include <omp.h>

#include "cpu/huge_pages.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace thawkit {
namespace THAWKIT_ISA {

#include "common/focal.h"

constexpr int64_t kSerialBelow = 16384;

// A block in which only logits and targets differ, all targets are 0 or 1 and all logits finite: half of the
// instructions of the general one. Returns whether it was such a block; if not, what was written is void.
template <FocalPower Power, bool Gradient, bool Upstream, class T>
bool usual_block(const FocalArgs& a, int64_t first, int64_t count, double& total) {
  const T* const x = static_cast<const T*>(a.x) + first;
  const T* const t = static_cast<const T*>(a.t) + first;
  const T* const upstream = static_cast<const T*>(a.upstream) + (Upstream ? first : 0);
  T* const loss = a.loss ? static_cast<T*>(a.loss) + first : nullptr;
  T* const grad = static_cast<T*>(a.grad) + (Gradient ? first : 0);
  // The losses' sum is wanted times the factor too, and then one product serves both.
  const float factor = Gradient && !Upstream ? a.factor : 1.f;
  const Ints positive = bit_cast<Ints>(splat(a.positive * factor));
  const Ints negative = bit_cast<Ints>(splat(a.negative * factor)), change = positive ^ negative;
  Floats sums = {};
  Ints largest = {}, odd = {};
  // Two loops: as one the chain of operations is so long that too few elements are in flight to hide its
  // latency.
  alignas(64) float e[kFocalBlock];
  for (int64_t i = 0; i < count; i += kLanes) store(e + i, exp_finite(-abs(load(x + i))));
  for (int64_t i = 0; i < count; i += kLanes) {
    const Floats logit = load(x + i), size = abs(logit);
    const Ints target = bit_cast<Ints>(load(t + i));
    const Ints one = (target << 2) >> 31;  // by the bit that 1 has and 0 has not
    odd |= target ^ (one & 0x3f800000);
    largest = bit_cast<Ints>(size) > largest ? bit_cast<Ints>(size) : largest;
    const FocalTerm<Floats> term =
        sigmoid_focal_side<Power, Gradient>(flip_sign(logit, one & INT32_MIN), sigmoid_parts(load(e + i)),
                                            bit_cast<Floats>(negative ^ (one & change)), a.gamma);
    sums += term.loss;
    if (loss) store(loss + i, term.loss);
    if constexpr (Upstream)
      store_gradient(grad + i, flip_sign(term.gradient, one & INT32_MIN) * load(upstream + i));
    else if constexpr (Gradient)
      store_gradient(grad + i, flip_sign(term.gradient, one & INT32_MIN));
  }
  total = double(sum(sums));
  return all((odd == 0) & (largest < 0x7f800000));
}

// A block as float32, with what its elements are weighted by.
struct FocalBlock {
  alignas(64) float x[kFocalBlock], t[kFocalBlock], positive[kFocalBlock], negative[kFocalBlock],
      pos_weight[kFocalBlock];
  alignas(64) int32_t counts[kFocalBlock];  // -1, or 0 for elements that cost nothing

  template <class T>
  void fill(const FocalArgs& a, int64_t first, int64_t count) {
    const int64_t whole = (count + kLanes - 1) / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) {
      store(positive + i, splat(a.positive));
      store(negative + i, splat(a.negative));
      store(pos_weight + i, splat(1.f));
      store(counts + i, splat(i < count ? -1 : 0));
    }
    for (int64_t i = count; i < whole; ++i) counts[i] = 0;
    if (a.classes) fill_classes(a, first, count);
    if (a.row_weight) fill_rows(a, first, count);
    copy(x, static_cast<const T*>(a.x) + first, count);
    if (a.indices) {
      fill_indices(a, first, count);
    } else {
      copy(t, static_cast<const T*>(a.t) + first, count);
      for (int64_t i = 0; i < count; ++i) counts[i] &= t[i] == a.ignored ? 0 : -1;
    }
    if (a.mask)
      for (int64_t i = 0; i < count; ++i) counts[i] &= a.mask[first + i] ? -1 : 0;
    // An element without a loss takes part as a harmless one: NaN times 0 would be NaN.
    for (int64_t i = 0; i < whole; i += kLanes) {
      store(x + i, select(load(counts + i), load(x + i), splat(0.f)));
      store(t + i, select(load(counts + i), load(t + i), splat(0.f)));
    }
  }

 private:
  template <class T>
  static void copy(float* to, const T* from, int64_t count) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
    if (i < count) store(to + i, load_part(from + i, count - i));
  }

  void fill_classes(const FocalArgs& a, int64_t first, int64_t count) {
    const int64_t length = a.period + kFocalBlock;
    const float* const at = a.classes + first % a.period;
    const size_t bytes = static_cast<size_t>(count) * sizeof(float);
    memcpy(positive, at, bytes);
    memcpy(negative, at + length, bytes);
    memcpy(pos_weight, at + 2 * length, bytes);
  }

  // `act` on each row's number and its part [from, to) of the block.
  template <class Act>
  static void each_row(const FocalArgs& a, int64_t first, int64_t count, Act act) {
    int64_t row = first / a.row;
    for (int64_t from = 0; from < count; ++row) {
      const int64_t end = (row + 1) * a.row - first, to = end < count ? end : count;
      act(row, from, to);
      from = to;
    }
  }

  void fill_rows(const FocalArgs& a, int64_t first, int64_t count) {
    each_row(a, first, count, [&](int64_t row, int64_t from, int64_t to) {
      const float weight = a.row_weight[row];
      for (int64_t i = from; i < to; ++i) {
        positive[i] *= weight;
        negative[i] *= weight;
      }
    });
  }

  void fill_indices(const FocalArgs& a, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) t[i] = 0.f;
    each_row(a, first, count, [&](int64_t row, int64_t from, int64_t to) {
      const int64_t target = static_cast<const int64_t*>(a.t)[row];
      if (static_cast<float>(target) == a.ignored)
        for (int64_t i = from; i < to; ++i) counts[i] = 0;
      const int64_t place = row * a.row + target - first;
      if (target >= 0 && target < a.row && place >= from && place < to) t[place] = 1.f;
    });
  }
};

template <FocalPower Power, bool Gradient>
FocalTerm<Floats> term_of(const FocalArgs& a, const FocalBlock& block, int64_t i) {
  const Floats x = load(block.x + i), t = load(block.t + i);
  const FocalWeights<Floats> w{load(block.positive + i), load(block.negative + i),
                               load(block.pos_weight + i)};
  const SigmoidParts<Floats> parts = sigmoid_parts(exp_negative(-abs(x)));
  FocalTerm<Floats> term;
  if (a.separate) {
    const auto one = sigmoid_focal_side<Power, Gradient>(-x, parts, w.positive * w.pos_weight * t, a.gamma);
    const auto nil = sigmoid_focal_side<Power, Gradient>(x, parts, w.negative * (1.f - t), a.gamma);
    term.loss = one.loss + nil.loss;
    if constexpr (Gradient) term.gradient = nil.gradient - one.gradient;
  } else {
    const Floats smoothed = t * (1.f - a.smoothing) + 0.5f * a.smoothing;
    term = sigmoid_focal_term<Power, Gradient>(x, t, smoothed, parts, w, a.gamma);
  }
  return term;
}

template <FocalPower Power, bool Gradient, bool Upstream, class T>
double general_block(const FocalArgs& a, int64_t first, int64_t count) {
  FocalBlock block;
  block.fill<T>(a, first, count);
  Floats sums = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t at = first + i, rest = count - i;
    const auto write = [&](void* to, Floats v) {
      T* const p = static_cast<T*>(to) + at;
      if (rest >= kLanes)
        store(p, v);
      else
        store_part(p, v, rest);
    };
    FocalTerm<Floats> term = term_of<Power, Gradient>(a, block, i);
    const Ints counts = load(block.counts + i);
    term.loss = select(counts, term.loss, splat(0.f));
    sums += term.loss;
    if (a.loss) write(a.loss, term.loss);
    if constexpr (Gradient) {
      Floats upstream = splat(a.factor);
      if constexpr (Upstream) {
        const T* const p = static_cast<const T*>(a.upstream) + at;
        upstream = rest >= kLanes ? load(p) : load_part(p, rest);
      }
      write(a.grad, select(counts, term.gradient * upstream, splat(0.f)));
    }
  }
  return double(sum(sums)) * (Gradient && !Upstream ? double(a.factor) : 1.0);
}

template <FocalPower Power, bool Gradient, bool Upstream, class T>
void sigmoid_run(const FocalArgs& a) {
  const bool usual = !a.classes && !a.mask && !a.row_weight && !a.indices && a.ignored != a.ignored &&
                     a.smoothing == 0.f && !a.separate;
  const int64_t blocks = (a.n + kFocalBlock - 1) / kFocalBlock;
  double total = 0;
#pragma omp parallel for schedule(static) num_threads(a.n < kSerialBelow ? 1 : a.threads) reduction(+ : total)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = b * kFocalBlock;
    const int64_t count = a.n - first < kFocalBlock ? a.n - first : kFocalBlock;
    const int64_t whole = count - count % kLanes;
    double part = 0;
    if (usual && usual_block<Power, Gradient, Upstream, T>(a, first, whole, part)) {
      if (whole < count) part += general_block<Power, Gradient, Upstream, T>(a, first + whole, count - whole);
    } else {
      part = general_block<Power, Gradient, Upstream, T>(a, first, count);
    }
    total += part;
  }
  constexpr bool kScaled = Gradient && !Upstream;
  if (a.total) *a.total = static_cast<float>(kScaled ? total : total * double(a.factor));
}

template <FocalPower Power, class T>
void sigmoid_by_gradient(const FocalArgs& a) {
  if (a.grad && a.upstream)
    sigmoid_run<Power, true, true, T>(a);
  else if (a.grad)
    sigmoid_run<Power, true, false, T>(a);
  else
    sigmoid_run<Power, false, false, T>(a);
}

template <class T>
void sigmoid_by_power(const FocalArgs& a) {
  if (a.gamma == 2.f)
    sigmoid_by_gradient<FocalPower::kTwo, T>(a);
  else if (a.gamma == 1.f)
    sigmoid_by_gradient<FocalPower::kOne, T>(a);
  else if (a.gamma == 0.f)
    sigmoid_by_gradient<FocalPower::kZero, T>(a);
  else
    sigmoid_by_gradient<FocalPower::kAny, T>(a);
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
