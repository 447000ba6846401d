// MMD: driver over the upper triangle of pairs of rows of both samples, whose kernels of several layers
// multiply.
#pragma once

#include "cpu/mmd_kernels.h"
#include "cpu/pooled.h"

namespace thawkit {
namespace THAWKIT_ISA {

// What a thread needs to know of one layer. Operand is what the products multiply, float32 numbers.
template <class Operand>
struct MMDLayerRun {
  const MMDLayer* a;
  bool gradient;  // of the rows
  bool learned;   // gradient of the rates
  int64_t depth, column_sum;
  Pooled rows;
  float *dz, *transposed, *packed, *row_sums, *column_sums;  // of all teams
  double* rate_totals;                                       // of each thread
  float *first, *second, *own_column_sum, *panel_rows, *panel_columns;
  float* rate_sums;  // of each thread
  Panel panel;
  Scratch scratch;
  KernelNumbers numbers;
  Weigh weigh_inside, weigh_right;
  KernelValues values;

  bool of_distances() const { return a->kernel != MMDKernel::kProduct; }
  // Where the scores of a block stand: those of all are kept for the gradient.
  Panel at(int64_t block) const {
    Panel p = panel;
    if (!gradient) p.first = block;
    return p;
  }
};

// Everything that a thread needs to know, so that the phases below can be functions.
template <class Operand>
struct MMDRun {
  typedef MMDLayerRun<Operand> Layer;

  const MMDArgs& a;
  const int64_t count, blocks, width, padded;
  const Teams teams;
  Layer layers[MMDArgs::kMostLayers];
  int64_t workspace_floats;
  float *own_weight, *against_x, *against_y, *factors;  // the last of each thread
  double* totals;                                       // of each thread

  static bool any_gradient(const MMDArgs& a) {
    for (int64_t l = 0; l < a.layer_count; ++l)
      if (a.layers[l].dx) return true;
    return false;
  }

  // Floats of the sums of the transposed products, and the multiply-adds of all that has to be done.
  static int64_t sum_of(const MMDArgs& a) {
    int64_t depth = 0;
    for (int64_t l = 0; l < a.layer_count; ++l) depth += a.layers[l].dx ? a.layers[l].depth : 0;
    return round_up(a.n + a.m, kTileCols) * depth;
  }
  static int threads_of(const MMDArgs& a) {
    const double count = double(a.n + a.m);
    double work = 0;
    for (int64_t l = 0; l < a.layer_count; ++l)
      work += count * count * a.layers[l].depth * (a.layers[l].dx ? 1.5 : 0.5);
    constexpr double kWaits = 4;  // several phases wait for each other
    return useful_threads(work / kWaits, a.threads);
  }
  // As many columns as the scores that are kept for one row.
  static int64_t kept_columns(const MMDArgs& a) {
    int64_t kept = 0;
    for (int64_t l = 0; l < a.layer_count; ++l) kept += a.layers[l].dx ? a.n + a.m : 0;
    return kept ? kept : a.n + a.m;
  }

  MMDRun(const MMDArgs& args, int team)
      : a(args),
        count(a.n + a.m),
        blocks(ceil_div(count, kBlockCols)),
        width(round_up(count, kTileCols)),
        padded(round_up(width + kLanes, Workspace::kLine)),
        teams(count, kept_columns(a), kTileCols, sum_of(a), threads_of(a)) {
    Workspace workspace(a.workspace);
    own_weight = workspace.take(padded);
    against_x = workspace.take(padded);
    against_y = workspace.take(padded);
    totals = reinterpret_cast<double*>(workspace.take(2 * teams.threads));
    factors = own(workspace, (2 + a.layer_count) * kBlockStride);
    for (int64_t l = 0; l < a.layer_count; ++l) lay_out(layers[l], a.layers[l], workspace, team);
    workspace_floats = workspace.total();
  }

  // A piece for each thread; that of the one that asks.
  float* own(Workspace& workspace, int64_t floats) const {
    const int64_t each = round_up(floats, Workspace::kLine);
    float* const all = workspace.take(each * teams.threads);
    return all ? all + each * omp_get_thread_num() : nullptr;
  }

