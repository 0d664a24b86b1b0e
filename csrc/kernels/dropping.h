// SPDX-License-Identifier: Apache-2.0
// Quantization with random entries left as they are, for learning, and its gradients.
//
// Computes   round: out = x where drawn < below, else fake_quantize(x);
//            gradients: out = g where drawn < below or x is in range, else 0; and the sum over the other entries of
//            g * slope, the gradient with respect to the step: slope = code - x / scale in range, code beyond, with
//            codes counted from the zero point (Esser et al. 2020, arXiv:1902.08153, equation 3).
// Requires   n elements, dense; drawn null, or n bytes laid out as x; a grid as for fake_quantize with one step. For
//            round, out is x itself or does not overlap it; for gradients, out is g itself or overlaps neither.
// Rounding   values and slopes are float32; products and sums are float64.
// NaN        of x: value NaN, not in range, and the sum NaN where it is not left as it is. NaN of g: as in arithmetic.
// Order      that of kernels/slice_plan.h, all elements in one channel.
// Threads    over blocks and slices; no memory is allocated.
#pragma once

#include <cstdint>

#include "kernels/slice_plan.h"
#include "support/isa.h"

namespace detent {

struct DroppingArgs {
  const float* x;
  const float* g;  // not for round
  const uint8_t* drawn;
  int32_t below;
  float scale, lower, upper;  // lower and upper: codes without the zero point
  float* out;
  int64_t n;
};

struct DroppingTable {
  void (*round)(const DroppingArgs& args);
  // partial: plan.slices() doubles of scratch, for SlicePlan(1, 1, n).
  double (*gradients)(const DroppingArgs& args, const SlicePlan& plan, double* partial);
};

DETENT_KERNEL_TABLE(DroppingTable, dropping_table);

}  // namespace detent
