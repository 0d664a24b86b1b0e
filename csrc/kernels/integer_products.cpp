// SPDX-License-Identifier: Apache-2.0
#include "kernels/integer_products.h"

#include "kernels/integer_depthwise.h"
#include "kernels/integer_tiles.h"
#include "support/parallel.h"

namespace detent::DETENT_ISA {
namespace {

using simd::Ints;
#if defined(__AVX512F__)
constexpr int64_t kVectors = 3;
#else
constexpr int64_t kVectors = 2;
#endif

#if defined(__AVX512VNNI__)
template <int64_t kPer>
inline Ints add_products(Ints sum, Ints x, Ints weight) {
  return kPer == 4 ? simd::add_quads(sum, x, weight) : simd::add_pairs(sum, x, weight);
}
#else
template <int64_t kPer>
inline Ints add_products(Ints sum, Ints x, Ints weight) {
  static_assert(kPer == 2);
  return simd::add_pairs(sum, x, weight);
}
#endif

// A block of kHeight outputs at kWidth vectors of positions.
template <int64_t kPer, int64_t kHeight, int64_t kWidth>
void multiply_vectors(const int32_t* weights, const int32_t* tile, int64_t taps, const int64_t* starts, int32_t* acc,
                      NarrowRange& range) {
  Ints sums[kHeight][kWidth];
  for (int64_t r = 0; r < kHeight; ++r) {
    const Ints start = Ints{} + static_cast<int32_t>(starts[r]);
    for (int64_t v = 0; v < kWidth; ++v) sums[r][v] = start;
  }
  for (int64_t t = 0; t < taps; ++t) {
    Ints x[kWidth];
    for (int64_t v = 0; v < kWidth; ++v) x[v] = simd::load(tile + t * ConvPlan::kPitch + v * kLanes);
    for (int64_t r = 0; r < kHeight; ++r) {
      const Ints weight = Ints{} + weights[t * kHeight + r];
      for (int64_t v = 0; v < kWidth; ++v) sums[r][v] = add_products<kPer>(sums[r][v], x[v], weight);
    }
  }
  for (int64_t r = 0; r < kHeight; ++r) {
    for (int64_t v = 0; v < kWidth; ++v) {
      range.add(sums[r][v]);
      simd::store(acc + r * ConvPlan::kTile + v * kLanes, sums[r][v]);
    }
  }
}

template <int64_t kPer, int64_t kHeight>
void multiply(const int32_t* weights, const int32_t* tile, int64_t taps, const int64_t* starts, int64_t n, int32_t* acc,
              NarrowRange& range) {
  int64_t i = 0;
  for (; i + kVectors * kLanes <= n; i += kVectors * kLanes) {
    multiply_vectors<kPer, kHeight, kVectors>(weights, tile + i, taps, starts, acc + i, range);
  }
  for (; i < n; i += kLanes) {
    if (kVectors > 2 && n - i > kLanes) {
      multiply_vectors<kPer, kHeight, 2>(weights, tile + i, taps, starts, acc + i, range);
      i += kLanes;
    } else {
      multiply_vectors<kPer, kHeight, 1>(weights, tile + i, taps, starts, acc + i, range);
    }
  }
}

template <int64_t kPer>
void multiply(int64_t block, const int32_t* weights, const int32_t* tile, int64_t taps, const int64_t* starts,
              int64_t n, int32_t* acc, NarrowRange& range) {
  switch (block) {
    case 8:
      if constexpr (kRows == 8) multiply<kPer, 8>(weights, tile, taps, starts, n, acc, range);
      return;
    case 4:
      return multiply<kPer, 4>(weights, tile, taps, starts, n, acc, range);
    case 2:
      return multiply<kPer, 2>(weights, tile, taps, starts, n, acc, range);
    default:
      return multiply<kPer, 1>(weights, tile, taps, starts, n, acc, range);
  }
}

// Single numbers, summed into int64.
template <int64_t kPer>
void multiply(int64_t block, const int32_t* weights, const int32_t* tile, int64_t taps, const int64_t* starts,
              int64_t n, int64_t* acc, WideRange& range) {
  for (int64_t r = 0; r < block; ++r) {
    int64_t* sums = acc + r * ConvPlan::kTile;
    for (int64_t i = 0; i < n; ++i) sums[i] = starts[r];
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t weight = weights[t * block + r];
      const int32_t* x = tile + t * ConvPlan::kPitch;
      for (int64_t i = 0; i < n; ++i) sums[i] += weight * x[i];
    }
    range.add(sums, n);
  }
}

// Where the positions of a tile go: runs of one sample each, [first position, count, place in the output].
struct Runs {
  int64_t count = 0;
  int64_t first[ConvPlan::kTile], size[ConvPlan::kTile], place[ConvPlan::kTile];

