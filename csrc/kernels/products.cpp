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
static_assert(kBlock % kColumns == 0 && kDepth % kBlock == 0);
constexpr int64_t kStrip = 128;  // rows of a task of forms: enough to make the packing of g cheap
constexpr int64_t kMinProductsPerThread = 1 << 20;

struct Tile {
  alignas(64) float left[kDepth * kRows];
  alignas(64) float sums[kRows * kColumns];
};

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Copies rows of `kept` of `width` floats; what is lacking is zero.
template <int64_t width>
inline void pack(const float* from, int64_t stride, int64_t kept, int64_t rows, float* packed) {
  for (int64_t k = 0; k < rows; ++k, from += stride, packed += width) {
    if (kept == width) {
      __builtin_memcpy(packed, from, width * sizeof(float));
    } else {
      for (int64_t j = 0; j < width; ++j) packed[j] = j < kept ? from[j] : 0.0f;
    }
  }
}

// The products of one tile along a run of the depth; element (r, k) of the left matrix is rows[r][k * step]. A function
// of its own keeps the sums in registers: GCC 12 gives some of them to what surrounds an inlined one.
[[gnu::noinline]] void multiply_tile(const float* const (&rows)[kRows], int64_t step, const float* right, int64_t depth,
                                     float* out) {
  Floats sums[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    const float* b = right + k * kColumns;
    for (int r = 0; r < kRows; ++r) {
      const float a = rows[r][k * step];
      for (int v = 0; v < kVectors; ++v) sums[r][v] += a * simd::load(b + v * simd::kFloats);
    }
  }
  __builtin_memcpy(out, sums, sizeof(sums));
}

