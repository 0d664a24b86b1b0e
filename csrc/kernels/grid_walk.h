// SPDX-License-Identifier: Apache-2.0
// Loops shared by the element-wise quantization kernels. Included by kernel sources only: everything lives in the
// namespace of the instruction set being compiled.
//
// An operation is a struct with types In and Out and `static Out of(In x, float scale, float inverse, float lower,
// float upper, int32_t zero_point)`; what it does not use is not loaded. Input and output may be the same array: each
// element is read before it is written, and no element is read twice.
#pragma once

#include <cstdint>

#include "kernels/grid_view.h"
#include "support/parallel.h"

#if defined(__clang__)
#define DETENT_INDEPENDENT_LOOP _Pragma("clang loop vectorize(assume_safety)")
#else
#define DETENT_INDEPENDENT_LOOP _Pragma("GCC ivdep")
#endif

namespace detent::DETENT_ISA {
namespace {

// The unit of work of a thread: even, so that packed codes of two blocks never share a byte.
constexpr int64_t kBlock = 16384;
// Starting a thread costs about as much as one block.
constexpr int64_t kMinBlocksPerThread = 4;

struct Entry {
  float scale, inverse, lower, upper;
  int32_t zero_point;
};

inline Entry entry_at(const GridView& grid, int64_t e) {
  return {grid.scale[e], grid.inverse[e], grid.lower[e], grid.upper[e], grid.zero_point[e]};
}

// n elements of one channel.
template <class Op>
inline void same_entry(const typename Op::In* x, typename Op::Out* out, int64_t n, const Entry& e) {
  DETENT_INDEPENDENT_LOOP
  for (int64_t i = 0; i < n; ++i) out[i] = Op::of(x[i], e.scale, e.inverse, e.lower, e.upper, e.zero_point);
}

// n elements that take consecutive entries.
template <class Op>
inline void consecutive_entries(const typename Op::In* x, typename Op::Out* out, int64_t n, const GridView& grid,
                                int64_t first) {
  const float *scale = grid.scale + first, *inverse = grid.inverse + first;
  const float *lower = grid.lower + first, *upper = grid.upper + first;
  const int32_t* zero_point = grid.zero_point + first;
  DETENT_INDEPENDENT_LOOP
  for (int64_t i = 0; i < n; ++i) out[i] = Op::of(x[i], scale[i], inverse[i], lower[i], upper[i], zero_point[i]);
}

// A place in the tensor: the entry of the next element, and how many elements it is still good for.
struct Cursor {
  int64_t entry, left;
};

inline Cursor cursor_at(const GridView& grid, int64_t begin) {
  const int64_t row = begin / grid.inner;
  return {row % grid.entries, (row + 1) * grid.inner - begin};
}

// The next n elements; x and out point at the first of them.
template <class Op>
inline void advance(const typename Op::In* x, typename Op::Out* out, int64_t n, const GridView& grid, Cursor& cursor) {
  for (int64_t done = 0; done < n;) {
    const int64_t reach = grid.inner > 1 ? cursor.left : grid.entries - cursor.entry;
    const int64_t run = reach < n - done ? reach : n - done;
    if (grid.inner > 1) {
      same_entry<Op>(x + done, out + done, run, entry_at(grid, cursor.entry));
      cursor.left -= run;
      if (cursor.left == 0) cursor = {cursor.entry + 1, grid.inner};
    } else {
      consecutive_entries<Op>(x + done, out + done, run, grid, cursor.entry);
      cursor.entry += run;
    }
    if (cursor.entry == grid.entries) cursor.entry = 0;
    done += run;
  }
}

// Elements [begin, begin + n) of the tensor; x and out point at the first of them.
template <class Op>
inline void segment(const typename Op::In* x, typename Op::Out* out, int64_t begin, int64_t n, const GridView& grid) {
  if (n <= 0) return;
  Cursor cursor = cursor_at(grid, begin);
  advance<Op>(x, out, n, grid, cursor);
}

// All n elements, in blocks over the threads.
template <class Op>
void walk(const typename Op::In* x, typename Op::Out* out, int64_t n, const GridView& grid) {
  parallel_for((n + kBlock - 1) / kBlock, kMinBlocksPerThread, [&](int64_t block) {
    const int64_t begin = block * kBlock;
    segment<Op>(x + begin, out + begin, begin, kBlock < n - begin ? kBlock : n - begin, grid);
  });
}

}  // namespace
}  // namespace detent::DETENT_ISA
