// Losses on distances with margins on CUDA, triplets mined of each row and contrastive pairs: they run on
// panels of cuBLAS products, one block a row. What is mined turns on comparisons, so that no root is an
// approximation.
#include <cfloat>

#include "cuda/common.cuh"
#include "cuda/kernels.h"
#include "cuda/panel.cuh"

namespace thawkit::cuda {
namespace {

constexpr int kWarps = kPanelThreads / 32;
constexpr int kTogether = 4;  // positives that a warp compares with all columns at a time
constexpr int kWarpStep = 32 * kNeighbours;

// A row's class among the columns, and the row itself.
struct Anchor {
  int64_t first, last, own;  // own: no partner of it; -1: none

  __device__ __forceinline__ bool is_class(int64_t column) const { return first <= column && column < last; }
  __device__ __forceinline__ bool is_positive(int64_t column) const {
    return is_class(column) && column != own;
  }
  __device__ __forceinline__ bool mines(int64_t columns) const {
    return last - first > (own >= 0) && last - first < columns;
  }
};

__device__ __forceinline__ Anchor anchor_of(const Panel& panel, const MarginRows& rows, int64_t here) {
  return {rows.first[here], rows.last[here], rows.itself ? panel.first + here : -1};
}

// `own` and `other` are squared lengths. Squares of no more than rounding leaves of two equal rows are 0. An
// infinite row is at no distance from any (NaN), but infinitely far from finite ones.
__device__ __forceinline__ float euclidean(float score, float own, float other) {
  const float both = other + own, squares = both - 2.f * score;
  const float d = squares <= both * (8.f * FLT_EPSILON) ? 0.f : sqrtf(squares);
  return (other - own == INFINITY ? INFINITY : d) + (own - own);
}

// Distances of a panel's row from neighbours, whatever those behind the last column are.
struct Row {
  const float *scores, *norms;
  float norm;
  bool cosine;

  __device__ __forceinline__ Row(const Panel& panel, const MarginRows& rows, int64_t here)
      : scores(scores_of(panel, here)),
        norms(rows.column_norms),
        norm(rows.cosine ? 0.f : rows.norms[here]),
        cosine(rows.cosine) {}

