// SPDX-License-Identifier: Apache-2.0
// Quantization error of tensors.
#include <pybind11/stl.h>

#include <cmath>
#include <vector>

#include "bindings/grid_args.h"
#include "kernels/error.h"

namespace detent::bindings {
namespace {

py::array_t<double> tensor_error(const py::array& x, const py::array& scale, const py::array& zero_point, int64_t qmin,
                                 int64_t qmax, double p, const std::optional<py::array>& weights, Axis axis) {
  require(std::isfinite(p) && p > 0.0, "p must be finite and positive, got ", p);
  const DenseShape shape = require_dense<float>(x, axis, "x");
  if (weights) require_laid_out_as<float>(*weights, x, "weights", "x");
  const int64_t channels = axis ? shape.channels : 1;
  // Sums need a step per channel, never one per element: [1, channels, 1] keeps the grid's vectors that short.
  const AffineGrid grid = require_grid({1, channels, 1}, axis, scale, zero_point, qmin, qmax);
  const GridView view = grid.view();
  const SlicePlan plan(shape.outer, channels, shape.inner);
  const ErrorArgs args{
      .x = data_of<float>(x),
      .weights = weights ? data_of<float>(*weights) : nullptr,
      .outer = shape.outer,
      .channels = channels,
      .inner = shape.inner,
      .scale = view.scale,
      .inverse = view.inverse,
      .lower = view.lower,
      .upper = view.upper,
      .exact_inverse = view.exact_inverse,
      .p = p,
  };
  py::array_t<double> sums(static_cast<py::ssize_t>(channels));
  double* out = sums.mutable_data();
  std::vector<double> partial(static_cast<size_t>(plan.slices() * channels));
  py::gil_scoped_release release;
  error_table().tensor_error(args, plan, partial.data(), out);
  return sums;
}

}  // namespace

void register_error(py::module_& module) {
  module.def("tensor_error", &tensor_error, "Sum of weight * |Q(x) - x|^p per channel.", py::arg("x"), py::arg("scale"),
             py::arg("zero_point"), py::arg("qmin"), py::arg("qmax"), py::arg("p"), py::arg("weights"),
             py::arg("axis"));
}

}  // namespace detent::bindings
