// SPDX-License-Identifier: Apache-2.0
// Distances of two tensors.
#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "bindings/array_args.h"
#include "kernels/comparison.h"

namespace detent::bindings {
namespace {

using Axis = std::optional<int64_t>;
using Kernel = void (*)(const ComparisonArgs&, const SlicePlan&, double*, double*);

py::array_t<double> compare(Kernel kernel, const py::array& a, const py::array& b, const py::array& lower,
                            const py::array& upper, const py::array* shift, Axis axis) {
  const DenseShape shape = require_dense<float>(a, axis, "a");
  require_laid_out_as<float>(b, a, "b", "a");
  const int64_t channels = axis ? shape.channels : 1;
  const ComparisonArgs args{
      .a = static_cast<const float*>(a.data()),
      .b = static_cast<const float*>(b.data()),
      .outer = shape.outer,
      .channels = channels,
      .inner = shape.inner,
      .lower = require_vector<float>(lower, channels, "lower"),
      .upper = require_vector<float>(upper, channels, "upper"),
      .shift = shift ? require_vector<float>(*shift, channels, "shift") : nullptr,
  };
  const SlicePlan plan(shape.outer, channels, shape.inner);
  py::array_t<double> sums({static_cast<py::ssize_t>(2), static_cast<py::ssize_t>(channels)});
  double* out = sums.mutable_data();
  std::vector<double> partial(static_cast<size_t>(plan.slices() * 2 * channels));
  py::gil_scoped_release release;
  kernel(args, plan, partial.data(), out);
  return sums;
}

py::array_t<double> differences(const py::array& a, const py::array& b, const py::array& lower, const py::array& upper,
                                Axis axis) {
  return compare(comparison_table().differences, a, b, lower, upper, nullptr, axis);
}

py::array_t<double> distances(const py::array& a, const py::array& b, const py::array& shift, const py::array& lower,
                              const py::array& upper, Axis axis) {
  return compare(comparison_table().distances, a, b, lower, upper, &shift, axis);
}

}  // namespace

void register_comparison(py::module_& module) {
  module.def("differences", &differences, "Sum and number of a - b per channel, where limits do not hide it.",
             py::arg("a"), py::arg("b"), py::arg("lower"), py::arg("upper"), py::arg("axis"));
  module.def("distances", &distances, "Squared distances of clamped a and b, and of a and b + shift, per channel.",
             py::arg("a"), py::arg("b"), py::arg("shift"), py::arg("lower"), py::arg("upper"), py::arg("axis"));
}

}  // namespace detent::bindings
