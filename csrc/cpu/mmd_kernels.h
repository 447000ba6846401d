// The kernels of MMD and their slopes, vector by vector, as functions of one row's inner products.
#pragma once

#include "cpu/packing.h"

namespace thawkit {
namespace THAWKIT_ISA {

struct PairSums {
  float value, weight;
};

// What the functions below know of a kernel. For the rate q = 1 / s^2 of each bandwidth:
//   kRbf      first -q log2(e) / 2    second q / 2          k = 2^(first d^2)   slope second k
//   kLaplace  first -sqrt(q) log2(e)  second sqrt(q) / 2    k = 2^(first d)     slope second k / d
//   kImq      first q                 second q              k = 1 / (1 + q d^2) slope second k^2
// the slope being -dk / d(d^2). kEnergy: k = -d. kProduct: k = (scale s + offset)^degree, slope dk / ds.
struct KernelNumbers {
  const float *first, *second;
  int64_t bandwidths;
  int degree;
  float scale, offset;
};

// Squared distances below that many units in the last place of the norms are rounding of 0 where the root is
// taken.
constexpr float kRoundingOfSquares = 8 * 1.1920929e-7f;

// Kernel and slope at the inner products s of rows whose squared norms add up to `norms`. `each(b, t)` takes
// what the derivative by the rate of a bandwidth is made of, see derivative_factor.
template <MMDKernel Kind, bool Doubling, class Each>
static inline __attribute__((always_inline)) void kernel_at(const KernelNumbers& of, Floats s, Floats norms,
                                                            Floats& k, Floats& slope, Each each) {
  if constexpr (Kind == MMDKernel::kProduct) {
    const Floats p = s * of.scale + of.offset;
    Floats power = splat(1.f);
    for (int i = 1; i < of.degree; ++i) power *= p;
    k = power * p;
    slope = power * (float(of.degree) * of.scale);
    return;
  }
  const Floats d2 = max(splat(0.f), norms - 2.f * s);
  if constexpr (Kind == MMDKernel::kRbf && Doubling) {
    Floats e = exp2_negative(d2 * of.first[0]);
    k = slope = e;
    each(0, d2 * e);
    float ratio = 1.f;
    for (int64_t b = 1; b < of.bandwidths; ++b) {
      e = e * e;
      ratio *= 2.f;
      k += e;
      slope += ratio * e;
      each(b, d2 * e);
    }
    slope = slope * of.second[0];
    return;
  }
  k = slope = Floats{};
  if constexpr (Kind == MMDKernel::kRbf) {
    for (int64_t b = 0; b < of.bandwidths; ++b) {
      const Floats e = exp2_negative(d2 * of.first[b]);
      k += e;
      slope += of.second[b] * e;
      each(b, d2 * e);
    }
  } else if constexpr (Kind == MMDKernel::kImq) {
    for (int64_t b = 0; b < of.bandwidths; ++b) {
      const Floats r = 1.f / (1.f + of.first[b] * d2);
      const Floats r2 = r * r;
      k += r;
      slope += of.second[b] * r2;
      each(b, d2 * r2);
    }
  } else {
    const Ints same = d2 <= norms * kRoundingOfSquares;  // false where not a number
    const Floats d = select(same, splat(0.f), sqrt(d2));
    const Floats inverse = select(same, splat(0.f), 1.f / d);
    if constexpr (Kind == MMDKernel::kEnergy) {
      k = -d;
      slope = 0.5f * inverse;
    } else {
      for (int64_t b = 0; b < of.bandwidths; ++b) {
        const Floats e = exp2_negative(d * of.first[b]);
        k += e;
        slope += of.second[b] * e;
        each(b, d * e);
      }
      slope *= inverse;
    }
  }
}

struct NoDerivative {
  inline void operator()(int64_t, Floats) const {}
};

struct RateSums {
  float* sums;  // a vector for each bandwidth
  Floats factor;

