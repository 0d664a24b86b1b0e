// SPDX-License-Identifier: Apache-2.0
// What quantizing a tensor does to a loss, to first order, sample by sample.
//
// Computes   perturbations: for each sample and each of several grids, the sum of g * (fake_quantize(x) - x);
//            dots: for each sample, the sum of g * x.
// Requires   x and g dense [samples, size], g laid out as x; grids as for fake_quantize, one step for the tensor.
// Rounding   the quantized value is the float32 of support/rounding.h, the difference float32; products and sums are
//            float64.
// NaN        a NaN or infinite element makes its sample's sums NaN or infinite.
// Order      that of kernels/slice_plan.h, with samples as channels.
// Threads    over slices and samples; no memory is allocated.
#pragma once

#include <cstdint>

#include "kernels/slice_plan.h"
#include "support/isa.h"

namespace detent {

struct PerturbationGrid {
  float scale, lower, upper;  // lower and upper: codes without the zero point
};

struct PerturbationArgs {
  const float* x;
  const float* g;
  int64_t samples, size;
  const PerturbationGrid* grids;
  int64_t count;
};

struct PerturbationTable {
  static constexpr int64_t kMostSums = 4;  // grids of one read
  // partial: kMostSums * plan.slices() * samples doubles of scratch; sums: [count, samples].
  void (*perturbations)(const PerturbationArgs& args, const SlicePlan& plan, double* partial, double* sums);
  // sums: [samples]; no grids.
  void (*dots)(const PerturbationArgs& args, const SlicePlan& plan, double* partial, double* sums);
};

DETENT_KERNEL_TABLE(PerturbationTable, perturbation_table);

}  // namespace detent
