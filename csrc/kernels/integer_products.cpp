// SPDX-License-Identifier: Apache-2.0
#include "kernels/integer_products.h"

#include <type_traits>

#include "kernels/grid_walk.h"
#include "kernels/requantize_rules.h"
#include "support/parallel.h"
#include "support/simd.h"

namespace detent::DETENT_ISA {
namespace {

using simd::Ints;
constexpr int64_t kRowsAtOnce = 4;
#if defined(__AVX512F__)
constexpr int64_t kVectors = 4;
#else
constexpr int64_t kVectors = 2;
#endif
constexpr int64_t kLanes = sizeof(Ints) / 4, kRun = kVectors * kLanes;
static_assert(kRun <= ConvScratch::kSlack && kRun <= LinearScratch::kSlack);

// Broadcast operands [rows, taps], and where each tap begins in the streamed ones.
struct Operands {
  const int32_t* broadcast;
  const int32_t* stream;
  const int64_t* offsets;
  int64_t taps;
};

// Pairs of int16 summed into int32: rows of accumulators for some vectors of positions from `p` on.
template <int64_t kRows, int64_t kSome>
void accumulate_vectors(const Operands& op, int64_t row, int64_t p, int32_t (*acc)[kRun]) {
  Ints sums[kRows][kSome] = {};
  const int32_t* weights = op.broadcast + row * op.taps;
  for (int64_t t = 0; t < op.taps; ++t) {
    const int32_t* from = op.stream + op.offsets[t] + p;
    Ints values[kSome];
    for (int64_t v = 0; v < kSome; ++v) values[v] = simd::load(from + v * kLanes);
    for (int64_t r = 0; r < kRows; ++r) {
      const Ints weight = Ints{} + weights[r * op.taps + t];
      for (int64_t v = 0; v < kSome; ++v) sums[r][v] += simd::multiply_pairs(weight, values[v]);
    }
  }
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t v = 0; v < kSome; ++v) simd::store(acc[r] + v * kLanes, sums[r][v]);
  }
}

template <int64_t kRows>
void accumulate(const Operands& op, int64_t row, int64_t p, int64_t n, int32_t (*acc)[kRun]) {
  static_assert(kVectors == 2 || kVectors == 4);
  if (n <= kLanes) return accumulate_vectors<kRows, 1>(op, row, p, acc);
  if (n <= 2 * kLanes) return accumulate_vectors<kRows, 2>(op, row, p, acc);
  if constexpr (kVectors == 4) {
    if (n <= 3 * kLanes) return accumulate_vectors<kRows, 3>(op, row, p, acc);
    accumulate_vectors<kRows, 4>(op, row, p, acc);
  }
}

// Single numbers summed into int64, for n positions.
template <int64_t kRows>
void accumulate(const Operands& op, int64_t row, int64_t p, int64_t n, int64_t (*acc)[kRun]) {
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t i = 0; i < n; ++i) acc[r][i] = 0;
  }
  for (int64_t t = 0; t < op.taps; ++t) {
    const int32_t* from = op.stream + op.offsets[t] + p;
    for (int64_t r = 0; r < kRows; ++r) {
      const int64_t weight = op.broadcast[(row + r) * op.taps + t];
      DETENT_INDEPENDENT_LOOP
      for (int64_t i = 0; i < n; ++i) acc[r][i] += weight * from[i];
    }
  }
}

// Wraps around.
inline int32_t plus(int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
}
inline int64_t plus(int64_t a, int64_t b) { return a + b; }

// Where accumulators go: positions come in rows of `pitch`, of which the first `run` count.
struct Ending {
  const int64_t* bias;
  Requantization how;
  void* out;
  CodeType type;
  int64_t first, row_stride;  // place of row 0 and position 0, and from row to row
  int64_t pitch, run;
};

template <class Acc>
struct Range {
  Acc least = sizeof(Acc) == 4 ? static_cast<Acc>(INT32_MAX) : static_cast<Acc>(INT64_MAX);
  Acc greatest = -least - 1;

  void add(const Acc* acc, int64_t n) {
    Acc low = least, high = greatest;
    for (int64_t i = 0; i < n; ++i) {
      low = acc[i] < low ? acc[i] : low;
      high = acc[i] > high ? acc[i] : high;
    }
    least = low;
    greatest = high;
  }

