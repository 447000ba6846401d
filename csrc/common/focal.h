// Arithmetic of the sigmoid focal loss, shared by the CPU kernels (V = a SIMD vector) and the CUDA ones
// (V = float). The includer provides exp_negative, log1p_unit, log_unit, abs, max, min and
// select for V.
#pragma once

#ifdef __CUDACC__
#define THAWKIT_INLINE __host__ __device__ __forceinline__
#else
#define THAWKIT_INLINE inline __attribute__((always_inline))
#endif

enum class FocalPower { kZero, kOne, kTwo, kAny };

template <class V>
struct FocalTerm {
  V loss;
  V gradient;
};

// What both forms below need of e = exp(-|x|). p and 1 - p come from it separately, so neither tail cancels.
template <class V>
struct SigmoidParts {
  V larger, smaller;  // sigmoid(|x|) and sigmoid(-|x|)
  V softplus;         // log(1 + exp(-|x|))
};

template <class V>
static THAWKIT_INLINE SigmoidParts<V> sigmoid_parts(V e) {
  // One division serves 1 / (1 + e) and the argument of the logarithm, e / (2 + e).
  const V reciprocal = 1.f / ((1.f + e) * (2.f + e));
  const V larger = reciprocal * (2.f + e);
  return {larger, e * larger, log1p_unit(e * (reciprocal * (1.f + e)))};
}

// loss = a_t (1 - p_t)^gamma ce,  1 - p_t = p (1 - t) + (1 - p) t,  a_t = alpha t + (1 - alpha)(1 - t)
// (Lin et al. 2017, eq. 5).
template <FocalPower Power, bool Gradient, class V>
static THAWKIT_INLINE FocalTerm<V> sigmoid_focal_term(V x, V t, SigmoidParts<V> s, float alpha, float gamma) {
  const V zero = V{}, one = V{} + 1.f;
  const V p = select(x >= zero, s.larger, s.smaller), q = select(x >= zero, s.smaller, s.larger);
  const V miss = p * (1.f - t) + q * t;
  // softplus(x) - x t without its cancellation. The term times 0 makes an infinite x come out as torch's
  // (1 - t) x - logsigmoid(x) does.
  const V below = min(zero, x);
  const V ce = max(zero, x) * (1.f - t) - below * t + below * 0.f + s.softplus;
  V power, slope;  // miss^gamma and p q gamma miss^(gamma - 1), the latter finite for 0 < gamma < 1 too
  if constexpr (Power == FocalPower::kZero) {
    power = one;
    slope = zero;
  } else if constexpr (Power == FocalPower::kOne) {
    power = miss;
    slope = p * q;
  } else if constexpr (Power == FocalPower::kTwo) {
    power = miss * miss;
    slope = 2.f * miss * (p * q);
  } else {
    power = exp_negative(gamma * log_unit(miss));
    slope = gamma * power * select(miss > zero, p * q / miss, zero);
  }
  V weight = one;
  if (alpha >= 0.f) weight = alpha * t + (1.f - alpha) * (1.f - t);
  FocalTerm<V> out;
  out.loss = weight * power * ce;
  if constexpr (Gradient)
    out.gradient = weight * (power * (p * (1.f - t) - q * t) + slope * (1.f - 2.f * t) * ce);
  return out;
}

// The same for targets of exactly 0 or 1 and finite logits, at half of the instructions. With y = x where t =
// 0 and -x where t = 1, miss = sigmoid(y), ce = softplus(y) and d miss / dy = miss (1 - miss). `negate` holds
// the sign bit where t = 1; the includer provides flip_sign.
template <FocalPower Power, bool Gradient, class V, class Bits>
static THAWKIT_INLINE FocalTerm<V> sigmoid_focal_hard_term(V x, Bits negate, SigmoidParts<V> s, float weight0,
                                                           float weight1, float gamma) {
  const V zero = V{}, y = flip_sign(x, negate);
  const V miss = select(y >= zero, s.larger, s.smaller), hit = select(y >= zero, s.smaller, s.larger);
  const V ce = max(zero, y) + s.softplus;
  V power = select(negate < 0, zero + weight1, zero + weight0);
  if constexpr (Power == FocalPower::kOne)
    power = power * miss;
  else if constexpr (Power == FocalPower::kTwo)
    power = power * (miss * miss);
  else if constexpr (Power == FocalPower::kAny)
    power = power * exp_negative(gamma * log_unit(miss));
  FocalTerm<V> out;
  out.loss = power * ce;
  if constexpr (Gradient) out.gradient = flip_sign(power * (miss + gamma * hit * ce), negate);
  return out;
}
