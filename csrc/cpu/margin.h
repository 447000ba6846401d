// The losses on distances of labelled rows (triplets, contrastive pairs): driver over row panels, and the
// epilogues, which see all distances of a row at once.
#pragma once

#include "cpu/centre.h"
#include "cpu/sort.h"

namespace thawkit {
namespace THAWKIT_ISA {

// One anchor's distances d. Columns are in the order of their classes, so that those of the anchor's class
// lie together.
struct Anchor {
  const float* d;  // infinity behind the columns, to a whole number of vectors
  int64_t columns;
  int64_t first, last;  // the anchor's class
  int64_t own;          // the anchor itself among them, or -1

  int64_t positives() const { return last - first - (own >= 0); }
  int64_t negatives() const { return columns - (last - first); }
  int64_t any_negative() const { return first > 0 ? 0 : last; }

  template <class Call>
  inline void each_positive(Call call) const {
    for (int64_t j = first; j < last; ++j)
      if (j != own) call(j);
  }
  template <class Call>
  inline void each_negative(Call call) const {
    for (int64_t j = 0; j < first; ++j) call(j);
    for (int64_t j = last; j < columns; ++j) call(j);
  }
};

struct AnchorLoss {
  float loss = 0.f;
  double mined = 0, active = 0;              // triplets, and those that cost something
  double slope = 0, of_negative_margin = 0;  // d loss / d margin, or of the positive and the negative one
};

// d loss / d d[column] = value, of a row that has few of them.
struct Slope {
  int32_t column;
  float value;
};

// ---- epilogues: all triplets

struct Extreme {
  float value;
  int64_t at;
};

// The largest (or smallest) distance of [first, last) if it is no less extreme than `best`, NaN left aside.
// Of equal ones that of the least number, or of the greatest where not `First`.
template <bool Largest>
static inline Extreme extreme(const float* d, int64_t first, int64_t last, const int64_t* number,
                              Extreme best) {
  const auto beats = [](float a, float b) { return Largest ? a > b : a < b; };
  Floats most = splat(best.value);
  int64_t j = first;
  for (; j + kLanes <= last; j += kLanes) most = Largest ? max(load(d + j), most) : min(load(d + j), most);
  float value = best.value;
  for (int l = 0; l < kLanes; ++l) value = beats(most[l], value) ? most[l] : value;
  for (; j < last; ++j) value = beats(d[j], value) ? d[j] : value;
  int64_t at = beats(value, best.value) ? -1 : best.at;
  const auto look_at = [&](int64_t j) {
    if (d[j] == value && (at < 0 || number[j] < number[at])) at = j;
  };
  for (j = first; j + kLanes <= last; j += kLanes)
    for (uint32_t found = to_bits(load(d + j) == splat(value)); found; found &= found - 1)
      look_at(j + __builtin_ctz(found));
  for (; j < last; ++j) look_at(j);
  return {value, at};
}

template <bool Largest>
static inline Extreme extreme_negative(const Anchor& a, const int64_t* number) {
  const Extreme none{Largest ? -__builtin_inff() : __builtin_inff(), a.any_negative()};
  return extreme<Largest>(a.d, a.last, a.columns, number, extreme<Largest>(a.d, 0, a.first, number, none));
}

// A triplet's loss into the row's, its two slopes behind the others.
static inline Slope* add_triplet(const Anchor& a, int64_t p, int64_t n, float margin, AnchorLoss& row,
                                 Slope* out) {
  const float loss = a.d[p] - a.d[n] + margin;
  ++row.mined;
  if (loss <= 0.f) return out;
  row.loss += loss;
  row.active += loss > 0.f;
  ++row.slope;
  *out++ = {static_cast<int32_t>(p), 1.f};
  *out++ = {static_cast<int32_t>(n), -1.f};
  return out;
}

// The farthest positive and the nearest negative; `numbers` says whether all distances are numbers.
static Slope* hardest_triplet(const Anchor& a, float margin, const int64_t* number, bool numbers,
                              AnchorLoss& row, Slope* out) {
  if (!a.positives() || !a.negatives()) return out;
  Extreme far{-__builtin_inff(), a.own == a.first ? a.first + 1 : a.first};
  far = extreme<true>(a.d, a.first, a.own < 0 ? a.last : a.own, number, far);
  if (a.own >= 0) far = extreme<true>(a.d, a.own + 1, a.last, number, far);
  const Extreme near = extreme_negative<false>(a, number);
  out = add_triplet(a, far.at, near.at, margin, row, out);
  if (!numbers) row.loss = __builtin_nanf("");
  return out;
}

// Up to here it is quicker to compare distances with every positive, a vector of them at a time, than to
// sort.
constexpr int64_t kFewPositives = 16 * kLanes;

// So many positives at a time: what is kept of each stays in registers.
constexpr int kTogether = 4;

// What the epilogues that look at every positive need for one row.
struct Mining {
  float* negatives;  // [padded columns]
  uint64_t* sorted;  // [columns], and
  uint64_t* spare;   // [columns]

