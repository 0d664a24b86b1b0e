// SPDX-License-Identifier: Apache-2.0
// Tally: what is known about a tensor after some of its values have been seen. Merging tallies is associative and
// commutative to the last bit: counts are integers, sums are exact, the histogram's bins are anchored at zero and 2^k
// wide, so that widening them adds neighbouring bins and forgets nothing but the finer split.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/statistics.h"
#include "support/exact_sum.h"

namespace detent {

// Counts of 8192 bins [i w, (i + 1) w), w = 2^exponent, i from -4096. All-zero until widened.
class Histogram {
 public:
  static constexpr int kLowestExponent = -148 - kHistogramBits;  // holds the smallest subnormal float32
  static constexpr int kHighestExponent = 128 - kHistogramBits;

  explicit Histogram(int exponent = kLowestExponent) : exponent_(exponent), counts_(kHistogramBins) {}

  // The exponent that a tensor of this greatest magnitude has: 2^12 bins reach just beyond it.
  static int exponent_for(float magnitude);

  int exponent() const { return exponent_; }
  BinScale scale() const;

  // Makes bins at least 2^exponent wide.
  void widen(int exponent);
  void merge(const Histogram& other);

  // Of bin -4096.
  int64_t* counts() { return counts_.data(); }
  const int64_t* counts() const { return counts_.data(); }

 private:
  int exponent_;
  std::vector<int64_t> counts_;
};

struct ChannelTally {
  float minimum = std::numeric_limits<float>::infinity();
  float maximum = -std::numeric_limits<float>::infinity();
  int64_t nonfinite = 0;
  ExactSum sum;

  void include(float least, float greatest, double run_sum) {
    minimum = (least < minimum ? least : minimum) + 0.0f;  // never -0, whose order against 0 is nobody's
    maximum = (greatest > maximum ? greatest : maximum) + 0.0f;
    sum.add(run_sum);
  }
  void merge(const ChannelTally& other);
};

struct Tally {
  explicit Tally(int exponent = Histogram::kLowestExponent) : histogram(exponent) {}

  int64_t samples = 0;
  int64_t count = 0;      // finite values
  int64_t zeros = 0;      // of these, exact zeros; the histogram has them in bin 0 like any other value
  int64_t nonfinite = 0;  // in no other figure
  float minimum = std::numeric_limits<float>::infinity();
  float maximum = -std::numeric_limits<float>::infinity();
  ExactSum sum;
  ExactSum sum_of_squares;
  Histogram histogram;
  std::vector<ChannelTally> channels;  // empty unless wanted

  // Throws std::invalid_argument where both have channels and not as many.
  void merge(const Tally& other);
};

}  // namespace detent
