// What kernels may touch, and in which order: bounds, alignment and races, by the callbacks that the compiler
// puts before every access where it is told -fsanitize=thread.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <vector>

#include "host.h"

extern "C" __attribute__((visibility("hidden"))) char __ehdr_start,
    __bss_start;  // the linker's: where this library, and its writable zeros, begin

namespace cuda_host {
namespace {

struct Buffer {
  uintptr_t begin, end;
  std::string name;
  bool shared;       // by a block
  uintptr_t kernel;  // that alone may use it; 0: any
  bool in(uintptr_t p, size_t bytes) const { return p >= begin && p + bytes <= end; }
};
std::vector<Buffer> buffers;

struct Access {
  uint32_t block_and_one = 0;  // 0: none yet
  uint32_t block_epoch = 0;
  uint16_t thread = 0, warp_epoch = 0;
  bool atomic = false;
};

// Of one byte: the last write, and two reads since by different threads.
struct History {
  Access write, reads[2];
};

constexpr size_t kPage = 256;
struct Page {
  History bytes[kPage];
};
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
uint64_t accesses;
constexpr uint64_t kMostAccesses = 200'000'000;  // of a launch that ends
uintptr_t kernel_running;

Page& page_of(uintptr_t address) {
  static uintptr_t last = 0;
  static Page* page = nullptr;
  const uintptr_t number = address / kPage;
  if (number != last || !page || pages.empty()) {
    auto& owned = pages[number];
    if (!owned) owned = std::make_unique<Page>();
    last = number;
    page = owned.get();
  }
  return *page;
}

// Nothing orders them: no barrier that both threads have passed lies between.
bool unordered(const Access& a, const Access& b) {
  if (!a.block_and_one) return false;
  if (a.block_and_one != b.block_and_one) return true;
  if (a.thread == b.thread || a.block_epoch != b.block_epoch) return false;
  return a.thread / 32 != b.thread / 32 || a.warp_epoch == b.warp_epoch;
}

std::string place(const void* pc) {
  char text[64];
  std::snprintf(text, sizeof text, " [at %#zx]", size_t(static_cast<const char*>(pc) - &__ehdr_start) - 1);
  return text;
}

std::string thread_text(uint32_t block, int thread) {
  return "thread " + std::to_string(thread) + " of block " + std::to_string(block);
}

const Buffer* nearest_before(uintptr_t p) {
  const Buffer* nearest = nullptr;
  for (const Buffer& b : buffers)
    if (b.begin <= p && (!nearest || b.begin > nearest->begin)) nearest = &b;
  return nearest;
}

const Buffer* buffer_of(uintptr_t p, size_t bytes) {
  static size_t last = 0;
  const auto usable = [&](const Buffer& b) {
    return b.in(p, bytes) && (!b.kernel || b.kernel == kernel_running);
  };
  if (last < buffers.size() && usable(buffers[last])) return &buffers[last];
  for (size_t i = 0; i < buffers.size(); ++i)
    if (usable(buffers[i])) return &buffers[last = i];
  return nullptr;
}

[[noreturn]] void out_of_bounds(uintptr_t p, size_t bytes, bool write, const void* pc) {
  const Buffer* near = nearest_before(p);
  std::string what = std::string(write ? "write" : "read") + " of " + std::to_string(bytes) +
                     " bytes out of bounds by " + thread_text(block_number(), current().number);
  if (near) what += ", " + std::to_string(int64_t(p - near->end)) + " bytes after the end of " + near->name;
  fail(what + place(pc));
}

[[noreturn]] void race(const Buffer& b, uintptr_t at, const Access& other, const Access& self, bool wrote,
                       bool write, const void* pc) {
  fail(std::string("race on byte ") + std::to_string(at - b.begin) + " of " + b.name + ": " +
       thread_text(other.block_and_one - 1, other.thread) + (wrote ? " wrote" : " read") + " it and " +
       thread_text(self.block_and_one - 1, self.thread) + (write ? " writes" : " reads") +
       " it, with no barrier between" + place(pc));
}

void check_order(const Buffer& b, uintptr_t p, size_t bytes, bool write, bool atomic, const void* pc) {
  const Access self{block_number() + 1, barrier_epoch(), uint16_t(current().number), uint16_t(warp_epoch()),
                    atomic};
  for (uintptr_t at = p; at < p + bytes; ++at) {
    History& h = page_of(at).bytes[at % kPage];
    if (unordered(h.write, self) && !(atomic && h.write.atomic)) race(b, at, h.write, self, true, write, pc);
    if (write) {
      for (const Access& read : h.reads)
        if (unordered(read, self)) race(b, at, read, self, false, true, pc);
      h = {self, {}};
      continue;
    }
    Access& first = h.reads[0];
    const bool same_block = first.block_and_one == self.block_and_one;
    const bool replace =
        !first.block_and_one ||
        (same_block && (first.thread == self.thread || first.block_epoch != self.block_epoch));
    h.reads[replace ? 0 : 1] = self;
  }
}

}  // namespace

void begin_launch(const void* kernel) {
  pages.clear();
  accesses = 0;
  kernel_running = reinterpret_cast<uintptr_t>(kernel);
}

// Shared memory holds NaN, and its past is forgotten.
void begin_block() {
  for (const Buffer& b : buffers) {
    if (!b.shared || (b.kernel && b.kernel != kernel_running)) continue;
    std::memset(reinterpret_cast<void*>(b.begin), 0xff, b.end - b.begin);
    for (uintptr_t at = b.begin; at < b.end; ++at) page_of(at).bytes[at % kPage] = {};
  }
}

void access(const void* address, size_t bytes, bool write, bool atomic, const void* pc) {
  if (!in_kernel()) return;
  const auto p = reinterpret_cast<uintptr_t>(address);
  if (on_current_stack(p)) return;
  const Buffer* b = buffer_of(p, bytes);
  if (!b) {
    const bool constant =
        p >= reinterpret_cast<uintptr_t>(&__ehdr_start) && p < reinterpret_cast<uintptr_t>(&__bss_start);
    if (constant && !write) return;
    out_of_bounds(p, bytes, write, pc);
  }
  if (p % bytes)
    fail("an access of " + std::to_string(bytes) + " bytes to " + b->name + " is not aligned to them" +
         place(pc));
  if (++accesses > kMostAccesses) fail("the kernel does not end" + place(pc));
  check_order(*b, p, bytes, write, atomic, pc);
  if (control().counting && !atomic) count(p, bytes, write, b->shared, pc);
}

}  // namespace cuda_host

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void cuda_host_watch(const char* name, void* begin, uint64_t bytes, bool shared, void* kernel) {
  const auto p = reinterpret_cast<uintptr_t>(begin);
  for (cuda_host::Buffer& b : cuda_host::buffers)
    if (b.begin == p && b.end == p + bytes) return;
  cuda_host::buffers.push_back({p, p + bytes, name, shared, reinterpret_cast<uintptr_t>(kernel)});
}

