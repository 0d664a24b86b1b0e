// SPDX-License-Identifier: Apache-2.0
// Sums of two tensors of codes: in the two fused steps of onnxruntime's QLinearAdd, of the values they stand for, or of
// what tables have for them.
//
// Computes   run: out = clamp(round_half_even(a * factor_a + (b * factor_b + rest)), lowest, highest), each of the two
//            multiply-adds rounded once to float32.
//            of_values: out = code((a - zero_a) * scale_a + (b - zero_b) * scale_b), in float32, with the code of
//            support/rounding.h.
//            of_tables: out = table_a[a - lowest of a's type] + table_b[b - lowest of b's type], 32 bits.
// Requires   codes of 8 or 16 bits, three arrays of n elements of one layout; factors normal float32 numbers no smaller
//            than 2^-20, rest below 2^24 in magnitude: then products and sums are exact in float64, and rounding these
//            is rounding once. For of_values: finite scales, lowest and highest within 2^22 of the zero point. For
//            of_tables: 2^8 or 2^16 entries, as codes have bits; sums that leave 32 bits wrap around.
// Rounding   as above.
// Order      none: each element by itself.
// Threads    over blocks; no memory is allocated.
#pragma once

#include <cstdint>

#include "kernels/requantize.h"
#include "support/isa.h"

namespace detent {

struct SumArgs {
  const void *a, *b;
  CodeType a_type, b_type;
  float factor_a, factor_b, rest;
  int32_t lowest, highest;
  void* out;
  CodeType type;
  int64_t n;
};

struct ValueSumArgs {
  const void *a, *b;
  CodeType a_type, b_type;
  float scale_a, scale_b, scale;
  int32_t zero_a, zero_b, zero;
  int32_t lowest, highest;
  void* out;
  CodeType type;
  int64_t n;
};

struct TableSumArgs {
  const void *a, *b;
  CodeType a_type, b_type;
  const int32_t *table_a, *table_b;
  int32_t* out;
  int64_t n;
};

struct SumTable {
  void (*run)(const SumArgs& args);
  void (*of_values)(const ValueSumArgs& args);
  void (*of_tables)(const TableSumArgs& args);
};

DETENT_KERNEL_TABLE(SumTable, sum_table);

}  // namespace detent