inline int64_t parts_of(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

inline int64_t least_tasks(int64_t products) { return kMinProductsPerThread / (products + 1) + 1; }

// Adds a panel of columns of x^T x, on and below the diagonal, and the sums of these columns.
void add_panel(const float* x, int64_t rows, int64_t columns, int64_t column, double* sums, double* products) {
  alignas(64) float right[kDepth * kColumns];
  Tile tile;
  const float* packed[kRows];
  for (int r = 0; r < kRows; ++r) packed[r] = tile.left + r;
  const int64_t width = least(kColumns, columns - column);
  for (int64_t first = 0; first < rows; first += kDepth) {
    const int64_t run = least(kDepth, rows - first);
    pack<kColumns>(x + first * columns + column, columns, width, run, right);
    Floats totals[kVectors] = {};
    for (int64_t k = 0; k < run; ++k) {
      for (int v = 0; v < kVectors; ++v) totals[v] += simd::load(right + k * kColumns + v * simd::kFloats);
    }
    float total[kColumns];
    __builtin_memcpy(total, totals, sizeof(total));
    for (int64_t j = 0; j < width; ++j) sums[column + j] += static_cast<double>(total[j]);
    for (int64_t row = column; row < columns; row += kRows) {
      const int64_t count = least(kRows, columns - row);
      pack<kRows>(x + first * columns + row, columns, count, run, tile.left);
      multiply_tile(packed, kRows, right, run, tile.sums);
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
        for (int64_t j = 0; j <= i; j += kTogether) add_products(i, j, run, products);
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
        if (count_ == simd::kFloats) {
          __builtin_memcpy(to, from, sizeof(Floats));
        } else {
          for (int64_t lane = 0; lane < simd::kFloats; ++lane) to[lane] = lane < count_ ? from[lane] : 0.0f;
        }
      }
    }
  }

  const float* column(int64_t i) const { return packed_.data() + i * kDepth * simd::kFloats; }

  void add_sum(int64_t i, int64_t run, double* sums) const {
    Floats total = {};
    for (int64_t k = 0; k < run; ++k) total += simd::load(column(i) + k * simd::kFloats);
    for (int64_t lane = 0; lane < count_; ++lane) sums[lane * columns_ + i] += static_cast<double>(total[lane]);
  }

  // Column i times some columns from j up to i: as many sums at once as hide the time of an addition.
  void add_products(int64_t i, int64_t j, int64_t run, double* products) const {
    Floats total[kTogether] = {};
    const float* a = column(i);
    const float* b[kTogether];
    for (int64_t t = 0; t < kTogether; ++t) b[t] = column(least(j + t, i));
    for (int64_t k = 0; k < run; ++k) {
      const Floats value = simd::load(a + k * simd::kFloats);
      for (int64_t t = 0; t < kTogether; ++t) total[t] += value * simd::load(b[t] + k * simd::kFloats);
    }
    for (int64_t t = 0; t < least(kTogether, i - j + 1); ++t) {
      double* to = products + i * columns_ + j + t;
      for (int64_t lane = 0; lane < count_; ++lane)
        to[lane * columns_ * columns_] += static_cast<double>(total[t][lane]);
    }
  }

  static constexpr int64_t kTogether = 4;
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

// Some rows of one matrix, whose forms are added up block by block of the columns.
class Forms {
 public:
  // Without b, the rows are both sides, and only the part of g on and above the diagonal is used, block by block.
  Forms(const float* a, const float* g, const float* b, int64_t rows, int64_t size, double* out)
      : a_(a), g_(g), b_(b), rows_(rows), size_(size), out_(out), right_(static_cast<size_t>(size * kBlock)) {}

  void add() {
    for (int64_t row = 0; row < rows_; ++row) out_[row] = 0.0;
    for (int64_t column = 0; column < size_; column += kBlock) {
      const int64_t width = least(kBlock, size_ - column);
      const int64_t depth = b_ == nullptr ? column + width : size_;
      pack_block(column, width, depth);
      for (int64_t row = 0; row < rows_; row += kRows) add_rows(row, column, width, depth);
    }
  }

 private:
  // [panels, depth, kColumns]
  void pack_block(int64_t column, int64_t width, int64_t depth) {
    for (int64_t at = 0; at < width; at += kColumns) {
      float* to = right_.data() + at * depth;
      pack<kColumns>(g_ + column + at, size_, least(kColumns, width - at), depth, to);
      // What lies above the diagonal stands for what lies below, too.
      const int64_t twice = b_ == nullptr ? column * kColumns : 0;
      for (int64_t i = 0; i < twice; ++i) to[i] *= 2.0f;
    }
  }

  void add_rows(int64_t row, int64_t column, int64_t width, int64_t depth) {
    const int64_t count = least(kRows, rows_ - row);
    alignas(64) double through[kRows][kBlock] = {};
    alignas(64) float sums[kRows * kColumns];
    for (int64_t at = 0; at < width; at += kColumns) {
      for (int64_t first = 0; first < depth; first += kDepth) {
        const float* from[kRows];
        // Rows that are lacking are stood in for by the first; their sums are not used.
        for (int64_t r = 0; r < kRows; ++r) from[r] = a_ + (row + (r < count ? r : 0)) * size_ + first;
        multiply_tile(from, 1, right_.data() + at * depth + first * kColumns, least(kDepth, depth - first), sums);
        for (int64_t r = 0; r < count; ++r) {
          for (int64_t j = 0; j < kColumns; ++j) through[r][at + j] += static_cast<double>(sums[r * kColumns + j]);
        }
      }
    }
    const float* others = (b_ == nullptr ? a_ : b_) + row * size_ + column;
    for (int64_t r = 0; r < count; ++r) out_[row + r] += sum_of_block(through[r], others + r * size_, width);
  }

  // Halves are added to each other until one number is left: in any order but this one, sums wait for each other.
  static double sum_of_block(const double* through, const float* other, int64_t width) {
    alignas(64) double terms[kBlock];
    if (width == kBlock) {
      for (int64_t j = 0; j < kBlock; ++j) terms[j] = through[j] * static_cast<double>(other[j]);
    } else {
      for (int64_t j = 0; j < kBlock; ++j) terms[j] = j < width ? through[j] * static_cast<double>(other[j]) : 0.0;
    }
    for (int64_t j = 0; j < 16; ++j) terms[j] += terms[j + 16];
    for (int64_t j = 0; j < 8; ++j) terms[j] += terms[j + 8];
    for (int64_t j = 0; j < 4; ++j) terms[j] += terms[j + 4];
    return (terms[0] + terms[2]) + (terms[1] + terms[3]);
  }

  const float *a_, *g_, *b_;
  int64_t rows_, size_;
  double* out_;
  std::vector<float> right_;
};

void forms(const float* a, const float* g, const float* b, int64_t batch, int64_t rows, int64_t size, double* out) {
  const int64_t strips = parts_of(rows, kStrip);
  parallel_for(batch * strips, least_tasks(least(rows, kStrip) * size * size), [&](int64_t task) {
    const int64_t matrix = task / strips, first = task % strips * kStrip;
    const int64_t row = matrix * rows + first;
    Forms(a + row * size, g + matrix * size * size, b == nullptr ? nullptr : b + row * size,
          least(kStrip, rows - first), size, out + row)
        .add();
  });
}

}  // namespace

extern const ProductsTable products_table = {.moments = moments, .forms = forms};

}  // namespace detent::DETENT_ISA
