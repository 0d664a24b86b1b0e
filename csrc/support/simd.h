// SPDX-License-Identifier: Apache-2.0
// Vectors of the width of the instruction set being compiled, for kernels that the compiler does not vectorize well by
// itself. Arithmetic and comparisons are the operators of GCC/Clang vector types; only what those spell badly
// (widening, directed rounding, mask tests) goes through intrinsics. Include from kernel sources only (they define
// DETENT_ISA).
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#pragma GCC diagnostic push
// GCC before 13 takes the deliberately undefined operands inside its own AVX-512 header for mistakes.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include "support/isa.h"

namespace detent::DETENT_ISA::simd {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kFloats = kBytes / 4;
constexpr int kDoubles = kBytes / 8;

typedef float Floats __attribute__((vector_size(kBytes)));
typedef double Doubles __attribute__((vector_size(kBytes)));
typedef int32_t Ints __attribute__((vector_size(kBytes)));
typedef float UnalignedFloats __attribute__((vector_size(kBytes), aligned(4), may_alias));

typedef int32_t UnalignedInts __attribute__((vector_size(kBytes), aligned(4), may_alias));

inline Floats load(const float* x) { return *reinterpret_cast<const UnalignedFloats*>(x); }
inline Ints load(const int32_t* x) { return *reinterpret_cast<const UnalignedInts*>(x); }
inline void store(int32_t* x, Ints value) { *reinterpret_cast<UnalignedInts*>(x) = value; }

// Lanes hold two int16 each: the sum of their two products.
#if defined(__AVX512BW__)
inline Ints multiply_pairs(Ints a, Ints b) { return (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
#elif defined(__AVX2__)
inline Ints multiply_pairs(Ints a, Ints b) { return (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
#elif defined(__x86_64__)
inline Ints multiply_pairs(Ints a, Ints b) { return (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b); }
#else
inline Ints multiply_pairs(Ints a, Ints b) { return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16); }
#endif

inline Ints add_pairs(Ints sum, Ints a, Ints b) { return sum + multiply_pairs(a, b); }

// Lanes hold four codes each, unsigned ones in a and signed ones in b: the sum and their four products.
#if defined(__AVX512VNNI__)
constexpr bool kHasQuads = true;
inline Ints add_quads(Ints sum, Ints a, Ints b) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
#else
constexpr bool kHasQuads = false;
#endif

// One narrow integer for each lane, widened.
template <class Code>
inline Ints widened(const Code* x) {
  typedef Code Few __attribute__((vector_size(kBytes / 4 * sizeof(Code)), aligned(1), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Few*>(x), Ints);
}

// The lower bytes of all lanes, or of the first `count`.
#if defined(__AVX512F__)
inline void store_bytes(uint8_t* to, Ints x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)x));
}
inline void store_some_bytes(uint8_t* to, Ints x, int64_t count) {
  _mm_mask_storeu_epi8(to, static_cast<__mmask16>((1u << count) - 1), _mm512_cvtepi32_epi8((__m512i)x));
}
#else
inline void store_some_bytes(uint8_t* to, Ints x, int64_t count) {
  for (int64_t l = 0; l < count; ++l) to[l] = static_cast<uint8_t>(x[l]);
}
inline void store_bytes(uint8_t* to, Ints x) {
  typedef uint8_t Few __attribute__((vector_size(kBytes / 4)));
  const Few bytes = __builtin_convertvector(x, Few);
  __builtin_memcpy(to, &bytes, sizeof(bytes));
}
#endif

// For each lane four bytes out of 64: those of `places`, or `fill` where `counts` has no bit. Of `from` only the bytes
// with a bit in `read` are read.
#if defined(__AVX512VBMI__)
constexpr bool kHasBytePermutation = true;
inline Ints pick_quads(const uint8_t* from, uint64_t read, const uint8_t* places, uint64_t counts, Ints fill) {
  const __m512i bytes = _mm512_maskz_loadu_epi8(read, from);
  return (Ints)_mm512_mask_permutexvar_epi8((__m512i)fill, counts, _mm512_loadu_si512(places), bytes);
}
#else
constexpr bool kHasBytePermutation = false;
#endif

#if defined(__AVX512F__)

// kDoubles floats, widened.
inline Doubles load_widened(const float* x) { return (Doubles)_mm512_cvtps_pd(_mm256_loadu_ps(x)); }
// These keep the second argument where the first is NaN.
inline Floats minimum(Floats x, Floats kept) { return (Floats)_mm512_min_ps((__m512)x, (__m512)kept); }
inline Floats maximum(Floats x, Floats kept) { return (Floats)_mm512_max_ps((__m512)x, (__m512)kept); }
inline float least(Floats x) { return _mm512_reduce_min_ps((__m512)x); }
inline float greatest(Floats x) { return _mm512_reduce_max_ps((__m512)x); }
inline Ints truncate(Floats x) { return (Ints)_mm512_cvttps_epi32((__m512)x); }
inline Ints floor_to_int(Floats x) {
  return (Ints)_mm512_cvt_roundps_epi32((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
}
inline bool all_true(Ints mask) { return _mm512_movepi32_mask((__m512i)mask) == 0xffff; }
// base + (x == 0 ? extra : 0)
inline Ints add_where_zero(Ints base, Floats x, Ints extra) {
  const __mmask16 zero = _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_EQ_OQ);
  return (Ints)_mm512_mask_add_epi32((__m512i)base, zero, (__m512i)base, (__m512i)extra);
}

#elif defined(__AVX2__)

inline Doubles load_widened(const float* x) { return (Doubles)_mm256_cvtps_pd(_mm_loadu_ps(x)); }
inline Floats minimum(Floats x, Floats kept) { return (Floats)_mm256_min_ps((__m256)x, (__m256)kept); }
inline Floats maximum(Floats x, Floats kept) { return (Floats)_mm256_max_ps((__m256)x, (__m256)kept); }
inline Ints truncate(Floats x) { return (Ints)_mm256_cvttps_epi32((__m256)x); }
inline Ints floor_to_int(Floats x) { return (Ints)_mm256_cvttps_epi32(_mm256_floor_ps((__m256)x)); }
inline bool all_true(Ints mask) { return _mm256_movemask_ps((__m256)mask) == 0xff; }
inline Ints add_where_zero(Ints base, Floats x, Ints extra) { return base + ((x == 0.0f) & extra); }

#else

inline Floats minimum(Floats x, Floats kept) { return x < kept ? x : kept; }
inline Floats maximum(Floats x, Floats kept) { return x > kept ? x : kept; }
#if defined(__x86_64__)
inline Doubles load_widened(const float* x) {
  double both;
  __builtin_memcpy(&both, x, sizeof(both));
  return (Doubles)_mm_cvtps_pd(_mm_castpd_ps(_mm_set_sd(both)));
}
inline Ints truncate(Floats x) { return (Ints)_mm_cvttps_epi32((__m128)x); }
inline bool all_true(Ints mask) { return _mm_movemask_ps((__m128)mask) == 0xf; }
#else
inline Doubles load_widened(const float* x) { return Doubles{x[0], x[1]}; }
inline Ints truncate(Floats x) { return __builtin_convertvector(x, Ints); }
inline bool all_true(Ints mask) { return (mask[0] & mask[1] & mask[2] & mask[3]) != 0; }
#endif
inline Ints floor_to_int(Floats x) {
  const Ints towards_zero = truncate(x);
  return towards_zero + (__builtin_convertvector(towards_zero, Floats) > x);  // a true comparison is -1
}
inline Ints add_where_zero(Ints base, Floats x, Ints extra) { return base + ((x == 0.0f) & extra); }

#endif

#if !defined(__AVX512F__)
// Of a vector without NaN.
inline float least(Floats x) {
  float found = x[0];
  for (int l = 1; l < kFloats; ++l) found = x[l] < found ? x[l] : found;
  return found;
}
inline float greatest(Floats x) {
  float found = x[0];
  for (int l = 1; l < kFloats; ++l) found = x[l] > found ? x[l] : found;
  return found;
}
#endif

}  // namespace detent::DETENT_ISA::simd
