// SPDX-License-Identifier: Apache-2.0
// Grids and outputs as Python passes them: `scale` and `zero_point` vectors, an optional channel axis, an optional
// `out`.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <optional>

#include "bindings/array_args.h"
#include "kernels/affine_grid.h"

namespace detent::bindings {

using Axis = std::optional<int64_t>;

// One entry per channel of `axis`; one for the whole tensor without an axis.
inline AffineGrid require_grid(const DenseShape& shape, Axis axis, const py::array& scale, const py::array& zero_point,
                               int64_t qmin, int64_t qmax) {
  const int64_t entries = axis ? shape.channels : 1;
  const float* scales = require_vector<float>(scale, entries, "scale");
  const int32_t* zero_points = require_vector<int32_t>(zero_point, entries, "zero_point");
  return AffineGrid(shape.outer, entries, shape.inner, scales, zero_points, qmin, qmax);
}

// A kernel that writes ahead of what it reads gives nonsense.
inline void require_apart(const py::array& out, const py::array& x) {
  const auto* out_begin = static_cast<const char*>(out.data());
  const auto* x_begin = static_cast<const char*>(x.data());
  if (out_begin + out.nbytes() <= x_begin || x_begin + x.nbytes() <= out_begin) return;
  fail("out overlaps the input; pass an array of its own (or, where the types agree, the input itself)");
}

// `out` after checks, or a new array with the shape and memory order of `x`.
template <class T>
inline py::array output_like(const std::optional<py::array>& out, const py::array& x) {
  if (!out) return empty_like<T>(x);
  py::array array = *out;
  require_out<T>(array, x, "out");
  const bool in_place = array.data() == x.data() && array.itemsize() == x.itemsize();
  if (!in_place) require_apart(array, x);
  return array;
}

template <class T>
inline const T* data_of(const py::array& array) {
  return static_cast<const T*>(array.data());
}

template <class T>
inline T* mutable_data_of(py::array& array) {
  return static_cast<T*>(array.mutable_data());
}

}  // namespace detent::bindings
