// SPDX-License-Identifier: Apache-2.0
// Operands of integer products: codes of several channels side by side in 32 bits. Include from kernel sources only.
#pragma once

#include <type_traits>

#include "kernels/integer_products.h"
#include "support/simd.h"

namespace detent::DETENT_ISA {

// kPer codes in an operand: 4 bytes, unsigned on the side of x, with the zero point still in them; 2 of 16 bits or 1 of
// 32, without it.
template <class Code, int64_t kPer>
struct Packing {
  using Acc = std::conditional_t<kPer == 1, int64_t, int32_t>;
  static constexpr int32_t kOffset = kPer == 4 && std::is_signed_v<Code> ? 128 : 0;  // makes them unsigned

  // What stands for zero, in each of the kPer places.
  static int32_t padding(int32_t zero_point) {
    return kPer == 4 ? static_cast<int32_t>(static_cast<uint32_t>(zero_point + kOffset) * 0x01010101u) : 0;
  }

  // Int is int32_t or a vector of them; codes[k] is the code of channel k.
  template <class Int>
  static Int operand(const Int* codes, int32_t zero_point) {
    if constexpr (kPer == 4) {
      const Int joined = (codes[0] & 255) | ((codes[1] & 255) << 8) | ((codes[2] & 255) << 16) | (codes[3] << 24);
      return kOffset == 0 ? joined : joined ^ static_cast<int32_t>(0x80808080u);
    } else if constexpr (kPer == 2) {
      return ((codes[0] - zero_point) & 0xffff) | ((codes[1] - zero_point) << 16);
    } else {
      return codes[0] - zero_point;
    }
  }

  // n operands; channel k begins at from[k].
  static void operands(const Code* const* from, int64_t n, int32_t zero_point, int32_t* to) {
    int64_t i = 0;
    for (; i + simd::kFloats <= n; i += simd::kFloats) {
      simd::Ints codes[kPer];
      for (int64_t k = 0; k < kPer; ++k) codes[k] = simd::widened(from[k] + i);
      simd::store(to + i, operand(codes, zero_point));
    }
    for (; i < n; ++i) {
      int32_t codes[kPer];
      for (int64_t k = 0; k < kPer; ++k) codes[k] = from[k][i];
      to[i] = operand(codes, zero_point);
    }
  }

  // The same of weights, which have no zero point; `count` of them, `step` apart.
  static int32_t weight(const int16_t* from, int64_t count, int64_t step) {
    constexpr int32_t kBits = 32 / kPer;
    uint32_t joined = 0;
    for (int64_t k = 0; k < count; ++k) {
      const auto code = static_cast<uint32_t>(int32_t{from[k * step]});
      joined |= kPer == 1 ? code : (code & ((1u << (kBits % 32)) - 1)) << (kBits * k % 32);
    }
    return static_cast<int32_t>(joined);
  }

  // Where the accumulator of an output begins: its bias, less what zero points that are still in operands will add.
  static int64_t start(const int16_t* kernel, int64_t n, int64_t bias, int32_t zero_point) {
    if (kPer != 4) return bias;
    int64_t sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += kernel[i];
    return bias - sum * (zero_point + kOffset);
  }
};

// Outputs are multiplied in blocks of kRows; what is left in blocks of powers of two.
#if defined(__AVX512F__)
constexpr int64_t kRows = 8;
#else
constexpr int64_t kRows = 4;
#endif

inline int64_t block_of(int64_t left) { return left >= kRows ? kRows : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

// Weights of a group: for each block [taps, rows of the block]; taps are [operands, kernel height, kernel width].
template <class Code, int64_t kPer>
void pack_weights(const int16_t* kernel, const ConvGeometry& g, int64_t taps, int32_t* weights) {
  const int64_t window = g.window();
  for (int64_t first = 0; first < g.outputs;) {
    const int64_t block = block_of(g.outputs - first);
    for (int64_t r = 0; r < block; ++r) {
      const int16_t* from = kernel + (first + r) * g.inputs * window;
      int32_t* to = weights + first * taps + r;
      for (int64_t c = 0, t = 0; c < g.inputs; c += kPer) {
        const int64_t count = kPer < g.inputs - c ? kPer : g.inputs - c;
        for (int64_t k = 0; k < window; ++k, ++t) {
          const int16_t* codes = from + c * window + k;
          to[t * block] = count == kPer ? Packing<Code, kPer>::weight(codes, kPer, window)
                                        : Packing<Code, kPer>::weight(codes, count, window);
        }
      }
    }
    first += block;
  }
}

}  // namespace detent::DETENT_ISA
