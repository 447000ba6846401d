// The CUDA kernels, called with raw pointers and a stream. Each returns null, or what the launch said.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace thawkit::cuda {

// Epilogue of InfoNCE on one panel of scores [rows, keys] (row stride `stride`, float32, in place): row i of
// the panel has its positive in column first + i; logits = scale * scores.
//   loss[i] = logsumexp - positive; slopes = weight_i (softmax - onehot); dscale[i] = sum_j slopes scores;
//   scores <- slopes
struct InfoNCEPanelArgs {
  float* scores;
  int64_t rows, keys, stride, first;
  const float* row_weight;  // [rows] or null: `weight`
  float weight;
  const float* scale;  // one number, on the device
  float* loss;
  float* dscale;  // [rows] or null
  bool gradient;
};

const char* info_nce_panel(const InfoNCEPanelArgs& args, void* stream);
const char* sigmoid_focal(const FocalArgs& args, void* stream);  // total must be null
const char* pack(const PackArgs& args, void* stream);
const char* masked(const MaskedArgs& args, void* stream);
const char* channel_sum(const ChannelSumArgs& args, void* stream);
const char* channel_affine(const ChannelAffineArgs& args, void* stream);
const char* channel_affine_backward(const ChannelAffineArgs& args, void* stream);
const char* max_pool(const MaxPoolArgs& args, void* stream);
const char* max_pool_backward(const MaxPoolArgs& args, void* stream);
const char* quantize(const QuantizeArgs& args, void* stream);
const char* dequantize(const DequantizeArgs& args, void* stream);
int runtime_version();
int device_count();  // -1 where the driver says no

}  // namespace thawkit::cuda
