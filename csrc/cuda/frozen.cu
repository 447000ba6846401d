// What frozen networks keep for their backward passes, on CUDA.
#include "common/quantize.h"
#include "cuda/common.cuh"
#include "cuda/kernels.h"

namespace thawkit::cuda {
namespace {

constexpr int kThreads = 256;

// A plane of bits has ceil(n / 8) bytes: the last word is written byte by byte where it is not whole, or
// where the plane does not begin at a multiple of four bytes.
__device__ __forceinline__ void store_word(uint8_t* mask, int64_t n, int64_t first, uint32_t bits) {
  const int64_t bytes = (n + 7) / 8 - first / 8;
  uint8_t* to = mask + first / 8;
  if (bytes >= 4 && reinterpret_cast<uintptr_t>(to) % 4 == 0)
    *reinterpret_cast<uint32_t*>(to) = bits;
  else
    for (int64_t b = 0; b < bytes && b < 4; ++b) to[b] = uint8_t(bits >> (8 * b));
}

__device__ __forceinline__ bool bit_at(const uint8_t* mask, int64_t i) { return mask[i / 8] >> (i % 8) & 1; }

template <Packed Kind>
__device__ __forceinline__ bool bit_of(float x, float a, float b, bool bounded) {
  if constexpr (Kind == Packed::kRelu) return bounded ? x > a && x < b : !(x <= a);
  if constexpr (Kind == Packed::kClamp) return bounded ? x < b && (x > a || a == -INFINITY) : x > a;
  if constexpr (Kind == Packed::kThreshold) return !(x <= a);
  if constexpr (Kind == Packed::kHardsigmoid) return x > -3.f && x < 3.f;
  return x > 0.f;
}

template <Packed Kind>
__device__ __forceinline__ float value_of(float x, float a, float b) {
  if constexpr (Kind == Packed::kRelu || Kind == Packed::kClamp) return min(b, max(a, x));
  if constexpr (Kind == Packed::kThreshold) return x <= a ? b : x;
  if constexpr (Kind == Packed::kLeaky) return x > 0.f ? x : x * a;
  if constexpr (Kind == Packed::kHardsigmoid) return min(6.f, max(0.f, x + 3.f)) / 6.f;
  return fabsf(x);
}

// A warp votes on 32 neighbours and writes one word.
template <Packed Kind, class T>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const T* x, T* y, uint8_t* __restrict__ mask, int64_t n, float a, float b) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  const bool bounded = b < INFINITY;
  const float rounded_a = to_float(from_float<T>(a)), rounded_b = to_float(from_float<T>(b));
  // torch's clamp compares with the numbers that T has; so does this where x is clamped already
  const bool round = Kind == Packed::kClamp || (Kind == Packed::kRelu && !y);
  const float lower = round ? rounded_a : a, upper = round ? rounded_b : b;
  // every lane of a warp takes the same number of steps, so the vote always has 32 voters
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i - threadIdx.x % 32 < n; i += stride) {
    const float v = i < n ? to_float(x[i]) : 0.f;
    const uint32_t bits = __ballot_sync(~0u, i < n && bit_of<Kind>(v, lower, upper, bounded));
    const uint32_t negative = Kind == Packed::kAbs ? __ballot_sync(~0u, i < n && v < 0.f) : 0;
    if (y && i < n) y[i] = from_float<T>(value_of<Kind>(v, a, b));
    if (threadIdx.x % 32 == 0) {
      store_word(mask, n, i, bits);
      if (Kind == Packed::kAbs) store_word(mask + (n + 7) / 8, n, i, negative);
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    pack_bytes_kernel(const uint8_t* __restrict__ x, uint8_t* __restrict__ mask, int64_t n) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i - threadIdx.x % 32 < n; i += stride) {
    const uint32_t bits = __ballot_sync(~0u, i < n && x[i]);
    if (threadIdx.x % 32 == 0) store_word(mask, n, i, bits);
  }
}