  // The distances, infinity in place of what is no negative.
  void keep_negatives(const Anchor& a, int64_t padded) const {
    memcpy(negatives, a.d, static_cast<size_t>(padded) * sizeof(float));
    for (int64_t j = a.first; j < a.last; ++j) negatives[j] = __builtin_inff();
  }

  // call(columns of some positives, their number)
  template <class Call>
  static void each_few_positives(const Anchor& a, Call call) {
    int64_t some[kTogether];
    int count = 0;
    a.each_positive([&](int64_t j) {
      some[count++] = j;
      if (count == kTogether) call(some, count);
      count %= kTogether;
    });
    if (count) call(some, count);
  }
};

// Takes 1 from the slope of a negative for each of four reaches that it is within; returns how many negatives
// are within each.
static void count_within(const float* negatives, int64_t padded, const float* reach, float* slope,
                         float* within) {
  Ints found[kTogether] = {};
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Floats v = load(negatives + j);
    Ints all = {};
#pragma GCC unroll 4
    for (int k = 0; k < kTogether; ++k) {
      const Ints nearer = v < splat(reach[k]);
      found[k] += nearer;
      all += nearer;
    }
    store(slope + j, load(slope + j) + __builtin_convertvector(all, Floats));
  }
  for (int k = 0; k < kTogether; ++k) within[k] = -sum(__builtin_convertvector(found[k], Floats));
}

// Of distances and slopes; an infinite distance of slope 0 counts for nothing.
static float weighted_sum(const float* slope, const float* d, int64_t padded) {
  Floats s0 = {}, s1 = {};
  const auto term = [&](int64_t j) {
    const Floats w = load(slope + j);
    return w * select(w == splat(0.f), min(splat(__FLT_MAX__), load(d + j)), load(d + j));
  };
  for (int64_t j = 0; j < padded; j += 2 * kLanes) {
    s0 += term(j);
    s1 += term(j + kLanes);
  }
  return sum(s0 + s1);
}

// Every triplet. The loss is linear in the distances as long as the same triplets cost something, so the
// slope of a distance is the number of these that it is in: for a positive, the negatives that are nearer
// than it and the margin; for a negative, the positives that reach beyond it with the margin.
static void all_triplets(const Anchor& a, int64_t padded, float margin, const Mining& m, AnchorLoss& row,
                         float* slope) {
  const int64_t positives = a.positives();
  row.mined = double(positives) * double(a.negatives());
  zero(slope, padded);
  if (positives <= kFewPositives) {
    m.keep_negatives(a, padded);
    Mining::each_few_positives(a, [&](const int64_t* some, int count) {
      float reach[kTogether], within[kTogether];
      for (int k = 0; k < kTogether; ++k) reach[k] = k < count ? a.d[some[k]] + margin : -__builtin_inff();
      count_within(m.negatives, padded, reach, slope, within);
      for (int k = 0; k < count; ++k) slope[some[k]] = within[k];
    });
  } else {
    uint64_t* end = m.sorted;  // positives first: a negative at the end of their reach costs nothing
    a.each_positive([&](int64_t j) { *end++ = sortable(a.d[j] + margin, j); });
    a.each_negative([&](int64_t j) { *end++ = sortable(a.d[j], j); });
    sort_by_number(m.sorted, end - m.sorted, m.spare);
    int32_t nearer = 0, beyond = static_cast<int32_t>(-positives);
    for (const uint64_t* x = m.sorted; x < end; ++x) {
      const int64_t j = place_of(*x);
      const int32_t positive = a.first <= j && j < a.last;
      slope[j] = static_cast<float>(positive ? nearer : beyond);
      beyond += positive;
      nearer += 1 - positive;
    }
  }
  a.each_positive([&](int64_t j) { row.active += slope[j]; });
  row.loss = weighted_sum(slope, a.d, padded) + static_cast<float>(row.active) * margin;
  row.slope = row.active;
}

// Of four distances the nearest negative that is farther, or -1.
static void nearest_farther(const float* negatives, int64_t padded, const float* from, const int64_t* number,
                            int64_t* found) {
  const Floats nothing = splat(__builtin_inff());
  Floats least[kTogether];
  for (int k = 0; k < kTogether; ++k) least[k] = nothing;
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Floats v = load(negatives + j);
#pragma GCC unroll 4
    for (int k = 0; k < kTogether; ++k) least[k] = min(select(v > splat(from[k]), v, nothing), least[k]);
  }
  Floats value[kTogether];
  for (int k = 0; k < kTogether; ++k) {
    const float nearest = -max_lane(-least[k]);
    value[k] = splat(nearest < __builtin_inff() ? nearest : __builtin_nanf(""));  // equal to nothing
    found[k] = -1;
  }
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Floats v = load(negatives + j);
#pragma GCC unroll 4
    for (int k = 0; k < kTogether; ++k)
      for (uint32_t equal = to_bits(v == value[k]); equal; equal &= equal - 1) {
        const int64_t at = j + __builtin_ctz(equal);
        if (found[k] < 0 || number[at] < number[found[k]]) found[k] = at;
      }
  }
}

