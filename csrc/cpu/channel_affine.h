// A scale and a shift by channel, a sum, and a clamp that keeps its bits; and the gradients of all of these,
// each in one pass over memory.
#pragma once

#include "cpu/channel_sum.h"

namespace thawkit {
namespace THAWKIT_ISA {

// Numbers by channel for the elements from a position on. Channels that are innermost are written over and
// over until a vector may begin at any of them.
class ByChannel {
 public:
  ByChannel(const ChannelAffineArgs& a) : channels_(a.channels), inner_(a.inner) {}

  int64_t channel(int64_t i) const { return i / inner_ % channels_; }

  // For `table` filled by `repeat`, and `channel` that of element i.
  Floats load(const float* table, int64_t i, int64_t channel) const {
    if (inner_ == 1) return THAWKIT_ISA::load(table + channel);
    if (i % inner_ + kLanes <= inner_) return splat(table[channel]);
    float lanes[kLanes];
    for (int j = 0; j < kLanes; ++j) lanes[j] = table[this->channel(i + j)];
    return THAWKIT_ISA::load(lanes);
  }

  int64_t advance(int64_t channel, int64_t i) const {
    if (inner_ != 1) return this->channel(i + kLanes);
    channel += kLanes;
    return channel < channels_ ? channel : channel % channels_;
  }

  static int64_t table_size(int64_t channels) { return channels + kLanes; }

  void repeat(const float* from, float* table) const {
    for (int64_t c = 0; c < table_size(channels_); ++c) table[c] = from[c % channels_];
  }

 private:
  int64_t channels_, inner_;
};

static inline int64_t affine_tables(const ChannelAffineArgs& a) {
  return 2 * ByChannel::table_size(a.channels);
}

template <class T>
void affine_clamp(const ChannelAffineArgs& a) {
  const T* x = static_cast<const T*>(a.x);
  const T* other = static_cast<const T*>(a.other);
  T* y = static_cast<T*>(a.y);
  const int64_t n = a.outer * a.channels * a.inner;
  if (n == 0) return;
  const ByChannel by(a);
  float* scale = a.workspace;
  float* shift = scale + ByChannel::table_size(a.channels);
  by.repeat(a.scale, scale);
  by.repeat(a.shift, shift);
  const Floats lower = splat(a.lower), upper = splat(a.upper);
  const Floats rounded_lower = splat(rounded<T>(a.lower)), rounded_upper = splat(rounded<T>(a.upper));
  const bool bounded = a.upper < __builtin_inff();
  const int64_t words = (n + kWord - 1) / kWord;
#pragma omp parallel num_threads(team_for(n, a.threads))
  {
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    int64_t i = words * thread / threads * kWord;
    const int64_t stop = words * (thread + 1) / threads * kWord, end = stop < n ? stop : n;
    int64_t c = by.channel(i);
    for (; i < end;) {
      const int64_t first = i, here = end - i < kWord ? end - i : kWord;
      uint64_t bits = 0;
      for (; i < first + here; c = by.advance(c, i), i += kLanes) {
        const int64_t left = first + here - i, count = left < kLanes ? left : kLanes;
        const bool whole = count == kLanes;
        Floats v =
            (whole ? load(x + i) : load_few(x + i, count)) * by.load(scale, i, c) + by.load(shift, i, c);
        if (other) v += whole ? load(other + i) : load_few(other + i, count);
        if (a.mask) {
          // of the value that y will hold, as where the clamp were a step of its own
          if constexpr (sizeof(T) < sizeof(float)) {
            T lanes[kLanes];
            store(lanes, v);
            v = load(lanes);
          }
          const Ints passes = bounded ? (v > lower) & (v < upper) : ~(v <= lower);
          bits |= static_cast<uint64_t>(to_bits(passes) & ((1ull << count) - 1)) << (i - first);
          v = clamp(v, rounded_lower, rounded_upper);
        }
        if (whole)
          store(y + i, v);
        else
          store_few(y + i, v, count);
      }
      i = first + here;
      if (a.mask) memcpy(a.mask + first / 8, &bits, static_cast<size_t>((here + 7) / 8));
    }
  }
}

// One vector of the gradients, and what it adds to the two sums of its channels.
template <class T>
struct AffineGradient {
  const T* g;
  const T* x;
  T* dx;
  T* dother;
  const uint8_t* mask;
  int64_t bytes;

  explicit AffineGradient(const ChannelAffineArgs& a)
      : g(static_cast<const T*>(a.g)),
        x(static_cast<const T*>(a.x)),
        dx(static_cast<T*>(a.dx)),
        dother(static_cast<T*>(a.dother)),
        mask(a.mask),
        bytes((a.outer * a.channels * a.inner + 7) / 8) {}

