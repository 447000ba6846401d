// The headers not of this project's that CUDA sources begin with, which are precompiled: half of the time
// that it takes to compile one source is theirs.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
