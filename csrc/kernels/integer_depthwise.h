// SPDX-License-Identifier: Apache-2.0
// Depthwise convolutions of bytes by byte permutations: the operand of a tap, four neighbouring columns for each
// position, is picked out of 64 bytes of a channel by a pattern. Patterns are made once and serve all channels and
// samples; nothing is laid out. Include from kernel sources only.
#pragma once

#include "kernels/integer_ending.h"
#include "kernels/integer_packing.h"
#include "support/parallel.h"

namespace detent::DETENT_ISA {

// Vectors cover some whole rows of the output, or 16 columns of one; a tap is up to four columns of a kernel row.
struct DepthwiseShape {
  int64_t columns, rows, chunks, bands, parts, taps;  // parts: of a kernel row

  explicit DepthwiseShape(const ConvGeometry& g)
      : columns(g.out_width < kLanes ? g.out_width : kLanes), rows(kLanes / columns) {
    while (rows > 1 && span(g) > 64) --rows;
    if (rows > g.out_height) rows = g.out_height;
    chunks = (g.out_width + columns - 1) / columns;
    bands = (g.out_height + rows - 1) / rows;
    parts = (g.kernel_width + 3) / 4;
    taps = g.kernel_height * parts;
  }

  // Bytes that a tap of one vector reaches over.
  int64_t span(const ConvGeometry& g) const {
    const int64_t inside = g.kernel_width < 4 ? g.kernel_width : 4;
    return (rows - 1) * g.stride_y * g.width + (columns - 1) * g.stride_x + (inside - 1) * g.dilation_x + 1;
  }

  // All rows that a band reads exist, and it has all of its rows.
  bool inner(const ConvGeometry& g, int64_t band) const {
    const int64_t first = band * rows * g.stride_y - g.top;
    return first >= 0 && first + g.reached_rows(rows) <= g.height && (band + 1) * rows <= g.out_height;
  }

  int64_t patterns(const ConvGeometry& g) const {
    int64_t kinds = 1;
    for (int64_t band = 0; band < bands; ++band) kinds += inner(g, band) ? 0 : 1;
    return kinds * chunks * taps;
  }
};

struct alignas(64) Pattern {
  uint8_t places[64];
  uint64_t counts, read;
};
struct Pick {
  int32_t base, pattern;
};

inline int64_t depthwise_memory(const ConvGeometry& g) {
  if (!simd::kHasQuads || !simd::kHasBytePermutation || g.inputs != 1 || g.outputs != 1) return 0;
  if (g.area() > INT32_MAX || g.stride_x > 64 || g.dilation_x > 64) return 0;
  const DepthwiseShape shape(g);
  if (shape.span(g) > 64) return 0;
  constexpr int64_t kOfPattern = sizeof(Pattern) / 4, kOfPick = sizeof(Pick) / 4;
  return shape.patterns(g) * kOfPattern + shape.bands * shape.chunks * shape.taps * kOfPick;
}

// The pattern of a tap for one vector, and where its 64 bytes begin in a channel.
inline int32_t make_pattern(const ConvGeometry& g, const DepthwiseShape& shape, int64_t band, int64_t chunk,
                            int64_t tap, Pattern& pattern) {
  const int64_t y0 = band * shape.rows, x0 = chunk * shape.columns;
  const int64_t rows = shape.rows < g.out_height - y0 ? shape.rows : g.out_height - y0;
  const int64_t columns = shape.columns < g.out_width - x0 ? shape.columns : g.out_width - x0;
  int64_t places[64], base = INT32_MAX;
  for (int64_t i = 0; i < 64; ++i) {
    const int64_t lane = i / 4 < rows * columns ? i / 4 : 0, kx = tap % shape.parts * 4 + i % 4;
    const int64_t y = (y0 + lane / columns) * g.stride_y - g.top + tap / shape.parts * g.dilation_y;
    const int64_t x = (x0 + lane % columns) * g.stride_x - g.left + kx * g.dilation_x;
    const bool held = kx < g.kernel_width && 0 <= y && y < g.height && 0 <= x && x < g.width;
    places[i] = held ? y * g.width + x : -1;
    if (held && places[i] < base) base = places[i];
  }
  pattern.counts = pattern.read = 0;
  for (int64_t i = 0; i < 64; ++i) {
    const bool held = places[i] >= 0;
    pattern.places[i] = static_cast<uint8_t>(held ? places[i] - base : 0);
    if (!held) continue;
    pattern.counts |= uint64_t{1} << i;
    pattern.read |= ~uint64_t{0} >> (63 - pattern.places[i]);
  }
  return base == INT32_MAX ? 0 : static_cast<int32_t>(base);
}

inline void make_patterns(const ConvGeometry& g, const DepthwiseShape& shape, Pattern* patterns, Pick* picks) {
  const int64_t each = shape.chunks * shape.taps;
  int64_t made = 0, inner = -1;  // the first inner band, whose patterns serve the others
  for (int64_t band = 0; band < shape.bands; ++band) {
    Pick* to = picks + band * each;
    if (inner >= 0 && shape.inner(g, band)) {
      const int64_t further = (band - inner) * shape.rows * g.stride_y * g.width;
      for (int64_t i = 0; i < each; ++i) {
        to[i] = picks[inner * each + i];
        to[i].base += static_cast<int32_t>(further);
      }
      continue;
    }
    if (shape.inner(g, band)) inner = band;
    for (int64_t i = 0; i < each; ++i, ++made) {
      const int32_t base = make_pattern(g, shape, band, i / shape.taps, i % shape.taps, patterns[made]);
      to[i] = {base, static_cast<int32_t>(made)};
    }
  }
}

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)

