// SPDX-License-Identifier: Apache-2.0
// Convolutions on integer codes, accumulated exactly and requantized in the same read. A linear layer is one of a
// single position for each row.
//
// Computes   out[s, o, y, x] = requantize(bias[o] + sum over c, i, j of kernel[o, c, i, j] *
//                  (x[s, c, y * stride + i * dilation - top, ...] - zero_point)), nothing where that lies outside.
// Requires   kernels as int16 without their zero points; x of 8 bits (int32 accumulators) or 16 bits (int64). The
// caller
//            knows that accumulators of 32 bits are enough: they wrap around otherwise. C order everywhere.
// Rounding   in requantize only. The conversion of an accumulator is that of kernels/requantize.h.
// Order      none: integers are exact, so all instruction sets and thread counts agree.
// Method     codes are packed into operands of 32 bits, as many side by side as one instruction multiplies: four bytes
//            where there are byte dot products and the kernel fits int8, else two of 16 bits, else one. A piece (some
//            samples, or some rows of one) is laid out as padded planes of operands; from these a tile, [taps, some
//            positions], is copied and multiplied with rows of packed weights in registers. Layers of 1 x 1 pack tiles
//            straight from the codes. Depthwise layers on byte dot products: kernels/integer_depthwise.h.
// Threads    over pieces; scratch memory is the caller's.
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

  int64_t area() const { return height * width; }
  int64_t out_area() const { return out_height * out_width; }
  int64_t window() const { return kernel_height * kernel_width; }
  // What some rows of the output read: rows and columns, padding included.
  int64_t reached_rows(int64_t rows) const { return (rows - 1) * stride_y + (kernel_height - 1) * dilation_y + 1; }
  int64_t reached_columns() const { return (out_width - 1) * stride_x + (kernel_width - 1) * dilation_x + 1; }
  // Each position reads the same position only.
  bool pointwise() const {
    return window() == 1 && stride_y == 1 && stride_x == 1 && top == 0 && left == 0 && out_height == height &&
           out_width == width;
  }
};

// Codes that are read.
struct Codes {
  const void* data;
  CodeType type;
  int32_t zero_point;
  bool wide() const { return type != CodeType::kUint8 && type != CodeType::kInt8; }
};

struct ProductArgs {
  Codes x;
  const int16_t* kernel;  // [outputs, inputs, kernel_height, kernel_width], of all groups one after the other
  const int64_t* bias;    // by output, or null
  Requantization how;
  void* out;
  CodeType type;
  int64_t* extremes;  // [slots, 2] for the least and the greatest accumulator; untouched by slots without work
};

// How a convolution is split, and the scratch memory that takes.
struct ConvPlan {
  int64_t per_tap;  // codes in an operand
  int64_t taps;     // operands of one output
  int64_t samples;  // in a piece
  int64_t rows;     // of the output in a piece; all of them where a piece has several samples
  int64_t bands;    // pieces of a sample
  int64_t pieces;
  int64_t slots;  // each works on some pieces with memory of its own
  int64_t plane;  // of one sample's rows and one operand
  bool pointwise;
  int64_t depthwise;  // operands that a way of its own takes, or 0

  static constexpr int64_t kTile = 48, kPitch = 64, kSlack = 64;
  ConvPlan(const ConvGeometry& g, int64_t codes_per_tap, int64_t depthwise_memory, int64_t threads);
  int64_t operands(const ConvGeometry& g) const { return (g.inputs + per_tap - 1) / per_tap; }
  int64_t weights(const ConvGeometry& g) const { return g.groups * g.outputs * taps; }
  int64_t planes(const ConvGeometry& g) const { return pointwise ? 0 : operands(g) * samples * plane + kSlack; }
  int64_t slot(const ConvGeometry& g) const { return (planes(g) + taps * kPitch + 15) / 16 * 16; }
  int64_t memory(const ConvGeometry& g) const { return depthwise > 0 ? depthwise : slots * slot(g); }
};

struct ConvScratch {
  int32_t* weights;  // plan.weights
  int64_t* starts;   // by output: where accumulators begin
  int32_t* slots;    // plan.memory, on a boundary of 64 bytes
};

struct ProductTable {
  // Codes of 8 bits in an operand, for kernels that fit int8.
  int64_t codes_per_tap;
  // Operands that a way of its own takes for layers of bytes with kernels that fit int8; 0 where there is none.
  int64_t (*depthwise_memory)(const ConvGeometry& g);
  void (*conv)(const ProductArgs& args, const ConvGeometry& g, const ConvPlan& plan, const ConvScratch& scratch);
};

DETENT_DOT_KERNEL_TABLE(ProductTable, product_table);

inline ConvPlan::ConvPlan(const ConvGeometry& g, int64_t codes_per_tap, int64_t depthwise_memory, int64_t threads)
    : per_tap(codes_per_tap), pointwise(g.pointwise()), depthwise(depthwise_memory) {
  constexpr int64_t kPositions = 1024, kFew = 384, kOperands = int64_t{1} << 16;  // of a piece; a quarter megabyte
  constexpr int64_t kWorthAThread = int64_t{1} << 20;                             // products
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  const auto parts = [](int64_t whole, int64_t part) { return (whole + part - 1) / part; };
  taps = operands(g) * g.window();
  const int64_t row = operands(g) * g.reached_columns(), fixed = row * g.reached_rows(1);
  const int64_t fitting = pointwise ? g.out_height : kOperands > fixed ? (kOperands - fixed) / (row * g.stride_y) : 0;
  rows = least(least(parts(kPositions, g.out_width), fitting + 1), g.out_height);
  bands = parts(g.out_height, rows);
  const int64_t held = pointwise ? 1 : row * g.reached_rows(rows);
  const int64_t together = least(parts(kFew, g.out_area()), kOperands / held);
  samples = bands > 1 || together < 1 ? 1 : least(together, g.samples);
  pieces = bands > 1 ? g.samples * bands : parts(g.samples, samples);
  plane = g.reached_rows(rows) * g.reached_columns();
  if (depthwise > 0) pieces = g.samples * g.groups;
  const double products = static_cast<double>(g.samples * g.out_area()) * static_cast<double>(g.groups * g.outputs) *
                          static_cast<double>(g.inputs * g.window() + 32);
  const auto useful = products < 1e15 ? static_cast<int64_t>(products) / kWorthAThread : threads;
  slots = least(least(threads, pieces), useful < 1 ? 1 : useful);
}

}  // namespace detent