  __device__ __forceinline__ Neighbours<float> distances(int64_t column, int count, bool wide) const {
    Neighbours<float> d = load_neighbours(scores + column, count, wide), other = {};
    if (!cosine) other = load_neighbours(norms + column, count, wide);
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e)
      d.lane[e] = cosine ? 1.f - d.lane[e] : euclidean(d.lane[e], norm, other.lane[e]);
    return d;
  }
};

// A slope by half the square of the distance, of one by the distance; at distance 0 there is none.
__device__ __forceinline__ float weight_of(float slope, float d, bool cosine) {
  return cosine ? slope : d == 0.f ? 0.f : slope / d;
}

// What a triplet costs; not a number where a distance is not.
__device__ __forceinline__ float cost_of(float positive, float negative, float margin) {
  const float loss = positive - negative + margin;
  return loss <= 0.f ? 0.f : loss;
}

// Integers in the order of the distances and, of equal ones, of numbers from 0 to 2^31 - 1.
constexpr int64_t kBeforeAll = INT64_MIN, kBehindAll = INT64_MAX;
constexpr int32_t kLastNumber = INT32_MAX;

__device__ __forceinline__ int32_t in_order(int32_t bits) { return bits ^ (bits >> 31 & INT32_MAX); }

__device__ __forceinline__ int64_t key_of(float d, int32_t number) {
  return int64_t(in_order(__float_as_int(d))) * (int64_t(1) << 32) + number;
}

__device__ __forceinline__ float distance_of(int64_t key) { return __int_as_float(in_order(key >> 32)); }
__device__ __forceinline__ int32_t number_of(int64_t key) { return key & INT32_MAX; }

struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Larger {
  __device__ __forceinline__ int64_t operator()(int64_t a, int64_t b) const { return a > b ? a : b; }
};
struct Smaller {
  __device__ __forceinline__ int64_t operator()(int64_t a, int64_t b) const { return a < b ? a : b; }
};

template <class Both, class T>
__device__ __forceinline__ T over_warp(T x) {
  for (int offset = 16; offset; offset >>= 1) x = Both{}(x, __shfl_xor_sync(~0u, x, offset));
  return x;
}

// Known to every thread. `shared` is used once.
template <class Both>
__device__ __forceinline__ int64_t over_block(int64_t x, int64_t (&shared)[kWarps]) {
  x = over_warp<Both>(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  x = shared[0];
  for (int w = 1; w < kWarps; ++w) x = Both{}(x, shared[w]);
  return x;
}

__device__ __forceinline__ const float* distances_of(const TripletsPanelArgs& a, int64_t row) {
  return a.distances + row * a.distance_stride;
}

// What the threads of a row's block add up.
struct RowSums {
  float loss = 0.f, total = 0.f;  // total: of the weights
  int64_t active = 0;

  // Triplets that cost something cost `margin` besides.
  __device__ __forceinline__ void write(const TripletsPanelArgs& a, float margin, float* shared,
                                        int64_t (&counts)[kWarps]) {
    loss = block_reduce<false>(loss, shared);
    total = block_reduce<false>(total, shared);
    active = over_block<Sum>(active, counts);
    if (threadIdx.x != 0) return;
    a.loss[blockIdx.x] = loss + float(active) * margin;
    a.active[blockIdx.x] = active;
    if (a.panel.slopes) a.weights[blockIdx.x] = total;
  }
};

__global__ void __launch_bounds__(kPanelThreads, 4) distances_kernel(DistancesPanelArgs a, bool wide) {
  const int64_t here = blockIdx.x, columns = a.panel.columns;
  const Row row(a.panel, a.rows, here);
  float* const out = a.distances + here * a.distance_stride;
  for (int64_t j = int64_t(threadIdx.x) * kNeighbours; j < columns; j += kPanelStep) {
    const int count = neighbours_from(j, columns);
    store_neighbours(out + j, row.distances(j, count, wide), count, wide);
  }
}

// The slope of a distance is the number of triplets that cost something and that it is in. For a positive
// these are the negatives nearer than it and the margin; for a negative, the positives that reach beyond it
// with the margin.
__global__ void __launch_bounds__(kPanelThreads, 4) all_triplets_kernel(TripletsPanelArgs a, bool wide) {
  __shared__ float shared[32];
  __shared__ int64_t counts[kWarps];
  const int64_t here = blockIdx.x, columns = a.panel.columns;
  const Anchor anchor = anchor_of(a.panel, a.rows, here);
  const float* const distances = distances_of(a, here);
  float* const weights = slopes_of<float>(a.panel, here);
  const float margin = *a.margin, weight = slope_weight(a.panel, here);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  RowSums sums;
  // an infinite distance of no triplet costs nothing
  const auto add = [&](float slope, float d) {
    sums.loss += slope == 0.f && d == INFINITY ? 0.f : slope * d;
  };

  for (int64_t p = anchor.first + warp; p < anchor.last; p += kWarps * kTogether) {
    float reach[kTogether];
    int nearer[kTogether] = {};
#pragma unroll
    for (int k = 0; k < kTogether; ++k)
      reach[k] = anchor.is_positive(p + k * kWarps) ? distances[p + k * kWarps] + margin : -INFINITY;
    for (int64_t j = int64_t(lane) * kNeighbours; j < columns; j += kWarpStep) {
      const int count = neighbours_from(j, columns);
      const Neighbours<float> d = load_neighbours(distances + j, count, wide);
#pragma unroll
      for (int e = 0; e < kNeighbours; ++e) {
        const float negative = e < count && !anchor.is_class(j + e) ? d.lane[e] : INFINITY;
#pragma unroll
        for (int k = 0; k < kTogether; ++k) nearer[k] += negative < reach[k];
      }
    }
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      const int64_t column = p + k * kWarps;
      const int found = over_warp<Sum>(nearer[k]);
      if (lane != 0 || !anchor.is_positive(column)) continue;
      const float d = distances[column];
      add(float(found), d);
      sums.active += found;
      if (!weights) continue;
      const float w = weight_of(float(found) * weight, d, a.rows.cosine);
      weights[column] = w;
      sums.total += w;
    }
  }

  for (int64_t j = int64_t(threadIdx.x) * kNeighbours; j < columns; j += kPanelStep) {
    const int count = neighbours_from(j, columns);
    const Neighbours<float> d = load_neighbours(distances + j, count, wide);
    float negative[kNeighbours];
    int beyond[kNeighbours] = {};
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e)
      negative[e] = e < count && !anchor.is_class(j + e) ? d.lane[e] : INFINITY;
    for (int64_t p = anchor.first; p < anchor.last; ++p) {
      const float reach = p != anchor.own ? distances[p] + margin : -INFINITY;
#pragma unroll
      for (int e = 0; e < kNeighbours; ++e) beyond[e] += negative[e] < reach;
    }
    Neighbours<float> w;
    bool mine[kNeighbours], all_mine = true;
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e) {
      mine[e] = e < count && !anchor.is_positive(j + e);
      all_mine = all_mine && mine[e];
      const float slope = -float(beyond[e]);
      if (mine[e]) add(slope, d.lane[e]);
      w.lane[e] = mine[e] ? weight_of(slope * weight, d.lane[e], a.rows.cosine) : 0.f;
      sums.total += w.lane[e];
    }
    if (!weights) continue;
    if (all_mine) {
      store_neighbours(weights + j, w, count, wide);
      continue;
    }
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e)
      if (mine[e]) weights[j + e] = w.lane[e];
  }

  sums.write(a, margin, shared, counts);
}

