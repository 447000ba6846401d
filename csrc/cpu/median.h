// Median of the squared distances of all pairs of rows, exact: two counts of their leading and then of their
// other bits, each over the upper triangle of pairs, block by block.
#pragma once

#include "cpu/pooled.h"

namespace thawkit {
namespace THAWKIT_ISA {

// Everything that a thread needs to know, so that the phases below can be functions.
struct MedianRun {
  // Numbers from 0 up are in the order of their bits, of which these many are counted first: the sign is 0.
  static constexpr int kLowBits = 15;
  static constexpr int64_t kHigh = int64_t(1) << (31 - kLowBits), kLow = int64_t(1) << kLowBits;

  const MedianArgs& a;
  const int64_t count, width;
  const int threads;
  const int64_t height;  // rows of a panel
  int64_t workspace_floats;
  Pooled rows;
  float *transposed, *scores, *packed_rows;
  int64_t* found;  // of each thread
  Scratch scratch;

  MedianRun(const MedianArgs& args, int thread)
      : a(args),
        count(a.n + a.m),
        width(round_up(count, kTileCols)),
        threads(useful_threads(double(count) * count * a.depth, a.threads)),
        height(height_for(count, threads)) {
    Workspace workspace(a.workspace);
    rows = Pooled(a.x, a.y, a.n, a.m, a.depth, true, workspace);
    transposed = workspace.take(width * a.depth);
    const auto own = [&](int64_t floats) {
      const int64_t each = round_up(floats, Workspace::kLine);
      float* all = workspace.take(each * threads);
      return all ? all + each * thread : nullptr;
    };
    scores = own(height * kBlockStride);
    packed_rows = own(height * a.depth);
    found = reinterpret_cast<int64_t*>(workspace.take(2 * kHigh * threads));
    scratch = workspace.scratch(a.depth, threads);
    workspace_floats = workspace.total();
  }

  // Panels become cheaper down the triangle, so there are several a thread.
  static int64_t height_for(int64_t rows, int threads) {
    constexpr int64_t kMost = 192, kLeast = 48, kRounds = 4;
    const int64_t even = round_up(ceil_div(rows > 0 ? rows : 1, kRounds * threads), kTileRows);
    return even < kLeast ? kLeast : smaller(even, kMost);
  }

  void pack(int thread, int team) const {
    const Share tiles = share_of(width / kTileCols, thread, team, 1);
    rows.place(tiles.first * kTileCols, smaller(tiles.last * kTileCols, count));
    pack_columns<Float32>(rows.z, count, a.depth, nullptr, transposed, nullptr, nullptr, tiles.first,
                          tiles.last, scratch);
  }

  // Counts the pairs of a panel's rows with later ones: by their leading bits or, where those are `leading`,
  // by the others.
  void panel(int64_t top, int32_t leading, int64_t* counts) const {
    const int64_t present = smaller(height, count - top);
    pack_rows<Float32>(rows.z + top * a.depth, present, a.depth, nullptr, packed_rows, scratch);
    const Panel block{scores, height};
    for (int64_t start = top / kTileCols * kTileCols; start < count; start += kBlockCols) {
      const int64_t last = smaller(start + kBlockCols, count);
      score_block<Float32>(block, 0, 0, present, packed_rows, a.depth, transposed + start * a.depth, 0,
                           smaller(kBlockCols, width - start));
      for (int64_t i = 0; i < present; ++i) {
        const int64_t first = top + i + 1 > start ? top + i + 1 : start;
        if (first < last)
          count_pairs(scores + i * kBlockStride + (first - start), last - first, rows.norms[top + i],
                      rows.norms + first, leading, counts);
      }
    }
  }

  static void count_pairs(float* x, int64_t length, float own_norm, const float* norms, int32_t leading,
                          int64_t* counts) {
    for (int64_t j = 0; j < length; j += kLanes) {
      const int64_t present = smaller(kLanes, length - j);
      const Floats d2 =
          max(splat(0.f), own_norm + load_up_to(norms + j, length - j) - 2.f * load_up_to(x + j, length - j));
      const Ints bits = bit_cast<Ints>(d2);
      if (leading < 0) {
        const Ints bins = (bits >> kLowBits) & static_cast<int32_t>(kHigh - 1);
        for (int64_t l = 0; l < present; ++l) ++counts[bins[l]];
        continue;
      }
      uint32_t equal = to_bits((bits >> kLowBits) == splat(leading));
      if (present < kLanes) equal &= (1u << present) - 1;
      for (; equal; equal &= equal - 1) ++counts[bits[__builtin_ctz(equal)] & (kLow - 1)];
    }
  }

  // The bin of the pair with `rank` others before it, which is left as its rank within the bin.
  int32_t bin_of(int64_t bins, int64_t& rank) const {
    for (int64_t bin = 0; bin < bins; ++bin) {
      int64_t here = 0;
      for (int t = 0; t < threads; ++t) here += found[t * kHigh + bin];
      if (rank < here) return static_cast<int32_t>(bin);
      rank -= here;
    }
    return static_cast<int32_t>(bins - 1);
  }

  bool all_finite() const {
    for (int64_t i = 0; i < count; ++i)
      if (!(rows.norms[i] <= __FLT_MAX__)) return false;
    return true;
  }
};

static void find_median(const MedianArgs& a) {
  const MedianRun all(a, 0);
  prefer_huge_pages(a.workspace, all.workspace_floats * 4);
  all.rows.prepare();
  const int64_t panels = ceil_div(all.count, all.height);
  int64_t rank = (all.count * (all.count - 1) / 2 - 1) / 2;
  int32_t leading = -1, rest = 0;
#pragma omp parallel num_threads(all.threads)
  {
    const int thread = omp_get_thread_num();
    const MedianRun run(a, thread);
    run.pack(thread, omp_get_num_threads());
    int64_t* const counts = run.found + thread * MedianRun::kHigh;
    for (int pass = 0; pass < 2; ++pass) {
      memset(counts, 0, MedianRun::kHigh * sizeof(int64_t));
#pragma omp barrier
      // the last panels are short: they come last
#pragma omp for schedule(dynamic, 1)
      for (int64_t panel = 0; panel < panels; ++panel) run.panel(panel * run.height, leading, counts);
#pragma omp single
      {
        if (pass == 0)
          leading = run.bin_of(MedianRun::kHigh, rank);
        else
          rest = run.bin_of(MedianRun::kLow, rank);
      }
    }
  }
  const double unit = *all.rows.unit;
  const float median = bit_cast<float>(leading << MedianRun::kLowBits | rest);
  *a.value = all.all_finite() ? double(median) / unit / unit : double(__builtin_nanf(""));
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
