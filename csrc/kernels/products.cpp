// SPDX-License-Identifier: Apache-2.0
#include "kernels/products.h"

#include <vector>

#include "support/parallel.h"
#include "support/simd.h"

namespace detent::DETENT_ISA {
namespace {

using simd::Floats;

constexpr int64_t kDepth = 128;  // products added in float32 before the sum goes on in float64
constexpr int kVectors = 2;
constexpr int kColumns = kVectors * simd::kFloats;
constexpr int kRows = simd::kBytes == 64 ? 8 : 4;  // sums of a tile fit the registers
constexpr int64_t kBlock = 32;  // columns of a form that are added up together: whole panels on every instruction set
static_assert(kBlock % kColumns == 0);
constexpr int64_t kMinProductsPerThread = 1 << 20;

// Where element (row, depth) of the left matrix lies; moments read it transposed.
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

inline int64_t parts_of(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

inline int64_t least_tasks(int64_t products) { return kMinProductsPerThread / (products + 1) + 1; }

// Adds a panel of columns of x^T x, on and below the diagonal, and the sums of these columns.
void add_panel(const float* x, int64_t rows, int64_t columns, int64_t column, double* sums, double* products) {
  alignas(64) float right[kDepth * kColumns];
  Tile tile;
  const Left transposed{x, 1, columns};
  const int64_t width = least(kColumns, columns - column);
  for (int64_t first = 0; first < rows; first += kDepth) {
    const int64_t run = least(kDepth, rows - first);
    pack_right(x + first * columns + column, columns, width, run, right);
    float total[kColumns] = {};
    for (int64_t k = 0; k < run; ++k) {
      for (int64_t j = 0; j < kColumns; ++j) total[j] += right[k * kColumns + j];
    }
    for (int64_t j = 0; j < width; ++j) sums[column + j] += static_cast<double>(total[j]);
    for (int64_t row = column; row < columns; row += kRows) {
      const int64_t count = least(kRows, columns - row);
      pack_left(transposed, row, count, first, run, tile.left);
      multiply_tile(right, run, tile);
      for (int64_t r = 0; r < count; ++r) {
        double* to = products + (row + r) * columns + column;
        for (int64_t j = 0; j < width; ++j) to[j] += static_cast<double>(tile.sums[r * kColumns + j]);
      }
    }
  }
}

void mirror(double* products, int64_t columns) {
  for (int64_t i = 0; i < columns; ++i) {
    for (int64_t j = 0; j < i; ++j) products[j * columns + i] = products[i * columns + j];
  }
}

// The sums and products of kFloats neighbouring matrices at once; x is [rows, columns, batch].
class Lanes {
 public:
  Lanes(const float* x, int64_t batch, int64_t rows, int64_t columns, int64_t lane)
      : x_(x + lane),
        batch_(batch),
        rows_(rows),
        columns_(columns),
        count_(least(simd::kFloats, batch - lane)),
        packed_(static_cast<size_t>(kDepth * columns * simd::kFloats)) {}

  void add(double* sums, double* products) {
    for (int64_t first = 0; first < rows_; first += kDepth) {
      const int64_t run = least(kDepth, rows_ - first);
      pack(first, run);
      for (int64_t i = 0; i < columns_; ++i) {
        add_sum(i, run, sums);
        for (int64_t j = 0; j <= i; ++j) add_product(i, j, run, products);
      }
    }
  }

 private:
  // [columns, run, lanes]; lanes beyond the batch are zero.
  void pack(int64_t first, int64_t run) {
    for (int64_t k = 0; k < run; ++k) {
      for (int64_t i = 0; i < columns_; ++i) {
        const float* from = x_ + ((first + k) * columns_ + i) * batch_;
        float* to = packed_.data() + (i * kDepth + k) * simd::kFloats;
        for (int64_t lane = 0; lane < simd::kFloats; ++lane) to[lane] = lane < count_ ? from[lane] : 0.0f;
      }
    }
  }

  const float* column(int64_t i) const { return packed_.data() + i * kDepth * simd::kFloats; }

  void add_sum(int64_t i, int64_t run, double* sums) const {
    Floats total = {};
    for (int64_t k = 0; k < run; ++k) total += simd::load(column(i) + k * simd::kFloats);
    for (int64_t lane = 0; lane < count_; ++lane) sums[lane * columns_ + i] += static_cast<double>(total[lane]);
  }

  void add_product(int64_t i, int64_t j, int64_t run, double* products) const {
    Floats total = {};
    const float *a = column(i), *b = column(j);
    for (int64_t k = 0; k < run; ++k) total += simd::load(a + k * simd::kFloats) * simd::load(b + k * simd::kFloats);
    double* to = products + i * columns_ + j;
    for (int64_t lane = 0; lane < count_; ++lane) to[lane * columns_ * columns_] += static_cast<double>(total[lane]);
  }

  const float* x_;
  int64_t batch_, rows_, columns_, count_;
  std::vector<float> packed_;
};

void moments(const float* x, bool batch_innermost, int64_t batch, int64_t rows, int64_t columns, double* sums,
             double* products) {
  const int64_t square = columns * columns;
  if (batch_innermost) {
    parallel_for(parts_of(batch, simd::kFloats), least_tasks(rows * square * simd::kFloats / 2), [&](int64_t task) {
      const int64_t lane = task * simd::kFloats;
      Lanes(x, batch, rows, columns, lane).add(sums + lane * columns, products + lane * square);
    });
  } else {
    const int64_t panels = parts_of(columns, kColumns);
    // The first panels of a matrix have most to do, so ends are paired.
    parallel_for(batch * panels, least_tasks(columns * rows * kColumns), [&](int64_t task) {
      const int64_t matrix = task / panels, place = task % panels;
      const int64_t panel = place % 2 == 0 ? place / 2 : panels - 1 - place / 2;
      add_panel(x + matrix * rows * columns, rows, columns, panel * kColumns, sums + matrix * columns,
                products + matrix * square);
    });
  }
  parallel_for(batch, least_tasks(square), [&](int64_t matrix) { mirror(products + matrix * square, columns); });
}

// The share of one panel of columns in the forms of all rows, added to out [rows].
void add_form_panel(const float* a, const float* g, const float* b, int64_t rows, int64_t size, int64_t column,
                    std::vector<float>& right, double* out) {
  Tile tile;
  const int64_t width = least(kColumns, size - column);
  const Left left{a, size, 1};
  pack_right(g + column, size, width, size, right.data());
  for (int64_t row = 0; row < rows; row += kRows) {
    const int64_t count = least(kRows, rows - row);
    double through[kRows * kColumns] = {};
    for (int64_t first = 0; first < size; first += kDepth) {
      const int64_t run = least(kDepth, size - first);
      pack_left(left, row, count, first, run, tile.left);
      multiply_tile(right.data() + first * kColumns, run, tile);
      for (int64_t i = 0; i < kRows * kColumns; ++i) through[i] += static_cast<double>(tile.sums[i]);
    }
    for (int64_t r = 0; r < count; ++r) {
      const float* other = b + (row + r) * size + column;
      double total = out[row + r];
      for (int64_t j = 0; j < width; ++j) total += through[r * kColumns + j] * static_cast<double>(other[j]);
      out[row + r] = total;
    }
  }
}

void forms(const float* a, const float* g, const float* b, int64_t batch, int64_t rows, int64_t size, double* out) {
  const int64_t blocks = parts_of(size, kBlock);
  std::vector<double> shares(static_cast<size_t>(batch * blocks * rows), 0.0);
  parallel_for(batch * blocks, least_tasks(rows * size * kBlock), [&](int64_t task) {
    const int64_t matrix = task / blocks, block = task % blocks;
    std::vector<float> right(static_cast<size_t>(size * kColumns));
    const int64_t end = least(size, (block + 1) * kBlock);
    for (int64_t column = block * kBlock; column < end; column += kColumns) {
      add_form_panel(a + matrix * rows * size, g + matrix * size * size, b + matrix * rows * size, rows, size, column,
                     right, shares.data() + task * rows);
    }
  });
  for (int64_t matrix = 0; matrix < batch; ++matrix) {
    for (int64_t row = 0; row < rows; ++row) {
      double total = 0.0;
      for (int64_t block = 0; block < blocks; ++block)
        total += shares[static_cast<size_t>((matrix * blocks + block) * rows + row)];
      out[matrix * rows + row] = total;
    }
  }
}

}  // namespace

extern const ProductsTable products_table = {.moments = moments, .forms = forms};

}  // namespace detent::DETENT_ISA
