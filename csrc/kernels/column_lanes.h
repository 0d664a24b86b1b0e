// SPDX-License-Identifier: Apache-2.0
// Neighbouring elements rounded to their grids together. Included by kernel sources only: everything lives in the
// namespace of the instruction set being compiled.
//
// The neighbours are some rows of one column or some columns of one row, so grids are laid out lane by lane first. A
// grid has Code<lanes> find(x, at): the codes nearest to x, a float64 rounded to float32 first, and what they stand
// for. Affine codes follow support/rounding.h, those of a codebook kernels/lut.h. A NaN takes the code of zero, or the
// first.
#pragma once

#include <cstdint>

#include "kernels/column_view.h"
#include "support/isa.h"
#include "support/rounding.h"

namespace detent::DETENT_ISA {

template <int kLanes>
struct Code {
  alignas(64) float value[kLanes];
  alignas(64) int32_t code[kLanes];
};

// Arrays have an entry for each lane, from `at` on.
struct AffineLanes {
  const float *scale, *lower, *upper;
  const int32_t* zero_point;

  template <int kLanes>
  Code<kLanes> find(const double* x, int64_t at) const {
    Code<kLanes> found;
    for (int l = 0; l < kLanes; ++l) {
      const float step = scale[at + l];
      const float rounded = round_clamped(static_cast<float>(x[l]) / step, lower[at + l], upper[at + l]);
      const float distance = rounded == rounded ? rounded : 0.0f;
      found.value[l] = distance * step;
      found.code[l] = static_cast<int32_t>(distance) + zero_point[at + l];
    }
    return found;
  }
};

// scale has an entry for each lane, from `at` on; tables have `levels` entries, `spread` of each, 0 lanes apart or 1.
template <int kApart>
struct CodebookLanes {
  const float* scale;
  const float *table, *bounds;
  int64_t levels, spread;

  template <int kLanes>
  Code<kLanes> find(const double* x, int64_t at) const {
    Code<kLanes> found;
    alignas(64) float quotient[kLanes];
    for (int l = 0; l < kLanes; ++l) {
      quotient[l] = static_cast<float>(x[l]) / scale[at + l];
      found.code[l] = 0;
    }
    for (int64_t b = 0; b + 1 < levels; ++b) {
      const float* bound = bounds + b * spread;
      for (int l = 0; l < kLanes; ++l) found.code[l] += bound[l * kApart] < quotient[l] ? 1 : 0;
    }
    // Adding zero turns the -0 of an underflow into +0.
    for (int l = 0; l < kLanes; ++l) {
      found.value[l] = table[found.code[l] * spread + l * kApart] * scale[at + l] + 0.0f;
    }
    return found;
  }
};

}  // namespace detent::DETENT_ISA
