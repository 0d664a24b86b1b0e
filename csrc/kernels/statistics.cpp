// SPDX-License-Identifier: Apache-2.0
#include "kernels/statistics.h"

#include <cstring>

#include "support/simd.h"

namespace detent::DETENT_ISA {
namespace {

using simd::Doubles;
using simd::Floats;
using simd::Ints;

constexpr int kFloatVectors = kSumLanes / simd::kFloats;
constexpr int kDoubleVectors = kSumLanes / simd::kDoubles;
constexpr int kChunk = 128;               // values per round: short enough that binning one overlaps summing the next
constexpr int64_t kPrefetchBytes = 4096;  // ahead of the reader; the counters' stores hide the stream from the hardware

// The sixteen lanes in registers.
struct Registers {
  Doubles sum[kDoubleVectors];
  Doubles sum_of_squares[kDoubleVectors];
  Floats minimum[kFloatVectors];
  Floats maximum[kFloatVectors];

  explicit Registers(const Lanes& lanes) {
    for (int k = 0; k < kDoubleVectors; ++k) {
      sum[k] = *reinterpret_cast<const Doubles*>(lanes.sum + k * simd::kDoubles);
      sum_of_squares[k] = *reinterpret_cast<const Doubles*>(lanes.sum_of_squares + k * simd::kDoubles);
    }
    for (int k = 0; k < kFloatVectors; ++k) {
      minimum[k] = *reinterpret_cast<const Floats*>(lanes.minimum + k * simd::kFloats);
      maximum[k] = *reinterpret_cast<const Floats*>(lanes.maximum + k * simd::kFloats);
    }
  }

  void store(Lanes& lanes) const {
    for (int k = 0; k < kDoubleVectors; ++k) {
      *reinterpret_cast<Doubles*>(lanes.sum + k * simd::kDoubles) = sum[k];
      *reinterpret_cast<Doubles*>(lanes.sum_of_squares + k * simd::kDoubles) = sum_of_squares[k];
    }
    for (int k = 0; k < kFloatVectors; ++k) {
      *reinterpret_cast<Floats*>(lanes.minimum + k * simd::kFloats) = minimum[k];
      *reinterpret_cast<Floats*>(lanes.maximum + k * simd::kFloats) = maximum[k];
    }
  }

  inline void add(const float* x) {
#pragma GCC unroll 16
    for (int k = 0; k < kFloatVectors; ++k) {
      const Floats value = simd::load(x + k * simd::kFloats);
      minimum[k] = simd::minimum(value, minimum[k]);
      maximum[k] = simd::maximum(value, maximum[k]);
    }
#pragma GCC unroll 16
    for (int k = 0; k < kDoubleVectors; ++k) {
      const Doubles value = simd::load_widened(x + k * simd::kDoubles);
      sum[k] += value;
      sum_of_squares[k] += value * value;
    }
  }

