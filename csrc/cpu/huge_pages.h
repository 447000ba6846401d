// A hint to the system about large fresh memory.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>

namespace thawkit {

// Spares most page faults of a fresh allocation and the address translations of strided reads. The system may
// decline; the hint changes no contents.
static inline void prefer_huge_pages(void* memory, int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t kHugePage = uintptr_t(2) << 20;
  const uintptr_t start = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (start + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (start + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
  if (memory && last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

}  // namespace thawkit