// Of each positive the nearest negative that is farther, or the farthest one.
__global__ void __launch_bounds__(kPanelThreads, 4) semihard_triplets_kernel(TripletsPanelArgs a, bool wide) {
  __shared__ float shared[32];
  __shared__ int64_t keys[kWarps], counts[kWarps];
  const int64_t here = blockIdx.x, columns = a.panel.columns;
  const Anchor anchor = anchor_of(a.panel, a.rows, here);
  const float* const distances = distances_of(a, here);
  float* const weights = slopes_of<float>(a.panel, here);
  const float margin = *a.margin, weight = slope_weight(a.panel, here);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  int64_t farthest = kBeforeAll;
  bool strange = false;
  for (int64_t j = int64_t(threadIdx.x) * kNeighbours; j < columns; j += kPanelStep) {
    const int count = neighbours_from(j, columns);
    const Neighbours<float> d = load_neighbours(distances + j, count, wide);
    const Neighbours<int32_t> number = load_neighbours(a.rows.number + j, count, wide);
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e) {
      if (e >= count || anchor.is_class(j + e)) continue;
      if (d.lane[e] == d.lane[e])
        farthest = Larger{}(farthest, key_of(d.lane[e], kLastNumber - number.lane[e]));
      else
        strange = true;
    }
  }
  farthest = over_block<Larger>(farthest, keys);
  strange = __syncthreads_or(strange) || farthest == kBeforeAll;
  const float d_far =
      strange ? NAN : distance_of(farthest);  // of one that is at no distance, if there is one

  RowSums sums;
  const int64_t last = anchor.mines(columns) ? anchor.last : anchor.first;
  for (int64_t p = anchor.first + warp; p < last; p += kWarps * kTogether) {
    int64_t limit[kTogether], nearest[kTogether];
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      const int64_t column = p + k * kWarps;
      limit[k] = anchor.is_positive(column) ? key_of(distances[column], kLastNumber) : kBehindAll;
      nearest[k] = kBehindAll;
    }
    for (int64_t j = int64_t(lane) * kNeighbours; j < columns; j += kWarpStep) {
      const int count = neighbours_from(j, columns);
      const Neighbours<float> d = load_neighbours(distances + j, count, wide);
      const Neighbours<int32_t> number = load_neighbours(a.rows.number + j, count, wide);
#pragma unroll
      for (int e = 0; e < kNeighbours; ++e) {
        const bool negative = e < count && !anchor.is_class(j + e) && d.lane[e] == d.lane[e];
        const int64_t key = negative ? key_of(d.lane[e], number.lane[e]) : kBehindAll;
#pragma unroll
        for (int k = 0; k < kTogether; ++k)
          if (key > limit[k]) nearest[k] = Smaller{}(nearest[k], key);
      }
    }
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      const int64_t column = p + k * kWarps;
      const int64_t found = over_warp<Smaller>(nearest[k]);
      if (lane != 0 || !anchor.is_positive(column)) continue;
      const bool none = found == kBehindAll;
      const float d_p = distances[column], d_n = none ? d_far : distance_of(found);
      const float cost = cost_of(d_p, d_n, margin);
      sums.loss += cost;
      sums.active += cost > 0.f;
      if (!weights || cost <= 0.f || d_n != d_n) continue;
      const int32_t number = none ? kLastNumber - number_of(farthest) : number_of(found);
      const float w_p = weight_of(weight, d_p, a.rows.cosine), w_n = weight_of(-weight, d_n, a.rows.cosine);
      weights[column] = w_p;
      // several positives may have one negative; they add the same, so that their order does not matter
      atomicAdd(weights + a.rows.place[number], w_n);
      sums.total += w_p + w_n;
    }
  }

  sums.write(a, 0.f, shared, counts);
}

