// Max-pooling that keeps codes of a few bits, on CUDA.
#include "cuda/common.cuh"
#include "cuda/kernels.h"

namespace thawkit::cuda {
namespace {

constexpr int kThreads = 256;

// Where the memory of an input or output element is.
__device__ __forceinline__ int64_t place(const MaxPoolArgs& a, Triple size, int64_t n, int64_t c, int64_t d,
                                         int64_t h, int64_t w) {
  if (a.channels_last) return (((n * size.d + d) * size.h + h) * size.w + w) * a.channels + c;
  return (((n * a.channels + c) * size.d + d) * size.h + h) * size.w + w;
}

// The first element of a window that padding does not hide, and the number after the last.
__device__ __forceinline__ void span(int64_t start, int64_t size, int64_t kernel, int64_t dilation,
                                     int64_t* first, int64_t* last) {
  *first = start < 0 ? (-start + dilation - 1) / dilation : 0;
  const int64_t fit = (size - start + dilation - 1) / dilation;
  *last = fit < kernel ? fit : kernel;
}

struct Position {
  int64_t n, c, d, h, w;
};

// The output whose code is number `index` of group `group`.
__device__ __forceinline__ Position position(const MaxPoolArgs& a, int64_t group, int64_t index) {
  if (a.channels_last)
    return {group / a.out.h / a.out.d, index % a.channels, group / a.out.h % a.out.d, group % a.out.h,
            index / a.channels};
  return {group / a.channels, group % a.channels, index / a.out.w / a.out.h, index / a.out.w % a.out.h,
          index % a.out.w};
}

__device__ __forceinline__ int64_t group_of(const MaxPoolArgs& a) {
  return a.channels_last ? a.out.w * a.channels : a.out.d * a.out.h * a.out.w;
}

// A thread has the outputs whose codes share a byte.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    max_pool_kernel(MaxPoolArgs a, int64_t bytes, int64_t per_group) {
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  const int each = 8 / a.bits;
  const int64_t stride = int64_t(gridDim.x) * kThreads, codes = group_of(a);
  for (int64_t b = int64_t(blockIdx.x) * kThreads + threadIdx.x; b < bytes; b += stride) {
    unsigned packed = 0;
    for (int e = 0; e < each; ++e) {
      const int64_t index = b % per_group * each + e;
      if (index >= codes) break;
      const Position o = position(a, b / per_group, index);
      const int64_t d = o.d * a.stride.d - a.padding.d, h = o.h * a.stride.h - a.padding.h,
                    w = o.w * a.stride.w - a.padding.w;
      int64_t d0, d1, h0, h1, w0, w1;
      span(d, a.size.d, a.kernel.d, a.dilation.d, &d0, &d1);
      span(h, a.size.h, a.kernel.h, a.dilation.h, &h0, &h1);
      span(w, a.size.w, a.kernel.w, a.dilation.w, &w0, &w1);
      float best = -INFINITY;
      unsigned code = unsigned((d0 * a.kernel.h + h0) * a.kernel.w + w0);
      for (int64_t i = d0; i < d1; ++i)
        for (int64_t j = h0; j < h1; ++j)
          for (int64_t k = w0; k < w1; ++k) {
            const float v = to_float(x[place(a, a.size, o.n, o.c, d + i * a.dilation.d, h + j * a.dilation.h,
                                             w + k * a.dilation.w)]);
            if (v > best || v != v) best = v, code = unsigned((i * a.kernel.h + j) * a.kernel.w + k);
          }
      y[place(a, a.out, o.n, o.c, o.d, o.h, o.w)] = from_float<T>(best);
      packed |= code << (e * a.bits);
    }
    a.codes[b] = uint8_t(packed);
  }
}

// The windows along one size that hold element i: [first, last).
__device__ __forceinline__ void windows_of(int64_t i, int64_t out, int64_t kernel, int64_t stride,
                                           int64_t padding, int64_t dilation, int64_t* first, int64_t* last) {
  const int64_t reach = (kernel - 1) * dilation;
  *first = i + padding <= reach ? 0 : (i + padding - reach + stride - 1) / stride;
  const int64_t end = (i + padding) / stride + 1;
  *last = end < out ? end : out;
}

// A thread has an input: it asks the windows around it. No atomics, one order of addition.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    unpool_kernel(MaxPoolArgs a, int64_t inputs, int64_t per_group) {
  const T* g = static_cast<const T*>(a.x);
  T* dx = static_cast<T*>(a.y);
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < inputs; i += stride) {
    int64_t rest = i, c = 0;
    if (a.channels_last) c = rest % a.channels, rest /= a.channels;
    const int64_t w = rest % a.size.w, h = rest / a.size.w % a.size.h;
    rest /= a.size.w * a.size.h;
    const int64_t d = rest % a.size.d;
    rest /= a.size.d;
    if (!a.channels_last) c = rest % a.channels, rest /= a.channels;
    int64_t d0, d1, h0, h1, w0, w1;
    windows_of(d, a.out.d, a.kernel.d, a.stride.d, a.padding.d, a.dilation.d, &d0, &d1);
    windows_of(h, a.out.h, a.kernel.h, a.stride.h, a.padding.h, a.dilation.h, &h0, &h1);
    windows_of(w, a.out.w, a.kernel.w, a.stride.w, a.padding.w, a.dilation.w, &w0, &w1);
    float sum = 0;
    for (int64_t od = d0; od < d1; ++od)
      for (int64_t oh = h0; oh < h1; ++oh)
        for (int64_t ow = w0; ow < w1; ++ow) {
          const int64_t kd = d + a.padding.d - od * a.stride.d, kh = h + a.padding.h - oh * a.stride.h,
                        kw = w + a.padding.w - ow * a.stride.w;
          if (kd % a.dilation.d || kh % a.dilation.h || kw % a.dilation.w) continue;
          const int64_t number =
              (kd / a.dilation.d * a.kernel.h + kh / a.dilation.h) * a.kernel.w + kw / a.dilation.w;
          const int64_t o = place(a, a.out, rest, c, od, oh, ow), codes = group_of(a);
          const int64_t bit = o % codes * a.bits;
          const int code = a.codes[o / codes * per_group + bit / 8] >> (bit % 8) & ((1 << a.bits) - 1);
          if (code == number) sum += to_float(g[o]);
        }
    dx[i] = from_float<T>(sum);
  }
}