template <Packed Kind, class T>
const char* pack_as(const PackArgs& a, cudaStream_t stream) {
  pack_kernel<Kind, T><<<grid_for(a.n, kThreads), kThreads, 0, stream>>>(
      static_cast<const T*>(a.x), static_cast<T*>(a.y), a.mask, a.n, a.a, a.b);
  return launch_error();
}

template <class T>
const char* pack_by_kind(const PackArgs& a, cudaStream_t stream) {
  switch (a.kind) {
    case Packed::kRelu:
      return pack_as<Packed::kRelu, T>(a, stream);
    case Packed::kClamp:
      return pack_as<Packed::kClamp, T>(a, stream);
    case Packed::kThreshold:
      return pack_as<Packed::kThreshold, T>(a, stream);
    case Packed::kLeaky:
      return pack_as<Packed::kLeaky, T>(a, stream);
    case Packed::kHardsigmoid:
      return pack_as<Packed::kHardsigmoid, T>(a, stream);
    case Packed::kAbs:
      return pack_as<Packed::kAbs, T>(a, stream);
    case Packed::kTrue:
      pack_bytes_kernel<<<grid_for(a.n, kThreads), kThreads, 0, stream>>>(static_cast<const uint8_t*>(a.x),
                                                                          a.mask, a.n);
      return launch_error();
  }
  return "unknown kind";
}

__device__ __forceinline__ float gradient(Masked kind, float g, bool bit, bool negative, float yes,
                                          float no) {
  switch (kind) {
    case Masked::kPass:
      return bit ? g : 0.f;
    case Masked::kPart:
      return bit ? g * yes : 0.f;
    case Masked::kTwo:
      return g * (bit ? yes : no);
    case Masked::kSign:
      return g * (bit ? 1.f : negative ? -1.f : 0.f);
  }
  return 0.f;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    masked_kernel(Masked kind, const T* g, T* dx, const uint8_t* __restrict__ mask, int64_t n, float yes,
                  float no) {
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += stride) {
    const bool negative = kind == Masked::kSign && bit_at(mask + (n + 7) / 8, i);
    dx[i] = from_float<T>(gradient(kind, to_float(g[i]), bit_at(mask, i), negative, yes, no));
  }
}

template <class T>
const char* masked_as(const MaskedArgs& a, cudaStream_t stream) {
  masked_kernel<T><<<grid_for(a.n, kThreads), kThreads, 0, stream>>>(
      a.kind, static_cast<const T*>(a.g), static_cast<T*>(a.dx), a.mask, a.n, a.yes, a.no);
  return launch_error();
}

// One block a group of `width` neighbouring channels: threadIdx.x % width tells which, so that channels that
// are innermost are read side by side. A thread's own sum is compensated (Kahan), which keeps it as near the
// truth as a tree of any depth.
template <class T>
__global__ void __launch_bounds__(kThreads) channel_sum_kernel(ChannelSumArgs a, int width) {
  __shared__ float partial[kThreads];
  const T* g = static_cast<const T*>(a.g);
  T* dx = static_cast<T*>(a.dx);
  const int lane = threadIdx.x % width, row = threadIdx.x / width, rows = kThreads / width;
  const int64_t c = int64_t(blockIdx.x) * width + lane;
  float sum = 0, lost = 0;
  if (c < a.channels) {
    const float no = a.factors ? a.factors[c] : a.no;
    for (int64_t r = row; r < a.outer * a.inner; r += rows) {
      const int64_t i = (r / a.inner * a.channels + c) * a.inner + r % a.inner;
      const float d = gradient(a.kind, to_float(g[i]), !a.mask || bit_at(a.mask, i), false, a.yes, no);
      if (dx) dx[i] = from_float<T>(d);
      const float more = d - lost, next = sum + more;
      lost = isfinite(next) ? (next - sum) - more : 0.f;
      sum = next;
    }
  }
  partial[threadIdx.x] = sum;
  __syncthreads();
  for (int half = rows / 2; half; half /= 2) {
    if (row < half) partial[threadIdx.x] += partial[threadIdx.x + half * width];
    __syncthreads();
  }
  if (a.sums && row == 0 && c < a.channels) a.sums[c] = partial[lane];
}

