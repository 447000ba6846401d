// Clamp with a one-bit mask, for frozen networks. Compiled once per instruction set.
#include <omp.h>

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace thawkit {
namespace THAWKIT_ISA {
namespace {

constexpr int64_t kWord = 64;  // elements whose bits are written together
constexpr int64_t kSerialBelow = 32768;

// The gradient passes where this is true. At NaN torch's relu passes it and its hardtanh does not.
inline Ints passes(Floats x, float lower, float upper) {
  if (upper == __builtin_inff()) return ~(x <= splat(lower));
  return (x > splat(lower)) & (x < splat(upper));
}

inline Floats clamp(Floats x, float lower, float upper) { return min(splat(upper), max(splat(lower), x)); }

// The bound as T has it, so that a clamped value needs no rounding.
template <class T>
float rounded(float bound) {
  T lanes[kLanes];
  store(lanes, splat(bound));
  return load(lanes)[0];
}

template <class T>
void forward(const PackedReluArgs& a) {
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  const float lower = rounded<T>(a.lower), upper = rounded<T>(a.upper);
  const int64_t words = a.n / kWord;
#pragma omp parallel for schedule(static) num_threads(a.n < kSerialBelow ? 1 : a.threads)
  for (int64_t w = 0; w < words; ++w) {
    uint64_t bits = 0;
    for (int64_t j = 0; j < kWord; j += kLanes) {
      const Floats v = load(x + w * kWord + j);
      bits |= static_cast<uint64_t>(to_bits(passes(v, a.lower, a.upper))) << j;
      store_exact(y + w * kWord + j, clamp(v, lower, upper));
    }
    memcpy(a.mask + w * 8, &bits, 8);
  }
  if (words * kWord < a.n) {
    uint64_t bits = 0;
    for (int64_t i = words * kWord; i < a.n; i += kLanes) {
      const int64_t count = a.n - i < kLanes ? a.n - i : kLanes;
      const Floats v = load_part(x + i, count);
      bits |= static_cast<uint64_t>(to_bits(passes(v, a.lower, a.upper)) & ((1ull << count) - 1))
              << (i - words * kWord);
      store_part(y + i, clamp(v, lower, upper), count);
    }
    memcpy(a.mask + words * 8, &bits, static_cast<size_t>((a.n - words * kWord + 7) / 8));
  }
}

template <class T>
void backward(const PackedReluArgs& a) {
  const T* g = static_cast<const T*>(a.x);
  T* dx = static_cast<T*>(a.y);
  const int64_t words = a.n / kWord;
#pragma omp parallel for schedule(static) num_threads(a.n < kSerialBelow ? 1 : a.threads)
  for (int64_t w = 0; w < words; ++w) {
    uint64_t bits;
    memcpy(&bits, a.mask + w * 8, 8);
    for (int64_t j = 0; j < kWord; j += kLanes)
      store_exact(dx + w * kWord + j,
                  select(from_bits(static_cast<uint32_t>(bits >> j)), load(g + w * kWord + j), splat(0.f)));
  }
  if (words * kWord < a.n) {
    uint64_t bits = 0;
    memcpy(&bits, a.mask + words * 8, static_cast<size_t>((a.n - words * kWord + 7) / 8));
    for (int64_t i = words * kWord; i < a.n; i += kLanes) {
      const int64_t count = a.n - i < kLanes ? a.n - i : kLanes;
      const Ints mask = from_bits(static_cast<uint32_t>(bits >> (i - words * kWord)));
      store_part(dx + i, select(mask, load_part(g + i, count), splat(0.f)), count);
    }
  }
}

}  // namespace

void packed_relu(const PackedReluArgs& a) {
  switch (a.dtype) {
    case Dtype::kFloat32:
      return forward<float>(a);
    case Dtype::kBFloat16:
      return forward<bfloat16>(a);
    case Dtype::kFloat16:
      return forward<float16>(a);
  }
}

void packed_relu_backward(const PackedReluArgs& a) {
  switch (a.dtype) {
    case Dtype::kFloat32:
      return backward<float>(a);
    case Dtype::kBFloat16:
      return backward<bfloat16>(a);
    case Dtype::kFloat16:
      return backward<float16>(a);
  }
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
