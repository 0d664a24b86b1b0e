// SPDX-License-Identifier: Apache-2.0
// Quantization to a codebook: each value goes to the nearest of a few arbitrary levels, scaled per channel.
//
// Computes   code = index of the table entry nearest to x / scale, value = table[code] * scale.
// Requires   n elements, dense; a LutView made by Codebook; codes below the table's size. `out` is `x` itself or does
//            not overlap it.
// Rounding   x / scale in float32; entries meet at bound[i] = float32((table[i] + table[i + 1]) / 2); a tie, and the
//            choice between equal entries, goes to the lower index.
// NaN        value NaN; code = that of zero. Infinities go to the ends of the table. A result of zero is +0.
// Order      element-wise: no sums, nothing depends on the order.
// Threads    blocks of 16384 elements; no memory is allocated.
#pragma once

#include <cstdint>

#include "kernels/grid_view.h"
#include "support/isa.h"

namespace detent {

struct LutView {
  GridView grid;        // only the scales matter
  const float* table;   // [size], increasing
  const float* bounds;  // [2^depth - 1]: size - 1 bounds, then +infinity
  int32_t size;
  int32_t depth;      // 2^depth >= size
  int32_t zero_code;  // code of 0
};

struct LutTable {
  void (*fake_quantize)(const float* x, float* out, int64_t n, const LutView& lut);
  void (*quantize)(const float* x, uint8_t* out, int64_t n, const LutView& lut);
  void (*dequantize)(const uint8_t* codes, float* out, int64_t n, const LutView& lut);
};

DETENT_KERNEL_TABLE(LutTable, lut_table);

}  // namespace detent
