// A scale and a shift by channel, a sum, and a clamp that keeps its bits; and the gradients of all of these,
// each in one pass over memory.
#pragma once

#include "cpu/channel_sum.h"

namespace thawkit {
namespace THAWKIT_ISA {

// Numbers by channel for words of elements. Channels that are innermost are written over and over until a
// word may begin at any of them.
class ByChannel {
 public:
  struct Place {
    int64_t channel, run;  // `run` elements into those of the channel that lie together
  };

  ByChannel(const ChannelAffineArgs& a) : channels_(a.channels), inner_(a.inner) {}

  Place at(int64_t i) const { return {i / inner_ % channels_, i % inner_}; }

  Place after_word(Place p) const {
    if (inner_ == 1) {
      p.channel += kWord;
      if (p.channel >= channels_) p.channel %= channels_;
      return p;
    }
    p.run += kWord;
    for (; p.run >= inner_; p.run -= inner_) next(p.channel);
    return p;
  }

  bool within_run(Place p) const { return p.run + kWord <= inner_; }

  // The word's numbers of a table filled by `repeat`; `lanes` holds them where they do not lie together
  // there.
  const float* word(const float* table, Place p, float* lanes) const {
    if (inner_ == 1) return table + p.channel;
    for (int j = 0; j < kWord; p.run = 0, next(p.channel))
      for (int64_t stop = kWord - j < inner_ - p.run ? kWord : j + inner_ - p.run; j < stop; ++j)
        lanes[j] = table[p.channel];
    return lanes;
  }

  static int64_t table_size(int64_t channels) { return channels + kWord; }

  void repeat(const float* from, float* table) const {
    for (int64_t c = 0; c < table_size(channels_); ++c) table[c] = from[c % channels_];
  }

 private:
  void next(int64_t& channel) const {
    if (++channel == channels_) channel = 0;
  }

