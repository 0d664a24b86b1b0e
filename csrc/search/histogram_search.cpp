// SPDX-License-Identifier: Apache-2.0
#include "search/histogram_search.h"

#include <cstdlib>
#include <new>

#include "search/histogram_error.h"
#include "search/histogram_tables.h"
#include "support/parallel.h"

namespace detent::DETENT_ISA {
namespace {

// L2 projection of s^p on 1, s, s^2, s^3 over [0, 1] in closed form: the moments of the residual as a function of the
// exponent are rational, with zeros at 0..3 and known poles (Muentz); then s = 2 t.
void fit_power(double p, double* fit) {
  for (int a = 0; a < 4; ++a) {
    double c = (2.0 * a + 1.0) / (p + a + 1.0);
    for (int b = 0; b < 4; ++b) {
      if (b != a) c *= (p - b) * (a + b + 1.0) / ((p + b + 1.0) * (a - b));
    }
    fit[a] = c * ::pow(2.0, a - p);
  }
}

Tables open_tables(const HistogramProblem& problem, double* workspace) {
  Tables tables;
  const int64_t used = place_tables(problem, problem.positive, workspace, 0, &tables.positive);
  place_tables(problem, problem.negative, workspace, used, &tables.negative);
  tables.zeros = problem.zeros;
  tables.half_count = problem.half_count;
  tables.power = problem.power;
  if (problem.metric == SearchMetric::kLp) fit_power(problem.power, tables.fit);
  return tables;
}

int64_t workspace_size(const HistogramProblem& problem) {
  SideTables tables;
  return place_tables(problem, problem.negative, nullptr, place_tables(problem, problem.positive, nullptr, 0, &tables),
                      &tables);
}

void prepare(const HistogramProblem& problem, double* workspace) {
  SideTables tables;
  int64_t used = 0;
  for (const HistogramSide* side : {&problem.positive, &problem.negative}) {
    used = place_tables(problem, *side, workspace, used, &tables);
    if (problem.metric == SearchMetric::kKl) {
      build_entropy(*side, tables);
    } else {
      build_moments(*side, tables);
      if (problem.metric == SearchMetric::kLp) build_tail(*side, tables, problem.power);
    }
  }
}

// Errors of one side for several vectors of ascending steps, level by level together: neighbouring candidates find what
// they look up in the same cache lines.
template <SearchMetric metric, int Blocks>
void run_side(const Tables& tables, const SideTables& side, const Lanes* steps, int64_t levels,
              const ZeroCell* zero_cells, Lanes* errors) {
  Sums sums[Blocks];
  int64_t useful[Blocks], inner = levels;
  for (int b = 0; b < Blocks; ++b) {
    if constexpr (metric == SearchMetric::kKl) open_first_cell(side, steps[b], &sums[b]);
    useful[b] = useful_levels(side, steps[b], levels);
    const int64_t own = inner_levels(side, steps[b], useful[b]);
    inner = own < inner ? own : inner;
  }
  Lanes k{};
  for (int64_t added = 0; added < inner; ++added, k += 1.0) {
#pragma GCC unroll 4
    for (int b = 0; b < Blocks; ++b) add_level<metric, true>(side, steps[b], k, &sums[b]);
  }
  for (int b = 0; b < Blocks; ++b) {
    Lanes outer = k;
    for (int64_t added = inner; added < useful[b]; ++added, outer += 1.0) {
      add_level<metric, false>(side, steps[b], outer, &sums[b]);
    }
    errors[b] = finish<metric>(tables, side, steps[b], static_cast<double>(levels), sums[b], zero_cells[b]);
  }
}

Lanes load_block(const double* values, int64_t begin, int64_t count) {
  Lanes lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = values[begin + lane < count ? begin + lane : count - 1];
  return lanes;
}

constexpr int kGroup = 4;  // vectors of candidates that `run_side` takes together

template <SearchMetric metric, int Blocks>
void evaluate_blocks(const Tables& tables, const double* steps, int64_t begin, int64_t count, int64_t positive_levels,
                     int64_t negative_levels, double* errors) {
  Lanes step[Blocks], positive[Blocks], negative[Blocks];
  ZeroCell zero_cells[Blocks];
  for (int b = 0; b < Blocks; ++b) {
    step[b] = load_block(steps, begin + b * kLanes, count);
    zero_cells[b] = make_zero_cell<metric>(tables, step[b]);
  }
  run_side<metric, Blocks>(tables, tables.positive, step, positive_levels, zero_cells, positive);
  run_side<metric, Blocks>(tables, tables.negative, step, negative_levels, zero_cells, negative);
  for (int b = 0; b < Blocks; ++b) {
    const Lanes error = positive[b] + negative[b] + zero_cells[b].divergence;
    const int64_t at = begin + b * kLanes;
    for (int lane = 0; lane < kLanes && at + lane < count; ++lane) errors[at + lane] = error[lane];
  }
}

template <SearchMetric metric>
void fixed_levels(const Tables& tables, const double* steps, int64_t count, int64_t positive_levels,
                  int64_t negative_levels, double* errors) {
  constexpr int64_t kSize = kGroup * kLanes;
  // From 20 us of work (squares) to 140 us (divergences) before a thread is worth starting.
  const int64_t least_groups = 1 + 40000 / ((positive_levels + negative_levels + 16) * kSize);
  parallel_for((count + kSize - 1) / kSize, least_groups, [&](int64_t group) {
    const int64_t begin = group * kSize;
    if (begin + kSize <= count) {
      evaluate_blocks<metric, kGroup>(tables, steps, begin, count, positive_levels, negative_levels, errors);
    } else {
      for (int64_t at = begin; at < count; at += kLanes) {
        evaluate_blocks<metric, 1>(tables, steps, at, count, positive_levels, negative_levels, errors);
      }
    }
  });
}

// Scratch of one block; C allocation because templates of the library must not be instantiated here (see isa.h).
class BlockScratch {
 public:
  explicit BlockScratch(int64_t doubles)
      : data_(static_cast<double*>(std::malloc(sizeof(double) * static_cast<size_t>(doubles)))) {
    if (!data_) throw std::bad_alloc();
  }
  ~BlockScratch() { std::free(data_); }
  BlockScratch(const BlockScratch&) = delete;
  BlockScratch& operator=(const BlockScratch&) = delete;
  double* data() const { return data_; }

