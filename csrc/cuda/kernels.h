// The CUDA kernels, called with raw pointers and a stream. Each returns null, or what the launch said.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace thawkit::cuda {

// Products of some rows with all columns, which a library makes, and where the slopes of their losses go. The
// logits are scale * scores. No two rows overlap.
struct Panel {
  const float* scores;  // [rows, columns]
  int64_t rows, columns, stride;
  void* slopes;  // [rows, columns] or null; may be scores
  Dtype dtype;   // of the slopes
  int64_t slope_stride;
  int64_t first;            // number of the first row
  const float* scale;       // one number, on the device
  const float* row_weight;  // [rows] or null: factors of the slopes
  float factor;             // of all slopes and of what is summed from them
};

// Softmax cross-entropies of a panel's rows: RowSoftmaxArgs says which columns count.
struct SoftmaxPanelArgs {
  Panel panel;
  const int64_t* target;  // [rows] or null; one past the last column gives NaN
  int64_t offset;
  const float* bias;  // [columns] or null
  int64_t excluded;
  const int32_t* row_labels;  // [rows], and
  const int32_t* key_labels;  // [columns], where labels are not ignored
  Labels labels;
  float margin;
  float* loss;      // [rows]
  float* log_sum;   // [rows] or null: log-sum-exp of the logits that count, and
  float* missing;   // [rows] or null: 1 less the positive's share of their exponentials
  float* positive;  // as in RowSoftmaxArgs
  float* maximum;
  float* dscale;  // [rows] or null: sum_j slopes[i, j] scores[i, j]
};

// Adds a panel's rows to the columns' maxima and sums of exponentials relative to them, from -inf and 0 on.
// Row i has no column i.
struct ColumnSumsPanelArgs {
  Panel panel;
  float* maximum;  // [columns], and
  float* total;    // [columns]
};

// Slopes of CLIP's loss, once the log-sum-exp of every row and column is known, and 1 less the share of row
// i's positive, column i.
struct ClipPanelArgs {
  Panel panel;
  const float* log_sum;         // [rows], and
  const float* missing;         // [rows]
  const float* column_log_sum;  // [columns], and
  const float* column_missing;  // [columns]
  const float* column_weight;   // [columns] or null, as panel.row_weight
  float* dscale;                // [rows] or null
};

// SigLIP's losses and slopes: softplus(z (logit + bias)), z = -1 for the row's own column, else 1.
struct SigmoidPanelArgs {
  Panel panel;
  const float* bias;  // one number, on the device
  int64_t offset;     // row i's own column is i + offset,
  bool paired;        // if any row has one
  float* loss;        // [rows]
  float* dscale;      // [rows] or null
  float* dbias;       // [rows] or null
};

const char* softmax_panel(const SoftmaxPanelArgs& args, void* stream);
const char* column_sums_panel(const ColumnSumsPanelArgs& args, void* stream);
const char* clip_panel(const ClipPanelArgs& args, void* stream);
const char* sigmoid_panel(const SigmoidPanelArgs& args, void* stream);
const char* sigmoid_focal(const FocalArgs& args, void* stream);  // total must be null
const char* softmax_focal(const SoftmaxFocalArgs& args,
                          void* stream);  // total must be null, strange is not read
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
