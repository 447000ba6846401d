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

// Kernels of MMD: those of MMDKernel in cpu/kernels.h, and rbf whose rates are the first one's times 2, 4 and
// so on; in the order of KINDS in kernels/mmd_pairs.py.
enum class MMDKind : int { kRbf, kDoubling, kLaplace, kImq, kEnergy, kProduct };

struct MMDTileLayer {
  MMDKind kind;
  int count;    // of bandwidths, of kProduct the degree
  bool sloped;  // whether its slopes are wanted
};

// What all tiles share: the rows of both samples, one after the other, and what their pairs count; see Pairs
// in kernels/mmd_pairs.py.
struct MMDPairs {
  static constexpr int kMostLayers = 8;
  MMDTileLayer layers[kMostLayers];
  int layer_count;
  int64_t rows;
  const float* norms;   // [layers, rows]
  const float* first;   // [layers, bandwidths], and
  const float* second;  // [layers, bandwidths]
  int64_t bandwidths;
  float rounding;
  const float* weights;   // [rows]
  const float* same;      // [rows] or null
  const int32_t* labels;  // [rows] or null
  int64_t first_rows;     // of the first sample
  bool diagonal;
};

// Inner products of rows `top` and on with rows `left` and on, a panel for each layer.
struct MMDTile {
  float* scores;  // [layers, rows, columns]
  int64_t rows, columns, layer_stride, stride;
  int64_t top, left;
};

// Adds `times` what the pairs are worth, and writes the slopes of the layers that are sloped.
struct MMDTileArgs {
  MMDPairs pairs;
  MMDTile tile;
  void* slopes;  // [layers, rows, columns], may be the scores, or null
  Dtype dtype;   // of the slopes
  int64_t slope_layer_stride, slope_stride;
  double times;
  double* value;  // [tile.rows]
};

// Adds `times` what the derivatives by the rates of one layer, kRbf, kLaplace or kImq, are made of.
struct MMDRatesArgs {
  MMDPairs pairs;
  MMDTile tile;
  int layer;
  double times;
  double* sums;  // [tile.rows, bandwidths]
  int64_t sums_stride;
};

// Writes the kernel of the one layer over its scores, 0 for a row with itself.
struct MMDValuesArgs {
  MMDPairs pairs;
  MMDTile tile;
};

constexpr int kDigitBits = 11;  // DIGIT in kernels/mmd_pairs.py

// Counts the pairs i < j by the digit of their squared distances that has `shift` bits after it, if the bits
// before it are those found.
struct MMDDigitsArgs {
  MMDTile tile;
  const float* norms;    // of all rows
  const int32_t* found;  // one number, on the device
  unsigned long long* counts;
  int shift;
  float rounding;
};

// Products of some rows with some columns of a gallery; see Scores in kernels/top_k_scores.py.
struct TopKPanel {
  const float* products;  // [rows, columns]
  int64_t rows, columns, stride;
  int64_t first;              // number of the first column
  const int64_t* excluded;    // [rows] or null: the number of a column that does not count
  const float* norms;         // [rows], and
  const float* column_norms;  // [columns], or both null: similarities are minus squared distances
};

// Writes the best key of each group of neighbouring columns, by the group's number.
struct BestOfGroupsArgs {
  TopKPanel panel;
  int group;      // a power of 2 from 4 to 128
  int64_t* keys;  // [rows, groups]
  int64_t keys_stride;
};

// Writes the keys of all columns of the groups whose keys are chosen, or of the first ones.
struct KeysOfGroupsArgs {
  TopKPanel panel;
  int group;  // a multiple of 4
  int64_t groups;
  const int64_t* chosen;  // [rows, groups] or null
  int64_t chosen_stride;
  int64_t* keys;  // [rows, groups * group]
  int64_t keys_stride;
};

// Of a panel whose columns are in the order of their classes: what the losses on distances with margins know
// of its rows and columns. Their slopes leave as weights, by half the square of the distance or by the
// cosine's complement, and are float32.
struct MarginRows {
  const float* norms;         // [rows] squared lengths; not read where distances are of cosines, and so
  const float* column_norms;  // [columns]
  const int32_t* first;       // [rows] where the row's class begins among the columns, and
  const int32_t* last;        // [rows] where it ends
  const int32_t* number;      // [columns]: of equally far ones the least is taken; ascending in a class
  const int32_t* place;       // [columns]: the column of each number
  bool itself;                // row i is column i, which is then no partner of it
  bool cosine;                // distances are 1 less the product, else Euclidean
};

struct DistancesPanelArgs {
  Panel panel;
  MarginRows rows;
  float* distances;  // [rows, columns], may be the scores
  int64_t distance_stride;
};

// All triplets of each row, or a semihard one of each of its positives, for which the slopes begin as 0.
struct TripletsPanelArgs {
  Panel panel;  // the scores are not read
  MarginRows rows;
  const float* distances;  // [rows, columns], may not be the slopes
  int64_t distance_stride;
  const float* margin;  // one number, on the device
  float* loss;          // [rows]
  int64_t* active;      // [rows] how many triplets cost something
  float* weights;       // [rows] sums of the slopes; not written where there are none
};

// The hardest triplet of each row, whose two weights do not go into the panel's slopes.
struct HardestPanelArgs {
  Panel panel;
  MarginRows rows;
  const float* margin;
  float* loss;
  int64_t* active;   // [rows] 1 where it costs something
  int64_t* columns;  // [rows, 2] of the positive and the negative, or null, and
  float* weights;    // [rows, 2] theirs
};

// Contrastive pairs of rows that are the columns; the weights are those that both rows of a pair give it.
struct ContrastivePanelArgs {
  Panel panel;
  MarginRows rows;
  const float* margin;           // one number on the device, and
  const float* negative_margin;  // another
  const float* column_weight;    // [columns] or null, as panel.row_weight
  float* loss;                   // [rows] half of its pairs'
  float* within;                 // [rows] how far distances of its class exceed the margin, and
  float* between;                // [rows] those of others fall short of the other one
  float* weights;                // as in TripletsPanelArgs
};

const char* softmax_panel(const SoftmaxPanelArgs& args, void* stream);
const char* column_sums_panel(const ColumnSumsPanelArgs& args, void* stream);
const char* clip_panel(const ClipPanelArgs& args, void* stream);
const char* sigmoid_panel(const SigmoidPanelArgs& args, void* stream);
const char* mmd_tile(const MMDTileArgs& args, void* stream);
const char* mmd_rates(const MMDRatesArgs& args, void* stream);
const char* mmd_values(const MMDValuesArgs& args, void* stream);
const char* mmd_digits(const MMDDigitsArgs& args, void* stream);
const char* best_of_groups(const BestOfGroupsArgs& args, void* stream);
const char* keys_of_groups(const KeysOfGroupsArgs& args, void* stream);
const char* distances_panel(const DistancesPanelArgs& args, void* stream);
const char* all_triplets_panel(const TripletsPanelArgs& args, void* stream);
const char* semihard_triplets_panel(const TripletsPanelArgs& args, void* stream);
const char* hardest_triplet_panel(const HardestPanelArgs& args, void* stream);
const char* contrastive_panel(const ContrastivePanelArgs& args, void* stream);
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
const char* sources();   // SHA-256 of the CUDA sources and of all they include from here
const char* compiler();  // nvcc's version
int runtime_version();
int device_count();  // -1 where the driver says no

}  // namespace thawkit::cuda
