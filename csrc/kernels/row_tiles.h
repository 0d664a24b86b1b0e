// SPDX-License-Identifier: Apache-2.0
// Strips of rows whose float64 state changes by products with rows of a matrix. Included by kernel sources only:
// everything lives in the namespace of the instruction set being compiled.
//
// A tile is kTileRows rows side by side, one a lane: state[column][lane]. A strip is some tiles that share what they
// read of the matrix. Each element of the state is summed on its own, in the order of the rows of the matrix, so that
// the width of a tile never shows in a result.
#pragma once

#include <cstdint>
#include <new>

#include "support/simd.h"

namespace detent::DETENT_ISA {

constexpr int64_t kTileRows = 2 * simd::kDoubles;
constexpr int64_t kTiles = 2;
constexpr int64_t kStripRows = kTileRows * kTiles;
constexpr int64_t kBlock = 64;    // rows of the matrix whose products wait to be subtracted together
constexpr int64_t kTogether = 4;  // columns of the state whose sums fit the registers

// Zeros at first; freed at the end of the block.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : data_(static_cast<T*>(::operator new(static_cast<size_t>(size) * sizeof(T), std::align_val_t{64}))) {
    for (int64_t i = 0; i < size; ++i) data_[i] = T{};
  }
  ~Scratch() { ::operator delete(data_, std::align_val_t{64}); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* at(int64_t i) const { return data_ + i; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_;
};

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The length of a row of the state: whole groups of columns.
inline int64_t padded(int64_t columns) { return (columns + kTogether - 1) / kTogether * kTogether; }

typedef double UnalignedDoubles __attribute__((vector_size(simd::kBytes), aligned(8), may_alias));

inline simd::Doubles load(const double* x) { return *reinterpret_cast<const UnalignedDoubles*>(x); }
inline void store(double* to, simd::Doubles x) { *reinterpret_cast<UnalignedDoubles*>(to) = x; }

// state[j][lane] -= factors[k][lane] * matrix[k][j], for k in order. A function of its own keeps the sums in registers.
[[gnu::noinline]] inline void subtract_products(const double* factors, const double* matrix, int64_t depth,
                                                double* state) {
  simd::Doubles sums[kTogether][2];
  for (int64_t j = 0; j < kTogether; ++j) {
    sums[j][0] = load(state + j * kTileRows);
    sums[j][1] = load(state + j * kTileRows + simd::kDoubles);
  }
  for (int64_t k = 0; k < depth; ++k) {
    const simd::Doubles first = load(factors + k * kTileRows), second = load(factors + k * kTileRows + simd::kDoubles);
    for (int64_t j = 0; j < kTogether; ++j) {
      const double element = matrix[k * kTogether + j];
      sums[j][0] -= first * element;
      sums[j][1] -= second * element;
    }
  }
  for (int64_t j = 0; j < kTogether; ++j) {
    store(state + j * kTileRows, sums[j][0]);
    store(state + j * kTileRows + simd::kDoubles, sums[j][1]);
  }
}

// For each tile: columns of the state from `first` on lose factors^T times rows [row, row + depth) of the matrix, which
// is square. factors: [depth][lane] of each tile, `apart` numbers from the next; state: [tiles][padded columns][lane].
inline void subtract_block(const double* matrix, int64_t columns, int64_t row, int64_t depth, int64_t first,
                           int64_t tiles, const double* factors, int64_t apart, double* state) {
  alignas(64) double packed[kBlock * kTogether];
  for (int64_t column = first; column < columns; column += kTogether) {
    const int64_t width = least(kTogether, columns - column);
    for (int64_t k = 0; k < depth; ++k) {
      const double* from = matrix + (row + k) * columns + column;
      if (width == kTogether) {
        __builtin_memcpy(packed + k * kTogether, from, kTogether * sizeof(double));
      } else {
        for (int64_t j = 0; j < kTogether; ++j) packed[k * kTogether + j] = j < width ? from[j] : 0.0;
      }
    }
    for (int64_t t = 0; t < tiles; ++t) {
      subtract_products(factors + t * apart, packed, depth, state + (t * padded(columns) + column) * kTileRows);
    }
  }
}

}  // namespace detent::DETENT_ISA