// Of each positive the nearest negative that is farther, or the farthest one.
static Slope* semihard_triplets(const Anchor& a, int64_t padded, float margin, const int64_t* number,
                                bool numbers, const Mining& m, AnchorLoss& row, Slope* out) {
  if (!a.positives() || !a.negatives()) return out;
  int64_t farthest = extreme_negative<true>(a, number).at;
  if (!numbers) a.each_negative([&](int64_t j) { farthest = a.d[j] == a.d[j] ? farthest : j; });
  const auto add = [&](int64_t positive, int64_t negative) {
    out = add_triplet(a, positive, negative < 0 ? farthest : negative, margin, row, out);
  };
  if (a.positives() <= kFewPositives) {
    m.keep_negatives(a, padded);
    Mining::each_few_positives(a, [&](const int64_t* some, int count) {
      float from[kTogether];
      int64_t found[kTogether];
      for (int k = 0; k < kTogether; ++k) from[k] = k < count ? a.d[some[k]] : __builtin_inff();
      nearest_farther(m.negatives, padded, from, number, found);
      for (int k = 0; k < count; ++k) add(some[k], found[k]);
    });
    return out;
  }
  uint64_t* end = m.sorted;  // negatives first: those as far as a positive are not farther
  a.each_negative([&](int64_t j) { *end++ = sortable(a.d[j], j); });
  a.each_positive([&](int64_t j) { *end++ = sortable(a.d[j], j); });
  sort_by_number(m.sorted, end - m.sorted, m.spare);
  int64_t nearest = -1;
  for (const uint64_t* x = end; x-- > m.sorted;) {
    const int64_t j = place_of(*x);
    if (a.first <= j && j < a.last)
      add(j, nearest);
    else if (nearest < 0 || a.d[j] != a.d[nearest] || number[j] < number[nearest])
      nearest = j;
  }
  return out;
}

// ---- epilogue: pairs

// Half the losses of the row's pairs; its slopes and what they say of the margins come times half of both
// rows' weights.
static void contrastive_pairs(const Anchor& a, int64_t padded, float positive_margin, float negative_margin,
                              float own_half, const float* halves, AnchorLoss& row, float* slope) {
  const auto segment = [&](int64_t first, int64_t last, float sign, float margin) {
    Floats loss = {}, gaps = {};
    for (int64_t j = first; j < last; j += kLanes) {
      const int64_t present = smaller(kLanes, last - j);
      Floats gap = max(splat(0.f), (load_up_to(a.d + j, present) - margin) * sign);
      if (present < kLanes) gap = select(from_bits((1u << present) - 1), gap, splat(0.f));
      loss += gap * gap;
      const Floats weighted = gap * (load_up_to(halves + j, present) + own_half);
      gaps += weighted;
      store_up_to(slope + j, weighted * (2.f * sign), present);
    }
    row.loss += 0.5f * sum(loss);
    return double(sum(gaps)) * sign;
  };
  for (int64_t j = a.columns; j < padded; ++j) slope[j] = 0.f;
  row.of_negative_margin =
      -segment(0, a.first, -1.f, negative_margin) - segment(a.last, a.columns, -1.f, negative_margin);
  row.slope =
      -segment(a.first, a.own, 1.f, positive_margin) - segment(a.own + 1, a.last, 1.f, positive_margin);
  slope[a.own] = 0.f;
}

