// thawkit._C: one line a kernel. Raw pointers, sizes, a thread count or a stream; no libtorch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/huge_pages.h"
#include "cpu/kernels.h"
#ifdef THAWKIT_HAS_CUDA
#include "cuda/kernels.h"
#endif

namespace py = pybind11;
using Pointer = std::uintptr_t;  // 0 is null

namespace thawkit {
namespace {

template <class T>
T* as(Pointer p) {
  return reinterpret_cast<T*>(p);
}

RowSoftmaxArgs row_softmax_args(Pointer q, Pointer k, int dtype, int operand, int64_t rows, int64_t keys,
                                int64_t depth, float scale, bool normalize, Pointer target, int64_t offset,
                                Pointer bias, int64_t excluded, Pointer row_labels, Pointer key_labels,
                                int labels, float margin, Pointer row_weight, float weight, Pointer loss,
                                Pointer total, Pointer positive, Pointer maximum, Pointer dq, Pointer dk,
                                Pointer dbias, Pointer dscale, Pointer workspace, int threads) {
  return {as<void>(q),
          as<void>(k),
          static_cast<Dtype>(dtype),
          static_cast<Operands>(operand),
          rows,
          keys,
          depth,
          scale,
          normalize,
          as<const int64_t>(target),
          offset,
          as<const float>(bias),
          excluded,
          as<const int32_t>(row_labels),
          as<const int32_t>(key_labels),
          static_cast<Labels>(labels),
          margin,
          as<const float>(row_weight),
          weight,
          as<float>(loss),
          as<float>(total),
          as<float>(positive),
          as<float>(maximum),
          as<void>(dq),
          as<void>(dk),
          as<float>(dbias),
          as<float>(dscale),
          as<float>(workspace),
          threads};
}

PairArgs pair_args(int kind, Pointer x, Pointer y, int dtype, int operand, int64_t rows, int64_t columns,
                   int64_t depth, float scale, float bias, int64_t offset, bool normalize, Pointer row_weight,
                   float weight, Pointer loss, Pointer total, Pointer dx, Pointer dy, Pointer dscale,
                   Pointer dbias, Pointer workspace, int threads) {
  return {static_cast<PairLoss>(kind),
          as<void>(x),
          as<void>(y),
          static_cast<Dtype>(dtype),
          static_cast<Operands>(operand),
          rows,
          columns,
          depth,
          scale,
          bias,
          offset,
          normalize,
          as<const float>(row_weight),
          weight,
          as<float>(loss),
          as<float>(total),
          as<void>(dx),
          as<void>(dy),
          as<float>(dscale),
          as<float>(dbias),
          as<float>(workspace),
          threads};
}

// The fields of an MMDLayer, in order.
using LayerFields = std::tuple<Pointer, Pointer, int64_t, int, Pointer, int64_t, bool, bool, int, float,
                               float, Pointer, Pointer, Pointer>;

MMDLayer mmd_layer(Pointer x, Pointer y, int64_t depth, int kernel, Pointer rates, int64_t bandwidths,
                   bool doubling, bool relative, int degree, float scale, float offset, Pointer dx,
                   Pointer dy, Pointer drates) {
  return {as<const float>(x),
          as<const float>(y),
          depth,
          static_cast<MMDKernel>(kernel),
          as<const double>(rates),
          bandwidths,
          doubling,
          relative,
          degree,
          scale,
          offset,
          as<float>(dx),
          as<float>(dy),
          as<double>(drates)};
}

MMDArgs mmd_args(std::vector<LayerFields> layers, int operand, int64_t n, int64_t m, Pointer weights,
                 float weight_x, float weight_y, Pointer same, float same_x, float same_y, Pointer labels,
                 bool diagonal, Pointer value, Pointer workspace, int threads) {
  MMDArgs args{{},
               static_cast<int64_t>(layers.size()),
               static_cast<Operands>(operand),
               n,
               m,
               as<const float>(weights),
               weight_x,
               weight_y,
               as<const float>(same),
               same_x,
               same_y,
               as<const int32_t>(labels),
               diagonal,
               as<float>(value),
               as<float>(workspace),
               threads};
  if (args.layer_count < 1 || args.layer_count > MMDArgs::kMostLayers)
    throw std::invalid_argument("too many layers, or none");
  for (size_t l = 0; l < layers.size(); ++l) args.layers[l] = std::apply(mmd_layer, layers[l]);
  return args;
}

MedianArgs median_args(Pointer x, Pointer y, int64_t n, int64_t m, int64_t depth, Pointer value,
                       Pointer workspace, int threads) {
  return {as<const float>(x), as<const float>(y),   n,      m, depth,
          as<double>(value),  as<float>(workspace), threads};
}

PermutationArgs permutation_args(Pointer z, int64_t rows, int64_t depth, int64_t first, Pointer gamma,
                                 int64_t bandwidths, bool doubling, Pointer chosen, int64_t permutations,
                                 Pointer within, Pointer from_chosen, Pointer sums, Pointer workspace,
                                 int threads) {
  return {as<const float>(z),
          rows,
          depth,
          first,
          as<const float>(gamma),
          bandwidths,
          doubling,
          as<const uint8_t>(chosen),
          permutations,
          as<double>(within),
          as<double>(from_chosen),
          as<double>(sums),
          as<float>(workspace),
          threads};
}

SubsetArgs subset_args(Pointer membership, int64_t rows, int64_t chosen, int64_t permutations, int64_t first,
                       uint64_t seed, Pointer workspace, int threads) {
  return {as<uint8_t>(membership), rows, chosen, permutations, first, seed, as<int32_t>(workspace), threads};
}

TopKArgs top_k_args(Pointer queries, Pointer gallery, int64_t rows, int64_t keys, int64_t depth, int64_t k,
                    int similarity, Pointer excluded, Pointer values, Pointer indices, Pointer workspace,
                    int threads) {
  return {as<const float>(queries),
          as<const float>(gallery),
          rows,
          keys,
          depth,
          k,
          static_cast<Similarity>(similarity),
          as<const int64_t>(excluded),
          as<float>(values),
          as<int64_t>(indices),
          as<float>(workspace),
          threads};
}

MarginArgs margin_args(int kind, bool cosine, bool self, Pointer x, Pointer y, int64_t rows, int64_t columns,
                       int64_t depth, Pointer order, Pointer first, Pointer last, float margin,
                       float negative_margin, Pointer row_weight, float weight, int mean, Pointer loss,
                       Pointer total, Pointer dx, Pointer dy, Pointer dmargins, Pointer workspace,
                       int threads) {
  return {static_cast<MarginLoss>(kind),
          cosine,
          self,
          as<const float>(x),
          as<const float>(y),
          rows,
          columns,
          depth,
          as<const int64_t>(order),
          as<const int64_t>(first),
          as<const int64_t>(last),
          margin,
          negative_margin,
          as<const float>(row_weight),
          weight,
          static_cast<MarginMean>(mean),
          as<float>(loss),
          as<float>(total),
          as<float>(dx),
          as<float>(dy),
          as<float>(dmargins),
          as<float>(workspace),
          threads};
}

FocalArgs focal_args(Pointer x, Pointer t, int64_t n, float positive, float negative, float gamma,
                     Pointer loss, Pointer grad, Pointer upstream, float factor, Pointer total, int dtype,
                     int threads, Pointer classes, int64_t period, Pointer mask, Pointer row_weight,
                     int64_t row, bool indices, float ignored, float smoothing, bool separate) {
  return {as<void>(x),
          as<void>(t),
          n,
          positive,
          negative,
          gamma,
          as<void>(loss),
          as<void>(grad),
          as<void>(upstream),
          factor,
          as<float>(total),
          static_cast<Dtype>(dtype),
          threads,
          as<const float>(classes),
          period,
          as<const uint8_t>(mask),
          as<const float>(row_weight),
          row,
          indices,
          ignored,
          smoothing,
          separate};
}

SoftmaxFocalArgs softmax_focal_args(Pointer x, int dtype, int64_t n, int64_t classes, int64_t inner,
                                    Pointer target, Pointer probability, int probability_dtype, Pointer alpha,
                                    Pointer offset, Pointer margin, float scale, float gamma, float smoothing,
                                    int64_t ignored, Pointer loss, Pointer grad, Pointer upstream,
                                    float factor, Pointer total, Pointer strange, Pointer workspace,
                                    int threads) {
  return {as<void>(x),
          static_cast<Dtype>(dtype),
          n,
          classes,
          inner,
          as<const int64_t>(target),
          as<void>(probability),
          static_cast<Dtype>(probability_dtype),
          as<const float>(alpha),
          as<const float>(offset),
          as<const float>(margin),
          scale,
          gamma,
          smoothing,
          ignored,
          as<float>(loss),
          as<void>(grad),
          as<const float>(upstream),
          factor,
          as<float>(total),
          as<int64_t>(strange),
          as<float>(workspace),
          threads};
}

PackArgs pack_args(int kind, Pointer x, Pointer y, Pointer mask, int64_t n, float a, float b, int dtype,
                   int threads) {
  return {static_cast<Packed>(kind), as<void>(x), as<void>(y), as<uint8_t>(mask), n, a, b,
          static_cast<Dtype>(dtype), threads};
}

MaskedArgs masked_args(int kind, Pointer g, Pointer mask, Pointer dx, int64_t n, float yes, float no,
                       int dtype, int threads) {
  return {static_cast<Masked>(kind), as<void>(g), as<const uint8_t>(mask), as<void>(dx), n, yes, no,
          static_cast<Dtype>(dtype), threads};
}

ChannelSumArgs channel_sum_args(int kind, Pointer g, Pointer mask, Pointer dx, int64_t outer,
                                int64_t channels, int64_t inner, float yes, float no, Pointer factors,
                                Pointer sums, Pointer workspace, int dtype, int threads) {
  return {static_cast<Masked>(kind),
          as<void>(g),
          as<const uint8_t>(mask),
          as<void>(dx),
          outer,
          channels,
          inner,
          yes,
          no,
          as<const float>(factors),
          as<float>(sums),
          as<double>(workspace),
          static_cast<Dtype>(dtype),
          threads};
}

ChannelAffineArgs channel_affine_args(Pointer x, Pointer other, Pointer y, Pointer mask, Pointer g,
                                      Pointer dx, Pointer dother, Pointer sums, int64_t outer,
                                      int64_t channels, int64_t inner, Pointer scale, Pointer shift,
                                      float lower, float upper, Pointer workspace, int dtype, int threads) {
  return {as<void>(x),
          as<void>(other),
          as<void>(y),
          as<uint8_t>(mask),
          as<void>(g),
          as<void>(dx),
          as<void>(dother),
          as<float>(sums),
          outer,
          channels,
          inner,
          as<const float>(scale),
          as<const float>(shift),
          lower,
          upper,
          as<float>(workspace),
          static_cast<Dtype>(dtype),
          threads};
}

using TripleFields = std::array<int64_t, 3>;

Triple triple(TripleFields fields) { return {fields[0], fields[1], fields[2]}; }

MaxPoolArgs max_pool_args(Pointer x, Pointer y, Pointer codes, int64_t batch, int64_t channels,
                          TripleFields size, TripleFields out, TripleFields kernel, TripleFields stride,
                          TripleFields padding, TripleFields dilation, bool channels_last, int bits,
                          Pointer workspace, int dtype, int threads) {
  return {as<void>(x),
          as<void>(y),
          as<uint8_t>(codes),
          batch,
          channels,
          triple(size),
          triple(out),
          triple(kernel),
          triple(stride),
          triple(padding),
          triple(dilation),
          channels_last,
          bits,
          as<uint8_t>(workspace),
          static_cast<Dtype>(dtype),
          threads};
}

QuantizeArgs quantize_args(Pointer x, Pointer codes, Pointer numbers, int64_t n, int bits, int dtype,
                           int threads) {
  return {
      as<const void>(x), as<uint8_t>(codes), as<float>(numbers), n, bits, static_cast<Dtype>(dtype), threads};
}

DequantizeArgs dequantize_args(Pointer codes, Pointer numbers, Pointer g, Pointer y, int64_t n, int bits,
                               int dtype, int threads) {
  return {as<const uint8_t>(codes),
          as<const float>(numbers),
          as<const void>(g),
          as<void>(y),
          n,
          bits,
          static_cast<Dtype>(dtype),
          threads};
}

// Python sees the fields of the struct that `make` fills, in order; on CUDA a stream follows them.
template <class Args, class... Fields, class Call>
void define(py::module_& m, const char* name, Args (*make)(Fields...), Call call) {
  m.def(
      name, [make, call](Fields... fields) { return call(make(fields...)); },
      py::call_guard<py::gil_scoped_release>());
}

#ifdef THAWKIT_HAS_CUDA
template <class Args, class... Fields>
void define_cuda(py::module_& m, const char* name, Args (*make)(Fields...),
                 const char* (*call)(const Args&, void*)) {
  m.def(name, [make, call](Fields... fields, Pointer stream) {
    if (const char* error = call(make(fields...), as<void>(stream)))
      throw std::runtime_error(std::string("CUDA: ") + error);
  });
}

// A panel's fields, in order.
using PanelFields =
    std::tuple<Pointer, int64_t, int64_t, int64_t, Pointer, int, int64_t, int64_t, Pointer, Pointer, float>;

cuda::Panel panel(const PanelFields& fields) {
  const auto& [scores, rows, columns, stride, slopes, dtype, slope_stride, first, scale, row_weight, factor] =
      fields;
  return {as<const float>(scores),
          rows,
          columns,
          stride,
          as<void>(slopes),
          static_cast<Dtype>(dtype),
          slope_stride,
          first,
          as<const float>(scale),
          as<const float>(row_weight),
          factor};
}

cuda::SoftmaxPanelArgs softmax_panel_args(PanelFields fields, Pointer target, int64_t offset, Pointer bias,
                                          int64_t excluded, Pointer row_labels, Pointer key_labels,
                                          int labels, float margin, Pointer loss, Pointer log_sum,
                                          Pointer missing, Pointer positive, Pointer maximum,
                                          Pointer dscale) {
  return {panel(fields),
          as<const int64_t>(target),
          offset,
          as<const float>(bias),
          excluded,
          as<const int32_t>(row_labels),
          as<const int32_t>(key_labels),
          static_cast<Labels>(labels),
          margin,
          as<float>(loss),
          as<float>(log_sum),
          as<float>(missing),
          as<float>(positive),
          as<float>(maximum),
          as<float>(dscale)};
}

cuda::ColumnSumsPanelArgs column_sums_panel_args(PanelFields fields, Pointer maximum, Pointer total) {
  return {panel(fields), as<float>(maximum), as<float>(total)};
}

cuda::ClipPanelArgs clip_panel_args(PanelFields fields, Pointer log_sum, Pointer missing,
                                    Pointer column_log_sum, Pointer column_missing, Pointer column_weight,
                                    Pointer dscale) {
  return {panel(fields),
          as<const float>(log_sum),
          as<const float>(missing),
          as<const float>(column_log_sum),
          as<const float>(column_missing),
          as<const float>(column_weight),
          as<float>(dscale)};
}

cuda::SigmoidPanelArgs sigmoid_panel_args(PanelFields fields, Pointer bias, int64_t offset, bool paired,
                                          Pointer loss, Pointer dscale, Pointer dbias) {
  return {panel(fields),   as<const float>(bias), offset,          paired,
          as<float>(loss), as<float>(dscale),     as<float>(dbias)};
}

// The fields of an MMDTileLayer, of an MMDPairs, of an MMDTile and of a TopKPanel, in order.
using MMDTileLayerFields = std::tuple<int, int, bool>;
using MMDPairsFields = std::tuple<std::vector<MMDTileLayerFields>, int64_t, Pointer, Pointer, Pointer,
                                  int64_t, float, Pointer, Pointer, Pointer, int64_t, bool>;
using MMDTileFields = std::tuple<Pointer, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
using TopKPanelFields = std::tuple<Pointer, int64_t, int64_t, int64_t, int64_t, Pointer, Pointer, Pointer>;

cuda::MMDPairs mmd_pairs(const MMDPairsFields& fields) {
  const auto& [layers, rows, norms, first, second, bandwidths, rounding, weights, same, labels, first_rows,
               diagonal] = fields;
  if (layers.empty() || layers.size() > cuda::MMDPairs::kMostLayers)
    throw std::invalid_argument("too many layers, or none");
  cuda::MMDPairs pairs{{},
                       static_cast<int>(layers.size()),
                       rows,
                       as<const float>(norms),
                       as<const float>(first),
                       as<const float>(second),
                       bandwidths,
                       rounding,
                       as<const float>(weights),
                       as<const float>(same),
                       as<const int32_t>(labels),
                       first_rows,
                       diagonal};
  for (size_t l = 0; l < layers.size(); ++l) {
    const auto& [kind, count, sloped] = layers[l];
    pairs.layers[l] = {static_cast<cuda::MMDKind>(kind), count, sloped};
  }
  return pairs;
}

cuda::MMDTile mmd_tile(const MMDTileFields& fields) {
  const auto& [scores, rows, columns, layer_stride, stride, top, left] = fields;
  return {as<float>(scores), rows, columns, layer_stride, stride, top, left};
}

cuda::MMDTileArgs mmd_tile_args(MMDPairsFields pairs, MMDTileFields tile, Pointer slopes, int dtype,
                                int64_t slope_layer_stride, int64_t slope_stride, double times,
                                Pointer value) {
  return {mmd_pairs(pairs), mmd_tile(tile), as<void>(slopes), static_cast<Dtype>(dtype), slope_layer_stride,
          slope_stride,     times,          as<double>(value)};
}

cuda::MMDRatesArgs mmd_rates_args(MMDPairsFields pairs, MMDTileFields tile, int layer, double times,
                                  Pointer sums, int64_t sums_stride) {
  return {mmd_pairs(pairs), mmd_tile(tile), layer, times, as<double>(sums), sums_stride};
}

cuda::MMDValuesArgs mmd_values_args(MMDPairsFields pairs, MMDTileFields tile) {
  return {mmd_pairs(pairs), mmd_tile(tile)};
}

cuda::MMDDigitsArgs mmd_digits_args(MMDTileFields tile, Pointer norms, Pointer found, Pointer counts,
                                    int shift, float rounding) {
  return {
      mmd_tile(tile), as<const float>(norms), as<const int32_t>(found), as<unsigned long long>(counts), shift,
      rounding};
}

cuda::TopKPanel top_k_panel(const TopKPanelFields& fields) {
  const auto& [products, rows, columns, stride, first, excluded, norms, column_norms] = fields;
  return {as<const float>(products),
          rows,
          columns,
          stride,
          first,
          as<const int64_t>(excluded),
          as<const float>(norms),
          as<const float>(column_norms)};
}

cuda::BestOfGroupsArgs best_of_groups_args(TopKPanelFields panel, int group, Pointer keys,
                                           int64_t keys_stride) {
  return {top_k_panel(panel), group, as<int64_t>(keys), keys_stride};
}

cuda::KeysOfGroupsArgs keys_of_groups_args(TopKPanelFields panel, int group, int64_t groups, Pointer chosen,
                                           int64_t chosen_stride, Pointer keys, int64_t keys_stride) {
  return {top_k_panel(panel), group,      groups, as<const int64_t>(chosen), chosen_stride,
          as<int64_t>(keys),  keys_stride};
}

// The fields of MarginRows, in order.
using MarginRowsFields = std::tuple<Pointer, Pointer, Pointer, Pointer, Pointer, Pointer, bool, bool>;

cuda::MarginRows margin_rows(const MarginRowsFields& fields) {
  const auto& [norms, column_norms, first, last, number, place, itself, cosine] = fields;
  return {as<const float>(norms),
          as<const float>(column_norms),
          as<const int32_t>(first),
          as<const int32_t>(last),
          as<const int32_t>(number),
          as<const int32_t>(place),
          itself,
          cosine};
}

cuda::DistancesPanelArgs distances_panel_args(PanelFields fields, MarginRowsFields rows, Pointer distances,
                                              int64_t distance_stride) {
  return {panel(fields), margin_rows(rows), as<float>(distances), distance_stride};
}

cuda::TripletsPanelArgs triplets_panel_args(PanelFields fields, MarginRowsFields rows, Pointer distances,
                                            int64_t distance_stride, Pointer margin, Pointer loss,
                                            Pointer active, Pointer weights) {
  return {panel(fields),           margin_rows(rows), as<const float>(distances), distance_stride,
          as<const float>(margin), as<float>(loss),   as<int64_t>(active),        as<float>(weights)};
}

cuda::HardestPanelArgs hardest_panel_args(PanelFields fields, MarginRowsFields rows, Pointer margin,
                                          Pointer loss, Pointer active, Pointer columns, Pointer weights) {
  return {panel(fields),       margin_rows(rows),    as<const float>(margin), as<float>(loss),
          as<int64_t>(active), as<int64_t>(columns), as<float>(weights)};
}

cuda::ContrastivePanelArgs contrastive_panel_args(PanelFields fields, MarginRowsFields rows, Pointer margin,
                                                  Pointer negative_margin, Pointer column_weight,
                                                  Pointer loss, Pointer within, Pointer between,
                                                  Pointer weights) {
  return {panel(fields),
          margin_rows(rows),
          as<const float>(margin),
          as<const float>(negative_margin),
          as<const float>(column_weight),
          as<float>(loss),
          as<float>(within),
          as<float>(between),
          as<float>(weights)};
}
#endif

}  // namespace
}  // namespace thawkit

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  using namespace thawkit;
  m.doc() = "thawkit's compiled kernels; call them through thawkit.ops.";

  m.def("cpu_isa", [] { return kernels().isa; });
  m.def("cpu_lanes", [] { return kernels().lanes; });
  m.def("cpu_bfloat16", [] { return kernels().bfloat16; });
  m.def("cpu_isas", [] { return available_isas(); });
  m.def("cpu_is_intel", [] { return cpu_is_intel(); });
  m.attr("focal_block") = kFocalBlock;
  m.def("cpu_problem", [] { return kernels_problem(); });
  m.def("set_blas", [](Pointer sgemm, Pointer set_threads) {
    blas() = {reinterpret_cast<decltype(Blas::sgemm)>(sgemm),
              reinterpret_cast<decltype(Blas::set_threads)>(set_threads)};
  });
  m.def("prefer_huge_pages",
        [](Pointer memory, int64_t bytes) { prefer_huge_pages(as<void>(memory), bytes); });
  m.def(
      "fma_peak",
      [](int threads, double seconds, int operand) {
        return kernels().fma_peak(threads, seconds, static_cast<Operands>(operand));
      },
      py::call_guard<py::gil_scoped_release>());

  define(m, "row_softmax", row_softmax_args, [](const RowSoftmaxArgs& a) { kernels().row_softmax(a); });
  define(m, "row_softmax_workspace", row_softmax_args,
         [](const RowSoftmaxArgs& a) { return kernels().row_softmax_workspace(a); });
  define(m, "pairs", pair_args, [](const PairArgs& a) { kernels().pairs(a); });
  define(m, "pairs_workspace", pair_args, [](const PairArgs& a) { return kernels().pairs_workspace(a); });
  define(m, "mmd", mmd_args, [](const MMDArgs& a) { kernels().mmd(a); });
  define(m, "mmd_workspace", mmd_args, [](const MMDArgs& a) { return kernels().mmd_workspace(a); });
  define(m, "median", median_args, [](const MedianArgs& a) { kernels().median(a); });
  define(m, "median_workspace", median_args,
         [](const MedianArgs& a) { return kernels().median_workspace(a); });
  define(m, "permutation_sums", permutation_args,
         [](const PermutationArgs& a) { kernels().permutation_sums(a); });
  define(m, "permutation_workspace", permutation_args,
         [](const PermutationArgs& a) { return kernels().permutation_workspace(a); });
  define(m, "subsets", subset_args, [](const SubsetArgs& a) { kernels().subsets(a); });
  define(m, "top_k", top_k_args, [](const TopKArgs& a) { kernels().top_k(a); });
  define(m, "top_k_workspace", top_k_args, [](const TopKArgs& a) { return kernels().top_k_workspace(a); });
  define(m, "margin", margin_args, [](const MarginArgs& a) { kernels().margin(a); });
  define(m, "margin_workspace", margin_args,
         [](const MarginArgs& a) { return kernels().margin_workspace(a); });
  define(m, "sigmoid_focal", focal_args, [](const FocalArgs& a) { kernels().sigmoid_focal(a); });
  define(m, "softmax_focal", softmax_focal_args,
         [](const SoftmaxFocalArgs& a) { kernels().softmax_focal(a); });
  define(m, "softmax_focal_workspace", softmax_focal_args,
         [](const SoftmaxFocalArgs& a) { return kernels().softmax_focal_workspace(a); });
  define(m, "pack", pack_args, [](const PackArgs& a) { kernels().pack(a); });
  define(m, "masked", masked_args, [](const MaskedArgs& a) { kernels().masked(a); });
  define(m, "channel_sum", channel_sum_args, [](const ChannelSumArgs& a) { kernels().channel_sum(a); });
  define(m, "channel_sum_workspace", channel_sum_args,
         [](const ChannelSumArgs& a) { return kernels().channel_sum_workspace(a); });
  define(m, "channel_affine", channel_affine_args,
         [](const ChannelAffineArgs& a) { kernels().channel_affine(a); });
  define(m, "channel_affine_workspace", channel_affine_args,
         [](const ChannelAffineArgs& a) { return kernels().channel_affine_workspace(a); });
  define(m, "channel_affine_backward", channel_affine_args,
         [](const ChannelAffineArgs& a) { kernels().channel_affine_backward(a); });
  define(m, "max_pool", max_pool_args, [](const MaxPoolArgs& a) { kernels().max_pool(a); });
  define(m, "max_pool_workspace", max_pool_args,
         [](const MaxPoolArgs& a) { return kernels().max_pool_workspace(a); });
  define(m, "max_pool_backward", max_pool_args, [](const MaxPoolArgs& a) { kernels().max_pool_backward(a); });
  define(m, "quantize", quantize_args, [](const QuantizeArgs& a) { kernels().quantize(a); });
  define(m, "dequantize", dequantize_args, [](const DequantizeArgs& a) { kernels().dequantize(a); });

