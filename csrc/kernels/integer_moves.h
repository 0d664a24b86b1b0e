// SPDX-License-Identifier: Apache-2.0
// Codes in other places, and functions of single codes.
//
// Computes   gather: out[s, i] = places[i] < 0 ? fill : x[s, places[i]]; look_up: out[i] = table[x[i] - lowest], where
//            lowest is the least number of x's type.
// Requires   codes of 8 or 16 bits, C order; places below `inputs`; a table of 2^8 or 2^16 entries, as x has bits.
// Order      none: each element by itself.
// Threads    gather over samples, look_up over blocks; no memory is allocated.
#pragma once

#include <cstdint>

#include "kernels/requantize.h"
#include "support/isa.h"

namespace detent {

struct GatherArgs {
  const void* x;  // [samples, inputs], of `bytes` bytes each
  int64_t bytes, samples, inputs, outputs;
  const int64_t* places;
  int32_t fill;
  void* out;
};

struct LookUpArgs {
  const void* x;
  CodeType x_type;
  int64_t n;
  const void* table;
  int64_t bytes;  // of an entry
  void* out;
};

struct MoveTable {
  void (*gather)(const GatherArgs& args);
  void (*look_up)(const LookUpArgs& args);
};

DETENT_KERNEL_TABLE(MoveTable, move_table);

}  // namespace detent
