// SPDX-License-Identifier: Apache-2.0
// Quantization to codebooks.
#include <pybind11/stl.h>

#include <vector>

#include "bindings/grid_args.h"
#include "kernels/codebook.h"
#include "kernels/lut.h"

namespace detent::bindings {
namespace {

template <class In, class Out>
py::array run(void (*kernel)(const In*, Out*, int64_t, const LutView&), const py::array& x, const char* name,
              const py::array& scale, const py::array& table, Axis axis, const std::optional<py::array>& out) {
  const DenseShape shape = require_dense<In>(x, axis, name);
  const int64_t entries = axis ? shape.channels : 1;
  const float* scales = require_vector<float>(scale, entries, "scale");
  const std::vector<int32_t> zero_points(static_cast<size_t>(entries), 0);
  const AffineGrid grid(shape.outer, entries, shape.inner, scales, zero_points.data(), 0, 0);
  const float* levels = require_vector<float>(table, -1, "table");
  const Codebook codebook(levels, table.size());
  if constexpr (!std::is_same_v<In, float>) {
    const In* codes = data_of<In>(x);
    for (int64_t i = 0; i < shape.size(); ++i) {
      require(codes[i] < table.size(), "code ", int{codes[i]}, " is outside the table of ", table.size(), " entries");
    }
  }
  py::array result = output_like<Out>(out, x);
  const In* from = data_of<In>(x);
  Out* to = mutable_data_of<Out>(result);
  py::gil_scoped_release release;
  kernel(from, to, shape.size(), codebook.view(grid.view()));
  return result;
}

}  // namespace

void register_lut(py::module_& module) {
  using OptionalArray = std::optional<py::array>;
  module.def(
      "lut_fake_quantize",
      [](const py::array& x, const py::array& scale, const py::array& table, Axis axis, const OptionalArray& out) {
        return run(lut_table().fake_quantize, x, "x", scale, table, axis, out);
      },
      "Values to the nearest values of a codebook.", py::arg("x"), py::arg("scale"), py::arg("table"), py::arg("axis"),
      py::arg("out"));
  module.def(
      "lut_quantize",
      [](const py::array& x, const py::array& scale, const py::array& table, Axis axis, const OptionalArray& out) {
        return run(lut_table().quantize, x, "x", scale, table, axis, out);
      },
      "Values to codes of a codebook.", py::arg("x"), py::arg("scale"), py::arg("table"), py::arg("axis"),
      py::arg("out"));
  module.def(
      "lut_dequantize",
      [](const py::array& codes, const py::array& scale, const py::array& table, Axis axis, const OptionalArray& out) {
        return run(lut_table().dequantize, codes, "codes", scale, table, axis, out);
      },
      "Codes of a codebook to values.", py::arg("codes"), py::arg("scale"), py::arg("table"), py::arg("axis"),
      py::arg("out"));
}

}  // namespace detent::bindings
