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
const char* launch(const FocalArgs& a, cudaStream_t stream) {
  const unsigned grid = grid_for(a.n, kThreads * 4);
  const T *x = static_cast<const T*>(a.x), *t = static_cast<const T*>(a.t);
  const T* upstream = static_cast<const T*>(a.upstream);
  T *loss = static_cast<T*>(a.loss), *grad = static_cast<T*>(a.grad);
  if (grad)
    focal_kernel<Power, true, T><<<grid, kThreads, 0, stream>>>(x, t, a.n, a.positive, a.negative, a.gamma,
                                                                loss, grad, upstream, a.factor);
  else
    focal_kernel<Power, false, T><<<grid, kThreads, 0, stream>>>(x, t, a.n, a.positive, a.negative, a.gamma,
                                                                 loss, grad, upstream, a.factor);
  return launch_error();
}

template <class T>
const char* choose_power(const FocalArgs& a, cudaStream_t stream) {
  if (a.gamma == 2.f) return launch<FocalPower::kTwo, T>(a, stream);
  if (a.gamma == 1.f) return launch<FocalPower::kOne, T>(a, stream);
  if (a.gamma == 0.f) return launch<FocalPower::kZero, T>(a, stream);
  return launch<FocalPower::kAny, T>(a, stream);
}

}  // namespace

const char* sigmoid_focal(const FocalArgs& a, void* stream) {
  if (a.n == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  switch (a.dtype) {
    case Dtype::kFloat32:
      return choose_power<float>(a, s);
    case Dtype::kBFloat16:
      return choose_power<__nv_bfloat16>(a, s);
    case Dtype::kFloat16:
      return choose_power<__half>(a, s);
  }
  return "unknown dtype";
}

}  // namespace thawkit::cuda
