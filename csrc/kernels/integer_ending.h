// SPDX-License-Identifier: Apache-2.0
// The end of layers on codes: accumulators of one channel to codes in their place, and the range of the accumulators.
// Include from kernel sources only.
#pragma once

#include "kernels/integer_products.h"
#include "kernels/requantize_rules.h"
#include "support/simd.h"

namespace detent::DETENT_ISA {

constexpr int64_t kLanes = simd::kFloats;
constexpr int64_t kEndedAtOnce = 64;

// The least and the greatest accumulator. Lanes that count for nothing repeat one that counts.
struct NarrowRange {
  simd::Ints least = simd::Ints{} + INT32_MAX, greatest = simd::Ints{} + INT32_MIN;

  void add(simd::Ints sums) {
    least = sums < least ? sums : least;
    greatest = sums > greatest ? sums : greatest;
  }
  void store(int64_t* extremes) const {
    int32_t low = least[0], high = greatest[0];
    for (int64_t l = 1; l < kLanes; ++l) {
      low = least[l] < low ? least[l] : low;
      high = greatest[l] > high ? greatest[l] : high;
    }
    extremes[0] = low;
    extremes[1] = high;
  }
};

struct WideRange {
  int64_t least = INT64_MAX, greatest = INT64_MIN;

  void add(const int64_t* sums, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      least = sums[i] < least ? sums[i] : least;
      greatest = sums[i] > greatest ? sums[i] : greatest;
    }
  }
  void store(int64_t* extremes) const {
    extremes[0] = least;
    extremes[1] = greatest;
  }
};

// Rule kFloat, in registers: what requantize_run does.
struct FloatEnding {
  simd::Floats factor, lower, upper;
  simd::Ints zero;

  FloatEnding(const Requantization& how, int64_t channel)
      : factor(simd::Floats{} + how.factor[how.per_channel ? channel : 0]),
        lower(simd::Floats{} + static_cast<float>(how.lowest - how.zero_point)),
        upper(simd::Floats{} + static_cast<float>(how.highest - how.zero_point)),
        zero(simd::Ints{} + how.zero_point) {}

  simd::Ints codes(simd::Ints sums) const {
    const simd::Floats value = __builtin_convertvector(sums, simd::Floats) * factor;
    const simd::Floats inside = simd::minimum(simd::maximum(value, lower), upper);
    return simd::truncate((inside + kRoundMagic) - kRoundMagic) + zero;
  }
};

inline bool byte_codes(CodeType type) { return type == CodeType::kUint8 || type == CodeType::kInt8; }

// n accumulators of a channel to places `at` of `out` on, by any rule.
template <class Acc>
[[gnu::noinline]] void end_run_by_rule(const Acc* acc, int64_t n, const Requantization& how, int64_t channel, void* out,
                                       CodeType type, int64_t at) {
  const Requantization own = how.from(channel);
  int32_t codes[kEndedAtOnce];
  for (int64_t i = 0; i < n; i += kEndedAtOnce) {
    const int64_t some = kEndedAtOnce < n - i ? kEndedAtOnce : n - i;
    requantize_run<false>(acc + i, some, own, codes);
    narrow_to(codes, some, out, type, at + i);
  }
}

// Byte codes by rule kFloat; accumulators can be read up to a whole vector.
inline void end_run_in_bytes(const int32_t* acc, int64_t n, const FloatEnding& end, uint8_t* to) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) simd::store_bytes(to + i, end.codes(simd::load(acc + i)));
  if (i < n) simd::store_some_bytes(to + i, end.codes(simd::load(acc + i)), n - i);
}

}  // namespace detent::DETENT_ISA
