// SPDX-License-Identifier: Apache-2.0
// How the sums of each channel of a dense [outer, channels, inner] array are cut: enough slices for many threads, few
// enough for their partial sums to be small.
//
// Order      fixed by the shape alone. Rows (outer) and the elements of a row (inner) are cut into slices. Within a
//            slice, element i of a row goes to lane i % 16; rows follow each other in the same lanes; lanes are added
//            by halving (0 + 8, ..., then 0 + 4, ...). With inner = 1 a slice adds its rows one after the other. Slices
//            are added in order, outer ones first. The same bits on every instruction set and thread count.
#pragma once

#include <cstdint>

namespace detent {

struct SlicePlan {
  static constexpr int64_t kLanes = 16;
  static constexpr int64_t kMostSlices = 64;
  static constexpr int64_t kMostPartials = 65536;
  static constexpr int64_t kLeastRun = 4096;

  int64_t outer_slices, outer_rows;  // rows per slice, the last one may have fewer
  int64_t inner_slices, inner_run;   // elements of a row per slice, a multiple of kLanes

  int64_t slices() const { return outer_slices * inner_slices; }

  SlicePlan(int64_t outer, int64_t channels, int64_t inner) {
    int64_t most = channels > 0 ? kMostPartials / channels : kMostSlices;
    most = most < 1 ? 1 : most > kMostSlices ? kMostSlices : most;
    outer_slices = outer < most ? (outer < 1 ? 1 : outer) : most;
    outer_rows = (outer + outer_slices - 1) / outer_slices;
    const int64_t runs = inner / kLeastRun;
    const int64_t left = most / outer_slices;
    inner_slices = runs < 1 ? 1 : runs < left ? runs : left;
    const int64_t run = (inner + inner_slices - 1) / inner_slices;
    inner_run = (run + kLanes - 1) / kLanes * kLanes;
  }
};

}  // namespace detent
