// SPDX-License-Identifier: Apache-2.0
// Convolutions and linear layers on integer codes, accumulated exactly and requantized in the same read.
//
// Computes   conv: out[s, o, y, x] = requantize(bias[o] + sum over c, i, j of kernel[o, c, i, j] *
//                  (x[s, c, y * stride + i * dilation - top, ...] - zero_point)), nothing where that lies outside;
//            linear: out[r, o] = requantize(bias[o] + sum over c of kernel[o, c] * (x[r, c] - zero_point)).
// Requires   kernels as int16 without their zero points; x of 8 bits (int32 accumulators) or 16 bits (int64). The
// caller
//            knows that accumulators of 32 bits are enough: they wrap around otherwise. C order everywhere.
// Rounding   in requantize only. The conversion of an accumulator is that of kernels/requantize.h.
// Order      none: integers are exact, so all instruction sets and thread counts agree.
// Method     x is laid out once so that a kernel of any stride and dilation reads runs: for each pair of channels and
//            each remainder of row and column by the strides, a dense plane. An output row is then the sum over taps
//            (pair of channels, i, j) of a broadcast pair of weights times a run of pairs: no patches are copied.
//            Linear layers are the same with the roles of x and kernel exchanged.
// Threads    over samples, groups and runs of positions; scratch memory is the caller's.
#pragma once

#include <cstdint>

#include "kernels/requantize.h"
#include "support/isa.h"

namespace detent {

struct ConvGeometry {
  int64_t samples, groups, inputs, outputs;  // channels of one group
  int64_t height, width, kernel_height, kernel_width;
  int64_t stride_y, stride_x, top, left, dilation_y, dilation_x;
  int64_t out_height, out_width;

  // Planes of one group and sample: rows and columns of each, and how many int32 they take with all others.
  int64_t plane_rows() const { return (last_row() + stride_y) / stride_y; }
  int64_t plane_columns() const { return (last_column() + stride_x) / stride_x; }
  int64_t last_row() const { return (out_height - 1) * stride_y + (kernel_height - 1) * dilation_y; }
  int64_t last_column() const { return (out_width - 1) * stride_x + (kernel_width - 1) * dilation_x; }
  int64_t plane_size() const { return plane_rows() * plane_columns(); }
};

// Codes that are read, and how many of their channels make one tap: two of 8 bits, one of 16.
struct Codes {
  const void* data;
  CodeType type;
  int32_t zero_point;
  int64_t per_tap() const { return type == CodeType::kUint8 || type == CodeType::kInt8 ? 2 : 1; }
};

struct ProductArgs {
  Codes x;
  const int16_t* kernel;  // [outputs, inputs, kernel_height, kernel_width], of all groups one after the other
  const int64_t* bias;    // by output, or null
  Requantization how;
  void* out;
  CodeType type;
  int64_t* extremes;  // [tasks, 2] for the least and the greatest accumulator of each task
};

// Scratch, in int32.
struct ConvScratch {
  int64_t taps;       // of one group
  int64_t weights;    // broadcast operands of all groups
  int64_t sample;     // planes of all groups of one sample
  int64_t at_a_time;  // samples
  int64_t tasks;      // over all samples
  int64_t blocks;     // of positions in one group and sample
  static constexpr int64_t kBlock = 512, kSlack = 64;
  ConvScratch(const ConvGeometry& g, const Codes& x);
};

struct LinearScratch {
  int64_t taps, weights, rows;  // `rows`: broadcast operands of all rows
  int64_t row_blocks, column_blocks;
  static constexpr int64_t kRows = 64, kColumns = 256, kSlack = 64;
  LinearScratch(int64_t row_count, int64_t inputs, int64_t outputs, const Codes& x);
  int64_t tasks() const { return row_blocks * column_blocks; }
};

struct ProductTable {
  // weights: scratch.weights; planes: scratch.at_a_time * scratch.sample + kSlack; offsets: scratch.taps.
  void (*conv)(const ProductArgs& args, const ConvGeometry& g, const ConvScratch& scratch, int32_t* weights,
               int32_t* planes, int64_t* offsets);
  // weights: scratch.weights + kSlack; rows: scratch.rows; offsets: scratch.taps.
  void (*linear)(const ProductArgs& args, int64_t rows, int64_t inputs, int64_t outputs, const LinearScratch& scratch,
                 int32_t* weights, int32_t* row_operands, int64_t* offsets);
};

DETENT_KERNEL_TABLE(ProductTable, product_table);

inline ConvScratch::ConvScratch(const ConvGeometry& g, const Codes& x) {
  constexpr int64_t kTogether = int64_t{1} << 18;  // a megabyte of planes
  const int64_t channels = (g.inputs + x.per_tap() - 1) / x.per_tap();
  taps = channels * g.kernel_height * g.kernel_width;
  weights = g.groups * g.outputs * taps;
  sample = g.groups * channels * g.stride_y * g.stride_x * g.plane_size();
  const int64_t fitting = sample > 0 ? kTogether / sample : 1;
  at_a_time = fitting < 1 ? 1 : fitting < g.samples ? fitting : g.samples;
  const int64_t positions = (g.out_height - 1) * g.plane_columns() + g.out_width;
  blocks = (positions + kBlock - 1) / kBlock;
  tasks = g.samples * g.groups * blocks;
}

inline LinearScratch::LinearScratch(int64_t row_count, int64_t inputs, int64_t outputs, const Codes& x) {
  taps = (inputs + x.per_tap() - 1) / x.per_tap();
  weights = taps * outputs;
  rows = taps * row_count;
  row_blocks = (row_count + kRows - 1) / kRows;
  column_blocks = (outputs + kColumns - 1) / kColumns;
}

}  // namespace detent