  void lay_out(Layer& layer, const MMDLayer& of, Workspace& workspace, int team) const {
    layer.a = &of;
    layer.depth = of.depth;
    layer.gradient = of.dx;
    layer.learned = of.drates;
    // one panel alone has nothing right of it
    layer.column_sum =
        layer.gradient && count > teams.panel ? round_up(width * of.depth, Workspace::kLine) : 0;
    layer.rows = Pooled(of.x, of.y, a.n, a.m, of.depth, of.kernel != MMDKernel::kProduct, workspace);
    layer.dz = workspace.take(layer.gradient ? count * of.depth : 0);
    layer.transposed = workspace.take(width * of.depth);
    layer.packed = Operand::kPlain
                       ? layer.transposed
                       : workspace.take(layer.gradient ? round_up(of.depth, kTileCols) * count : 0);
    layer.row_sums = workspace.take(padded * teams.threads);
    layer.column_sums = workspace.take(layer.column_sum * teams.count);
    layer.own_column_sum = layer.column_sums + layer.column_sum * team;
    layer.panel = {
        workspace.take(panel_floats(teams.panel, layer.gradient ? count : kBlockCols), teams, team),
        teams.panel};
    layer.panel_rows = workspace.take(teams.panel * of.depth, teams, team);
    layer.panel_columns = workspace.take(layer.column_sum ? teams.panel * of.depth : 0, teams, team);
    layer.scratch = workspace.scratch(of.depth, teams.threads);
    layer.first = workspace.take(of.bandwidths);
    layer.second = workspace.take(of.bandwidths);
    layer.rate_sums = own(workspace, layer.learned ? of.bandwidths * kLanes : 0);
    layer.rate_totals =
        reinterpret_cast<double*>(workspace.take(layer.learned ? 2 * of.bandwidths * teams.threads : 0));
    layer.numbers = {layer.first, layer.second, of.bandwidths, of.degree, of.scale, of.offset};
    layer.weigh_inside = weigh_of<false>(of.kernel, of.doubling, layer.learned);
    layer.weigh_right = weigh_of<true>(of.kernel, of.doubling, layer.learned);
    layer.values = kernel_values_of(of.kernel, of.doubling);
  }

  void prepare() const {
    for (int64_t l = 0; l < a.layer_count; ++l) {
      const Layer& layer = layers[l];
      layer.rows.prepare();
      zero(layer.row_sums, padded * teams.threads);
      for (int64_t i = 0; layer.learned && i < layer.a->bandwidths * teams.threads; ++i)
        layer.rate_totals[i] = 0;
    }
    for (int t = 0; t < teams.threads; ++t) totals[t] = 0;
    for (int64_t j = 0; j < count; ++j) {
      const bool of_x = j < a.n;
      const float weight = a.weights ? a.weights[j] : of_x ? a.weight_x : a.weight_y;
      const float same = a.same ? a.same[j] : of_x ? a.same_x : a.same_y;
      own_weight[j] = weight;
      against_x[j] = of_x ? weight * same : weight;
      against_y[j] = of_x ? weight : weight * same;
    }
  }

  void pack(const Layer& layer, int thread, int threads) const {
    const Share tiles = share_of(width / kTileCols, thread, threads, 1);
    const Share rows{tiles.first * kTileCols, smaller(tiles.last * kTileCols, count)};
    const int64_t depth = layer.depth;
    layer.rows.place(rows.first, rows.last);
    pack_columns<Operand>(layer.rows.z, count, depth, nullptr, layer.transposed, nullptr,
                          layer.gradient ? layer.packed : nullptr, tiles.first, tiles.last, layer.scratch);
    if (layer.gradient) zero(layer.dz + rows.first * depth, (rows.last - rows.first) * depth);
  }

  // The square of the mean of z, times their number.
  double squared_mean(const Layer& layer) const {
    double* const sums = layer.rows.sums;
    for (int64_t d = 0; d < layer.depth; ++d) sums[d] = 0;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < layer.depth; ++d) sums[d] += layer.rows.z[i * layer.depth + d];
    double square = 0;
    for (int64_t d = 0; d < layer.depth; ++d) square += sums[d] * sums[d];
    return square / double(count);
  }

