// SPDX-License-Identifier: Apache-2.0
// Pieces of a convolution, laid out and cut into tiles of operands. Include from kernel sources only.
#pragma once

#include "kernels/integer_ending.h"
#include "kernels/integer_packing.h"

namespace detent::DETENT_ISA {

// Some samples, or some rows of the output of one.
struct Piece {
  int64_t sample, samples, row, rows;

  Piece(const ConvGeometry& g, const ConvPlan& plan, int64_t number)
      : sample(number / plan.bands * plan.samples), row(number % plan.bands * plan.rows) {
    samples = plan.samples < g.samples - sample ? plan.samples : g.samples - sample;
    rows = plan.rows < g.out_height - row ? plan.rows : g.out_height - row;
  }
  int64_t area(const ConvGeometry& g) const { return rows * g.out_width; }
};

template <class Code, int64_t kPer>
struct Tiles {
  const ConvGeometry& g;
  const ConvPlan& plan;
  const Code* x;
  int32_t zero_point;
  int32_t* planes;
  int32_t* tile;
  using Packs = Packing<Code, kPer>;

  // Where the channels of an operand begin; a missing one, whose weights are zero, is read from the first.
  void channels(int64_t sample, int64_t group, int64_t operand, const Code** from) const {
    const Code* first = x + ((sample * g.groups + group) * g.inputs + operand * kPer) * g.area();
    for (int64_t k = 0; k < kPer; ++k) from[k] = operand * kPer + k < g.inputs ? first + k * g.area() : first;
  }

  // Padded planes of a group, [operands, samples, rows, columns].
  void lay_out(const Piece& piece, int64_t group) const {
    const int64_t columns = g.reached_columns(), rows = g.reached_rows(piece.rows);
    const int64_t top = piece.row * g.stride_y - g.top;
    const int64_t left = g.left < columns ? g.left : columns;
    const int64_t inside = g.width < columns - left ? g.width : columns - left;
    const int32_t padding = Packs::padding(zero_point);
    for (int64_t c = 0; c < plan.operands(g); ++c) {
      for (int64_t s = 0; s < piece.samples; ++s) {
        const Code *from[kPer], *at[kPer];
        channels(piece.sample + s, group, c, from);
        int32_t* to = planes + (c * plan.samples + s) * plan.plane;
        for (int64_t r = 0; r < rows; ++r, to += columns) {
          const int64_t y = top + r;
          const bool held = 0 <= y && y < g.height;
          for (int64_t i = 0; i < (held ? left : columns); ++i) to[i] = padding;
          if (!held) continue;
          for (int64_t k = 0; k < kPer; ++k) at[k] = from[k] + y * g.width;
          Packs::operands(at, inside, zero_point, to + left);
          for (int64_t i = left + inside; i < columns; ++i) to[i] = padding;
        }
      }
    }
  }

  // The tile of positions first .. first + n of a piece, from its planes.
  void copy(const Piece& piece, int64_t first, int64_t n) const {
    const int64_t columns = g.reached_columns(), area = piece.area(g);
    for (int64_t i = 0; i < n;) {
      const int64_t s = (first + i) / area, at = (first + i) % area, y = at / g.out_width, column = at % g.out_width;
      const int64_t run = g.out_width - column < n - i ? g.out_width - column : n - i;
      const int32_t* from = planes + s * plan.plane + y * g.stride_y * columns + column * g.stride_x;
      int32_t* to = tile + i;
      for (int64_t c = 0; c < plan.operands(g); ++c) {
        for (int64_t ky = 0; ky < g.kernel_height; ++ky) {
          const int32_t* row = from + c * plan.samples * plan.plane + ky * g.dilation_y * columns;
          for (int64_t kx = 0; kx < g.kernel_width; ++kx, to += ConvPlan::kPitch) {
            copy_run(row + kx * g.dilation_x, run, to);
          }
        }
      }
      i += run;
    }
  }

  // May write a vector too much, where the next run follows.
  void copy_run(const int32_t* from, int64_t n, int32_t* to) const {
    if (g.stride_x == 1) {
      for (int64_t i = 0; i < n; i += kLanes) simd::store(to + i, simd::load(from + i));
    } else {
      for (int64_t i = 0; i < n; ++i) to[i] = from[i * g.stride_x];
    }
  }

  // The same of a pointwise layer, from its codes.
  void pack(const Piece& piece, int64_t group, int64_t first, int64_t n) const {
    const int64_t area = piece.area(g), begin = piece.row * g.out_width;
    for (int64_t i = 0; i < n;) {
      const int64_t s = (first + i) / area, at = (first + i) % area;
      const int64_t run = area - at < n - i ? area - at : n - i;
      for (int64_t c = 0; c < plan.taps; ++c) {
        const Code* from[kPer];
        channels(piece.sample + s, group, c, from);
        for (int64_t k = 0; k < kPer; ++k) from[k] += begin + at;
        Packs::operands(from, run, zero_point, tile + c * ConvPlan::kPitch + i);
      }
      i += run;
    }
  }

  // Lanes behind the last position repeat it.
  void fill_up(int64_t n) const {
    const int64_t whole = (n + kLanes - 1) / kLanes * kLanes;
    if (whole == n) return;
    for (int64_t t = 0; t < plan.taps; ++t) {
      int32_t* row = tile + t * ConvPlan::kPitch;
      for (int64_t i = n; i < whole; ++i) row[i] = row[n - 1];
    }
  }
};

}  // namespace detent::DETENT_ISA
