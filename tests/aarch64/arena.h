// Where the memory lies that the process of the tests and the server share: at the same addresses in both, so
// that pointers mean the same. Far from where Linux and the emulator put anything themselves.
#pragma once

#include <cstddef>
#include <cstdint>

constexpr uintptr_t kArenaBegin = 0x200000000000;
constexpr size_t kArenaBytes = size_t{1} << 36;  // of addresses: pages exist once they are written
