// SPDX-License-Identifier: Apache-2.0
// Matrix products in a fixed order: moments of the inputs of a layer, and errors weighted by them.
//
// Computes   moments: sums += column sums of x, products += x^T x, for each matrix x of a batch;
//            forms: (row i of a) g (row i of b)^T for each i, for each g of a batch. Without b (null), a is both, and
//            only the part of g that lies on and above the blocks of its diagonal is read, since that is half the work.
// Requires   dense arrays that do not overlap, depth below 2^31; `products` symmetric, and g too without b, with
//            elements finite when doubled. x is [batch, rows, columns], or [rows, columns, batch] with
//            `batch_innermost`, as depthwise layers have it; a and b are [batch, rows, size], g is [batch, size, size].
// Rounding   float32 sums and products, added in float32 in runs of 128 along the depth; the runs are added in float64.
//            forms multiplies a g by b in float64, and adds up blocks of 32 columns, then the blocks. Without b, the
//            depth of a block ends with the block, and elements of g above the block count twice.
// NaN        propagates to the sums it takes part in.
// Order      each element is summed along the depth, first to last, run by run; the columns of a block by adding the
//            second half to the first, again and again; blocks first to last: the same bits on every instruction set
//            and number of threads. Rows added by one call or by several, in multiples of 128, give the same too.
// Threads    matrices; panels of their columns in moments, strips of rows in forms.
#pragma once

#include <cstdint>

#include "support/isa.h"

namespace detent {

struct ProductsTable {
  void (*moments)(const float* x, bool batch_innermost, int64_t batch, int64_t rows, int64_t columns, double* sums,
                  double* products);
  void (*forms)(const float* a, const float* g, const float* b, int64_t batch, int64_t rows, int64_t size, double* out);
};

DETENT_KERNEL_TABLE(ProductsTable, products_table);

}  // namespace detent