  // The mean of |z_i - z_j|^2 over i != j is 2 / (count - 1) sum_i |z_i - mean z|^2.
  void set_bandwidths(const Layer& layer) const {
    const MMDLayer& of = *layer.a;
    double unit = 1. / *layer.rows.unit / *layer.rows.unit;
    if (of.relative) {
      constexpr double kLeast = 2.6e-29;  // coinciding points: keep the rates finite
      double spread = -squared_mean(layer);
      for (int64_t i = 0; i < count; ++i) spread += layer.rows.norms[i];
      const double mean = 2 * spread / double(count > 1 ? count - 1 : 1);
      unit = 1 / (mean < kLeast ? kLeast : mean);
    }
    for (int64_t b = 0; b < of.bandwidths; ++b) {
      const float rate = finite_rate(of.rates[b] * unit);
      const float root = __builtin_sqrtf(rate);
      const bool rbf = of.kernel == MMDKernel::kRbf, laplace = of.kernel == MMDKernel::kLaplace;
      layer.first[b] = rbf ? -0.5f * rate * kLog2E : laplace ? -root * kLog2E : rate;
      layer.second[b] = rbf ? 0.5f * rate : laplace ? 0.5f * root : rate;
    }
  }

  // Finite and not 0 even where float32 has no such rate: an infinite distance times it stays infinite.
  static float finite_rate(double rate) {
    constexpr double kLargest = 2e37, kSmallest = 4 * double(__FLT_MIN__);
    return static_cast<float>(rate < kSmallest ? kSmallest : rate > kLargest ? kLargest : rate);
  }

  // What the pairs of row g with columns [from, to) of a block count, but for the row's own weight; columns
  // are at from - start of `out`.
  const float* pair_factors(int64_t g, int64_t from, int64_t to, float* out) const {
    const float* const c = (g < a.n ? against_x : against_y) + from;
    if (!a.labels) return c;
    const Ints own = splat(a.labels[g]);
    for (int64_t j = 0; j < to - from; j += kLanes) {
      const int64_t present = smaller(kLanes, to - from - j);
      Ints labels = {};
      memcpy(&labels, a.labels + from + j, static_cast<size_t>(present) * sizeof(int32_t));
      store_up_to(out + j, select(labels == own, load_up_to(c + j, present), splat(0.f)), present);
    }
    return out;
  }

  // Columns [from, to) of a block for row i of the panel, row g of all: kernel values of all layers, then
  // weights in place of scores. Where Columns, the pairs stand for both of their orders.
  template <bool Columns>
  double segment(int64_t block, int64_t i, int64_t g, int64_t from, int64_t to, int thread) const {
    if (from >= to) return 0;
    const int64_t offset = from - block * kBlockCols, length = to - from;
    const auto segment_of = [&](const Layer& layer) {
      return Segment{layer.at(block).at(block, i) + offset, length, layer.rows.norms[g],
                     layer.rows.norms + from};
    };
    const float* const pairs = pair_factors(g, from, to, factors);
    float *const product = factors + kBlockStride, *const values = product + kBlockStride;
    for (int64_t l = 0; a.layer_count > 1 && l < a.layer_count; ++l)
      layers[l].values(layers[l].numbers, segment_of(layers[l]), values + l * kBlockStride);
    double value = 0;
    for (int64_t l = 0; l < a.layer_count; ++l) {
      const Layer& layer = layers[l];
      if (l > 0 && !layer.gradient && !layer.learned) continue;  // the first one also finds the value
      const float* factor = pairs;
      for (int64_t other = 0; other < a.layer_count; ++other) {
        if (other == l) continue;
        const float* const others = values + other * kBlockStride;
        for (int64_t j = 0; j < length; ++j) product[j] = factor[j] * others[j];
        factor = product;
      }
      const Weigh weigh = Columns ? layer.weigh_right : layer.weigh_inside;
      for (int64_t b = 0; layer.learned && b < layer.numbers.bandwidths; ++b)
        store(layer.rate_sums + b * kLanes, Floats{});
      float* const row_sums = layer.row_sums + thread * padded;
      const PairSums found =
          weigh(layer.numbers, segment_of(layer), factor, own_weight[g], row_sums + from, layer.rate_sums);
      row_sums[g] += found.weight;
      constexpr double kOrders = Columns ? 2 : 1;
      for (int64_t b = 0; layer.learned && b < layer.numbers.bandwidths; ++b)
        layer.rate_totals[thread * layer.numbers.bandwidths + b] +=
            kOrders * double(sum(load(layer.rate_sums + b * kLanes)));
      if (l == 0) value = kOrders * double(found.value);
    }
    return value;
  }

