// What kernels see instead of CUDA's own <cuda_runtime.h> when a C++ compiler builds them for the CPU.
#pragma once

#include <driver_types.h>

#include <math.h>

#include <cmath>
#include <cstring>

#include "host.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#define __global__ static
#define __device__
#define __host__
#define __shared__ static  // blocks run one after another
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

extern uint3 threadIdx, blockIdx;  // of the fiber that runs
extern dim3 blockDim, gridDim;

#define CUDA_HOST_UNCHECKED __attribute__((no_sanitize("thread")))

inline void __syncthreads(int line = __builtin_LINE()) { cuda_host::block_barrier(line); }
inline int __syncthreads_count(bool value, int line = __builtin_LINE()) {
  return cuda_host::block_barrier_sum(value, line);
}
inline int __syncthreads_or(bool value, int line = __builtin_LINE()) {
  return __syncthreads_count(value, line) > 0;
}
inline int __syncthreads_and(bool value, int line = __builtin_LINE()) {
  return __syncthreads_count(!value, line) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
  cuda_host::warp_barrier(mask, line);
}

template <class T>
CUDA_HOST_UNCHECKED T __shfl_sync(unsigned mask, T value, int lane, int line = __builtin_LINE()) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = cuda_host::exchange(mask, bits, lane & 31, line);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with, int line = __builtin_LINE()) {
  return __shfl_sync(mask, value, cuda_host::lane() ^ with, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int by, int line = __builtin_LINE()) {
  const int lane = cuda_host::lane();
  return __shfl_sync(mask, value, lane + by < 32 ? lane + by : lane, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int by, int line = __builtin_LINE()) {
  const int lane = cuda_host::lane();
  return __shfl_sync(mask, value, lane >= by ? lane - by : lane, line);
}
inline unsigned __ballot_sync(unsigned mask, bool value, int line = __builtin_LINE()) {
  return cuda_host::ballot(mask, value, line);
}
inline int __any_sync(unsigned mask, bool value, int line = __builtin_LINE()) {
  return __ballot_sync(mask, value, line) != 0;
}
inline int __all_sync(unsigned mask, bool value, int line = __builtin_LINE()) {
  return __ballot_sync(mask, !value, line) == 0;
}

template <class T>
CUDA_HOST_UNCHECKED T atomicAdd(T* address, T value) {
  cuda_host::access(address, sizeof(T), true, true, __builtin_return_address(0));
  const T old = *address;
  *address = old + value;
  return old;
}

// A load of a vector, which gcc would else take apart before it asks.
template <class T>
CUDA_HOST_UNCHECKED __attribute__((noinline)) T __ldca(const T* address) {
  cuda_host::access(address, sizeof(T), false, false, __builtin_return_address(0));
  return *address;
}

inline int __float_as_int(float x) {
  int bits;
  std::memcpy(&bits, &x, sizeof x);
  return bits;
}
inline float __int_as_float(int bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }
// To the nearest, ties to even; what is out of range goes to its end, NaN to 0.
inline unsigned __float2uint_rn(float x) {
  if (!(x > 0.f)) return 0;
  return x >= 4294967296.f ? ~0u : static_cast<unsigned>(std::nearbyint(x));
}

// The GPU's fast exponential and logarithm are products with its instructions of base 2; the accurate
// functions are counted too.
inline float __expf(float x) { return cuda_host::exp2_approximate(x * 1.442695041f); }
inline float __logf(float x) { return cuda_host::log2_approximate(x) * 0.6931471806f; }
inline float cuda_host_counted(float y) { return cuda_host::count_transcendental(), y; }
#define expf(x) cuda_host_counted(std::exp(float(x)))
#define exp2f(x) cuda_host_counted(std::exp2(float(x)))
#define logf(x) cuda_host_counted(std::log(float(x)))
#define log1pf(x) cuda_host_counted(std::log1p(float(x)))
#define atanhf(x) cuda_host_counted(std::atanh(float(x)))

inline const char* cudaGetErrorString(cudaError_t) { return cuda_host::control().error.c_str(); }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 0, cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 0, cudaSuccess; }

template <class... Parameters, class... Arguments>
CUDA_HOST_UNCHECKED cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config,
                                                   void (*kernel)(Parameters...), Arguments... arguments) {
  const auto call = [=]() CUDA_HOST_UNCHECKED { kernel(arguments...); };
  using Call = decltype(call);
  const auto body = [](const void* call) CUDA_HOST_UNCHECKED { (*static_cast<Call*>(call))(); };
  const char* error = cuda_host::run(config->gridDim, config->blockDim, config->stream, body, &call,
                                     reinterpret_cast<const void*>(kernel));
  return error ? cudaErrorLaunchFailure : cudaSuccess;
}
