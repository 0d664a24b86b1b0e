// SPDX-License-Identifier: Apache-2.0
// The only place where dtype, rank and layout of arrays from Python are checked. Nothing here copies or casts: an array
// that does not fit is refused with what was expected, what came, and what to do.
//
// Kernels see every array as [outer, channels, inner], dense in memory. An array whose axes are permuted but without
// gaps (a channels-last tensor, a transposed matrix) is dense too: its axes are read in memory order.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "support/check.h"

namespace detent::bindings {

namespace py = pybind11;

template <class T>
inline void require_dtype(const py::array& array, const char* name) {
  if (py::isinstance<py::array_t<T>>(array)) return;  // the message is costly: built only when needed
  fail(name, " must have dtype ", std::string(py::str(py::dtype::of<T>())), ", got ",
       std::string(py::str(array.dtype())), "; convert it explicitly, detent never casts silently");
}

inline std::string shape_text(const py::array& array) {
  std::string text = "[";
  for (py::ssize_t d = 0; d < array.ndim(); ++d) {
    if (d > 0) text += ", ";
    text += std::to_string(array.shape(d));
  }
  return text + "]";
}

// Axes from slowest to fastest in memory; axes of extent 1 keep a place but do not matter. Empty optional: not dense.
inline std::optional<std::vector<py::ssize_t>> memory_order(const py::array& array) {
  std::vector<py::ssize_t> axes;
  for (py::ssize_t d = 0; d < array.ndim(); ++d) axes.push_back(d);
  if (array.size() == 0) return axes;
  // Insertion sort by stride, descending: few axes, and stable for equal strides.
  for (size_t i = 1; i < axes.size(); ++i) {
    for (size_t j = i; j > 0 && array.strides(axes[j - 1]) < array.strides(axes[j]); --j)
      std::swap(axes[j - 1], axes[j]);
  }
  py::ssize_t expected = array.itemsize();
  for (size_t i = axes.size(); i-- > 0;) {
    if (array.shape(axes[i]) == 1) continue;
    if (array.strides(axes[i]) != expected) return std::nullopt;
    expected *= array.shape(axes[i]);
  }
  return axes;
}

struct DenseShape {
  int64_t outer = 1;
  int64_t channels = 1;
  int64_t inner = 1;
  int64_t size() const { return outer * channels * inner; }
};

// Splits a dense array around `axis` (negative counts from the end; none: one channel, everything inner).
template <class T>
inline DenseShape require_dense(const py::array& array, std::optional<int64_t> axis, const char* name) {
  require_dtype<T>(array, name);
  const bool c_order = (array.flags() & py::array::c_style) != 0;
  if (!c_order && array.size() != 0 && !memory_order(array).has_value()) {
    fail(name, " of shape ", shape_text(array),
         " has gaps between its elements (it is a strided view); pass a dense array: numpy.ascontiguousarray(", name,
         ") or tensor.contiguous()");
  }
  DenseShape dense;
  if (!axis) {
    dense.inner = array.size();
    return dense;
  }
  const int64_t channel_axis = *axis < 0 ? *axis + array.ndim() : *axis;
  if (channel_axis < 0 || channel_axis >= array.ndim()) {
    fail("axis ", *axis, " is outside ", name, " of shape ", shape_text(array));
  }
  dense.channels = array.shape(channel_axis);
  if (array.size() == 0) {
    dense.inner = 0;
    return dense;
  }
  // Axes of extent 1 have arbitrary strides, so the channel axis is located by position in the sorted order only when
  // it matters; with one channel any split is right.
  if (dense.channels == 1) {
    dense.inner = array.size();
    return dense;
  }
  const auto order = *memory_order(array);
  bool before = true;
  for (const py::ssize_t d : order) {
    if (d == channel_axis) {
      before = false;
    } else {
      (before ? dense.outer : dense.inner) *= array.shape(d);
    }
  }
  return dense;
}

// A C-contiguous vector of exactly `size` elements (any size if negative).
template <class T>
inline const T* require_vector(const py::array& array, int64_t size, const char* name) {
  require_dtype<T>(array, name);
  if (array.ndim() != 1 || (array.size() > 1 && array.strides(0) != array.itemsize())) {
    fail(name, " must be a contiguous vector, got shape ", shape_text(array));
  }
  require(size < 0 || array.size() == size, name, " must have ", size, " elements, got ", array.size());
  return static_cast<const T*>(array.data());
}

// A new array with the shape and memory order of `like`.
template <class T>
inline py::array_t<T> empty_like(const py::array& like) {
  std::vector<py::ssize_t> shape(like.shape(), like.shape() + like.ndim());
  std::vector<py::ssize_t> strides(shape.size());
  const auto order = memory_order(like);
  require(order.has_value(), "cannot take the memory order of an array with gaps");
  py::ssize_t step = sizeof(T);
  for (size_t i = order->size(); i-- > 0;) {
    const auto d = static_cast<size_t>((*order)[i]);
    strides[d] = step;
    step *= shape[d] > 0 ? shape[d] : 1;
  }
  return py::array_t<T>(shape, strides);
}

// An array of type T that lies in memory as another does: what require_out checks, without the right to write.
template <class T>
inline void require_laid_out_as(const py::array& array, const py::array& like, const char* name, const char* other) {
  require_dtype<T>(array, name);
  bool same = array.ndim() == like.ndim();
  for (py::ssize_t d = 0; same && d < like.ndim(); ++d) {
    same =
        array.shape(d) == like.shape(d) && (like.shape(d) <= 1 || like.size() == 0 ||
                                            array.strides(d) * like.itemsize() == like.strides(d) * array.itemsize());
  }
  if (!same) {
    fail(name, " must have the shape and memory order of ", other, ", ", shape_text(like), ", got shape ",
         shape_text(array));
  }
}

// `out` must match `like` in shape and memory order, be writable and of type T.
template <class T>
inline T* require_out(py::array& out, const py::array& like, const char* name) {
  require_dtype<T>(out, name);
  require(out.writeable(), name, " is read-only");
  bool same = out.ndim() == like.ndim();
  for (py::ssize_t d = 0; same && d < out.ndim(); ++d) same = out.shape(d) == like.shape(d);
  if (!same) fail(name, " must have shape ", shape_text(like), ", got ", shape_text(out));
  for (py::ssize_t d = 0; d < out.ndim(); ++d) {
    const bool same_stride = out.shape(d) <= 1 || out.strides(d) / out.itemsize() == like.strides(d) / like.itemsize();
    require(same_stride || out.size() == 0, name, " must have the memory order of the input (strides differ on axis ",
            d, ")");
  }
  return static_cast<T*>(out.mutable_data());
}

}  // namespace detent::bindings