template <class T>
const char* channel_sum_as(const ChannelSumArgs& a, cudaStream_t stream) {
  const int width = a.inner == 1 ? 32 : 1;
  channel_sum_kernel<T>
      <<<static_cast<unsigned>((a.channels + width - 1) / width), kThreads, 0, stream>>>(a, width);
  return launch_error();
}

// As pack_kernel, of a value that is made on the way.
template <class T>
__global__ void __launch_bounds__(kThreads) channel_affine_kernel(ChannelAffineArgs a, int64_t n) {
  const T* x = static_cast<const T*>(a.x);
  const T* other = static_cast<const T*>(a.other);
  T* y = static_cast<T*>(a.y);
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  const bool bounded = a.upper < INFINITY;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i - threadIdx.x % 32 < n; i += stride) {
    float v = 0;
    if (i < n) {
      const int64_t c = i / a.inner % a.channels;
      v = to_float(x[i]) * a.scale[c] + a.shift[c];
      if (other) v += to_float(other[i]);
      if (a.mask) v = to_float(from_float<T>(v));
      y[i] = from_float<T>(a.mask ? min(a.upper, max(a.lower, v)) : v);
      if (a.mask && v != v) y[i] = from_float<T>(v);
    }
    if (!a.mask) continue;
    const uint32_t bits = __ballot_sync(~0u, i < n && bit_of<Packed::kRelu>(v, a.lower, a.upper, bounded));
    if (threadIdx.x % 32 == 0) store_word(a.mask, n, i, bits);
  }
}

template <class T>
const char* channel_affine_as(const ChannelAffineArgs& a, cudaStream_t stream) {
  const int64_t n = a.outer * a.channels * a.inner;
  channel_affine_kernel<T><<<grid_for(n, kThreads), kThreads, 0, stream>>>(a, n);
  return launch_error();
}

// As channel_sum_kernel, with two sums.
template <class T>
__global__ void __launch_bounds__(kThreads) channel_affine_backward_kernel(ChannelAffineArgs a, int width) {
  __shared__ float partial[2][kThreads];
  const T* g = static_cast<const T*>(a.g);
  const T* x = static_cast<const T*>(a.x);
  T* dx = static_cast<T*>(a.dx);
  T* dother = static_cast<T*>(a.dother);
  const int lane = threadIdx.x % width, row = threadIdx.x / width, rows = kThreads / width;
  const int64_t c = int64_t(blockIdx.x) * width + lane;
  float sums[2] = {0, 0}, lost[2] = {0, 0};
  if (c < a.channels) {
    const float scale = a.scale[c], centre = a.shift[c];
    for (int64_t r = row; r < a.outer * a.inner; r += rows) {
      const int64_t i = (r / a.inner * a.channels + c) * a.inner + r % a.inner;
      const bool bit = !a.mask || bit_at(a.mask, i);
      const float d = bit ? to_float(g[i]) : 0.f;
      if (dx) dx[i] = from_float<T>(d * scale);
      if (dother) dother[i] = from_float<T>(d);
      const float terms[2] = {d, bit && x ? d * (to_float(x[i]) - centre) : 0.f};
      for (int k = 0; k < 2; ++k) {
        const float more = terms[k] - lost[k], next = sums[k] + more;
        lost[k] = isfinite(next) ? (next - sums[k]) - more : 0.f;
        sums[k] = next;
      }
    }
  }
  for (int k = 0; k < 2; ++k) partial[k][threadIdx.x] = sums[k];
  __syncthreads();
  for (int half = rows / 2; half; half /= 2) {
    if (row < half)
      for (int k = 0; k < 2; ++k) partial[k][threadIdx.x] += partial[k][threadIdx.x + half * width];
    __syncthreads();
  }
  if (row == 0 && c < a.channels)
    for (int k = 0; k < 2; ++k) a.sums[k * a.channels + c] = partial[k][lane];
}

