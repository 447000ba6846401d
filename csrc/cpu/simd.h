// One vector type over GCC/Clang vector extensions. Included by files that are compiled once per
// instruction set, so everything here lives in that set's own namespace, and nothing from the standard
// library's templates is used: their weak symbols could carry AVX-512 code to an older CPU.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#ifndef THAWKIT_ISA
#error "compile with -DTHAWKIT_ISA=<name>"
#endif

namespace thawkit {
namespace THAWKIT_ISA {

// The width may be given: 64-byte vectors on a CPU without AVX-512 run the same code in two halves, which is
// how the sixteen-lane logic is tested there. Intrinsics are used at an instruction set's own width only.
#ifndef THAWKIT_VECTOR_BYTES
#if defined(__AVX512F__)
#define THAWKIT_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define THAWKIT_VECTOR_BYTES 32
#else
#define THAWKIT_VECTOR_BYTES 16
#endif
#endif
#if defined(__AVX512DQ__) && THAWKIT_VECTOR_BYTES == 64
#define THAWKIT_AVX512 1
#if defined(__AVX512BF16__)
#define THAWKIT_AVX512_BF16 1
#endif
#elif defined(__AVX2__) && defined(__F16C__) && THAWKIT_VECTOR_BYTES == 32
#define THAWKIT_AVX2 1
#elif defined(__SSE2__) && THAWKIT_VECTOR_BYTES == 16
#define THAWKIT_SSE2 1
#elif defined(__ARM_NEON) && THAWKIT_VECTOR_BYTES == 16
#define THAWKIT_NEON 1
#endif

constexpr int kVectorBytes = THAWKIT_VECTOR_BYTES;

constexpr int kLanes = kVectorBytes / 4;

typedef float Floats __attribute__((vector_size(kVectorBytes), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(kVectorBytes), aligned(4)));

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

static inline Floats splat(float a) { return Floats{} + a; }
static inline Ints splat(int32_t a) { return Ints{} + a; }

template <class To, class From>
static inline To bit_cast(From a) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To b;
  memcpy(&b, &a, sizeof b);
  return b;
}

// The second operand survives an unordered comparison, so a NaN in b passes through.
#if defined(THAWKIT_AVX512)
static inline Floats max(Floats a, Floats b) {
  return bit_cast<Floats>(_mm512_max_ps(bit_cast<__m512>(a), bit_cast<__m512>(b)));
}
static inline Floats min(Floats a, Floats b) {
  return bit_cast<Floats>(_mm512_min_ps(bit_cast<__m512>(a), bit_cast<__m512>(b)));
}
#elif defined(THAWKIT_AVX2)
static inline Floats max(Floats a, Floats b) {
  return bit_cast<Floats>(_mm256_max_ps(bit_cast<__m256>(a), bit_cast<__m256>(b)));
}
static inline Floats min(Floats a, Floats b) {
  return bit_cast<Floats>(_mm256_min_ps(bit_cast<__m256>(a), bit_cast<__m256>(b)));
}
#else
static inline Floats max(Floats a, Floats b) { return a > b ? a : b; }
static inline Floats min(Floats a, Floats b) { return a < b ? a : b; }
#endif
static inline Floats abs(Floats a) { return bit_cast<Floats>(bit_cast<Ints>(a) & 0x7fffffff); }
static inline Floats flip_sign(Floats a, Ints sign) { return bit_cast<Floats>(bit_cast<Ints>(a) ^ sign); }
static inline Floats select(Ints mask, Floats yes, Floats no) { return mask ? yes : no; }

static inline Floats sqrt(Floats a) {
#if defined(THAWKIT_AVX512)
  return bit_cast<Floats>(_mm512_sqrt_ps(bit_cast<__m512>(a)));
#elif defined(THAWKIT_AVX2)
  return bit_cast<Floats>(_mm256_sqrt_ps(bit_cast<__m256>(a)));
#elif defined(THAWKIT_SSE2)
  return bit_cast<Floats>(_mm_sqrt_ps(bit_cast<__m128>(a)));
#elif defined(THAWKIT_NEON) && defined(__aarch64__)
  return bit_cast<Floats>(vsqrtq_f32(bit_cast<float32x4_t>(a)));
#else
  for (int i = 0; i < kLanes; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
#endif
}

static inline float sum(Floats a) {
  float s = 0;
  for (int i = 0; i < kLanes; ++i) s += a[i];
  return s;
}

static inline float max_lane(Floats a) {
  float m = a[0];
  for (int i = 1; i < kLanes; ++i) m = a[i] > m ? a[i] : m;
  return m;
}

// ---- loads and stores: storage dtype on one side, float32 on the other

static inline Floats load(const float* p) { return *reinterpret_cast<const Floats*>(p); }
static inline void store(float* p, Floats v) { *reinterpret_cast<Floats*>(p) = v; }

static inline Ints load(const int32_t* p) { return *reinterpret_cast<const Ints*>(p); }
static inline void store(int32_t* p, Ints v) { *reinterpret_cast<Ints*>(p) = v; }

typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2), aligned(2)));

