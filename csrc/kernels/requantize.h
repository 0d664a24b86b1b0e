// SPDX-License-Identifier: Apache-2.0
// From accumulators to codes: the rules by which integer runtimes multiply with a real factor and round.
//
// Computes   y = clamp(R(acc) + zero_point, lowest, highest), R by rule, with q = multiplier and e = shift:
//              kFloat           round_half_even(float32(acc) * factor)
//              kDoubleRounding  h = (acc * 2^max(e, 0) * q + 2^30) >> 31; h / 2^max(-e, 0), half away from zero
//              kRuy             the same h; h / 2^max(-e, 0), half upward
//              kSingleRounding  acc * q / 2^(31 - e), half away from zero
//              kInt16x8         q' = min((q + 2^15) >> 16, 2^15 - 1); acc * q' / 2^(15 - e), half upward
//            The real factor is about q * 2^(e - 31).
// Requires   acc int32, or int64 below 2^47 in magnitude for kFloat and kInt16x8; factors positive and finite;
//            0 <= q; -31 <= e <= 30 (14 for kInt16x8); acc * 2^max(e, 0) within 32 bits, else it wraps around;
//            lowest <= highest, and both less the zero point within 2^22 for kFloat.
// Rounding   as above; the conversion to float32 is to nearest even.
// Order      none: each element by itself, integers are exact.
// Threads    over elements; no memory is allocated.
#pragma once

#include <cstdint>

#include "support/isa.h"

namespace detent {

enum class RequantizeRule : int32_t { kFloat, kDoubleRounding, kRuy, kSingleRounding, kInt16x8 };
enum class CodeType : int32_t { kUint8, kInt8, kUint16, kInt16, kInt32 };

// Factors of some channels: one each, or one for all.
struct Requantization {
  RequantizeRule rule;
  const float* factor;        // kFloat
  const int32_t* multiplier;  // the other rules
  const int32_t* shift;
  bool per_channel;
  int32_t zero_point, lowest, highest;

  // From the channel `first` on.
  Requantization from(int64_t first) const {
    if (!per_channel) return *this;
    Requantization rest = *this;
    if (factor != nullptr) rest.factor += first;
    if (multiplier != nullptr) rest.multiplier += first;
    if (shift != nullptr) rest.shift += first;
    return rest;
  }
};

struct RequantizeArgs {
  const int32_t* narrow;  // the accumulators, one of the two
  const int64_t* wide;
  int64_t outer, channels, inner;
  Requantization how;
  void* out;
  CodeType type;
};

struct RequantizeTable {
  void (*run)(const RequantizeArgs& args);
};

DETENT_KERNEL_TABLE(RequantizeTable, requantize_table);

}  // namespace detent
