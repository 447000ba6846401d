// Chooses the instruction set once, at first use.
#include <cstdlib>
#include <cstring>

#include "cpu/kernels.h"

namespace thawkit {
namespace {

#define THAWKIT_TABLE(isa)                                                                                  \
  Kernels {                                                                                                 \
    #isa, isa::lanes(), isa::bfloat16_operands(), isa::row_softmax_workspace, isa::row_softmax,             \
        isa::pairs_workspace, isa::pairs, isa::mmd_workspace, isa::mmd, isa::median_workspace, isa::median, \
        isa::permutation_workspace, isa::permutation_sums, isa::subsets, isa::top_k_workspace, isa::top_k,  \
        isa::margin_workspace, isa::margin, isa::sigmoid_focal, isa::softmax_focal_workspace,               \
        isa::softmax_focal, isa::pack, isa::masked, isa::channel_sum_workspace, isa::channel_sum,           \
        isa::channel_affine_workspace, isa::channel_affine, isa::channel_affine_backward,                   \
        isa::max_pool_workspace, isa::max_pool, isa::max_pool_backward, isa::quantize, isa::dequantize,     \
        isa::fma_peak                                                                                       \
  }

const char* problem = "";
const char* available = "baseline";

Kernels choose() {
  const char* wanted = std::getenv("THAWKIT_CPU_ISA");
  if (wanted && !*wanted) wanted = nullptr;
  const auto is_wanted = [&](const char* isa) { return !wanted || !std::strcmp(wanted, isa); };
#ifdef THAWKIT_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
#ifdef THAWKIT_TEST_ISA
  available = avx512_bf16 ? "baseline avx2 wide avx512 avx512_bf16"
              : avx512    ? "baseline avx2 wide avx512"
              : avx2      ? "baseline avx2 wide"
                          : "baseline";
#else
  available = avx512_bf16 ? "baseline avx2 avx512 avx512_bf16"
              : avx512    ? "baseline avx2 avx512"
              : avx2      ? "baseline avx2"
                          : "baseline";
#endif
  if (avx512_bf16 && is_wanted("avx512_bf16")) return THAWKIT_TABLE(avx512_bf16);
  if (avx512 && is_wanted("avx512")) return THAWKIT_TABLE(avx512);
  if (avx2 && is_wanted("avx2")) return THAWKIT_TABLE(avx2);
#endif
#ifdef THAWKIT_TEST_ISA
  if (avx2 && wanted && is_wanted("wide")) return THAWKIT_TABLE(wide);
#endif
  if (!is_wanted("baseline"))
    problem = "THAWKIT_CPU_ISA must be baseline, avx2, avx512 or avx512_bf16, and this CPU must have it";
  return THAWKIT_TABLE(baseline);
}

}  // namespace

Blas& blas() {
  static Blas functions{nullptr, nullptr};
  return functions;
}

const Kernels& kernels() {
  static const Kernels table = choose();
  return table;
}

const char* available_isas() {
  kernels();
  return available;
}

bool cpu_is_intel() {
#if defined(__x86_64__)
  return __builtin_cpu_is("intel") != 0;
#else
  return false;
#endif
}

const char* kernels_problem() {
  kernels();
  return problem;
}

}  // namespace thawkit
