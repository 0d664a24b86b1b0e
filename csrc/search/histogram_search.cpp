// SPDX-License-Identifier: Apache-2.0
#include "search/histogram_search.h"

#include <cstdlib>
#include <new>

#include "search/histogram_tables.h"
#include "support/parallel.h"

namespace detent::DETENT_ISA {
namespace {

struct Tables {
  SideTables positive;
  SideTables negative;
  double zeros = 0;       // Kullback-Leibler
  double half_count = 0;  // Kullback-Leibler
  double power = 2;
  double fit[4] = {0, 0, 0, 0};  // general power: (t / r)^p ~ sum_d fit[d] (t / r)^d for 0 <= t <= r / 2
};

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

// Running sums of one side while levels are added outwards.
struct Sums {
  Lanes first_boundaries{}, first_levels{}, third_boundaries{}, third_levels{};
  Lanes mass{}, occupied{}, cells{};  // Kullback-Leibler: at the last boundary, and sum of M log(M / K)
};

// The cell around zero: both sides share it (Kullback-Leibler), or each has half of it (general power).
struct ZeroCell {
  Lanes mass{}, divergence{};
  Lanes positive_power{}, negative_power{};
  Lanes step_power{};  // step^p
};

// Kullback-Leibler: opens the first cell beyond the one around zero.
inline void open_first_cell(const SideTables& side, Lanes step, Sums* sums) {
  const Place place = locate_in(side, 0.5 * step);
  sums->mass = mass_at(side, place);
  sums->occupied = linear_at(side.occupied, place);
}

// Adds level k + 1, that is the boundary b_k below it; k is the same in all lanes. `inner`: below `inner_levels`, where
// a look-up needs neither a clamp nor a test.
template <SearchMetric metric, bool inner>
inline void add_level(const SideTables& side, Lanes step, Lanes k, Sums* sums) {
  const auto place_at = [&](double offset) {
    const Lanes position = (k + offset) * step;
    return inner ? locate_near(position) : locate_in(side, position);
  };
  if constexpr (metric == SearchMetric::kKl) {
    const Place place = place_at(1.5);
    const Lanes mass = mass_at(side, place), occupied = linear_at(side.occupied, place);
    sums->cells += mass_log(sums->mass - mass, sums->occupied - occupied);
    sums->mass = mass;
    sums->occupied = occupied;
  } else {
    const Place boundary = place_at(0.5);
    if constexpr (metric == SearchMetric::kLp) {
      const Place level = place_at(1.0);
      Lanes first, third;
      first_and_third_at(side, boundary, &first, &third);
      sums->first_boundaries += first;
      sums->third_boundaries += third;
      first_and_third_at(side, level, &first, &third);
      sums->first_levels += first;
      sums->third_levels += third;
    } else {
      sums->first_boundaries += first_at(side, boundary);
      if constexpr (metric == SearchMetric::kMae) sums->first_levels += first_at(side, place_at(1.0));
    }
  }
}

Lanes finish_divergence(const Tables& tables, const SideTables& side, Lanes step, double levels, const Sums& sums,
                        const ZeroCell& zero_cell) {
  const Lanes none{};
  const WideLanes fine = step <= 1.0;
  const Place outer = locate_in(side, (levels + 0.5) * step);
  const Lanes clipped = greater(mass_at(side, outer), none);
  Lanes divergence = none;
  Lanes last_mass = zero_cell.mass + tables.zeros;
  Lanes last_divergence = zero_cell.divergence;
  if (levels > 0) {
    const Lanes outer_entropy = linear_at(side.entropy, outer);
    const Lanes start_entropy = linear_at(side.entropy, locate_in(side, 0.5 * step));
    const Place inner = locate_in(side, (levels - 0.5) * step);
    last_mass = greater(mass_at(side, inner) - clipped, none);
    const Lanes width = linear_at(side.occupied, inner) - linear_at(side.occupied, outer);
    last_divergence = linear_at(side.entropy, inner) - outer_entropy - mass_log(last_mass, width);
    divergence = fine ? none : greater(start_entropy - outer_entropy - sums.cells, none);
  }
  last_divergence = fine ? none : greater(last_divergence, none);
  const Lanes share = last_mass > 0.0 ? clipped / last_mass : none;
  const Lanes seen = last_mass + tables.half_count;
  const Lanes clipping = last_divergence * share + mass_log(seen + clipped, seen) - clipped;
  return divergence + (clipped > 0.0 ? clipping : none);
}

// General power: sum of (|x - Q(x)| / step)^p between the first boundary and the outermost level, by the fit.
Lanes fitted_cells(const Tables& tables, const SideTables& side, Lanes step, const Place& top, const Sums& sums) {
  const Lanes start = 0.5 * step;
  const Place place = locate_in(side, start);
  Lanes first, third, first_top, third_top;
  first_and_third_at(side, place, &first, &third);
  first_and_third_at(side, top, &first_top, &third_top);
  const Lanes mass = mass_at(side, place), second = second_at(side, place);
  // Moments about zero of the data beyond the first boundary.
  const Lanes moment_1 = first + start * mass;
  const Lanes moment_2 = 2.0 * second + start * (2.0 * first + start * mass);
  const Lanes moment_3 = 6.0 * third + start * (6.0 * second + start * (3.0 * first + start * mass));
  const Lanes one = moment_1 - 2.0 * (sums.first_boundaries - sums.first_levels) - first_top;
  const Lanes two = moment_2 - 2.0 * step * sums.first_boundaries - 2.0 * second_at(side, top);
  const Lanes three = moment_3 - 1.5 * step * step * sums.first_boundaries -
                      12.0 * (sums.third_boundaries - sums.third_levels) - 6.0 * third_top;
  const Lanes per_step = 1.0 / step;
  return tables.fit[0] * (mass - mass_at(side, top)) +
         per_step * (tables.fit[1] * one + per_step * (tables.fit[2] * two + per_step * (tables.fit[3] * three)));
}

// The error of one side with `levels` levels, from the sums over them.
template <SearchMetric metric>
inline Lanes finish(const Tables& tables, const SideTables& side, Lanes step, double levels, const Sums& sums,
                    const ZeroCell& zero_cell) {
  if constexpr (metric == SearchMetric::kKl) {
    return finish_divergence(tables, side, step, levels, sums, zero_cell);
  } else {
    const WideLanes fine = step <= 1.0;
    const Lanes top = levels * step;
    const Place place = locate_in(side, top);
    const Lanes inside = side.mass[0] - mass_at(side, place);
    const Lanes first_top = first_at(side, place);
    Lanes error;
    if constexpr (metric == SearchMetric::kMae) {
      const Lanes split = side.first[0] - 2.0 * sums.first_boundaries + 2.0 * sums.first_levels;
      error = fine ? 0.25 * step * inside + first_top : split;
    } else if constexpr (metric == SearchMetric::kMse) {
      const Lanes split = 2.0 * side.second[0] - 2.0 * step * sums.first_boundaries;
      error = fine ? step * step * (1.0 / 12.0) * inside + 2.0 * second_at(side, place) : split;
    } else if (levels == 0) {
      error = tail_at(side, Lanes{});
    } else {
      const Lanes fitted = fitted_cells(tables, side, step, place, sums);
      const Lanes around_zero = &side == &tables.positive ? zero_cell.positive_power : zero_cell.negative_power;
      const double uniform = ::pow(0.5, tables.power) / (tables.power + 1.0);
      const Lanes scale = zero_cell.step_power;
      const Lanes in_cells = fine ? uniform * scale * inside : around_zero + scale * greater(fitted, Lanes{});
      error = in_cells + tail_at(side, top);
    }
    return greater(error, Lanes{});
  }
}

// How many of `levels` boundaries lie inside the data for the finest step that is summed level by level.
int64_t useful_levels(const SideTables& side, Lanes step, int64_t levels) {
  double finest = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (step[lane] > 1.0 && (finest == 0 || step[lane] < finest)) finest = step[lane];
  }
  if (finest == 0) return 0;
  const double boundaries = side.end / finest + 0.5;
  return boundaries < static_cast<double>(levels) ? static_cast<int64_t>(boundaries) : levels;
}

// How many of the `useful` levels lie inside the data, up to (k + 3/2) step, for the widest step of the block, and less
// than kLanes bins apart from the first lane to the last. The margin is wider than a position's rounding.
int64_t inner_levels(const SideTables& side, Lanes step, int64_t useful) {
  constexpr double kMargin = 0x1p-20;
  const double widest = step[kLanes - 1], spread = widest - step[0];
  const double inside = side.end / widest;
  const double near = spread > 0 ? (kLanes - 1 - kMargin) / spread : inside;
  const double levels = (near < inside ? near : inside) - 2.0;
  return levels >= static_cast<double>(useful) ? useful : levels > 0 ? static_cast<int64_t>(levels) : 0;
}

template <SearchMetric metric>
ZeroCell make_zero_cell(const Tables& tables, Lanes step) {
  ZeroCell cell;
  if constexpr (metric == SearchMetric::kKl) {
    Lanes width{}, entropy{};
    for (const SideTables* side : {&tables.positive, &tables.negative}) {
      const Place place = locate_in(*side, 0.5 * step);
      cell.mass += greater(side->mass[0] - mass_at(*side, place), Lanes{});
      width += side->occupied[0] - linear_at(side->occupied, place);
      entropy += side->entropy[0] - linear_at(side->entropy, place);
    }
    const Lanes divergence = greater(entropy - mass_log(cell.mass, width), Lanes{});
    cell.divergence = step <= 1.0 ? Lanes{} : divergence;
  }
  if constexpr (metric == SearchMetric::kLp) {
    for (int lane = 0; lane < kLanes; ++lane) cell.step_power[lane] = ::pow(step[lane], tables.power);
    const Lanes start = 0.5 * step;
    const Lanes start_power = cell.step_power * start * (::pow(0.5, tables.power) / (tables.power + 1.0));
    cell.positive_power = inner_power_at(tables.positive, start, start_power);
    cell.negative_power = inner_power_at(tables.negative, start, start_power);
  }
  return cell;
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