static inline Floats load(const bfloat16* p) {
#if defined(THAWKIT_AVX2)  // GCC 12 makes four instructions of the conversion
  const Ints wide =
      bit_cast<Ints>(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  const Ints wide = __builtin_convertvector(*reinterpret_cast<const Halves*>(p), Ints);
#endif
  return bit_cast<Floats>(wide << 16);
}

// v holds values that bfloat16 has: they are not rounded.
static inline void store_exact(bfloat16* p, Floats v) {
  const Ints out = bit_cast<Ints>(v) >> 16;
#if defined(THAWKIT_AVX512)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bit_cast<__m512i>(out)));
#elif defined(THAWKIT_AVX2)
  const __m256i wide = bit_cast<__m256i>(out);  // sign-extended, so the saturating pack is exact
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
#else
  const Halves narrow = __builtin_convertvector(out & 0xffff, Halves);
  memcpy(p, &narrow, sizeof narrow);
#endif
}

static inline void store(bfloat16* p, Floats v) {
  // round to nearest even; a NaN keeps its top bits and stays a NaN
  Ints bits = bit_cast<Ints>(v);
  Ints rounded = bits + 0x7fff + ((bits >> 16) & 1);
  Ints nan = bits | 0x00400000;
  store_exact(p, bit_cast<Floats>((v == v) ? rounded : nan));
}

#if defined(THAWKIT_AVX512)
static inline Floats load(const float16* p) {
  return bit_cast<Floats>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
static inline void store(float16* p, Floats v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(bit_cast<__m512>(v), 0));
}
#elif defined(THAWKIT_AVX2)
static inline Floats load(const float16* p) {
  return bit_cast<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
static inline void store(float16* p, Floats v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(bit_cast<__m256>(v), 0));
}
#elif defined(THAWKIT_NEON)
static inline Floats load(const float16* p) {
  return bit_cast<Floats>(vcvt_f32_f16(vld1_f16(reinterpret_cast<const __fp16*>(p))));
}
static inline void store(float16* p, Floats v) {
  vst1_f16(reinterpret_cast<__fp16*>(p), vcvt_f16_f32(bit_cast<float32x4_t>(v)));
}
#else
static inline Floats load(const float16* p) {
  Floats v;
  for (int i = 0; i < kLanes; ++i) {
    _Float16 h;
    memcpy(&h, p + i, sizeof h);
    v[i] = static_cast<float>(h);
  }
  return v;
}
static inline void store(float16* p, Floats v) {
  for (int i = 0; i < kLanes; ++i) {
    _Float16 h = static_cast<_Float16>(v[i]);
    memcpy(p + i, &h, sizeof h);
  }
}
#endif

template <class T>
static inline void store_exact(T* p, Floats v) {
  store(p, v);
}

// As store, but subnormal numbers may become 0 where that spares instructions.
template <class T>
static inline void store_gradient(T* p, Floats v) {
  store(p, v);
}
#if defined(THAWKIT_AVX512_BF16)
static inline void store_gradient(bfloat16* p, Floats v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      bit_cast<__m256i>(_mm512_cvtneps_pbh(bit_cast<__m512>(v))));
}
#endif

// The last, incomplete vector of a row: lanes past `count` read as 0 and are not written.
template <class T>
static inline Floats load_part(const T* p, int64_t count) {
  T lanes[kLanes] = {};
  memcpy(lanes, p, static_cast<size_t>(count) * sizeof(T));
  return load(lanes);
}

template <class T>
static inline void store_part(T* p, Floats v, int64_t count) {
  T lanes[kLanes];
  store(lanes, v);
  memcpy(p, lanes, static_cast<size_t>(count) * sizeof(T));
}

