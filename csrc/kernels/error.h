// SPDX-License-Identifier: Apache-2.0
// Quantization error of a tensor, without materializing the quantized tensor.
//
// Computes   for each channel, sum of weight * |fake_quantize(x) - x|^p over its elements, in float64.
// Requires   x (and weights, if any) dense [outer, channels, inner]; scale, inverse, lower, upper: [channels], as in a
//            GridView with one entry per channel; p > 0. partial: plan.slices() * channels doubles of scratch.
// Rounding   the quantized value is the float32 of support/rounding.h; the difference, power and product are float64.
// NaN        a NaN or infinite x (or weight) makes its channel's sum NaN or infinite.
// Order      that of kernels/slice_plan.h; other powers than 1 and 2 use the C library's pow.
// Threads    over slices and channels; no memory is allocated.
#pragma once

#include <cstdint>

#include "kernels/slice_plan.h"
#include "support/isa.h"

namespace detent {

struct ErrorArgs {
  const float* x;
  const float* weights;  // nullptr: all 1
  int64_t outer, channels, inner;
  const float* scale;
  const float* inverse;  // exact reciprocals where exact_inverse
  const float* lower;
  const float* upper;
  bool exact_inverse;
  double p;
};

struct ErrorTable {
  // sums: [channels].
  void (*tensor_error)(const ErrorArgs& args, const SlicePlan& plan, double* partial, double* sums);
};

DETENT_KERNEL_TABLE(ErrorTable, error_table);

}  // namespace detent
