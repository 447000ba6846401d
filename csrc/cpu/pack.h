// Elementwise functions that keep one bit an element, and the gradients that these bits give.
#pragma once

#include <omp.h>

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace thawkit {
namespace THAWKIT_ISA {

constexpr int64_t kWord = 64;  // elements whose bits are written together
constexpr int64_t kSerialBelow = 32768;

// The threads that n elements are worth.
static inline int team_for(int64_t n, int threads) { return n < kSerialBelow || threads < 1 ? 1 : threads; }

// The number as T has it, so that a value equal to it needs no rounding.
template <class T>
static inline float rounded(float number) {
  T lanes[kLanes];
  store(lanes, splat(number));
  return load(lanes)[0];
}

static inline Floats clamp(Floats x, Floats lower, Floats upper) { return min(upper, max(lower, x)); }

// Value and bits of one kind of function: `a` and `b` are its numbers, or their roundings where a value may
// become equal to one.
template <Packed Kind, class T>
struct Function {
  Floats a, b, rounded_a, rounded_b;
  bool limited, bounded;  // from below and from above

  explicit Function(const PackArgs& args)
      : a(splat(args.a)),
        b(splat(args.b)),
        rounded_a(splat(rounded<T>(args.a))),
        rounded_b(splat(rounded<T>(args.b))),
        limited(args.a > -__builtin_inff()),
        bounded(args.b < __builtin_inff()) {
    // torch's clamp compares with the numbers that T has; so does this where x is clamped already
    if (Kind == Packed::kClamp || (Kind == Packed::kRelu && !args.y)) a = rounded_a, b = rounded_b;
  }

  // At NaN torch's relu passes the gradient and its hardtanh does not.
  Ints bits(Floats x) const {
    if constexpr (Kind == Packed::kRelu) return bounded ? (x > a) & (x < b) : ~(x <= a);
    if constexpr (Kind == Packed::kClamp) {
      if (!bounded) return x > a;
      return limited ? (x > a) & (x < b) : x < b;
    }
    if constexpr (Kind == Packed::kThreshold) return ~(x <= a);
    if constexpr (Kind == Packed::kHardsigmoid) return (x > splat(-3.f)) & (x < splat(3.f));
    return x > splat(0.f);
  }

  void put(T* y, Floats x) const {
    if constexpr (Kind == Packed::kRelu || Kind == Packed::kClamp)
      store_exact(y, clamp(x, rounded_a, rounded_b));
    else if constexpr (Kind == Packed::kThreshold)
      store_exact(y, select(x <= a, rounded_b, x));
    else if constexpr (Kind == Packed::kLeaky)
      store(y, select(x > splat(0.f), x, x * a));
    else if constexpr (Kind == Packed::kHardsigmoid)
      store(y, clamp(x + 3.f, splat(0.f), splat(6.f)) / 6.f);
    else
      store_exact(y, abs(x));
  }
};

template <Packed Kind, class T>
void pack_words(const PackArgs& args) {
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  uint8_t* below = args.mask + (args.n + 7) / 8;  // kAbs: the plane of x < 0
  const Function<Kind, T> function(args);
  const int64_t words = args.n / kWord;
#pragma omp parallel for schedule(static) num_threads(team_for(args.n, args.threads))
  for (int64_t w = 0; w < words; ++w) {
    uint64_t bits = 0, negative = 0;
    for (int64_t j = 0; j < kWord; j += kLanes) {
      const Floats v = load(x + w * kWord + j);
      bits |= static_cast<uint64_t>(to_bits(function.bits(v))) << j;
      if constexpr (Kind == Packed::kAbs) negative |= static_cast<uint64_t>(to_bits(v < splat(0.f))) << j;
      if (y) function.put(y + w * kWord + j, v);
    }
    memcpy(args.mask + w * 8, &bits, 8);
    if constexpr (Kind == Packed::kAbs) memcpy(below + w * 8, &negative, 8);
  }
  if (words * kWord < args.n) {
    uint64_t bits = 0, negative = 0;
    for (int64_t i = words * kWord; i < args.n; i += kLanes) {
      const int64_t count = args.n - i < kLanes ? args.n - i : kLanes, shift = i - words * kWord;
      const Floats v = load_part(x + i, count);
      const uint64_t there = (1ull << count) - 1;
      bits |= (to_bits(function.bits(v)) & there) << shift;
      if constexpr (Kind == Packed::kAbs) negative |= (to_bits(v < splat(0.f)) & there) << shift;
      if (y) {
        T lanes[kLanes];
        function.put(lanes, v);
        memcpy(y + i, lanes, static_cast<size_t>(count) * sizeof(T));
      }
    }
    const size_t bytes = static_cast<size_t>((args.n - words * kWord + 7) / 8);
    memcpy(args.mask + words * 8, &bits, bytes);
    if constexpr (Kind == Packed::kAbs) memcpy(below + words * 8, &negative, bytes);
  }
}

// Eight bytes of 0 or 1 in one product: byte i comes to bit 56 + i, and nothing else does.
static inline void pack_bytes(const PackArgs& args) {
  const uint8_t* x = static_cast<const uint8_t*>(args.x);
  const int64_t whole = args.n / 8;
#pragma omp parallel for schedule(static) num_threads(team_for(args.n, args.threads))
  for (int64_t i = 0; i < whole; ++i) {
    uint64_t eight;
    memcpy(&eight, x + 8 * i, 8);
    args.mask[i] = static_cast<uint8_t>(eight * 0x0102040810204080ull >> 56);
  }
  if (whole * 8 < args.n) {
    uint64_t rest = 0;
    memcpy(&rest, x + 8 * whole, static_cast<size_t>(args.n - 8 * whole));
    args.mask[whole] = static_cast<uint8_t>(rest * 0x0102040810204080ull >> 56);
  }
}

template <class T>
void pack_by_kind(const PackArgs& args) {
  switch (args.kind) {
    case Packed::kRelu:
      return pack_words<Packed::kRelu, T>(args);
    case Packed::kClamp:
      return pack_words<Packed::kClamp, T>(args);
    case Packed::kThreshold:
      return pack_words<Packed::kThreshold, T>(args);
    case Packed::kLeaky:
      return pack_words<Packed::kLeaky, T>(args);
    case Packed::kHardsigmoid:
      return pack_words<Packed::kHardsigmoid, T>(args);
    case Packed::kAbs:
      return pack_words<Packed::kAbs, T>(args);
    case Packed::kTrue:
      return pack_bytes(args);
  }
}

template <Masked Kind>
static inline Floats gradient(Floats g, Ints bit, Floats yes, Floats no) {
  if constexpr (Kind == Masked::kPass) return select(bit, g, splat(0.f));
  if constexpr (Kind == Masked::kPart) return select(bit, g * yes, splat(0.f));
  return g * select(bit, yes, no);
}

template <Masked Kind, class T>
static inline void store_masked(T* dx, Floats v) {
  if constexpr (Kind == Masked::kPass)
    store_exact(dx, v);
  else
    store(dx, v);
}

template <Masked Kind, class T>
void masked_words(const MaskedArgs& args) {
  const T* g = static_cast<const T*>(args.g);
  T* dx = static_cast<T*>(args.dx);
  const uint8_t* below = args.mask + (args.n + 7) / 8;
  const Floats yes = splat(args.yes), no = splat(args.no);
  const auto put = [&](int64_t i, int64_t shift, int64_t count, uint64_t bits, uint64_t negative) {
    const Floats v = count == kLanes ? load(g + i) : load_part(g + i, count);
    const Ints bit = from_bits(static_cast<uint32_t>(bits >> shift));
    Floats other = no;
    if constexpr (Kind == Masked::kSign)
      other = select(from_bits(static_cast<uint32_t>(negative >> shift)), splat(-1.f), splat(0.f));
    const Floats d = gradient<Kind>(v, bit, yes, other);
    if (count == kLanes)
      store_masked<Kind>(dx + i, d);
    else
      store_part(dx + i, d, count);
  };
  const int64_t words = args.n / kWord;
#pragma omp parallel for schedule(static) num_threads(team_for(args.n, args.threads))
  for (int64_t w = 0; w < words; ++w) {
    uint64_t bits, negative = 0;
    memcpy(&bits, args.mask + w * 8, 8);
    if constexpr (Kind == Masked::kSign) memcpy(&negative, below + w * 8, 8);
    for (int64_t j = 0; j < kWord; j += kLanes) put(w * kWord + j, j, kLanes, bits, negative);
  }
  if (words * kWord < args.n) {
    uint64_t bits = 0, negative = 0;
    const size_t bytes = static_cast<size_t>((args.n - words * kWord + 7) / 8);
    memcpy(&bits, args.mask + words * 8, bytes);
    if constexpr (Kind == Masked::kSign) memcpy(&negative, below + words * 8, bytes);
    for (int64_t i = words * kWord; i < args.n; i += kLanes)
      put(i, i - words * kWord, args.n - i < kLanes ? args.n - i : kLanes, bits, negative);
  }
}

template <class T>
void masked_by_kind(const MaskedArgs& args) {
  switch (args.kind) {
    case Masked::kPass:
      return masked_words<Masked::kPass, T>(args);
    case Masked::kPart:
      return masked_words<Masked::kPart, T>(args);
    case Masked::kTwo:
      return masked_words<Masked::kTwo, T>(args);
    case Masked::kSign:
      return masked_words<Masked::kSign, T>(args);
  }
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
