// SPDX-License-Identifier: Apache-2.0
// Quantization to affine grids.
#include <pybind11/stl.h>

#include <string>

#include "bindings/grid_args.h"
#include "kernels/fake_quant.h"

namespace detent::bindings {
namespace {

using OptionalArray = std::optional<py::array>;

template <class In, class Out>
py::array run(GridKernel<In, Out> kernel, const py::array& x, const char* name, const py::array& scale,
              const py::array& zero_point, int64_t qmin, int64_t qmax, Axis axis, const OptionalArray& out) {
  const DenseShape shape = require_dense<In>(x, axis, name);
  const AffineGrid grid = require_grid(shape, axis, scale, zero_point, qmin, qmax);
  py::array result = output_like<Out>(out, x);
  const In* from = data_of<In>(x);
  Out* to = mutable_data_of<Out>(result);
  py::gil_scoped_release release;
  kernel(from, to, shape.size(), grid.view());
  return result;
}

py::array fake_quantize(const py::array& x, const py::array& scale, const py::array& zero_point, int64_t qmin,
                        int64_t qmax, Axis axis, const OptionalArray& out) {
  return run(fake_quant_table().fake_quantize, x, "x", scale, zero_point, qmin, qmax, axis, out);
}

py::array in_range_mask(const py::array& x, const py::array& scale, const py::array& zero_point, int64_t qmin,
                        int64_t qmax, Axis axis, const OptionalArray& out) {
  return run(fake_quant_table().in_range, x, "x", scale, zero_point, qmin, qmax, axis, out);
}

void require_codes_fit(int64_t qmin, int64_t qmax, int64_t lowest, int64_t highest, const std::string& dtype) {
  require(lowest <= qmin && qmax <= highest, "codes ", qmin, "..", qmax, " do not fit ", dtype, " (", lowest, "..",
          highest, ")");
}

bool is_packed(const std::string& dtype) { return dtype == "int4" || dtype == "uint4"; }

// A vector of ceil(n / 2) bytes.
py::array packed_output(const OptionalArray& out, int64_t n) {
  const auto bytes = static_cast<py::ssize_t>((n + 1) / 2);
  return output_like<uint8_t>(out, py::array_t<uint8_t>(bytes));
}

void require_c_order(const py::array& x, const char* name) {
  require((x.flags() & py::array::c_style) != 0, name,
          " must be in C order to be packed, because packed codes have no other; call numpy.ascontiguousarray(", name,
          ")");
}

py::array quantize_packed(const py::array& x, const py::array& scale, const py::array& zero_point, int64_t qmin,
                          int64_t qmax, Axis axis, const OptionalArray& out) {
  const DenseShape shape = require_dense<float>(x, axis, "x");
  require_c_order(x, "x");
  const AffineGrid grid = require_grid(shape, axis, scale, zero_point, qmin, qmax);
  py::array result = packed_output(out, x.size());
  require_apart(result, x);
  const float* from = data_of<float>(x);
  auto* to = mutable_data_of<uint8_t>(result);
  py::gil_scoped_release release;
  fake_quant_table().quantize_packed(from, to, shape.size(), grid.view());
  return result;
}

py::array quantize(const py::array& x, const py::array& scale, const py::array& zero_point, int64_t qmin, int64_t qmax,
                   const std::string& dtype, Axis axis, const OptionalArray& out) {
  const auto to = [&](auto kernel, int64_t lowest, int64_t highest) {
    require_codes_fit(qmin, qmax, lowest, highest, dtype);
    return run(kernel, x, "x", scale, zero_point, qmin, qmax, axis, out);
  };
  const FakeQuantTable& table = fake_quant_table();
  if (dtype == "int8") return to(table.quantize_int8, -128, 127);
  if (dtype == "uint8") return to(table.quantize_uint8, 0, 255);
  if (dtype == "int16") return to(table.quantize_int16, -32768, 32767);
  if (dtype == "uint16") return to(table.quantize_uint16, 0, 65535);
  require(is_packed(dtype), "dtype must be int4, uint4, int8, uint8, int16 or uint16, got '", dtype, "'");
  require_codes_fit(qmin, qmax, dtype == "int4" ? -8 : 0, dtype == "int4" ? 7 : 15, dtype);
  return quantize_packed(x, scale, zero_point, qmin, qmax, axis, out);
}

py::array dequantize(const py::array& codes, const py::array& scale, const py::array& zero_point, Axis axis,
                     const OptionalArray& out) {
  const auto from = [&]<class Code>(GridKernel<Code, float> kernel, int64_t lowest, int64_t highest) {
    return run(kernel, codes, "codes", scale, zero_point, lowest, highest, axis, out);
  };
  const FakeQuantTable& table = fake_quant_table();
  if (py::isinstance<py::array_t<int8_t>>(codes)) return from(table.dequantize_int8, -128, 127);
  if (py::isinstance<py::array_t<uint8_t>>(codes)) return from(table.dequantize_uint8, 0, 255);
  if (py::isinstance<py::array_t<int16_t>>(codes)) return from(table.dequantize_int16, -32768, 32767);
  if (py::isinstance<py::array_t<uint16_t>>(codes)) return from(table.dequantize_uint16, 0, 65535);
  if (py::isinstance<py::array_t<int32_t>>(codes)) return from(table.dequantize_int32, kLowestCode, kHighestCode);
  fail("codes must have dtype int8, uint8, int16, uint16 or int32, got ", std::string(py::str(codes.dtype())));
}

py::array dequantize_packed(const py::array& codes, const py::array& scale, const py::array& zero_point, bool is_signed,
                            const std::vector<py::ssize_t>& shape, Axis axis, const OptionalArray& out) {
  for (const py::ssize_t extent : shape) require(extent >= 0, "shape must not be negative");
  py::array result = out ? *out : py::array(py::array_t<float>(shape));
  const bool same = std::vector<py::ssize_t>(result.shape(), result.shape() + result.ndim()) == shape;
  if (!same) fail("out must have the shape of the codes, got ", shape_text(result));
  const DenseShape dense = require_dense<float>(result, axis, "out");
  require(result.writeable(), "out is read-only");
  require_c_order(result, "out");
  const auto* packed = require_vector<uint8_t>(codes, (dense.size() + 1) / 2, "codes");
  require_apart(result, codes);
  const AffineGrid grid = require_grid(dense, axis, scale, zero_point, is_signed ? -8 : 0, is_signed ? 7 : 15);
  auto* to = mutable_data_of<float>(result);
  const FakeQuantTable& table = fake_quant_table();
  py::gil_scoped_release release;
  (is_signed ? table.dequantize_packed_int4 : table.dequantize_packed_uint4)(packed, to, dense.size(), grid.view());
  return result;
}

py::array pack_int4(const py::array& codes, const OptionalArray& out) {
  const bool is_signed = py::isinstance<py::array_t<int8_t>>(codes);
  if (!is_signed) require_dtype<uint8_t>(codes, "codes (int8 for int4)");
  require_c_order(codes, "codes");
  const int lowest = is_signed ? -8 : 0, highest = is_signed ? 7 : 15;
  const auto* bytes = static_cast<const uint8_t*>(codes.data());
  for (py::ssize_t i = 0; i < codes.size(); ++i) {
    const int code = is_signed ? static_cast<int8_t>(bytes[i]) : bytes[i];
    require(lowest <= code && code <= highest, "code ", code, " at flat position ", i, " does not fit ", lowest, "..",
            highest);
  }
  py::array result = packed_output(out, codes.size());
  require_apart(result, codes);
  auto* to = mutable_data_of<uint8_t>(result);
  py::gil_scoped_release release;
  fake_quant_table().pack(bytes, to, codes.size());
  return result;
}

template <class Code>
py::array unpack(void (*kernel)(const uint8_t*, Code*, int64_t), const py::array& packed,
                 const std::vector<py::ssize_t>& shape) {
  for (const py::ssize_t extent : shape) require(extent >= 0, "shape must not be negative");
  py::array_t<Code> codes(shape);
  const uint8_t* from = require_vector<uint8_t>(packed, (codes.size() + 1) / 2, "packed");
  Code* to = codes.mutable_data();
  const int64_t n = codes.size();
  py::gil_scoped_release release;
  kernel(from, to, n);
  return codes;
}

py::array unpack_int4(const py::array& packed, const std::vector<py::ssize_t>& shape, bool is_signed) {
  if (is_signed) return unpack<int8_t>(fake_quant_table().unpack_int4, packed, shape);
  return unpack<uint8_t>(fake_quant_table().unpack_uint4, packed, shape);
}

}  // namespace

void register_fake_quant(py::module_& module) {
  module.def("fake_quantize", &fake_quantize, "Values to the nearest values of a grid.", py::arg("x"), py::arg("scale"),
             py::arg("zero_point"), py::arg("qmin"), py::arg("qmax"), py::arg("axis"), py::arg("out"));
  module.def("in_range_mask", &in_range_mask, "Where rounding alone, without clamping, gives a code of the grid.",
             py::arg("x"), py::arg("scale"), py::arg("zero_point"), py::arg("qmin"), py::arg("qmax"), py::arg("axis"),
             py::arg("out"));
  module.def("quantize", &quantize, "Values to codes.", py::arg("x"), py::arg("scale"), py::arg("zero_point"),
             py::arg("qmin"), py::arg("qmax"), py::arg("dtype"), py::arg("axis"), py::arg("out"));
  module.def("dequantize", &dequantize, "Codes to values.", py::arg("codes"), py::arg("scale"), py::arg("zero_point"),
             py::arg("axis"), py::arg("out"));
  module.def("dequantize_packed", &dequantize_packed, "Codes packed two per byte to values.", py::arg("codes"),
             py::arg("scale"), py::arg("zero_point"), py::arg("is_signed"), py::arg("shape"), py::arg("axis"),
             py::arg("out"));
  module.def("pack_int4", &pack_int4, "Codes in bytes to two per byte.", py::arg("codes"), py::arg("out"));
  module.def("unpack_int4", &unpack_int4, "Two codes per byte to codes in bytes.", py::arg("packed"), py::arg("shape"),
             py::arg("is_signed"));
}

}  // namespace detent::bindings
