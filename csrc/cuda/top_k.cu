// Retrieval on CUDA: which columns of a panel of products can be among the largest of each row. The keys are
// integers in the order of the similarities and, of equal ones, of the columns; kernels/top_k.py says more.
#include "cuda/common.cuh"
#include "cuda/kernels.h"
#include "cuda/panel.cuh"

namespace thawkit::cuda {
namespace {

constexpr int32_t kNoOrder = INT32_MIN;  // below that of -inf
constexpr int64_t kNone = INT64_MIN, kLast = INT32_MAX;

__device__ __forceinline__ int32_t order_of(float score) {
  if (score != score) return kNoOrder;
  const int32_t bits = __float_as_int(score == 0.f ? 0.f : score);  // -0 is 0
  return bits ^ ((bits >> 31) & int32_t(kLast));
}

__device__ __forceinline__ int64_t key_of(int32_t order, int64_t number) {
  if (order == kNoOrder) return kNone;
  return static_cast<int64_t>(uint64_t(uint32_t(order)) << 32 | uint64_t(kLast - number));
}

// Of what is past the count, which may be below 0, there is none.
__device__ __forceinline__ Neighbours<int32_t> orders_at(const TopKPanel& panel, int64_t row, int64_t column,
                                                         int count, bool wide) {
  const Neighbours<float> s = load_neighbours(panel.products + row * panel.stride + column, count, wide);
  const float own = panel.norms ? panel.norms[row] : 0.f;
  Neighbours<float> norms = {};
  if (panel.norms) norms = load_neighbours(panel.column_norms + column, count, wide);
  const int64_t excluded = panel.excluded ? panel.excluded[row] - panel.first : -1;
  Neighbours<int32_t> order;
#pragma unroll
  for (int e = 0; e < kNeighbours; ++e) {
    float score = s.lane[e];
    if (panel.norms) {  // from squared lengths that are finite
      const float other = norms.lane[e];
      score = 2.f * score - own - other + ((own - own) + (other - other));
      score = score > 0.f ? 0.f : score;
    }
    order.lane[e] = e < count && column + e != excluded ? order_of(score) : kNoOrder;
  }
  return order;
}

// Blocks have kPanelStep places of a row each.
struct Place {
  int64_t row, first;

  __device__ __forceinline__ explicit Place(unsigned blocks_a_row)
      : row(blockIdx.x / blocks_a_row),
        first(int64_t(blockIdx.x % blocks_a_row) * kPanelStep + threadIdx.x * kNeighbours) {}
};

unsigned blocks_for(int64_t places) { return static_cast<unsigned>((places + kPanelStep - 1) / kPanelStep); }

// A group's columns are neighbouring threads', of one warp.
__global__ void __launch_bounds__(kPanelThreads)
    best_of_groups_kernel(BestOfGroupsArgs a, unsigned blocks_a_row, bool wide) {
  const Place place(blocks_a_row);
  const int count = neighbours_from(place.first, a.panel.columns);
  const Neighbours<int32_t> order = orders_at(a.panel, place.row, place.first, count, wide);
  int32_t best = order.lane[0];
#pragma unroll
  for (int e = 1; e < kNeighbours; ++e) best = order.lane[e] > best ? order.lane[e] : best;
  const int threads = a.group / kNeighbours;
  for (int offset = 1; offset < threads; offset *= 2) {
    const int32_t other = __shfl_xor_sync(~0u, best, offset);
    best = other > best ? other : best;
  }
  if (threadIdx.x % threads != 0 || count <= 0) return;
  const int64_t group = place.first / a.group;
  a.keys[place.row * a.keys_stride + group] = key_of(best, group);
}

__global__ void __launch_bounds__(kPanelThreads)
    keys_of_groups_kernel(KeysOfGroupsArgs a, unsigned blocks_a_row, bool wide) {
  const Place place(blocks_a_row);
  if (place.first >= a.groups * a.group) return;
  int64_t group = place.first / a.group;
  if (a.chosen) {
    const int64_t key = a.chosen[place.row * a.chosen_stride + group];
    group = key == kNone ? -1 : kLast - (key & kLast);
  }
  const int64_t column = group * a.group + place.first % a.group;
  const int count = group < 0 ? 0 : neighbours_from(column, a.panel.columns);
  const Neighbours<int32_t> order = orders_at(a.panel, place.row, column, count, wide);
  Neighbours<int64_t> keys;
#pragma unroll
  for (int e = 0; e < kNeighbours; ++e) keys.lane[e] = key_of(order.lane[e], a.panel.first + column + e);
  store_neighbours(a.keys + place.row * a.keys_stride + place.first, keys, kNeighbours, wide);
}

bool aligned(const TopKPanel& panel) {
  return aligned_to_neighbours(panel.products, panel.stride) && aligned_to_neighbours(panel.column_norms);
}

}  // namespace

const char* best_of_groups(const BestOfGroupsArgs& a, void* stream) {
  if (a.panel.rows == 0 || a.panel.columns == 0) return nullptr;
  const unsigned blocks = blocks_for(a.panel.columns);
  return launch(best_of_groups_kernel, static_cast<unsigned>(a.panel.rows) * blocks, kPanelThreads, stream, a,
                blocks, aligned(a.panel));
}

const char* keys_of_groups(const KeysOfGroupsArgs& a, void* stream) {
  if (a.panel.rows == 0 || a.groups == 0) return nullptr;
  const unsigned blocks = blocks_for(a.groups * a.group);
  return launch(keys_of_groups_kernel, static_cast<unsigned>(a.panel.rows) * blocks, kPanelThreads, stream, a,
                blocks, aligned(a.panel) && aligned_to_neighbours(a.keys, a.keys_stride));
}

}  // namespace thawkit::cuda
