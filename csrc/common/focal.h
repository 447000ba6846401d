// Arithmetic of the sigmoid focal loss, shared by the CPU kernels (V = a SIMD vector) and the CUDA ones
// (V = float). The includer provides exp_negative, log1p_unit, log_unit, abs, max, min and
// select for V.
#pragma once

#include "common/sigmoid.h"

enum class FocalPower { kZero, kOne, kTwo, kAny };

template <class V>
struct FocalTerm {
  V loss;
  V gradient;
};

// Weights of what is positive and of what is negative, and of the cross-entropy's positive part alone.
template <class V>
struct FocalWeights {
  V positive, negative, pos_weight;
};

// loss = a_t (1 - p_t)^gamma ce,  1 - p_t = p (1 - t) + (1 - p) t,  a_t = positive t + negative (1 - t)
// (Lin et al. 2017, eq. 5), ce = pos_weight u softplus(-x) + (1 - u) softplus(x), where u is t but for label
// smoothing.
template <FocalPower Power, bool Gradient, class V>
static THAWKIT_INLINE FocalTerm<V> sigmoid_focal_term(V x, V t, V u, SigmoidParts<V> s, FocalWeights<V> w,
                                                      float gamma) {
  const V zero = V{}, one = V{} + 1.f;
  const V p = select(x >= zero, s.larger, s.smaller), q = select(x >= zero, s.smaller, s.larger);
  const V miss = p * (1.f - t) + q * t;
  const V weighted = w.pos_weight * u;
  // The term times 0 makes an infinite x come out as torch's (1 - t) x - logsigmoid(x) does.
  const V below = min(zero, x);
  const V ce = max(zero, x) * (1.f - u) - below * weighted + below * 0.f + s.softplus * (1.f - u + weighted);
  V power, slope;  // miss^gamma and p q gamma miss^(gamma - 1), the latter finite for 0 < gamma < 1 too
  if constexpr (Power == FocalPower::kZero) {
    power = one;
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
  const V weight = w.positive * t + w.negative * (1.f - t);
  FocalTerm<V> out;
  out.loss = weight * power * ce;
  if constexpr (Gradient) {
    V change = power * (p * (1.f - u) - q * weighted);
    if constexpr (Power != FocalPower::kZero) change = change + slope * (1.f - 2.f * t) * ce;
    out.gradient = weight * change;
  }
  return out;
}

// The term of a target of 0 as a function of y = x, and of a target of 1 as one of y = -x, times `weight`:
// miss = sigmoid(y), ce = softplus(y) and d miss / dy = miss (1 - miss). The gradient is that of y.
template <FocalPower Power, bool Gradient, class V>
static THAWKIT_INLINE FocalTerm<V> sigmoid_focal_side(V y, SigmoidParts<V> s, V weight, float gamma) {
  const V zero = V{};
  const V miss = select(y >= zero, s.larger, s.smaller), hit = select(y >= zero, s.smaller, s.larger);
  const V ce = max(zero, y) + s.softplus;
  V power = weight;
  if constexpr (Power == FocalPower::kOne)
    power = power * miss;
  else if constexpr (Power == FocalPower::kTwo)
    power = power * (miss * miss);
  else if constexpr (Power == FocalPower::kAny)
    power = power * exp_negative(gamma * (min(zero, y) - s.softplus));
  FocalTerm<V> out;
  out.loss = power * ce;
  if constexpr (Gradient) {
    if constexpr (Power == FocalPower::kZero)
      out.gradient = power * miss;
    else if constexpr (Power == FocalPower::kTwo)
      out.gradient = power * miss + (hit + hit) * out.loss;
    else
      out.gradient = power * miss + gamma * hit * out.loss;
  }
  return out;
}
