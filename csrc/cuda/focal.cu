// Sigmoid focal loss on CUDA: 16 bytes of logits a thread and step, grid-stride.
#include "cuda/common.cuh"
#include "cuda/kernels.h"

namespace thawkit::cuda {
namespace {

#include "common/focal.h"

constexpr int kThreads = 256;

// `wide`: every pointer is aligned to loads of 16 bytes. Loops over lanes are unrolled whole, so that these
// stay in registers.
template <FocalPower Power, bool Gradient, class T>
__global__ void __launch_bounds__(kThreads)
    focal_kernel(const T* __restrict__ x, const T* __restrict__ t, int64_t n, float positive, float negative,
                 float gamma, T* __restrict__ loss, T* __restrict__ grad, const T* __restrict__ upstream,
                 float factor, bool wide) {
  constexpr int kLanes = Wide<T>::kLanes;
  const int64_t stride = int64_t(gridDim.x) * kThreads * kLanes;
  for (int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kLanes; i < n; i += stride) {
    const int count = n - i < kLanes ? int(n - i) : kLanes;
    const bool whole = wide && count == kLanes;
    Wide<T> vx, vt, vu, vl, vg;
    if (whole) {
      vx = *reinterpret_cast<const Wide<T>*>(x + i);
      vt = *reinterpret_cast<const Wide<T>*>(t + i);
      if (Gradient && upstream) vu = *reinterpret_cast<const Wide<T>*>(upstream + i);
    } else {
#pragma unroll
      for (int j = 0; j < kLanes; ++j) {
        if (j >= count) break;
        vx.lane[j] = x[i + j];
        vt.lane[j] = t[i + j];
        if (Gradient && upstream) vu.lane[j] = upstream[i + j];
      }
    }
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      if (j >= count) break;
      const float logit = to_float(vx.lane[j]);
      const float target = to_float(vt.lane[j]);
      const FocalTerm<float> term = sigmoid_focal_term<Power, Gradient, float>(
          logit, target, target, sigmoid_parts(exp_negative(-abs(logit))), {positive, negative, 1.f}, gamma);
      vl.lane[j] = from_float<T>(term.loss);
      if constexpr (Gradient)
        vg.lane[j] = from_float<T>(term.gradient * (upstream ? to_float(vu.lane[j]) : factor));
    }
    if (whole) {
      if (loss) *reinterpret_cast<Wide<T>*>(loss + i) = vl;
      if constexpr (Gradient) *reinterpret_cast<Wide<T>*>(grad + i) = vg;
    } else {
#pragma unroll
      for (int j = 0; j < kLanes; ++j) {
        if (j >= count) break;
        if (loss) loss[i + j] = vl.lane[j];
        if constexpr (Gradient) grad[i + j] = vg.lane[j];
      }
    }
  }
}

template <FocalPower Power, class T>
const char* focal_as(const FocalArgs& a, void* stream) {
  const auto kernel = a.grad ? focal_kernel<Power, true, T> : focal_kernel<Power, false, T>;
  const bool wide = aligned_to_wide(a.x) && aligned_to_wide(a.t) && aligned_to_wide(a.upstream) &&
                    aligned_to_wide(a.loss) && aligned_to_wide(a.grad);
  return launch(kernel, grid_for(a.n, kThreads * Wide<T>::kLanes), kThreads, stream,
                static_cast<const T*>(a.x), static_cast<const T*>(a.t), a.n, a.positive, a.negative, a.gamma,
                static_cast<T*>(a.loss), static_cast<T*>(a.grad), static_cast<const T*>(a.upstream), a.factor,
                wide);
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
