// SPDX-License-Identifier: Apache-2.0
// The cost of a channel at given scales, for the weight search. Included once per instruction set.
//
// With u = 1/scale, y = x u, k = clamp(round_half_even(y), low, high) and q = y - k, one pass over the channel gives
// for several scales at once
//   cost  = sum h |q|^p      (times scale^p: the error of the channel)
//   slope = sum h q y        (squares only: gives the closed-form best scale for these codes)
// in float32 with 16 virtual lanes over blocks of 2048 elements, lanes and blocks added in float64 in a fixed order, so
// that the bits do not depend on the instruction set. The channel is normalized (largest magnitude in [1, 2)) and
// padded with zeros, which cost nothing because zero is on every grid.
//
// Accuracy, for squares. y has one rounding, the distance to the grid is 1-Lipschitz, so every q is within 2^-24 |y| of
// the truth, plus one rounding of its own: sqrt(cost) is within 2^-23 sqrt(sum h y^2) of the truth, plus a relative
// part of at most 2^-16 for the squares and the sums of 128 float32 terms. kNormError and kSumError bound both.
#pragma once

#include <cstdint>
#include <cstring>

#include "support/rounding.h"

namespace detent::DETENT_ISA {

constexpr int64_t kLanes = 16;
constexpr int64_t kBlockRows = 128;
constexpr double kNormError = 0x1p-23;
constexpr double kSumError = 0x1p-16;

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kHalf = kWidth / 2;

typedef float Vec __attribute__((vector_size(4 * kWidth)));
typedef int32_t IntVec __attribute__((vector_size(4 * kWidth)));
typedef float HalfVec __attribute__((vector_size(4 * kHalf)));
typedef double DoubleVec __attribute__((vector_size(8 * kHalf)));

enum class Cost { kSquare, kAbsolute, kPower };

// One channel: normalized values and importance weights (or null), 64-byte aligned, rows of 16, zero padded.
struct Channel {
  const float* x;
  const float* h;
  int64_t rows;
  double top;         // largest positive value, or 0
  double bottom;      // largest magnitude of a negative value, or 0
  double importance;  // sum h
  double energy;      // sum h x^2
  double magnitudes;  // sum |x|
  double power;       // p of the cost
};

// A candidate grid: codes low..high at scale 1 / inverse.
struct Probe {
  float inverse;
  float low;
  float high;
};

struct Sums {
  double cost;
  double slope;
};

template <class V>
inline V load(const float* from) {
  V value;
  memcpy(&value, from, sizeof(value));
  return value;
}

inline DoubleVec load_double(const float* from) { return __builtin_convertvector(load<HalfVec>(from), DoubleVec); }

// Minus, because adding a positive zero would turn -0 into +0, and the compiler would have to do it.
inline Vec splat(float value) { return value - Vec{}; }

constexpr double kRoundMagic64 = 6755399441055744.0;  // 1.5 * 2^52

// support/rounding.h, on vectors.
inline Vec nearest_code(Vec y, float low, float high) {
  const Vec above = splat(low) > y ? splat(low) : y;
  const Vec inside = splat(high) < above ? splat(high) : above;
  return (inside + kRoundMagic) - kRoundMagic;
}

inline Vec magnitude(Vec q) { return reinterpret_cast<Vec>(reinterpret_cast<IntVec>(q) & 0x7fffffff); }

// t^p for t >= 0 and p > 0 within a few units of the sixth decimal: enough to rank candidates. Plain arithmetic, so
// that every instruction set has the same bits: log2 by the atanh series, exp2 by its Taylor series.
inline Vec general_power(Vec t, float p) {
  const IntVec bits = reinterpret_cast<IntVec>(t);
  // The mantissa in [sqrt(1/2), sqrt(2)): 0x3f3504f3 is sqrt(1/2).
  const IntVec exponent = (bits - 0x3f3504f3) >> 23;
  const Vec m = reinterpret_cast<Vec>(bits - (exponent << 23));
  const Vec z = (m - 1.0f) / (m + 1.0f);
  const Vec z2 = z * z;
  const Vec series = z * (2.88539008f + z2 * (0.961796694f + z2 * (0.577078016f + z2 * 0.412198583f)));
  const Vec raised = (__builtin_convertvector(exponent, Vec) + series) * p;
  const Vec w = raised < -125.0f ? splat(-125.0f) : (raised > 125.0f ? splat(125.0f) : raised);
  const Vec whole = (w + kRoundMagic) - kRoundMagic;
  const Vec f = (w - whole) * 0.693147181f;
  const Vec e =
      1.0f +
      f * (1.0f + f * (0.5f + f * (0.166666667f + f * (0.0416666667f + f * (0.00833333333f + f * 0.00138888889f)))));
  const Vec result =
      reinterpret_cast<Vec>(reinterpret_cast<IntVec>(e) + (__builtin_convertvector(whole, IntVec) << 23));
  return t < 0x1p-100f ? Vec{} : result;
}

// t^p, by multiplication for whole p.
inline Vec power(Vec t, float p, int whole) {
  if (whole == 0) return general_power(t, p);
  Vec result = t;
  for (int i = 1; i < whole; ++i) result *= t;
  return result;
}

typedef double Pair __attribute__((vector_size(16)));

// The sum of 16 lanes by halving: 0 + 8, ..., then 0 + 4, ...; in pairs, which every instruction set adds at once.
inline double add_lanes(const double* lanes) {
  Pair pairs[kLanes / 2];
  memcpy(pairs, lanes, sizeof(pairs));
#pragma GCC unroll 3
  for (int n = static_cast<int>(kLanes) / 4; n > 0; n /= 2) {
#pragma GCC unroll 4
    for (int i = 0; i < n; ++i) pairs[i] += pairs[i + n];
  }
  return pairs[0][0] + pairs[0][1];
}

inline void add_to(double* lanes, Vec sums) {
  float values[kWidth];
  memcpy(values, &sums, sizeof(sums));
  for (int i = 0; i < kWidth; i += kHalf) {
    DoubleVec total;
    memcpy(&total, lanes + i, sizeof(total));
    total += load_double(values + i);
    memcpy(lanes + i, &total, sizeof(total));
  }
}

// Sums for S candidates: x is loaded once, each candidate keeps its accumulators in registers.
template <Cost C, bool Weighted, int S>
inline void measure_group(const Channel& channel, const Probe* probes, Sums* out) {
  alignas(64) double cost_lanes[S][kLanes] = {};
  alignas(64) double slope_lanes[S][kLanes] = {};
  const float p = static_cast<float>(channel.power);
  const int whole = channel.power == __builtin_floor(channel.power) ? static_cast<int>(channel.power) : 0;
  for (int64_t begin = 0; begin < channel.rows; begin += kBlockRows) {
    const int64_t end = begin + kBlockRows < channel.rows ? begin + kBlockRows : channel.rows;
    for (int lane = 0; lane < kLanes; lane += kWidth) {
      Vec cost[S] = {}, slope[S] = {};
      for (int64_t r = begin; r < end; ++r) {
        const Vec x = load<Vec>(channel.x + r * kLanes + lane);
        Vec h{};
        if constexpr (Weighted) h = load<Vec>(channel.h + r * kLanes + lane);
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s) {
          const Vec y = x * probes[s].inverse;
          const Vec q = y - nearest_code(y, probes[s].low, probes[s].high);
          if constexpr (C == Cost::kSquare) {
            const Vec weighted = Weighted ? h * q : q;
            cost[s] += weighted * q;
            slope[s] += weighted * y;
          } else if constexpr (C == Cost::kAbsolute) {
            cost[s] += magnitude(q);
          } else {
            cost[s] += power(magnitude(q), p, whole);
          }
        }
      }
      for (int s = 0; s < S; ++s) {
        add_to(&cost_lanes[s][lane], cost[s]);
        if constexpr (C == Cost::kSquare) add_to(&slope_lanes[s][lane], slope[s]);
      }
    }
  }
  for (int s = 0; s < S; ++s) out[s] = {add_lanes(cost_lanes[s]), add_lanes(slope_lanes[s])};
}

template <Cost C, bool Weighted>
inline void measure_all(const Channel& channel, const Probe* probes, int count, Sums* out) {
  int i = 0;
  for (; i + 4 <= count; i += 4) measure_group<C, Weighted, 4>(channel, probes + i, out + i);
  if (i + 2 <= count) {
    measure_group<C, Weighted, 2>(channel, probes + i, out + i);
    i += 2;
  }
  if (i < count) measure_group<C, Weighted, 1>(channel, probes + i, out + i);
}

inline void measure(Cost cost, const Channel& channel, const Probe* probes, int count, Sums* out) {
  switch (cost) {
    case Cost::kSquare:
      return channel.h ? measure_all<Cost::kSquare, true>(channel, probes, count, out)
                       : measure_all<Cost::kSquare, false>(channel, probes, count, out);
    case Cost::kAbsolute:
      return measure_all<Cost::kAbsolute, false>(channel, probes, count, out);
    case Cost::kPower:
      return measure_all<Cost::kPower, false>(channel, probes, count, out);
  }
}

}  // namespace detent::DETENT_ISA