  inline void operator()(int64_t b, Floats t) const {
    store(sums + b * kLanes, load(sums + b * kLanes) + factor * t);
  }
};

// What the sums of RateSums, of rows times `unit`, are to be multiplied by at the rate q.
static inline double derivative_factor(MMDKernel kind, double q, double unit) {
  if (kind == MMDKernel::kLaplace) return -0.5 / __builtin_sqrt(q) / unit;
  return (kind == MMDKernel::kRbf ? -0.5 : -1.) / unit / unit;
}

// One row against `count` columns. Lanes past them are neither counted nor written.
struct Segment {
  float* x;  // inner products
  int64_t count;
  float own_norm;
  const float* norms;
};

// In place of the inner products x: W_j = row_weight factors_j slope_j. Returns the sums of W and of
// row_weight factors_j k_j; adds W to column_sums where Columns, and where Learned what rate_sums takes.
template <MMDKernel Kind, bool Doubling, bool Learned, bool Columns>
static PairSums weigh(const KernelNumbers& of, const Segment& row, const float* factors, float row_weight,
                      float* column_sums, float* rate_sums) {
  Floats value = {}, weight = {};
  for (int64_t j = 0; j < row.count; j += kLanes) {
    const int64_t present = smaller(kLanes, row.count - j);
    const bool whole = present == kLanes;
    const Floats s = whole ? load(row.x + j) : load_part(row.x + j, present);
    const Floats n = whole ? load(row.norms + j) : load_part(row.norms + j, present);
    const Floats c = (whole ? load(factors + j) : load_part(factors + j, present)) * row_weight;
    Floats k, slope;
    if constexpr (Learned)
      kernel_at<Kind, Doubling>(of, s, row.own_norm + n, k, slope, RateSums{rate_sums, c});
    else
      kernel_at<Kind, Doubling>(of, s, row.own_norm + n, k, slope, NoDerivative{});
    value += c * k;
    const Floats w = c * slope;
    weight += w;
    if (whole) {
      if constexpr (Columns) store(column_sums + j, load(column_sums + j) + w);
      store(row.x + j, w);
    } else {
      if constexpr (Columns) store_part(column_sums + j, load_part(column_sums + j, present) + w, present);
      store_part(row.x + j, w, present);
    }
  }
  return {sum(value), sum(weight)};
}

// The kernel's values alone.
template <MMDKernel Kind, bool Doubling>
static void kernel_values(const KernelNumbers& of, const Segment& row, float* out) {
  for (int64_t j = 0; j < row.count; j += kLanes) {
    const int64_t present = row.count - j;
    Floats k, slope;
    kernel_at<Kind, Doubling>(of, load_up_to(row.x + j, present),
                              row.own_norm + load_up_to(row.norms + j, present), k, slope, NoDerivative{});
    store_up_to(out + j, k, present);
  }
}

typedef PairSums (*Weigh)(const KernelNumbers&, const Segment&, const float*, float, float*, float*);
typedef void (*KernelValues)(const KernelNumbers&, const Segment&, float*);

// call(kind, doubling), both integral constants
template <MMDKernel Kind>
struct OfKind {
  static constexpr MMDKernel value = Kind;
};
template <bool Flag>
struct Flagged {
  static constexpr bool value = Flag;
};
template <class Call>
static auto with_kernel(MMDKernel kind, bool doubling, Call call) {
  switch (kind) {
    case MMDKernel::kRbf:
      return doubling ? call(OfKind<MMDKernel::kRbf>{}, Flagged<true>{})
                      : call(OfKind<MMDKernel::kRbf>{}, Flagged<false>{});
    case MMDKernel::kLaplace:
      return call(OfKind<MMDKernel::kLaplace>{}, Flagged<false>{});
    case MMDKernel::kImq:
      return call(OfKind<MMDKernel::kImq>{}, Flagged<false>{});
    case MMDKernel::kEnergy:
      return call(OfKind<MMDKernel::kEnergy>{}, Flagged<false>{});
    case MMDKernel::kProduct:
      break;
  }
  return call(OfKind<MMDKernel::kProduct>{}, Flagged<false>{});
}

template <bool Columns>
static Weigh weigh_of(MMDKernel kind, bool doubling, bool learned) {
  return with_kernel(kind, doubling, [&](auto of, auto doubles) -> Weigh {
    constexpr MMDKernel kKind = decltype(of)::value;
    constexpr bool kDoubling = decltype(doubles)::value;
    if (learned) return weigh<kKind, kDoubling, true, Columns>;
    return weigh<kKind, kDoubling, false, Columns>;
  });
}

static inline KernelValues kernel_values_of(MMDKernel kind, bool doubling) {
  return with_kernel(kind, doubling, [](auto of, auto doubles) -> KernelValues {
    return kernel_values<decltype(of)::value, decltype(doubles)::value>;
  });
}

// Kernel and slope of a row with itself, its squared norm given; not a number where the norm is not finite.
static inline float kernel_of_itself(MMDKernel kind, const KernelNumbers& of, float norm, float& slope) {
  slope = 0.f;
  if (kind == MMDKernel::kEnergy) return norm - norm;
  if (kind != MMDKernel::kProduct) return norm - norm + float(of.bandwidths);
  const float p = norm * of.scale + of.offset;
  float power = 1.f;
  for (int i = 1; i < of.degree; ++i) power *= p;
  slope = float(of.degree) * of.scale * power;
  return power * p;
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