  void store(int64_t* extremes) const {
    extremes[0] = least;
    extremes[1] = greatest;
  }
};

// Rows are channels of the output.
template <class Acc>
void end_row(const Ending& to, int64_t row, int64_t begin, int64_t n, Acc* acc, Range<Acc>& range) {
  if (to.bias != nullptr) {
    const Acc bias = static_cast<Acc>(to.bias[row]);
    for (int64_t i = 0; i < n; ++i) acc[i] = plus(acc[i], bias);
  }
  int32_t codes[kRun];
  requantize_run<false>(acc, n, to.how.from(row), codes);
  for (int64_t i = 0; i < n;) {
    const int64_t y = (begin + i) / to.pitch, x = (begin + i) % to.pitch;
    const int64_t left = to.pitch - x, until = left < n - i ? left : n - i;
    const int64_t count = x + until <= to.run ? until : to.run - x;
    if (count > 0) {
      range.add(acc + i, count);
      narrow_to(codes + i, count, to.out, to.type, to.first + row * to.row_stride + y * to.run + x);
    }
    i += until;
  }
}

// Positions are channels of the output.
template <class Acc>
void end_columns(const Ending& to, int64_t row, int64_t begin, int64_t n, Acc* acc, Range<Acc>& range) {
  if (to.bias != nullptr) {
    const int64_t* bias = to.bias + begin;
    for (int64_t i = 0; i < n; ++i) acc[i] = plus(acc[i], static_cast<Acc>(bias[i]));
  }
  range.add(acc, n);
  int32_t codes[kRun];
  if (to.how.per_channel) {
    requantize_run<true>(acc, n, to.how.from(begin), codes);
  } else {
    requantize_run<false>(acc, n, to.how, codes);
  }
  narrow_to(codes, n, to.out, to.type, to.first + row * to.row_stride + begin);
}

template <class Acc, bool kColumns>
void products(const Operands& op, const Ending& to, int64_t rows_begin, int64_t rows_end, int64_t begin, int64_t end,
              int64_t* extremes) {
  alignas(64) Acc acc[kRowsAtOnce][kRun];
  Range<Acc> range;
  for (int64_t p = begin; p < end; p += kRun) {
    const int64_t n = kRun < end - p ? kRun : end - p;
    for (int64_t row = rows_begin; row < rows_end;) {
      const bool several = rows_end - row >= kRowsAtOnce;
      if (several) {
        accumulate<kRowsAtOnce>(op, row, p, n, acc);
      } else {
        accumulate<1>(op, row, p, n, acc);
      }
      for (int64_t r = 0; r < (several ? kRowsAtOnce : 1); ++r) {
        if constexpr (kColumns) {
          end_columns(to, row + r, p, n, acc[r], range);
        } else {
          end_row(to, row + r, p, n, acc[r], range);
        }
      }
      row += several ? kRowsAtOnce : 1;
    }
  }
  range.store(extremes);
}

inline int32_t pair(int32_t low, int32_t high) {
  return static_cast<int32_t>((static_cast<uint32_t>(low) & 0xffffu) | (static_cast<uint32_t>(high) << 16));
}

// The planes of one pair of channels (one channel of 16 bits) of a sample.
template <class Code>
void lay_out(const Code* low, const Code* high, int32_t zero, const ConvGeometry& g, int32_t* planes) {
  const int64_t rows = g.plane_rows(), columns = g.plane_columns();
  for (int64_t i = 0; i < g.stride_y * g.stride_x * rows * columns; ++i) planes[i] = 0;
  for (int64_t y = 0; y < g.height; ++y) {
    const int64_t row = y + g.top;
    if (row > g.last_row() || row < 0) continue;
    int32_t* to = planes + (row % g.stride_y * g.stride_x * rows + row / g.stride_y) * columns;
    for (int64_t phase = 0; phase < g.stride_x; ++phase) {
      // Columns x with (x + left) % stride_x == phase.
      const int64_t first =
          phase >= g.left ? (phase - g.left) % g.stride_x : (g.stride_x - (g.left - phase) % g.stride_x) % g.stride_x;
      const int64_t last = g.last_column() - g.left < g.width - 1 ? g.last_column() - g.left : g.width - 1;
      const int64_t n = last < first ? 0 : (last - first) / g.stride_x + 1;
      int32_t* out = to + phase * rows * columns + (first + g.left) / g.stride_x;
      const Code* a = low + y * g.width + first;
      const Code* b = high == nullptr ? nullptr : high + y * g.width + first;
      const int64_t step = g.stride_x;
      if (sizeof(Code) > 1) {
        for (int64_t i = 0; i < n; ++i) out[i] = int32_t{a[i * step]} - zero;
      } else if (b == nullptr) {
        for (int64_t i = 0; i < n; ++i) out[i] = pair(int32_t{a[i * step]} - zero, 0);
      } else if (step == 1) {
        for (int64_t i = 0; i < n; ++i) out[i] = pair(int32_t{a[i]} - zero, int32_t{b[i]} - zero);
      } else {
        for (int64_t i = 0; i < n; ++i) out[i] = pair(int32_t{a[i * step]} - zero, int32_t{b[i * step]} - zero);
      }
    }
  }
}

