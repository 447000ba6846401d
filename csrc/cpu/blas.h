// The engine's three products by torch's BLAS, from rows that lie one after the other. It packs them itself,
// with the instructions that it has for this CPU; epilogues, threads and the order of sums stay the engine's.
#pragma once

#include "cpu/kernels.h"
#include "cpu/operand.h"

namespace thawkit {
namespace THAWKIT_ISA {

// What a matrix is to a product of row-major matrices.
enum class As : char { kItself = 'N', kTransposed = 'T' };

// C[rows x columns] (+)= A B of row-major matrices, each given with the distance of its rows. In the calling
// thread: the engine's threads are the only ones.
static inline void multiply_plain(int64_t rows, int64_t columns, int64_t depth, As as_a, const float* A,
                                  int64_t lda, As as_b, const float* B, int64_t ldb, bool accumulate,
                                  float* C, int64_t ldc) {
  if (rows <= 0 || columns <= 0) return;
  // Fortran reads a row-major matrix as its transpose: Ct = Bt At.
  const char first = static_cast<char>(as_b), second = static_cast<char>(as_a);
  const int m = static_cast<int>(columns), n = static_cast<int>(rows), k = static_cast<int>(depth);
  const int a = static_cast<int>(lda > 1 ? lda : 1), b = static_cast<int>(ldb > 1 ? ldb : 1);
  const int c = static_cast<int>(ldc > 1 ? ldc : 1);
  const float one = 1.f, before = accumulate ? 1.f : 0.f;
  const Blas& torch = blas();
  const int threads = torch.set_threads(1);
  torch.sgemm(&first, &second, &m, &n, &k, &one, B, &b, A, &a, &before, C, &c);
  torch.set_threads(threads);
}

// Rows `first` to `last` of K, each times its factor (a null factor is 1), zeros where there are only
// `count`.
template <class Storage>
static inline void pack_plain(const Storage* K, int64_t count, int64_t depth, const float* factor,
                              float* packed, int64_t first, int64_t last) {
  for (int64_t j = first; j < smaller(last, count); ++j)
    scale_row(packed + j * depth, K + j * depth, depth, factor ? factor[j] : 1.f);
  for (int64_t j = first > count ? first : count; j < last; ++j)
    memset(packed + j * depth, 0, static_cast<size_t>(depth) * sizeof(float));
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