// ---- distances of a row, and its slopes as weights of the products

// `own` and `norms` are squared lengths. Squares of no more than rounding leaves of two equal rows are 0. An
// infinite row is at no distance from any (NaN), but infinitely far from finite ones, whatever the products
// are. Returns whether all distances are numbers.
template <bool Cosine>
static bool distances(const Panel& panel, int64_t row, int64_t columns, float own, const float* norms,
                      float* d) {
  const int64_t padded = round_up(columns, kTileCols);
  Floats total = {};
  for (int64_t first = 0; first < padded; first += kBlockCols) {
    const float* const x = panel.at(first / kBlockCols, row);
    const int64_t width = smaller(kBlockCols, padded - first);
    for (int64_t j = 0; j < width; j += kLanes) {
      Floats v = 1.f - load(x + j);
      if constexpr (!Cosine) {
        const Floats other = load(norms + first + j), both = other + own, squares = both - 2.f * load(x + j);
        v = select(squares <= both * (8 * __FLT_EPSILON__), splat(0.f), sqrt(squares));
        v = select(other - own == splat(__builtin_inff()), splat(__builtin_inff()), v) + (own - own);
      }
      total += v;
      store(d + first + j, v);
    }
  }
  for (int64_t j = columns; j < padded; ++j) d[j] = __builtin_inff();
  const float all = sum(total);
  return all == all;
}

// d loss / d distance to d loss / d (half the square of the distance), or the same for the cosine
template <bool Cosine>
static inline Floats weight_of(Floats slope, Floats d) {
  return Cosine ? slope : select(d == splat(0.f), splat(0.f), slope / d);
}

template <bool Cosine>
static float weigh(const Panel& panel, int64_t row, int64_t padded, const float* d, const float* slope,
                   float factor) {
  Floats total = {};
  for (int64_t first = 0; first < padded; first += kBlockCols) {
    float* const x = panel.at(first / kBlockCols, row);
    const int64_t width = smaller(kBlockCols, padded - first);
    for (int64_t j = 0; j < width; j += kLanes) {
      const Floats w = weight_of<Cosine>(load(slope + first + j) * factor, load(d + first + j));
      total += w;
      store(x + j, w);
    }
  }
  return sum(total);
}

// ---- driver

// Everything that a thread needs to know, so that the phases below can be functions. u stands for the rows of
// x less their centre, or divided by their norm; v for those of y, or of x again, by class. Of both kinds
// of distances the gradient is sum_j W_ij u_i - sum_j W_ij v_j with respect to u_i, the first sum being 0
// for cosines.
struct MarginRun {
  struct Totals {
    double loss, mined, active, slope, of_negative_margin;
  };

  const MarginArgs& a;
  const bool self, contrastive, want_dx, want_dy, want;
  const int64_t blocks, padded, line;
  const int64_t slopes;  // that are kept, where rows have few
  const bool few;
  const bool transposed_product;
  const int64_t sum_depth, column_sum;  // the sum of weights is one more feature
  const Teams teams;
  int64_t workspace_floats;
  float *u, *v, *u_inverse, *v_inverse, *u_norms, *v_norms, *halves;  // of all teams
  float *transposed, *packed, *u_sums, *v_sums, *u_weights, *v_weights, *column_sums, *centre;
  double* centre_sum;
  Slope* kept;
  int64_t* starts;
  int32_t* counts;
  Totals* totals;  // of each thread
  Panel panel;
  float *own_column_sum, *panel_rows, *panel_columns;
  float *d, *slope, *tile_weights;  // of the thread
  Slope* found;
  Mining mining;
  Scratch scratch;

  static int threads_of(const MarginArgs& a) {
    return useful_threads(double(a.rows) * a.columns * a.depth * (a.dx || a.dy ? 3 : 1), a.threads);
  }

  // Slopes that row i can have, where a row has one or two a positive.
  int64_t slopes_of(int64_t i) const {
    return a.kind == MarginLoss::kHard ? 2 : 2 * (a.last[i] - a.first[i]);
  }
  // Those of all rows where they are few: a slope takes the time of some ten entries of the products. Else 0.
  int64_t few_slopes() const {
    if (a.kind != MarginLoss::kHard && a.kind != MarginLoss::kSemiHard) return 0;
    int64_t count = 0;
    for (int64_t i = 0; i < a.rows; ++i) count += slopes_of(i);
    return a.kind == MarginLoss::kHard || count <= a.rows * a.columns / 16 ? count : 0;
  }

