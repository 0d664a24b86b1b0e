// SPDX-License-Identifier: Apache-2.0
// Quantization error of a tensor, without materializing the quantized tensor.
//
// Computes   for each channel, sum of weight * |fake_quantize(x) - x|^p over its elements, in float64.
// Requires   x (and weights, if any) dense [outer, channels, inner]; scale, inverse, lower, upper: [channels], as in a
//            GridView with one entry per channel; p > 0. partial: plan.slices() * channels doubles of scratch.
// Rounding   the quantized value is the float32 of support/rounding.h; the difference, power and product are float64.
// NaN        a NaN or infinite x (or weight) makes its channel's sum NaN or infinite.
// Order      fixed by the shape alone. Rows (outer) and the elements of a row (inner) are cut into slices by ErrorPlan.
//            Within a slice, element i of a row goes to lane i % 16; rows follow each other in the same lanes; lanes
//            are added by halving (0 + 8, ..., then 0 + 4, ...). With inner = 1 a slice adds its rows one after the
//            other. Slices are added in order, outer ones first. The same bits on every instruction set and thread
//            count; other powers than 1 and 2 use the C library's pow.
// Threads    over slices and channels; no memory is allocated.
#pragma once

#include <cstdint>

#include "support/isa.h"

namespace detent {

// How sums are cut: enough slices for many threads, few enough for their partial sums to be small.
struct ErrorPlan {
  static constexpr int64_t kLanes = 16;
  static constexpr int64_t kMostSlices = 64;
  static constexpr int64_t kMostPartials = 65536;
  static constexpr int64_t kLeastRun = 4096;

  int64_t outer_slices, outer_rows;  // rows per slice, the last one may have fewer
  int64_t inner_slices, inner_run;   // elements of a row per slice, a multiple of kLanes

  int64_t slices() const { return outer_slices * inner_slices; }

  ErrorPlan(int64_t outer, int64_t channels, int64_t inner) {
    int64_t most = channels > 0 ? kMostPartials / channels : kMostSlices;
    most = most < 1 ? 1 : most > kMostSlices ? kMostSlices : most;
    outer_slices = outer < most ? (outer < 1 ? 1 : outer) : most;
    outer_rows = (outer + outer_slices - 1) / outer_slices;
    const int64_t runs = inner / kLeastRun;
    const int64_t left = most / outer_slices;
    inner_slices = runs < 1 ? 1 : runs < left ? runs : left;
    const int64_t run = (inner + inner_slices - 1) / inner_slices;
    inner_run = (run + kLanes - 1) / kLanes * kLanes;
  }
};

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
  void (*tensor_error)(const ErrorArgs& args, const ErrorPlan& plan, double* partial, double* sums);
};

DETENT_KERNEL_TABLE(ErrorTable, error_table);

}  // namespace detent
