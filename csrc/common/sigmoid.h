// The logistic function and its logarithm, shared by the CPU kernels (V = a SIMD vector) and the CUDA ones
// (V = float). The includer provides log1p_unit for V.
#pragma once

#ifndef THAWKIT_INLINE
#ifdef __CUDACC__
#define THAWKIT_INLINE __host__ __device__ __forceinline__
#else
#define THAWKIT_INLINE inline __attribute__((always_inline))
#endif
#endif

// Of e = exp(-|x|). Both come from it separately, so neither tail cancels.
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