  MarginRun(const MarginArgs& args, int team)
      : a(args),
        self(a.self),
        contrastive(a.kind == MarginLoss::kContrastive),
        want_dx(a.dx),
        want_dy(self ? a.dx : a.dy),
        want(want_dx || want_dy),
        blocks(ceil_div(a.columns, kBlockCols)),
        padded(round_up(a.columns, kTileCols)),
        line(round_up(padded, Workspace::kLine)),
        slopes(few_slopes()),
        few(slopes > 0),
        transposed_product(want_dy && !few && !contrastive),
        sum_depth(a.depth + !a.cosine),
        column_sum(round_up(transposed_product ? padded * sum_depth : 0, Workspace::kLine)),
        teams(a.rows, a.columns, 1, column_sum, threads_of(a)) {
    Workspace workspace(a.workspace);
    const auto of_thread = [&](int64_t floats) {
      float* const here = workspace.take(round_up(floats, Workspace::kLine) * teams.threads);
      return here ? here + round_up(floats, Workspace::kLine) * omp_get_thread_num() : nullptr;
    };
    const auto integers = [](float* memory) { return reinterpret_cast<int32_t*>(memory); };
    const bool many = a.kind == MarginLoss::kAll || a.kind == MarginLoss::kSemiHard;
    v = workspace.take(a.columns * a.depth);
    v_inverse = workspace.take(a.cosine ? a.columns : 0);
    v_norms = workspace.take(padded);
    v_weights = workspace.take(want ? a.columns : 0);
    v_sums = workspace.take(want_dy && (self || few) ? a.columns * a.depth : 0);
    u = self ? v : workspace.take(a.rows * a.depth);
    u_inverse = self ? v_inverse : workspace.take(a.cosine ? a.rows : 0);
    u_norms = workspace.take(a.rows + kLanes);
    u_weights = self ? v_weights : workspace.take(want ? a.rows : 0);
    u_sums = self ? v_sums : workspace.take(want_dx ? a.rows * a.depth : 0);
    halves = workspace.take(contrastive ? padded : 0);
    transposed = workspace.take(padded * a.depth);
    packed = workspace.take(want_dx && !few ? round_up(a.depth, kTileCols) * a.columns : 0);
    column_sums = workspace.take(column_sum * teams.count);
    own_column_sum = column_sums + column_sum * team;
    centre = workspace.take(a.depth);
    centre_sum = reinterpret_cast<double*>(workspace.take(2 * a.depth));
    kept = reinterpret_cast<Slope*>(workspace.take(want ? 2 * slopes : 0));
    starts = reinterpret_cast<int64_t*>(workspace.take(2 * (a.rows + 1)));
    counts = integers(workspace.take(a.rows));
    totals = reinterpret_cast<Totals*>(
        workspace.take(static_cast<int64_t>(sizeof(Totals) / sizeof(float)) * teams.threads));
    panel = {workspace.take(panel_floats(teams.panel, a.columns), teams, team), teams.panel};
    panel_rows = workspace.take(teams.panel * a.depth + kLanes, teams, team);
    panel_columns = workspace.take(transposed_product ? teams.panel * sum_depth : 0, teams, team);
    d = of_thread(line);
    slope = of_thread(line);
    tile_weights = of_thread(kTileCols);
    found = reinterpret_cast<Slope*>(of_thread(a.kind == MarginLoss::kAll ? 0 : 4 * a.columns));
    const int64_t pairs = many ? 2 * a.columns : 0;
    mining = {of_thread(many ? padded : 0), reinterpret_cast<uint64_t*>(of_thread(pairs)),
              reinterpret_cast<uint64_t*>(of_thread(pairs))};
    scratch = workspace.scratch(a.depth, teams.threads);
    workspace_floats = workspace.total();
  }

  int64_t id(int64_t row) const { return self ? a.order[row] : row; }
  float weight_of_row(int64_t row) const { return a.row_weight ? a.row_weight[id(row)] : a.weight; }

  void prepare() const {
    const auto row = [&](int64_t i) { return i < a.rows ? a.x + i * a.depth : a.y + (i - a.rows) * a.depth; };
    if (!a.cosine) find_mean_of_near(row, a.rows + (self ? 0 : a.columns), a.depth, centre, centre_sum);
    for (int t = 0; t < teams.threads; ++t) totals[t] = {};
    starts[0] = 0;
    for (int64_t i = 0; few && i < a.rows; ++i) starts[i + 1] = starts[i] + slopes_of(i);
  }