  int64_t channels_, inner_;
};

static inline int64_t affine_tables(const ChannelAffineArgs& a) {
  return 2 * ByChannel::table_size(a.channels);
}

struct Same {
  Floats number;
  Floats operator()(int64_t) const { return number; }
};
struct Each {
  const float* numbers;
  Floats operator()(int64_t j) const { return load(numbers + j); }
};

enum class Bounds { kNone, kLower, kBoth };

template <Bounds Kind, class T>
void affine_words(const ChannelAffineArgs& a) {
  const T* x = static_cast<const T*>(a.x);
  const T* other = static_cast<const T*>(a.other);
  T* y = static_cast<T*>(a.y);
  const int64_t n = a.outer * a.channels * a.inner;
  const ByChannel by(a);
  float* scale = a.workspace;
  float* shift = scale + ByChannel::table_size(a.channels);
  by.repeat(a.scale, scale);
  by.repeat(a.shift, shift);
  const Floats lower = splat(a.lower), upper = splat(a.upper);
  const Floats rounded_lower = splat(rounded<T>(a.lower)), rounded_upper = splat(rounded<T>(a.upper));

  // Writes y and returns the bits of a word.
  const auto run = [&](const T* x, const T* other, T* y, auto scale, auto shift) {
    uint64_t bits = 0;
    for (int64_t j = 0; j < kWord; j += kLanes) {
      Floats v = load(x + j) * scale(j) + shift(j);
      if (other) v += load(other + j);
      if constexpr (Kind != Bounds::kNone) {
        // of the value that y will hold, as where the clamp were a step of its own
        if constexpr (sizeof(T) < sizeof(float)) {
          T lanes[kLanes];
          store(lanes, v);
          v = load(lanes);
        }
        const Ints passes = Kind == Bounds::kBoth ? (v > lower) & (v < upper) : ~(v <= lower);
        bits |= static_cast<uint64_t>(to_bits(passes)) << j;
        v = clamp(v, rounded_lower, rounded_upper);
      }
      store(y + j, v);
    }
    return bits;
  };
  const auto run_at = [&](ByChannel::Place place, const T* x, const T* other, T* y) {
    if (by.within_run(place))
      return run(x, other, y, Same{splat(scale[place.channel])}, Same{splat(shift[place.channel])});
    float scales[kWord], shifts[kWord];
    return run(x, other, y, Each{by.word(scale, place, scales)}, Each{by.word(shift, place, shifts)});
  };

  const int64_t words = n / kWord, rest = n % kWord;
#pragma omp parallel num_threads(team_for(n, a.threads))
  {
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const int64_t stop = words * (thread + 1) / threads;
    int64_t w = words * thread / threads;
    auto place = by.at(w * kWord);
    for (; w < stop; ++w, place = by.after_word(place)) {
      const int64_t i = w * kWord;
      const uint64_t bits = run_at(place, x + i, other ? other + i : nullptr, y + i);
      if constexpr (Kind != Bounds::kNone) memcpy(a.mask + w * 8, &bits, 8);
    }
  }
  if (rest == 0) return;
  T of_x[kWord] = {}, of_other[kWord] = {}, of_y[kWord];
  const int64_t first = words * kWord;
  const size_t bytes = static_cast<size_t>(rest) * sizeof(T);
  memcpy(of_x, x + first, bytes);
  if (other) memcpy(of_other, other + first, bytes);
  uint64_t bits = run_at(by.at(first), of_x, other ? of_other : nullptr, of_y);
  memcpy(y + first, of_y, bytes);
  bits &= (1ull << rest) - 1;
  if constexpr (Kind != Bounds::kNone) memcpy(a.mask + words * 8, &bits, static_cast<size_t>((rest + 7) / 8));
}

template <class T>
void affine_clamp(const ChannelAffineArgs& a) {
  if (a.outer * a.channels * a.inner == 0) return;
  if (!a.mask) return affine_words<Bounds::kNone, T>(a);
  return a.upper < __builtin_inff() ? affine_words<Bounds::kBoth, T>(a) : affine_words<Bounds::kLower, T>(a);
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

  // `bits` begin with that of element i; of a vector that is not whole `count` elements are there.
  template <bool Whole = true>
  void vector(int64_t i, uint64_t bits, Floats scale, Floats centre, Floats& sum, Floats& product,
              int64_t count = kLanes) const {
    const auto get = [&](const T* p) { return Whole ? load(p) : load_few(p, count); };
    const auto put = [&](T* p, Floats v) { Whole ? store(p, v) : store_few(p, v, count); };
    Ints bit = from_bits(static_cast<uint32_t>(bits));
    if constexpr (!Whole) bit &= lane_numbers() < splat(static_cast<int32_t>(count));
    const Floats d = select(bit, get(g + i), splat(0.f));
    if (dx) put(dx + i, d * scale);
    if (dother) put(dother + i, d);
    sum += d;
    // no 0 * inf where no gradient passes
    if (x) product += d * select(bit, get(x + i) - centre, splat(0.f));
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
      const int64_t first = row * channels;
      const auto whole = [&](int64_t c, uint64_t bits) {
        Floats sum = load(some + c), product = load(some + channels + c);
        run.vector(first + c, bits, load(a.scale + c), load(a.shift + c), sum, product);
        store(some + c, sum);
        store(some + channels + c, product);
      };
      const auto part = [&](int64_t c, uint64_t bits, int64_t count) {
        const auto get = [&](const float* p) { return load_few(p, count); };
        Floats sum = get(some + c), product = get(some + channels + c);
        run.template vector<false>(first + c, bits, get(a.scale + c), get(a.shift + c), sum, product, count);
        store_few(some + c, sum, count);
        store_few(some + channels + c, product, count);
      };
      each_vector(run, first, channels, whole, part);
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
        Floats sum[2] = {}, product[2] = {};
        int64_t i = block;
        for (; i + kWord <= stop; i += kWord) {
          const uint64_t bits = run.word(i);
          for (int64_t j = 0; j < kWord; j += 2 * kLanes) {
            run.vector(i + j, bits >> j, scale, centre, sum[0], product[0]);
            run.vector(i + j + kLanes, bits >> (j + kLanes), scale, centre, sum[1], product[1]);
          }
        }
        if (i < stop) {
          uint64_t bits = run.word(i);
          for (; i + kLanes <= stop; i += kLanes, bits >>= kLanes)
            run.vector(i, bits, scale, centre, sum[0], product[0]);
          if (i < stop) run.template vector<false>(i, bits, scale, centre, sum[1], product[1], stop - i);
        }
        total += wide_sum(sum[0]) + wide_sum(sum[1]);
        products += wide_sum(product[0]) + wide_sum(product[1]);
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
