// SPDX-License-Identifier: Apache-2.0
#include "statistics/tally.h"

#include <algorithm>
#include <cmath>

#include "support/check.h"
#include "support/float_mode.h"

namespace detent {

int Histogram::exponent_for(float magnitude) {
  int power = 0;
  std::frexp(std::max(magnitude, std::numeric_limits<float>::denorm_min()), &power);  // magnitude < 2^power
  return power - kHistogramBits;
}

BinScale Histogram::scale() const {
  BinScale scale;
  scale.limit = std::ldexp(1.0f, exponent_ + kHistogramBits);  // infinity for the widest bins
  scale.plain = exponent_ <= 0 && exponent_ >= -126;
  const int lift = exponent_ < -126 ? 64 : 0;
  scale.prescale = std::ldexp(1.0f, lift);
  scale.scale = std::ldexp(1.0f, -exponent_ - lift);
  scale.width = std::ldexp(1.0f, exponent_ + lift);
  return scale;
}

void Histogram::widen(int exponent) {
  if (exponent <= exponent_) return;
  const int shift = std::min(exponent - exponent_, 31);
  std::vector<int64_t> wide(kHistogramBins);
  for (int i = 0; i < kHistogramBins; ++i) {
    // An arithmetic shift rounds down, so that negative bins merge with the neighbour they share a wide bin with.
    wide[static_cast<size_t>(((i - kHistogramHalf) >> shift) + kHistogramHalf)] += counts_[static_cast<size_t>(i)];
  }
  counts_.swap(wide);
  exponent_ = exponent;
}

void Histogram::merge(const Histogram& other) {
  widen(other.exponent_);
  const int shift = std::min(exponent_ - other.exponent_, 31);
  if (shift == 0) {  // the usual case, and one the compiler vectorizes
    for (size_t i = 0; i < kHistogramBins; ++i) counts_[i] += other.counts_[i];
    return;
  }
  for (int i = 0; i < kHistogramBins; ++i) {
    counts_[static_cast<size_t>(((i - kHistogramHalf) >> shift) + kHistogramHalf)] +=
        other.counts_[static_cast<size_t>(i)];
  }
}

void ChannelTally::merge(const ChannelTally& other) {
  minimum = std::min(minimum, other.minimum);
  maximum = std::max(maximum, other.maximum);
  nonfinite += other.nonfinite;
  sum.merge(other.sum);
}

void Tally::merge(const Tally& other) {
  require(channels.empty() || other.channels.empty() || channels.size() == other.channels.size(),
          "cannot merge statistics of ", channels.size(), " channels with statistics of ", other.channels.size());
  const KeepSubnormals keep;
  samples += other.samples;
  count += other.count;
  zeros += other.zeros;
  nonfinite += other.nonfinite;
  minimum = std::min(minimum, other.minimum);
  maximum = std::max(maximum, other.maximum);
  sum.merge(other.sum);
  sum_of_squares.merge(other.sum_of_squares);
  histogram.merge(other.histogram);
  if (channels.empty()) channels.resize(other.channels.size());
  for (size_t c = 0; c < other.channels.size(); ++c) channels[c].merge(other.channels[c]);
}

}  // namespace detent
