// Serves the functions of csrc/module.cpp, built for another architecture, over standard input and output.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../arena.h"
#include "pybind11/stl.h"

void define_module(pybind11::module_& module);

namespace remote {

std::string message;  // what is left of the one that came last

void read(void* bytes, size_t count) {
  if (count > message.size()) throw std::invalid_argument("too few arguments");
  memcpy(bytes, message.data(), count);
  message.erase(0, count);
}

static void receive() {
  uint64_t size;
  if (fread(&size, sizeof size, 1, stdin) != 1) exit(0);  // the tests are over
  message.resize(size);
  if (fread(message.data(), 1, size, stdin) != size) exit(0);
}

void write(const void* bytes, size_t count) { fwrite(bytes, 1, count, stdout); }

}  // namespace remote

int main(int argc, char** argv) {
  const int file = argc == 2 ? atoi(argv[1]) : -1;
  void* place = mmap(reinterpret_cast<void*>(kArenaBegin), kArenaBytes, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_NORESERVE | MAP_FIXED, file, 0);
  if (place == MAP_FAILED) {
    perror("the arena cannot be mapped");
    return 1;
  }
  pybind11::module_ module;
  define_module(module);
  remote::put_result(static_cast<int64_t>(module.attributes.size()));
  for (const auto& [name, put_value] : module.attributes) {
    remote::put_text('s', name);
    put_value();
  }
  remote::put_result(static_cast<int64_t>(module.functions.size()));
  for (const auto& [name, call] : module.functions) remote::put_text('s', name);
  for (;;) {
    fflush(stdout);
    remote::receive();
    try {
      std::string name(remote::get_length(), '\0');
      remote::read(name.data(), name.size());
      module.functions.at(name)();
    } catch (const std::exception& error) {
      remote::put_text('e', error.what());
    }
  }
}
