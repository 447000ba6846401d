// Sigmoid focal loss: each logit and target read once, loss and gradient written once. Compiled once per
// instruction set.
#include <omp.h>

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace thawkit {
namespace THAWKIT_ISA {
namespace {

#include "common/focal.h"

// A block goes through the arithmetic in three short loops. As one chain of operations it is so long that too
// few elements are in flight to hide its latency: 1.8 ns an element instead of 1.2 on AVX2.
constexpr int64_t kBlock = 512;
constexpr int64_t kSerialBelow = 16384;

// The parts of a block's terms that know the logit only, then the terms. Sizes are multiples of a vector.
template <class T>
struct Block {
  const T *x, *t, *upstream;
  T *loss, *grad;
  int64_t count;
  alignas(64) float larger[kBlock], smaller[kBlock], softplus[kBlock];

  // A constructor, since aggregate initialisation would clear the arrays.
  Block(const T* x, const T* t, const T* upstream, T* loss, T* grad, int64_t count)
      : x(x), t(t), upstream(upstream), loss(loss), grad(grad), count(count) {}

  // Whether all targets are 0 or 1 and all logits finite.
  bool prepare() {
    float* const e = softplus;
    Ints hard = splat(-1);
    for (int64_t i = 0; i < count; i += kLanes) {
      const Floats size = abs(load(x + i)), target = load(t + i);
      hard &= ((target == splat(0.f)) | (target == splat(1.f))) & (size < splat(__builtin_inff()));
      store(e + i, exp_negative(-size));
    }
    for (int64_t i = 0; i < count; i += kLanes) {
      const auto parts = sigmoid_parts(load(e + i));
      store(larger + i, parts.larger);
      store(smaller + i, parts.smaller);
      store(softplus + i, parts.softplus);
    }
    return all(hard);
  }

  template <FocalPower Power, bool Gradient, bool Upstream, bool Hard>
  float terms(float alpha, float gamma, float factor) const {
    const float weight0 = alpha >= 0.f ? 1.f - alpha : 1.f, weight1 = alpha >= 0.f ? alpha : 1.f;
    Floats sums = {};
    for (int64_t i = 0; i < count; i += kLanes) {
      const Floats logit = load(x + i), target = load(t + i);
      const SigmoidParts<Floats> parts{load(larger + i), load(smaller + i), load(softplus + i)};
      FocalTerm<Floats> term;
      if constexpr (Hard)
        term = sigmoid_focal_hard_term<Power, Gradient>(logit, (target == splat(1.f)) & INT32_MIN, parts,
                                                        weight0, weight1, gamma);
      else
        term = sigmoid_focal_term<Power, Gradient>(logit, target, parts, alpha, gamma);
      sums += term.loss;
      if (loss) store(loss + i, term.loss);
      if constexpr (Upstream)
        store(grad + i, term.gradient * load(upstream + i));
      else if constexpr (Gradient)
        store(grad + i, term.gradient * factor);
    }
    return sum(sums);
  }

  template <FocalPower Power, bool Gradient, bool Upstream>
  float run(const FocalArgs& a) {
    return prepare() ? terms<Power, Gradient, Upstream, true>(a.alpha, a.gamma, a.factor)
                     : terms<Power, Gradient, Upstream, false>(a.alpha, a.gamma, a.factor);
  }
};

// The fewer elements than a vector at the end, padded with logits whose loss is 0.
template <FocalPower Power, bool Gradient, bool Upstream, class T>
float run_rest(const FocalArgs& a, int64_t first) {
  const size_t bytes = static_cast<size_t>(a.n - first) * sizeof(T);
  T x[kLanes], t[kLanes] = {}, upstream[kLanes] = {}, loss[kLanes], grad[kLanes];
  store(x, splat(-200.f));
  memcpy(x, static_cast<const T*>(a.x) + first, bytes);
  memcpy(t, static_cast<const T*>(a.t) + first, bytes);
  if (Upstream) memcpy(upstream, static_cast<const T*>(a.upstream) + first, bytes);
  Block<T> block(x, t, upstream, loss, grad, kLanes);
  const float total = block.template run<Power, Gradient, Upstream>(a);
  if (a.loss) memcpy(static_cast<T*>(a.loss) + first, loss, bytes);
  if (Gradient) memcpy(static_cast<T*>(a.grad) + first, grad, bytes);
  return total;
}

template <FocalPower Power, bool Gradient, bool Upstream, class T>
void run(const FocalArgs& a) {
  const T* const x = static_cast<const T*>(a.x);
  const T* const t = static_cast<const T*>(a.t);
  const T* const upstream = static_cast<const T*>(a.upstream);
  T* const loss = static_cast<T*>(a.loss);
  T* const grad = static_cast<T*>(a.grad);
  double total = 0;
  const int64_t whole = a.n - a.n % kLanes, blocks = (whole + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) num_threads(a.n < kSerialBelow ? 1 : a.threads) reduction(+ : total)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t i = b * kBlock;
    Block<T> block(x + i, t + i, Upstream ? upstream + i : nullptr, loss ? loss + i : nullptr,
                   Gradient ? grad + i : nullptr, whole - i < kBlock ? whole - i : kBlock);
    total += double(block.template run<Power, Gradient, Upstream>(a));
  }
  if (whole < a.n) total += double(run_rest<Power, Gradient, Upstream, T>(a, whole));
  if (a.total) *a.total = total;
}

template <FocalPower Power, class T>
void choose_gradient(const FocalArgs& a) {
  if (a.grad && a.upstream)
    run<Power, true, true, T>(a);
  else if (a.grad)
    run<Power, true, false, T>(a);
  else
    run<Power, false, false, T>(a);
}

template <class T>
void choose_power(const FocalArgs& a) {
  if (a.gamma == 2.f)
    choose_gradient<FocalPower::kTwo, T>(a);
  else if (a.gamma == 1.f)
    choose_gradient<FocalPower::kOne, T>(a);
  else if (a.gamma == 0.f)
    choose_gradient<FocalPower::kZero, T>(a);
  else
    choose_gradient<FocalPower::kAny, T>(a);
}

}  // namespace

void sigmoid_focal(const FocalArgs& a) {
  switch (a.dtype) {
    case Dtype::kFloat32:
      return choose_power<float>(a);
    case Dtype::kBFloat16:
      return choose_power<bfloat16>(a);
    case Dtype::kFloat16:
      return choose_power<float16>(a);
  }
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
