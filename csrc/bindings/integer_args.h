// SPDX-License-Identifier: Apache-2.0
// Integer codes as Python passes them.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>

#include "bindings/grid_args.h"
#include "kernels/requantize.h"

namespace detent::bindings {

constexpr int64_t kLargestFloatCode = int64_t{1} << 22;

struct TypeRange {
  CodeType type;
  int64_t lowest, highest;
};

inline TypeRange type_of(const py::array& array, const char* name) {
  if (py::isinstance<py::array_t<uint8_t>>(array)) return {CodeType::kUint8, 0, 255};
  if (py::isinstance<py::array_t<int8_t>>(array)) return {CodeType::kInt8, -128, 127};
  if (py::isinstance<py::array_t<uint16_t>>(array)) return {CodeType::kUint16, 0, 65535};
  if (py::isinstance<py::array_t<int16_t>>(array)) return {CodeType::kInt16, -32768, 32767};
  if (py::isinstance<py::array_t<int32_t>>(array)) return {CodeType::kInt32, INT32_MIN, INT32_MAX};
  fail(name, " must have dtype uint8, int8, uint16, int16 or int32, got ", std::string(py::str(array.dtype())));
}

inline void require_c_order(const py::array& array, const char* name) {
  require((array.flags() & py::array::c_style) != 0, name, " of shape ", shape_text(array),
          " must be in C order: numpy.ascontiguousarray(", name, ")");
}

inline CodeType require_codes(const py::array& codes, const char* name) {
  const TypeRange type = type_of(codes, name);
  require(type.type != CodeType::kInt32, name, " must have codes of 8 or 16 bits");
  require_c_order(codes, name);
  return type.type;
}

}  // namespace detent::bindings
