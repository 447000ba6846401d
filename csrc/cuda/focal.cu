// Sigmoid focal loss on CUDA: four logits a thread and step, grid-stride.
#include "cuda/common.cuh"
#include "cuda/kernels.h"

namespace thawkit::cuda {
namespace {

#include "common/focal.h"

constexpr int kThreads = 256;

template <FocalPower Power, bool Gradient, class T>
__global__ void __launch_bounds__(kThreads)
    focal_kernel(const T* __restrict__ x, const T* __restrict__ t, int64_t n, float positive, float negative,
                 float gamma, T* __restrict__ loss, T* __restrict__ grad, const T* __restrict__ upstream,
                 float factor) {
  const int64_t stride = int64_t(gridDim.x) * kThreads * 4;
  for (int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * 4; i < n; i += stride) {
    const int count = n - i < 4 ? int(n - i) : 4;
    Four<T> vx, vt, vu, vl, vg;
    if (count == 4) {
      vx = *reinterpret_cast<const Four<T>*>(x + i);
      vt = *reinterpret_cast<const Four<T>*>(t + i);
      if (Gradient && upstream) vu = *reinterpret_cast<const Four<T>*>(upstream + i);
    } else {
      for (int j = 0; j < count; ++j) {
        vx.lane[j] = x[i + j];
        vt.lane[j] = t[i + j];
        if (Gradient && upstream) vu.lane[j] = upstream[i + j];
      }
    }
    for (int j = 0; j < count; ++j) {
      const float logit = to_float(vx.lane[j]);
      const float target = to_float(vt.lane[j]);
      const FocalTerm<float> term = sigmoid_focal_term<Power, Gradient, float>(
          logit, target, target, sigmoid_parts(exp_negative(-abs(logit))), {positive, negative, 1.f}, gamma);
      vl.lane[j] = from_float<T>(term.loss);
      if constexpr (Gradient)
        vg.lane[j] = from_float<T>(term.gradient * (upstream ? to_float(vu.lane[j]) : factor));
    }
    if (count == 4) {
      if (loss) *reinterpret_cast<Four<T>*>(loss + i) = vl;
      if constexpr (Gradient) *reinterpret_cast<Four<T>*>(grad + i) = vg;
    } else {
      for (int j = 0; j < count; ++j) {
        if (loss) loss[i + j] = vl.lane[j];
        if constexpr (Gradient) grad[i + j] = vg.lane[j];
      }
    }
  }
}

template <FocalPower Power, class T>
const char* focal_as(const FocalArgs& a, void* stream) {
  const auto kernel = a.grad ? focal_kernel<Power, true, T> : focal_kernel<Power, false, T>;
  return launch(kernel, grid_for(a.n, kThreads * 4), kThreads, stream, static_cast<const T*>(a.x),
                static_cast<const T*>(a.t), a.n, a.positive, a.negative, a.gamma, static_cast<T*>(a.loss),
                static_cast<T*>(a.grad), static_cast<const T*>(a.upstream), a.factor);
}

template <class T>
const char* choose_power(const FocalArgs& a, void* stream) {
  if (a.gamma == 2.f) return focal_as<FocalPower::kTwo, T>(a, stream);
  if (a.gamma == 1.f) return focal_as<FocalPower::kOne, T>(a, stream);
  if (a.gamma == 0.f) return focal_as<FocalPower::kZero, T>(a, stream);
  return focal_as<FocalPower::kAny, T>(a, stream);
}

}  // namespace

const char* sigmoid_focal(const FocalArgs& a, void* stream) {
  if (a.n == 0) return nullptr;
  return by_dtype(a.dtype, [&](auto t) { return choose_power<decltype(t)>(a, stream); });
}

}  // namespace thawkit::cuda
