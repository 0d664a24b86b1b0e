// SPDX-License-Identifier: Apache-2.0
// Matrix products in a fixed order.
#include <pybind11/stl.h>

#include <optional>

#include "bindings/array_args.h"
#include "kernels/products.h"

namespace detent::bindings {
namespace {

bool is_c_ordered(const py::array& x) { return (x.flags() & py::array::c_style) != 0; }

template <class T>
void require_matrices(const py::array& x, const char* name) {
  require_dtype<T>(x, name);
  require(x.ndim() == 3, name, " must have three axes, got shape ", shape_text(x));
}

template <class T>
void require_c_ordered(const py::array& x, const char* name) {
  require_matrices<T>(x, name);
  require(is_c_ordered(x), name, " must be in C order; numpy.ascontiguousarray(", name, ") makes it so");
}

// Whether the first axis is the innermost in memory and the others are in C order.
bool is_batch_innermost(const py::array& x) {
  const py::ssize_t size = x.itemsize();
  const auto fits = [&](int axis, py::ssize_t stride) { return x.shape(axis) == 1 || x.strides(axis) == stride; };
  return fits(0, size) && fits(2, size * x.shape(0)) && fits(1, size * x.shape(0) * x.shape(2));
}

void moments(const py::array& x, py::array sums, py::array products) {
  require_matrices<float>(x, "x");
  require(is_c_ordered(x) || is_batch_innermost(x),
          "x must be in C order, or so with its first axis innermost; numpy.ascontiguousarray(x) makes it so");
  const int64_t batch = x.shape(0), n = x.shape(1), d = x.shape(2);
  require_dtype<double>(sums, "sums");
  require(sums.ndim() == 2 && sums.shape(0) == batch && sums.shape(1) == d && is_c_ordered(sums),
          "sums must be in C order with shape [", batch, ", ", d, "], got ", shape_text(sums));
  require_c_ordered<double>(products, "products");
  require(products.shape(0) == batch && products.shape(1) == d && products.shape(2) == d, "products must have shape [",
          batch, ", ", d, ", ", d, "], got ", shape_text(products));
  require(sums.writeable() && products.writeable(), "sums or products are read-only");
  const auto* values = static_cast<const float*>(x.data());
  auto* to_sums = static_cast<double*>(sums.mutable_data());
  auto* to_products = static_cast<double*>(products.mutable_data());
  const bool innermost = !is_c_ordered(x);
  py::gil_scoped_release release;
  products_table().moments(values, innermost, batch, n, d, to_sums, to_products);
}

py::array forms(const py::array& a, const py::array& g, const std::optional<py::array>& b) {
  require_c_ordered<float>(a, "a");
  require_c_ordered<float>(g, "g");
  const int64_t batch = a.shape(0), rows = a.shape(1), size = a.shape(2);
  require(g.shape(0) == batch && g.shape(1) == size && g.shape(2) == size, "g must have shape [", batch, ", ", size,
          ", ", size, "], got ", shape_text(g));
  if (b) {
    require_c_ordered<float>(*b, "b");
    require(b->shape(0) == batch && b->shape(1) == rows && b->shape(2) == size, "b must have shape ", shape_text(a),
            ", got ", shape_text(*b));
  }
  py::array_t<double> out({batch, rows});
  double* to = out.mutable_data();
  const auto* left = static_cast<const float*>(a.data());
  const auto* matrices = static_cast<const float*>(g.data());
  const auto* right = b ? static_cast<const float*>(b->data()) : nullptr;
  {
    py::gil_scoped_release release;
    products_table().forms(left, matrices, right, batch, rows, size, to);
  }
  return out;
}

}  // namespace

void register_products(py::module_& module) {
  module.def("moments", &moments, "Adds column sums and x^T x of each matrix of a batch.", py::arg("x"),
             py::arg("sums"), py::arg("products"));
  module.def("forms", &forms, "Bilinear forms of the rows of two batches of matrices.", py::arg("a"), py::arg("g"),
             py::arg("b") = py::none());
}

}  // namespace detent::bindings
