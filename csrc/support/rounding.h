// SPDX-License-Identifier: Apache-2.0
// THE definition of quantization. Every kernel, search and exporter goes through these few lines.
//
//   code(x)  = clamp(round_half_even(x / scale) + zero_point, qmin, qmax)
//   value(c) = (c - zero_point) * scale
//
// in IEEE float32, dividing by the scale (never multiplying by a rounded reciprocal). Because the bounds are integers,
// clamping before rounding gives the same code, and a clamped quotient is small enough to be rounded by adding and
// subtracting 1.5 * 2^23, which every instruction set vectorizes. Codes have no sign of zero, so value() never is -0.
// NaN: value(NaN) = NaN; code(NaN) = zero_point clamped to the range. Infinities clamp to the ends of the grid.
#pragma once

#include <cstdint>

namespace detent {

constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23: the last place of anything near it is 1

// The rounded, clamped quotient: an integer in [lower, upper] held in a float; lower = qmin - zero_point and
// upper = qmax - zero_point, both at most 2^22 in magnitude. NaN passes through.
inline float round_clamped(float quotient, float lower, float upper) {
  const float above = lower > quotient ? lower : quotient;  // these two forms keep NaN (the comparison is false)
  const float inside = upper < above ? upper : above;
  return (inside + kRoundMagic) - kRoundMagic;
}

inline float fake_quantize_value(float x, float scale, float lower, float upper) {
  return round_clamped(x / scale, lower, upper) * scale;
}

// True where a straight-through gradient passes: the rounded quotient is inside the range before clamping.
inline bool in_range(float x, float scale, float lower, float upper) {
  const float quotient = x / scale;
  // round_half_even(quotient) >= lower  <=>  quotient >= lower - 0.5, with the tie going to the even neighbour.
  const float wide = round_clamped(quotient, lower - 1.0f, upper + 1.0f);
  return wide >= lower && wide <= upper;
}

}  // namespace detent
