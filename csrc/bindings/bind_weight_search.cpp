// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include "bindings/weight_args.h"
#include "search/weight_search.h"

namespace detent::bindings {
namespace {

WeightMetric parse_metric(const std::string& name) {
  if (name == "noclipping") return WeightMetric::kNoClipping;
  if (name == "mse") return WeightMetric::kMse;
  if (name == "mae") return WeightMetric::kMae;
  if (name == "lp") return WeightMetric::kLp;
  require(name == "hmse", "metric must be noclipping, mse, mae, lp or hmse, got '", name, "'");
  return WeightMetric::kHmse;
}

WeightGrid parse_grid(const std::string& name) {
  if (name == "power_of_two") return WeightGrid::kPowerOfTwo;
  if (name == "symmetric") return WeightGrid::kSymmetric;
  require(name == "uniform", "grid must be power_of_two, symmetric or uniform, got '", name, "'");
  return WeightGrid::kUniform;
}

py::tuple search(const py::array& w, const std::vector<int>& bits, const std::string& grid, const std::string& metric,
                 double p, std::optional<int64_t> axis, std::optional<int64_t> group_size,
                 const std::optional<py::array>& weights, bool narrow_range, double min_threshold, bool exact) {
  WeightSearchSpec spec;
  spec.metric = parse_metric(metric);
  spec.grid = parse_grid(grid);
  spec.p = p;
  spec.narrow_range = narrow_range;
  spec.exact = exact;
  spec.min_threshold = static_cast<double>(static_cast<float>(min_threshold));
  spec.bits = bits.data();
  spec.widths = static_cast<int>(bits.size());
  for (const int width : bits) require(width >= 2 && width <= 16, "bits of signed codes must be in 2..16, got ", width);
  require(p > 0.0 && p <= 64.0, "p must be in (0, 64], got ", p);
  require(min_threshold >= 0x1p-100 && min_threshold <= 0x1p100, "min_threshold must be in 2^-100..2^100, got ",
          min_threshold);
  require(!narrow_range || spec.grid != WeightGrid::kUniform, "narrow_range is for power_of_two and symmetric grids");
  require(weights.has_value() == (spec.metric == WeightMetric::kHmse), "weights belong to metric hmse, and only there");

  const Rows rows = view_rows(w, axis, group_size, "w");
  const std::optional<Rows> importance = view_importance(weights, w, axis, group_size);
  const std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(bits.size()),
                                       static_cast<py::ssize_t>(rows.view.channels)};
  py::array_t<float> first(shape);
  py::array_t<float> second(shape);
  py::array_t<double> error(shape);
  const WeightSearchResult result{first.mutable_data(), second.mutable_data(), error.mutable_data()};
  {
    py::gil_scoped_release release;
    search_weights(rows.view, importance ? &importance->view : nullptr, spec, rows.groups, result);
  }
  if (spec.grid == WeightGrid::kUniform) return py::make_tuple(first, second, error);
  return py::make_tuple(first, py::none(), error);
}

}  // namespace

void register_weight_search(py::module_& module) {
  module.def("search_weights", &search, py::arg("w"), py::arg("bits"), py::arg("grid"), py::arg("metric"), py::arg("p"),
             py::arg("axis"), py::arg("group_size"), py::arg("weights"), py::arg("narrow_range"),
             py::arg("min_threshold"), py::arg("exact"),
             "Thresholds (or lower and upper limits) and errors, each [widths, rows].");
}

}  // namespace detent::bindings
