// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include <cmath>
#include <vector>

#include "bindings/array_args.h"
#include "search/histogram_search.h"

namespace detent::bindings {
namespace {

using Doubles = std::vector<double>;

SearchMetric parse_metric(const std::string& name) {
  if (name == "mse") return SearchMetric::kMse;
  if (name == "mae") return SearchMetric::kMae;
  if (name == "lp") return SearchMetric::kLp;
  if (name == "kl") return SearchMetric::kKl;
  fail("unknown metric '", name, "'; known: mse, mae, lp, kl");
}

// A histogram ready for evaluation: owns its suffix sums and keeps the instruction set it was built with out of sight.
class HistogramErrors {
 public:
  HistogramErrors(const py::array& positive, double positive_end, const py::array& negative, double negative_end,
                  double zeros, double half_count, const std::string& metric, double power) {
    problem_.metric = parse_metric(metric);
    problem_.power = power;
    problem_.zeros = zeros;
    problem_.half_count = half_count;
    require(std::isfinite(power) && power > 0, "p must be positive and finite, got ", power);
    require(std::isfinite(zeros) && zeros >= 0, "zeros must be finite and >= 0, got ", zeros);
    require(half_count > 0, "half_count must be positive, got ", half_count);
    positive_ = take_side(positive, positive_end, "positive", &problem_.positive);
    negative_ = take_side(negative, negative_end, "negative", &problem_.negative);
    const py::gil_scoped_release release;
    workspace_.resize(static_cast<size_t>(histogram_search_table().workspace_size(problem_)));
    histogram_search_table().prepare(problem_, workspace_.data());
  }
  HistogramErrors(const HistogramErrors&) = delete;
  HistogramErrors& operator=(const HistogramErrors&) = delete;

  py::array_t<double> fixed_levels(const py::array& steps, int64_t positive_levels, int64_t negative_levels) const {
    const double* const values = check_steps(steps);
    require(positive_levels >= 0 && negative_levels >= 0 && positive_levels + negative_levels >= 1,
            "a grid needs at least one level besides zero");
    py::array_t<double> errors(steps.size());
    double* const out = errors.mutable_data();
    const int64_t count = steps.size();
    const py::gil_scoped_release release;
    histogram_search_table().fixed_levels(problem_, workspace_.data(), values, count, positive_levels, negative_levels,
                                          out);
    return errors;
  }

  py::tuple best_split(const py::array& steps, int64_t levels, int64_t first, int64_t last, int64_t stride) const {
    const double* const values = check_steps(steps);
    require(levels >= 1 && 0 <= first && first <= last && last <= levels && stride >= 1,
            "need 0 <= first <= last <= levels and stride >= 1");
    py::array_t<double> errors(steps.size());
    py::array_t<int64_t> splits(steps.size());
    double* const out = errors.mutable_data();
    int64_t* const out_splits = splits.mutable_data();
    const int64_t count = steps.size();
    {
      const py::gil_scoped_release release;
      histogram_search_table().best_split(problem_, workspace_.data(), values, count, levels, first, last, stride, out,
                                          out_splits);
    }
    return py::make_tuple(errors, splits);
  }

 private:
  static Doubles take_side(const py::array& counts, double end, const char* name, HistogramSide* side) {
    const double* const values = require_vector<double>(counts, -1, name);
    Doubles owned(values, values + counts.size());
    for (const double c : owned) require(std::isfinite(c) && c >= 0, name, " counts must be finite and >= 0, got ", c);
    const auto bins = static_cast<int64_t>(owned.size());
    require(bins <= (int64_t{1} << 30), name, " has too many bins: ", bins);
    require(bins == 0 || (end >= static_cast<double>(bins - 1) && end <= static_cast<double>(bins)), name,
            " end must lie in the last of ", bins, " bins, got ", end);
    side->counts = owned.data();
    side->bins = bins;
    side->end = end;
    return owned;
  }

  // Ascending: neighbouring lanes then look up neighbouring bins.
  static const double* check_steps(const py::array& steps) {
    const double* const values = require_vector<double>(steps, -1, "steps");
    for (py::ssize_t i = 0; i < steps.size(); ++i) {
      require(std::isfinite(values[i]) && values[i] > 0, "steps must be positive and finite, got ", values[i]);
      require(i == 0 || values[i] >= values[i - 1], "steps must ascend");
    }
    return values;
  }

  HistogramProblem problem_;
  Doubles positive_;
  Doubles negative_;
  Doubles workspace_;
};

}  // namespace

void register_histogram_search(py::module_& module) {
  py::class_<HistogramErrors>(module, "HistogramErrors",
                              "Errors of many grids from one histogram, in units of the bin width.")
      .def(py::init<const py::array&, double, const py::array&, double, double, double, const std::string&, double>(),
           py::arg("positive"), py::arg("positive_end"), py::arg("negative"), py::arg("negative_end"), py::arg("zeros"),
           py::arg("half_count"), py::arg("metric"), py::arg("power"))
      .def("fixed_levels", &HistogramErrors::fixed_levels, py::arg("steps"), py::arg("positive_levels"),
           py::arg("negative_levels"), "Summed errors of grids with fixed numbers of levels on each side of zero.")
      .def("best_split", &HistogramErrors::best_split, py::arg("steps"), py::arg("levels"), py::arg("first"),
           py::arg("last"), py::arg("stride"),
           "Summed errors and negative levels of the best placement of zero for each step.");
}

}  // namespace detent::bindings
