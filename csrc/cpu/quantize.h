// Rounding activations to a few bits, and what the bits stand for.
#pragma once

#include <omp.h>

#include "common/quantize.h"
#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "cpu/simd.h"

namespace thawkit {
namespace THAWKIT_ISA {

typedef uint8_t Bytes __attribute__((vector_size(kLanes), aligned(1)));

constexpr int kLargestGroup = 256;

static inline Ints lanes_below(int64_t count) { return lane_numbers() < splat(static_cast<int32_t>(count)); }

// One of four numbers a lane, by whether it lies above each of the thresholds.
static inline Ints part_codes(Floats x, const Thresholds& t) {
  return -((x > splat(t.low)) + (x > splat(t.middle)) + (x > splat(t.high)));
}

// Codes of a group x[count], a byte each; lanes past the end are 0. x can be read to a whole vector.
template <int Bits>
static inline void encode_group(const float* x, int64_t count, uint8_t* codes, float* numbers) {
  Floats strange = {};
  for (int64_t i = 0; i < count; i += kLanes)
    strange += select(lanes_below(count - i), load(x + i) * 0.f, splat(0.f));
  const float nan_or_0 = sum(strange);
  if constexpr (Bits == 2) {
    const float each = 1.f / static_cast<float>(count);
    Floats total = {}, deviation = {};
    for (int64_t i = 0; i < count; i += kLanes)
      total += select(lanes_below(count - i), load(x + i) * each, splat(0.f));
    const float mean = sum(total);
    for (int64_t i = 0; i < count; i += kLanes)
      deviation += select(lanes_below(count - i), abs(load(x + i) - mean) * each, splat(0.f));
    const Thresholds limits = thresholds(mean, sum(deviation));
    Floats sums[4] = {}, counts[4] = {};
    for (int64_t i = 0; i < count; i += kLanes) {
      const Ints there = lanes_below(count - i), part = part_codes(load(x + i), limits) & there;
      for (int c = 0; c < 4; ++c) {
        const Ints mine = (part == splat(c)) & there;
        sums[c] += select(mine, load(x + i) * each, splat(0.f));
        counts[c] += select(mine, splat(each), splat(0.f));
      }
      const Bytes narrow = __builtin_convertvector(part, Bytes);
      memcpy(codes + i, &narrow, sizeof narrow);
    }
    for (int c = 0; c < 4; ++c) numbers[c] = level_of(sum(sums[c]), sum(counts[c]), mean, nan_or_0);
  } else {
    constexpr float kLast = Bits == 8 ? 255.f : 15.f;
    Floats lowest = splat(x[0]), highest = splat(x[0]);
    for (int64_t i = 0; i < count; i += kLanes) {
      const Floats v = select(lanes_below(count - i), load(x + i), splat(x[0]));
      lowest = min(v, lowest);
      highest = max(v, highest);
    }
    const EvenLevels levels = even_levels(-max_lane(-lowest), max_lane(highest), nan_or_0, Bits);
    for (int64_t i = 0; i < count; i += kLanes) {
      const Floats at = min(splat(kLast), max(splat(0.f), even_position(load(x + i), levels)));
      const Ints code = bit_cast<Ints>(at + kRounds) & 0xff & lanes_below(count - i);
      const Bytes narrow = __builtin_convertvector(code, Bytes);
      memcpy(codes + i, &narrow, sizeof narrow);
    }
    numbers[0] = levels.lowest;
    numbers[1] = levels.step;
  }
}

// Eight codes, a byte each, next to each other in 8 Bits bits, and back.
template <int Bits>
static inline uint64_t squeeze(uint64_t v) {
  if constexpr (Bits == 2) {
    v = (v | v >> 6) & 0x000f000f000f000full;
    v = (v | v >> 12) & 0x000000ff000000ffull;
    return (v | v >> 24) & 0xffff;
  }
  v = (v | v >> 4) & 0x00ff00ff00ff00ffull;
  v = (v | v >> 8) & 0x0000ffff0000ffffull;
  return (v | v >> 16) & 0xffffffffull;
}

template <int Bits>
static inline uint64_t spread(uint64_t v) {
  if constexpr (Bits == 2) {
    v = (v | v << 24) & 0x000000ff000000ffull;
    v = (v | v << 12) & 0x000f000f000f000full;
    return (v | v << 6) & 0x0303030303030303ull;
  }
  v = (v | v << 16) & 0x0000ffff0000ffffull;
  v = (v | v << 8) & 0x00ff00ff00ff00ffull;
  return (v | v << 4) & 0x0f0f0f0f0f0f0f0full;
}

template <int Bits, class T>
void quantize_groups(const QuantizeArgs& args) {
  constexpr int64_t kGroup = group_size(Bits);
  const T* x = static_cast<const T*>(args.x);
  const int64_t groups = (args.n + kGroup - 1) / kGroup;
#pragma omp parallel for schedule(static) num_threads(team_for(args.n, args.threads))
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * kGroup, count = args.n - first < kGroup ? args.n - first : kGroup;
    float values[kLargestGroup];
    uint8_t codes[kLargestGroup] = {};
    for (int64_t i = 0; i < count; i += kLanes)
      store(values + i, count - i < kLanes ? load_part(x + first + i, count - i) : load(x + first + i));
    encode_group<Bits>(values, count, codes, args.numbers + g * numbers_a_group(Bits));
    uint8_t* to = args.codes + first * Bits / 8;
    if constexpr (Bits < 8)
      for (int64_t i = 0; i < count; i += 8) {
        uint64_t eight;
        memcpy(&eight, codes + i, 8);
        eight = squeeze<Bits>(eight);
        memcpy(codes + i / 8 * Bits, &eight, Bits);
      }
    memcpy(to, codes, static_cast<size_t>((count * Bits + 7) / 8));
  }
}

template <int Bits>
static inline Floats decode(const uint8_t* codes, const float* numbers) {
  Bytes narrow;
  memcpy(&narrow, codes, sizeof narrow);
  const Ints code = __builtin_convertvector(narrow, Ints);
  if constexpr (Bits == 2) {
    const Floats lower = select((code & 1) == 1, splat(numbers[1]), splat(numbers[0]));
    const Floats upper = select((code & 1) == 1, splat(numbers[3]), splat(numbers[2]));
    return select(code > 1, upper, lower);
  }
  return __builtin_convertvector(code, Floats) * numbers[1] + numbers[0];
}

template <int Bits, class T>
void dequantize_groups(const DequantizeArgs& args) {
  constexpr int64_t kGroup = group_size(Bits);
  const T* g = static_cast<const T*>(args.g);
  T* y = static_cast<T*>(args.y);
  const int64_t groups = (args.n + kGroup - 1) / kGroup;
#pragma omp parallel for schedule(static) num_threads(team_for(args.n, args.threads))
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t first = group * kGroup, count = args.n - first < kGroup ? args.n - first : kGroup;
    const float* numbers = args.numbers + group * numbers_a_group(Bits);
    uint8_t packed[kLargestGroup] = {}, codes[kLargestGroup];
    memcpy(packed, args.codes + first * Bits / 8, static_cast<size_t>((count * Bits + 7) / 8));
    if constexpr (Bits < 8)
      for (int64_t i = 0; i < kGroup; i += 8) {
        uint64_t eight = 0;
        memcpy(&eight, packed + i / 8 * Bits, Bits);
        eight = spread<Bits>(eight);
        memcpy(codes + i, &eight, 8);
      }
    for (int64_t i = 0; i < count; i += kLanes) {
      Floats v = decode<Bits>((Bits < 8 ? codes : packed) + i, numbers);
      const int64_t rest = count - i;
      if (g) v *= rest < kLanes ? load_part(g + first + i, rest) : load(g + first + i);
      if (rest < kLanes)
        store_part(y + first + i, v, rest);
      else
        store(y + first + i, v);
    }
  }
}

template <class T>
void quantize_by_bits(const QuantizeArgs& args) {
  if (args.bits == 8) return quantize_groups<8, T>(args);
  if (args.bits == 4) return quantize_groups<4, T>(args);
  quantize_groups<2, T>(args);
}

template <class T>
void dequantize_by_bits(const DequantizeArgs& args) {
  if (args.bits == 8) return dequantize_groups<8, T>(args);
  if (args.bits == 4) return dequantize_groups<4, T>(args);
  dequantize_groups<2, T>(args);
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
