// A gradient by bits and, in the same pass over memory, its sums by channel.
#pragma once

#include "cpu/pack.h"

namespace thawkit {
namespace THAWKIT_ISA {

constexpr int64_t kSumBlock = 64 * kLanes;  // elements of a row, or
constexpr int64_t kSumRows = 16;            // rows of channels, whose float32 sum goes on in float64

static inline double wide_sum(Floats a) {
  double s = 0;
  for (int i = 0; i < kLanes; ++i) s += static_cast<double>(a[i]);
  return s;
}

// As load_part and store_part; where rows are short, half of the time goes here.
template <class T>
static inline Floats load_few(const T* p, int64_t count) {
  return load_part(p, count);
}
template <class T>
static inline void store_few(T* p, Floats v, int64_t count) {
  store_part(p, v, count);
}
#if defined(THAWKIT_AVX512)
static inline Floats load_few(const float* p, int64_t count) {
  return bit_cast<Floats>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p));
}
static inline void store_few(float* p, Floats v, int64_t count) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), bit_cast<__m512>(v));
}
#endif

// 64 bits from bit i on, which may begin inside a byte; past the last byte they are 0.
static inline uint64_t bits_from(const uint8_t* mask, int64_t bytes, int64_t i) {
  uint64_t low = 0;
  const int64_t first = i / 8, shift = i % 8;
  if (first + 9 <= bytes) {
    memcpy(&low, mask + first, 8);
    return low >> shift | static_cast<uint64_t>(mask[first + 8]) << 1 << (63 - shift);
  }
  memcpy(&low, mask + first, static_cast<size_t>(bytes - first));
  return low >> shift;
}

// The vectors of a row of channels that begins at element `first`: `whole(c, bits)` for each of the channels
// from c on, and `part(c, bits, count)` for what is left. `run` has the bits.
template <class Run, class Whole, class Part>
static inline void each_vector(const Run& run, int64_t first, int64_t channels, Whole whole, Part part) {
  int64_t c = 0;
  while (c + kLanes <= channels) {
    uint64_t bits = run.word(first + c);
    const int64_t stop = channels - c < kWord ? channels - kLanes : c + kWord - kLanes;
    for (; c <= stop; c += kLanes, bits >>= kLanes) whole(c, bits);
  }
  if (c < channels) part(c, run.word(first + c), channels - c);
}

template <Masked Kind, class T>
struct MaskedRun {
  const T* g;
  const uint8_t* mask;
  T* dx;
  int64_t bytes;
  Floats yes, no;

  explicit MaskedRun(const ChannelSumArgs& a)
      : g(static_cast<const T*>(a.g)),
        mask(a.mask),
        dx(static_cast<T*>(a.dx)),
        bytes((a.outer * a.channels * a.inner + 7) / 8),
        yes(splat(a.yes)),
        no(splat(a.no)) {}

  uint64_t word(int64_t i) const { return mask ? bits_from(mask, bytes, i) : ~0ull; }

  // Writes and returns the vector from i on, whose bits are the lowest; of one that is not whole, `count`
  // elements.
  template <bool Whole = true>
  Floats vector(int64_t i, uint64_t bits, Floats no, int64_t count = kLanes) const {
    const Ints bit = from_bits(static_cast<uint32_t>(bits));
    if constexpr (Whole) {
      const Floats d = gradient<Kind>(load(g + i), bit, yes, no);
      if (dx) store_masked<Kind>(dx + i, d);
      return d;
    }
    // lanes past the end are 0, also where `no` is infinite
    const Floats v = load_few(g + i, count);
    const Floats d = select(lane_numbers() < splat(static_cast<int32_t>(count)),
                            gradient<Kind>(v, bit, yes, no), splat(0.f));
    if (dx) store_few(dx + i, d, count);
    return d;
  }
};

