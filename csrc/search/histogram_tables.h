// SPDX-License-Identifier: Apache-2.0
// Suffix sums of a histogram side and their look-ups; part of histogram_search.cpp (see histogram_search.h for the
// model).
//
// At edge i, over all data x >= i:  mass = E[1],  first = E[x - i],  second = E[(x - i)^2] / 2,  third = E[(x - i)^3]
// / 6. Each is the integral of the one before, so inside a bin of density c they are Taylor polynomials in the fraction
// f.
#pragma once

#include <cmath>

#include "search/histogram_search.h"
#include "search/lanes.h"

namespace detent::DETENT_ISA {

constexpr int64_t kTablePadding = 16;     // readable zeros beyond the last edge: widest vector, and one edge more
constexpr int64_t kTailSpacing = 4;       // bins between the nodes of the clipped-power table
constexpr double kThinnestBin = 0x1p-20;  // an outermost bin without width (all its data at the extreme value)

struct SideTables {
  double end = 0;  // look-ups clamp here; everything beyond is zero
  int64_t bins = 0;
  double* mass = nullptr;
  double* half = nullptr;  // half the density inside bin i
  double* first = nullptr;
  double* second = nullptr;
  double* third = nullptr;
  // General powers only: E[(x - b)+^p] and its derivative at every kTailSpacing-th edge; two kernels of scratch.
  double* tail = nullptr;
  double* tail_slope = nullptr;
  double* inner_power = nullptr;  // E[x^p] over x < i
  double* edge_power = nullptr;   // i^(p + 1) / (p + 1)
  double end_power = 0;           // the same of the end
  double* value_kernel = nullptr;
  double* slope_kernel = nullptr;
  // Kullback-Leibler only: above edge i, the number of occupied bins and the sum of c log c.
  double* occupied = nullptr;
  double* entropy = nullptr;
};

// Lays the tables of one side out in `workspace`; with a null workspace only counts. Returns the end.
static inline int64_t place_tables(const HistogramProblem& problem, const HistogramSide& side, double* workspace,
                                   int64_t used, SideTables* tables) {
  const int64_t edges = side.bins + 1 + kTablePadding;
  const auto take = [&](double** table, int64_t size) {
    if (workspace) *table = workspace + used;
    used += size;
  };
  tables->bins = side.bins;
  take(&tables->mass, edges);
  take(&tables->half, edges);
  if (problem.metric == SearchMetric::kKl) {
    take(&tables->occupied, edges);
    take(&tables->entropy, edges);
    tables->end = static_cast<double>(side.bins);
    return used;
  }
  take(&tables->first, edges);
  take(&tables->second, edges);
  if (problem.metric == SearchMetric::kLp) {
    take(&tables->third, edges);
    take(&tables->tail, edges / kTailSpacing + 2 + kTablePadding);
    take(&tables->tail_slope, edges / kTailSpacing + 2 + kTablePadding);
    take(&tables->inner_power, edges);
    take(&tables->edge_power, edges);
    take(&tables->value_kernel, edges);
    take(&tables->slope_kernel, edges);
  }
  const double inner = static_cast<double>(side.bins - 1);
  tables->end = side.bins == 0 ? 0.0 : (side.end - inner > kThinnestBin ? side.end : inner + kThinnestBin);
  tables->end_power = ::pow(tables->end, problem.power + 1.0) / (problem.power + 1.0);
  return used;
}

static inline void build_moments(const HistogramSide& side, const SideTables& tables) {
  const int64_t n = side.bins;
  for (int64_t i = n; i < n + 1 + kTablePadding; ++i) {
    tables.mass[i] = tables.half[i] = tables.first[i] = tables.second[i] = 0;
    if (tables.third) tables.third[i] = 0;
  }
  for (int64_t i = n - 1; i >= 0; --i) {
    const double c = side.counts[i];
    const double width = i == n - 1 ? tables.end - static_cast<double>(n - 1) : 1.0;
    const double mass = tables.mass[i + 1], first = tables.first[i + 1], second = tables.second[i + 1];
    // What lies further out moves by one bin, which only bins of full width have beyond them.
    tables.mass[i] = mass + c;
    tables.half[i] = 0.5 * (c / width);
    tables.first[i] = first + mass + 0.5 * c * width;
    tables.second[i] = second + first + 0.5 * mass + c * width * width / 6.0;
    if (tables.third) {
      tables.third[i] = tables.third[i + 1] + second + 0.5 * first + mass / 6.0 + c * width * width * width / 24.0;
    }
  }
}

// sum of a[i] b[i] in 32 partial sums whatever the vector width: several vectors at once hide the latency of addition.
static inline double dot(const double* a, const double* b, int64_t size) {
  constexpr int kParts = 32, kVectors = kParts / kLanes;
  Lanes sums[kVectors] = {};
  int64_t i = 0;
  for (; i + kParts <= size; i += kParts) {
    for (int v = 0; v < kVectors; ++v) sums[v] += load(a + i + v * kLanes) * load(b + i + v * kLanes);
  }
  double part[kParts];
  for (int v = 0; v < kVectors; ++v) store(part + v * kLanes, sums[v]);
  for (int l = 0; i < size; ++i, ++l) part[l] += a[i] * b[i];
  for (int half = kParts / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) part[l] += part[l + half];
  }
  return part[0];
}