  void place(const float* row, float* out, float* inverse) const {
    if (a.cosine)
      scale_row(out, row, a.depth, *inverse = inverse_norm(row, a.depth));
    else
      less_row(static_cast<float*>(memcpy(out, row, static_cast<size_t>(a.depth) * sizeof(float))), centre,
               a.depth, 1.f, 1.f);
  }

  // Squared lengths of rows that are packed side by side, `step` floats from feature to feature. They are
  // summed as the products are, so that of equal rows nothing is left.
  Floats squares(const float* side_by_side, int64_t step) const {
    Floats total = {};
    for (int64_t k = 0; k < a.depth; ++k) {
      const Floats x = load(side_by_side + k * step);
      total = total + x * x;
    }
    return total;
  }

  // The columns in both packed forms, the rows, and where sums begin; each thread takes a share.
  void pack(int thread, int threads) const {
    const Share tiles = share_of(padded / kTileCols, thread, threads, 1);
    const Share columns{tiles.first * kTileCols, smaller(tiles.last * kTileCols, a.columns)};
    for (int64_t j = columns.first; j < columns.last; ++j) {
      place((self ? a.x : a.y) + a.order[j] * a.depth, v + j * a.depth, v_inverse + j);
      if (contrastive) halves[j] = 0.5f * weight_of_row(j);
    }
    pack_columns<Float32>(v, a.columns, a.depth, nullptr, transposed, nullptr,
                          want_dx && !few ? packed : nullptr, tiles.first, tiles.last, scratch);
    for (int64_t j = columns.first; j < tiles.last * kTileCols; j += kLanes)
      store(v_norms + j,
            squares(transposed + j / kTileCols * kTileCols * a.depth + j % kTileCols, kTileCols));
    if (want_dy && (self || few))
      zero(v_sums + columns.first * a.depth, (columns.last - columns.first) * a.depth);
    if (want) zero(v_weights + columns.first, columns.last - columns.first);
    if (self) return;
    const Share rows = share_of(a.rows, thread, threads, 1);
    for (int64_t i = rows.first; i < rows.last; ++i) place(a.x + i * a.depth, u + i * a.depth, u_inverse + i);
    if (want_dx) zero(u_sums + rows.first * a.depth, (rows.last - rows.first) * a.depth);
    if (want) zero(u_weights + rows.first, rows.last - rows.first);
  }

  // The thread's rows of scores and their squared lengths.
  void score(int64_t top, Share own) const {
    const int64_t rows = own.last - own.first;
    float* const packed_rows = panel_rows + own.first * a.depth;
    pack_rows<Float32>(u + (top + own.first) * a.depth, rows, a.depth, nullptr, packed_rows, scratch);
    const Parts parts(rows);
    for (int64_t part = 0; part < parts.count; ++part) {
      const int64_t start = parts.start(part), height = parts.height(part);
      for (int64_t r = 0; r < height; r += kLanes)
        store_up_to(u_norms + top + own.first + start + r, squares(packed_rows + start * a.depth + r, height),
                    height - r);
    }
    for (int64_t block = 0; block < blocks; ++block)
      score_block<Float32>(panel, block, own.first, rows, packed_rows, a.depth, transposed,
                           block * kBlockCols, smaller((block + 1) * kBlockCols, padded));
  }

