// SPDX-License-Identifier: Apache-2.0
// Learned rounding: each weight between the grid values below and above it, as a number v of its own says (AdaRound,
// Nagel and others, arXiv:2004.10568, equations 21 to 24).
//
// Computes   h(v) = clamp(1.2 sigmoid(v) - 0.1, 0, 1);
//            values: clamp(base + h(v), lower, upper) * scale;
//            gradients: of loss + weight * sum of 1 - |2 h(v) - 1|^beta with respect to v, from that of the loss with
//            respect to the values, and the second summand;
//            step: the same, and a step of Adam (Kingma and Ba, arXiv:1412.6980) on v with that gradient, in place.
// Requires   arrays dense [rows, columns], in C order, that do not overlap; base whole numbers, steps times which are
//            the weights rounded down; scale, lower and upper: [rows], or one for all with grid_stride 0.
// Rounding   float32; the regularizer is summed in float64. exp and log are those of kernels/float_functions.h. A clamp
//            passes gradients where its argument is inside or at an end.
// NaN        propagates, from v and the gradient to what is computed of them.
// Order      a row is cut into slices of 4096 elements; element i of a slice is added to lane i % 16, lanes are added
// by
//            halving, slices and rows in order: the same bits on every instruction set and number of threads.
// Threads    slices of rows; no memory is allocated.
#pragma once

#include <cstdint>

#include "support/isa.h"

namespace detent {

struct SoftView {
  const float *scale, *lower, *upper;
  int64_t grid_stride;  // 1, or 0 for all rows alike
  int64_t rows, columns;
  const float* base;
};

struct SoftLoss {
  const float* gradients;  // of the loss, with respect to the values
  float beta, weight;      // with weight 0, the regularizer is not computed
};

struct AdamStep {
  float *first, *second;  // moments of the gradients so far
  float first_rate, second_decay, second_rate;
  float step;          // learning rate / correction of the first moment
  float inverse_root;  // 1 / square root of the correction of the second
  float epsilon;
};

struct SoftRoundingTable {
  static constexpr int64_t kSlice = 4096;
  static constexpr int64_t slices(int64_t columns) { return (columns + kSlice - 1) / kSlice; }

  void (*values)(const SoftView& view, const float* v, float* out);
  // partial: rows * slices(columns) doubles of scratch. These return weight times the regularizer.
  double (*gradients)(const SoftView& view, const SoftLoss& loss, const float* v, double* partial, float* out);
  double (*step)(const SoftView& view, const SoftLoss& loss, const AdamStep& adam, double* partial, float* v);
};

DETENT_KERNEL_TABLE(SoftRoundingTable, soft_rounding_table);

}  // namespace detent
