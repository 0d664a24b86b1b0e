// SPDX-License-Identifier: Apache-2.0
// The grid of each element of a matrix of weights whose columns are rounded one after the other; see column_grids.h for
// how one is made.
#pragma once

#include <cstdint>

namespace detent {

// Element (r, c) has the step scale[r * scale_stride + (group ? group[c] : 0)]. Without a table its grid is affine,
// with the bounds of that entry; with one, its code is an index into the table of row r.
struct ColumnView {
  const float* scale;         // [1 or rows, groups]
  const float* lower;         // qmin - zero_point, likewise; affine only
  const float* upper;         // qmax - zero_point
  const int32_t* zero_point;  // likewise
  int64_t scale_stride;       // groups, or 0 for all rows alike
  int64_t groups;
  const int32_t* group;  // [columns], or null: all of group 0
  const float* table;    // [1 or rows, levels], increasing; null: affine
  const float* bounds;   // [1 or rows, levels - 1]: where neighbouring levels meet
  int64_t levels;
  int64_t table_stride;   // levels, or 0 for all rows alike
  int64_t bounds_stride;  // levels - 1, or 0
};

}  // namespace detent
