// SPDX-License-Identifier: Apache-2.0
// Matrix products in a fixed order.
#include "bindings/array_args.h"
#include "kernels/products.h"

namespace detent::bindings {
namespace {

template <class T>
const T* require_matrix(const py::array& x, const char* name) {
  require_dtype<T>(x, name);
  if (x.ndim() != 2 || (x.flags() & py::array::c_style) == 0) {
    fail(name, " must be a C-ordered matrix, got shape ", shape_text(x), "; numpy.ascontiguousarray(", name,
         ") makes one of a matrix");
  }
  return static_cast<const T*>(x.data());
}

py::array gram(const py::array& x, py::array out) {
  const float* rows = require_matrix<float>(x, "x");
  require_matrix<double>(out, "out");
  require(out.writeable(), "out is read-only");
  require(out.shape(0) == x.shape(1) && out.shape(1) == x.shape(1), "out must have shape [", x.shape(1), ", ",
          x.shape(1), "], got ", shape_text(out));
  auto* sums = static_cast<double*>(out.mutable_data());
  const int64_t n = x.shape(0), d = x.shape(1);
  {
    py::gil_scoped_release release;
    products_table().gram(rows, n, d, sums);
  }
  return out;
}

py::array multiply(const py::array& a, const py::array& b) {
  const float* left = require_matrix<float>(a, "a");
  const float* right = require_matrix<float>(b, "b");
  require(a.shape(1) == b.shape(0), "b must have ", a.shape(1), " rows, got ", b.shape(0));
  py::array_t<double> out({a.shape(0), b.shape(1)});
  double* to = out.mutable_data();
  const int64_t rows = a.shape(0), depth = a.shape(1), columns = b.shape(1);
  {
    py::gil_scoped_release release;
    products_table().multiply(left, right, rows, depth, columns, to);
  }
  return out;
}

}  // namespace

void register_products(py::module_& module) {
  module.def("gram", &gram, "Adds x^T x to a symmetric matrix.", py::arg("x"), py::arg("out"));
  module.def("multiply", &multiply, "The product of two matrices, summed in a fixed order.", py::arg("a"),
             py::arg("b"));
}

}  // namespace detent::bindings