// Every channel is runs of `inner` elements.
template <Masked Kind, class T>
void sum_runs(const ChannelSumArgs& a) {
  const MaskedRun<Kind, T> run(a);
  const int threads = team_for(a.outer * a.channels * a.inner, a.threads);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t c = 0; c < a.channels; ++c) {
    const Floats no = splat(a.factors ? a.factors[c] : a.no);
    double sum = 0;
    Floats even = {}, odd = {};
    int64_t pending = 0;  // elements in them
    for (int64_t o = 0; o < a.outer; ++o) {
      const int64_t begin = (o * a.channels + c) * a.inner, end = begin + a.inner;
      for (int64_t block = begin; block < end; block += kSumBlock) {
        const int64_t stop = end - block < kSumBlock ? end : block + kSumBlock;
        int64_t i = block;
        for (; i + kWord <= stop; i += kWord) {
          const uint64_t bits = run.word(i);
          for (int64_t j = 0; j < kWord; j += 2 * kLanes) {
            even += run.vector(i + j, bits >> j, no);
            odd += run.vector(i + j + kLanes, bits >> (j + kLanes), no);
          }
        }
        if (i < stop) {
          uint64_t bits = run.word(i);
          for (; i + kLanes <= stop; i += kLanes, bits >>= kLanes) even += run.vector(i, bits, no);
          if (i < stop) odd += run.template vector<false>(i, bits, no, stop - i);
        }
        pending += stop - block;
        if (pending < kSumBlock && o + 1 < a.outer) continue;
        sum += wide_sum(even) + wide_sum(odd);
        even = odd = splat(0.f);
        pending = 0;
      }
    }
    if (a.sums) a.sums[c] = static_cast<float>(sum);
  }
}

// Each thread's sums: channels doubles, and as many floats.
static inline int64_t thread_sums(const ChannelSumArgs& a) { return a.channels + (a.channels + 1) / 2; }

// The channels are innermost.
template <Masked Kind, class T>
void sum_rows(const ChannelSumArgs& a) {
  const MaskedRun<Kind, T> run(a);
  const int64_t channels = a.channels;
  const float* factors = a.factors;
  int team = 1;
#pragma omp parallel num_threads(team_for(a.outer* a.channels, a.threads))
  {
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    if (thread == 0) team = static_cast<int>(threads);
    double* total = a.workspace + thread * thread_sums(a);
    float* some = reinterpret_cast<float*>(total + a.channels);
    const auto clear = [&] {
      for (int64_t c = 0; c < a.channels; ++c) some[c] = 0;
    };
    for (int64_t c = 0; c < a.channels; ++c) total[c] = 0;
    clear();
    const int64_t begin = a.outer * thread / threads, end = a.outer * (thread + 1) / threads;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t first = row * channels;
      const auto whole = [&](int64_t c, uint64_t bits) {
        const Floats no = factors ? load(factors + c) : run.no;
        store(some + c, load(some + c) + run.vector(first + c, bits, no));
      };
      const auto part = [&](int64_t c, uint64_t bits, int64_t count) {
        const Floats no = factors ? load_few(factors + c, count) : run.no;
        const Floats d = run.template vector<false>(first + c, bits, no, count);
        store_few(some + c, load_few(some + c, count) + d, count);
      };
      each_vector(run, first, channels, whole, part);
      if ((row - begin) % kSumRows == kSumRows - 1 || row == end - 1) {
        for (int64_t c = 0; c < a.channels; ++c) total[c] += static_cast<double>(some[c]);
        clear();
      }
    }
  }
  if (!a.sums) return;
  for (int64_t c = 0; c < a.channels; ++c) {
    double sum = 0;
    for (int thread = 0; thread < team; ++thread) sum += a.workspace[thread * thread_sums(a) + c];
    a.sums[c] = static_cast<float>(sum);
  }
}

template <Masked Kind, class T>
void sum_channels(const ChannelSumArgs& a) {
  return a.inner == 1 ? sum_rows<Kind, T>(a) : sum_runs<Kind, T>(a);
}

template <class T>
void channel_sum_by_kind(const ChannelSumArgs& a) {
  return a.kind == Masked::kPass ? sum_channels<Masked::kPass, T>(a) : sum_channels<Masked::kTwo, T>(a);
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
