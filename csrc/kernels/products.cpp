// SPDX-License-Identifier: Apache-2.0
#include "kernels/products.h"

#include "support/parallel.h"
#include "support/simd.h"

namespace detent::DETENT_ISA {
namespace {

using simd::Floats;

constexpr int64_t kDepth = 128;  // products added in float32 before the sum goes on in float64
constexpr int kVectors = 2;
constexpr int kColumns = kVectors * simd::kFloats;
constexpr int kRows = simd::kBytes == 64 ? 8 : 4;  // sums of a tile fit the registers
constexpr int64_t kMinProductsPerThread = 1 << 20;

// Where element (row, depth) of the left matrix lies; gram reads it transposed.
struct Left {
  const float* data;
  int64_t row_stride, depth_stride;
};

struct Tile {
  alignas(64) float left[kDepth * kRows];
  alignas(64) float sums[kRows * kColumns];
};

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows are padded with zeros, whose sums are not stored.
inline void pack_left(const Left& a, int64_t row, int64_t rows, int64_t first, int64_t depth, float* packed) {
  for (int64_t k = 0; k < depth; ++k) {
    const float* from = a.data + row * a.row_stride + (first + k) * a.depth_stride;
    for (int64_t r = 0; r < kRows; ++r) packed[k * kRows + r] = r < rows ? from[r * a.row_stride] : 0.0f;
  }
}

inline void pack_right(const float* b, int64_t stride, int64_t columns, int64_t depth, float* packed) {
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t j = 0; j < kColumns; ++j) packed[k * kColumns + j] = j < columns ? b[k * stride + j] : 0.0f;
  }
}

// The products of one tile along a run of the depth.
inline void multiply_tile(const float* right, int64_t depth, Tile& tile) {
  Floats sums[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const float* b = right + k * kColumns;
    for (int r = 0; r < kRows; ++r) {
      const float a = tile.left[k * kRows + r];
      for (int v = 0; v < kVectors; ++v) sums[r][v] += a * simd::load(b + v * simd::kFloats);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      __builtin_memcpy(tile.sums + r * kColumns + v * simd::kFloats, &sums[r][v], sizeof(Floats));
    }
  }
}

// Adds a panel of columns of the product to out [rows, stride]; rows before `first_row` are left out.
void add_panel(const Left& a, const float* b, int64_t stride, int64_t column, int64_t first_row, int64_t rows,
               int64_t depth, double* out) {
  alignas(64) float right[kDepth * kColumns];
  Tile tile;
  const int64_t columns = least(kColumns, stride - column);
  for (int64_t first = 0; first < depth; first += kDepth) {
    const int64_t run = least(kDepth, depth - first);
    pack_right(b + first * stride + column, stride, columns, run, right);
    for (int64_t row = first_row; row < rows; row += kRows) {
      const int64_t count = least(kRows, rows - row);
      pack_left(a, row, count, first, run, tile.left);
      multiply_tile(right, run, tile);
      for (int64_t r = 0; r < count; ++r) {
        double* to = out + (row + r) * stride + column;
        for (int64_t j = 0; j < columns; ++j) to[j] += static_cast<double>(tile.sums[r * kColumns + j]);
      }
    }
  }
}

inline int64_t panels_of(int64_t columns) { return (columns + kColumns - 1) / kColumns; }

inline int64_t least_panels(int64_t rows, int64_t depth) {
  return kMinProductsPerThread / (rows * depth * kColumns + 1) + 1;
}

void gram(const float* x, int64_t rows, int64_t columns, double* out) {
  const Left transposed{x, 1, columns};
  const int64_t panels = panels_of(columns);
  // A panel computes its part on and below the diagonal; the first ones have most to do, so ends are paired.
  parallel_for(panels, least_panels(columns, rows), [&](int64_t task) {
    const int64_t panel = task % 2 == 0 ? task / 2 : panels - 1 - task / 2;
    add_panel(transposed, x, columns, panel * kColumns, panel * kColumns, columns, rows, out);
  });
  for (int64_t i = 0; i < columns; ++i) {
    for (int64_t j = 0; j < i; ++j) out[j * columns + i] = out[i * columns + j];
  }
}

void multiply(const float* a, const float* b, int64_t rows, int64_t depth, int64_t columns, double* out) {
  for (int64_t i = 0; i < rows * columns; ++i) out[i] = 0.0;
  const Left left{a, depth, 1};
  parallel_for(panels_of(columns), least_panels(rows, depth),
               [&](int64_t panel) { add_panel(left, b, columns, panel * kColumns, 0, rows, depth, out); });
}

}  // namespace

extern const ProductsTable products_table = {.gram = gram, .multiply = multiply};

}  // namespace detent::DETENT_ISA
