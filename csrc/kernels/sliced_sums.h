// SPDX-License-Identifier: Apache-2.0
// Sums over each channel in the order of kernels/slice_plan.h, of one or several terms of the same elements. Include
// from kernel sources only (they define DETENT_ISA).
//
// `Terms` has channel(c), the numbers of a channel, and these have add(at, sums, stride), which adds the terms of the
// element at that place to sums[0], sums[stride], ...: what varies between elements is passed, the rest is hoisted.
#pragma once

#include <cstdint>

#include "kernels/slice_plan.h"
#include "support/isa.h"
#include "support/parallel.h"

namespace detent::DETENT_ISA {

struct SummedShape {
  int64_t outer, channels, inner;
};

struct Slice {
  int64_t first_row, end_row, first, end;  // rows of outer; elements of inner
};

inline Slice slice_at(const SummedShape& shape, const SlicePlan& plan, int64_t s) {
  const int64_t k = s / plan.inner_slices, j = s % plan.inner_slices;
  Slice slice{k * plan.outer_rows, (k + 1) * plan.outer_rows, j * plan.inner_run, (j + 1) * plan.inner_run};
  if (slice.end_row > shape.outer) slice.end_row = shape.outer;
  if (slice.end > shape.inner) slice.end = shape.inner;
  return slice;
}

inline double halve(double* lanes) {
  for (int64_t width = SlicePlan::kLanes / 2; width > 0; width /= 2) {
    for (int64_t l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  }
  return lanes[0];
}

// One channel's sums over a slice; out[kSums], `stride` apart.
template <int kSums, class Terms>
inline void sum_rows(const SummedShape& shape, const Slice& slice, const Terms& terms, int64_t c, double* out,
                     int64_t stride) {
  constexpr int64_t kLanes = SlicePlan::kLanes;
  alignas(64) double lanes[kSums * kLanes] = {};
  const auto channel = terms.channel(c);
  for (int64_t o = slice.first_row; o < slice.end_row; ++o) {
    const int64_t row = (o * shape.channels + c) * shape.inner;
    int64_t i = slice.first;
    for (; i + kLanes <= slice.end; i += kLanes) {
      for (int64_t l = 0; l < kLanes; ++l) channel.add(row + i + l, lanes + l, kLanes);
    }
    for (int64_t l = 0; i < slice.end; ++i, ++l) channel.add(row + i, lanes + l, kLanes);
  }
  for (int k = 0; k < kSums; ++k) out[k * stride] = halve(lanes + k * kLanes);
}

// Sums over a slice of n channels starting at c, where channels are innermost.
template <int kSums, class Terms>
inline void sum_channels(const SummedShape& shape, const Slice& slice, const Terms& terms, int64_t c, int64_t n,
                         double* out) {
  for (int k = 0; k < kSums; ++k) {
    for (int64_t i = 0; i < n; ++i) out[k * shape.channels + i] = 0.0;
  }
  for (int64_t o = slice.first_row; o < slice.end_row; ++o) {
    const int64_t row = o * shape.channels + c;
    for (int64_t i = 0; i < n; ++i) terms.channel(c + i).add(row + i, out + i, shape.channels);
  }
}

// partial: plan.slices() * kSums * channels doubles, slice by slice and sum by sum.
template <int kSums, class Terms>
void sum_slices(const SummedShape& shape, const SlicePlan& plan, const Terms& terms, double* partial) {
  constexpr int64_t kChannelRun = 512;              // where channels are innermost: sums stay in the first-level cache
  constexpr int64_t kMinElementsPerThread = 65536;  // worth a thread
  const int64_t run = shape.inner == 1 ? kChannelRun : 1;
  const int64_t runs = (shape.channels + run - 1) / run;
  const int64_t tasks = plan.slices() * runs;
  const int64_t elements_per_task = shape.outer * shape.channels * shape.inner / (tasks > 0 ? tasks : 1) + 1;
  parallel_for(tasks, kMinElementsPerThread / elements_per_task + 1, [&](int64_t task) {
    const int64_t s = task / runs, c = task % runs * run;
    const Slice slice = slice_at(shape, plan, s);
    double* out = partial + s * kSums * shape.channels + c;
    if (shape.inner == 1) {
      sum_channels<kSums>(shape, slice, terms, c, run < shape.channels - c ? run : shape.channels - c, out);
    } else {
      sum_rows<kSums>(shape, slice, terms, c, out, shape.channels);
    }
  });
}

// Adds the slices of n sums in order.
inline void add_partials(int64_t slices, int64_t n, const double* partial, double* sums) {
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0.0;
    for (int64_t s = 0; s < slices; ++s) sum += partial[s * n + i];
    sums[i] = sum;
  }
}

}  // namespace detent::DETENT_ISA
