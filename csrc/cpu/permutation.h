// Permutation test of two samples: all permutations from one pass over the upper triangle of the kernel
// matrix, whose values are made, used and forgotten block by block.
#pragma once

#include "cpu/centre.h"

namespace thawkit {
namespace THAWKIT_ISA {

// Inner products of one row with `count` columns in, factor * sum_b exp(-gamma_b d2) out; exponents are
// -gamma_b log2(e). Returns the sum of the kernel values without the factor, and where Columns adds them to
// `column_sums`. Lanes past `count` are neither counted nor written.
template <bool Doubling, bool Columns>
static inline float kernel_segment(float* x, int64_t count, float own_norm, const float* norms,
                                   const float* exponents, int64_t bandwidths, float factor,
                                   float* column_sums) {
  Floats total = {};
  for (int64_t j = 0; j < count; j += kLanes) {
    const int64_t present = count - j;
    const Floats s = load_up_to(x + j, present), n = load_up_to(norms + j, present);
    const Floats d2 = max(splat(0.f), own_norm + n - 2.f * s);
    Floats k = exp2_negative(d2 * exponents[0]);
    if constexpr (Doubling) {
      Floats e = k;
      for (int64_t b = 1; b < bandwidths; ++b) {
        e = e * e;
        k += e;
      }
    } else {
      for (int64_t b = 1; b < bandwidths; ++b) k += exp2_negative(d2 * exponents[b]);
    }
    if (present < kLanes) k = select(lane_numbers() < splat(static_cast<int32_t>(present)), k, splat(0.f));
    total += k;
    store_up_to(x + j, k * factor, present);
    if constexpr (Columns) store_up_to(column_sums + j, load_up_to(column_sums + j, present) + k, present);
  }
  return sum(total);
}

// Everything that a thread needs to know, so that the phases below can be functions.
struct PermutationRun {
  const PermutationArgs& a;
  const int64_t width, padded;           // rows as columns: whole tiles, and room for a vector behind them
  const int64_t choices, choice_stride;  // permutations: whole tiles, and apart in memory
  const int threads;
  const int64_t height;  // rows of a panel
  int64_t workspace_floats;
  float *z, *transposed, *norms, *centre, *exponents;  // of all threads
  double *centre_sum, *row_sums, *within;              // the last two of each thread
  uint8_t* packed_choices;                             // of all threads
  float *scores, *packed_rows, *tile, *products, *column_sums;
  Scratch scratch;

  PermutationRun(const PermutationArgs& args, int thread)
      : a(args),
        width(round_up(a.rows, kTileCols)),
        padded(round_up(width + kLanes, Workspace::kLine)),
        choices(round_up(a.permutations, kTileCols)),
        choice_stride(round_up(choices, 2 * kLineFloats) + kLineFloats),  // an odd number of lines
        threads(useful_threads(0.5 * double(a.rows) * a.rows * (a.depth + a.permutations), a.threads)),
        height(height_for(a.rows, threads)) {
    Workspace workspace(a.workspace);
    const auto doubles = [&](int64_t count) { return reinterpret_cast<double*>(workspace.take(2 * count)); };
    z = workspace.take(a.rows * a.depth);
    transposed = workspace.take(width * a.depth);
    norms = workspace.take(padded);
    centre = workspace.take(a.depth);
    exponents = workspace.take(a.bandwidths);
    centre_sum = doubles(a.depth);
    row_sums = doubles(2 * padded * threads);
    within = doubles(choices * threads);
    packed_choices = reinterpret_cast<uint8_t*>(workspace.take(ceil_div(a.rows * choices, 4)));
    const auto own = [&](int64_t floats) {
      const int64_t each = round_up(floats, Workspace::kLine);
      float* all = workspace.take(each * threads);
      return all ? all + each * thread : nullptr;
    };
    scores = own(height * kBlockStride);
    packed_rows = own(height * a.depth);
    tile = own(kDeep * kTileCols);
    products = own(height * choice_stride);
    column_sums = own(2 * padded);
    scratch = workspace.scratch(a.depth, threads);
    workspace_floats = workspace.total();
    row_sums += 2 * padded * thread;
    within += choices * thread;
  }

  // As many choices of one tile stay in the first-level cache while all rows are multiplied by them.
  static constexpr int64_t kDeep = kBlockCols / 2;

  // Many rows share a tile of choices. Panels become cheaper down the triangle, so there are several a
  // thread.
  static int64_t height_for(int64_t rows, int threads) {
    constexpr int64_t kMost = 192, kLeast = 48, kRounds = 4;
    const int64_t even = round_up(ceil_div(rows > 0 ? rows : 1, kRounds * threads), kTileRows);
    return even < kLeast ? kLeast : smaller(even, kMost);
  }

