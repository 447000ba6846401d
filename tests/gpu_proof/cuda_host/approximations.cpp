// ex2.approx.ftz and lg2.approx.ftz, which err by as much as PTX allows, to a side that the argument decides.
#include <cfloat>
#include <cmath>
#include <cstring>

#include "host.h"

namespace cuda_host {
namespace {

constexpr float kAllowed = 0x1p-22f;

float without_subnormals(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.f, x) : x; }

float side(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits * 2654435769u >> 31 ? 1.f : -1.f;
}

}  // namespace

float exp2_approximate(float x) {
  count_transcendental();
  x = without_subnormals(x);
  if (x == 0.f) return 1.f;
  return without_subnormals(std::exp2(x) * (1.f + kAllowed * side(x)));
}

float log2_approximate(float x) {
  count_transcendental();
  x = without_subnormals(x);
  const float y = std::log2(x), error = kAllowed * side(x);
  return x > 0.5f && x < 2.f ? y + error : y * (1.f + error);
}

}  // namespace cuda_host