  // Every value so far is below `limit` in magnitude. Extremes skip NaN, but sums keep it.
  inline bool below(float limit) const {
    Floats least = minimum[0];
    Floats greatest = maximum[0];
    for (int k = 1; k < kFloatVectors; ++k) {
      least = simd::minimum(minimum[k], least);
      greatest = simd::maximum(maximum[k], greatest);
    }
    Doubles total = sum[0];
    for (int k = 1; k < kDoubleVectors; ++k) total += sum[k];
    return simd::all_true((Ints)(greatest < limit) & (Ints)(least > -limit) & (Ints)(total == total));
  }
};

template <bool kPlain>
inline Ints bin_of(Floats x, const BinScale& scale) {
  if constexpr (kPlain) return simd::floor_to_int(x * scale.scale);
  const Floats y = x * scale.prescale;
  const Ints towards_zero = simd::truncate(y * scale.scale);
  return towards_zero + (Ints)(__builtin_convertvector(towards_zero, Floats) * scale.width > y);
}

// Values of one element, for the ends of runs.
inline int32_t bin_of_one(float x, const BinScale& scale) {
  const float y = scale.plain ? x : x * scale.prescale;
  const auto towards_zero = static_cast<int32_t>(y * scale.scale);
  const float width = scale.plain ? 1.0f / scale.scale : scale.width;
  return towards_zero - (static_cast<float>(towards_zero) * width > y);
}

// Takes n values, n a multiple of 16 and at most kChunk, unless one is out of range. `zero_slot` [16] leads from bin 0
// to the slots for zeros.
template <bool kPlain>
inline bool take(const float* x, int n, const BinScale& scale, const Ints* zero_slot, Registers& registers,
                 uint16_t* tables) {
  Registers next = registers;
  for (int i = 0; i < n; i += kSumLanes) next.add(x + i);
  if (!next.below(scale.limit)) return false;
  registers = next;

  alignas(64) int32_t bins[kChunk];
  for (int i = 0; i < n; i += kSumLanes) {
#pragma GCC unroll 16
    for (int k = 0; k < kFloatVectors; ++k) {
      const Floats value = simd::load(x + i + k * simd::kFloats);
      const Ints bin = simd::add_where_zero(bin_of<kPlain>(value, scale), value, zero_slot[k]);
      *reinterpret_cast<Ints*>(bins + i + k * simd::kFloats) = bin;
    }
  }
  uint16_t* table0 = tables + kHistogramHalf;
  uint16_t* table1 = table0 + kTableStride;
  uint16_t* table2 = table1 + kTableStride;
  uint16_t* table3 = table2 + kTableStride;
#pragma GCC unroll 4
  for (int i = 0; i < n; i += 4) {
    int64_t low, high;  // two bins in one load each
    std::memcpy(&low, bins + i, sizeof(low));
    std::memcpy(&high, bins + i + 2, sizeof(high));
    ++table0[static_cast<int32_t>(low)];
    ++table1[low >> 32];
    ++table2[static_cast<int32_t>(high)];
    ++table3[high >> 32];
  }
  return true;
}

// Fewer than 16 values.
inline bool take_rest(const float* x, int n, const BinScale& scale, Lanes& lanes, uint16_t* tables) {
  for (int i = 0; i < n; ++i) {
    if (!(__builtin_fabsf(x[i]) < scale.limit)) return false;
  }
  for (int i = 0; i < n; ++i) {
    const double value = x[i];
    lanes.sum[i] += value;
    lanes.sum_of_squares[i] += value * value;
    lanes.minimum[i] = x[i] < lanes.minimum[i] ? x[i] : lanes.minimum[i];
    lanes.maximum[i] = x[i] > lanes.maximum[i] ? x[i] : lanes.maximum[i];
    const int slot = x[i] == 0.0f ? kHistogramBins + i : kHistogramHalf + bin_of_one(x[i], scale);
    ++tables[(i % kTables) * kTableStride + slot];
  }
  return true;
}

template <bool kPlain>
int64_t accumulate_as(const float* x, int64_t n, const BinScale& scale, Lanes& lanes, uint16_t* tables) {
  alignas(64) int32_t slots[kSumLanes];
  for (int l = 0; l < kSumLanes; ++l) slots[l] = kHistogramBins - kHistogramHalf + l;
  Ints zero_slot[kFloatVectors];
  std::memcpy(zero_slot, slots, sizeof(slots));

  Registers registers(lanes);
  const int64_t whole = n - n % kSumLanes;
  int64_t i = 0;
  for (; i + kChunk <= whole; i += kChunk) {
    for (int64_t b = 0; b < kChunk * 4; b += 64) {
      __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(x + i) + kPrefetchBytes + b));
    }
    if (!take<kPlain>(x + i, kChunk, scale, zero_slot, registers, tables)) break;
  }
  // The end of the run; or, where a chunk was refused, its values before the sixteen with the culprit.
  for (; i < whole; i += kSumLanes) {
    if (!take<kPlain>(x + i, kSumLanes, scale, zero_slot, registers, tables)) break;
  }
  registers.store(lanes);
  if (i < whole) return i;
  return take_rest(x + i, static_cast<int>(n - i), scale, lanes, tables) ? n : i;
}

int64_t accumulate(const float* x, int64_t n, const BinScale& scale, Lanes& lanes, uint16_t* tables) {
  return scale.plain ? accumulate_as<true>(x, n, scale, lanes, tables)
                     : accumulate_as<false>(x, n, scale, lanes, tables);
}

