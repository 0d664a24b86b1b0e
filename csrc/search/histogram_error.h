// SPDX-License-Identifier: Apache-2.0
// The error of candidate grids on the two sides of a histogram: what each level adds, and what the sums over the levels
// come to; part of histogram_search.cpp (see histogram_search.h for the model). The candidates are the lanes.
#pragma once

#include <cmath>

#include "search/histogram_search.h"
#include "search/histogram_tables.h"
#include "search/lanes.h"

namespace detent::DETENT_ISA {

struct Tables {
  SideTables positive;
  SideTables negative;
  double zeros = 0;       // Kullback-Leibler
  double half_count = 0;  // Kullback-Leibler
  double power = 2;
  double fit[4] = {0, 0, 0, 0};  // general power: (t / r)^p ~ sum_d fit[d] (t / r)^d for 0 <= t <= r / 2
};

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

inline Lanes finish_divergence(const Tables& tables, const SideTables& side, Lanes step, double levels,
                               const Sums& sums, const ZeroCell& zero_cell) {
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
inline Lanes fitted_cells(const Tables& tables, const SideTables& side, Lanes step, const Place& top,
                          const Sums& sums) {
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
inline int64_t useful_levels(const SideTables& side, Lanes step, int64_t levels) {
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
inline int64_t inner_levels(const SideTables& side, Lanes step, int64_t useful) {
  constexpr double kMargin = 0x1p-20;
  const double widest = step[kLanes - 1], spread = widest - step[0];
  const double inside = side.end / widest;
  const double near = spread > 0 ? (kLanes - 1 - kMargin) / spread : inside;
  const double levels = (near < inside ? near : inside) - 2.0;
  return levels >= static_cast<double>(useful) ? useful : levels > 0 ? static_cast<int64_t>(levels) : 0;
}

template <SearchMetric metric>
inline ZeroCell make_zero_cell(const Tables& tables, Lanes step) {
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

}  // namespace detent::DETENT_ISA