// The farthest positive and the nearest negative, and the two weights that are not 0.
__global__ void __launch_bounds__(kPanelThreads, 4) hardest_triplet_kernel(HardestPanelArgs a, bool wide) {
  __shared__ int64_t of_positives[kWarps], of_negatives[kWarps];
  const int64_t here = blockIdx.x, columns = a.panel.columns;
  const Anchor anchor = anchor_of(a.panel, a.rows, here);
  const Row row(a.panel, a.rows, here);
  int64_t farthest = kBeforeAll, nearest = kBehindAll;
  bool strange = false;
  for (int64_t j = int64_t(threadIdx.x) * kNeighbours; j < columns; j += kPanelStep) {
    const int count = neighbours_from(j, columns);
    const Neighbours<float> d = row.distances(j, count, wide);
    const Neighbours<int32_t> number = load_neighbours(a.rows.number + j, count, wide);
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e) {
      if (e >= count) continue;
      if (d.lane[e] != d.lane[e]) {
        strange = true;
      } else if (anchor.is_positive(j + e)) {
        // within a class the columns are in the order of their numbers
        farthest = Larger{}(farthest, key_of(d.lane[e], kLastNumber - int32_t(j + e)));
      } else if (!anchor.is_class(j + e)) {
        nearest = Smaller{}(nearest, key_of(d.lane[e], number.lane[e]));
      }
    }
  }
  farthest = over_block<Larger>(farthest, of_positives);
  nearest = over_block<Smaller>(nearest, of_negatives);
  strange = __syncthreads_or(strange);
  if (threadIdx.x != 0) return;
  const bool mined = anchor.mines(columns), found = farthest != kBeforeAll && nearest != kBehindAll;
  const float d_p = distance_of(farthest), d_n = distance_of(nearest);
  const float cost = found ? cost_of(d_p, d_n, *a.margin) : NAN;
  a.loss[here] = !mined ? 0.f : strange ? NAN : cost;
  a.active[here] = mined && !strange && cost > 0.f;
  if (!a.columns) return;
  const bool costs = mined && found && !(cost <= 0.f);
  const float weight = slope_weight(a.panel, here);
  a.columns[2 * here] = found ? kLastNumber - number_of(farthest) : 0;
  a.columns[2 * here + 1] = found ? a.rows.place[number_of(nearest)] : 0;
  a.weights[2 * here] = costs ? weight_of(weight, d_p, a.rows.cosine) : 0.f;
  a.weights[2 * here + 1] = costs ? weight_of(-weight, d_n, a.rows.cosine) : 0.f;
}

