// SPDX-License-Identifier: Apache-2.0
#include "kernels/lut.h"

#include "kernels/grid_walk.h"

namespace detent::DETENT_ISA {
namespace {

constexpr int64_t kRun = 256;  // elements looked up together: quotients and codes stay in the first-level cache
static_assert(kBlock % kRun == 0);
constexpr int32_t kFewEntries = 16;

template <bool kInverse>
struct Quotient {
  using In = float;
  using Out = float;
  static float of(float x, float scale, float inverse, float, float, int32_t) {
    return kInverse ? x * inverse : x / scale;
  }
};

struct Level {
  using In = float;
  using Out = float;
  // Adding zero turns the -0 of an underflow into +0.
  static float of(float level, float scale, float, float, float, int32_t) { return level * scale + 0.0f; }
};

// codes[i] = number of bounds below q[i]; 0 for NaN.
inline void find(const float* q, int32_t* codes, int64_t n, const LutView& lut) {
  for (int64_t i = 0; i < n; ++i) codes[i] = 0;
  const float* bounds = lut.bounds;
  if (lut.size <= kFewEntries) {
    for (int32_t b = 0; b + 1 < lut.size; ++b) {
      const float bound = bounds[b];
      for (int64_t i = 0; i < n; ++i) codes[i] += bound < q[i] ? 1 : 0;
    }
    return;
  }
  for (int32_t step = 1 << (lut.depth - 1); step > 0; step /= 2) {
    for (int64_t i = 0; i < n; ++i) codes[i] += bounds[codes[i] + step - 1] < q[i] ? step : 0;
  }
}

// body(begin, count) over the tensor in runs of at most kRun.
template <class Body>
void walk_runs(int64_t n, const Body& body) {
  parallel_for((n + kBlock - 1) / kBlock, kMinBlocksPerThread, [&](int64_t block) {
    const int64_t end = (block + 1) * kBlock < n ? (block + 1) * kBlock : n;
    for (int64_t begin = block * kBlock; begin < end; begin += kRun) {
      body(begin, kRun < end - begin ? kRun : end - begin);
    }
  });
}

inline void quotients(const float* x, float* q, int64_t begin, int64_t count, const LutView& lut) {
  lut.grid.exact_inverse ? segment<Quotient<true>>(x + begin, q, begin, count, lut.grid)
                         : segment<Quotient<false>>(x + begin, q, begin, count, lut.grid);
}

void fake_quantize(const float* x, float* out, int64_t n, const LutView& lut) {
  const float* table = lut.table;
  walk_runs(n, [&](int64_t begin, int64_t count) {
    float q[kRun], levels[kRun];
    int32_t codes[kRun];
    quotients(x, q, begin, count, lut);
    find(q, codes, count, lut);
    for (int64_t i = 0; i < count; ++i) levels[i] = q[i] == q[i] ? table[codes[i]] : q[i];
    segment<Level>(levels, out + begin, begin, count, lut.grid);
  });
}

void quantize(const float* x, uint8_t* out, int64_t n, const LutView& lut) {
  walk_runs(n, [&](int64_t begin, int64_t count) {
    float q[kRun];
    int32_t codes[kRun];
    quotients(x, q, begin, count, lut);
    find(q, codes, count, lut);
    for (int64_t i = 0; i < count; ++i) {
      out[begin + i] = static_cast<uint8_t>(q[i] == q[i] ? codes[i] : lut.zero_code);
    }
  });
}

void dequantize(const uint8_t* codes, float* out, int64_t n, const LutView& lut) {
  const float* table = lut.table;
  walk_runs(n, [&](int64_t begin, int64_t count) {
    float levels[kRun];
    for (int64_t i = 0; i < count; ++i) levels[i] = table[codes[begin + i]];
    segment<Level>(levels, out + begin, begin, count, lut.grid);
  });
}

}  // namespace

extern const LutTable lut_table = {.fake_quantize = fake_quantize, .quantize = quantize, .dequantize = dequantize};

}  // namespace detent::DETENT_ISA
