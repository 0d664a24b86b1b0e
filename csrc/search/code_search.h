// SPDX-License-Identifier: Apache-2.0
// The best codes of small systems, proved.
//
// Computes   for each row w, codes with values q that have the least loss (w - q) H (w - q)^T - 2 l (w - q)^T: the
//            closest vector of a box of a lattice, or of a product of codebooks, by depth-first branch and bound
//            (Schnorr and Euchner 1994, doi:10.1007/BF01581144). With H = M^T D M, M unit upper triangular, the loss is
//            a sum over columns, last to first, each term of which depends on the columns behind it; a column tries its
//            values from the nearest on, and gives up with the first that is no better than the best codes so far. The
//            columns are put in an order that makes the first terms large (sorted decomposition, Wübben and others
//            2001, doi:10.1049/el:20010899).
// Requires   weights, codes and linear (null: 0) [rows, columns], hessian [columns, columns], all in C order; at most
// 64
//            columns; grids made by ColumnGrids, codes on them, finite numbers. Throws std::invalid_argument where
//            hessian is not positive definite.
// Rounding   float64; of equal losses, what was found first, the codes given before all.
// Order      one row after the other, compiled once for all instruction sets: the same bits on each.
// Threads    rows. A row tries `most_values` values, over all its columns; then its best codes so far are kept,
// unproved.
#pragma once

#include <cstdint>

#include "kernels/column_view.h"

namespace detent {

constexpr int64_t kMostSearchedColumns = 64;

struct CodeSearchArgs {
  const float* weights;
  const double* hessian;
  const double* linear;
  ColumnView grids;
  int32_t qmin, qmax;
  int64_t rows, columns, most_values;
  int32_t* codes;  // from where it starts to where it ends
  bool* proved;    // [rows]
};

void search_codes(const CodeSearchArgs& args);

}  // namespace detent