 private:
  double* data_;
};

// Errors of one side for levels low, low + stride, ..., high, one after the other in `out`.
template <SearchMetric metric>
void run_curve(const Tables& tables, const SideTables& side, Lanes step, int64_t low, int64_t high, int64_t stride,
               const ZeroCell& zero_cell, double* out) {
  Sums sums;
  if constexpr (metric == SearchMetric::kKl) open_first_cell(side, step, &sums);
  const int64_t useful = useful_levels(side, step, high);
  int64_t added = 0;
  for (int64_t levels = low; levels <= high; levels += stride) {
    for (; added < levels && added < useful; ++added) {
      add_level<metric, false>(side, step, broadcast(static_cast<double>(added)), &sums);
    }
    store(out, finish<metric>(tables, side, step, static_cast<double>(levels), sums, zero_cell));
    out += kLanes;
  }
}

template <SearchMetric metric>
void best_split(const Tables& tables, const double* steps, int64_t count, int64_t levels, int64_t first, int64_t last,
                int64_t stride, double* errors, int64_t* negative_levels) {
  const int64_t blocks = (count + kLanes - 1) / kLanes;
  const int64_t splits = (last - first) / stride + 1;
  last = first + (splits - 1) * stride;
  const int64_t least_blocks = 1 + 20000 / ((levels + 4 * splits + 16) * kLanes);
  parallel_for(blocks, least_blocks, [&](int64_t block) {
    const int64_t begin = block * kLanes;
    const Lanes step = load_block(steps, begin, count);
    const ZeroCell zero_cell = make_zero_cell<metric>(tables, step);
    const BlockScratch scratch(2 * kLanes * splits);
    double* const below = scratch.data();
    double* const above = below + kLanes * splits;
    run_curve<metric>(tables, tables.negative, step, first, last, stride, zero_cell, below);
    run_curve<metric>(tables, tables.positive, step, levels - last, levels - first, stride, zero_cell, above);
    Lanes best = broadcast(__builtin_inf()), best_split = broadcast(0.0);
    for (int64_t i = 0; i < splits; ++i) {
      // Levels above zero fall as those below rise: the other curve is read backwards.
      const Lanes error = load(above + kLanes * (splits - 1 - i)) + load(below + kLanes * i) + zero_cell.divergence;
      const WideLanes better = error < best;
      best = better ? error : best;
      best_split = better ? broadcast(static_cast<double>(first + i * stride)) : best_split;
    }
    for (int lane = 0; lane < kLanes && begin + lane < count; ++lane) {
      errors[begin + lane] = best[lane];
      negative_levels[begin + lane] = static_cast<int64_t>(best_split[lane]);
    }
  });
}

void fixed_levels_any(const HistogramProblem& problem, const double* workspace, const double* steps, int64_t count,
                      int64_t positive_levels, int64_t negative_levels, double* errors) {
  const Tables tables = open_tables(problem, const_cast<double*>(workspace));
  const auto run = [&](auto function) { function(tables, steps, count, positive_levels, negative_levels, errors); };
  switch (problem.metric) {
    case SearchMetric::kMse:
      return run(fixed_levels<SearchMetric::kMse>);
    case SearchMetric::kMae:
      return run(fixed_levels<SearchMetric::kMae>);
    case SearchMetric::kLp:
      return run(fixed_levels<SearchMetric::kLp>);
    case SearchMetric::kKl:
      return run(fixed_levels<SearchMetric::kKl>);
  }
}

void best_split_any(const HistogramProblem& problem, const double* workspace, const double* steps, int64_t count,
                    int64_t levels, int64_t first, int64_t last, int64_t stride, double* errors,
                    int64_t* negative_levels) {
  const Tables tables = open_tables(problem, const_cast<double*>(workspace));
  const auto run = [&](auto function) {
    function(tables, steps, count, levels, first, last, stride, errors, negative_levels);
  };
  switch (problem.metric) {
    case SearchMetric::kMse:
      return run(best_split<SearchMetric::kMse>);
    case SearchMetric::kMae:
      return run(best_split<SearchMetric::kMae>);
    case SearchMetric::kLp:
      return run(best_split<SearchMetric::kLp>);
    case SearchMetric::kKl:
      return run(best_split<SearchMetric::kKl>);
  }
}

}  // namespace

extern const HistogramSearchTable histogram_search_table;
const HistogramSearchTable histogram_search_table = {workspace_size, prepare, fixed_levels_any, best_split_any};

}  // namespace detent::DETENT_ISA
