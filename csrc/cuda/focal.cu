// Sigmoid focal loss on CUDA: 16 bytes of logits a thread and step, grid-stride.
#include "cuda/common.cuh"
#include "cuda/kernels.h"

namespace thawkit::cuda {
namespace {

#include "common/focal.h"

constexpr int kThreads = 256;

// Where an element is among its neighbours in rows and periods.
struct Place {
  int64_t row, in_row, in_period;

  __device__ __forceinline__ void next(const FocalArgs& a) {
    if (++in_row == a.row) in_row = 0, ++row;
    ++in_period;  // the vectors go on periodically
  }
};

// The element's own weights; false where it costs nothing. The target is what was read, or that of an index.
__device__ __forceinline__ bool element_options(const FocalArgs& a, int64_t i, const Place& at, float* target,
                                                FocalWeights<float>* weights) {
  if (a.classes) {
    const int64_t length = a.period + kFocalBlock;
    const float* const of = a.classes + at.in_period;
    *weights = {of[0], of[length], of[2 * length]};
  }
  if (a.row_weight) {
    const float weight = a.row_weight[at.row];
    weights->positive *= weight;
    weights->negative *= weight;
  }
  if (a.mask && !a.mask[i]) return false;
  if (!a.indices) return !(*target == a.ignored);
  const int64_t index = static_cast<const int64_t*>(a.t)[at.row];
  *target = float(index == at.in_row);
  return !(float(index) == a.ignored);
}

template <FocalPower Power, bool Gradient>
__device__ __forceinline__ FocalTerm<float> separate_term(float x, float t, const SigmoidParts<float>& parts,
                                                          const FocalWeights<float>& w, float gamma) {
  const auto one = sigmoid_focal_side<Power, Gradient>(-x, parts, w.positive * w.pos_weight * t, gamma);
  const auto nil = sigmoid_focal_side<Power, Gradient>(x, parts, w.negative * (1.f - t), gamma);
  FocalTerm<float> term;
  term.loss = one.loss + nil.loss;
  if constexpr (Gradient) term.gradient = nil.gradient - one.gradient;
  return term;
}

// `wide`: every pointer is aligned to loads of 16 bytes. Loops over lanes are unrolled whole, so that these
// stay in registers. Options: whether there is anything but a number for alpha.
template <FocalPower Power, bool Gradient, bool Options, class T>
__device__ __forceinline__ void focal(const FocalArgs& a, bool wide) {
  constexpr int kLanes = Wide<T>::kLanes;
  const T *const x = static_cast<const T*>(a.x), *const t = static_cast<const T*>(a.t);
  const T* const upstream = static_cast<const T*>(a.upstream);
  T *const loss = static_cast<T*>(a.loss), *const grad = static_cast<T*>(a.grad);
  const int64_t n = a.n, stride = int64_t(gridDim.x) * kThreads * kLanes;
  const bool targets = !Options || !a.indices;
  for (int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kLanes; i < n; i += stride) {
    const int count = n - i < kLanes ? int(n - i) : kLanes;
    const bool whole = wide && count == kLanes;
    Wide<T> vx, vt = {}, vu, vl, vg;
    if (whole) {
      vx = *reinterpret_cast<const Wide<T>*>(x + i);
      if (targets) vt = *reinterpret_cast<const Wide<T>*>(t + i);
      if (Gradient && upstream) vu = *reinterpret_cast<const Wide<T>*>(upstream + i);
    } else {
#pragma unroll
      for (int j = 0; j < kLanes; ++j) {
        if (j >= count) break;
        vx.lane[j] = x[i + j];
        if (targets) vt.lane[j] = t[i + j];
        if (Gradient && upstream) vu.lane[j] = upstream[i + j];
      }
    }
    Place at = {};
    if constexpr (Options) at = {i / a.row, i % a.row, i % a.period};
#pragma unroll
    for (int j = 0; j < kLanes; ++j) {
      if (j >= count) break;
      const float logit = to_float(vx.lane[j]);
      float target = to_float(vt.lane[j]), smoothed = target;
      FocalWeights<float> weights = {a.positive, a.negative, 1.f};
      bool counts = true;
      if constexpr (Options) {
        counts = element_options(a, i + j, at, &target, &weights);
        at.next(a);
        smoothed = target * (1.f - a.smoothing) + 0.5f * a.smoothing;
      }
      const SigmoidParts<float> parts = sigmoid_parts(exp_negative(-abs(logit)));
      FocalTerm<float> term;
      if (Options && a.separate)
        term = separate_term<Power, Gradient>(logit, target, parts, weights, a.gamma);
      else
        term = sigmoid_focal_term<Power, Gradient, float>(logit, target, smoothed, parts, weights, a.gamma);
      vl.lane[j] = from_float<T>(counts ? term.loss : 0.f);
      if constexpr (Gradient) {
        const float slope = term.gradient * (upstream ? to_float(vu.lane[j]) : a.factor);
        vg.lane[j] = from_float<T>(counts ? slope : 0.f);
      }
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

template <FocalPower Power, bool Gradient, class T>
__global__ void __launch_bounds__(kThreads) focal_kernel(FocalArgs a, bool wide) {
  focal<Power, Gradient, false, T>(a, wide);
}

template <FocalPower Power, bool Gradient, class T>
__global__ void __launch_bounds__(kThreads) focal_options_kernel(FocalArgs a, bool wide) {
  focal<Power, Gradient, true, T>(a, wide);
}

template <FocalPower Power, bool Options, class T>
const char* focal_as(const FocalArgs& a, void* stream) {
  const auto plain = a.grad ? focal_kernel<Power, true, T> : focal_kernel<Power, false, T>;
  const auto special = a.grad ? focal_options_kernel<Power, true, T> : focal_options_kernel<Power, false, T>;
  const auto kernel = Options ? special : plain;
  const bool wide = aligned_to_wide(a.x) && aligned_to_wide(a.t) && aligned_to_wide(a.upstream) &&
                    aligned_to_wide(a.loss) && aligned_to_wide(a.grad);
  return launch(kernel, grid_for(a.n, kThreads * Wide<T>::kLanes), kThreads, stream, a, wide);
}

template <bool Options, class T>
const char* choose_power(const FocalArgs& a, void* stream) {
  if (a.gamma == 2.f) return focal_as<FocalPower::kTwo, Options, T>(a, stream);
  if (a.gamma == 1.f) return focal_as<FocalPower::kOne, Options, T>(a, stream);
  if (a.gamma == 0.f) return focal_as<FocalPower::kZero, Options, T>(a, stream);
  return focal_as<FocalPower::kAny, Options, T>(a, stream);
}

template <class T>
const char* choose_options(const FocalArgs& a, void* stream) {
  const bool usual = !a.classes && !a.mask && !a.row_weight && !a.indices && a.ignored != a.ignored &&
                     a.smoothing == 0.f && !a.separate;
  return usual ? choose_power<false, T>(a, stream) : choose_power<true, T>(a, stream);
}

}  // namespace

const char* sigmoid_focal(const FocalArgs& a, void* stream) {
  if (a.n == 0) return nullptr;
  return by_dtype(a.dtype, [&](auto t) { return choose_options<decltype(t)>(a, stream); });
}

}  // namespace thawkit::cuda
