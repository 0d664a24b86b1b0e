// SPDX-License-Identifier: Apache-2.0
// Reads tensors into tallies.
//
// computes   every field of the tally, with one read of the tensor from memory.
// requires   values dense in memory, samples outermost; each sample is [outer, channels, inner].
// summation  Each sample on its own, in memory order, so that neither batching nor order matters: runs of 4096 values
//            (fewer at the end) are summed in float64 as kernels/statistics.h says, and the sums of runs added exactly.
//            Channels: where inner > 1, pieces of one channel inside those runs likewise; where inner = 1, each stretch
//            of 131072 values has `period` float64 lanes (the multiple of the channels at or above 64), value p of the
//            sample goes to lane p % period, and lanes are added exactly.
// NaN, inf   counted, and left out of everything else.
// threads    over stretches of 131072 values; results never depend on how many. Subnormals count whatever the mode.
// memory     per thread: 130 KiB and, for channels, 200 bytes each.
#pragma once

#include <cstdint>
#include <vector>

#include "statistics/reader.h"

namespace detent {

// One tally per thread used, to be merged in any order. `exponent`: that of the histogram they will be merged into;
// starting there saves widening.
std::vector<Tally> collect(const float* x, const SampleLayout& layout, bool per_channel, int exponent);

// Least and greatest value, exact sum and number of NaN and infinities of each channel; the same sums as collect's.
std::vector<ChannelTally> collect_channels(const float* x, const SampleLayout& layout);

// Sum of the weights of the values in each bin [(first_bin + i) w, (first_bin + i + 1) w), w = 2^exponent: float64, in
// memory order within eight equal strips, strips added in order. Throws std::invalid_argument if a value is NaN or
// outside the bins, or a weight is negative or not finite.
void collect_weighted(const float* x, const float* weights, int64_t n, int exponent, int64_t first_bin, int64_t n_bins,
                      double* bins);

}  // namespace detent
