// SPDX-License-Identifier: Apache-2.0
// Codes improved one at a time until none can be.
//
// Computes   for each row w with values q, the loss (w - q) H (w - q)^T - 2 l (w - q)^T: columns in order, sweep after
//            sweep, each takes the grid value nearest to q_c + g_c / H_cc, with g = (w - q) H - l, if the loss falls by
//            that; until a sweep changes nothing, or `sweeps` have passed.
// Requires   weights, codes and linear (null: 0) [rows, columns], hessian [columns, columns], all in C order; hessian
//            symmetric with a positive diagonal; it may be singular. Grids made by ColumnGrids, codes on them, finite
//            numbers.
// Rounding   g and the loss are float64. The optimum of a column is rounded to float32, then to its grid, to nearest. A
//            change d is made if d (2 g_c - d H_cc) > 2^-20 d^2 H_cc: rounding can then not pretend a gain, so no
//            sequence of changes leads back to where it began.
// NaN        what overflows changes nothing.
// Order      g begins as -l and gains (w_k - q_k) H_kc, k in order; each change subtracts d H_kc at once: the same bits
//            on every instruction set and number of threads.
// Threads    strips of rows; 8 bytes for each weight of a strip.
#pragma once

#include <cstdint>

#include "kernels/column_view.h"
#include "support/isa.h"

namespace detent {

struct DescentArgs {
  const float* weights;
  const double* hessian;
  const double* linear;
  ColumnView grids;
  int64_t rows, columns, sweeps;
  int32_t* codes;    // from where it starts to where it ends
  int64_t* changes;  // [rows]: how often a code changed
};

struct DescentTable {
  void (*descend)(const DescentArgs& args);
};

DETENT_KERNEL_TABLE(DescentTable, descent_table);

}  // namespace detent
