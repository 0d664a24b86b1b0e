// SPDX-License-Identifier: Apache-2.0
// Searches for assignments of candidates to slots.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "bindings/array_args.h"
#include "search/assignment_search.h"

namespace detent::bindings {
namespace {

// A C-ordered array of numbers that are finite, or at least not NaN.
const double* require_numbers(const py::array& array, std::vector<int64_t> shape, const char* name,
                              bool finite = true) {
  require_dtype<double>(array, name);
  bool same = array.ndim() == static_cast<py::ssize_t>(shape.size()) && (array.flags() & py::array::c_style) != 0;
  std::string wanted;
  for (size_t d = 0; d < shape.size(); ++d) {
    same = same && array.shape(static_cast<py::ssize_t>(d)) == shape[d];
    wanted += (d > 0 ? ", " : "") + std::to_string(shape[d]);
  }
  require(same, name, " must be in C order with shape [", wanted, "], got ", shape_text(array));
  const auto* values = static_cast<const double*>(array.data());
  for (py::ssize_t i = 0; i < array.size(); ++i) {
    require(finite ? std::isfinite(values[i]) : !std::isnan(values[i]), name, " hold NaN or infinity");
  }
  return values;
}

AssignmentView view_of(const py::array& first, const py::array& factors, const py::array& costs,
                       const py::array& amounts, const py::array& limits, const py::array& product,
                       const py::array& product_amounts) {
  AssignmentView view{};
  view.first = require_vector<int64_t>(first, -1, "first");
  view.slots = first.size() - 1;
  require(view.slots >= 0 && view.first[0] == 0, "first must begin with 0");
  for (int64_t s = 0; s < view.slots; ++s) require(view.first[s] < view.first[s + 1], "slot ", s, " has no candidates");
  const int64_t count = view.candidates();
  view.probes = factors.ndim() == 2 ? factors.shape(0) : 0;
  view.factors = require_numbers(factors, {view.probes, count}, "factors");
  view.costs = require_numbers(costs, {count}, "costs");
  view.rows = limits.ndim() == 1 ? limits.size() : 0;
  view.limits = require_numbers(limits, {view.rows}, "limits", false);
  view.amounts = require_numbers(amounts, {view.rows, count}, "amounts");
  require_dtype<int64_t>(product, "product");
  require(product.ndim() == 2 && product.shape(1) == 3 && (product.flags() & py::array::c_style) != 0,
          "product must be in C order with shape [n, 3], got ", shape_text(product));
  view.products = product.shape(0);
  view.product = static_cast<const int64_t*>(product.data());
  int64_t size = 0;
  for (int64_t p = 0; p < view.products; ++p) {
    const int64_t r = view.product[3 * p], a = view.product[3 * p + 1], b = view.product[3 * p + 2];
    require(0 <= r && r < view.rows && 0 <= a && a < view.slots && 0 <= b && b < view.slots && a != b, "product ", p,
            " names a row or slot that does not exist, or one slot twice");
    size += (view.first[a + 1] - view.first[a]) * (view.first[b + 1] - view.first[b]);
  }
  view.product_amounts = require_numbers(product_amounts, {size}, "product_amounts");
  return view;
}

const int64_t* require_assignment(const py::array& start, const AssignmentView& view) {
  const auto* given = require_vector<int64_t>(start, view.slots, "start");
  for (int64_t s = 0; s < view.slots; ++s) {
    require(view.first[s] <= given[s] && given[s] < view.first[s + 1], "start holds candidate ", given[s],
            ", which slot ", s, " does not have");
  }
  return given;
}

py::tuple result_of(const AssignmentPool& pool, const AssignmentEffort& effort, int64_t slots) {
  const auto found = static_cast<py::ssize_t>(pool.entries().size());
  py::array_t<int64_t> assignments({found, static_cast<py::ssize_t>(slots)});
  py::array_t<double> errors(std::vector<py::ssize_t>{found});
  int64_t* to = assignments.mutable_data();
  double* error = errors.mutable_data();
  for (const auto& entry : pool.entries()) {
    to = std::copy(entry.assignment.begin(), entry.assignment.end(), to);
    *error++ = entry.error;
  }
  return py::make_tuple(assignments, errors, effort.nodes, effort.complete);
}

void require_effort(int64_t most, const char* name, double gap, int64_t wanted) {
  require(most >= 0 && wanted >= 1, name, " must be at least 0 and wanted at least 1, got ", most, " and ", wanted);
  require(gap >= 0.0 && std::isfinite(gap), "gap must be finite and at least 0, got ", gap);
}

py::tuple band(const py::array& first, const py::array& costs, const py::array& amounts, const py::array& limits,
               const py::array& reduced, double bound, double upper, double gap, int64_t most_nodes, int64_t wanted) {
  const py::array_t<double> factors(std::vector<py::ssize_t>{0, costs.size()}), none(py::ssize_t{0});
  const py::array_t<int64_t> product(std::vector<py::ssize_t>{0, 3});
  const AssignmentView view = view_of(first, factors, costs, amounts, limits, product, none);
  const double* values = require_numbers(reduced, {view.candidates()}, "reduced");
  require(std::isfinite(bound) && !std::isnan(upper), "bound must be finite and upper a number");
  require_effort(most_nodes, "most_nodes", gap, wanted);
  AssignmentPool pool(wanted);
  AssignmentEffort effort;
  {
    py::gil_scoped_release release;
    effort = search_band(view, values, bound, upper, gap, most_nodes, pool);
  }
  return result_of(pool, effort, view.slots);
}

py::tuple nearby(const py::array& first, const py::array& factors, const py::array& costs, const py::array& amounts,
                 const py::array& limits, const py::array& product, const py::array& product_amounts,
                 const py::array& start, int64_t steps, int64_t wanted) {
  const AssignmentView view = view_of(first, factors, costs, amounts, limits, product, product_amounts);
  const int64_t* given = require_assignment(start, view);
  require_effort(steps, "steps", 0.0, wanted);
  AssignmentPool pool(wanted);
  AssignmentEffort effort;
  {
    py::gil_scoped_release release;
    effort = search_nearby(view, given, steps, pool);
  }
  return result_of(pool, effort, view.slots);
}

py::tuple tree(const py::array& first, const py::array& factors, const py::array& costs, const py::array& amounts,
               const py::array& limits, const py::array& product, const py::array& product_amounts,
               const py::array& order, const py::array& multipliers, double upper, double gap, int64_t most_nodes,
               int64_t wanted) {
  const AssignmentView view = view_of(first, factors, costs, amounts, limits, product, product_amounts);
  const auto* places = require_vector<int64_t>(order, view.slots, "order");
  std::vector<bool> seen(static_cast<size_t>(view.slots));
  for (int64_t s = 0; s < view.slots; ++s) {
    require(0 <= places[s] && places[s] < view.slots && !seen[static_cast<size_t>(places[s])],
            "order must hold every slot once");
    seen[static_cast<size_t>(places[s])] = true;
  }
  const double* weights = require_numbers(multipliers, {view.rows}, "multipliers");
  for (int64_t r = 0; r < view.rows; ++r) {
    require(weights[r] >= 0.0 && (weights[r] == 0.0 || std::isfinite(view.limits[r])),
            "multipliers must be at least 0, and 0 for rows without a limit");
  }
  require_effort(most_nodes, "most_nodes", gap, wanted);
  require(!std::isnan(upper), "upper must be a number");
  AssignmentPool pool(wanted);
  AssignmentEffort effort;
  {
    py::gil_scoped_release release;
    effort = search_tree(view, places, weights, upper, gap, most_nodes, pool);
  }
  return result_of(pool, effort, view.slots);
}

}  // namespace

void register_assignment_search(py::module_& module) {
  module.def("search_band", &band, py::arg("first"), py::arg("costs"), py::arg("amounts"), py::arg("limits"),
             py::arg("reduced"), py::arg("bound"), py::arg("upper"), py::arg("gap"), py::arg("most_nodes"),
             py::arg("wanted"), "Assignments [found, slots], errors [found], nodes, whether complete.");
  module.def("search_nearby", &nearby, py::arg("first"), py::arg("factors"), py::arg("costs"), py::arg("amounts"),
             py::arg("limits"), py::arg("product"), py::arg("product_amounts"), py::arg("start"), py::arg("steps"),
             py::arg("wanted"), "As search_band, from a start.");
  module.def("search_tree", &tree, py::arg("first"), py::arg("factors"), py::arg("costs"), py::arg("amounts"),
             py::arg("limits"), py::arg("product"), py::arg("product_amounts"), py::arg("order"),
             py::arg("multipliers"), py::arg("upper"), py::arg("gap"), py::arg("most_nodes"), py::arg("wanted"),
             "As search_band, by branch and bound.");
}

}  // namespace detent::bindings
