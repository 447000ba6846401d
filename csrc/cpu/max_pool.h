// Max-pooling that keeps where in its window each output came from, in a few bits.
#pragma once

#include <omp.h>

#include "cpu/pack.h"

namespace thawkit {
namespace THAWKIT_ISA {

constexpr int64_t kLongestWindow = 256;

typedef uint8_t Bytes __attribute__((vector_size(kLanes), aligned(1)));

static inline int64_t elements(Triple t) { return t.d * t.h * t.w; }
static inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
static inline int64_t at_most(int64_t n, int64_t most) { return n < most ? n : most; }

// The elements of a window along one size that padding does not hide: [first, last).
struct Span {
  int64_t start;  // of the window, negative in padding
  int64_t first, last;

  Span(int64_t o, int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation)
      : start(o * stride - padding),
        first(start < 0 ? (-start + dilation - 1) / dilation : 0),
        last(at_most(kernel, (size - start + dilation - 1) / dilation)) {}
};

// Codes of `bits` bits from bytes of one each; what follows the last in its byte is 0.
static inline void pack_codes(uint8_t* codes, int64_t n, int bits, uint8_t* packed) {
  const int64_t each = 8 / bits;
  for (int64_t i = n; i % each; ++i) codes[i] = 0;
  const int64_t bytes = (n + each - 1) / each;
  if (bits == 2) {
    for (int64_t i = 0; i < bytes; ++i)
      packed[i] = static_cast<uint8_t>(codes[4 * i] | codes[4 * i + 1] << 2 | codes[4 * i + 2] << 4 |
                                       codes[4 * i + 3] << 6);
  } else if (bits == 4) {
    for (int64_t i = 0; i < bytes; ++i)
      packed[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
  } else {
    memcpy(packed, codes, static_cast<size_t>(n));
  }
}

static inline int code_at(const uint8_t* packed, int64_t i, int bits) {
  const int64_t bit = i * bits;
  return packed[bit / 8] >> (bit % 8) & ((1 << bits) - 1);
}

static inline int64_t code_bytes(int64_t n, int bits) { return (n * bits + 7) / 8; }

// The codes from i on, one a lane, of a row of `bytes` bytes; lanes from `there` on hold anything.
static inline Ints codes_at(const uint8_t* packed, int64_t bytes, int64_t i, int bits, int64_t there) {
  const int64_t first = i * bits / 8;
  if (bits == 8 && first + kLanes <= bytes) {
    Bytes narrow;
    memcpy(&narrow, packed + first, sizeof narrow);
    return __builtin_convertvector(narrow, Ints);
  }
  if (bits < 8 && i * bits % 8 == 0 && first + 8 <= bytes) {
    int32_t words[2];
    memcpy(words, packed + first, sizeof words);
    const Ints shift = lane_numbers() * bits;
    const Ints word = shift < 32 ? splat(words[0]) : splat(words[1]);
    return word >> (shift & 31) & ((1 << bits) - 1);
  }
  Ints codes = {};
  for (int64_t l = 0; l < there; ++l) codes[l] = code_at(packed, i + l, bits);
  return codes;
}

// The larger of both where the new one wins: larger, or NaN.
static inline void take(Floats v, int32_t number, Floats& best, Ints& code) {
  const Ints wins = (v > best) | (v != v);
  best = select(wins, v, best);
  code = wins ? splat(number) : code;
}

static inline void store_codes(uint8_t* codes, Ints code) {
#if defined(THAWKIT_AVX512)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm512_cvtepi32_epi8(bit_cast<__m512i>(code)));
#else
  const Bytes narrow = __builtin_convertvector(code, Bytes);
  memcpy(codes, &narrow, sizeof narrow);
#endif
}

// A thread's memory.
struct PoolSpace {
  int64_t phase;   // floats of a row that one remainder of the stride takes
  int64_t row;     // floats of a whole row, remainder after remainder
  int64_t rows;    // bytes of the rows of a window
  int64_t line;    // bytes of a row of x as float32
  int64_t firsts;  // bytes of the first element that counts of each output in a row
  int64_t codes;   // bytes of the codes before they are packed
  int64_t group;   // codes that begin with a new byte

  explicit PoolSpace(const MaxPoolArgs& a) {
    phase = round_up(a.out.w, kLanes) + (a.kernel.w - 1) * a.dilation.w / a.stride.w + 1;
    row = phase * a.stride.w;
    group = a.channels_last ? a.out.w * a.channels : elements(a.out);
    codes = round_up(group + kLanes, 64);
    rows = line = firsts = 0;
    if (a.channels_last) return;
    rows = round_up(a.kernel.d * a.kernel.h * row * 4, 64);
    line = round_up(a.size.w * 4, 64);
    firsts = round_up(round_up(a.out.w, kLanes) * 4, 64);
  }

  int64_t bytes() const { return rows + line + firsts + codes; }
};

static inline int64_t pool_workspace(const MaxPoolArgs& a) {
  return PoolSpace(a).bytes() * (a.threads > 0 ? a.threads : 1);
}

static inline const float* as_floats(const float* x, int64_t, float*) { return x; }
template <class T>
const float* as_floats(const T* x, int64_t n, float* line) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(line + i, load(x + i));
  if (i < n) store_part(line + i, load_part(x + i, n - i), n - i);
  return line;
}

template <int64_t Stride>
void spread(const float* x, float* out, int64_t from, int64_t to) {
  for (int64_t i = from; i < to; ++i) out[i] = x[i * Stride];
}

// A padded row so that output o finds element j of its window at
// out[(j dilation) % stride * phase + (j dilation) / stride + o]: neighbours side by side, whatever the
// stride.
static inline void lay_out(const float* x, const MaxPoolArgs& a, int64_t phase, float* out) {
  const int64_t stride = a.stride.w;
  for (int64_t r = 0; r < stride; ++r, out += phase) {
    const int64_t shift = r - a.padding.w;  // element i is x[i stride + shift]
    const int64_t from = at_most(shift < 0 ? (-shift + stride - 1) / stride : 0, phase);
    int64_t to = at_most((a.size.w - shift + stride - 1) / stride, phase);
    if (to < from) to = from;
    for (int64_t i = 0; i < from; ++i) out[i] = -__builtin_inff();
    if (stride == 1)
      memcpy(out + from, x + from + shift, static_cast<size_t>(to - from) * 4);
    else if (stride == 2)
      spread<2>(x + shift, out, from, to);
    else
      for (int64_t i = from; i < to; ++i) out[i] = x[i * stride + shift];
    for (int64_t i = to; i < phase; ++i) out[i] = -__builtin_inff();
  }
}

template <class T>
void pool_planes(const MaxPoolArgs& a) {
  const PoolSpace space(a);
  const int64_t planes = a.batch * a.channels, inputs = elements(a.size), outputs = elements(a.out);
  const int64_t packed = code_bytes(space.group, a.bits);
  int64_t places[kLongestWindow];  // where in its row, laid out, an element of the window is
  for (int64_t j = 0; j < a.kernel.w; ++j)
    places[j] = j * a.dilation.w % a.stride.w * space.phase + j * a.dilation.w / a.stride.w;
#pragma omp parallel num_threads(team_for(planes* inputs, a.threads))
  {
    uint8_t* memory = a.workspace + omp_get_thread_num() * space.bytes();
    float* rows = reinterpret_cast<float*>(memory);
    float* line = reinterpret_cast<float*>(memory + space.rows);
    int32_t* firsts = reinterpret_cast<int32_t*>(memory + space.rows + space.line);
    uint8_t* codes = memory + space.rows + space.line + space.firsts;
    for (int64_t o = 0; o < round_up(a.out.w, kLanes); ++o)
      firsts[o] =
          static_cast<int32_t>(Span(o, a.size.w, a.kernel.w, a.stride.w, a.padding.w, a.dilation.w).first);
#pragma omp for schedule(static)
    for (int64_t plane = 0; plane < planes; ++plane) {
      const T* x = static_cast<const T*>(a.x) + plane * inputs;
      T* y = static_cast<T*>(a.y) + plane * outputs;
      int64_t o = 0;
      for (int64_t od = 0; od < a.out.d; ++od)
        for (int64_t oh = 0; oh < a.out.h; ++oh) {
          const Span d(od, a.size.d, a.kernel.d, a.stride.d, a.padding.d, a.dilation.d);
          const Span h(oh, a.size.h, a.kernel.h, a.stride.h, a.padding.h, a.dilation.h);
          int32_t numbers[kLongestWindow];  // of the first element in each row of the window
          int64_t count = 0;
          for (int64_t i = d.first; i < d.last; ++i)
            for (int64_t j = h.first; j < h.last; ++j) {
              const int64_t from = (d.start + i * a.dilation.d) * a.size.h + h.start + j * a.dilation.h;
              lay_out(as_floats(x + from * a.size.w, a.size.w, line), a, space.phase,
                      rows + count * space.row);
              numbers[count++] = static_cast<int32_t>((i * a.kernel.h + j) * a.kernel.w);
            }
          for (int64_t w = 0; w < a.out.w; w += kLanes) {
            Floats best = splat(-__builtin_inff());
            Ints code = load(firsts + w) + numbers[0];
            for (int64_t r = 0; r < count; ++r)
              for (int64_t j = 0; j < a.kernel.w; ++j)
                take(load(rows + r * space.row + places[j] + w), numbers[r] + static_cast<int32_t>(j), best,
                     code);
            const int64_t there = at_most(a.out.w - w, kLanes);
            if (there == kLanes)
              store_exact(y + o + w, best);
            else
              store_part(y + o + w, best, there);
            store_codes(codes + o + w, code);
          }
          o += a.out.w;
        }
      pack_codes(codes, outputs, a.bits, a.codes + plane * packed);
    }
  }
}

// The elements of one window that count: where they are relative to x, and their numbers.
struct Window {
  int64_t offsets[kLongestWindow];
  int32_t numbers[kLongestWindow];
  int64_t count = 0;

