// SPDX-License-Identifier: Apache-2.0
// Exponentials and logarithms of float32 with the same bits on every instruction set, which those of the C library do
// not promise, in straight code that the compiler vectorizes. Included by kernel sources only: everything lives in the
// namespace of the instruction set being compiled.
//
// Polynomials of Moshier's Cephes library (expf, logf), arguments reduced as Cody and Waite do. The errors stated are
// those of tests/parity/test_soft_rounding.py, which tries millions of numbers of each range.
#pragma once

#include <cstdint>

#include "support/isa.h"

namespace detent::DETENT_ISA {

// 2^n for n in -126..127, given as a whole number in a float.
inline float power_of_two(float n) {
  // The last places of 1.5 * 2^23 + n are those of the whole number n.
  const int32_t bits = __builtin_bit_cast(int32_t, n + 12582912.0f) - __builtin_bit_cast(int32_t, 12582912.0f);
  return __builtin_bit_cast(float, (bits + 127) << 23);
}

inline float round_to_whole(float x) { return (x + 12582912.0f) - 12582912.0f; }

// e^r for r in -0.35..0.35.
inline float exp_near_zero(float r) {
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * (r * r) + r + 1.0f;
}

// e^x for x in -87..88, error below 1 unit in the last place; -87 for what is below it. NaN is NaN.
inline float exp_of(float x) {
  const float kept = x < -87.0f ? -87.0f : x;
  const float n = round_to_whole(kept * 1.44269504088896341f);
  const float r = (kept - n * 0.693359375f) - n * -2.12194440e-4f;
  return exp_near_zero(r) * power_of_two(n);
}

// 2^y for y in -126..127, error below 1 unit in the last place; 0 for what is below -126.
inline float exp2_of(float y) {
  const float kept = y < -126.0f ? -126.0f : y;
  const float n = round_to_whole(kept);
  const float power = exp_near_zero((kept - n) * 0.693147180559945309f) * power_of_two(n);
  return y < -126.0f ? 0.0f : power;
}

// The logarithm of x to base 2, for x in 2^-126..1, error below 1.5 units in the last place; that of 2^-126 below it.
inline float log2_of(float x) {
  const float kept = x < 1.17549435e-38f ? 1.17549435e-38f : x;
  // Mantissa in [sqrt(1/2), sqrt(2)).
  const int32_t bits = __builtin_bit_cast(int32_t, kept) - 0x3f3504f3;
  const float exponent = static_cast<float>(bits >> 23);
  const float f = __builtin_bit_cast(float, (bits & 0x007fffff) + 0x3f3504f3) - 1.0f;
  float p = 7.0376836292e-2f;
  p = p * f + -1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f + -1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f + -1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f + -2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float square = f * f;
  const float series = p * (square * f) - 0.5f * square;
  // log2(e) (f + series), the leading bits of the factor apart.
  return ((series * 0.44269504088896340736f + f * 0.44269504088896340736f) + series + f) + exponent;
}

// x^p for x in 0..1 and p > 0: relative error below (|p log2 x| + 4) 2^-23; 0 below 2^-126.
inline float power_of(float x, float p) { return exp2_of(p * log2_of(x)); }

}  // namespace detent::DETENT_ISA
