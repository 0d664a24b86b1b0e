// SPDX-License-Identifier: Apache-2.0
// ExactSum: a sum of doubles that no order of adding can change.
//
// computes   the exact sum, as an integer multiple of 2^-352 in 704 bits: 22 digits of 32 bits, each in an int64 so
// that
//            carries can wait. value() rounds once, half to even.
// requires   every term finite and a multiple of 2^-298 (any float32, any square of a float32, and any double computed
//            from sums of those is), and a total below 2^316 in magnitude, i.e. 2^60 squares of the largest float32.
// canonical  normalize() propagates carries: digits in [0, 2^32), the sign in the top one. Equal sums then have equal
//            digits, so states can be compared, stored and merged bit for bit.
//
// Kulisch, "Very fast and exact accumulation of products", Computing 91 (2011), with delayed carries.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "support/check.h"

namespace detent {

class ExactSum {
 public:
  static constexpr int kDigits = 22;
  static constexpr int kLowestExponent = -352;  // place value of the lowest bit of digit 0

  void add(double x) {
    const uint64_t bits = std::bit_cast<uint64_t>(x);
    const int biased = static_cast<int>(bits >> 52) & 0x7ff;
    const uint64_t fraction = bits & ((uint64_t{1} << 52) - 1);
    if (biased == 0 && fraction == 0) return;
    const int place = biased - 1075 - kLowestExponent;  // of the mantissa's lowest bit
    if (place < 0 || place / 32 + 2 >= kDigits) fail("a term of an exact sum is outside its range: ", x);
    const auto shifted = static_cast<Wide>(fraction | uint64_t{1} << 52) << (place % 32);
    const int64_t sign = (bits >> 63) ? -1 : 1;
    int64_t* digit = digits_ + place / 32;
    digit[0] += sign * static_cast<int64_t>(static_cast<uint32_t>(shifted));
    digit[1] += sign * static_cast<int64_t>(static_cast<uint32_t>(shifted >> 32));
    digit[2] += sign * static_cast<int64_t>(shifted >> 64);
    if (++waiting_ >= kMostWaiting) normalize();
  }

  void merge(const ExactSum& other) {
    if (waiting_ + other.waiting_ + 1 >= kMostWaiting) {
      ExactSum canonical = other;
      canonical.normalize();
      normalize();
      return merge(canonical);
    }
    for (int i = 0; i < kDigits; ++i) digits_[i] += other.digits_[i];
    waiting_ += other.waiting_ + 1;
  }

  void normalize() {
    int64_t carry = 0;
    for (int i = 0; i < kDigits - 1; ++i) {
      const int64_t total = digits_[i] + carry;
      digits_[i] = total & kDigitMask;
      carry = total >> 32;
    }
    digits_[kDigits - 1] += carry;
    waiting_ = 0;
  }

  // The sum, rounded once to the nearest double, ties to even.
  double value() const {
    ExactSum magnitude = *this;
    magnitude.normalize();
    const bool negative = magnitude.digits_[kDigits - 1] < 0;
    if (negative) {
      for (int64_t& digit : magnitude.digits_) digit = -digit;
      magnitude.normalize();
    }
    const int64_t* digit = magnitude.digits_;
    int top = kDigits - 1;
    while (top > 0 && digit[top] == 0) --top;
    if (digit[top] == 0) return 0.0;
    // 96 bits hold at least 65 significant ones; what lies below only matters for being zero or not.
    Wide window = 0;
    for (int i = 0; i < 3; ++i) window = window << 32 | static_cast<uint64_t>(top - i >= 0 ? digit[top - i] : 0);
    bool rest = false;
    for (int i = top - 3; i >= 0; --i) rest |= digit[i] != 0;
    int exponent = kLowestExponent + 32 * (top - 2);
    const int excess = static_cast<int>(std::bit_width(static_cast<uint64_t>(window >> 64))) + 64 - 53;
    const Wide dropped = window & ((static_cast<Wide>(1) << excess) - 1);
    const Wide half = static_cast<Wide>(1) << (excess - 1);
    auto mantissa = static_cast<uint64_t>(window >> excess);
    if (dropped > half || (dropped == half && (rest || (mantissa & 1)))) ++mantissa;
    const double rounded = std::ldexp(static_cast<double>(mantissa), exponent + excess);
    return negative ? -rounded : rounded;
  }

  // Canonical digits, lowest first.
  void store(int64_t* digits) const {
    ExactSum canonical = *this;
    canonical.normalize();
    for (int i = 0; i < kDigits; ++i) digits[i] = canonical.digits_[i];
  }

  static ExactSum load(const int64_t* digits) {
    ExactSum sum;
    for (int i = 0; i < kDigits; ++i) {
      require(i == kDigits - 1 || (digits[i] >= 0 && digits[i] <= kDigitMask), "digit ", i,
              " of an exact sum is out of range: ", digits[i]);
      sum.digits_[i] = digits[i];
    }
    require(sum.digits_[kDigits - 1] >> 31 == 0 || sum.digits_[kDigits - 1] >> 31 == -1,
            "the top digit of an exact sum is out of range: ", digits[kDigits - 1]);
    return sum;
  }

 private:
  __extension__ typedef unsigned __int128 Wide;
  static constexpr int64_t kDigitMask = 0xffffffff;
  static constexpr int32_t kMostWaiting = 1 << 29;  // so many digits below 2^32, twice, stay well inside an int64

  int32_t waiting_ = 0;  // terms since digits were last canonical
  int64_t digits_[kDigits] = {};
};

}  // namespace detent