EXPORT void cuda_host_forget_buffers() {
  auto& all = cuda_host::buffers;
  all.erase(std::remove_if(all.begin(), all.end(), [](const auto& b) { return !b.shared; }), all.end());
}

EXPORT void* cuda_host_base() { return &__ehdr_start; }

EXPORT void cuda_host_order(int order, uint32_t seed) {
  cuda_host::control().order = order;
  cuda_host::control().seed = seed;
}

// Launches are to be on this stream.
EXPORT void cuda_host_stream(const void* stream) { cuda_host::control().stream = stream; }

// Launches run these blocks alone; none: all.
EXPORT void cuda_host_choose_blocks(const uint32_t* blocks, uint64_t count) {
  cuda_host::control().chosen = blocks;
  cuda_host::control().chosen_count = count;
}

EXPORT void cuda_host_count(bool counting) {
  cuda_host::control().counting = counting;
  cuda_host::counters() = {};
}

EXPORT const cuda_host::Counters* cuda_host_counters() { return &cuda_host::counters(); }

#define ACCESSES(bytes)                                                     \
  extern "C" void __tsan_read##bytes(void* p) {                             \
    cuda_host::access(p, bytes, false, false, __builtin_return_address(0)); \
  }                                                                         \
  extern "C" void __tsan_write##bytes(void* p) {                            \
    cuda_host::access(p, bytes, true, false, __builtin_return_address(0));  \
  }                                                                         \
  extern "C" void __tsan_unaligned_read##bytes(void* p) {                   \
    cuda_host::access(p, bytes, false, false, __builtin_return_address(0)); \
  }                                                                         \
  extern "C" void __tsan_unaligned_write##bytes(void* p) {                  \
    cuda_host::access(p, bytes, true, false, __builtin_return_address(0));  \
  }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_read_range(void* p, unsigned long bytes) {
  cuda_host::access(p, bytes, false, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, unsigned long bytes) {
  cuda_host::access(p, bytes, true, false, __builtin_return_address(0));
}

// What -fsanitize=bounds,signed-integer-overflow,shift says; every description begins with a place in the
// source.
struct SourcePlace {
  const char* file;
  uint32_t line, column;
};
static void undefined(const char* what, const SourcePlace* at) {
  cuda_host::fail(std::string(what) + " at line " + std::to_string(at->line));
}
void __ubsan_handle_out_of_bounds_abort(SourcePlace* at, void*) { undefined("index out of bounds", at); }
void __ubsan_handle_shift_out_of_bounds_abort(SourcePlace* at, void*, void*) { undefined("bad shift", at); }
void __ubsan_handle_add_overflow_abort(SourcePlace* at, void*, void*) { undefined("overflow", at); }
void __ubsan_handle_sub_overflow_abort(SourcePlace* at, void*, void*) { undefined("overflow", at); }
void __ubsan_handle_mul_overflow_abort(SourcePlace* at, void*, void*) { undefined("overflow", at); }
void __ubsan_handle_negate_overflow_abort(SourcePlace* at, void*) { undefined("overflow", at); }
void __ubsan_handle_divrem_overflow_abort(SourcePlace* at, void*, void*) { undefined("overflow", at); }
}
