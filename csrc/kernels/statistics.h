// SPDX-License-Identifier: Apache-2.0
// The inner loops of the statistics. statistics/collect.h drives them; statistics/tally.h holds what they gather.
//
// computes   accumulate: least and greatest value, sum, sum of squares and histogram of a run, reading it once.
//            flush: empties the 16-bit tables of accumulate into 64-bit counts.
//            sum_run: least and greatest value and sum of a run. sum_rows: the same for every lane of a repeating row.
//            weigh: adds weights into the bins of values.
// bins       bin i holds [i w, (i + 1) w) with w = 2^exponent, i in [-4096, 4096): scaling by a power of two is exact,
//            so the bin of a value does not depend on how it was computed. Exact zeros go to slots of their own (they
//            are counted apart, and a run of zeros does not make one counter wait for itself).
// NaN, inf   accumulate stops before the 16 values that hold one that is not below `limit` in magnitude (NaN never is).
//            Elsewhere least and greatest value skip NaN, and a sum shows that there was one by not being finite.
// summation  float64, 16 lanes: lane l adds the elements l, l + 16, ... in order; lanes are added pairwise with
// distance
//            8, 4, 2, 1. The square of a float32 is exact in float64.
// threads    none inside; no allocation.
#pragma once

#include <cstdint>

#include "support/isa.h"

namespace detent {

constexpr int kHistogramHalf = 4096;  // bins on each side of zero
constexpr int kHistogramBins = 2 * kHistogramHalf;
constexpr int kHistogramBits = 12;  // the range is 2^12 bins on each side
constexpr int kSumLanes = 16;

// Four tables take turns, so that equal neighbours do not wait for each other's store; each has 16 slots for zeros, and
// its length keeps equal bins of the four tables in different cache sets.
constexpr int kTables = 4;
constexpr int kZeroSlots = 16;
constexpr int kTableStride = kHistogramBins + 64;
constexpr int64_t kTableCapacity = 65535;

struct alignas(64) Lanes {
  double sum[kSumLanes];
  double sum_of_squares[kSumLanes];
  float minimum[kSumLanes];
  float maximum[kSumLanes];
};

// How to find the bin of x. Plain: floor(x * scale), exact for scale in [1, 2^126]. Otherwise the product may underflow
// or the scale overflow, and bins are found by comparing y = x * prescale with multiples of `width` (= w * prescale).
struct BinScale {
  float limit;  // magnitudes from here on have no bin
  float scale;
  bool plain;
  float prescale;
  float width;
};

struct RunSummary {
  double sum;
  float minimum;
  float maximum;
};

struct StatisticsTable {
  // Returns how many elements were taken, a multiple of 16 unless all n were. `tables`: kTables * kTableStride
  // counters; each grows by at most (n + 3) / 4, and the caller flushes in time.
  int64_t (*accumulate)(const float* x, int64_t n, const BinScale& scale, Lanes& lanes, uint16_t* tables);

  // Adds the tables to `counts` [kHistogramBins], returns the zeros, and clears the tables.
  int64_t (*flush)(uint16_t* tables, int64_t* counts);

  RunSummary (*sum_run)(const float* x, int64_t n);

  // Element i belongs to lane (phase + i) % period of the three arrays, which hold `period` entries.
  void (*sum_rows)(const float* x, int64_t n, int64_t phase, int64_t period, double* sum, float* minimum,
                   float* maximum);

  // bins[floor(x / 2^exponent) - first_bin] += weight, in order. Returns the elements that have no bin or whose weight
  // is negative or not finite; those are left out.
  int64_t (*weigh)(const float* x, const float* weights, int64_t n, int exponent, int64_t first_bin, int64_t n_bins,
                   double* bins);
};

DETENT_KERNEL_TABLE(StatisticsTable, statistics_table);

}  // namespace detent
