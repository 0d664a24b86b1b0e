// SPDX-License-Identifier: Apache-2.0
// Weights rounded column by column, later columns making up for what earlier ones lost.
//
// Computes   for each row w, and c = 0, 1, ...: code c and its value q, nearest to w_c; then w_j -= e U_cj for all
//            j > c, with e = (w_c - q) / U_cc: the update of Frantar and others (GPTQ, arXiv:2210.17323, algorithm 1).
//            With U^T U the inverse of H, U upper triangular, it is that of Frantar and Alistarh (arXiv:2208.11580, eq.
//            3) in the order of the columns, which lowers the loss (w - q) H (w - q)^T.
// Requires   weights and codes [rows, columns], factor [columns, columns] in C order; only what is on and above its
//            diagonal is read, which is positive; grids made by ColumnGrids; all numbers finite.
// Rounding   weights and the update are float64; w_c is rounded to float32 and then to its grid, to nearest, as
//            support/rounding.h and kernels/lut.h say.
// NaN        where the update overflows, codes are those of the ends of a grid or of zero.
// Order      each weight loses its products in the order of the columns, one after the other: the same bits on every
//            instruction set and number of threads.
// Threads    strips of rows; 8 bytes for each weight of a strip.
#pragma once

#include <cstdint>

#include "kernels/column_view.h"
#include "support/isa.h"

namespace detent {

struct RoundingArgs {
  const float* weights;
  const double* factor;
  ColumnView grids;
  int64_t rows, columns;
  int32_t* codes;
};

struct RoundingTable {
  void (*round_columns)(const RoundingArgs& args);
};

DETENT_KERNEL_TABLE(RoundingTable, rounding_table);

}  // namespace detent
