// SPDX-License-Identifier: Apache-2.0
// Codebook search on raw weights: 2^bits levels and a threshold per channel.
//
// Computes: whole levels t in -128..127, 0 among them, and thresholds T[c], so that sum h (x - nearest t x T[c] /
// 128)^2
//   is small. With one codebook for all channels, two steps take turns: the best levels for the thresholds (exact, see
//   codebook_levels.h) and the best threshold of each channel for the levels (a dense grid, then the closed form
//   sum(h t x) / sum(h t^2) until values stay with their levels; or powers of two). Neither raises the error; they stop
//   where both agree, or gain less than a millionth. The best of several starts is returned, so the result is never
//   worse than the best levels for the thresholds of any start. With a codebook per channel, each channel alone.
//   Thresholds stay within [min_threshold, 2^127], or as they are given.
//
// Requires: finite values, finite h >= 0 (checked), starts positive and finite, powers of two if such are asked for;
//   2 <= bits <= 7.
// Rounding and ties: candidates are ranked in float64; the error reported is by the definition in kernels/lut.h. Of
//   equally good choices one, always the same.
// NaN and infinity: refused, the channel is named.
// Summation order: channels in order, the values of each in ascending order (of value, then importance). Compiled once
//   for all instruction sets. The same bits on every thread count, and for every memory layout.
// Threads and memory: channels are the unit of work; about 32 bytes per element of the array.
#pragma once

#include <cstdint>

#include "search/weight_view.h"

namespace detent {

struct CodebookSpec {
  int bits = 4;
  bool power_of_two = false;  // thresholds are powers of two
  bool shared = true;         // one codebook for all channels, else one for each
  double min_threshold = 0x1p-16;
  const float* starts = nullptr;  // [n_starts, channels]; the first clips nothing
  int n_starts = 1;
  bool keep_thresholds = false;  // the thresholds of the start stay: only the levels are searched
};

struct CodebookResult {
  float* threshold;  // [channels]
  float* levels;     // [1 or channels, 2^bits]
  double* error;     // [channels], mean over the elements of h (Q(x) - x)^2
};

// Throws std::invalid_argument for NaN, infinity or a negative importance, naming the first such channel.
void search_codebook(const WeightView& values, const WeightView* importance, const CodebookSpec& spec,
                     const CodebookResult& result);

}  // namespace detent