  // Loss and slopes of row `row`, which is the panel's i-th.
  void finish_scores(int64_t i, int64_t row, Totals& sums) const {
    const bool numbers = a.cosine ? distances<true>(panel, i, a.columns, 0.f, v_norms, d)
                                  : distances<false>(panel, i, a.columns, u_norms[row], v_norms, d);
    const Anchor anchor{d, a.columns, a.first[row], a.last[row], self ? row : -1};
    const float weight = weight_of_row(row);
    Slope* const begin = few && want ? kept + starts[row] : found;
    Slope* end = begin;
    AnchorLoss result;
    switch (a.kind) {
      case MarginLoss::kAll:
        all_triplets(anchor, padded, a.margin, mining, result, slope);
        break;
      case MarginLoss::kHard:
        end = hardest_triplet(anchor, a.margin, a.order, numbers, result, begin);
        break;
      case MarginLoss::kSemiHard:
        end = semihard_triplets(anchor, padded, a.margin, a.order, numbers, mining, result, begin);
        break;
      case MarginLoss::kContrastive:
        contrastive_pairs(anchor, padded, a.margin, a.negative_margin, halves[row], halves, result, slope);
        break;
    }
    a.loss[id(row)] = result.loss;
    sums.loss += double(weight) * result.loss;
    sums.mined += result.mined;
    sums.active += result.active;
    sums.slope += (contrastive ? 1. : weight) * result.slope;
    sums.of_negative_margin += result.of_negative_margin;
    if (!want) return;
    for (Slope* s = begin; s < end; ++s) {
      s->value *= weight;
      if (!a.cosine) s->value = d[s->column] == 0.f ? 0.f : s->value / d[s->column];
      u_weights[row] += s->value;
    }
    if (few) {
      counts[row] = static_cast<int32_t>(end - begin);
      for (Slope* s = begin; want_dx && s < end; ++s)
        less_row(u_sums + row * a.depth, v + s->column * a.depth, a.depth, -s->value, 1.f);
    } else if (a.kind == MarginLoss::kSemiHard) {
      for (int64_t block = 0; block < blocks; ++block) zero(panel.at(block, i), kBlockCols);
      for (Slope* s = begin; s < end; ++s) panel.entry(i, s->column) += s->value;
    } else {
      const float factor = contrastive ? 1.f : weight;
      u_weights[row] = a.cosine ? weigh<true>(panel, i, padded, d, slope, factor)
                                : weigh<false>(panel, i, padded, d, slope, factor);
    }
  }

  // The products with the weights in the panel: that of the thread's rows, and what the other one needs.
  void multiply_rows(int64_t top, Share own) const {
    for (int64_t block = 0; want_dx && block < blocks; ++block)
      times_rows<Float32>(panel, block, own.first, own.last - own.first, block * kBlockCols,
                          smaller((block + 1) * kBlockCols, a.columns), packed, a.columns, a.depth,
                          u_sums + (top + own.first) * a.depth);
    if (!transposed_product) return;
    const TransposedRows<Float32> rows(sum_depth, panel.rows, panel_columns, scratch);
    for (int64_t i = own.first; i < own.last; ++i)
      rows.add(i, u + (top + i) * a.depth, a.depth, 1.f, 1.f, i + 1 == own.last);
  }

  // The thread's tiles of columns take the whole panel's part of their sums.
  void multiply_columns(int64_t height, const Member& member) const {
    const Share tiles = share_of(padded / kTileCols, member.thread, member.threads, 1);
    transposed_times_rows<Float32>(panel, height, tiles.first, tiles.last, panel_columns, panel.rows,
                                   sum_depth, own_column_sum);
  }

  // The few slopes of a share of the columns.
  void add_slopes(int64_t first, int64_t last) const {
    for (int64_t i = 0; i < a.rows; ++i)
      for (const Slope* s = kept + starts[i]; s < kept + starts[i] + counts[i]; ++s)
        if (first <= s->column && s->column < last) {
          v_weights[s->column] += s->value;
          less_row(v_sums + s->column * a.depth, u + i * a.depth, a.depth, -s->value, 1.f);
        }
  }

  // 0, or NaN of a row that makes distances NaN: all weights, of which few are kept here, would be so too.
  static float nothing_times(float norm) { return norm == norm ? 0.f : norm; }

  // The same for the gradients of all rows: times these rows, weights of 0 make NaN of what is infinite, too.
  const float* nothing_times(const float* rows, const float* norms, int64_t count) const {
    float* const sum = scratch.row(kTileCols);
    zero(sum, a.depth);
    for (int64_t i = 0; i < count; ++i)
      if (!(norms[i] < __builtin_inff()))
        less_row(sum, rows + i * a.depth, a.depth, 0.f, 1.f + nothing_times(norms[i]));
    return sum;
  }

  void write(float* out, float* sum, float weight, const float* row, const float* given, float inverse,
             float factor) const {
    less_row(sum, row, a.depth, weight, -factor);
    if (a.cosine) through_norm(sum, given, inverse, a.depth);
    memcpy(out, sum, static_cast<size_t>(a.depth) * sizeof(float));
  }

