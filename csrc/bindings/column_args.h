// SPDX-License-Identifier: Apache-2.0
// Matrices of weights whose columns are rounded, their grids, and the matrices that say what a rounding costs.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <optional>

#include "bindings/array_args.h"
#include "kernels/column_grids.h"

namespace detent::bindings {

using OptionalArray = std::optional<py::array>;

struct MatrixShape {
  int64_t rows, columns;
};

// A matrix of type T in C order; of that shape, where an extent is not negative.
template <class T>
inline const T* require_matrix(const py::array& x, MatrixShape shape, const char* name) {
  require_dtype<T>(x, name);
  require(x.ndim() == 2, name, " must have two axes, got shape ", shape_text(x));
  require(x.size() == 0 || (x.flags() & py::array::c_style) != 0, name, " must be in C order; numpy.ascontiguousarray(",
          name, ") makes it so");
  const bool fits = (shape.rows < 0 || x.shape(0) == shape.rows) && (shape.columns < 0 || x.shape(1) == shape.columns);
  if (!fits) {
    const auto extent = [](int64_t n) { return n < 0 ? std::string("any") : std::to_string(n); };
    fail(name, " must have shape [", extent(shape.rows), ", ", extent(shape.columns), "], got ", shape_text(x));
  }
  return static_cast<const T*>(x.data());
}

template <class T>
inline const T* require_finite(const T* x, MatrixShape shape, const char* name) {
  for (int64_t i = 0; i < shape.rows * shape.columns; ++i) {
    if (!std::isfinite(x[i])) {
      fail(name, "[", i / shape.columns, ", ", i % shape.columns, "] must be finite, got ", x[i]);
    }
  }
  return x;
}

inline const double* require_positive_diagonal(const double* x, int64_t columns, const char* name) {
  for (int64_t c = 0; c < columns; ++c) {
    require(x[c * columns + c] > 0.0, "the diagonal of ", name, " must be positive, got ", x[c * columns + c], " at [",
            c, ", ", c, "]");
  }
  return x;
}

// Upper triangular, with a positive diagonal; what is below it is not read.
inline const double* require_factor(const py::array& factor, int64_t columns) {
  const double* x = require_matrix<double>(factor, {columns, columns}, "factor");
  for (int64_t r = 0; r < columns; ++r) {
    for (int64_t c = r; c < columns; ++c) {
      require(std::isfinite(x[r * columns + c]), "factor[", r, ", ", c, "] must be finite, got ", x[r * columns + c]);
    }
  }
  return require_positive_diagonal(x, columns, "factor");
}

// Symmetric but for rounding, with a positive diagonal.
inline const double* require_hessian(const py::array& hessian, int64_t columns) {
  constexpr double kRounding = 1e-6;
  const double* x = require_matrix<double>(hessian, {columns, columns}, "hessian");
  require_positive_diagonal(require_finite(x, {columns, columns}, "hessian"), columns, "hessian");
  for (int64_t r = 0; r < columns; ++r) {
    const double scale = std::sqrt(x[r * columns + r]);
    for (int64_t c = 0; c < r; ++c) {
      const double apart = std::fabs(x[r * columns + c] - x[c * columns + r]);
      require(apart <= kRounding * scale * std::sqrt(x[c * columns + c]), "hessian must be symmetric, but [", r, ", ",
              c, "] is ", x[r * columns + c], " and [", c, ", ", r, "] is ", x[c * columns + r]);
    }
  }
  return x;
}

// scale and zero_point: [1 or rows, groups]; table: [1 or rows, levels], with qmin and qmax as its first and last
// index.
inline ColumnGrids require_columns(MatrixShape shape, const py::array& scale, const OptionalArray& zero_point,
                                   const OptionalArray& table, const OptionalArray& group_of_column, int64_t qmin,
                                   int64_t qmax) {
  const float* scales = require_matrix<float>(scale, {-1, -1}, "scale");
  const int64_t entries = scale.shape(0), groups = scale.shape(1);
  require((entries == 1 || entries == shape.rows) && groups > 0, "scale must have shape [1 or ", shape.rows,
          ", groups], got ", shape_text(scale));
  require(group_of_column.has_value() || groups == 1, "scale has ", groups, " groups: give group_of_column");
  require(zero_point.has_value() != table.has_value(), "give zero_point for affine grids, or table for a codebook");
  const auto grids = [&] {
    if (!table) {
      const auto* zeros = require_matrix<int32_t>(*zero_point, {entries, groups}, "zero_point");
      return ColumnGrids::affine(scales, zeros, entries, groups, qmin, qmax);
    }
    const float* levels = require_matrix<float>(*table, {-1, -1}, "table");
    const int64_t tables = table->shape(0);
    require(tables == 1 || tables == shape.rows, "table must have shape [1 or ", shape.rows, ", levels], got ",
            shape_text(*table));
    return ColumnGrids::codebook(scales, entries, groups, levels, tables, table->shape(1));
  };
  ColumnGrids found = grids();
  if (group_of_column) {
    found.assign(require_vector<int32_t>(*group_of_column, shape.columns, "group_of_column"), shape.columns);
  }
  return found;
}

// A copy of codes [rows, columns] that are on their grids.
inline py::array_t<int32_t> copy_codes(const py::array& codes, MatrixShape shape, const ColumnGrids& grids) {
  const auto* from = require_matrix<int32_t>(codes, shape, "codes");
  py::array_t<int32_t> copy({shape.rows, shape.columns});
  int32_t* to = copy.mutable_data();
  for (int64_t i = 0; i < shape.rows * shape.columns; ++i) {
    require(grids.qmin() <= from[i] && from[i] <= grids.qmax(), "codes[", i / shape.columns, ", ", i % shape.columns,
            "] must be in [", grids.qmin(), ", ", grids.qmax(), "], got ", from[i]);
    to[i] = from[i];
  }
  return copy;
}

}  // namespace detent::bindings