  void pack(int thread, int team) const {
    const Share tiles = share_of(width / kTileCols, thread, team, 1);
    const Share rows{tiles.first * kTileCols, smaller(tiles.last * kTileCols, a.rows)};
    for (int64_t i = rows.first; i < rows.last; ++i) {
      float* const own = z + i * a.depth;
      for (int64_t d = 0; d < a.depth; ++d) own[d] = a.z[i * a.depth + d] - centre[d];
      norms[i] = dot(own, own, a.depth);
    }
    pack_columns<Float32>(z, a.rows, a.depth, nullptr, transposed, nullptr, nullptr, tiles.first, tiles.last,
                          scratch);
  }

  // Rows of one panel from a block of columns on: kernel values in place of inner products, twice those that
  // stand for both orders of a pair.
  template <bool Doubling>
  void kernel_values(int64_t top, int64_t count, int64_t start, int64_t first, int64_t last) const {
    const int64_t seam = smaller(last, top + count) > first ? smaller(last, top + count) : first;
    for (int64_t i = 0; i < count; ++i) {
      float* const x = scores + i * kBlockStride;
      const int64_t row = top + i;
      if (first <= row && row < seam) x[row - start] = -__builtin_inff();  // i = j: infinitely far, weight 0
      float* const to_columns = column_sums + (row < a.first ? 0 : padded);
      // cut where the panel ends and where the second sample begins
      for (int64_t from = first, to; from < last; from = to) {
        const bool inside = from < seam, of_first = from < a.first;
        to = inside ? seam : last;
        if (of_first) to = smaller(to, a.first);
        const float total =
            inside ? kernel_segment<Doubling, false>(x + (from - start), to - from, norms[row], norms + from,
                                                     exponents, a.bandwidths, 1.f, nullptr)
                   : kernel_segment<Doubling, true>(x + (from - start), to - from, norms[row], norms + from,
                                                    exponents, a.bandwidths, 2.f, to_columns + from);
        row_sums[(of_first ? 0 : padded) + row] += double(total);
      }
    }
  }

  // The choices of a tile of permutations next to each other, row by row.
  void pack_choices(int thread, int team) const {
    const Share rows = share_of(a.rows, thread, team, 1);
    for (int64_t i = rows.first; i < rows.last; ++i)
      for (int64_t p = 0; p < choices; p += kTileCols) {
        uint8_t* const to = packed_choices + p * a.rows + i * kTileCols;
        const int64_t present = smaller(kTileCols, a.permutations - p);
        memcpy(to, a.chosen + i * a.permutations + p, static_cast<size_t>(present));
        memset(to + present, 0, static_cast<size_t>(kTileCols - present));
      }
  }

  // Those of columns [first, last) as numbers.
  void expand(int64_t first, int64_t last, int64_t permutation) const {
    const uint8_t* const from = packed_choices + permutation * a.rows + first * kTileCols;
    for (int64_t j = 0; j < (last - first) * kTileCols; ++j) tile[j] = from[j];
  }