  // The thread's rows against every column from the panel's first on: scores, weights and their product,
  // block by block while each is in cache. Inside the panel both orders of a pair are computed; right of it
  // one order stands for both.
  double rows(int64_t top, int64_t height, Share own, int thread) const {
    const int64_t after = top + height, own_rows = own.last - own.first;
    double total = 0;
    if (own_rows <= 0) return 0;
    for (int64_t l = 0; l < a.layer_count; ++l) pack_panel(layers[l], top, after, own);
    for (int64_t block = top / kBlockCols; block < blocks; ++block) {
      const int64_t start = block * kBlockCols, end = smaller(start + kBlockCols, count);
      const int64_t first = start < top ? top : start;
      for (int64_t l = 0; l < a.layer_count; ++l) {
        const Layer& layer = layers[l];
        score_block<Operand>(layer.at(block), block, own.first, own_rows,
                             layer.panel_rows + own.first * layer.depth, layer.depth, layer.transposed, first,
                             smaller(start + kBlockCols, width));
      }
      const int64_t seam =
          after < first ? first : smaller(after, end);  // [first, seam) inside, [seam, end) right
      for (int64_t i = own.first; i < own.last; ++i) {
        const int64_t g = top + i;
        if (first <= g && g < seam) {  // i = j is counted apart
          total += segment<false>(block, i, g, first, g, thread);
          total += segment<false>(block, i, g, g + 1, seam, thread);
          for (int64_t l = 0; l < a.layer_count; ++l) layers[l].at(block).at(block, i)[g - start] = 0.f;
        } else {
          total += segment<false>(block, i, g, first, seam, thread);
        }
        total += segment<true>(block, i, g, seam, end, thread);
      }
      for (int64_t l = 0; l < a.layer_count; ++l) {
        const Layer& layer = layers[l];
        if (layer.gradient)
          times_rows<Operand>(layer.panel, block, own.first, own_rows, first, end, layer.packed, count,
                              layer.depth, layer.dz + (top + own.first) * layer.depth);
      }
    }
    return total;
  }

  void pack_panel(const Layer& layer, int64_t top, int64_t after, Share own) const {
    const int64_t depth = layer.depth;
    pack_rows<Operand>(layer.rows.z + (top + own.first) * depth, own.last - own.first, depth, nullptr,
                       layer.panel_rows + own.first * depth, layer.scratch);
    if (!layer.column_sum || after >= count) return;
    const TransposedRows<Operand> columns(depth, layer.panel.rows, layer.panel_columns, layer.scratch);
    for (int64_t i = own.first; i < own.last; ++i)
      columns.add(i, layer.rows.z + (top + i) * depth, depth, 1.f, 0.f, i + 1 == own.last);
  }

  // Rows right of the panel take its part of their gradient.
  void columns(const Layer& layer, int64_t top, int64_t height, const Member& member) const {
    const int64_t first = (top + height) / kTileCols;
    const Share tiles = share_of(width / kTileCols - first, member.thread, member.threads, 1);
    transposed_times_rows<Operand>(layer.panel, height, first + tiles.first, first + tiles.last,
                                   layer.panel_columns, layer.panel.rows, layer.depth, layer.own_column_sum);
  }

  // What row i with itself adds to the value or, of layer `sloped`, to the weight of its own score.
  double with_itself(int64_t i, int64_t sloped = -1) const {
    if (!a.diagonal) return 0;
    double product = double(own_weight[i]) * own_weight[i];
    for (int64_t l = 0; l < a.layer_count; ++l) {
      float slope;
      const float k =
          kernel_of_itself(layers[l].a->kernel, layers[l].numbers, layers[l].rows.norms[i], slope);
      product *= l == sloped ? slope : k;
    }
    return product;
  }

