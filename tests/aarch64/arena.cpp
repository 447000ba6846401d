// To be preloaded: aligned memory, which is what torch's tensors are made of, comes from an arena that a
// server of another architecture can map too. Blocks are powers of two; freed ones wait for the next of their
// size.
#include "arena.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>

extern "C" {
void __libc_free(void*);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
int thawkit_arena();  // the file that is mapped there
}

namespace {

constexpr int kSmallest = 7, kSizes = 37;  // logarithms: 128 bytes to the whole arena
constexpr size_t kHead = 64;               // before each block: its size, and the alignment of what follows
constexpr size_t kGivenBack = 1 << 20;     // blocks whose pages go back to the system

struct Head {
  int size;
  Head* next;
};

std::atomic_flag busy = ATOMIC_FLAG_INIT;
Head* freed[kSizes];
uintptr_t end = 0;
int file = -1;

struct Turn {
  Turn() {
    while (busy.test_and_set(std::memory_order_acquire)) usleep(1);
  }
  ~Turn() { busy.clear(std::memory_order_release); }
};

bool open_arena() {
  if (end) return file >= 0;
  end = kArenaBegin;
  file = memfd_create("thawkit", 0);
  if (file < 0 || ftruncate(file, kArenaBytes)) return false;
  void* place = mmap(reinterpret_cast<void*>(kArenaBegin), kArenaBytes, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_NORESERVE | MAP_FIXED_NOREPLACE, file, 0);
  if (place != MAP_FAILED) return true;
  close(file);
  file = -1;
  return false;
}

bool ours(const void* p) { return reinterpret_cast<uintptr_t>(p) - kArenaBegin < kArenaBytes; }

Head* head_of(void* p) { return reinterpret_cast<Head*>(static_cast<char*>(p) - kHead); }

void* take(size_t bytes) {
  int size = kSmallest;
  while ((size_t{1} << size) < bytes + kHead) ++size;
  const Turn turn;
  if (!open_arena() || size >= kSizes) return nullptr;
  Head* head = freed[size];
  if (head) {
    freed[size] = head->next;
  } else {
    if (end + (size_t{1} << size) > kArenaBegin + kArenaBytes) return nullptr;
    head = reinterpret_cast<Head*>(end);
    head->size = size;
    end += size_t{1} << size;
  }
  return reinterpret_cast<char*>(head) + kHead;
}

void give(void* p) {
  Head* head = head_of(p);
  const size_t bytes = size_t{1} << head->size;
  if (bytes >= kGivenBack) madvise(reinterpret_cast<char*>(head) + 4096, bytes - 4096, MADV_REMOVE);
  const Turn turn;
  head->next = freed[head->size];
  freed[head->size] = head;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int thawkit_arena() {
  const Turn turn;
  return open_arena() ? file : -1;
}

EXPORT int posix_memalign(void** out, size_t alignment, size_t bytes) {
  void* p = alignment <= kHead ? take(bytes) : nullptr;
  if (!p) p = __libc_memalign(alignment, bytes);
  if (!p) return ENOMEM;
  *out = p;
  return 0;
}

EXPORT void free(void* p) {
  if (ours(p))
    give(p);
  else
    __libc_free(p);
}

EXPORT void* realloc(void* p, size_t bytes) {
  if (!ours(p)) return __libc_realloc(p, bytes);
  const size_t before = (size_t{1} << head_of(p)->size) - kHead;
  void* moved = malloc(bytes);
  if (moved) memcpy(moved, p, before < bytes ? before : bytes), give(p);
  return moved;
}