#ifdef THAWKIT_HAS_CUDA
  m.attr("has_cuda") = true;
  m.attr("cuda_sources") = cuda::sources();
  m.attr("cuda_compiler") = cuda::compiler();
  m.def("cuda_runtime_version", &cuda::runtime_version);
  m.def("cuda_device_count", &cuda::device_count);
  define_cuda(m, "softmax_panel_cuda", softmax_panel_args, cuda::softmax_panel);
  define_cuda(m, "column_sums_panel_cuda", column_sums_panel_args, cuda::column_sums_panel);
  define_cuda(m, "clip_panel_cuda", clip_panel_args, cuda::clip_panel);
  define_cuda(m, "sigmoid_panel_cuda", sigmoid_panel_args, cuda::sigmoid_panel);
  define_cuda(m, "mmd_tile_cuda", mmd_tile_args, cuda::mmd_tile);
  define_cuda(m, "mmd_rates_cuda", mmd_rates_args, cuda::mmd_rates);
  define_cuda(m, "mmd_values_cuda", mmd_values_args, cuda::mmd_values);
  define_cuda(m, "mmd_digits_cuda", mmd_digits_args, cuda::mmd_digits);
  define_cuda(m, "best_of_groups_cuda", best_of_groups_args, cuda::best_of_groups);
  define_cuda(m, "keys_of_groups_cuda", keys_of_groups_args, cuda::keys_of_groups);
  define_cuda(m, "distances_panel_cuda", distances_panel_args, cuda::distances_panel);
  define_cuda(m, "all_triplets_panel_cuda", triplets_panel_args, cuda::all_triplets_panel);
  define_cuda(m, "semihard_triplets_panel_cuda", triplets_panel_args, cuda::semihard_triplets_panel);
  define_cuda(m, "hardest_triplet_panel_cuda", hardest_panel_args, cuda::hardest_triplet_panel);
  define_cuda(m, "contrastive_panel_cuda", contrastive_panel_args, cuda::contrastive_panel);
  define_cuda(m, "sigmoid_focal_cuda", focal_args, cuda::sigmoid_focal);
  define_cuda(m, "softmax_focal_cuda", softmax_focal_args, cuda::softmax_focal);
  define_cuda(m, "pack_cuda", pack_args, cuda::pack);
  define_cuda(m, "masked_cuda", masked_args, cuda::masked);
  define_cuda(m, "channel_sum_cuda", channel_sum_args, cuda::channel_sum);
  define_cuda(m, "channel_affine_cuda", channel_affine_args, cuda::channel_affine);
  define_cuda(m, "channel_affine_backward_cuda", channel_affine_args, cuda::channel_affine_backward);
  define_cuda(m, "max_pool_cuda", max_pool_args, cuda::max_pool);
  define_cuda(m, "max_pool_backward_cuda", max_pool_args, cuda::max_pool_backward);
  define_cuda(m, "quantize_cuda", quantize_args, cuda::quantize);
  define_cuda(m, "dequantize_cuda", dequantize_args, cuda::dequantize);
#else
  m.attr("has_cuda") = false;
#endif
}
