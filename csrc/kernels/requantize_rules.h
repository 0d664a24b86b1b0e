// SPDX-License-Identifier: Apache-2.0
// The rules of kernels/requantize.h, for runs of accumulators. Include from kernel sources only.
#pragma once

#include "kernels/grid_walk.h"
#include "kernels/requantize.h"
#include "support/rounding.h"
#include "support/simd.h"

namespace detent::DETENT_ISA {

// The upper half of a doubled product, ties upward. With q >= 0 this is gemmlowp's rule, whose nudge by sign and
// division towards zero come to the same, and nothing saturates.
inline int64_t high_product(int32_t acc, int32_t q) { return (int64_t{acc} * q + (int64_t{1} << 30)) >> 31; }

inline int32_t shifted_left(int32_t acc, int32_t e) {
  return static_cast<int32_t>(static_cast<uint32_t>(acc) << (e > 0 ? e : 0));
}

inline int64_t half_away(int64_t x, int32_t e) {
  const int64_t half = (int64_t{1} << e) >> 1, sign = x >> 63;
  return (x + half + (e > 0 ? sign : 0)) >> e;
}

inline int64_t half_upward(int64_t x, int32_t e) { return (x + ((int64_t{1} << e) >> 1)) >> e; }

// The rounded product, without the zero point.
template <RequantizeRule kRule, class Acc>
inline int64_t multiplied(Acc acc, int32_t q, int32_t e) {
  if constexpr (kRule == RequantizeRule::kDoubleRounding) {
    return half_away(high_product(shifted_left(static_cast<int32_t>(acc), e), q), e < 0 ? -e : 0);
  } else if constexpr (kRule == RequantizeRule::kRuy) {
    return half_upward(high_product(shifted_left(static_cast<int32_t>(acc), e), q), e < 0 ? -e : 0);
  } else if constexpr (kRule == RequantizeRule::kSingleRounding) {
    return half_away(int64_t{static_cast<int32_t>(acc)} * q, 31 - e);
  } else {
    const int64_t wide = (int64_t{q} + (int64_t{1} << 15)) >> 16;
    return half_upward(int64_t{acc} * (wide < 32767 ? wide : 32767), 15 - e);
  }
}

// n accumulators to codes of 32 bits; kEach: each has a factor of its own, else all have the first.
template <RequantizeRule kRule, bool kEach, class Acc>
void requantize_run(const Acc* acc, int64_t n, const Requantization& how, int32_t* out) {
  const int32_t zero = how.zero_point, lowest = how.lowest, highest = how.highest;
  if constexpr (kRule == RequantizeRule::kFloat) {
    const float lower = static_cast<float>(lowest - zero), upper = static_cast<float>(highest - zero);
    const float first = how.factor[0];
    const float* factor = how.factor;
    DETENT_INDEPENDENT_LOOP
    for (int64_t i = 0; i < n; ++i) {
      const float value = static_cast<float>(acc[i]) * (kEach ? factor[i] : first);
      out[i] = static_cast<int32_t>(round_clamped(value, lower, upper)) + zero;
    }
  } else {
    const int32_t q = how.multiplier[0], e = how.shift[0];
    const int32_t *multiplier = how.multiplier, *shift = how.shift;
    DETENT_INDEPENDENT_LOOP
    for (int64_t i = 0; i < n; ++i) {
      const int64_t code = multiplied<kRule>(acc[i], kEach ? multiplier[i] : q, kEach ? shift[i] : e) + zero;
      const int64_t above = code < lowest ? lowest : code;
      out[i] = static_cast<int32_t>(above > highest ? highest : above);
    }
  }
}

template <bool kEach, class Acc>
void requantize_run(const Acc* acc, int64_t n, const Requantization& how, int32_t* out) {
  switch (how.rule) {
    case RequantizeRule::kFloat:
      return requantize_run<RequantizeRule::kFloat, kEach>(acc, n, how, out);
    case RequantizeRule::kDoubleRounding:
      return requantize_run<RequantizeRule::kDoubleRounding, kEach>(acc, n, how, out);
    case RequantizeRule::kRuy:
      return requantize_run<RequantizeRule::kRuy, kEach>(acc, n, how, out);
    case RequantizeRule::kSingleRounding:
      return requantize_run<RequantizeRule::kSingleRounding, kEach>(acc, n, how, out);
    case RequantizeRule::kInt16x8:
      return requantize_run<RequantizeRule::kInt16x8, kEach>(acc, n, how, out);
  }
}

// n codes to places `at` of `out` on. In steps of a vector of codes of 32 bits: a loop over narrow types would begin to
// pay at four times that.
template <class Code>
void narrow(const int32_t* codes, int64_t n, Code* out) {
  constexpr int64_t kStep = simd::kFloats;
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    for (int64_t l = 0; l < kStep; ++l) out[i + l] = static_cast<Code>(codes[i + l]);
  }
  for (; i < n; ++i) out[i] = static_cast<Code>(codes[i]);
}

inline void narrow_to(const int32_t* codes, int64_t n, void* out, CodeType type, int64_t at) {
  switch (type) {
    case CodeType::kUint8:
      return narrow(codes, n, static_cast<uint8_t*>(out) + at);
    case CodeType::kInt8:
      return narrow(codes, n, static_cast<int8_t*>(out) + at);
    case CodeType::kUint16:
      return narrow(codes, n, static_cast<uint16_t*>(out) + at);
    case CodeType::kInt16:
      return narrow(codes, n, static_cast<int16_t*>(out) + at);
    case CodeType::kInt32:
      return narrow(codes, n, static_cast<int32_t*>(out) + at);
  }
}

}  // namespace detent::DETENT_ISA
