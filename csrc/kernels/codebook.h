// SPDX-License-Identifier: Apache-2.0
// Checks a codebook and owns the arrays behind a LutView.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/lut.h"
#include "support/check.h"

namespace detent {

class Codebook {
 public:
  static constexpr int64_t kMaxSize = 256;

  // Throws std::invalid_argument unless table holds 1 to 256 finite values in increasing order (equal ones allowed).
  Codebook(const float* table, int64_t size) {
    require(1 <= size && size <= kMaxSize, "a table must have 1 to ", kMaxSize, " entries, got ", size);
    for (int64_t i = 0; i < size; ++i) {
      require(std::isfinite(table[i]), "table[", i, "] must be finite, got ", table[i]);
      require(i == 0 || table[i - 1] <= table[i], "a table must be increasing, but table[", i, "] = ", table[i],
              " comes after ", table[i - 1]);
      table_.push_back(table[i]);
    }
    while ((int64_t{1} << depth_) < size) ++depth_;
    for (int64_t i = 0; i + 1 < int64_t{1} << depth_; ++i) {
      bounds_.push_back(i + 1 < size ? static_cast<float>((double{table[i]} + double{table[i + 1]}) / 2)
                                     : std::numeric_limits<float>::infinity());
    }
    for (int64_t i = 0; i + 1 < size; ++i) zero_code_ += bounds_[static_cast<size_t>(i)] < 0.0f;
  }

  LutView view(const GridView& grid) const {
    return {grid, table_.data(), bounds_.data(), static_cast<int32_t>(table_.size()), depth_, zero_code_};
  }

 private:
  std::vector<float> table_, bounds_;
  int32_t depth_ = 0;
  int32_t zero_code_ = 0;
};

}  // namespace detent
