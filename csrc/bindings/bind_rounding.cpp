// SPDX-License-Identifier: Apache-2.0
// Weights rounded with a view to what they do together.
#include "bindings/column_args.h"
#include "kernels/descent.h"
#include "kernels/rounding.h"
#include "search/code_search.h"

namespace detent::bindings {
namespace {

struct Weights {
  MatrixShape shape;
  const float* data;
};

Weights require_weights(const py::array& weights) {
  const float* data = require_matrix<float>(weights, {-1, -1}, "weights");
  const MatrixShape shape{weights.shape(0), weights.shape(1)};
  return {shape, require_finite(data, shape, "weights")};
}

const double* require_linear(const OptionalArray& linear, MatrixShape shape) {
  if (!linear) return nullptr;
  return require_finite(require_matrix<double>(*linear, shape, "linear"), shape, "linear");
}

py::array round_columns(const py::array& weights, const py::array& factor, const py::array& scale,
                        const OptionalArray& zero_point, const OptionalArray& table,
                        const OptionalArray& group_of_column, int64_t qmin, int64_t qmax) {
  const auto [shape, data] = require_weights(weights);
  const double* upper = require_factor(factor, shape.columns);
  const ColumnGrids grids = require_columns(shape, scale, zero_point, table, group_of_column, qmin, qmax);
  py::array_t<int32_t> codes({shape.rows, shape.columns});
  const RoundingArgs args{data, upper, grids.view(), shape.rows, shape.columns, codes.mutable_data()};
  {
    py::gil_scoped_release release;
    rounding_table().round_columns(args);
  }
  return codes;
}

py::tuple descend(const py::array& weights, const py::array& hessian, const py::array& codes,
                  const OptionalArray& linear, int64_t sweeps, const py::array& scale, const OptionalArray& zero_point,
                  const OptionalArray& table, const OptionalArray& group_of_column, int64_t qmin, int64_t qmax) {
  const auto [shape, data] = require_weights(weights);
  const double* matrix = require_hessian(hessian, shape.columns);
  const ColumnGrids grids = require_columns(shape, scale, zero_point, table, group_of_column, qmin, qmax);
  const double* offset = require_linear(linear, shape);
  require(sweeps >= 0, "sweeps must not be negative, got ", sweeps);
  py::array_t<int32_t> better = copy_codes(codes, shape, grids);
  py::array_t<int64_t> changes(shape.rows);
  const DescentArgs args{.weights = data,
                         .hessian = matrix,
                         .linear = offset,
                         .grids = grids.view(),
                         .rows = shape.rows,
                         .columns = shape.columns,
                         .sweeps = sweeps,
                         .codes = better.mutable_data(),
                         .changes = changes.mutable_data()};
  {
    py::gil_scoped_release release;
    descent_table().descend(args);
  }
  return py::make_tuple(better, changes);
}

py::tuple search(const py::array& weights, const py::array& hessian, const py::array& codes,
                 const OptionalArray& linear, int64_t most_values, const py::array& scale,
                 const OptionalArray& zero_point, const OptionalArray& table, const OptionalArray& group_of_column,
                 int64_t qmin, int64_t qmax) {
  const auto [shape, data] = require_weights(weights);
  const double* matrix = require_hessian(hessian, shape.columns);
  const ColumnGrids grids = require_columns(shape, scale, zero_point, table, group_of_column, qmin, qmax);
  const double* offset = require_linear(linear, shape);
  require(most_values >= 0, "most_values must not be negative, got ", most_values);
  py::array_t<int32_t> better = copy_codes(codes, shape, grids);
  py::array_t<bool> proved(shape.rows);
  const CodeSearchArgs args{.weights = data,
                            .hessian = matrix,
                            .linear = offset,
                            .grids = grids.view(),
                            .qmin = grids.qmin(),
                            .qmax = grids.qmax(),
                            .rows = shape.rows,
                            .columns = shape.columns,
                            .most_values = most_values,
                            .codes = better.mutable_data(),
                            .proved = proved.mutable_data()};
  {
    py::gil_scoped_release release;
    search_codes(args);
  }
  return py::make_tuple(better, proved);
}

}  // namespace

void register_rounding(py::module_& module) {
  module.def("round_columns", &round_columns, "Codes of weights rounded column by column.", py::arg("weights"),
             py::arg("factor"), py::arg("scale"), py::arg("zero_point"), py::arg("table"), py::arg("group_of_column"),
             py::arg("qmin"), py::arg("qmax"));
  module.def("descend", &descend, "Codes improved one at a time, and how many changed in each row.", py::arg("weights"),
             py::arg("hessian"), py::arg("codes"), py::arg("linear"), py::arg("sweeps"), py::arg("scale"),
             py::arg("zero_point"), py::arg("table"), py::arg("group_of_column"), py::arg("qmin"), py::arg("qmax"));
  module.def("search_codes", &search, "The best codes, and whether that is proved of each row.", py::arg("weights"),
             py::arg("hessian"), py::arg("codes"), py::arg("linear"), py::arg("most_values"), py::arg("scale"),
             py::arg("zero_point"), py::arg("table"), py::arg("group_of_column"), py::arg("qmin"), py::arg("qmax"));
}

}  // namespace detent::bindings
