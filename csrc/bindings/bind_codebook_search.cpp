// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include <vector>

#include "bindings/weight_args.h"
#include "search/codebook_search.h"

namespace detent::bindings {
namespace {

py::tuple search(const py::array& w, int bits, bool power_of_two, bool shared, std::optional<int64_t> axis,
                 const std::optional<py::array>& weights, const py::array& starts, bool keep_thresholds,
                 double min_threshold) {
  require(2 <= bits && bits <= 7, "bits of a codebook must be in 2..7, got ", bits);
  require(min_threshold >= 0x1p-100 && min_threshold <= 0x1p100, "min_threshold must be in 2^-100..2^100, got ",
          min_threshold);
  const Rows rows = view_rows(w, axis, std::nullopt, "w");
  const std::optional<Rows> importance = view_importance(weights, w, axis, std::nullopt);
  const int64_t channels = rows.view.channels;
  require_dtype<float>(starts, "starts");
  require(starts.ndim() == 2 && starts.shape(0) >= 1 && starts.shape(1) == channels,
          "starts must be one row or more of ", channels, " thresholds, got ", shape_text(starts));
  require((starts.flags() & py::array::c_style) != 0, "starts must be in C order");
  const auto* first = static_cast<const float*>(starts.data());
  for (py::ssize_t i = 0; i < starts.size(); ++i) {
    require(first[i] > 0.0f && first[i] <= 0x1p127f, "starts must be positive and at most 2^127, got ", first[i]);
  }
  CodebookSpec spec;
  spec.bits = bits;
  spec.power_of_two = power_of_two;
  spec.shared = shared;
  spec.min_threshold = static_cast<double>(static_cast<float>(min_threshold));
  spec.starts = first;
  spec.keep_thresholds = keep_thresholds;
  spec.n_starts = static_cast<int>(starts.shape(0));
  const auto count = static_cast<py::ssize_t>(channels);
  py::array_t<float> thresholds(std::vector<py::ssize_t>{count});
  py::array_t<float> levels(std::vector<py::ssize_t>{shared ? 1 : count, py::ssize_t{1} << bits});
  py::array_t<double> errors(std::vector<py::ssize_t>{count});
  const CodebookResult result{thresholds.mutable_data(), levels.mutable_data(), errors.mutable_data()};
  {
    py::gil_scoped_release release;
    search_codebook(rows.view, importance ? &importance->view : nullptr, spec, result);
  }
  return py::make_tuple(thresholds, levels, errors);
}

}  // namespace

void register_codebook_search(py::module_& module) {
  module.def("search_codebook", &search, py::arg("w"), py::arg("bits"), py::arg("power_of_two"), py::arg("shared"),
             py::arg("axis"), py::arg("weights"), py::arg("starts"), py::arg("keep_thresholds"),
             py::arg("min_threshold"), "Thresholds [channels], levels [1 or channels, 2^bits] and errors [channels].");
}

}  // namespace detent::bindings