template <class Code>
void conv_of(const ProductArgs& args, const ConvGeometry& g, const ConvScratch& scratch, int32_t* weights,
             int32_t* planes, int64_t* offsets) {
  using Acc = std::conditional_t<sizeof(Code) == 1, int32_t, int64_t>;
  const int64_t per_tap = args.x.per_tap(), channels = (g.inputs + per_tap - 1) / per_tap;
  const int64_t window = g.kernel_height * g.kernel_width, all_phases = g.stride_y * g.stride_x * g.plane_size();
  for (int64_t c = 0, t = 0; c < channels; ++c) {
    for (int64_t i = 0; i < g.kernel_height; ++i) {
      for (int64_t j = 0; j < g.kernel_width; ++j, ++t) {
        const int64_t y = i * g.dilation_y, x = j * g.dilation_x;
        const int64_t phase = y % g.stride_y * g.stride_x + x % g.stride_x;
        offsets[t] = c * all_phases + phase * g.plane_size() + y / g.stride_y * g.plane_columns() + x / g.stride_x;
      }
    }
  }
  for (int64_t o = 0; o < g.groups * g.outputs; ++o) {
    const int16_t* kernel = args.kernel + o * g.inputs * window;
    int32_t* to = weights + o * scratch.taps;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t k = 0; k < window; ++k) {
        const int64_t first = c * per_tap, second = first + 1;
        const int32_t low = kernel[first * window + k];
        const int32_t high = per_tap > 1 && second < g.inputs ? kernel[second * window + k] : 0;
        to[c * window + k] = per_tap > 1 ? pair(low, high) : low;
      }
    }
  }
  const auto* x = static_cast<const Code*>(args.x.data);
  const int64_t area = g.height * g.width, out_area = g.out_height * g.out_width;
  const int64_t positions = (g.out_height - 1) * g.plane_columns() + g.out_width;
  const int64_t group_planes = channels * all_phases;
  for (int64_t begin = 0; begin < g.samples; begin += scratch.at_a_time) {
    const int64_t n = scratch.at_a_time < g.samples - begin ? scratch.at_a_time : g.samples - begin;
    parallel_for(n * g.groups * channels, 16, [&](int64_t task) {
      const int64_t c = task % channels, group = task / channels % g.groups, s = task / channels / g.groups;
      const int64_t first = c * per_tap;
      const Code* low = x + ((begin + s) * g.groups * g.inputs + group * g.inputs + first) * area;
      const Code* high = per_tap > 1 && first + 1 < g.inputs ? low + area : nullptr;
      lay_out(low, high, args.x.zero_point, g, planes + s * scratch.sample + group * group_planes + c * all_phases);
    });
    parallel_for(n * g.groups * scratch.blocks, 1, [&](int64_t task) {
      const int64_t block = task % scratch.blocks, group = task / scratch.blocks % g.groups;
      const int64_t s = task / scratch.blocks / g.groups, outputs = group * g.outputs;
      const Operands op{weights + outputs * scratch.taps, planes + s * scratch.sample + group * group_planes, offsets,
                        scratch.taps};
      const Ending to{args.bias == nullptr ? nullptr : args.bias + outputs,
                      args.how.from(outputs),
                      args.out,
                      args.type,
                      ((begin + s) * g.groups * g.outputs + outputs) * out_area,
                      out_area,
                      g.plane_columns(),
                      g.out_width};
      const int64_t from = block * ConvScratch::kBlock, end = from + ConvScratch::kBlock;
      const int64_t number = (begin + s) * g.groups * scratch.blocks + group * scratch.blocks + block;
      products<Acc, false>(op, to, 0, g.outputs, from, end < positions ? end : positions, args.extremes + 2 * number);
    });
  }
}