template <class T>
const char* channel_affine_backward_as(const ChannelAffineArgs& a, cudaStream_t stream) {
  const int width = a.inner == 1 ? 32 : 1;
  channel_affine_backward_kernel<T>
      <<<static_cast<unsigned>((a.channels + width - 1) / width), kThreads, 0, stream>>>(a, width);
  return launch_error();
}

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
__global__ void __launch_bounds__(kThreads) max_pool_kernel(MaxPoolArgs a, int64_t bytes, int64_t per_group) {
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
__global__ void __launch_bounds__(kThreads) unpool_kernel(MaxPoolArgs a, int64_t inputs, int64_t per_group) {
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
const char* max_pool_as(const MaxPoolArgs& a, cudaStream_t stream) {
  const int64_t groups = a.channels_last ? a.batch * a.out.d * a.out.h : a.batch * a.channels;
  const int64_t bytes = groups * bytes_of_group(a);
  max_pool_kernel<T><<<grid_for(bytes, kThreads), kThreads, 0, stream>>>(a, bytes, bytes_of_group(a));
  return launch_error();
}

template <class T>
const char* unpool_as(const MaxPoolArgs& a, cudaStream_t stream) {
  const int64_t inputs = a.batch * a.channels * elements(a.size);
  unpool_kernel<T><<<grid_for(inputs, kThreads), kThreads, 0, stream>>>(a, inputs, bytes_of_group(a));
  return launch_error();
}

// A warp has a group, a lane two neighbours of it or, of 2 bits, eight, whose codes are whole bytes.
template <int Bits, class T>
__global__ void __launch_bounds__(kThreads) quantize_kernel(QuantizeArgs a, int64_t groups) {
  constexpr int kGroup = group_size(Bits), kEach = kGroup / 32;
  const T* x = static_cast<const T*>(a.x);
  const int lane = threadIdx.x % 32;
  const int64_t stride = int64_t(gridDim.x) * (kThreads / 32);
  for (int64_t group = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32; group < groups;
       group += stride) {
    const int64_t first = group * kGroup, count = a.n - first < kGroup ? a.n - first : kGroup;
    float* numbers = a.numbers + group * numbers_a_group(Bits);
    float v[kEach], strange = 0.f;
    for (int e = 0; e < kEach; ++e) {
      const int64_t i = lane * kEach + e;
      v[e] = to_float(x[first + (i < count ? i : 0)]);  // past the end stands what changes no bound
      strange += v[e] * 0.f;
    }
    strange = warp_sum(strange);
    unsigned codes[kEach];
    if constexpr (Bits == 2) {
      const float each = 1.f / float(count);
      float mean = 0.f, deviation = 0.f;
      for (int e = 0; e < kEach; ++e)
        if (lane * kEach + e < count) mean += v[e] * each;
      mean = warp_sum(mean);
      for (int e = 0; e < kEach; ++e)
        if (lane * kEach + e < count) deviation += fabsf(v[e] - mean) * each;
      const Thresholds limits = thresholds(mean, warp_sum(deviation));
      float sums[4] = {}, counts[4] = {};
      for (int e = 0; e < kEach; ++e) {
        codes[e] = (v[e] > limits.low) + (v[e] > limits.middle) + (v[e] > limits.high);
        for (unsigned c = 0; c < 4; ++c)
          if (c == codes[e] && lane * kEach + e < count) sums[c] += v[e] * each, counts[c] += each;
      }
      for (int c = 0; c < 4; ++c) {
        const float level = level_of(warp_sum(sums[c]), warp_sum(counts[c]), mean, strange);
        if (lane == 0) numbers[c] = level;
      }
    } else {
      constexpr float kLast = Bits == 8 ? 255.f : 15.f;
      float lowest = v[0], highest = v[0];
      for (int e = 1; e < kEach; ++e) lowest = fminf(lowest, v[e]), highest = fmaxf(highest, v[e]);
      const EvenLevels levels = even_levels(-warp_max(-lowest), warp_max(highest), strange, Bits);
      for (int e = 0; e < kEach; ++e)
        codes[e] = __float2uint_rn(fminf(kLast, fmaxf(0.f, even_position(v[e], levels))));
      if (lane == 0) numbers[0] = levels.lowest, numbers[1] = levels.step;
    }
    constexpr int kInByte = 8 / Bits;
    for (int b = 0; b < kEach / kInByte; ++b) {
      unsigned byte = 0;
      for (int e = 0; e < kInByte; ++e)
        if (lane * kEach + b * kInByte + e < count) byte |= codes[b * kInByte + e] << (e * Bits);
      const int64_t place = lane * kEach / kInByte + b;
      if (place * kInByte < count) a.codes[first * Bits / 8 + place] = uint8_t(byte);
    }
  }
}

template <int Bits, class T>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(DequantizeArgs a) {
  const T* g = static_cast<const T*>(a.g);
  T* y = static_cast<T*>(a.y);
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < a.n; i += stride) {
    const float* numbers = a.numbers + i / group_size(Bits) * numbers_a_group(Bits);
    const int code = a.codes[i * Bits / 8] >> (i * Bits % 8) & ((1 << Bits) - 1);
    const float v = Bits == 2 ? numbers[code] : float(code) * numbers[1] + numbers[0];
    y[i] = from_float<T>(g ? v * to_float(g[i]) : v);
  }
}

template <int Bits, class T>
const char* quantize_as(const QuantizeArgs& a, cudaStream_t stream) {
  const int64_t groups = (a.n + group_size(Bits) - 1) / group_size(Bits);
  quantize_kernel<Bits, T><<<grid_for(groups, kThreads / 32), kThreads, 0, stream>>>(a, groups);
  return launch_error();
}

template <int Bits, class T>
const char* dequantize_as(const DequantizeArgs& a, cudaStream_t stream) {
  dequantize_kernel<Bits, T><<<grid_for(a.n, kThreads), kThreads, 0, stream>>>(a);
  return launch_error();
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

}  // namespace

const char* pack(const PackArgs& a, void* stream) {
  if (a.n == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  return by_dtype(a.dtype, [&](auto t) { return pack_by_kind<decltype(t)>(a, s); });
}

const char* masked(const MaskedArgs& a, void* stream) {
  if (a.n == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  return by_dtype(a.dtype, [&](auto t) { return masked_as<decltype(t)>(a, s); });
}

const char* channel_sum(const ChannelSumArgs& a, void* stream) {
  if (a.channels == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  return by_dtype(a.dtype, [&](auto t) { return channel_sum_as<decltype(t)>(a, s); });
}

const char* channel_affine(const ChannelAffineArgs& a, void* stream) {
  if (a.outer * a.channels * a.inner == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  return by_dtype(a.dtype, [&](auto t) { return channel_affine_as<decltype(t)>(a, s); });
}

const char* channel_affine_backward(const ChannelAffineArgs& a, void* stream) {
  if (a.channels == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  return by_dtype(a.dtype, [&](auto t) { return channel_affine_backward_as<decltype(t)>(a, s); });
}

const char* max_pool(const MaxPoolArgs& a, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  return by_dtype(a.dtype, [&](auto t) { return max_pool_as<decltype(t)>(a, s); });
}

const char* max_pool_backward(const MaxPoolArgs& a, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  return by_dtype(a.dtype, [&](auto t) { return unpool_as<decltype(t)>(a, s); });
}

const char* quantize(const QuantizeArgs& a, void* stream) {
  if (a.n == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  return by_dtype(a.dtype, [&](auto t) {
    using T = decltype(t);
    return a.bits == 8   ? quantize_as<8, T>(a, s)
           : a.bits == 4 ? quantize_as<4, T>(a, s)
                         : quantize_as<2, T>(a, s);
  });
}

const char* dequantize(const DequantizeArgs& a, void* stream) {
  if (a.n == 0) return nullptr;
  const auto s = static_cast<cudaStream_t>(stream);
  return by_dtype(a.dtype, [&](auto t) {
    using T = decltype(t);
    return a.bits == 8   ? dequantize_as<8, T>(a, s)
           : a.bits == 4 ? dequantize_as<4, T>(a, s)
                         : dequantize_as<2, T>(a, s);
  });
}

}  // namespace thawkit::cuda