  template <bool Doubling>
  void panel(int64_t top, int64_t count) const {
    pack_rows<Float32>(z + top * a.depth, count, a.depth, nullptr, packed_rows, scratch);
    zero(products, count * choice_stride);
    const Panel block{scores, height};
    for (int64_t start = top / kTileCols * kTileCols; start < a.rows; start += kBlockCols) {
      const int64_t last = smaller(start + kBlockCols, a.rows), first = start < top ? top : start;
      score_block<Float32>(block, 0, 0, count, packed_rows, a.depth, transposed + start * a.depth, 0,
                           smaller(kBlockCols, width - start));
      kernel_values<Doubling>(top, count, start, first, last);
      for (int64_t p = 0; p < choices; p += kTileCols) {
        for (int64_t from = first, to; from < last; from = to) {
          to = smaller(from + kDeep, last);
          expand(from, to, p);
          multiply_full<true, OneFloat>(count, to - from, Float32::Weights{scores + (from - start)},
                                        {tile, kTileCols, nullptr}, products + p, choice_stride);
        }
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t* const chosen = a.chosen + (top + i) * a.permutations;
      const float* const product = products + i * choice_stride;
      for (int64_t p = 0; p < a.permutations; ++p) within[p] += chosen[p] * double(product[p]);
    }
    // Short sums stay in float32.
    for (int64_t j = 0; j < 2 * padded; ++j) row_sums[j] += double(column_sums[j]);
    zero(column_sums, 2 * padded);
  }

  // Sums of all threads, in their order; called for the first of them.
  void finish_rows(int team, int thread) const {
    const Share rows = share_of(a.rows, thread, team, 1);
    for (int64_t i = rows.first; i < rows.last; ++i)
      for (int64_t side = 0; side < 2; ++side) {
        double total = 0;
        for (int t = 0; t < team; ++t) total += row_sums[(2 * t + side) * padded + i];
        a.sums[2 * i + side] = total;
      }
  }
  void finish_permutations(int team, int thread) const {
    const Share own = share_of(a.permutations, thread, team, kLineFloats);
    for (int64_t p = own.first; p < own.last; ++p) {
      a.within[p] = a.from_chosen[p] = 0;
      for (int t = 0; t < team; ++t) a.within[p] += within[t * choices + p];
    }
    for (int64_t i = 0; i < a.rows; ++i) {
      const uint8_t* const chosen = a.chosen + i * a.permutations;
      const double total = a.sums[2 * i] + a.sums[2 * i + 1];
      for (int64_t p = own.first; p < own.last; ++p) a.from_chosen[p] += chosen[p] * total;
    }
  }
};

template <bool Doubling>
static void permutation_panels(const PermutationArgs& a) {
  const PermutationRun all(a, 0);
  prefer_huge_pages(a.workspace, all.workspace_floats * 4);
  find_mean_of_near([&](int64_t i) { return a.z + i * a.depth; }, a.rows, a.depth, all.centre,
                    all.centre_sum);
  for (int64_t b = 0; b < a.bandwidths; ++b) all.exponents[b] = -a.gamma[b] * kLog2E;
#pragma omp parallel num_threads(all.threads)
  {
    const int thread = omp_get_thread_num(), team = omp_get_num_threads();
    const PermutationRun run(a, thread);
    run.pack(thread, team);
    run.pack_choices(thread, team);
    for (int64_t j = 0; j < 2 * run.padded; ++j) run.row_sums[j] = 0;
    for (int64_t p = 0; p < run.choices; ++p) run.within[p] = 0;
    zero(run.column_sums, 2 * run.padded);
#pragma omp barrier
    // There and back, so that cheap panels are shared out evenly; the order is fixed, and so are the sums.
    for (int64_t round = 0, top;
         (top = (round * team + (round % 2 ? team - 1 - thread : thread)) * run.height) < a.rows; ++round)
      run.template panel<Doubling>(top, smaller(run.height, a.rows - top));
#pragma omp barrier
    all.finish_rows(team, thread);
#pragma omp barrier
    all.finish_permutations(team, thread);
  }
}

// ---- which rows a permutation puts into the first sample

// SplitMix64's output function (Steele, Lea and Flood 2014): a bijection that leaves no pattern of the input.
static inline uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Every permutation has random numbers of its own, so that neither threads nor the split of the permutations
// over several calls change anything.
static void draw_subsets(const SubsetArgs& a) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;
  constexpr int64_t kTogether = 64;  // as many share a cache line
  // The smaller of both sides is drawn.
  const bool inverted = a.chosen > a.rows - a.chosen;
  const int64_t drawn = inverted ? a.rows - a.chosen : a.chosen;
  const int threads = useful_threads(double(a.rows) * a.permutations, a.threads);
#pragma omp parallel num_threads(threads)
  {
    int32_t* const order = a.workspace + omp_get_thread_num() * a.rows;
#pragma omp for schedule(static)
    for (int64_t group = 0; group < ceil_div(a.permutations, kTogether); ++group) {
      const int64_t first = group * kTogether, last = smaller(first + kTogether, a.permutations);
      for (int64_t i = 0; i < a.rows; ++i)
        memset(a.membership + i * a.permutations + first, inverted, static_cast<size_t>(last - first));
      for (int64_t p = first; p < last; ++p) {
        for (int64_t i = 0; i < a.rows; ++i) order[i] = static_cast<int32_t>(i);
        uint64_t counter = mixed(a.seed + mixed(kGolden * static_cast<uint64_t>(a.first + p + 1)));
        for (int64_t i = 0; i < drawn; ++i) {
          counter += kGolden;
          const uint64_t left = static_cast<uint64_t>(a.rows - i);
          const int64_t place = i + static_cast<int64_t>((mixed(counter) >> 32) * left >> 32);
          const int32_t row = order[place];
          order[place] = order[i];
          a.membership[row * a.permutations + p] = !inverted;
        }
      }
    }
  }
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
