// SPDX-License-Identifier: Apache-2.0
// Steps and zero points of a tensor, arranged for the loops that use them; see affine_grid.h for how one is made.
#pragma once

#include <cstdint>

namespace detent {

// Element i of the tensor takes entry (i / inner) % entries of each array.
struct GridView {
  const float* scale;
  const float* inverse;  // 1 / scale where exact_inverse, else the same pointer as scale
  const float* lower;    // qmin - zero_point
  const float* upper;    // qmax - zero_point
  const int32_t* zero_point;
  int64_t entries;
  int64_t inner;
  // Every step is a power of two with a finite reciprocal: multiplying by that is dividing by the step.
  bool exact_inverse;
};

}  // namespace detent
