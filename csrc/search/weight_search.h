// SPDX-License-Identifier: Apache-2.0
// Threshold search on raw weights, one grid per channel.
//
// Computes: for each channel and each width, the grid of a kind that has the least mean error
//   mse   sum (Q(x) - x)^2 / n           hmse  sum h (Q(x) - x)^2 / n
//   mae   sum |Q(x) - x| / n             lp    sum |Q(x) - x|^p / n
// or, for noclipping, the tightest grid that clips nothing (its mse is reported).
//   power_of_two  threshold 2^k: every k from above the largest magnitude down to where the error cannot be least
//   symmetric     real threshold. mse and hmse with `exact` and at most 8 bits: the global optimum over all real
//                 thresholds (exact_scale.h), rounded to the nearest float32. Otherwise a dense grid, refined.
//   uniform       (lower, upper) around zero: dense in both, refined
// Thresholds are at least min_threshold, at most 2^127. A channel of zeros gets min_threshold and no error.
//
// Requires: finite values, finite weights h >= 0, widths 2..16, p > 0. Codes are signed.
// Rounding and ties: candidates are ranked in float32 and float64 on the normalized channel; the error reported is by
//   the definition in support/rounding.h, summed in float64. Of equally good powers of two the smallest is taken; of
//   equally good real thresholds one, always the same.
// NaN and infinity: refused, the channel is named.
// Summation order: 16 lanes, fixed blocks (scale_sums.h): the same bits on every instruction set and thread count, and,
//   because channels are gathered in logical order, for every memory layout.
// Threads and memory: channels are the unit of work; scratch of about 50 bytes per element of one channel and thread.
#pragma once

#include <cstdint>

#include "search/weight_view.h"
#include "support/isa.h"

namespace detent {

enum class WeightMetric { kNoClipping, kMse, kMae, kLp, kHmse };
enum class WeightGrid { kPowerOfTwo, kSymmetric, kUniform };

struct WeightSearchSpec {
  WeightMetric metric = WeightMetric::kMse;
  WeightGrid grid = WeightGrid::kSymmetric;
  double p = 2.0;
  bool narrow_range = false;
  bool exact = true;
  double min_threshold = 0x1p-16;
  const int* bits = nullptr;
  int widths = 0;
};

// Results of row c at width w are at [w * channels + c]: the threshold, or the lower and the upper limit, and the
// error.
struct WeightSearchResult {
  float* first = nullptr;
  float* second = nullptr;
  double* error = nullptr;
};

// Throws std::invalid_argument for NaN, infinity or a negative importance, naming the first such channel, and the group
// where there are several per channel.
void search_weights(const WeightView& values, const WeightView* importance, const WeightSearchSpec& spec,
                    int64_t groups, const WeightSearchResult& result);

// Below: what the instruction sets implement.
enum class ChannelStatus { kFine, kNotFinite, kBadImportance };

struct ChannelJob {
  const float* x;  // size values
  const float* h;  // size importance weights, or null
  int64_t size;
  void* scratch;  // 64-byte aligned, scratch_bytes(size)
  float* first;   // one entry per width, `step` apart
  float* second;
  double* error;
  int64_t step;
};

struct WeightSearchTable {
  int64_t (*scratch_bytes)(int64_t size);
  ChannelStatus (*search)(const WeightSearchSpec& spec, const ChannelJob& job);
};
DETENT_KERNEL_TABLE(WeightSearchTable, weight_search_table);

}  // namespace detent
