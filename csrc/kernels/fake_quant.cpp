// SPDX-License-Identifier: Apache-2.0
#include "kernels/fake_quant.h"

#include "kernels/grid_walk.h"
#include "support/rounding.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace detent::DETENT_ISA {
namespace {

template <bool kInverse>
inline float quotient(float x, float scale, float inverse) {
  return kInverse ? x * inverse : x / scale;
}

template <bool kInverse>
struct FakeQuantize {
  using In = float;
  using Out = float;
  static float of(float x, float scale, float inverse, float lower, float upper, int32_t) {
    return round_clamped(quotient<kInverse>(x, scale, inverse), lower, upper) * scale;
  }
};

template <bool kInverse>
struct InRange {
  using In = float;
  using Out = bool;
  static bool of(float x, float scale, float inverse, float lower, float upper, int32_t) {
    return in_range(quotient<kInverse>(x, scale, inverse), 1.0f, lower, upper);
  }
};

template <class Code, bool kInverse>
struct Quantize {
  using In = float;
  using Out = Code;
  static Code of(float x, float scale, float inverse, float lower, float upper, int32_t zero_point) {
    const float rounded = round_clamped(quotient<kInverse>(x, scale, inverse), lower, upper);
    return static_cast<Code>(static_cast<int32_t>(rounded == rounded ? rounded : 0.0f) + zero_point);
  }
};

template <class Code>
struct Dequantize {
  using In = Code;
  using Out = float;
  static float of(Code code, float scale, float, float, float, int32_t zero_point) {
    if constexpr (sizeof(Code) == 4) {
      return static_cast<float>(static_cast<int64_t>(code) - zero_point) * scale;
    } else {
      return static_cast<float>(static_cast<int32_t>(code) - zero_point) * scale;
    }
  }
};

template <template <bool> class Op, class Out>
void walk_quotients(const float* x, Out* out, int64_t n, const GridView& grid) {
  grid.exact_inverse ? walk<Op<true>>(x, out, n, grid) : walk<Op<false>>(x, out, n, grid);
}

template <class Code>
void quantize(const float* x, Code* out, int64_t n, const GridView& grid) {
  grid.exact_inverse ? walk<Quantize<Code, true>>(x, out, n, grid) : walk<Quantize<Code, false>>(x, out, n, grid);
}

// ---- large outputs ----
// An ordinary store first reads the line it is about to overwrite: a third of the traffic of an element-wise kernel
// once arrays outgrow the cache. Streaming stores skip that. Four pages are worked in turns, as memcpy does, which
// keeps more of the memory's banks busy.

constexpr int64_t kLargeOutput = (int64_t{16} << 20) / sizeof(float);  // well above the second-level cache
constexpr int64_t kPiece = 64;                                         // elements computed, then streamed
constexpr int64_t kPage = 4096 / sizeof(float);
constexpr int64_t kPages = 8;
constexpr int64_t kLine = 64 / sizeof(float);
static_assert(kBlock % (kPages * kPage) == 0);

// kPiece floats to `out`, which is aligned to a cache line.
inline void stream_piece(float* out, const float* piece) {
#if defined(__AVX512F__)
  for (int64_t i = 0; i < kPiece; i += 16) _mm512_stream_ps(out + i, _mm512_load_ps(piece + i));
#elif defined(__AVX__)
  for (int64_t i = 0; i < kPiece; i += 8) _mm256_stream_ps(out + i, _mm256_load_ps(piece + i));
#elif defined(__x86_64__)
  for (int64_t i = 0; i < kPiece; i += 4) _mm_stream_ps(out + i, _mm_load_ps(piece + i));
#else
  for (int64_t i = 0; i < kPiece; ++i) out[i] = piece[i];
#endif
}

// Streaming stores are weakly ordered; this makes them visible before the thread reports that it is done.
inline void end_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <class Op>
inline void stream_next(const typename Op::In* x, float* out, const GridView& grid, Cursor& cursor) {
  alignas(64) float piece[kPiece];
  constexpr int64_t kInputLine = 64 / sizeof(typename Op::In);
  for (int64_t i = 0; i < kPiece; i += kInputLine) __builtin_prefetch(x + kPiece + i);
  // The two common cases are kept apart so that each is one loop of known length.
  if (grid.inner > 1 && cursor.left > kPiece) {
    same_entry<Op>(x, piece, kPiece, entry_at(grid, cursor.entry));
    cursor.left -= kPiece;
  } else if (grid.inner == 1 && grid.entries - cursor.entry > kPiece) {
    consecutive_entries<Op>(x, piece, kPiece, grid, cursor.entry);
    cursor.entry += kPiece;
  } else {
    advance<Op>(x, piece, kPiece, grid, cursor);
  }
  stream_piece(out, piece);
}

// Elements [begin, begin + n), n a multiple of kPiece; x and out point at the first of them.
template <class Op>
void stream_block(const typename Op::In* x, float* out, int64_t begin, int64_t n, const GridView& grid) {
  int64_t done = 0;
  for (; done + kPages * kPage <= n; done += kPages * kPage) {
    Cursor cursors[kPages];
    for (int64_t p = 0; p < kPages; ++p) cursors[p] = cursor_at(grid, begin + done + p * kPage);
    for (int64_t at = done; at < done + kPage; at += kPiece) {
      for (int64_t p = 0; p < kPages; ++p) stream_next<Op>(x + at + p * kPage, out + at + p * kPage, grid, cursors[p]);
    }
  }
  Cursor cursor = cursor_at(grid, begin + done);
  for (; done < n; done += kPiece) stream_next<Op>(x + done, out + done, grid, cursor);
  end_streaming();
}

template <class Op>
void stream(const typename Op::In* x, float* out, int64_t n, const GridView& grid) {
  const auto misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) / sizeof(float)) % kLine;
  const int64_t head = misaligned ? kLine - misaligned : 0;
  const int64_t body = (n - head) / kPiece * kPiece;
  segment<Op>(x, out, 0, head, grid);
  parallel_for((body + kBlock - 1) / kBlock, kMinBlocksPerThread, [&](int64_t block) {
    const int64_t begin = head + block * kBlock;
    const int64_t left = head + body - begin;
    stream_block<Op>(x + begin, out + begin, begin, kBlock < left ? kBlock : left, grid);
  });
  const int64_t tail = head + body;
  segment<Op>(x + tail, out + tail, tail, n - tail, grid);
}

