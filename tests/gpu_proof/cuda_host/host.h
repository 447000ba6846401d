// CUDA C++ on a CPU: the threads of a block are fibers of one thread, and blocks run one after another in an
// order that a seed decides. The kernels are compiled with -fsanitize=thread and linked without it:
// memory.cpp answers its callbacks, so every access to memory is checked before it happens. The first fault
// ends the launch, whose error says what it was.
//
// What it cannot see: how wide the GPU's own accesses are, inline PTX, and races that atomics would order.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace cuda_host {

struct Thread {
  uint3 index;
  int number, lane, warp;
};

// How launches run, and what became of the last one.
struct Control {
  int order = 0;  // of blocks and threads: 0 as numbered, 1 reversed, 2 shuffled by the seed
  uint32_t seed = 0;
  bool counting = false;
  const uint32_t* chosen = nullptr;  // blocks to run instead of all
  size_t chosen_count = 0;
  const void* stream = nullptr;  // that launches are to be on
  std::string error;
};
Control& control();

// What a kernel did, summed over launches that count. A request is one access by the threads of a warp.
struct Counters {
  uint64_t load_requests, load_sectors, ideal_load_sectors;
  uint64_t store_requests, store_sectors, ideal_store_sectors;
  uint64_t shared_requests, shared_wavefronts, ideal_shared_wavefronts;
  uint64_t distinct_sectors_read, distinct_sectors_written;  // of 32 bytes
  uint64_t transcendentals;
};
Counters& counters();
void count_transcendental();

// fibers.cpp
const Thread& current();
int lane();
bool in_kernel();
bool on_current_stack(uintptr_t address);
uint32_t barrier_epoch();  // how often the block, and
uint32_t warp_epoch();     // the current thread's warp, has met since it began
uint32_t block_number();
void block_barrier(int line);
int block_barrier_sum(bool value, int line);
void warp_barrier(uint32_t mask, int line);
uint64_t exchange(uint32_t mask, uint64_t value, int source_lane, int line);
uint32_t ballot(uint32_t mask, bool value, int line);
const char* run(dim3 grid, dim3 block, const void* stream, void (*body)(const void*), const void* context,
                const void* kernel);
[[noreturn]] void fail(const std::string& what);

// memory.cpp
void begin_launch(const void* kernel);
void begin_block();
void access(const void* address, size_t bytes, bool write, bool atomic, const void* pc);

// counters.cpp
void count(uintptr_t address, size_t bytes, bool write, bool shared, const void* pc);
void finish_block_counters();
void finish_launch_counters();

// approximations.cpp: as inaccurate as the GPU's instructions may be
float exp2_approximate(float x);
float log2_approximate(float x);

}  // namespace cuda_host
