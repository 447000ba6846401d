// MMD on CUDA: from tiles of inner products of rows to what the pairs are worth, and to slopes.
#include "cuda/common.cuh"
#include "cuda/kernels.h"
#include "cuda/panel.cuh"

namespace thawkit::cuda {
namespace {

constexpr int kRates = 4;  // whose derivatives one pass over a row adds up
constexpr int kDigits = 1 << kDigitBits;
constexpr unsigned kMostHistograms = 512;

// A row of the tile.
struct Row {
  int64_t here, number;  // in the tile, and of all
  int64_t own;           // column in the tile that is the row itself, where it is in the tile

  __device__ __forceinline__ Row(const MMDTile& tile, int64_t of)
      : here(of), number(tile.top + of), own(number - tile.left) {}
};

__device__ __forceinline__ float* scores_of(const MMDTile& tile, int layer, const Row& row) {
  return tile.scores + layer * tile.layer_stride + row.here * tile.stride;
}

// What neighbours count, all layers' kernels being 1; what is out has no part in any sum.
struct Counts {
  float factor[kNeighbours];
  bool out[kNeighbours];
};

__device__ __forceinline__ Counts counts_at(const MMDPairs& pairs, const MMDTile& tile, const Row& row,
                                            int64_t column, int count, bool wide) {
  const int64_t number = tile.left + column;
  const bool in_first = row.number < pairs.first_rows;
  const float own_weight = pairs.weights[row.number];
  const int32_t own_label = pairs.labels ? pairs.labels[row.number] : 0;
  const Neighbours<float> weight = load_neighbours(pairs.weights + number, count, wide);
  Neighbours<float> same = {};
  if (pairs.same) same = load_neighbours(pairs.same + number, count, wide);
  Neighbours<int32_t> label = {};
  if (pairs.labels) label = load_neighbours(pairs.labels + number, count, wide);
  Counts of;
#pragma unroll
  for (int e = 0; e < kNeighbours; ++e) {
    of.factor[e] = own_weight * weight.lane[e];
    if (pairs.same && (number + e < pairs.first_rows) == in_first) of.factor[e] *= same.lane[e];
    if (pairs.labels && label.lane[e] != own_label) of.factor[e] = 0.f;
    of.out[e] = e >= count || (!pairs.diagonal && column + e == row.own);
  }
  return of;
}

// Inner products of a row with its neighbours, and the sums of both rows' squared norms.
struct Products {
  Neighbours<float> s;
  float norms[kNeighbours];
  bool own[kNeighbours];  // whether the pair is the row with itself

