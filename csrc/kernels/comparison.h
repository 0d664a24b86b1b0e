// SPDX-License-Identifier: Apache-2.0
// How far two tensors are apart, channel by channel, as far as what reads them can tell.
//
// Computes   differences: per channel, the sum of a - b and the number of elements, over the elements that are not cut
//            off alike: where max(a, b) > lower and min(a, b) < upper;
//            distances: per channel, the sum of (clamp(a) - clamp(b))^2, and that of (clamp(a) - clamp(b + shift))^2,
//            with clamp(x) = min(max(x, lower), upper).
// Requires   a and b dense [outer, channels, inner]; lower, upper (and shift): [channels]. partial: 2 * plan.slices() *
//            channels doubles of scratch.
// Rounding   differences and b + shift are float32, squares and sums float64.
// NaN        a NaN or infinite element makes its channel's sum of differences NaN or infinite, seen or not.
// Order      that of kernels/slice_plan.h.
// Threads    over slices and channels; no memory is allocated.
#pragma once

#include <cstdint>

#include "kernels/slice_plan.h"
#include "support/isa.h"

namespace detent {

struct ComparisonArgs {
  const float* a;
  const float* b;
  int64_t outer, channels, inner;
  const float* lower;
  const float* upper;
  const float* shift;  // of distances only
};

struct ComparisonTable {
  // sums: [2, channels]; of differences: the sums, then the numbers of elements; of distances: without the shift, with.
  void (*differences)(const ComparisonArgs& args, const SlicePlan& plan, double* partial, double* sums);
  void (*distances)(const ComparisonArgs& args, const SlicePlan& plan, double* partial, double* sums);
};

DETENT_KERNEL_TABLE(ComparisonTable, comparison_table);

}  // namespace detent
