// What this extension's CUDA part was made of and by, and what it finds where it runs.
#include <cuda_runtime.h>

#include "cuda/kernels.h"

namespace thawkit::cuda {

const char* sources() { return THAWKIT_CUDA_SOURCES; }

const char* compiler() { return THAWKIT_CUDA_COMPILER; }

int runtime_version() {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  return version;
}

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : -1;
}

}  // namespace thawkit::cuda