  // What is no number stays none.
  __device__ __forceinline__ float square(int e) const {
    const float d2 = max(0.f, norms[e] - 2.f * s.lane[e]);
    return own[e] ? norms[e] - norms[e] : d2;
  }
};

__device__ __forceinline__ Products products_at(const float* norms, const MMDTile& tile, int layer,
                                                const Row& row, int64_t column, int count, bool wide) {
  const float own_norm = norms[row.number];
  const Neighbours<float> other = load_neighbours(norms + tile.left + column, count, wide);
  Products of;
  of.s = load_neighbours(scores_of(tile, layer, row) + column, count, wide);
#pragma unroll
  for (int e = 0; e < kNeighbours; ++e) {
    of.norms[e] = own_norm + other.lane[e];
    of.own[e] = column + e == row.own;
  }
  return of;
}

__device__ __forceinline__ Products products_at(const MMDPairs& pairs, const MMDTile& tile, int layer,
                                                const Row& row, int64_t column, int count, bool wide) {
  return products_at(pairs.norms + layer * pairs.rows, tile, layer, row, column, count, wide);
}

// What the rates multiply, d^2 or d, and 1 / d, which is 0 where d^2 is no more than the rounding of 0.
struct Distances {
  float d[kNeighbours], inverse[kNeighbours];
};

__device__ __forceinline__ Distances distances(const Products& products, bool roots, float rounding) {
  Distances of;
#pragma unroll
  for (int e = 0; e < kNeighbours; ++e) {
    of.d[e] = products.square(e);
    of.inverse[e] = 0.f;
    if (!roots) continue;
    const bool same = of.d[e] <= products.norms[e] * rounding;  // false where not a number
    of.d[e] = same ? 0.f : sqrtf(of.d[e]);
    of.inverse[e] = same ? 0.f : 1.f / of.d[e];
  }
  return of;
}

// A kernel, and its slope: dk / ds of kProduct, else -dk / d(d^2), which a row has none of with itself.
struct Values {
  float k[kNeighbours], slope[kNeighbours];
};

__device__ __forceinline__ Values product_kernel(const Products& products, float scale, float offset,
                                                 int degree) {
  Values of;
#pragma unroll
  for (int e = 0; e < kNeighbours; ++e) {
    const float p = products.s.lane[e] * scale + offset;
    float power = 1.f;
    for (int i = 1; i < degree; ++i) power *= p;
    of.k[e] = power * p;
    of.slope[e] = power * (float(degree) * scale);
  }
  return of;
}

__device__ __forceinline__ Values values_at(const MMDPairs& pairs, int layer, const Products& products) {
  const MMDKind kind = pairs.layers[layer].kind;
  const int count = pairs.layers[layer].count;
  const float* const first = pairs.first + layer * pairs.bandwidths;
  const float* const second = pairs.second + layer * pairs.bandwidths;
  if (kind == MMDKind::kProduct) return product_kernel(products, first[0], second[0], count);
  const bool roots = kind == MMDKind::kLaplace || kind == MMDKind::kEnergy;
  const Distances at = distances(products, roots, pairs.rounding);
  Values of = {};
  if (kind == MMDKind::kEnergy) {
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e) of.k[e] = -at.d[e], of.slope[e] = 0.5f * at.inverse[e];
  } else if (kind == MMDKind::kDoubling) {
    float power[kNeighbours], ratio = second[0];
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e) {
      power[e] = exp2f(at.d[e] * first[0]);
      of.k[e] = power[e], of.slope[e] = ratio * power[e];
    }
    for (int b = 1; b < count; ++b) {
      ratio *= 2.f;
#pragma unroll
      for (int e = 0; e < kNeighbours; ++e) {
        power[e] *= power[e];
        of.k[e] += power[e], of.slope[e] += ratio * power[e];
      }
    }
  } else {
    for (int b = 0; b < count; ++b) {
      const float rate = first[b], by = second[b];
#pragma unroll
      for (int e = 0; e < kNeighbours; ++e) {
        const float x = at.d[e] * rate, k = kind == MMDKind::kImq ? 1.f / (1.f + x) : exp2f(x);
        of.k[e] += k, of.slope[e] += by * (kind == MMDKind::kImq ? k * k : k);
      }
    }
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e)
      if (roots) of.slope[e] *= at.inverse[e];
  }
#pragma unroll
  for (int e = 0; e < kNeighbours; ++e)
    if (products.own[e]) of.slope[e] = 0.f;
  return of;
}

// One block a row. Where there are many layers, all their kernels are found before the first slopes go over
// scores, and each layer's own anew.
template <class T, bool Many>
__global__ void __launch_bounds__(kPanelThreads, 3) tile_kernel(MMDTileArgs a, bool wide) {
  __shared__ float shared[32];
  __shared__ Neighbours<float> kernels[Many ? MMDPairs::kMostLayers : 1][kPanelThreads];
  const Row row(a.tile, blockIdx.x);
  float value = 0.f;
  for (int64_t j = int64_t(threadIdx.x) * kNeighbours; j < a.tile.columns; j += kPanelStep) {
    const int count = neighbours_from(j, a.tile.columns);
    const Counts counts = counts_at(a.pairs, a.tile, row, j, count, wide);
    for (int l = 0; Many && l < a.pairs.layer_count; ++l) {
      const Values of = values_at(a.pairs, l, products_at(a.pairs, a.tile, l, row, j, count, wide));
      kernels[l][threadIdx.x] = {of.k[0], of.k[1], of.k[2], of.k[3]};
    }
    for (int l = 0; l < (Many ? a.pairs.layer_count : 1); ++l) {
      if (l > 0 && !a.pairs.layers[l].sloped) continue;  // the first one also finds the value
      const Values of = values_at(a.pairs, l, products_at(a.pairs, a.tile, l, row, j, count, wide));
      float factor[kNeighbours];
#pragma unroll
      for (int e = 0; e < kNeighbours; ++e) factor[e] = counts.factor[e];
      for (int other = 0; Many && other < a.pairs.layer_count; ++other) {
        if (other == l) continue;
        const Neighbours<float> k = kernels[other][threadIdx.x];
#pragma unroll
        for (int e = 0; e < kNeighbours; ++e) factor[e] *= k.lane[e];
      }
      Neighbours<T> w;
#pragma unroll
      for (int e = 0; e < kNeighbours; ++e) {
        if (l == 0 && !counts.out[e]) value += factor[e] * of.k[e];
        w.lane[e] = from_float<T>(counts.out[e] ? 0.f : factor[e] * of.slope[e]);
      }
      if (!a.pairs.layers[l].sloped) continue;
      T* const slopes = static_cast<T*>(a.slopes) + l * a.slope_layer_stride + row.here * a.slope_stride;
      store_neighbours(slopes + j, w, count, wide);
    }
  }
  value = block_reduce<false>(value, shared);
  if (threadIdx.x == 0) a.value[row.here] += a.times * double(value);
}