__global__ void __launch_bounds__(kPanelThreads, 4) contrastive_kernel(ContrastivePanelArgs a, bool wide) {
  __shared__ float shared[32];
  const int64_t here = blockIdx.x, columns = a.panel.columns, own = a.panel.first + here;
  const Anchor anchor = anchor_of(a.panel, a.rows, here);
  const Row row(a.panel, a.rows, here);
  float* const weights = slopes_of<float>(a.panel, here);
  const float margin = *a.margin, negative_margin = *a.negative_margin;
  const float weight = slope_weight(a.panel, here), factor = a.panel.factor;
  float loss = 0.f, within = 0.f, between = 0.f, total = 0.f;
  for (int64_t j = int64_t(threadIdx.x) * kNeighbours; j < columns; j += kPanelStep) {
    const int count = neighbours_from(j, columns);
    const Neighbours<float> d = row.distances(j, count, wide);
    Neighbours<float> column_weight = {1.f, 1.f, 1.f, 1.f};
    if (a.column_weight) column_weight = load_neighbours(a.column_weight + j, count, wide);
    Neighbours<float> w;
#pragma unroll
    for (int e = 0; e < kNeighbours; ++e) {
      const bool counts = e < count && j + e != own, same = anchor.is_class(j + e);
      float gap = same ? d.lane[e] - margin : negative_margin - d.lane[e];
      if (!counts || gap <= 0.f) gap = 0.f;  // stays where it is not a number
      loss += gap * gap;
      (same ? within : between) += gap;
      const float slope = (same ? gap : -gap) * (weight + factor * column_weight.lane[e]);
      w.lane[e] = counts ? weight_of(slope, d.lane[e], a.rows.cosine) : 0.f;
      total += w.lane[e];
    }
    if (weights) store_neighbours(weights + j, w, count, wide);
  }
  loss = block_reduce<false>(loss, shared);
  within = block_reduce<false>(within, shared);
  between = block_reduce<false>(between, shared);
  total = block_reduce<false>(total, shared);
  if (threadIdx.x != 0) return;
  a.loss[here] = 0.5f * loss;
  a.within[here] = within;
  a.between[here] = between;
  if (weights) a.weights[here] = total;
}

template <class Args>
const char* launch_rows(void (*kernel)(Args, bool), const Args& a, bool wide, void* stream) {
  if (a.panel.rows == 0) return nullptr;
  return launch(kernel, static_cast<unsigned>(a.panel.rows), kPanelThreads, stream, a, wide);
}

bool aligned_products(const Panel& panel, const MarginRows& rows) {
  return aligned_rows<float>(panel) && (rows.cosine || aligned_to_neighbours(rows.column_norms));
}

}  // namespace

const char* distances_panel(const DistancesPanelArgs& a, void* stream) {
  const bool wide =
      aligned_products(a.panel, a.rows) && aligned_to_neighbours(a.distances, a.distance_stride);
  return launch_rows(distances_kernel, a, wide, stream);
}

const char* all_triplets_panel(const TripletsPanelArgs& a, void* stream) {
  const bool wide = aligned_to_neighbours(a.distances, a.distance_stride) &&
                    aligned_to_neighbours(static_cast<const float*>(a.panel.slopes), a.panel.slope_stride);
  return launch_rows(all_triplets_kernel, a, wide, stream);
}

const char* semihard_triplets_panel(const TripletsPanelArgs& a, void* stream) {
  const bool wide =
      aligned_to_neighbours(a.distances, a.distance_stride) && aligned_to_neighbours(a.rows.number);
  return launch_rows(semihard_triplets_kernel, a, wide, stream);
}

const char* hardest_triplet_panel(const HardestPanelArgs& a, void* stream) {
  const bool wide = aligned_products(a.panel, a.rows) && aligned_to_neighbours(a.rows.number);
  return launch_rows(hardest_triplet_kernel, a, wide, stream);
}

const char* contrastive_panel(const ContrastivePanelArgs& a, void* stream) {
  const bool wide = aligned_products(a.panel, a.rows) && aligned_to_neighbours(a.column_weight);
  return launch_rows(contrastive_kernel, a, wide, stream);
}

}  // namespace thawkit::cuda
