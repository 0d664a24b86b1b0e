// SPDX-License-Identifier: Apache-2.0
// An array of weights, read through any strides as rows that share a grid.
#pragma once

#include <cstdint>

namespace detent {

constexpr int kMostAxes = 34;  // NumPy's 32, the group axis, and one to spare

struct WeightView {
  const float* data = nullptr;
  int64_t channels = 1;  // rows: channels x groups
  int64_t size = 0;      // elements per row
  int channel_axes = 0;  // the first axes index rows, the rest the elements of a row, both in C order
  int axes = 0;
  int64_t extent[kMostAxes] = {};
  int64_t stride[kMostAxes] = {};  // in elements
};

// Copies the `size` elements of a row in C order of their logical axes, whatever the strides.
void gather_row(const WeightView& view, int64_t row, float* to);

}  // namespace detent