  uint64_t word(int64_t i) const { return mask ? bits_from(mask, bytes, i) : ~0ull; }

  void operator()(int64_t i, int64_t count, uint64_t bits, Floats scale, Floats centre, Floats& sum,
                  Floats& product) const {
    const bool whole = count == kLanes;
    const Ints there = lane_numbers() < splat(static_cast<int32_t>(count));
    const Ints bit = from_bits(static_cast<uint32_t>(bits)) & there;
    const Floats d = select(bit, whole ? load(g + i) : load_few(g + i, count), splat(0.f));
    if (dx) whole ? store(dx + i, d * scale) : store_few(dx + i, d * scale, count);
    if (dother) whole ? store(dother + i, d) : store_few(dother + i, d, count);
    sum += d;
    if (!x) return;
    const Floats apart = (whole ? load(x + i) : load_few(x + i, count)) - centre;
    // no 0 * inf where no gradient passes
    product += select(bit, d * apart, splat(0.f));
  }
};

static inline int64_t affine_sums(const ChannelAffineArgs& a) { return 2 * a.channels; }  // of one thread

template <class T>
void affine_gradient_rows(const ChannelAffineArgs& a) {
  const AffineGradient<T> run(a);
  const int64_t channels = a.channels, each = affine_sums(a);
  double* totals = reinterpret_cast<double*>(a.workspace);
  float* partial = reinterpret_cast<float*>(totals + each * a.threads);
  int team = 1;
#pragma omp parallel num_threads(team_for(a.outer* channels, a.threads))
  {
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    if (thread == 0) team = static_cast<int>(threads);
    double* total = totals + thread * each;
    float* some = partial + thread * each;
    for (int64_t c = 0; c < each; ++c) total[c] = 0, some[c] = 0;
    const int64_t begin = a.outer * thread / threads, end = a.outer * (thread + 1) / threads;
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t c = 0; c < channels; c += kWord) {
        const uint64_t bits = run.word(row * channels + c);
        const int64_t stop = channels - c < kWord ? channels - c : kWord;
        for (int64_t j = 0; j < stop; j += kLanes) {
          const int64_t count = stop - j < kLanes ? stop - j : kLanes, i = c + j;
          const bool whole = count == kLanes;
          const auto get = [&](const float* p) { return whole ? load(p) : load_few(p, count); };
          const auto put = [&](float* p, Floats v) { whole ? store(p, v) : store_few(p, v, count); };
          Floats sum = get(some + i), product = get(some + channels + i);
          run(row * channels + i, count, bits >> j, get(a.scale + i), get(a.shift + i), sum, product);
          put(some + i, sum);
          put(some + channels + i, product);
        }
      }
      if ((row - begin) % kSumRows == kSumRows - 1 || row == end - 1)
        for (int64_t c = 0; c < each; ++c) total[c] += static_cast<double>(some[c]), some[c] = 0;
    }
  }
  for (int64_t c = 0; c < each; ++c) {
    double sum = 0;
    for (int thread = 0; thread < team; ++thread) sum += totals[thread * each + c];
    a.sums[c] = static_cast<float>(sum);
  }
}

template <class T>
void affine_gradient_runs(const ChannelAffineArgs& a) {
  const AffineGradient<T> run(a);
#pragma omp parallel for schedule(static) num_threads(team_for(a.outer* a.channels* a.inner, a.threads))
  for (int64_t c = 0; c < a.channels; ++c) {
    const Floats scale = splat(a.scale[c]), centre = splat(a.shift[c]);
    double total = 0, products = 0;
    for (int64_t o = 0; o < a.outer; ++o) {
      const int64_t begin = (o * a.channels + c) * a.inner, end = begin + a.inner;
      for (int64_t block = begin; block < end; block += kSumBlock) {
        const int64_t stop = end - block < kSumBlock ? end : block + kSumBlock;
        Floats sum = {}, product = {};
        for (int64_t i = block; i < stop; i += kWord) {
          const uint64_t bits = run.word(i);
          for (int64_t j = 0; j < kWord && i + j < stop; j += kLanes) {
            const int64_t left = stop - i - j, count = left < kLanes ? left : kLanes;
            run(i + j, count, bits >> j, scale, centre, sum, product);
          }
        }
        total += wide_sum(sum);
        products += wide_sum(product);
      }
    }
    a.sums[c] = static_cast<float>(total);
    a.sums[a.channels + c] = static_cast<float>(products);
  }
}

template <class T>
void affine_gradient(const ChannelAffineArgs& a) {
  return a.inner == 1 ? affine_gradient_rows<T>(a) : affine_gradient_runs<T>(a);
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
