// SPDX-License-Identifier: Apache-2.0
#include "kernels/dropping.h"

#include "kernels/grid_walk.h"
#include "kernels/sliced_sums.h"
#include "support/rounding.h"

namespace detent::DETENT_ISA {
namespace {

template <bool kDrawn>
void round_some(const DroppingArgs& args) {
  parallel_for((args.n + kBlock - 1) / kBlock, kMinBlocksPerThread, [&](int64_t block) {
    const int64_t begin = block * kBlock, end = begin + kBlock < args.n ? begin + kBlock : args.n;
    const float scale = args.scale, lower = args.lower, upper = args.upper;
    const int32_t below = args.below;
    const float* x = args.x;
    const uint8_t* drawn = args.drawn;
    float* out = args.out;
    DETENT_INDEPENDENT_LOOP
    for (int64_t i = begin; i < end; ++i) {
      const float value = x[i];
      const float rounded = fake_quantize_value(value, scale, lower, upper);
      if constexpr (kDrawn) {
        out[i] = drawn[i] < below ? value : rounded;
      } else {
        out[i] = rounded;
      }
    }
  });
}

// Elements [begin, begin + n): gradients of x, and factors of the terms of the sum, zero where nothing is rounded. A
// loop of its own: bytes may be anything's, and a sum in the same loop would be taken element by element.
template <bool kDrawn>
inline void find_slopes(const DroppingArgs& args, int64_t begin, int64_t n, float* kept, float* slopes) {
  const float scale = args.scale, lower = args.lower, upper = args.upper;
  const int32_t below = args.below;
  const float *x = args.x + begin, *g = args.g + begin;
  const uint8_t* drawn = kDrawn ? args.drawn + begin : nullptr;
  float* out = args.out + begin;
  DETENT_INDEPENDENT_LOOP
  for (int64_t i = 0; i < n; ++i) {
    const float quotient = x[i] / scale, gradient = g[i];
    const float wide = round_clamped(quotient, lower - 1.0f, upper + 1.0f);
    const float code = round_clamped(quotient, lower, upper);
    const bool inside = wide >= lower && wide <= upper;
    const float slope = inside ? code - quotient : code;
    const bool left = kDrawn && drawn[i] < below;
    out[i] = left || inside ? gradient : 0.0f;
    kept[i] = left ? 0.0f : gradient;
    slopes[i] = left ? 0.0f : slope;
  }
}

template <bool kDrawn>
double sum_slice(const DroppingArgs& args, const Slice& slice) {
  constexpr int64_t kLanes = SlicePlan::kLanes, kChunk = 64 * kLanes;
  alignas(64) double lanes[kLanes] = {};
  alignas(64) float kept[kChunk], slopes[kChunk];
  for (int64_t begin = slice.first; begin < slice.end; begin += kChunk) {
    const int64_t n = kChunk < slice.end - begin ? kChunk : slice.end - begin;
    find_slopes<kDrawn>(args, begin, n, kept, slopes);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int64_t l = 0; l < kLanes; ++l) {
        lanes[l] += static_cast<double>(kept[i + l]) * static_cast<double>(slopes[i + l]);
      }
    }
    for (int64_t l = 0; i < n; ++i, ++l) lanes[l] += static_cast<double>(kept[i]) * static_cast<double>(slopes[i]);
  }
  return halve(lanes);
}

void round(const DroppingArgs& args) { args.drawn ? round_some<true>(args) : round_some<false>(args); }

double gradients(const DroppingArgs& args, const SlicePlan& plan, double* partial) {
  constexpr int64_t kMinElementsPerThread = 65536;
  const SummedShape shape{1, 1, args.n};
  parallel_for(plan.slices(), kMinElementsPerThread / (plan.inner_run + 1) + 1, [&](int64_t s) {
    const Slice slice = slice_at(shape, plan, s);
    partial[s] = args.drawn ? sum_slice<true>(args, slice) : sum_slice<false>(args, slice);
  });
  double sum = 0.0;
  add_partials(plan.slices(), 1, partial, &sum);
  return sum;
}

}  // namespace

extern const DroppingTable dropping_table = {.round = round, .gradients = gradients};

}  // namespace detent::DETENT_ISA
