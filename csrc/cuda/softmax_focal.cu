// Softmax focal loss on CUDA: a team of threads has the classes of a position.
#include "cuda/common.cuh"
#include "cuda/kernels.h"

namespace thawkit::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kFewClasses = 16;  // of which one thread has all

__device__ __forceinline__ float load_as(const void* from, Dtype dtype, int64_t i) {
  if (dtype == Dtype::kBFloat16) return to_float(static_cast<const __nv_bfloat16*>(from)[i]);
  if (dtype == Dtype::kFloat16) return to_float(static_cast<const __half*>(from)[i]);
  return static_cast<const float*>(from)[i];
}

// The largest logit, and the sum of the others' exponentials relative to it: without the largest one nothing
// cancels where its probability is near 1.
struct Largest {
  float maximum = -INFINITY, others = 0.f;

  __device__ __forceinline__ void add(float logit) {
    if (logit > maximum) {
      others = maximum == -INFINITY ? others : (others + 1.f) * __expf(maximum - logit);
      maximum = logit;
    } else if (!(logit == -INFINITY)) {
      others += __expf(logit - maximum);
    }
  }

  __device__ __forceinline__ void add(Largest b) {
    if (b.maximum > maximum) {
      const Largest a = *this;
      *this = b;
      b = a;
    }
    others += b.maximum == -INFINITY ? b.others : (b.others + 1.f) * __expf(b.maximum - maximum);
  }
};

// Of a class: its probability and what is missing to 1, its loss as if it were the target, and that loss's
// slope by the logarithm of the probability.
struct ClassTerm {
  float p, miss, loss, slope;
};

struct Position {
  float maximum, inverse, share, log_sum;  // 1 / (1 + others), others / (1 + others), log(1 + others)
};

__device__ __forceinline__ float power_of(float miss, float gamma) {
  if (gamma == 2.f) return miss * miss;
  if (gamma == 1.f) return miss;
  if (gamma == 0.f) return 1.f;
  return __expf(gamma * __logf(miss));
}

__device__ __forceinline__ ClassTerm class_term(float logit, const Position& at, float gamma) {
  const float distance = logit - at.maximum, log_p = distance - at.log_sum;
  const float p = __expf(distance) * at.inverse;
  const float miss = distance == 0.f ? at.share : 1.f - p;
  const float power = power_of(miss, gamma), ratio = miss > 0.f ? log_p / miss : -1.f;
  return {p, miss, -power * log_p, gamma * power * p * ratio - power};
}

// Team: threads of one warp that have a position's classes between them.
template <int Team, class T>
__global__ void __launch_bounds__(kThreads) softmax_focal_kernel(SoftmaxFocalArgs a) {
  const int member = threadIdx.x % Team;
  const int64_t positions = a.n * a.inner, stride = int64_t(gridDim.x) * (kThreads / Team);
  for (int64_t position = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / Team; position < positions;
       position += stride) {
    const int64_t base = position / a.inner * a.classes * a.inner + position % a.inner;
    const T* const x = static_cast<const T*>(a.x) + base;
    T* const grad = a.grad ? static_cast<T*>(a.grad) + base : nullptr;
    const int64_t target = a.target ? a.target[position] : -1;
    if (a.target && target == a.ignored) {
      if (a.loss && member == 0) a.loss[position] = 0.f;
      for (int64_t c = member; grad && c < a.classes; c += Team) grad[c * a.inner] = from_float<T>(0.f);
      continue;
    }
    const bool known = !a.target || (target >= 0 && target < a.classes);
    const float margin = a.margin && known && a.target ? a.margin[target] : 0.f;
    const auto logit_of = [&](int64_t c) {
      float logit = a.scale * to_float(x[c * a.inner]);
      if (a.offset) logit += a.offset[c];
      return c == target ? logit - margin : logit;
    };
    const auto weight_of = [&](int64_t c) {
      const float t =
          a.target ? float(c == target) : load_as(a.probability, a.probability_dtype, base + c * a.inner);
      const float weight = (1.f - a.smoothing) * t + a.smoothing / float(a.classes);
      return a.alpha ? weight * a.alpha[c] : weight;
    };

    Largest all;
    for (int64_t c = member; c < a.classes; c += Team) all.add(logit_of(c));
    for (int offset = Team / 2; offset; offset /= 2)
      all.add(Largest{__shfl_xor_sync(~0u, all.maximum, offset), __shfl_xor_sync(~0u, all.others, offset)});
    all.others += all.maximum - all.maximum;  // no number where that is infinite, as in torch
    const float inverse = 1.f / (1.f + all.others);
    const Position at = {all.maximum, inverse, all.others * inverse, log1pf(all.others)};

    float loss = 0.f, slopes = 0.f;
    const auto add = [&](int64_t c) {
      const float weight = weight_of(c);
      if (weight == 0.f) return;
      const ClassTerm term = class_term(logit_of(c), at, a.gamma);
      loss += weight * term.loss;
      slopes += weight * term.slope;
    };
    if (a.target && a.smoothing == 0.f) {  // all others weigh nothing, and every thread takes the target
      if (known) add(target);
    } else {
      for (int64_t c = member; c < a.classes; c += Team) add(c);
      for (int offset = Team / 2; offset; offset /= 2) {
        loss += __shfl_xor_sync(~0u, loss, offset);
        slopes += __shfl_xor_sync(~0u, slopes, offset);
      }
    }
    if (a.loss && member == 0) a.loss[position] = known ? loss : NAN;
    if (!grad) continue;
    const float upstream = a.scale * (!known ? NAN : a.upstream ? a.upstream[position] : a.factor);
    for (int64_t c = member; c < a.classes; c += Team) {
      const ClassTerm term = class_term(logit_of(c), at, a.gamma);
      const float weight = weight_of(c), slope = weight == 0.f ? 0.f : weight * term.slope;
      // slope - p sum(slope), where nothing cancels for p near 1
      grad[c * a.inner] = from_float<T>(upstream * (slope * term.miss - term.p * (slopes - slope)));
    }
  }
}

template <int Team, class T>
const char* softmax_focal_as(const SoftmaxFocalArgs& a, void* stream) {
  return launch(softmax_focal_kernel<Team, T>, grid_for(a.n * a.inner, kThreads / Team), kThreads, stream, a);
}

}  // namespace

const char* softmax_focal(const SoftmaxFocalArgs& a, void* stream) {
  if (a.n * a.inner == 0) return nullptr;
  const bool alone = a.inner > 1 || a.classes <= kFewClasses;
  return by_dtype(a.dtype, [&](auto t) {
    using T = decltype(t);
    return alone ? softmax_focal_as<1, T>(a, stream) : softmax_focal_as<32, T>(a, stream);
  });
}

}  // namespace thawkit::cuda
