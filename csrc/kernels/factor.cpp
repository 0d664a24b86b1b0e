// SPDX-License-Identifier: Apache-2.0
#include "kernels/factor.h"

#include <cmath>

#include "support/parallel.h"

namespace detent::DETENT_ISA {
namespace {

constexpr int64_t kPanel = FactorTable::kPanel;
constexpr int64_t kStrip = 4;    // rows that one read of the other matrix serves
constexpr int64_t kWidth = 512;  // columns at a time, which stay in the first cache
constexpr int64_t kMinProductsPerThread = 1 << 18;

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

inline int64_t least_tasks(int64_t products) { return kMinProductsPerThread / (products + 1) + 1; }

// to[j] += factor * from[j]
inline void add_multiple(double factor, const double* from, int64_t count, double* to) {
  for (int64_t j = 0; j < count; ++j) to[j] += factor * from[j];
}

// Takes one column of the panel after the other to V, from the last, and its products from the columns left of it in
// the panel. Row p of `panel` is the column first + p.
bool factor_panel(double* h, int64_t size, int64_t first, int64_t width, double* panel) {
  for (int64_t p = width - 1; p >= 0; --p) {
    const int64_t column = first + p;
    const double pivot = h[column * size + column];
    if (!(pivot > 0) || !std::isfinite(pivot)) return false;
    const double root = std::sqrt(pivot);
    double* v = panel + p * size;
    h[column * size + column] = root;
    for (int64_t i = 0; i < column; ++i) v[i] = h[i * size + column] /= root;
    parallel_for(column, least_tasks(p), [&](int64_t i) {
      const int64_t begin = i > first ? i : first;
      if (begin < column) add_multiple(-v[i], v + begin, column - begin, h + i * size + begin);
    });
  }
  return true;
}

bool factor(double* h, int64_t size, double* panel) {
  for (int64_t end = size; end > 0;) {
    const int64_t width = least(kPanel, end), first = end - width;
    if (!factor_panel(h, size, first, width, panel)) return false;
    parallel_for(first, least_tasks(width * first / 2), [&](int64_t i) {
      for (int64_t j = i; j < first; j += kWidth) {
        const int64_t count = least(kWidth, first - j);
        for (int64_t p = width - 1; p >= 0; --p) {
          const double* v = panel + p * size;
          add_multiple(-v[i], v + j, count, h + i * size + j);
        }
      }
    });
    end = first;
  }
  for (int64_t i = 1; i < size; ++i) {
    for (int64_t j = 0; j < i; ++j) h[i * size + j] = 0;
  }
  return true;
}

void invert(const double* v, int64_t size, double* inverse) {
  parallel_for((size + kStrip - 1) / kStrip, least_tasks(kStrip * size * size / 3), [&](int64_t strip) {
    const int64_t first = strip * kStrip, last = least(first + kStrip, size);
    for (int64_t i = first * size; i < last * size; ++i) inverse[i] = 0;
    for (int64_t k = first; k < size; ++k) {
      const double pivot = v[k * size + k];
      for (int64_t i = first; i < least(last, k + 1); ++i) {
        double* row = inverse + i * size;
        // What the row has gathered of column k is what the product with V must lose there.
        row[k] = (i == k ? 1.0 : -row[k]) / pivot;
        add_multiple(row[k], v + k * size + k + 1, size - k - 1, row + k + 1);
      }
    }
  });
}

void multiply(const double* a, const double* b, int64_t rows, int64_t depth, int64_t columns, double* c) {
  parallel_for((rows + kStrip - 1) / kStrip, least_tasks(kStrip * depth * columns), [&](int64_t strip) {
    const int64_t first = strip * kStrip, last = least(first + kStrip, rows);
    for (int64_t j = 0; j < columns; j += kWidth) {
      for (int64_t k = 0; k < depth; ++k) {
        for (int64_t i = first; i < last; ++i) {
          add_multiple(a[i * depth + k], b + k * columns + j, least(kWidth, columns - j), c + i * columns + j);
        }
      }
    }
  });
}

}  // namespace

extern const FactorTable factor_table = {.factor = factor, .invert = invert, .multiply = multiply};

}  // namespace detent::DETENT_ISA