  // The gradients of a share of columns and of rows, times `factor`.
  void finish(int sums, float factor, int thread, int threads) const {
    const Share tiles = share_of(padded / kTileCols, thread, threads, 1);
    const bool listed = a.kind == MarginLoss::kHard || a.kind == MarginLoss::kSemiHard;
    float unlike_u = 0.f;
    for (int64_t i = 0; (listed || contrastive) && i < a.rows; ++i) unlike_u += u_norms[i] - u_norms[i];
    if (few && want_dy) add_slopes(tiles.first * kTileCols, tiles.last * kTileCols);
    for (int64_t tile = tiles.first; want_dy && tile < tiles.last; ++tile) {
      const int64_t first = tile * kTileCols;
      if (transposed_product)
        unpack_transposed<Float32>(column_sums, sums, column_sum, a.columns, a.depth, scratch.rows,
                                   a.cosine ? nullptr : tile_weights, tile);
      for (int64_t j = first; j < smaller(first + kTileCols, a.columns); ++j) {
        float* sum = v_sums + j * a.depth;
        float weight = v_weights[j];
        if (transposed_product) {
          float* const product = scratch.rows + (j - first) * a.depth;
          if (self) less_row(product, sum, a.depth, -1.f, 1.f);
          if (!a.cosine) weight += tile_weights[j - first];
          sum = product;
        }
        write((self ? a.dx : a.dy) + a.order[j] * a.depth, sum,
              (a.cosine ? 0.f : weight) + unlike_u + nothing_times(v_norms[j]), v + j * a.depth,
              (self ? a.x : a.y) + a.order[j] * a.depth, a.cosine ? v_inverse[j] : 0.f, factor);
      }
    }
    if (self || !want_dx) return;
    const Share rows = share_of(a.rows, thread, threads, 1);
    const float* const unlike_v = nothing_times(v, v_norms, listed ? a.columns : 0);
    for (int64_t i = rows.first; i < rows.last; ++i) {
      float* const sum = u_sums + i * a.depth;
      if (listed) less_row(sum, unlike_v, a.depth, 1.f, 1.f);
      write(a.dx + i * a.depth, sum, (a.cosine ? 0.f : u_weights[i]) + (u_norms[i] - u_norms[i]),
            u + i * a.depth, a.x + i * a.depth, a.cosine ? u_inverse[i] : 0.f, factor);
    }
  }

  Totals sum_totals() const {
    Totals all = {};
    for (int t = 0; t < teams.threads; ++t) {
      all.loss += totals[t].loss;
      all.mined += totals[t].mined;
      all.active += totals[t].active;
      all.slope += totals[t].slope;
      all.of_negative_margin += totals[t].of_negative_margin;
    }
    return all;
  }

  // What the sums are divided by.
  double divisor(const Totals& all) const {
    const double count = a.mean == MarginMean::kMined    ? all.mined
                         : a.mean == MarginMean::kActive ? all.active
                                                         : 1;
    return count < 1 ? 1 : count;
  }
};

static void margin_panels(const MarginArgs& a) {
  const MarginRun all(a, 0);
  prefer_huge_pages(a.workspace, all.workspace_floats * 4);
  all.prepare();
#pragma omp parallel num_threads(all.teams.threads)
  {
    const Member member(all.teams);
    const MarginRun run(a, member.team);
    const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
    run.pack(thread, threads);
    if (run.transposed_product) clear_sum(run.own_column_sum, run.column_sum, member);
    MarginRun::Totals sums = {};
#pragma omp barrier
    for (int64_t round = 0, top; (top = member.top(round)) < a.rows; ++round) {
      const int64_t height = smaller(run.panel.rows, a.rows - top);
      const Share own = share_of(height, member.thread, member.threads, kTileRows);
      run.score(top, own);
      for (int64_t i = own.first; i < own.last; ++i) run.finish_scores(i, top + i, sums);
      if (run.want && !run.few) run.multiply_rows(top, own);
      member.wait();
      if (!run.transposed_product) continue;
      run.multiply_columns(height, member);
      member.wait();
    }
    run.totals[thread] = sums;
#pragma omp barrier
    if (run.want) run.finish(member.teams, float(1 / run.divisor(run.sum_totals())), thread, threads);
  }
  const MarginRun::Totals sums = all.sum_totals();
  const double divisor = all.divisor(sums);
  *a.total = static_cast<float>(sums.loss / divisor);
  a.dmargins[0] = static_cast<float>(sums.slope / divisor);
  a.dmargins[1] = static_cast<float>(sums.of_negative_margin / divisor);
}

}  // namespace THAWKIT_ISA
}  // namespace thawkit