// The power sums: the clipped one and its derivative at the nodes, and the one around zero. Nodes are bin edges, so the
// integrals over bins depend on the distance in whole bins only: one kernel, correlated with the counts. The outermost
// bin is not whole.
static inline void build_tail(const HistogramSide& side, const SideTables& tables, double power) {
  const int64_t n = side.bins;
  const int64_t nodes = (n + 1 + kTablePadding) / kTailSpacing + 2 + kTablePadding;
  for (int64_t j = 0; j < nodes; ++j) tables.tail[j] = tables.tail_slope[j] = 0;
  for (int64_t i = 0; i < n + 1 + kTablePadding; ++i) tables.inner_power[i] = tables.edge_power[i] = 0;
  if (n == 0) return;
  double low = 0;
  for (int64_t d = 0; d < n; ++d) {
    const double high = ::pow(static_cast<double>(d + 1), power);
    tables.edge_power[d + 1] = high * static_cast<double>(d + 1) / (power + 1.0);
    tables.value_kernel[d] = tables.edge_power[d + 1] - tables.edge_power[d];
    tables.slope_kernel[d] = low - high;
    tables.inner_power[d + 1] = tables.inner_power[d] + side.counts[d] * tables.value_kernel[d];
    low = high;
  }
  const double c = side.counts[n - 1];
  const double width = tables.end - static_cast<double>(n - 1);
  for (int64_t j = 0; j * kTailSpacing < n; ++j) {
    const int64_t node = j * kTailSpacing, whole = n - 1 - node;
    const double near = static_cast<double>(whole), far = near + width;
    const double near_power = whole > 0 ? tables.edge_power[whole] * (power + 1.0) / near : 0.0;
    const double far_power = ::pow(far, power);
    tables.tail[j] = dot(side.counts + node, tables.value_kernel, whole) +
                     c * (far_power * far / (power + 1.0) - tables.edge_power[whole]) / width;
    tables.tail_slope[j] = dot(side.counts + node, tables.slope_kernel, whole) - c * (far_power - near_power) / width;
  }
}

static inline void build_entropy(const HistogramSide& side, const SideTables& tables) {
  const int64_t n = side.bins;
  for (int64_t i = n; i < n + 1 + kTablePadding; ++i) {
    tables.mass[i] = tables.half[i] = tables.occupied[i] = tables.entropy[i] = 0;
  }
  for (int64_t i = n - 1; i >= 0; --i) {
    const double c = side.counts[i];
    tables.mass[i] = tables.mass[i + 1] + c;
    tables.half[i] = 0.5 * c;
    tables.occupied[i] = tables.occupied[i + 1] + (c > 0 ? 1.0 : 0.0);
    tables.entropy[i] = tables.entropy[i + 1] + mass_log(broadcast(c), broadcast(1.0))[0];
  }
}

static inline Place locate_in(const SideTables& side, Lanes position) {
  return locate(lesser(position, broadcast(side.end)));
}

static inline Lanes mass_at(const SideTables& side, const Place& place) {
  return look_up(side.mass, place) - place.fraction * (2.0 * look_up(side.half, place));
}

static inline Lanes first_at(const SideTables& side, const Place& place) {
  const Lanes f = place.fraction;
  return look_up(side.first, place) - f * (look_up(side.mass, place) - f * look_up(side.half, place));
}

static inline Lanes second_at(const SideTables& side, const Place& place) {
  const Lanes f = place.fraction;
  const Lanes curve = 0.5 * look_up(side.mass, place) - f * (look_up(side.half, place) * (1.0 / 3.0));
  return look_up(side.second, place) - f * (look_up(side.first, place) - f * curve);
}

// First and third together: they share their look-ups.
static inline void first_and_third_at(const SideTables& side, const Place& place, Lanes* first, Lanes* third) {
  const Lanes f = place.fraction;
  const Lanes mass = look_up(side.mass, place), half = look_up(side.half, place), one = look_up(side.first, place);
  *first = one - f * (mass - f * half);
  const Lanes curve = 0.5 * one - f * (mass * (1.0 / 6.0) - f * (half * (1.0 / 12.0)));
  *third = look_up(side.third, place) - f * (look_up(side.second, place) - f * curve);
}

// A table that is linear inside a bin.
static inline Lanes linear_at(const double* table, const Place& place) {
  const Lanes low = look_up(table, place);
  return low + place.fraction * (look_up(table + 1, place) - low);
}

// E[x^p] over 0 <= x < position, given position^(p + 1) / (p + 1).
static inline Lanes inner_power_at(const SideTables& side, Lanes position, Lanes position_power) {
  const Place place = locate_in(side, position);
  const Lanes reached = position < side.end ? position_power : broadcast(side.end_power);
  return look_up(side.inner_power, place) +
         2.0 * look_up(side.half, place) * (reached - look_up(side.edge_power, place));
}

static inline Lanes tail_at(const SideTables& side, Lanes position) {
  const Place node = locate(lesser(position, broadcast(side.end)) * (1.0 / kTailSpacing));
  const Lanes f = node.fraction, g = 1.0 - f;
  const Lanes value =
      look_up(side.tail, node) * (g * g * (1.0 + 2.0 * f)) + look_up(side.tail + 1, node) * (f * f * (1.0 + 2.0 * g));
  const Lanes slope = look_up(side.tail_slope, node) * (f * g * g) - look_up(side.tail_slope + 1, node) * (f * f * g);
  const Lanes curve = greater(value + static_cast<double>(kTailSpacing) * slope, broadcast(0.0));
  return position < side.end ? curve : broadcast(0.0);
}

}  // namespace detent::DETENT_ISA
