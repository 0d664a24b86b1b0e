// SPDX-License-Identifier: Apache-2.0
// Symmetric positive definite matrices: triangular factors, their inverses, and products.
//
// Computes   factor: upper V with V V^T = h, from the last column to the first;
//            invert: the inverse of an upper matrix, row by row;
//            multiply: c += a b.
//            With U the inverse of V, U^T U is the inverse of h: the factor that rounding column by column needs
//            (kernels/rounding.h), without an inverse of h on the way.
// Requires   float64 in C order. Of h, what is on and above the diagonal is read; of v, likewise.
// Rounding   each product and each sum is rounded to float64.
// NaN        factor says that h is not positive definite where a pivot is NaN, infinite or not positive.
// Order      an element of factor loses its products from the last column to the first, one of invert and multiply
//            gets them from the first to the last: the same bits on every instruction set and number of threads.
// Threads    over rows or strips of them; scratch is the caller's.
#pragma once

#include <cstdint>

#include "support/isa.h"

namespace detent {

struct FactorTable {
  static constexpr int64_t kPanel = 16;  // columns that factor takes at once
  // h: [size, size], V in its place, zeros below; panel: kPanel * size doubles. False if not positive definite: h is
  // spoilt then.
  bool (*factor)(double* h, int64_t size, double* panel);
  // inverse: [size, size], zeros below its diagonal.
  void (*invert)(const double* v, int64_t size, double* inverse);
  // a: [rows, depth], b: [depth, columns], c: [rows, columns].
  void (*multiply)(const double* a, const double* b, int64_t rows, int64_t depth, int64_t columns, double* c);
};

DETENT_KERNEL_TABLE(FactorTable, factor_table);

}  // namespace detent
