// SPDX-License-Identifier: Apache-2.0
// A vector of doubles as wide as the instruction set, table look-ups and a log a, for the searches. Each lane
// computes what scalar code would, bit for bit, so the width never shows in a result. For kernel sources only (see
// isa.h).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && (defined(__AVX2__) || defined(__AVX512F__))
#include <immintrin.h>
#endif

namespace detent::DETENT_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 4;
#else
constexpr int kLanes = 2;
#endif

typedef double Lanes __attribute__((vector_size(kLanes * 8)));
typedef int64_t WideLanes __attribute__((vector_size(kLanes * 8)));
#if defined(__AVX512F__)
typedef WideLanes IndexLanes;  // AVX-512 converts between doubles and 64-bit integers
#else
typedef int32_t IndexLanes __attribute__((vector_size(kLanes * 4)));
#endif

static inline Lanes broadcast(double value) { return Lanes{} + value; }
static inline Lanes load(const double* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}
static inline void store(double* to, Lanes lanes) { std::memcpy(to, &lanes, sizeof(lanes)); }
static inline Lanes lesser(Lanes a, Lanes b) { return a < b ? a : b; }
static inline Lanes greater(Lanes a, Lanes b) { return a > b ? a : b; }

// Where a point lies in tables indexed by bin edge: the edge below it and the fraction of a bin beyond.
struct Place {
  IndexLanes edge;
  Lanes fraction;
  // Neighbouring candidates mostly hit neighbouring edges: then one load and a permutation replace a gather.
  bool near;
};

// `position` must be in [0, 2^31), ascending over the lanes for the fast path. Tables need kLanes readable entries
// beyond the last edge.
static inline Place locate(Lanes position) {
  Place place;
  place.edge = __builtin_convertvector(position, IndexLanes);
  place.fraction = position - __builtin_convertvector(place.edge, Lanes);
  place.near = static_cast<uint64_t>(place.edge[kLanes - 1] - place.edge[0]) < kLanes;
  return place;
}

// For a caller that knows the lanes to be so near, which saves the test.
static inline Place locate_near(Lanes position) {
  Place place = locate(position);
  place.near = true;
  return place;
}

static inline Lanes look_up(const double* table, const Place& place) {
#if defined(__AVX512F__)
  if (place.near) {
    const WideLanes offset = place.edge - place.edge[0];
    // The unmasked form trips an uninitialized-value warning inside GCC 12's own header; the code is the same.
    return (Lanes)_mm512_maskz_permutexvar_pd(0xff, (__m512i)offset, _mm512_loadu_pd(table + place.edge[0]));
  }
#elif defined(__AVX2__)
  if (place.near) {
    // Doubles move as pairs of 32-bit words: offset o selects words 2o and 2o + 1.
    const __m128i offset = _mm_sub_epi32((__m128i)place.edge, _mm_set1_epi32(place.edge[0]));
    const __m256i twice = _mm256_cvtepu32_epi64(_mm_add_epi32(offset, offset));
    const __m256i words =
        _mm256_add_epi64(_mm256_or_si256(twice, _mm256_slli_epi64(twice, 32)), _mm256_set1_epi64x(int64_t{1} << 32));
    const __m256 loaded = _mm256_castpd_ps(_mm256_loadu_pd(table + place.edge[0]));
    return (Lanes)_mm256_castps_pd(_mm256_permutevar8x32_ps(loaded, words));
  }
#endif
  Lanes found;
  for (int lane = 0; lane < kLanes; ++lane) found[lane] = table[place.edge[lane]];
  return found;
}

// Mantissa in [1, 2) of a positive normal number, and its exponent: through the mantissa of 2^52, since only AVX-512
// converts 64-bit integers to doubles.
struct Binary {
  Lanes mantissa;
  Lanes exponent;
};

static inline Binary take_apart(Lanes x) {
  WideLanes bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const WideLanes mantissa = (bits & 0x000fffffffffffff) | 0x3ff0000000000000;
  const WideLanes exponent = ((bits >> 52) & 0x7ff) | 0x4330000000000000;
  Binary parts;
  std::memcpy(&parts.mantissa, &mantissa, sizeof(mantissa));
  std::memcpy(&parts.exponent, &exponent, sizeof(exponent));
  parts.exponent -= 4503599627370496.0 + 1023.0;
  return parts;
}

// a log(a / b), and 0 where either is not positive; relative error of the logarithm below 2^-49. With a / b = 2^e m, m
// in [sqrt(1/2), sqrt(2)], log m = 2 atanh((m - 1) / (m + 1)): one division. Written out because libm has no vector
// form with the same bits everywhere.
static inline Lanes mass_log(Lanes a, Lanes b) {
  constexpr double kSmallest = 1e-290, kSqrt2 = 1.4142135623730951;
  const WideLanes some = (a > kSmallest) & (b > kSmallest);
  const Binary over = take_apart(some ? a : broadcast(1.0)), under = take_apart(some ? b : broadcast(1.0));
  Lanes exponent = over.exponent - under.exponent;
  const WideLanes high = over.mantissa > kSqrt2 * under.mantissa, low = under.mantissa > kSqrt2 * over.mantissa;
  const Lanes m = low ? over.mantissa + over.mantissa : over.mantissa;
  const Lanes n = high ? under.mantissa + under.mantissa : under.mantissa;
  exponent += high ? broadcast(1.0) : broadcast(0.0);
  exponent -= low ? broadcast(1.0) : broadcast(0.0);
  const Lanes s = (m - n) / (m + n);
  const Lanes z = s * s;
  Lanes series = broadcast(1.0 / 19.0);
  series = series * z + 1.0 / 17.0;
  series = series * z + 1.0 / 15.0;
  series = series * z + 1.0 / 13.0;
  series = series * z + 1.0 / 11.0;
  series = series * z + 1.0 / 9.0;
  series = series * z + 1.0 / 7.0;
  series = series * z + 1.0 / 5.0;
  series = series * z + 1.0 / 3.0;
  const Lanes twice = s + s;
  return some ? a * (exponent * 0.6931471805599453 + (twice + twice * (z * series))) : broadcast(0.0);
}

}  // namespace detent::DETENT_ISA
