// Sigmoid focal loss: each logit and target read once, loss and gradient written once. Compiled once per
// instruction set.
#include <omp.h>

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace thawkit {
namespace THAWKIT_ISA {
namespace {

#include "common/focal.h"

constexpr int64_t kBlock = 1024;
constexpr int64_t kSerialBelow = 16384;

template <FocalPower Power, bool Gradient, bool Upstream, class T>
void run(const FocalArgs& a) {
  // Locals, since a store to the outputs could change the struct for all the compiler knows.
  const T* const x = static_cast<const T*>(a.x);
  const T* const t = static_cast<const T*>(a.t);
  T* const loss = static_cast<T*>(a.loss);
  T* const grad = static_cast<T*>(a.grad);
  const T* const upstream = static_cast<const T*>(a.upstream);
  const float alpha = a.alpha, gamma = a.gamma, factor = a.factor;
  const int64_t n = a.n;
  double total = 0;
  const int64_t blocks = (n + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) num_threads(n < kSerialBelow ? 1 : a.threads) reduction(+ : total)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * kBlock, last = first + kBlock < n ? first + kBlock : n;
    Floats sums = {};
    int64_t i = first;
    for (; i + kLanes <= last; i += kLanes) {
      const auto term = sigmoid_focal_term<Power, Gradient>(load(x + i), load(t + i), alpha, gamma);
      sums += term.loss;
      if (loss) store(loss + i, term.loss);
      if constexpr (Upstream)
        store(grad + i, term.gradient * load(upstream + i));
      else if constexpr (Gradient)
        store(grad + i, term.gradient * factor);
    }
    float rest = 0;
    if (i < last) {
      const int64_t count = last - i;
      const auto term =
          sigmoid_focal_term<Power, Gradient>(load_part(x + i, count), load_part(t + i, count), alpha, gamma);
      for (int64_t j = 0; j < count; ++j) rest += term.loss[j];
      if (loss) store_part(loss + i, term.loss, count);
      if constexpr (Upstream)
        store_part(grad + i, term.gradient * load_part(upstream + i, count), count);
      else if constexpr (Gradient)
        store_part(grad + i, term.gradient * factor, count);
    }
    total += double(sum(sums)) + double(rest);
  }
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