template <class A, class B>
static inline float dot(const A* a, const B* b, int64_t n) {
  Floats s0 = {}, s1 = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    s0 += load(a + i) * load(b + i);
    s1 += load(a + i + kLanes) * load(b + i + kLanes);
  }
  for (; i + kLanes <= n; i += kLanes) s0 += load(a + i) * load(b + i);
  if (i < n) s1 += load_part(a + i, n - i) * load_part(b + i, n - i);
  return sum(s0 + s1);
}

// ---- a square of lanes across its diagonal

// Lane l of a where bit Step of l is not set, else lane l - Step of b, and the other half of both.
template <int Step>
static inline void exchange(Floats& a, Floats& b) {
#if defined(__clang__)
  Floats low, high;
  for (int l = 0; l < kLanes; ++l) {
    low[l] = l & Step ? b[l - Step] : a[l];
    high[l] = l & Step ? b[l] : a[l + Step];
  }
#else
  Ints low_lanes = {}, high_lanes = {};
  for (int l = 0; l < kLanes; ++l) {
    low_lanes[l] = l & Step ? kLanes + l - Step : l;
    high_lanes[l] = l & Step ? kLanes + l : l + Step;
  }
  const Floats low = __builtin_shuffle(a, b, low_lanes), high = __builtin_shuffle(a, b, high_lanes);
#endif
  a = low;
  b = high;
}

template <int Step = kLanes / 2>
static inline __attribute__((always_inline)) void transpose(Floats (&rows)[kLanes]) {
  if constexpr (Step > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      if (!(i & Step)) exchange<Step>(rows[i], rows[i + Step]);
    transpose<Step / 2>(rows);
  }
}

// ---- one bit a lane

static inline uint32_t to_bits(Ints mask) {
#if defined(THAWKIT_AVX512)
  return _mm512_movepi32_mask(bit_cast<__m512i>(mask));
#elif defined(THAWKIT_AVX2)
  return static_cast<uint32_t>(_mm256_movemask_ps(bit_cast<__m256>(mask)));
#elif defined(THAWKIT_SSE2)
  return static_cast<uint32_t>(_mm_movemask_ps(bit_cast<__m128>(mask)));
#elif defined(THAWKIT_NEON) && defined(__aarch64__)  // there is no move of a mask: a sum over the lanes
  const Ints weight = {1, 2, 4, 8};
  return vaddvq_u32(bit_cast<uint32x4_t>(mask & weight));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<uint32_t>(mask[i] & 1) << i;
  return bits;
#endif
}

static inline bool all(Ints mask) { return to_bits(mask) == (1ull << kLanes) - 1; }

static inline uint32_t at_least_bits(Floats a, Floats b) {
#if defined(THAWKIT_AVX512)  // GCC 12 takes the comparison through a vector
  return _mm512_cmp_ps_mask(bit_cast<__m512>(a), bit_cast<__m512>(b), _CMP_GE_OQ);
#else
  return to_bits(a >= b);
#endif
}

static inline Ints lane_numbers() {
  Ints numbers;
  for (int i = 0; i < kLanes; ++i) numbers[i] = i;
  return numbers;
}

// The lanes whose bits are set, next to each other; what stands in the rest of the kLanes places is lost.
static inline void store_compressed(int32_t* p, Ints v, uint32_t bits) {
#if defined(THAWKIT_AVX512)  // through a register: compressing into memory is slow on AMD CPUs
  _mm512_storeu_si512(p, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), bit_cast<__m512i>(v)));
#else
  for (; bits; bits &= bits - 1) *p++ = v[__builtin_ctz(bits)];
#endif
}

static inline Ints from_bits(uint32_t bits) {
  Ints weight;
  for (int i = 0; i < kLanes; ++i) weight[i] = 1 << i;
  return (splat(static_cast<int32_t>(bits)) & weight) == weight;
}

// ---- elementary functions

constexpr float kRounds = 12582912.f;  // 1.5 * 2^23: the integer next to x ends in the low bits of the sum
constexpr float kLowestExponent = -87.33654f;  // exp of it is the smallest normal number

