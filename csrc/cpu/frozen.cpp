// What frozen networks keep for their backward passes. Compiled once per instruction set.
#include "cpu/channel_affine.h"
#include "cpu/channel_sum.h"
#include "cpu/huge_pages.h"
#include "cpu/max_pool.h"
#include "cpu/pack.h"
#include "cpu/quantize.h"

namespace thawkit {
namespace THAWKIT_ISA {

void pack(const PackArgs& a) {
  if (a.y != a.x) prefer_huge_pages(a.y, a.n * bytes_of(a.dtype));
  switch (a.dtype) {
    case Dtype::kFloat32:
      return pack_by_kind<float>(a);
    case Dtype::kBFloat16:
      return pack_by_kind<bfloat16>(a);
    case Dtype::kFloat16:
      return pack_by_kind<float16>(a);
  }
}

void masked(const MaskedArgs& a) {
  if (a.dx != a.g) prefer_huge_pages(a.dx, a.n * bytes_of(a.dtype));
  switch (a.dtype) {
    case Dtype::kFloat32:
      return masked_by_kind<float>(a);
    case Dtype::kBFloat16:
      return masked_by_kind<bfloat16>(a);
    case Dtype::kFloat16:
      return masked_by_kind<float16>(a);
  }
}

int64_t channel_sum_workspace(const ChannelSumArgs& a) {
  return a.inner == 1 ? thread_sums(a) * (a.threads > 0 ? a.threads : 1) : 0;
}

void channel_sum(const ChannelSumArgs& a) {
  if (a.dx != a.g) prefer_huge_pages(a.dx, a.outer * a.channels * a.inner * bytes_of(a.dtype));
  switch (a.dtype) {
    case Dtype::kFloat32:
      return channel_sum_by_kind<float>(a);
    case Dtype::kBFloat16:
      return channel_sum_by_kind<bfloat16>(a);
    case Dtype::kFloat16:
      return channel_sum_by_kind<float16>(a);
  }
}

int64_t channel_affine_workspace(const ChannelAffineArgs& a) {
  const int64_t sums = a.inner == 1 ? 3 * affine_sums(a) * (a.threads > 0 ? a.threads : 1) : 0;
  return sums > affine_tables(a) ? sums : affine_tables(a);
}

void channel_affine(const ChannelAffineArgs& a) {
  if (a.y != a.other) prefer_huge_pages(a.y, a.outer * a.channels * a.inner * bytes_of(a.dtype));
  switch (a.dtype) {
    case Dtype::kFloat32:
      return affine_clamp<float>(a);
    case Dtype::kBFloat16:
      return affine_clamp<bfloat16>(a);
    case Dtype::kFloat16:
      return affine_clamp<float16>(a);
  }
}

void channel_affine_backward(const ChannelAffineArgs& a) {
  const int64_t bytes = a.outer * a.channels * a.inner * bytes_of(a.dtype);
  prefer_huge_pages(a.dx, bytes);
  prefer_huge_pages(a.dother, bytes);
  switch (a.dtype) {
    case Dtype::kFloat32:
      return affine_gradient<float>(a);
    case Dtype::kBFloat16:
      return affine_gradient<bfloat16>(a);
    case Dtype::kFloat16:
      return affine_gradient<float16>(a);
  }
}

int64_t max_pool_workspace(const MaxPoolArgs& a) { return pool_workspace(a); }

void max_pool(const MaxPoolArgs& a) {
  switch (a.dtype) {
    case Dtype::kFloat32:
      return pool<float>(a);
    case Dtype::kBFloat16:
      return pool<bfloat16>(a);
    case Dtype::kFloat16:
      return pool<float16>(a);
  }
}

void max_pool_backward(const MaxPoolArgs& a) {
  switch (a.dtype) {
    case Dtype::kFloat32:
      return unpool<float>(a);
    case Dtype::kBFloat16:
      return unpool<bfloat16>(a);
    case Dtype::kFloat16:
      return unpool<float16>(a);
  }
}

void quantize(const QuantizeArgs& a) {
  switch (a.dtype) {
    case Dtype::kFloat32:
      return quantize_by_bits<float>(a);
    case Dtype::kBFloat16:
      return quantize_by_bits<bfloat16>(a);
    case Dtype::kFloat16:
      return quantize_by_bits<float16>(a);
  }
}

void dequantize(const DequantizeArgs& a) {
  switch (a.dtype) {
    case Dtype::kFloat32:
      return dequantize_by_bits<float>(a);
    case Dtype::kBFloat16:
      return dequantize_by_bits<bfloat16>(a);
    case Dtype::kFloat16:
      return dequantize_by_bits<float16>(a);
  }
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
