// SPDX-License-Identifier: Apache-2.0
// A vector of doubles as wide as the instruction set, table look-ups and a logarithm, for the searches. Each lane
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

// Natural logarithm of positive normal numbers, relative error below 2^-50: x = 2^e m with m in [sqrt(1/2), sqrt(2)),
// log m = 2 atanh((m - 1) / (m + 1)). Written out because libm has no vector form with the same bits everywhere.
static inline Lanes natural_log(Lanes x) {
  WideLanes bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const WideLanes one_bits = WideLanes{} + 0x3ff0000000000000;
  const WideLanes mantissa_bits = (bits & 0x000fffffffffffff) | one_bits;
  // The biased exponent becomes a double through the mantissa of 2^52.
  const WideLanes exponent_bits = ((bits >> 52) & 0x7ff) | 0x4330000000000000;
  Lanes mantissa, exponent;
  std::memcpy(&mantissa, &mantissa_bits, sizeof(mantissa));
  std::memcpy(&exponent, &exponent_bits, sizeof(exponent));
  exponent -= 4503599627370496.0 + 1023.0;
  const WideLanes high = mantissa > 1.4142135623730951;
  mantissa = high ? mantissa * 0.5 : mantissa;
  exponent = high ? exponent + 1.0 : exponent;
  const Lanes s = (mantissa - 1.0) / (mantissa + 1.0);
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
  return exponent * 0.6931471805599453 + (2.0 * s + 2.0 * s * (z * series));
}

// a log(a / b), and 0 where a is not positive.
static inline Lanes mass_log(Lanes a, Lanes b) {
  const WideLanes some = (a > 1e-280) & (b > 1e-280);
  const Lanes ratio = some ? a / b : broadcast(1.0);
  return a * natural_log(greater(ratio, broadcast(1e-300)));
}

}  // namespace detent::DETENT_ISA