int64_t elements(Triple t) { return t.d * t.h * t.w; }

int64_t bytes_of_group(const MaxPoolArgs& a) {
  const int64_t codes = a.channels_last ? a.out.w * a.channels : elements(a.out);
  return (codes * a.bits + 7) / 8;
}

template <class T>
const char* max_pool_as(const MaxPoolArgs& a, void* stream) {
  const int64_t groups = a.channels_last ? a.batch * a.out.d * a.out.h : a.batch * a.channels;
  const int64_t bytes = groups * bytes_of_group(a);
  return launch(max_pool_kernel<T>, grid_for(bytes, kThreads), kThreads, stream, a, bytes, bytes_of_group(a));
}

template <class T>
const char* unpool_as(const MaxPoolArgs& a, void* stream) {
  const int64_t inputs = a.batch * a.channels * elements(a.size);
  return launch(unpool_kernel<T>, grid_for(inputs, kThreads), kThreads, stream, a, inputs, bytes_of_group(a));
}

}  // namespace

const char* max_pool(const MaxPoolArgs& a, void* stream) {
  return by_dtype(a.dtype, [&](auto t) { return max_pool_as<decltype(t)>(a, stream); });
}

const char* max_pool_backward(const MaxPoolArgs& a, void* stream) {
  return by_dtype(a.dtype, [&](auto t) { return unpool_as<decltype(t)>(a, stream); });
}

}  // namespace thawkit::cuda
