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

template <FocalPower Power, bool Gradient, class T>
void run(const FocalArgs& a) {
  const T* x = static_cast<const T*>(a.x);
  const T* t = static_cast<const T*>(a.t);
  T* loss = static_cast<T*>(a.loss);
  T* grad = static_cast<T*>(a.grad);
  const T* upstream = static_cast<const T*>(a.upstream);
  double total = 0;
  const int64_t blocks = (a.n + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) num_threads(a.n < kSerialBelow ? 1 : a.threads) reduction(+ : total)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * kBlock, last = first + kBlock < a.n ? first + kBlock : a.n;
    Floats sums = {};
    int64_t i = first;
    for (; i + kLanes <= last; i += kLanes) {
      const auto term = sigmoid_focal_term<Power, Gradient>(load(x + i), load(t + i), a.alpha, a.gamma);
      sums += term.loss;
      if (loss) store(loss + i, term.loss);
      if constexpr (Gradient)
        store(grad + i, term.gradient * (upstream ? load(upstream + i) : splat(a.factor)));
    }
    float rest = 0;
    if (i < last) {
      const int64_t count = last - i;
      const auto term = sigmoid_focal_term<Power, Gradient>(load_part(x + i, count), load_part(t + i, count),
                                                            a.alpha, a.gamma);
      for (int64_t j = 0; j < count; ++j) rest += term.loss[j];
      if (loss) store_part(loss + i, term.loss, count);
      if constexpr (Gradient)
        store_part(grad + i, term.gradient * (upstream ? load_part(upstream + i, count) : splat(a.factor)),
                   count);
    }
    total += double(sum(sums)) + double(rest);
  }
  if (a.total) *a.total = total;
}

template <FocalPower Power, class T>
void choose_gradient(const FocalArgs& a) {
  if (a.grad)
    run<Power, true, T>(a);
  else
    run<Power, false, T>(a);
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
