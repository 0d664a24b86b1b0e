// SPDX-License-Identifier: Apache-2.0
// Checks the steps and zero points of a tensor and owns the arrays behind a GridView.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/grid_view.h"
#include "support/check.h"

namespace detent {

constexpr int64_t kLowestCode = -(1 << 15);
constexpr int64_t kHighestCode = (1 << 16) - 1;

// True if x / scale and x * (1 / scale) are the same float for every x.
inline bool has_exact_inverse(float scale) {
  int exponent = 0;
  return std::frexp(scale, &exponent) == 0.5f && std::isfinite(1.0f / scale);
}

class AffineGrid {
 public:
  // scale and zero_point: [channels]. Throws std::invalid_argument unless every scale is finite and positive and every
  // zero point is in [qmin, qmax].
  AffineGrid(int64_t outer, int64_t channels, int64_t inner, const float* scale, const int32_t* zero_point,
             int64_t qmin, int64_t qmax)
      : entries_(channels), inner_(inner > 0 ? inner : 1) {
    require(kLowestCode <= qmin && qmin <= qmax && qmax <= kHighestCode, "codes must satisfy ", kLowestCode,
            " <= qmin <= qmax <= ", kHighestCode, ", got qmin ", qmin, " and qmax ", qmax);
    for (int64_t c = 0; c < channels; ++c) {
      require(std::isfinite(scale[c]) && scale[c] > 0.0f, "scale[", c, "] must be finite and positive, got ", scale[c]);
      require(qmin <= zero_point[c] && zero_point[c] <= qmax, "zero_point[", c, "] must be in [", qmin, ", ", qmax,
              "], got ", zero_point[c]);
    }
    const int64_t repeat = spread(outer, channels, inner_);
    if (repeat > 0) {
      entries_ = channels * inner_ * repeat;
      fill(scale, zero_point, channels, inner_, qmin, qmax);
      inner_ = 1;
    } else {
      fill(scale, zero_point, channels, 1, qmin, qmax);
    }
  }

  GridView view() const {
    return {scale_.data(),
            exact_inverse_ ? inverse_.data() : scale_.data(),
            lower_.data(),
            upper_.data(),
            zero_point_.data(),
            entries_,
            inner_,
            exact_inverse_};
  }

 private:
  // Loops need long runs. Where a channel's run is shorter than a vector or two, steps are written out once per element
  // over a period of the tensor, several periods if one is short; 0: leave them per channel.
  static int64_t spread(int64_t outer, int64_t channels, int64_t inner) {
    constexpr int64_t kShortRun = 32;
    constexpr int64_t kLongPeriod = 8192;
    constexpr int64_t kShortPeriod = 256;
    const int64_t period = channels * inner;
    if (channels <= 1 || inner >= kShortRun || outer <= 1) return 0;
    if (inner > 1 && (period > kLongPeriod || outer < 4)) return 0;
    const int64_t repeat = (kShortPeriod + period - 1) / period;
    return repeat < outer ? repeat : outer;
  }

  void fill(const float* scale, const int32_t* zero_point, int64_t channels, int64_t run, int64_t qmin, int64_t qmax) {
    exact_inverse_ = true;
    for (int64_t c = 0; c < channels; ++c) exact_inverse_ = exact_inverse_ && has_exact_inverse(scale[c]);
    const auto size = static_cast<size_t>(entries_);
    scale_.resize(size);
    lower_.resize(size);
    upper_.resize(size);
    zero_point_.resize(size);
    if (exact_inverse_) inverse_.resize(size);
    for (size_t i = 0; i < size; ++i) {
      const int64_t c = static_cast<int64_t>(i) / run % channels;
      scale_[i] = scale[c];
      lower_[i] = static_cast<float>(qmin - zero_point[c]);
      upper_[i] = static_cast<float>(qmax - zero_point[c]);
      zero_point_[i] = zero_point[c];
      if (exact_inverse_) inverse_[i] = 1.0f / scale[c];
    }
  }

  std::vector<float> scale_, inverse_, lower_, upper_;
  std::vector<int32_t> zero_point_;
  int64_t entries_, inner_;
  bool exact_inverse_ = false;
};

}  // namespace detent
