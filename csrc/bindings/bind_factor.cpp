// SPDX-License-Identifier: Apache-2.0
// Triangular factors of symmetric matrices.
#include <cstring>
#include <vector>

#include "bindings/array_args.h"
#include "kernels/factor.h"

namespace detent::bindings {
namespace {

void require_matrix(const py::array& x, const char* name) {
  require_dtype<double>(x, name);
  require(x.ndim() == 2, name, " must have two axes, got shape ", shape_text(x));
  require((x.flags() & py::array::c_style) != 0, name, " must be in C order; numpy.ascontiguousarray(", name,
          ") makes it so");
}

void require_square(const py::array& x, const char* name) {
  require_matrix(x, name);
  require(x.shape(0) == x.shape(1), name, " must be square, got shape ", shape_text(x));
}

py::array inverse_factor(const py::array& h) {
  require_square(h, "h");
  const int64_t size = h.shape(0);
  py::array_t<double> out({size, size});
  double* to = out.mutable_data();
  const auto* from = static_cast<const double*>(h.data());
  bool definite = false;
  {
    py::gil_scoped_release release;
    std::vector<double> v(from, from + size * size), panel(static_cast<size_t>(FactorTable::kPanel * size));
    definite = factor_table().factor(v.data(), size, panel.data());
    if (definite) factor_table().invert(v.data(), size, to);
  }
  require(definite, "h is not positive definite; add a positive number to its diagonal");
  return out;
}

py::array multiply(const py::array& a, const py::array& b) {
  require_matrix(a, "a");
  require_matrix(b, "b");
  require(a.shape(1) == b.shape(0), "a and b must have shapes [n, k] and [k, m], got ", shape_text(a), " and ",
          shape_text(b));
  const int64_t rows = a.shape(0), depth = a.shape(1), columns = b.shape(1);
  py::array_t<double> out({rows, columns});
  double* to = out.mutable_data();
  const auto* left = static_cast<const double*>(a.data());
  const auto* right = static_cast<const double*>(b.data());
  {
    py::gil_scoped_release release;
    std::memset(to, 0, static_cast<size_t>(rows * columns) * sizeof(double));
    factor_table().multiply(left, right, rows, depth, columns, to);
  }
  return out;
}

}  // namespace

void register_factor(py::module_& module) {
  module.def("inverse_factor", &inverse_factor, "Upper U with U^T U the inverse of h.", py::arg("h"));
  module.def("multiply", &multiply, "Product of two matrices in a fixed order.", py::arg("a"), py::arg("b"));
}

}  // namespace detent::bindings