// exp(max(x, kLowestExponent)) for x <= 0 (or NaN), at most 2 ulp. Cody-Waite reduction with a degree-6
// minimax polynomial (Cephes expf).
static inline Floats exp_clamped(Floats x) {
  const Floats a = max(splat(kLowestExponent), x);
  const Floats shifted = a * 1.44269504088896341f + kRounds;
  const Floats n = shifted - kRounds;
  Floats r = a - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  // Estrin's order: the kernels wait for this chain more than for the multipliers.
  const Floats r2 = r * r;
  Floats p = (r * 1.9875691500e-4f + 1.3981999507e-3f) * r2 + (r * 8.3334519073e-3f + 4.1665795894e-2f);
  p = p * r2 + (r * 1.6666665459e-1f + 5.0000001201e-1f);
  p = p * r2 + (r + 1.f);
  return p * bit_cast<Floats>((bit_cast<Ints>(shifted) << 23) + (127 << 23));
}

// As above but for finite x only, at most 4 ulp, with fewer products: their units are what a loop of
// elementary functions waits for. exp2_clamped's polynomial in units of exp.
static inline Floats exp_finite(Floats x) {
  const Floats a = max(splat(kLowestExponent), x);
  const Floats shifted = a * 1.44269504088896341f + kRounds;
  const Floats n = shifted - kRounds;
  Floats r = a - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  const Floats r2 = r * r;
  Floats p = (r * 0.00829030522f + 0.04189793086f) * r2 + (r * 0.16667636966f + 0.49999149353f);
  p = p * r2 + (r * 0.99999973951f + 1.f);
  return bit_cast<Floats>(bit_cast<Ints>(p) + (bit_cast<Ints>(shifted) << 23));
}

// As exp_clamped, but 0 where exp(x) is below the smallest normal number.
static inline Floats exp_negative(Floats x) {
  return select(x <= splat(kLowestExponent), splat(0.f), exp_clamped(x));
}

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;
constexpr float kLowestPower = -126.f;  // 2 to it is the smallest normal number

// 2^max(x, kLowestPower) for x <= 0 (or NaN), at most 3 ulp, exact at 0: the degree-5 polynomial of the least
// relative error among those that are 1 at 0.
static inline Floats exp2_clamped(Floats x) {
  const Floats a = max(splat(kLowestPower), x);
  const Floats shifted = a + kRounds;
  const Floats r = a - (shifted - kRounds);
  const Floats r2 = r * r;
  Floats p = (r * 1.3264712e-3f + 9.6715130e-3f) * r2 + (r * 5.5507340e-2f + 2.4022242e-1f);
  p = p * r2 + (r * 6.9314700e-1f + 1.f);
  const Ints exponent = (bit_cast<Ints>(shifted) << 23) + (127 << 23);
  return p * bit_cast<Floats>(exponent);  // a product, so that a NaN stays one
}

// As above, but 0 where 2^x is below the smallest normal number.
static inline Floats exp2_negative(Floats x) {
  return select(x <= splat(kLowestPower), splat(0.f), exp2_clamped(x));
}

// log(1 + e) for 0 <= e <= 1 from q = e / (2 + e), at most 1/3: 2 atanh(q).
static inline Floats log1p_unit(Floats q) {
  Floats s = q * q;
  const Floats s2 = s * s;
  Floats p = (s * 0.0769230769f + 0.0909090909f) * s2 + (s * 0.1111111111f + 0.1428571429f);
  p = p * s2 + (s * 0.2f + 0.3333333333f);
  return 2.f * q + 2.f * q * (s * p);
}

// log(x) for normal x; log(0) = -inf. Mantissa in [sqrt(1/2), sqrt(2)), then atanh.
static inline Floats log_unit(Floats x) {
  Ints bits = bit_cast<Ints>(x);
  Ints exponent = (bits - 0x3f3504f3) >> 23;
  Floats m = bit_cast<Floats>(bits - (exponent << 23));
  Floats q = (m - 1.f) / (m + 1.f);
  Floats s = q * q;
  Floats p = s * 0.1428571429f + 0.2f;
  p = p * s + 0.3333333333f;
  Floats r = 2.f * q + 2.f * q * (s * p) + __builtin_convertvector(exponent, Floats) * 0.69314718056f;
  return select(x <= splat(0.f), splat(-__builtin_inff()), r);
}

// log(1 + x) for x >= 0 (or NaN, which log_unit would lose).
static inline Floats log1p_positive(Floats x) {
  return select(x > splat(1.f), log_unit(1.f + x), log1p_unit(x / (2.f + x)));
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