struct DepthwiseWork {
  const ConvGeometry& g;
  const DepthwiseShape& shape;
  const Pattern* patterns;
  const Pick* picks;
  simd::Ints padding, flip;

  // The accumulators of vector `which` of a channel.
  template <int64_t kTaps>
  simd::Ints sums(const uint8_t* channel, const int32_t* weights, int32_t start, int64_t which) const {
    simd::Ints sum = simd::Ints{} + start;
    const int64_t taps = kTaps > 0 ? kTaps : shape.taps;
    const Pick* pick = picks + which * taps;
    for (int64_t t = 0; t < taps; ++t) {
      const Pattern& pattern = patterns[pick[t].pattern];
      const simd::Ints x =
          simd::pick_quads(channel + pick[t].base, pattern.read, pattern.places, pattern.counts, padding);
      sum = simd::add_quads(sum, x ^ flip, simd::Ints{} + weights[t]);
    }
    return sum;
  }

  // One channel of one sample; `end` takes each vector, how many positions it has, and their place.
  template <int64_t kTaps, class End>
  void channel(const uint8_t* from, const int32_t* weights, int32_t start, const End& end) const {
    int64_t which = 0, place = 0;
    for (int64_t band = 0; band < shape.bands; ++band) {
      const int64_t left = g.out_height - band * shape.rows, rows = shape.rows < left ? shape.rows : left;
      for (int64_t chunk = 0; chunk < shape.chunks; ++chunk, ++which) {
        const int64_t beside = g.out_width - chunk * shape.columns;
        const int64_t n = rows * (shape.columns < beside ? shape.columns : beside);
        end(sums<kTaps>(from, weights, start, which), n, place);
        place += n;
      }
    }
  }
};

template <class Code, int64_t kTaps>
void depthwise_channels(const ProductArgs& args, const DepthwiseWork& work, const ConvScratch& scratch, int64_t begin,
                        int64_t end, int64_t* extremes) {
  const ConvGeometry& g = work.g;
  const bool direct = args.how.rule == RequantizeRule::kFloat && byte_codes(args.type);
  NarrowRange range;
  for (int64_t number = begin; number < end; ++number) {
    const int64_t c = number % g.groups, to = number * g.out_area();
    const auto* from = static_cast<const uint8_t*>(args.x.data) + number * g.area();
    const int32_t* weights = scratch.weights + c * work.shape.taps;
    const auto start = static_cast<int32_t>(scratch.starts[c]);
    if (direct) {
      const FloatEnding ending(args.how, c);
      auto* out = static_cast<uint8_t*>(args.out) + to;
      work.channel<kTaps>(from, weights, start, [&](simd::Ints sums, int64_t n, int64_t place) {
        range.add(sums);
        if (n == kLanes) {
          simd::store_bytes(out + place, ending.codes(sums));
        } else {
          simd::store_some_bytes(out + place, ending.codes(sums), n);
        }
      });
    } else {
      work.channel<kTaps>(from, weights, start, [&](simd::Ints sums, int64_t n, int64_t place) {
        range.add(sums);
        int32_t acc[kLanes];
        simd::store(acc, sums);
        end_run_by_rule(acc, n, args.how, c, args.out, args.type, to + place);
      });
    }
  }
  range.store(extremes);
}

template <class Code>
void depthwise_of(const ProductArgs& args, const ConvGeometry& g, const ConvPlan& plan, const ConvScratch& scratch) {
  const DepthwiseShape shape(g);
  auto* patterns = reinterpret_cast<Pattern*>(scratch.slots);
  auto* picks = reinterpret_cast<Pick*>(patterns + shape.patterns(g));
  make_patterns(g, shape, patterns, picks);
  using Packs = Packing<Code, 4>;
  for (int64_t c = 0; c < g.groups; ++c) {
    const int16_t* kernel = args.kernel + c * g.window();
    for (int64_t t = 0; t < shape.taps; ++t) {
      const int64_t first = t % shape.parts * 4, left = g.kernel_width - first;
      const int16_t* row = kernel + t / shape.parts * g.kernel_width + first;
      scratch.weights[c * shape.taps + t] = Packs::weight(row, left < 4 ? left : 4, 1);
    }
    scratch.starts[c] = Packs::start(kernel, g.window(), args.bias == nullptr ? 0 : args.bias[c], args.x.zero_point);
  }
  // Padding is put among the codes, which are made unsigned behind that.
  const int32_t flip = Packs::kOffset == 0 ? 0 : static_cast<int32_t>(0x80808080u);
  const DepthwiseWork work{
      g, shape, patterns, picks, simd::Ints{} + (Packs::padding(args.x.zero_point) ^ flip), simd::Ints{} + flip};
  parallel_for(plan.slots, 1, [&](int64_t slot) {
    const int64_t begin = plan.pieces * slot / plan.slots, end = plan.pieces * (slot + 1) / plan.slots;
    int64_t* extremes = args.extremes + 2 * slot;
    if (shape.taps == 3) return depthwise_channels<Code, 3>(args, work, scratch, begin, end, extremes);
    depthwise_channels<Code, 0>(args, work, scratch, begin, end, extremes);
  });
}

#endif

}  // namespace detent::DETENT_ISA
