// SPDX-License-Identifier: Apache-2.0
// Quantization with random entries left as they are, and its gradients.
#include <pybind11/stl.h>

#include <vector>

#include "bindings/grid_args.h"
#include "kernels/dropping.h"

namespace detent::bindings {
namespace {

using OptionalArray = std::optional<py::array>;

DroppingArgs require_args(const py::array& x, const OptionalArray& drawn, int64_t below, float scale,
                          int64_t zero_point, int64_t qmin, int64_t qmax) {
  require_dense<float>(x, std::nullopt, "x");
  require(0 <= below && below <= 256, "below must be in 0..256, got ", below);
  if (drawn) require_laid_out_as<uint8_t>(*drawn, x, "drawn", "x");
  require(kLowestCode <= zero_point && zero_point <= kHighestCode, "zero_point must be in [", qmin, ", ", qmax,
          "], got ", zero_point);
  const auto zero = static_cast<int32_t>(zero_point);
  const AffineGrid checked(1, 1, 1, &scale, &zero, qmin, qmax);
  const GridView view = checked.view();
  return {.x = data_of<float>(x),
          .g = nullptr,
          .drawn = drawn ? data_of<uint8_t>(*drawn) : nullptr,
          .below = static_cast<int32_t>(below),
          .scale = view.scale[0],
          .lower = view.lower[0],
          .upper = view.upper[0],
          .out = nullptr,
          .n = x.size()};
}

py::array dropped_round(const py::array& x, const OptionalArray& drawn, int64_t below, float scale, int64_t zero_point,
                        int64_t qmin, int64_t qmax, const OptionalArray& out) {
  DroppingArgs args = require_args(x, drawn, below, scale, zero_point, qmin, qmax);
  py::array result = output_like<float>(out, x);
  args.out = mutable_data_of<float>(result);
  py::gil_scoped_release release;
  dropping_table().round(args);
  return result;
}

std::pair<py::array, double> dropped_gradients(const py::array& g, const py::array& x, const OptionalArray& drawn,
                                               int64_t below, float scale, int64_t zero_point, int64_t qmin,
                                               int64_t qmax, const OptionalArray& out) {
  DroppingArgs args = require_args(x, drawn, below, scale, zero_point, qmin, qmax);
  require_laid_out_as<float>(g, x, "g", "x");
  args.g = data_of<float>(g);
  py::array result = output_like<float>(out, g);
  require_apart(result, x);
  args.out = mutable_data_of<float>(result);
  const SlicePlan plan(1, 1, args.n);
  std::vector<double> partial(static_cast<size_t>(plan.slices()));
  double sum = 0.0;
  {
    py::gil_scoped_release release;
    sum = dropping_table().gradients(args, plan, partial.data());
  }
  return {result, sum};
}

}  // namespace

void register_dropping(py::module_& module) {
  module.def("dropped_round", &dropped_round, "Values of the grid, but x where drawn < below.", py::arg("x"),
             py::arg("drawn"), py::arg("below"), py::arg("scale"), py::arg("zero_point"), py::arg("qmin"),
             py::arg("qmax"), py::arg("out"));
  module.def("dropped_gradients", &dropped_gradients, "Gradients with respect to x and to the step.", py::arg("g"),
             py::arg("x"), py::arg("drawn"), py::arg("below"), py::arg("scale"), py::arg("zero_point"), py::arg("qmin"),
             py::arg("qmax"), py::arg("out"));
}

}  // namespace detent::bindings