  Runs(const ConvGeometry& g, const Piece& piece, int64_t begin, int64_t n) {
    const int64_t area = piece.area(g), of_sample = g.groups * g.outputs * g.out_area();
    for (int64_t i = 0; i < n; ++count) {
      const int64_t s = (begin + i) / area, at = (begin + i) % area;
      first[count] = i;
      size[count] = area - at < n - i ? area - at : n - i;
      place[count] = (piece.sample + s) * of_sample + piece.row * g.out_width + at;
      i += size[count];
    }
  }
};

void end_tile(const ProductArgs& args, const ConvGeometry& g, const Runs& runs, int64_t output, const int32_t* acc) {
  const int64_t beyond = output * g.out_area();
  if (args.how.rule == RequantizeRule::kFloat && byte_codes(args.type)) {
    const FloatEnding end(args.how, output);
    auto* out = static_cast<uint8_t*>(args.out) + beyond;  // the lower byte, whatever its sign
    for (int64_t i = 0; i < runs.count; ++i) {
      end_run_in_bytes(acc + runs.first[i], runs.size[i], end, out + runs.place[i]);
    }
    return;
  }
  for (int64_t i = 0; i < runs.count; ++i) {
    end_run_by_rule(acc + runs.first[i], runs.size[i], args.how, output, args.out, args.type, runs.place[i] + beyond);
  }
}

void end_tile(const ProductArgs& args, const ConvGeometry& g, const Runs& runs, int64_t output, const int64_t* acc) {
  for (int64_t i = 0; i < runs.count; ++i) {
    const int64_t at = runs.place[i] + output * g.out_area();
    end_run_by_rule(acc + runs.first[i], runs.size[i], args.how, output, args.out, args.type, at);
  }
}

template <class Code, int64_t kPer>
void conv_pieces(const ProductArgs& args, const ConvGeometry& g, const ConvPlan& plan, const ConvScratch& scratch,
                 int64_t slot, int64_t begin, int64_t end) {
  using Acc = typename Packing<Code, kPer>::Acc;
  int32_t* memory = scratch.slots + slot * plan.slot(g);
  const Tiles<Code, kPer> tiles{
      g, plan, static_cast<const Code*>(args.x.data), args.x.zero_point, memory + plan.taps * ConvPlan::kPitch, memory};
  alignas(64) Acc acc[kRows * ConvPlan::kTile + kLanes];
  std::conditional_t<kPer == 1, WideRange, NarrowRange> range;
  for (int64_t number = begin; number < end; ++number) {
    const Piece piece(g, plan, number);
    const int64_t positions = piece.samples * piece.area(g);
    for (int64_t group = 0; group < g.groups; ++group) {
      if (!plan.pointwise) tiles.lay_out(piece, group);
      for (int64_t i = 0; i < positions; i += ConvPlan::kTile) {
        const int64_t n = ConvPlan::kTile < positions - i ? ConvPlan::kTile : positions - i;
        if (plan.pointwise) {
          tiles.pack(piece, group, i, n);
        } else {
          tiles.copy(piece, i, n);
        }
        tiles.fill_up(n);
        const Runs runs(g, piece, i, n);
        for (int64_t o = 0; o < g.outputs;) {
          const int64_t block = block_of(g.outputs - o), output = group * g.outputs + o;
          multiply<kPer>(block, scratch.weights + output * plan.taps, tiles.tile, plan.taps, scratch.starts + output, n,
                         acc, range);
          for (int64_t r = 0; r < block; ++r) end_tile(args, g, runs, output + r, acc + r * ConvPlan::kTile);
          o += block;
        }
      }
    }
  }
  range.store(args.extremes + 2 * slot);
}

template <class Code, int64_t kPer>
void conv_of(const ProductArgs& args, const ConvGeometry& g, const ConvPlan& plan, const ConvScratch& scratch) {
  const int64_t of_output = g.inputs * g.window();
  for (int64_t group = 0; group < g.groups; ++group) {
    const int16_t* kernel = args.kernel + group * g.outputs * of_output;
    pack_weights<Code, kPer>(kernel, g, plan.taps, scratch.weights + group * g.outputs * plan.taps);
  }
  for (int64_t o = 0; o < g.groups * g.outputs; ++o) {
    const int64_t bias = args.bias == nullptr ? 0 : args.bias[o];
    scratch.starts[o] = Packing<Code, kPer>::start(args.kernel + o * of_output, of_output, bias, args.x.zero_point);
  }
  parallel_for(plan.slots, 1, [&](int64_t slot) {
    const int64_t begin = plan.pieces * slot / plan.slots, end = plan.pieces * (slot + 1) / plan.slots;
    conv_pieces<Code, kPer>(args, g, plan, scratch, slot, begin, end);
  });
}

template <class Code>
void conv_of_bytes(const ProductArgs& args, const ConvGeometry& g, const ConvPlan& plan, const ConvScratch& scratch) {
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
  if (plan.depthwise > 0) return depthwise_of<Code>(args, g, plan, scratch);
#endif
  if constexpr (simd::kHasQuads) {
    if (plan.per_tap == 4) return conv_of<Code, 4>(args, g, plan, scratch);
  }
  conv_of<Code, 2>(args, g, plan, scratch);
}

void conv(const ProductArgs& args, const ConvGeometry& g, const ConvPlan& plan, const ConvScratch& scratch) {
  switch (args.x.type) {
    case CodeType::kUint8:
      return conv_of_bytes<uint8_t>(args, g, plan, scratch);
    case CodeType::kInt8:
      return conv_of_bytes<int8_t>(args, g, plan, scratch);
    case CodeType::kUint16:
      return conv_of<uint16_t, 1>(args, g, plan, scratch);
    default:
      return conv_of<int16_t, 1>(args, g, plan, scratch);
  }
}

}  // namespace

extern const ProductTable product_table = {
    .codes_per_tap = simd::kHasQuads ? 4 : 2, .depthwise_memory = depthwise_memory, .conv = conv};

}  // namespace detent::DETENT_ISA
