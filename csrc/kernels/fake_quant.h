// SPDX-License-Identifier: Apache-2.0
// Quantization to affine grids: values to values, values to codes, codes to values, and the straight-through mask.
//
// Computes   support/rounding.h element by element:  code = clamp(round(x / scale) + zero_point, qmin, qmax),
//            value = (code - zero_point) * scale, in_range = round(x / scale) + zero_point is in [qmin, qmax].
//            Where all steps are powers of two, x is multiplied by the exact reciprocal: the same bits.
// Requires   n elements, dense; a GridView made by AffineGrid; codes that the output type holds. `out` is `x` itself or
//            does not overlap it. Packed codes: two per byte, element 2i in the low nibble, ceil(n / 2) bytes.
// Rounding   half to even, in float32. int32 codes (biases): code - zero_point is exact, then rounded to float32.
// NaN        value NaN, code = zero_point, in_range false. Infinities clamp to the ends of the grid; in_range false.
//            A result of zero is +0.
// Order      element-wise: no sums, nothing depends on the order.
// Threads    blocks of 16384 elements; no memory is allocated. A float result of 16 MiB or more is written past the
//            cache, unless it replaces its input.
#pragma once

#include <cstdint>

#include "kernels/grid_view.h"
#include "support/isa.h"

namespace detent {

template <class In, class Out>
using GridKernel = void (*)(const In* x, Out* out, int64_t n, const GridView& grid);

struct FakeQuantTable {
  GridKernel<float, float> fake_quantize;
  GridKernel<float, bool> in_range;

  GridKernel<float, int8_t> quantize_int8;
  GridKernel<float, uint8_t> quantize_uint8;
  GridKernel<float, int16_t> quantize_int16;
  GridKernel<float, uint16_t> quantize_uint16;
  GridKernel<float, uint8_t> quantize_packed;  // int4 and uint4: the low four bits of the code

  GridKernel<int8_t, float> dequantize_int8;
  GridKernel<uint8_t, float> dequantize_uint8;
  GridKernel<int16_t, float> dequantize_int16;
  GridKernel<uint16_t, float> dequantize_uint16;
  GridKernel<int32_t, float> dequantize_int32;
  GridKernel<uint8_t, float> dequantize_packed_int4;
  GridKernel<uint8_t, float> dequantize_packed_uint4;

  // Codes held in bytes, to and from two per byte. Packing keeps the low four bits.
  void (*pack)(const uint8_t* codes, uint8_t* packed, int64_t n);
  void (*unpack_int4)(const uint8_t* packed, int8_t* codes, int64_t n);
  void (*unpack_uint4)(const uint8_t* packed, uint8_t* codes, int64_t n);
};

DETENT_KERNEL_TABLE(FakeQuantTable, fake_quant_table);

}  // namespace detent