int64_t flush(uint16_t* tables, int64_t* counts) {
  const uint16_t* table1 = tables + kTableStride;
  const uint16_t* table2 = table1 + kTableStride;
  const uint16_t* table3 = table2 + kTableStride;
  for (int i = 0; i < kHistogramBins; ++i) {
    counts[i] += uint32_t{tables[i]} + uint32_t{table1[i]} + uint32_t{table2[i]} + uint32_t{table3[i]};
  }
  int64_t zeros = 0;
  for (int t = 0; t < kTables; ++t) {
    for (int l = 0; l < kZeroSlots; ++l) zeros += tables[t * kTableStride + kHistogramBins + l];
  }
  std::memset(tables, 0, sizeof(uint16_t) * kTables * kTableStride);
  return zeros;
}

RunSummary sum_run(const float* x, int64_t n) {
  Doubles sum[kDoubleVectors] = {};
  Floats least[kFloatVectors], greatest[kFloatVectors];
  for (int k = 0; k < kFloatVectors; ++k) {
    least[k] = Floats{} + __builtin_inff();
    greatest[k] = Floats{} - __builtin_inff();
  }
  const auto add = [&](const float* values, const float* terms) {
#pragma GCC unroll 16
    for (int k = 0; k < kFloatVectors; ++k) {
      const Floats value = simd::load(values + k * simd::kFloats);
      least[k] = simd::minimum(value, least[k]);
      greatest[k] = simd::maximum(value, greatest[k]);
    }
#pragma GCC unroll 16
    for (int k = 0; k < kDoubleVectors; ++k) sum[k] += simd::load_widened(terms + k * simd::kDoubles);
  };
  const int64_t whole = n - n % kSumLanes;
  for (int64_t i = 0; i < whole; i += kSumLanes) add(x + i, x + i);
  if (whole < n) {
    float values[kSumLanes], terms[kSumLanes];
    for (int l = 0; l < kSumLanes; ++l) {
      const bool present = whole + l < n;
      values[l] = present ? x[whole + l] : __builtin_nanf("");  // no extreme
      terms[l] = present ? x[whole + l] : 0.0f;
    }
    add(values, terms);
  }
  // Distances of 8, 4, ... lanes are distances of vectors while there are several.
  for (int half = kDoubleVectors / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) sum[k] += sum[k + half];
  }
  double lanes[simd::kDoubles];
  std::memcpy(lanes, sum, sizeof(lanes));
  for (int half = simd::kDoubles / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  for (int k = 1; k < kFloatVectors; ++k) {
    least[0] = simd::minimum(least[k], least[0]);
    greatest[0] = simd::maximum(greatest[k], greatest[0]);
  }
  return {lanes[0], simd::least(least[0]), simd::greatest(greatest[0])};
}

void sum_rows(const float* x, int64_t n, int64_t phase, int64_t period, double* sum, float* minimum, float* maximum) {
  while (n > 0) {
    const int64_t run = n < period - phase ? n : period - phase;
    double* const __restrict s = sum + phase;
    float* const __restrict least = minimum + phase;
    float* const __restrict greatest = maximum + phase;
    for (int64_t i = 0; i < run; ++i) {
      const float value = x[i];
      least[i] = value < least[i] ? value : least[i];
      greatest[i] = value > greatest[i] ? value : greatest[i];
    }
    for (int64_t i = 0; i < run; ++i) s[i] += static_cast<double>(x[i]);
    x += run;
    n -= run;
    phase = 0;
  }
}

int64_t weigh(const float* x, const float* weights, int64_t n, int exponent, int64_t first_bin, int64_t n_bins,
              double* bins) {
  // In float64 neither the scale nor a product with a float32 can overflow or underflow.
  const double scale = __builtin_ldexp(1.0, -exponent);
  const auto first = static_cast<double>(first_bin);
  const auto length = static_cast<double>(n_bins);
  int64_t refused = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double place = __builtin_floor(static_cast<double>(x[i]) * scale) - first;
    const double weight = weights[i];
    if (place >= 0.0 && place < length && weight >= 0.0 && weight < __builtin_inf()) {
      bins[static_cast<int64_t>(place)] += weight;
    } else {
      ++refused;
    }
  }
  return refused;
}

}  // namespace

const StatisticsTable statistics_table = {accumulate, flush, sum_run, sum_rows, weigh};

}  // namespace detent::DETENT_ISA
