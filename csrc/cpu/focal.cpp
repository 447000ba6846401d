// The focal losses: logits and targets read once, loss and gradient written once. Compiled once per
// instruction set.
#include "cpu/sigmoid_focal.h"
#include "cpu/softmax_focal.h"

namespace thawkit {
namespace THAWKIT_ISA {

void sigmoid_focal(const FocalArgs& a) {
  prefer_huge_pages(a.grad, a.n * bytes_of(a.dtype));
  prefer_huge_pages(a.loss, a.n * bytes_of(a.dtype));
  switch (a.dtype) {
    case Dtype::kFloat32:
      return sigmoid_by_power<float>(a);
    case Dtype::kBFloat16:
      return sigmoid_by_power<bfloat16>(a);
    case Dtype::kFloat16:
      return sigmoid_by_power<float16>(a);
  }
}

int64_t softmax_focal_workspace(const SoftmaxFocalArgs& a) { return a.threads * Tiles::of(a).floats; }

void softmax_focal(const SoftmaxFocalArgs& a) {
  prefer_huge_pages(a.grad, a.n * a.classes * a.inner * bytes_of(a.dtype));
  switch (a.dtype) {
    case Dtype::kFloat32:
      return softmax_by_power<float>(a);
    case Dtype::kBFloat16:
      return softmax_by_power<bfloat16>(a);
    case Dtype::kFloat16:
      return softmax_by_power<float16>(a);
  }
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
