// SPDX-License-Identifier: Apache-2.0
#include "kernels/integer_sum.h"

#include "kernels/grid_walk.h"
#include "kernels/requantize_rules.h"
#include "support/parallel.h"
#include "support/rounding.h"

namespace detent::DETENT_ISA {
namespace {

constexpr int64_t kRun = 1024, kMinRunsPerThread = 32;

template <class Code>
void widen(const void* codes, int64_t begin, int64_t n, int32_t* out) {
  const Code* from = static_cast<const Code*>(codes) + begin;
  for (int64_t i = 0; i < n; ++i) out[i] = from[i];
}

void widen_from(const void* codes, CodeType type, int64_t begin, int64_t n, int32_t* out) {
  switch (type) {
    case CodeType::kUint8:
      return widen<uint8_t>(codes, begin, n, out);
    case CodeType::kInt8:
      return widen<int8_t>(codes, begin, n, out);
    case CodeType::kUint16:
      return widen<uint16_t>(codes, begin, n, out);
    default:
      return widen<int16_t>(codes, begin, n, out);
  }
}

// Exact in float64, so this is the float32 number next to the exact one.
inline float multiply_add(double codes, double factor, double rest) {
  return static_cast<float>(codes * factor + rest);
}

void run(const SumArgs& args) {
  parallel_for((args.n + kRun - 1) / kRun, kMinRunsPerThread, [&](int64_t which) {
    const int64_t begin = which * kRun, n = kRun < args.n - begin ? kRun : args.n - begin;
    int32_t a[kRun], b[kRun], codes[kRun];
    widen_from(args.a, args.a_type, begin, n, a);
    widen_from(args.b, args.b_type, begin, n, b);
    const double factor_a = args.factor_a, factor_b = args.factor_b, rest = args.rest;
    const float lower = static_cast<float>(args.lowest), upper = static_cast<float>(args.highest);
    DETENT_INDEPENDENT_LOOP
    for (int64_t i = 0; i < n; ++i) {
      const float inner = multiply_add(b[i], factor_b, rest);
      const float total = multiply_add(a[i], factor_a, inner);
      codes[i] = static_cast<int32_t>(round_clamped(total, lower, upper));
    }
    narrow_to(codes, n, args.out, args.type, begin);
  });
}

void of_values(const ValueSumArgs& args) {
  parallel_for((args.n + kRun - 1) / kRun, kMinRunsPerThread, [&](int64_t which) {
    const int64_t begin = which * kRun, n = kRun < args.n - begin ? kRun : args.n - begin;
    int32_t a[kRun], b[kRun], codes[kRun];
    widen_from(args.a, args.a_type, begin, n, a);
    widen_from(args.b, args.b_type, begin, n, b);
    const float scale_a = args.scale_a, scale_b = args.scale_b, scale = args.scale;
    const int32_t zero_a = args.zero_a, zero_b = args.zero_b, zero = args.zero;
    const float lower = static_cast<float>(args.lowest - zero), upper = static_cast<float>(args.highest - zero);
    DETENT_INDEPENDENT_LOOP
    for (int64_t i = 0; i < n; ++i) {
      const float total = static_cast<float>(a[i] - zero_a) * scale_a + static_cast<float>(b[i] - zero_b) * scale_b;
      codes[i] = static_cast<int32_t>(round_clamped(total / scale, lower, upper)) + zero;
    }
    narrow_to(codes, n, args.out, args.type, begin);
  });
}

// The place of the type's least code in a table that begins there.
int32_t first_of(CodeType type) { return type == CodeType::kInt8 ? 128 : type == CodeType::kInt16 ? 32768 : 0; }

void of_tables(const TableSumArgs& args) {
  const int32_t first_a = first_of(args.a_type), first_b = first_of(args.b_type);
  parallel_for((args.n + kRun - 1) / kRun, kMinRunsPerThread, [&](int64_t which) {
    const int64_t begin = which * kRun, n = kRun < args.n - begin ? kRun : args.n - begin;
    int32_t a[kRun], b[kRun];
    widen_from(args.a, args.a_type, begin, n, a);
    widen_from(args.b, args.b_type, begin, n, b);
    const int32_t *table_a = args.table_a + first_a, *table_b = args.table_b + first_b;
    int32_t* out = args.out + begin;
    DETENT_INDEPENDENT_LOOP
    for (int64_t i = 0; i < n; ++i) {
      out[i] = static_cast<int32_t>(static_cast<uint32_t>(table_a[a[i]]) + static_cast<uint32_t>(table_b[b[i]]));
    }
  });
}

}  // namespace

extern const SumTable sum_table = {.run = run, .of_values = of_values, .of_tables = of_tables};

}  // namespace detent::DETENT_ISA