template <class Code>
void linear_of(const ProductArgs& args, int64_t rows, int64_t inputs, int64_t outputs, const LinearScratch& scratch,
               int32_t* weights, int32_t* row_operands, int64_t* offsets) {
  using Acc = std::conditional_t<sizeof(Code) == 1, int32_t, int64_t>;
  const int64_t per_tap = args.x.per_tap();
  const auto* x = static_cast<const Code*>(args.x.data);
  const int32_t zero = args.x.zero_point;
  for (int64_t t = 0; t < scratch.taps; ++t) {
    offsets[t] = t * outputs;
    const int64_t first = t * per_tap;
    const bool both = per_tap > 1 && first + 1 < inputs;
    for (int64_t o = 0; o < outputs; ++o) {
      const int16_t* kernel = args.kernel + o * inputs + first;
      weights[t * outputs + o] = per_tap > 1 ? pair(kernel[0], both ? kernel[1] : 0) : kernel[0];
    }
  }
  parallel_for(scratch.row_blocks, 1, [&](int64_t block) {
    const int64_t end = (block + 1) * LinearScratch::kRows;
    for (int64_t r = block * LinearScratch::kRows; r < (end < rows ? end : rows); ++r) {
      for (int64_t t = 0; t < scratch.taps; ++t) {
        const Code* from = x + r * inputs + t * per_tap;
        const bool both = per_tap > 1 && t * per_tap + 1 < inputs;
        const int32_t low = int32_t{from[0]} - zero;
        row_operands[r * scratch.taps + t] = per_tap > 1 ? pair(low, both ? int32_t{from[1]} - zero : 0) : low;
      }
    }
  });
  const Operands op{row_operands, weights, offsets, scratch.taps};
  const Ending to{args.bias, args.how, args.out, args.type, 0, outputs, outputs, outputs};
  parallel_for(scratch.tasks(), 1, [&](int64_t task) {
    const int64_t row = task / scratch.column_blocks * LinearScratch::kRows, row_end = row + LinearScratch::kRows;
    const int64_t column = task % scratch.column_blocks * LinearScratch::kColumns;
    const int64_t column_end = column + LinearScratch::kColumns;
    products<Acc, true>(op, to, row, row_end < rows ? row_end : rows, column,
                        column_end < outputs ? column_end : outputs, args.extremes + 2 * task);
  });
}

void conv(const ProductArgs& args, const ConvGeometry& g, const ConvScratch& scratch, int32_t* weights, int32_t* planes,
          int64_t* offsets) {
  switch (args.x.type) {
    case CodeType::kUint8:
      return conv_of<uint8_t>(args, g, scratch, weights, planes, offsets);
    case CodeType::kInt8:
      return conv_of<int8_t>(args, g, scratch, weights, planes, offsets);
    case CodeType::kUint16:
      return conv_of<uint16_t>(args, g, scratch, weights, planes, offsets);
    default:
      return conv_of<int16_t>(args, g, scratch, weights, planes, offsets);
  }
}

void linear(const ProductArgs& args, int64_t rows, int64_t inputs, int64_t outputs, const LinearScratch& scratch,
            int32_t* weights, int32_t* row_operands, int64_t* offsets) {
  switch (args.x.type) {
    case CodeType::kUint8:
      return linear_of<uint8_t>(args, rows, inputs, outputs, scratch, weights, row_operands, offsets);
    case CodeType::kInt8:
      return linear_of<int8_t>(args, rows, inputs, outputs, scratch, weights, row_operands, offsets);
    case CodeType::kUint16:
      return linear_of<uint16_t>(args, rows, inputs, outputs, scratch, weights, row_operands, offsets);
    default:
      return linear_of<int16_t>(args, rows, inputs, outputs, scratch, weights, row_operands, offsets);
  }
}

}  // namespace

extern const ProductTable product_table = {.conv = conv, .linear = linear};

}  // namespace detent::DETENT_ISA
