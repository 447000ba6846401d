// The threads of a block as fibers, their barriers and exchanges, and launches.
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "host.h"

// Not zero, so that they lie where kernels may read.
uint3 threadIdx = {1, 1, 1}, blockIdx = {1, 1, 1};
dim3 blockDim(1, 1, 1), gridDim(1, 1, 1);

namespace cuda_host {
namespace {

constexpr size_t kStack = 1 << 16;
constexpr int kMostThreads = 1024;

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Fiber {
  Thread thread;
  State state = State::kDone;
  bool started = false;
  ucontext_t start;
  jmp_buf resume;
  int line = 0;            // of the barrier it waits at
  uint32_t mask = 0;       // of the warp's barrier
  bool fence = false;      // whether that barrier orders memory
  bool vote = false;       // for a sum over the block
  uint64_t sent[2] = {};   // exchanges take turns, so a fast lane does not overwrite what a slow one reads
  unsigned exchanges = 0;  // made so far
  uint32_t warp_epoch = 0;
};

struct Launch {
  void (*body)(const void*);
  const void* context;
  uint32_t block, block_epoch;
  int threads, votes;
  bool inside = false;  // a kernel's code runs
};

std::vector<Fiber> fibers(kMostThreads);
Launch launch;
Fiber* running = nullptr;
jmp_buf scheduler;

char* stack_of(const Fiber& fiber) {
  static char* const stacks = static_cast<char*>(mmap(nullptr, kStack * kMostThreads, PROT_READ | PROT_WRITE,
                                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  return stacks + kStack * (&fiber - fibers.data());
}

void yield() {
  launch.inside = false;
  if (_setjmp(running->resume) == 0) _longjmp(scheduler, 1);
  launch.inside = true;
}

// A fiber outlives its block and runs the same thread of the next one.
void fiber_main() {
  for (;;) {
    launch.inside = true;
    launch.body(launch.context);
    running->state = State::kDone;
    yield();
  }
}

void resume(Fiber& fiber) {
  running = &fiber;
  threadIdx = fiber.thread.index;
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = stack_of(fiber);
  fiber.start.uc_stack.ss_size = kStack;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, fiber_main, 0);
  setcontext(&fiber.start);
}

// The fibers stay where they were, and are made anew for the next launch.
void end_launch(const std::string& error) {
  launch.inside = false;
  control().error = error;
  for (Fiber& f : fibers) f.started = false;
}

std::string at_line(int line) { return " at line " + std::to_string(line); }

void describe_deadlock() {
  std::map<std::string, int> places;
  for (int t = 0; t < launch.threads; ++t) {
    const Fiber& f = fibers[t];
    ++places[f.state == State::kDone             ? "have left the kernel"
             : f.state == State::kAtBlockBarrier ? "wait for the block" + at_line(f.line)
                                                 : "wait for their warp" + at_line(f.line)];
  }
  std::string what = "deadlock in block " + std::to_string(launch.block) + ":";
  for (const auto& [place, count] : places) what += " " + std::to_string(count) + " threads " + place + ";";
  what.pop_back();
  end_launch(what);
}

// Lets the warps go on whose lanes have all come to one barrier.
bool release_warps() {
  bool any = false;
  for (int first = 0; first < launch.threads; first += 32) {
    const int lanes = std::min(32, launch.threads - first);
    for (int lane = 0; lane < lanes; ++lane) {
      const Fiber& here = fibers[first + lane];
      if (here.state != State::kAtWarpBarrier) continue;
      const uint32_t mask = here.mask;
      const int line = here.line;
      bool all = true;
      for (int l = 0; l < 32; ++l)
        if (mask >> l & 1) {
          const Fiber& other = fibers[first + l];
          all &=
              l < lanes && other.state == State::kAtWarpBarrier && other.mask == mask && other.line == line;
        }
      if (!all) continue;
      any = true;
      for (int l = 0; l < lanes; ++l)
        if (mask >> l & 1) {
          Fiber& f = fibers[first + l];
          f.state = State::kReady;
          f.warp_epoch += f.fence;
        }
    }
  }
  return any;
}

// Lets the block go on when every thread of it has come to one barrier.
bool release_block() {
  const int line = fibers[0].line;
  int votes = 0;
  for (int t = 0; t < launch.threads; ++t) {
    const Fiber& f = fibers[t];
    if (f.state != State::kAtBlockBarrier || f.line != line) return false;
    votes += f.vote;
  }
  launch.votes = votes;
  ++launch.block_epoch;
  for (int t = 0; t < launch.threads; ++t) fibers[t].state = State::kReady;
  return true;
}

void run_block(std::vector<int>& turns, std::mt19937& random) {
  for (;;) {
    if (control().order == 2) std::shuffle(turns.begin(), turns.end(), random);
    bool progress = false;
    for (int t : turns)
      if (fibers[t].state == State::kReady) {
        progress = true;
        resume(fibers[t]);
        if (!control().error.empty()) return;
      }
    if (std::all_of(turns.begin(), turns.end(), [](int t) { return fibers[t].state == State::kDone; }))
      return;
    if (!release_warps() && !release_block() && !progress) return describe_deadlock();
  }
}

std::vector<uint32_t> blocks_to_run(uint32_t count, std::mt19937& random) {
  const Control& c = control();
  std::vector<uint32_t> blocks(c.chosen ? c.chosen_count : count);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = c.chosen ? c.chosen[i] : uint32_t(i);
  if (c.order == 1) std::reverse(blocks.begin(), blocks.end());
  if (c.order == 2) std::shuffle(blocks.begin(), blocks.end(), random);
  return blocks;
}

void place_threads(dim3 grid, dim3 block, unsigned number) {
  gridDim = grid;
  blockDim = block;
  blockIdx = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
  for (int t = 0; t < launch.threads; ++t) {
    const unsigned u = t;
    Fiber& f = fibers[t];
    f.thread = {{u % block.x, u / block.x % block.y, u / block.x / block.y}, t, t % 32, t / 32};
    f.state = State::kReady;
    f.exchanges = f.warp_epoch = 0;
  }
}

}  // namespace

Control& control() {
  static Control c;
  return c;
}

const Thread& current() { return running->thread; }
int lane() { return running->thread.lane; }
bool in_kernel() { return launch.inside; }
uint32_t barrier_epoch() { return launch.block_epoch; }
uint32_t warp_epoch() { return running->warp_epoch; }
uint32_t block_number() { return launch.block; }

bool on_current_stack(uintptr_t address) {
  return address - reinterpret_cast<uintptr_t>(stack_of(*running)) < kStack;
}

void block_barrier(int line) { block_barrier_sum(false, line); }

int block_barrier_sum(bool value, int line) {
  running->state = State::kAtBlockBarrier;
  running->line = line;
  running->vote = value;
  yield();
  return launch.votes;
}

namespace {

void meet_warp(uint32_t mask, int line, bool fence) {
  if (!(mask >> running->thread.lane & 1))
    fail("lane " + std::to_string(running->thread.lane) + " is not in the mask it gives" + at_line(line));
  running->state = State::kAtWarpBarrier;
  running->mask = mask;
  running->line = line;
  running->fence = fence;
  yield();
}

uint64_t sent_by(int lane, unsigned turn) { return fibers[running->thread.warp * 32 + lane].sent[turn]; }

}  // namespace

void warp_barrier(uint32_t mask, int line) { meet_warp(mask, line, true); }

uint64_t exchange(uint32_t mask, uint64_t value, int source_lane, int line) {
  const unsigned turn = running->exchanges++ % 2;
  running->sent[turn] = value;
  meet_warp(mask, line, false);
  if (!(mask >> source_lane & 1)) fail("an exchange asks a lane that is not in its mask" + at_line(line));
  return sent_by(source_lane, turn);
}

uint32_t ballot(uint32_t mask, bool value, int line) {
  const unsigned turn = running->exchanges++ % 2;
  running->sent[turn] = value;
  meet_warp(mask, line, false);
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) bits |= uint32_t(sent_by(lane, turn)) << lane;
  return bits;
}

void fail(const std::string& what) {
  end_launch(what);
  _longjmp(scheduler, 1);
}

const char* run(dim3 grid, dim3 block, const void* stream, void (*body)(const void*), const void* context,
                const void* kernel) {
  Control& c = control();
  c.error.clear();
  const uint64_t count = uint64_t(grid.x) * grid.y * grid.z, threads = uint64_t(block.x) * block.y * block.z;
  if (!count || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || !threads ||
      threads > kMostThreads) {
    c.error = "invalid configuration argument: a grid of " + std::to_string(count) + " blocks of " +
              std::to_string(threads) + " threads";
    return c.error.c_str();
  }
  if (stream != c.stream) {
    c.error = "launched on another stream than the tensors' current one";
    return c.error.c_str();
  }
  launch = {body, context, 0, 0, int(threads), 0};
  std::mt19937 random(c.seed);
  std::vector<int> turns(threads);
  for (size_t t = 0; t < threads; ++t) turns[t] = int(c.order == 1 ? threads - 1 - t : t);
  begin_launch(kernel);
  for (uint32_t number : blocks_to_run(uint32_t(count), random)) {
    launch.block = number;
    launch.block_epoch = 0;
    place_threads(grid, block, number);
    begin_block();
    run_block(turns, random);
    if (!c.error.empty()) return c.error.c_str();
    if (c.counting) finish_block_counters();
  }
  running = nullptr;
  if (c.counting) finish_launch_counters();
  return nullptr;
}

}  // namespace cuda_host