  Window(const MaxPoolArgs& a, const Span& d, const Span& h, const Span& w) {
    for (int64_t i = d.first; i < d.last; ++i)
      for (int64_t j = h.first; j < h.last; ++j)
        for (int64_t k = w.first; k < w.last; ++k) {
          const int64_t row = (d.start + i * a.dilation.d) * a.size.h + h.start + j * a.dilation.h;
          offsets[count] = (row * a.size.w + w.start + k * a.dilation.w) * a.channels;
          numbers[count++] = static_cast<int32_t>((i * a.kernel.h + j) * a.kernel.w + k);
        }
  }
};

template <class T>
void pool_channels(const MaxPoolArgs& a) {
  const PoolSpace space(a);
  const int64_t groups = a.batch * a.out.d * a.out.h, image = elements(a.size) * a.channels;
  const int64_t packed = code_bytes(space.group, a.bits);
#pragma omp parallel num_threads(team_for(a.batch* image, a.threads))
  {
    uint8_t* codes = a.workspace + omp_get_thread_num() * space.bytes();
#pragma omp for schedule(static)
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t oh = group % a.out.h, od = group / a.out.h % a.out.d, n = group / a.out.h / a.out.d;
      const Span d(od, a.size.d, a.kernel.d, a.stride.d, a.padding.d, a.dilation.d);
      const Span h(oh, a.size.h, a.kernel.h, a.stride.h, a.padding.h, a.dilation.h);
      const T* x = static_cast<const T*>(a.x) + n * image;
      T* y = static_cast<T*>(a.y) + group * space.group;
      for (int64_t ow = 0; ow < a.out.w; ++ow) {
        const Window window(a, d, h, Span(ow, a.size.w, a.kernel.w, a.stride.w, a.padding.w, a.dilation.w));
        for (int64_t c = 0; c < a.channels; c += kLanes) {
          const int64_t there = at_most(a.channels - c, kLanes), o = ow * a.channels + c;
          Floats best = splat(-__builtin_inff());
          Ints code = splat(window.numbers[0]);
          for (int64_t e = 0; e < window.count; ++e) {
            const T* from = x + window.offsets[e] + c;
            take(there == kLanes ? load(from) : load_part(from, there), window.numbers[e], best, code);
          }
          if (there == kLanes)
            store_exact(y + o, best);
          else
            store_part(y + o, best, there);
          store_codes(codes + o, code);  // what it writes too much is overwritten by the next pixel
        }
      }
      pack_codes(codes, space.group, a.bits, a.codes + group * packed);
    }
  }
}

// Sums of overlapping windows are rounded one by one, as torch's.
static inline void add_to(float* p, const float* g) { *p += *g; }
template <class T>
void add_to(T* p, const T* g) {
  store_part(p, load_part(p, 1) + load_part(g, 1), 1);
}

template <class T>
void unpool_planes(const MaxPoolArgs& a) {
  const int64_t planes = a.batch * a.channels, inputs = elements(a.size), outputs = elements(a.out);
  const int64_t packed = code_bytes(outputs, a.bits);
  int64_t offsets[kLongestWindow];
  for (int64_t i = 0, e = 0; i < a.kernel.d; ++i)
    for (int64_t j = 0; j < a.kernel.h; ++j)
      for (int64_t k = 0; k < a.kernel.w; ++k)
        offsets[e++] = (i * a.dilation.d * a.size.h + j * a.dilation.h) * a.size.w + k * a.dilation.w;
#pragma omp parallel for schedule(static) num_threads(team_for(planes* inputs, a.threads))
  for (int64_t plane = 0; plane < planes; ++plane) {
    const T* g = static_cast<const T*>(a.x) + plane * outputs;
    T* dx = static_cast<T*>(a.y) + plane * inputs;
    const uint8_t* codes = a.codes + plane * packed;
    memset(static_cast<void*>(dx), 0, static_cast<size_t>(inputs) * sizeof(T));
    int64_t o = 0;
    for (int64_t od = 0; od < a.out.d; ++od)
      for (int64_t oh = 0; oh < a.out.h; ++oh) {
        const int64_t row = (od * a.stride.d - a.padding.d) * a.size.h + oh * a.stride.h - a.padding.h;
        int64_t start = row * a.size.w - a.padding.w;
        for (int64_t ow = 0; ow < a.out.w; ++ow, ++o, start += a.stride.w)
          add_to(dx + (start + offsets[code_at(codes, o, a.bits)]), g + o);
      }
  }
}

template <class T>
void unpool_channels(const MaxPoolArgs& a) {
  constexpr int64_t kChunk = 64;  // channels that a thread takes at once
  const int64_t chunks = (a.channels + kChunk - 1) / kChunk, image = elements(a.size) * a.channels;
  const int64_t group = a.out.w * a.channels, packed = code_bytes(group, a.bits);
#pragma omp parallel for schedule(static) num_threads(team_for(a.batch* image, a.threads))
  for (int64_t task = 0; task < a.batch * chunks; ++task) {
    const int64_t n = task / chunks, begin = task % chunks * kChunk;
    const int64_t channels = at_most(a.channels - begin, kChunk);
    T* dx = static_cast<T*>(a.y) + n * image + begin;
    for (int64_t i = 0; i < elements(a.size); ++i)
      memset(static_cast<void*>(dx + i * a.channels), 0, static_cast<size_t>(channels) * sizeof(T));
    for (int64_t od = 0; od < a.out.d; ++od)
      for (int64_t oh = 0; oh < a.out.h; ++oh) {
        const int64_t row = (n * a.out.d + od) * a.out.h + oh;
        const T* g = static_cast<const T*>(a.x) + row * group + begin;
        const uint8_t* codes = a.codes + row * packed;
        const Span d(od, a.size.d, a.kernel.d, a.stride.d, a.padding.d, a.dilation.d);
        const Span h(oh, a.size.h, a.kernel.h, a.stride.h, a.padding.h, a.dilation.h);
        for (int64_t ow = 0; ow < a.out.w; ++ow) {
          const Window window(a, d, h, Span(ow, a.size.w, a.kernel.w, a.stride.w, a.padding.w, a.dilation.w));
          for (int64_t c = 0; c < channels; c += kLanes) {
            const int64_t there = at_most(channels - c, kLanes), o = ow * a.channels + c;
            const Ints code = codes_at(codes, packed, o + begin, a.bits, there);
            const Floats v = there == kLanes ? load(g + o) : load_part(g + o, there);
            for (int64_t e = 0; e < window.count; ++e) {
              T* to = dx + window.offsets[e] + c;
              const Floats some = select(code == window.numbers[e], v, splat(0.f));
              if (there == kLanes)
                store(to, load(to) + some);
              else
                store_part(to, load_part(to, there) + some, there);
            }
          }
        }
      }
  }
}

template <class T>
void pool(const MaxPoolArgs& a) {
  return a.channels_last ? pool_channels<T>(a) : pool_planes<T>(a);
}

template <class T>
void unpool(const MaxPoolArgs& a) {
  return a.channels_last ? unpool_channels<T>(a) : unpool_planes<T>(a);
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
