// The CPU kernels: what each computes, and one declaration for every instruction set it is compiled for.
#pragma once

#include <cstdint>

namespace thawkit {

enum class Dtype : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

static inline int64_t bytes_of(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

// What the pairwise products multiply, and what multiplies it: the engine or, for kTorchFloat32, torch's
// BLAS.
enum class Operands : int { kFloat32 = 0, kBFloat16 = 1, kTorchFloat32 = 2 };

// torch's BLAS as MKL exports it with 32-bit integers; null until Python has looked it up.
struct Blas {
  void (*sgemm)(const char* transa, const char* transb, const int* m, const int* n, const int* k,
                const float* alpha, const float* a, const int* lda, const float* b, const int* ldb,
                const float* beta, float* c, const int* ldc);
  int (*set_threads)(int threads);  // of the calling thread's products; returns what it was, 0 by default
};
Blas& blas();

// Which columns count for a row, by the labels of both.
enum class Labels : int { kIgnored = 0, kDropSame = 1, kKeepSame = 2 };

// Softmax cross-entropy of each row of q [rows, depth] over the rows of k [keys, depth].
//   logits[i, j] = scale * <q[i], k[j]> + bias[j] (rows divided by their norm first where `normalize`)
//   loss[i] = logsumexp_j logits[i, j] - logits[i, t], t = target[i] or, where that is null, i + offset;
//             a row with t < 0 has no such term. Columns that do not count for a row are left out of the sum:
//             j = i + excluded (where excluded >= 0), those that `labels` drops, and those whose similarity,
//             logits[i, j] / scale, is above that of t by more than margin (finite only without a bias);
//             t itself always counts
//   *total = sum_i weight_i * loss[i], weight_i being row_weight[i] or, where that is null, `weight`
// and, where the pointers are not null, the gradients of the total. dscale is one number a row, of
// logits[i, j] without their bias where there is none. scale is not 0.
struct RowSoftmaxArgs {
  const void* q;
  const void* k;
  Dtype dtype;       // of q, k, dq and dk: float32, or bfloat16 where the operands are bfloat16 too
  Operands operand;  // bfloat16 where the table has it. Sums are float32
  int64_t rows, keys, depth;
  float scale;
  bool normalize;
  const int64_t* target;  // [rows] or null
  int64_t offset;
  const float* bias;  // [keys] or null
  int64_t excluded;
  const int32_t* row_labels;  // [rows], and
  const int32_t* key_labels;  // [keys], where labels are not ignored
  Labels labels;
  float margin;
  const float* row_weight;
  float weight;
  float* loss;  // [rows]
  float* total;
  float* positive;  // [rows] or null: logits[i, t], NaN where there is no t
  float* maximum;   // [rows] or null: the largest logit of those that count but for the margin
  void* dq;         // [rows, depth] or null
  void* dk;         // [keys, depth] or null
  float* dbias;     // [keys] or null; not without dk
  float* dscale;    // [rows] or null
  float* workspace;
  int threads;
};

enum class PairLoss : int { kClip = 0, kSigLip = 1, kNTXent = 2 };

// Losses of all pairs of rows of x [rows, depth] and y [columns, depth], whose slopes are known entry by
// entry.
//   logits[i, j] = scale * <x[i], y[j]> (rows divided by their norm first where `normalize`)
//   kClip     rows = columns; loss[i] = (logsumexp_j logits[i, j] + logsumexp_j logits[j, i]) / 2 - logits[i,
//   i] kSigLip   loss[i] = sum_j softplus(z_ij (logits[i, j] + bias)), z = -1 for j = i + offset, else 1
//   kNTXent   y = x, rows = 2 n; loss[i] = logsumexp_{j != i} logits[i, j] - logits[i, i +- n]
//   *total = sum_i weight_i * loss[i], weight_i being row_weight[i] or, where that is null, `weight`
// and, where the pointers are not null, the gradients of the total. scale is not 0.
struct PairArgs {
  PairLoss kind;
  const void* x;
  const void* y;  // not read for kNTXent
  Dtype dtype;    // of x, y, dx and dy, as above
  Operands operand;
  int64_t rows, columns, depth;
  float scale, bias;
  int64_t offset;
  bool normalize;
  const float* row_weight;
  float weight;
  float* loss;  // [rows]
  float* total;
  void* dx;       // [rows, depth] or null
  void* dy;       // [columns, depth] or null
  float* dscale;  // one number or null
  float* dbias;   // one number or null
  float* workspace;
  int threads;
};

// With q = rates[b] or, where `relative`, that over the mean of |z_i - z_j|^2, i != j, and d = |u - v|:
//   kRbf  sum_b exp(-q d^2 / 2)   kLaplace  sum_b exp(-sqrt(q) d)   kImq  sum_b 1 / (1 + q d^2)   kEnergy  -d
//   kProduct  (scale <u, v> + offset)^degree
// Where `doubling`, which only kRbf has, rates[b] = rates[0] * 2^b and one exponential serves all of them.
enum class MMDKernel : int { kRbf = 0, kLaplace = 1, kImq = 2, kEnergy = 3, kProduct = 4 };

// What one layer sees of both samples, x [n, depth] and y [m, depth], its kernel, and their gradients.
struct MMDLayer {
  const float* x;
  const float* y;
  int64_t depth;
  MMDKernel kernel;
  const double* rates;
  int64_t bandwidths;
  bool doubling, relative;
  int degree;
  float scale, offset;
  float* dx;       // [n, depth], and
  float* dy;       // [m, depth], or both null
  double* drates;  // [bandwidths] or null; not where `relative`
};

// Sum over the pairs of rows of both samples of c(i, j) times the product of the layers' kernels.
//   c(i, j) = w_i w_j, within a sample times same_i, 0 where labels differ and, unless `diagonal`, where i =
//   j
struct MMDArgs {
  static constexpr int64_t kMostLayers = 8;
  MMDLayer layers[kMostLayers];
  int64_t layer_count;
  Operands operand;  // float32 of either kind
  int64_t n, m;
  const float* weights;  // [n + m], or null: weight_x and weight_y
  float weight_x, weight_y;
  const float* same;  // [n + m], or null: same_x and same_y
  float same_x, same_y;
  const int32_t* labels;  // [n + m] or null
  bool diagonal;
  float* value;
  float* workspace;
  int threads;
};

// The lower median of |z_i - z_j|^2 over i < j, z being the rows of x [n, depth] and y [m, depth], of which
// there are at least 2; NaN where a row is not finite.
struct MedianArgs {
  const float* x;
  const float* y;
  int64_t n, m, depth;
  double* value;
  float* workspace;
  int threads;
};

// What a permutation test asks of the kernel matrix K_ij = sum_b exp(-gamma[b] |z_i - z_j|^2), i != j, of
// z [rows, depth], whose diagonal counts as 0:
//   within[p] = sum_ij chosen[i, p] chosen[j, p] K_ij     from_chosen[p] = sum_ij chosen[i, p] K_ij
//   sums[i] = (sum of K_ij over j < first, over j >= first)
// Where `doubling`, gamma[b] = gamma[0] * 2^b and one exponential serves every bandwidth.
struct PermutationArgs {
  const float* z;
  int64_t rows, depth, first;
  const float* gamma;
  int64_t bandwidths;
  bool doubling;
  const uint8_t* chosen;  // [rows, permutations], each 0 or 1
  int64_t permutations;
  double* within;       // [permutations]
  double* from_chosen;  // [permutations]
  double* sums;         // [rows, 2]
  float* workspace;
  int threads;
};

// `permutations` random subsets of `chosen` out of `rows`, 1 where a row is in: membership [rows,
// permutations]. The p-th depends on the seed and on first + p alone.
struct SubsetArgs {
  uint8_t* membership;
  int64_t rows, chosen, permutations, first;
  uint64_t seed;
  int32_t* workspace;  // [threads, rows]
  int threads;
};

enum class Similarity : int { kDot = 0, kCosine = 1, kEuclidean = 2 };

// The k largest similarities of each of the queries [rows, depth] to the gallery [keys, depth], descending,
// equal ones in the order of the gallery. Euclidean similarity is minus the squared distance, NaN where the
// square of a row's norm is not finite. Of query i the gallery's row excluded[i] is left out, and so is
// whatever has the similarity NaN; places that remain hold -inf and index -1. k >= 1, keys < 2^31.
struct TopKArgs {
  const float* queries;
  const float* gallery;
  int64_t rows, keys, depth, k;
  Similarity similarity;
  const int64_t* excluded;  // [rows] or null
  float* values;            // [rows, k]
  int64_t* indices;         // [rows, k]
  float* workspace;
  int threads;
};

enum class MarginLoss : int { kAll = 0, kHard = 1, kSemiHard = 2, kContrastive = 3 };

// What the sum of the losses is divided by, at least 1: nothing, the triplets, or those that cost something.
enum class MarginMean : int { kNone = 0, kMined = 1, kActive = 2 };

// Losses on the distances d_ij of rows x [rows, depth] and y [columns, depth], which belong to classes.
//   kAll, kHard, kSemiHard: loss[i] = sum max(d_ip - d_in + margin, 0) over the triplets mined, p of the
//     class of x[i] and n of another one
//   kContrastive, for `self` only: loss[i] = 1/2 sum_j max(d_ij - margin, 0)^2 within the class of x[i] and
//     max(negative_margin - d_ij, 0)^2 outside
//   *total = sum_i weight_i * loss[i] / mean, weight_i being row_weight[i] or, where that is null, `weight`
// and, where the pointers are not null, the gradients of the total.
struct MarginArgs {
  MarginLoss kind;
  bool cosine;  // d = 1 - cosine, else the Euclidean distance
  bool self;    // y is x, and no row meets itself
  const float* x;
  const float* y;  // not read where self
  int64_t rows, columns, depth;
  const int64_t* order;  // [columns]: y by class
  const int64_t* first;  // [rows]: where the class of x[i] (x[order[i]] where self) begins in the order
  const int64_t* last;   // [rows]: and ends
  float margin, negative_margin;
  const float* row_weight;
  float weight;
  MarginMean mean;
  float* loss;  // [rows]
  float* total;
  float* dx;        // [rows, depth] or null
  float* dy;        // [columns, depth] or null
  float* dmargins;  // [2], of both margins
  float* workspace;
  int threads;
};

// Sigmoid focal loss over n logits x with targets t (Lin et al. 2017, torchvision's form): see
// common/focal.h.
//   writes their sum times `factor` to *total, loss[n] and grad[n], each where not null; grad comes times
//   upstream[i] or, where that is null, times `factor`
// What follows `threads` are options, and every element i may have its own:
//   classes: three vectors, [kFocalBlock + period] each, of what weighs the positive, the negative and the
//     cross-entropy's positive part; element i has number i % period, and they go on periodically
//   row_weight[i / row], another factor
//   mask[i] is 0 or the target is `ignored`: loss and gradient are 0, whatever the logit
//   indices: t is int64 [n / row], and the target of element i is 1 where it is i % row, else 0
//   smoothing: the cross-entropy's target is t (1 - smoothing) + smoothing / 2
//   separate: t positive L_1 + (1 - t) negative L_0, of the losses L_1 and L_0 of targets of 1 and 0
constexpr int64_t kFocalBlock = 512;
struct FocalArgs {
  const void* x;
  const void* t;
  int64_t n;
  float positive, negative, gamma;
  void* loss;
  void* grad;
  const void* upstream;
  float factor;
  float* total;  // null where not wanted
  Dtype dtype;
  int threads;
  const float* classes;
  int64_t period;
  const uint8_t* mask;
  const float* row_weight;
  int64_t row;
  bool indices;
  float ignored;  // NaN: none
  float smoothing;
  bool separate;
};

// Softmax focal loss of logits x [n, classes, inner], z = scale x + offset, z[y] - margin[y] at the target.
//   loss[n, inner] = sum_c t_c alpha_c (1 - p_c)^gamma (-log p_c),  p = softmax(z)
//   t is 1 at target[n, inner], or probability[n, classes, inner], times (1 - smoothing), plus smoothing /
//   classes. Targets that are `ignored` cost nothing, whatever the logits; *strange is set to one that is no
//   class, if there is any
// writes their sum to *total, loss and grad, each where not null; grad comes times upstream[n, inner] or,
// where that is null, times `factor`.
struct SoftmaxFocalArgs {
  const void* x;
  Dtype dtype;  // of x and grad
  int64_t n, classes, inner;
  const int64_t* target;
  const void* probability;  // where target is null
  Dtype probability_dtype;
  const float* alpha;   // [classes] or null
  const float* offset;  // [classes] or null
  const float* margin;  // [classes] or null
  float scale, gamma, smoothing;
  int64_t ignored;
  float* loss;
  void* grad;
  const float* upstream;
  float factor;
  float* total;
  int64_t* strange;
  float* workspace;
  int threads;
};

// Elementwise functions y of x whose gradient is told by one bit an element, with numbers a and b. Besides
// the value stands when the bit is set. Clamps come in two forms, which differ where there is no upper bound
// and at NaN:
//   kRelu sets it at NaN where b is infinite, as torch's relu, and not otherwise, as its hardtanh;
//   kClamp never does, as torch's clamp, and an infinite bound is none: infinite x passes.
// kTrue takes bytes of 0 or 1, which are the bits, and has no y.
enum class Packed : int {
  kRelu = 0,         // clamp(x, a, b); a < x < b
  kClamp = 1,        // clamp(x, a, b); a < x < b
  kThreshold = 2,    // x <= a ? b : x; not x <= a
  kLeaky = 3,        // x > 0 ? x : a x; x > 0
  kHardsigmoid = 4,  // clamp(x + 3, 0, 6) / 6; -3 < x < 3
  kAbs = 5,          // |x|; x > 0, and x < 0 in a second plane of bits
  kTrue = 6
};

// y and the bits, element i in bit i % 8 of byte i / 8 of a plane.
struct PackArgs {
  Packed kind;
  const void* x;
  void* y;        // null where only the bits are wanted; may be x
  uint8_t* mask;  // [ceil(n / 8)], twice that for kAbs
  int64_t n;
  float a, b;
  Dtype dtype;
  int threads;
};

// How bits become a gradient:
//   kPass  bit ? g : 0          kPart  bit ? yes g : 0
//   kTwo   bit ? yes g : no g   kSign  g times 1, -1 or 0, by two planes of bits
enum class Masked : int { kPass = 0, kPart = 1, kTwo = 2, kSign = 3 };

struct MaskedArgs {
  Masked kind;
  const void* g;
  const uint8_t* mask;
  void* dx;  // may be g
  int64_t n;
  float yes, no;
  Dtype dtype;
  int threads;
};

// The same of g [outer, channels, inner], kPass or kTwo, and the sums of dx by channel, in at least float32
// whatever the dtype.
struct ChannelSumArgs {
  Masked kind;
  const void* g;
  const uint8_t* mask;  // null: every bit is set
  void* dx;             // null where only the sums are wanted; may be g
  int64_t outer, channels, inner;
  float yes, no;
  const float* factors;  // [channels] in place of `no`, or null
  float* sums;           // [channels] or null
  double* workspace;
  Dtype dtype;
  int threads;
};

// y = x * scale + shift (+ other), the numbers by channel of x [outer, channels, inner]; where there is a
// mask, clamped to [lower, upper] with the bits of kRelu, of y as the dtype has it. Backward: d = bit ? g : 0
// to dother, d * scale to dx, and sums [2, channels] of d and of d * (x - shift), in at least float32: with
// shift the mean, what the scale of a normalization needs.
struct ChannelAffineArgs {
  const void* x;      // null backward where only the first sums are wanted
  const void* other;  // or null
  void* y;            // may be other
  uint8_t* mask;      // null: no clamp, every bit is set
  const void* g;      // backward only, as all that follow
  void* dx;           // or null
  void* dother;       // or null
  float* sums;
  int64_t outer, channels, inner;
  const float* scale;  // [channels]
  const float* shift;  // [channels]
  float lower, upper;
  float* workspace;
  Dtype dtype;
  int threads;
};

struct Triple {
  int64_t d, h, w;
};

// Max-pooling of x [batch, channels, size] to y [batch, channels, out], both dense in this order or, where
// channels_last, channels innermost; and where in its window each output came from: the number of the element
// (row by row, counting those that padding hides) in `bits` = 2, 4 or 8 bits. Ties go to the first, and to
// the last NaN, as in torch. Codes lie in the order of y; each plane [out], or row [out.w, channels] where
// channels_last, begins a new byte. Every window has an element that is not hidden, and at most 256.
// Backward: dx from g and the codes.
struct MaxPoolArgs {
  const void* x;  // or g
  void* y;        // or dx
  uint8_t* codes;
  int64_t batch, channels;
  Triple size, out, kernel, stride, padding, dilation;
  bool channels_last;
  int bits;
  uint8_t* workspace;
  Dtype dtype;
  int threads;
};

// Values rounded to 8, 4 or 2 bits in groups of neighbours, code i in the bits from i * bits on; what they
// stand for, see common/quantize.h. A group that holds a number that is not finite comes back as NaN.
struct QuantizeArgs {
  const void* x;
  uint8_t* codes;  // [ceil(n * bits / 8)]
  float* numbers;  // of each group: lowest level and step, or (2 bits) four levels
  int64_t n;
  int bits;
  Dtype dtype;
  int threads;
};

struct DequantizeArgs {
  const uint8_t* codes;
  const float* numbers;
  const void* g;  // null, or what the values are to be multiplied by
  void* y;        // may be g
  int64_t n;
  int bits;
  Dtype dtype;
  int threads;
};

struct Kernels {
  const char* isa;
  int lanes;
  bool bfloat16;                                            // whether operands can be bfloat16
  int64_t (*row_softmax_workspace)(const RowSoftmaxArgs&);  // floats
  void (*row_softmax)(const RowSoftmaxArgs&);
  int64_t (*pairs_workspace)(const PairArgs&);  // floats
  void (*pairs)(const PairArgs&);
  int64_t (*mmd_workspace)(const MMDArgs&);  // floats
  void (*mmd)(const MMDArgs&);
  int64_t (*median_workspace)(const MedianArgs&);  // floats
  void (*median)(const MedianArgs&);
  int64_t (*permutation_workspace)(const PermutationArgs&);  // floats
  void (*permutation_sums)(const PermutationArgs&);
  void (*subsets)(const SubsetArgs&);
  int64_t (*top_k_workspace)(const TopKArgs&);  // floats
  void (*top_k)(const TopKArgs&);
  int64_t (*margin_workspace)(const MarginArgs&);  // floats
  void (*margin)(const MarginArgs&);
  void (*sigmoid_focal)(const FocalArgs&);
  int64_t (*softmax_focal_workspace)(const SoftmaxFocalArgs&);  // floats
  void (*softmax_focal)(const SoftmaxFocalArgs&);
  void (*pack)(const PackArgs&);
  void (*masked)(const MaskedArgs&);
  int64_t (*channel_sum_workspace)(const ChannelSumArgs&);  // doubles
  void (*channel_sum)(const ChannelSumArgs&);
  int64_t (*channel_affine_workspace)(const ChannelAffineArgs&);  // floats
  void (*channel_affine)(const ChannelAffineArgs&);
  void (*channel_affine_backward)(const ChannelAffineArgs&);
  int64_t (*max_pool_workspace)(const MaxPoolArgs&);  // bytes
  void (*max_pool)(const MaxPoolArgs&);
  void (*max_pool_backward)(const MaxPoolArgs&);
  void (*quantize)(const QuantizeArgs&);
  void (*dequantize)(const DequantizeArgs&);
  double (*fma_peak)(int threads, double seconds, Operands operand);  // FLOP/s of multiply-adds in registers
};

#define THAWKIT_DECLARE_KERNELS(isa)                              \
  namespace isa {                                                 \
  int lanes();                                                    \
  bool bfloat16_operands();                                       \
  int64_t row_softmax_workspace(const RowSoftmaxArgs&);           \
  void row_softmax(const RowSoftmaxArgs&);                        \
  int64_t pairs_workspace(const PairArgs&);                       \
  void pairs(const PairArgs&);                                    \
  int64_t mmd_workspace(const MMDArgs&);                          \
  void mmd(const MMDArgs&);                                       \
  int64_t median_workspace(const MedianArgs&);                    \
  void median(const MedianArgs&);                                 \
  int64_t permutation_workspace(const PermutationArgs&);          \
  void permutation_sums(const PermutationArgs&);                  \
  void subsets(const SubsetArgs&);                                \
  int64_t top_k_workspace(const TopKArgs&);                       \
  void top_k(const TopKArgs&);                                    \
  int64_t margin_workspace(const MarginArgs&);                    \
  void margin(const MarginArgs&);                                 \
  void sigmoid_focal(const FocalArgs&);                           \
  int64_t softmax_focal_workspace(const SoftmaxFocalArgs&);       \
  void softmax_focal(const SoftmaxFocalArgs&);                    \
  void pack(const PackArgs&);                                     \
  void masked(const MaskedArgs&);                                 \
  int64_t channel_sum_workspace(const ChannelSumArgs&);           \
  void channel_sum(const ChannelSumArgs&);                        \
  int64_t channel_affine_workspace(const ChannelAffineArgs&);     \
  void channel_affine(const ChannelAffineArgs&);                  \
  void channel_affine_backward(const ChannelAffineArgs&);         \
  int64_t max_pool_workspace(const MaxPoolArgs&);                 \
  void max_pool(const MaxPoolArgs&);                              \
  void max_pool_backward(const MaxPoolArgs&);                     \
  void quantize(const QuantizeArgs&);                             \
  void dequantize(const DequantizeArgs&);                         \
  double fma_peak(int threads, double seconds, Operands operand); \
  }

THAWKIT_DECLARE_KERNELS(baseline)
THAWKIT_DECLARE_KERNELS(avx2)
THAWKIT_DECLARE_KERNELS(avx512)
THAWKIT_DECLARE_KERNELS(avx512_bf16)
THAWKIT_DECLARE_KERNELS(wide)  // sixteen lanes in AVX2 code, built for tests only

// The table chosen for this CPU, or the one that THAWKIT_CPU_ISA names. Never null.
const Kernels& kernels();
// The instruction sets that this CPU has and the build carries, separated by spaces.
const char* available_isas();
// Whether the CPU is one that MKL has its fastest code for.
bool cpu_is_intel();
// Why the choice fell as it did: an empty string, or what was wrong with THAWKIT_CPU_ISA.
const char* kernels_problem();

}  // namespace thawkit
