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
using Kernel = void (*)(const In*, Out*, int64_t, const LutView&);

// One codebook for all, or one for each channel: then a channel's run is a tensor of its own.
template <class In, class Out>
void walk(Kernel<In, Out> kernel, const In* x, Out* out, const DenseShape& shape, const float* scales,
          const std::vector<Codebook>& codebooks) {
  const std::vector<int32_t> zeros(static_cast<size_t>(shape.channels), 0);
  if (codebooks.size() == 1) {
    const AffineGrid grid(shape.outer, shape.channels, shape.inner, scales, zeros.data(), 0, 0);
    kernel(x, out, shape.size(), codebooks[0].view(grid.view()));
    return;
  }
  for (int64_t c = 0; c < shape.channels; ++c) {
    const AffineGrid grid(1, 1, shape.inner, scales + c, zeros.data(), 0, 0);
    const LutView lut = codebooks[static_cast<size_t>(c)].view(grid.view());
    for (int64_t o = 0; o < shape.outer; ++o) {
      const int64_t begin = (o * shape.channels + c) * shape.inner;
      kernel(x + begin, out + begin, shape.inner, lut);
    }
  }
}

template <class In, class Out>
py::array run(Kernel<In, Out> kernel, const py::array& x, const char* name, const py::array& scale,
              const py::array& table, Axis axis, const std::optional<py::array>& out) {
  const DenseShape shape = require_dense<In>(x, axis, name);
  const float* scales = require_vector<float>(scale, shape.channels, "scale");
  require_dtype<float>(table, "table");
  require(table.ndim() == 1 || (table.ndim() == 2 && axis && table.shape(0) == shape.channels),
          "table must be one codebook, or one for each of ", shape.channels, " channels of `axis`, got shape ",
          shape_text(table));
  require(table.size() <= 1 || (table.flags() & py::array::c_style), "table must be in C order");
  const int64_t size = table.shape(table.ndim() - 1);
  std::vector<Codebook> codebooks;
  const float* levels = data_of<float>(table);
  for (int64_t c = 0; c < (table.ndim() == 1 ? 1 : shape.channels); ++c)
    codebooks.emplace_back(levels + c * size, size);
  if constexpr (!std::is_same_v<In, float>) {
    const In* codes = data_of<In>(x);
    for (int64_t i = 0; i < shape.size(); ++i) {
      require(codes[i] < size, "code ", int{codes[i]}, " is outside the table of ", size, " entries");
    }
  }
  py::array result = output_like<Out>(out, x);
  const In* from = data_of<In>(x);
  Out* to = mutable_data_of<Out>(result);
  py::gil_scoped_release release;
  walk(kernel, from, to, shape, scales, codebooks);
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
