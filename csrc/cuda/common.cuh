// Scalar twins of cpu/simd.h's vector functions, storage dtypes, reductions over warps and blocks, launches.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cpu/kernels.h"

namespace thawkit::cuda {

__device__ __forceinline__ float exp_negative(float x) { return __expf(x); }
// log(1 + e) from q = e / (2 + e)
__device__ __forceinline__ float log1p_unit(float q) { return 2.f * atanhf(q); }
__device__ __forceinline__ float log_unit(float x) { return __logf(x); }
__device__ __forceinline__ float abs(float x) { return fabsf(x); }
// NaN in b passes through, as on the CPU.
__device__ __forceinline__ float max(float a, float b) { return a > b ? a : b; }
__device__ __forceinline__ float min(float a, float b) { return a < b ? a : b; }
__device__ __forceinline__ float select(bool mask, float yes, float no) { return mask ? yes : no; }

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}

// Neighbours in one load of 16 bytes, the widest; the pointer is aligned to it.
template <class T>
struct alignas(16) Wide {
  static constexpr int kLanes = 16 / sizeof(T);
  T lane[kLanes];
};

// Null counts as aligned.
inline bool aligned_to_wide(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

__device__ __forceinline__ float warp_sum(float x) {
  for (int offset = 16; offset; offset >>= 1) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
  for (int offset = 16; offset; offset >>= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, offset));
  return x;
}

// The block's sum (or maximum), known to every thread. `shared` holds 32 floats and may be reused after.
template <bool Maximum>
__device__ __forceinline__ float block_reduce(float x, float* shared) {
  x = Maximum ? warp_max(x) : warp_sum(x);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  float all = shared[0];
  for (int w = 1; w < warps; ++w) all = Maximum ? fmaxf(all, shared[w]) : all + shared[w];
  __syncthreads();
  return all;
}

// Starts the kernel on a one-dimensional grid. Where __launch_bounds__ names the least blocks a
// multiprocessor is to hold, that is lest the compiler spills registers to make room for more.
//
// Returns null, or what the launch said.
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), unsigned blocks, int threads, void* stream,
                   Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

inline unsigned grid_for(int64_t work, int per_block) {
  const int64_t blocks = (work + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < 65535LL * 32 ? blocks : 65535LL * 32);
}

// Calls the function of the dtype: f(T{}).
template <class F>
const char* by_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(float{});
    case Dtype::kBFloat16:
      return f(__nv_bfloat16{});
    case Dtype::kFloat16:
      return f(__half{});
  }
  return "unknown dtype";
}

}  // namespace thawkit::cuda
