// SPDX-License-Identifier: Apache-2.0
// Matrix products in a fixed order: second moments of the inputs of a layer, and errors weighted by them.
//
// Computes   gram:     out += x^T x, both triangles;   multiply: out = a b.
// Requires   dense row-major matrices that do not overlap, depth below 2^31; `out` of gram symmetric.
// Rounding   float32 products, added in float32 in runs of 128 along the depth; the runs are added in float64.
// NaN        propagates to the sums it takes part in.
// Order      each element is summed along the depth, first to last, run by run: the same bits on every instruction
//            set and number of threads. Rows added by one call or by several, in multiples of 128, give the same too.
// Threads    panels of columns; scratch is on the stack, 20 KiB.
#pragma once

#include <cstdint>

#include "support/isa.h"

namespace detent {

struct ProductsTable {
  void (*gram)(const float* x, int64_t rows, int64_t columns, double* out);
  void (*multiply)(const float* a, const float* b, int64_t rows, int64_t depth, int64_t columns, double* out);
};

DETENT_KERNEL_TABLE(ProductsTable, products_table);

}  // namespace detent
