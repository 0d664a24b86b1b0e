// SPDX-License-Identifier: Apache-2.0
// Weights as Python passes them to a search: an array, its channel axis, groups, importance of the same shape.
#pragma once

#include <pybind11/numpy.h>

#include <optional>

#include "bindings/array_args.h"
#include "search/weight_view.h"

namespace detent::bindings {

struct Rows {
  WeightView view;
  int64_t groups = 1;
};

// Reads the strides, so that any view is searched without a copy: rows are gathered one at a time.
inline Rows view_rows(const py::array& w, std::optional<int64_t> axis, std::optional<int64_t> group_size,
                      const char* name) {
  require_dtype<float>(w, name);
  require(w.ndim() + 1 <= kMostAxes, name, " has ", w.ndim(), " axes, at most ", kMostAxes - 1, " are supported");
  require(w.size() > 0, name, " of shape ", shape_text(w), " is empty");
  Rows rows;
  WeightView& view = rows.view;
  view.data = static_cast<const float*>(w.data());
  const auto add_axis = [&view](int64_t extent, int64_t stride) {
    view.extent[view.axes] = extent;
    view.stride[view.axes++] = stride;
  };
  const auto stride = [&w](py::ssize_t d) { return static_cast<int64_t>(w.strides(d) / w.itemsize()); };
  for (py::ssize_t d = 0; d < w.ndim(); ++d) {
    require(w.strides(d) % w.itemsize() == 0, name, " has a stride that is no multiple of its element size");
  }
  py::ssize_t channel_axis = -1;
  py::ssize_t input_axis = -1;
  if (axis) {
    channel_axis = static_cast<py::ssize_t>(*axis < 0 ? *axis + w.ndim() : *axis);
    require(channel_axis >= 0 && channel_axis < w.ndim(), "axis ", *axis, " is outside ", name, " of shape ",
            shape_text(w));
    add_axis(w.shape(channel_axis), stride(channel_axis));
  }
  if (group_size) {
    require(axis.has_value(), "group_size needs the channel axis: give `axis`");
    require(channel_axis <= 1 && w.ndim() >= 2, "groups need at least two axes and `axis` 0 or 1, got axis ", *axis,
            " of shape ", shape_text(w));
    input_axis = 1 - channel_axis;
    require(*group_size >= 1 && w.shape(input_axis) % *group_size == 0, "group_size ", *group_size,
            " does not divide the ", w.shape(input_axis), " input channels of ", name);
    rows.groups = w.shape(input_axis) / *group_size;
    add_axis(rows.groups, stride(input_axis) * *group_size);
  }
  view.channel_axes = view.axes;
  for (py::ssize_t d = 0; d < w.ndim(); ++d) {
    if (d != channel_axis) add_axis(d == input_axis ? *group_size : w.shape(d), stride(d));
  }
  for (int a = 0; a < view.channel_axes; ++a) view.channels *= view.extent[a];
  view.size = w.size() / view.channels;
  return rows;
}

// Importance in rows as `w` has them, if it is given.
inline std::optional<Rows> view_importance(const std::optional<py::array>& weights, const py::array& w,
                                           std::optional<int64_t> axis, std::optional<int64_t> group_size) {
  if (!weights) return std::nullopt;
  bool same = weights->ndim() == w.ndim();
  for (py::ssize_t d = 0; same && d < w.ndim(); ++d) same = weights->shape(d) == w.shape(d);
  require(same, "weights must have the shape of w, ", shape_text(w), ", got ", shape_text(*weights));
  return view_rows(*weights, axis, group_size, "weights");
}

}  // namespace detent::bindings