// What the derivatives by a layer's rates are made of, RateSums in cpu/mmd_kernels.h; one block a row.
__global__ void __launch_bounds__(kPanelThreads, 3) rates_kernel(MMDRatesArgs a, bool wide) {
  __shared__ float shared[32];
  const Row row(a.tile, blockIdx.x);
  const MMDKind kind = a.pairs.layers[a.layer].kind;
  const int rates = a.pairs.layers[a.layer].count;
  const float* const first = a.pairs.first + a.layer * a.pairs.bandwidths;
  for (int begin = 0; begin < rates; begin += kRates) {
    float sums[kRates] = {};
    for (int64_t j = int64_t(threadIdx.x) * kNeighbours; j < a.tile.columns; j += kPanelStep) {
      const int count = neighbours_from(j, a.tile.columns);
      Counts counts = counts_at(a.pairs, a.tile, row, j, count, wide);
      for (int other = 0; other < a.pairs.layer_count; ++other) {
        if (other == a.layer) continue;
        const Values of = values_at(a.pairs, other, products_at(a.pairs, a.tile, other, row, j, count, wide));
#pragma unroll
        for (int e = 0; e < kNeighbours; ++e) counts.factor[e] *= of.k[e];
      }
      const Products products = products_at(a.pairs, a.tile, a.layer, row, j, count, wide);
      const Distances at = distances(products, kind == MMDKind::kLaplace, a.pairs.rounding);
#pragma unroll
      for (int r = 0; r < kRates; ++r) {
        if (begin + r >= rates) continue;
        const float rate = first[begin + r];
#pragma unroll
        for (int e = 0; e < kNeighbours; ++e) {
          const float x = at.d[e] * rate, k = kind == MMDKind::kImq ? 1.f / (1.f + x) : exp2f(x);
          if (!counts.out[e]) sums[r] += counts.factor[e] * (at.d[e] * (kind == MMDKind::kImq ? k * k : k));
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRates; ++r) {
      const float sum = block_reduce<false>(sums[r], shared);
      if (threadIdx.x == 0 && begin + r < rates)
        a.sums[row.here * a.sums_stride + begin + r] += a.times * double(sum);
    }
  }
}

// The kernel takes the place of its scores, 0 that of a row with itself; one block a row.
__global__ void __launch_bounds__(kPanelThreads, 3) values_kernel(MMDValuesArgs a, bool wide) {
  const Row row(a.tile, blockIdx.x);
  float* const out = scores_of(a.tile, 0, row);
  for (int64_t j = int64_t(threadIdx.x) * kNeighbours; j < a.tile.columns; j += kPanelStep) {
    const int count = neighbours_from(j, a.tile.columns);
    const Products products = products_at(a.pairs, a.tile, 0, row, j, count, wide);
    const Values of = values_at(a.pairs, 0, products);
    Neighbours<float> k;
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e) k.lane[e] = products.own[e] ? 0.f : of.k[e];
    store_neighbours(out + j, k, count, wide);
  }
}

// Counts of integers, so that their order does not matter: a block's own, then those of all blocks.
__global__ void __launch_bounds__(kPanelThreads, 4) digits_kernel(MMDDigitsArgs a, bool wide) {
  __shared__ int found[kDigits];
  for (int d = threadIdx.x; d < kDigits; d += kPanelThreads) found[d] = 0;
  __syncthreads();
  const bool all = a.shift + kDigitBits >= 31;  // no bits come before
  const int32_t before = *a.found;
  for (int64_t i = blockIdx.x; i < a.tile.rows; i += gridDim.x) {
    const Row row(a.tile, i);
    for (int64_t j = int64_t(threadIdx.x) * kNeighbours; j < a.tile.columns; j += kPanelStep) {
      const int count = neighbours_from(j, a.tile.columns);
      const Products products = products_at(a.norms, a.tile, 0, row, j, count, wide);
#pragma unroll
      for (int e = 0; e < kNeighbours; ++e) {
        const float d2 = products.norms[e] - 2.f * products.s.lane[e];
        const int32_t bits = d2 > products.norms[e] * a.rounding ? __float_as_int(d2) : 0;
        const bool counts = e < count && j + e > row.own && (all || bits >> (a.shift + kDigitBits) == before);
        if (counts) atomicAdd(&found[(bits >> a.shift) & (kDigits - 1)], 1);
      }
    }
  }
  __syncthreads();
  for (int d = threadIdx.x; d < kDigits; d += kPanelThreads)
    if (found[d]) atomicAdd(&a.counts[d], static_cast<unsigned long long>(found[d]));
}

bool aligned(const MMDTile& tile) {
  return aligned_to_neighbours(tile.scores, tile.stride) && tile.layer_stride % kNeighbours == 0;
}

// Where the numbers of the columns begin; null counts as aligned.
template <class T>
bool aligned_from(const T* of_rows, const MMDTile& tile, int64_t layer_stride = 0) {
  return !of_rows || aligned_to_neighbours(of_rows + tile.left, layer_stride);
}

bool aligned(const MMDPairs& pairs, const MMDTile& tile) {
  return aligned(tile) && aligned_from(pairs.norms, tile, pairs.layer_count > 1 ? pairs.rows : 0) &&
         aligned_from(pairs.weights, tile) && aligned_from(pairs.same, tile) &&
         aligned_from(pairs.labels, tile);
}

template <class T>
const char* tile_as(const MMDTileArgs& a, void* stream) {
  const bool wide = aligned(a.pairs, a.tile) &&
                    aligned_to_neighbours(static_cast<const T*>(a.slopes), a.slope_stride) &&
                    a.slope_layer_stride % kNeighbours == 0;
  const auto kernel = a.pairs.layer_count > 1 ? tile_kernel<T, true> : tile_kernel<T, false>;
  return launch(kernel, static_cast<unsigned>(a.tile.rows), kPanelThreads, stream, a, wide);
}

bool empty(const MMDTile& tile) { return tile.rows == 0 || tile.columns == 0; }

}  // namespace

const char* mmd_tile(const MMDTileArgs& a, void* stream) {
  if (empty(a.tile)) return nullptr;
  return by_dtype(a.dtype, [&](auto t) { return tile_as<decltype(t)>(a, stream); });
}

const char* mmd_rates(const MMDRatesArgs& a, void* stream) {
  if (empty(a.tile)) return nullptr;
  return launch(rates_kernel, static_cast<unsigned>(a.tile.rows), kPanelThreads, stream, a,
                aligned(a.pairs, a.tile));
}

const char* mmd_values(const MMDValuesArgs& a, void* stream) {
  if (empty(a.tile)) return nullptr;
  return launch(values_kernel, static_cast<unsigned>(a.tile.rows), kPanelThreads, stream, a,
                aligned(a.pairs, a.tile));
}

const char* mmd_digits(const MMDDigitsArgs& a, void* stream) {
  if (empty(a.tile)) return nullptr;
  const unsigned blocks = a.tile.rows < kMostHistograms ? unsigned(a.tile.rows) : kMostHistograms;
  return launch(digits_kernel, blocks, kPanelThreads, stream, a,
                aligned(a.tile) && aligned_from(a.norms, a.tile));
}

}  // namespace thawkit::cuda