void fake_quantize(const float* x, float* out, int64_t n, const GridView& grid) {
  if (n < kLargeOutput || x == out) return walk_quotients<FakeQuantize>(x, out, n, grid);
  grid.exact_inverse ? stream<FakeQuantize<true>>(x, out, n, grid) : stream<FakeQuantize<false>>(x, out, n, grid);
}

template <class Code>
void dequantize(const Code* codes, float* out, int64_t n, const GridView& grid) {
  n < kLargeOutput ? walk<Dequantize<Code>>(codes, out, n, grid) : stream<Dequantize<Code>>(codes, out, n, grid);
}

// ---- packed codes ----

constexpr int64_t kUnpacked = 1024;  // codes unpacked at a time: they stay in the first-level cache
static_assert(kBlock % kUnpacked == 0 && kUnpacked % 2 == 0);

inline void pack_run(const uint8_t* codes, uint8_t* packed, int64_t n) {
  for (int64_t i = 0; i < n / 2; ++i) {
    packed[i] = static_cast<uint8_t>((codes[2 * i] & 15) | (codes[2 * i + 1] << 4));
  }
  if (n % 2) packed[n / 2] = codes[n - 1] & 15;
}

template <class Code>
inline void unpack_run(const uint8_t* packed, Code* codes, int64_t n) {
  // Flipping the sign bit and subtracting it extends the sign of a four-bit code.
  constexpr int kSign = static_cast<Code>(-1) < 0 ? 8 : 0;
  for (int64_t i = 0; i < n / 2; ++i) {
    codes[2 * i] = static_cast<Code>(((packed[i] & 15) ^ kSign) - kSign);
    codes[2 * i + 1] = static_cast<Code>(((packed[i] >> 4) ^ kSign) - kSign);
  }
  if (n % 2) codes[n - 1] = static_cast<Code>(((packed[n / 2] & 15) ^ kSign) - kSign);
}

// body(begin, count) over the tensor in runs of at most kUnpacked.
template <class Body>
void walk_packed(int64_t n, const Body& body) {
  parallel_for((n + kBlock - 1) / kBlock, kMinBlocksPerThread, [&](int64_t block) {
    const int64_t end = (block + 1) * kBlock < n ? (block + 1) * kBlock : n;
    for (int64_t begin = block * kBlock; begin < end; begin += kUnpacked) {
      body(begin, kUnpacked < end - begin ? kUnpacked : end - begin);
    }
  });
}

template <bool kInverse>
void quantize_packed_by(const float* x, uint8_t* out, int64_t n, const GridView& grid) {
  walk_packed(n, [&](int64_t begin, int64_t count) {
    uint8_t codes[kUnpacked];
    segment<Quantize<uint8_t, kInverse>>(x + begin, codes, begin, count, grid);
    pack_run(codes, out + begin / 2, count);
  });
}

void quantize_packed(const float* x, uint8_t* out, int64_t n, const GridView& grid) {
  grid.exact_inverse ? quantize_packed_by<true>(x, out, n, grid) : quantize_packed_by<false>(x, out, n, grid);
}

template <class Code>
void dequantize_packed(const uint8_t* packed, float* out, int64_t n, const GridView& grid) {
  walk_packed(n, [&](int64_t begin, int64_t count) {
    Code codes[kUnpacked];
    unpack_run(packed + begin / 2, codes, count);
    segment<Dequantize<Code>>(codes, out + begin, begin, count, grid);
  });
}

void pack(const uint8_t* codes, uint8_t* packed, int64_t n) {
  walk_packed(n, [&](int64_t begin, int64_t count) { pack_run(codes + begin, packed + begin / 2, count); });
}

template <class Code>
void unpack(const uint8_t* packed, Code* codes, int64_t n) {
  walk_packed(n, [&](int64_t begin, int64_t count) { unpack_run(packed + begin / 2, codes + begin, count); });
}

}  // namespace

extern const FakeQuantTable fake_quant_table = {
    .fake_quantize = fake_quantize,
    .in_range = walk_quotients<InRange, bool>,
    .quantize_int8 = quantize<int8_t>,
    .quantize_uint8 = quantize<uint8_t>,
    .quantize_int16 = quantize<int16_t>,
    .quantize_uint16 = quantize<uint16_t>,
    .quantize_packed = quantize_packed,
    .dequantize_int8 = dequantize<int8_t>,
    .dequantize_uint8 = dequantize<uint8_t>,
    .dequantize_int16 = dequantize<int16_t>,
    .dequantize_uint16 = dequantize<uint16_t>,
    .dequantize_int32 = dequantize<int32_t>,
    .dequantize_packed_int4 = dequantize_packed<int8_t>,
    .dequantize_packed_uint4 = dequantize_packed<uint8_t>,
    .pack = pack,
    .unpack_int4 = unpack<int8_t>,
    .unpack_uint4 = unpack<uint8_t>,
};

}  // namespace detent::DETENT_ISA
