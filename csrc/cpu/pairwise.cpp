// The pairwise engine's entry points. Compiled once per instruction set.
#include "cpu/median.h"
#include "cpu/mmd.h"
#include "cpu/pairs.h"
#include "cpu/permutation.h"
#include "cpu/row_softmax_by_keys.h"
#include "cpu/top_k.h"

namespace thawkit {
namespace THAWKIT_ISA {

int lanes() { return kLanes; }

bool bfloat16_operands() {
#if defined(THAWKIT_AVX512_BF16)
  return true;
#else
  return false;
#endif
}

// call(storage type, operand)
template <class Call>
static auto with_operand(Dtype dtype, Operands operand, Call call) {
  if (operand == Operands::kTorchFloat32) return call(float{}, TorchFloat32{});
#if defined(THAWKIT_AVX512_BF16)
  if (dtype == Dtype::kBFloat16) return call(bfloat16{}, BFloat16{});
  if (operand == Operands::kBFloat16) return call(float{}, BFloat16{});
#else
  (void)dtype;
#endif
  return call(float{}, Float32{});
}

int64_t row_softmax_workspace(const RowSoftmaxArgs& a) {
  return with_operand(a.dtype, a.operand, [&](auto storage, auto operand) {
    if (suits_keys<decltype(storage), decltype(operand)>(a))
      return with_panel_of_queries<decltype(operand)>(a,
                                                      [](const auto& run) { return run.workspace_floats; });
    return RowSoftmaxRun<decltype(storage), decltype(operand)>(a, 0).workspace_floats;
  });
}

void row_softmax(const RowSoftmaxArgs& a) {
  with_operand(a.dtype, a.operand, [&](auto storage, auto operand) {
    if (suits_keys<decltype(storage), decltype(operand)>(a))
      with_panel_of_queries<decltype(operand)>(a, [&](const auto& run) { row_softmax_by_keys(a, run); });
    else
      row_softmax_panels<decltype(storage), decltype(operand)>(a);
  });
}

int64_t pairs_workspace(const PairArgs& a) {
  return with_operand(a.dtype, a.operand, [&](auto storage, auto operand) -> int64_t {
    typedef decltype(storage) Storage;
    typedef decltype(operand) Operand;
    switch (a.kind) {
      case PairLoss::kClip:
        return PairRun<PairLoss::kClip, Storage, Operand>(a, 0).workspace_floats;
      case PairLoss::kSigLip:
        return PairRun<PairLoss::kSigLip, Storage, Operand>(a, 0).workspace_floats;
      case PairLoss::kNTXent:
        return PairRun<PairLoss::kNTXent, Storage, Operand>(a, 0).workspace_floats;
    }
    return 0;
  });
}

void pairs(const PairArgs& a) {
  with_operand(a.dtype, a.operand, [&](auto storage, auto operand) {
    typedef decltype(storage) Storage;
    typedef decltype(operand) Operand;
    switch (a.kind) {
      case PairLoss::kClip:
        return pair_panels<PairLoss::kClip, Storage, Operand>(a);
      case PairLoss::kSigLip:
        return pair_panels<PairLoss::kSigLip, Storage, Operand>(a);
      case PairLoss::kNTXent:
        return pair_panels<PairLoss::kNTXent, Storage, Operand>(a);
    }
  });
}

template <class Call>
static auto with_float32(Operands operand, Call call) {
  if (operand == Operands::kTorchFloat32) return call(TorchFloat32{});
  return call(Float32{});
}

int64_t mmd_workspace(const MMDArgs& a) {
  return with_float32(a.operand,
                      [&](auto operand) { return MMDRun<decltype(operand)>(a, 0).workspace_floats; });
}

void mmd(const MMDArgs& a) {
  with_float32(a.operand, [&](auto operand) { mmd_panels<decltype(operand)>(a); });
}

int64_t median_workspace(const MedianArgs& a) { return MedianRun(a, 0).workspace_floats; }

void median(const MedianArgs& a) { find_median(a); }

int64_t permutation_workspace(const PermutationArgs& a) { return PermutationRun(a, 0).workspace_floats; }

void permutation_sums(const PermutationArgs& a) {
  return a.doubling ? permutation_panels<true>(a) : permutation_panels<false>(a);
}

void subsets(const SubsetArgs& a) { draw_subsets(a); }

int64_t top_k_workspace(const TopKArgs& a) { return TopKRun(a, 0).workspace_floats; }

void top_k(const TopKArgs& a) { top_k_panels(a); }

template <class Operand>
static double peak_of(int threads, double seconds) {
  constexpr int kChains = kVectorBytes == 64 ? 24 : 12;
  constexpr int64_t kSteps = 20000;
  double flops = 0, elapsed = 0;
  const double start = omp_get_wtime();
#pragma omp parallel num_threads(threads) reduction(+ : flops)
  {
    Floats a[kChains];
    for (int i = 0; i < kChains; ++i) a[i] = splat(float(i + omp_get_thread_num()));
    const Floats b = splat(0.9999999f), c = splat(1e-9f);
    while (omp_get_wtime() - start < seconds) {
      for (int64_t k = 0; k < kSteps; ++k) {
#pragma GCC unroll 24
        for (int i = 0; i < kChains; ++i)
          a[i] = Operand::kRounds ? Operand::Step::add(a[i], 1e-9f, b) : a[i] * b + c;
      }
      flops += 2.0 * Operand::kTogether * kSteps * kChains * kLanes;
    }
    float keep = 0;
    for (int i = 0; i < kChains; ++i) keep += sum(a[i]);
    if (keep == 12345.f) flops = 0;
  }
  elapsed = omp_get_wtime() - start;
  return flops / elapsed;
}

double fma_peak(int threads, double seconds, Operands operand) {
  return with_operand(Dtype::kFloat32, operand,
                      [&](auto, auto kind) { return peak_of<decltype(kind)>(threads, seconds); });
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