  // d value / d z_i = -4 (sum_j W_ij z_i - sum_j W_ij z_j), or of inner products 2 sum_j W_ij z_j
  void finish(int64_t l, int sums, int thread, int threads) const {
    const Layer& layer = layers[l];
    const int64_t depth = layer.depth;
    const Share rows = share_of(count, thread, threads, 1);
    const float unit = static_cast<float>(*layer.rows.unit / value_unit());
    for (int64_t i = rows.first; i < rows.last; ++i) {
      float weight = 0;
      if (layer.of_distances())
        for (int t = 0; t < teams.threads; ++t) weight += layer.row_sums[t * padded + i];
      else
        weight = -static_cast<float>(with_itself(i, l));
      const float factor = (layer.of_distances() ? -4.f : -2.f) * unit;
      float* const g = layer.dz + i * depth;
      float* const out = i < a.n ? layer.a->dx + i * depth : layer.a->dy + (i - a.n) * depth;
      for (int t = 0; layer.column_sum && t < sums; ++t) {
        const float* const right = sum_of_key<Operand>(layer.column_sums + t * layer.column_sum, i, depth);
        for (int64_t d = 0; d < depth; ++d) g[d] += right[d * kSumStep<Operand>];
      }
      for (int64_t d = 0; d < depth; ++d) out[d] = factor * (weight * layer.rows.z[i * depth + d] - g[d]);
    }
  }

  // The kernel -d is not of the rows that were given but of those times the unit.
  double value_unit() const {
    double unit = 1;
    for (int64_t l = 0; l < a.layer_count; ++l)
      if (layers[l].a->kernel == MMDKernel::kEnergy) unit *= *layers[l].rows.unit;
    return unit;
  }

  void write_derivatives(const Layer& layer) const {
    const MMDLayer& of = *layer.a;
    const double unit = *layer.rows.unit;
    for (int64_t b = 0; layer.learned && b < of.bandwidths; ++b) {
      double total = 0;
      for (int t = 0; t < teams.threads; ++t) total += layer.rate_totals[t * of.bandwidths + b];
      of.drates[b] = derivative_factor(of.kernel, of.rates[b], unit) * total / value_unit();
    }
  }
};

template <class Operand>
static void mmd_panels(const MMDArgs& a) {
  typedef MMDRun<Operand> Run;
  const Run all(a, 0);
  prefer_huge_pages(a.workspace, all.workspace_floats * 4);
  all.prepare();
#pragma omp parallel num_threads(all.teams.threads)
  {
    const Member member(all.teams);
    const Run run(a, member.team);
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    for (int64_t l = 0; l < a.layer_count; ++l) {
      run.pack(run.layers[l], thread, threads);
      if (run.layers[l].column_sum) clear_sum(run.layers[l].own_column_sum, run.layers[l].column_sum, member);
    }
#pragma omp barrier
#pragma omp single
    for (int64_t l = 0; l < a.layer_count; ++l) run.set_bandwidths(run.layers[l]);
    for (int64_t round = 0, top; (top = member.top(round)) < run.count; ++round) {
      const int64_t height = smaller(run.teams.panel, run.count - top);
      run.totals[thread] +=
          run.rows(top, height, share_of(height, member.thread, member.threads, kTileRows), thread);
      member.wait();
      if (top + height >= run.count) continue;
      for (int64_t l = 0; l < a.layer_count; ++l)
        if (run.layers[l].column_sum) run.columns(run.layers[l], top, height, member);
      member.wait();
    }
    if (Run::any_gradient(a)) {
#pragma omp barrier
      for (int64_t l = 0; l < a.layer_count; ++l)
        if (run.layers[l].gradient) run.finish(l, member.teams, thread, threads);
    }
  }
  double value = 0;
  for (int64_t i = 0; i < all.count; ++i) value += all.with_itself(i);
  for (int t = 0; t < all.teams.threads; ++t) value += all.totals[t];
  *a.value = static_cast<float>(value / all.value_unit());
  for (int64_t l = 0; l < a.layer_count; ++l) all.write_derivatives(all.layers[l]);
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
