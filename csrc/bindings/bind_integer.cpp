// SPDX-License-Identifier: Apache-2.0
// Integer execution: requantization, convolutions and linear layers on codes.
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "bindings/grid_args.h"
#include "kernels/integer_products.h"
#include "kernels/integer_sum.h"

namespace detent::bindings {
namespace {

using OptionalArray = std::optional<py::array>;
using Two = std::array<int64_t, 2>;

constexpr int64_t kLargestFloatCode = int64_t{1} << 22;

struct NamedRule {
  const char* name;
  RequantizeRule rule;
};
constexpr NamedRule kRules[] = {{"float", RequantizeRule::kFloat},
                                {"double_rounding", RequantizeRule::kDoubleRounding},
                                {"ruy", RequantizeRule::kRuy},
                                {"single_rounding", RequantizeRule::kSingleRounding},
                                {"int16x8", RequantizeRule::kInt16x8}};

RequantizeRule rule_of(const std::string& name) {
  for (const NamedRule& one : kRules) {
    if (name == one.name) return one.rule;
  }
  fail("unknown rule ", name, "; there are float, double_rounding, ruy, single_rounding and int16x8");
}

struct TypeRange {
  CodeType type;
  int64_t lowest, highest;
};

TypeRange type_of(const py::array& array, const char* name) {
  if (py::isinstance<py::array_t<uint8_t>>(array)) return {CodeType::kUint8, 0, 255};
  if (py::isinstance<py::array_t<int8_t>>(array)) return {CodeType::kInt8, -128, 127};
  if (py::isinstance<py::array_t<uint16_t>>(array)) return {CodeType::kUint16, 0, 65535};
  if (py::isinstance<py::array_t<int16_t>>(array)) return {CodeType::kInt16, -32768, 32767};
  if (py::isinstance<py::array_t<int32_t>>(array)) return {CodeType::kInt32, INT32_MIN, INT32_MAX};
  fail(name, " must have dtype uint8, int8, uint16, int16 or int32, got ", std::string(py::str(array.dtype())));
}

void require_c_order(const py::array& array, const char* name) {
  require((array.flags() & py::array::c_style) != 0, name, " of shape ", shape_text(array),
          " must be in C order: numpy.ascontiguousarray(", name, ")");
}

// The factors of `channels` channels (one, or each its own) and the codes they end in.
struct Factors {
  std::string rule;
  OptionalArray factor, multiplier, shift;
  int64_t zero_point, lowest, highest;

  Requantization checked(int64_t channels, const TypeRange& type) const {
    const RequantizeRule found = rule_of(rule);
    require(type.lowest <= lowest && lowest <= highest && highest <= type.highest, "codes ", lowest, "..", highest,
            " do not fit the type of out, ", type.lowest, "..", type.highest);
    require(INT32_MIN <= zero_point && zero_point <= INT32_MAX, "zero_point must be of 32 bits, got ", zero_point);
    Requantization how{.rule = found,
                       .factor = nullptr,
                       .multiplier = nullptr,
                       .shift = nullptr,
                       .per_channel = false,
                       .zero_point = static_cast<int32_t>(zero_point),
                       .lowest = static_cast<int32_t>(lowest),
                       .highest = static_cast<int32_t>(highest)};
    int64_t entries = 0;
    if (found == RequantizeRule::kFloat) {
      require(factor.has_value() && !multiplier && !shift, "rule float takes factor, not multiplier and shift");
      require(std::max(highest - zero_point, zero_point - lowest) <= kLargestFloatCode,
              "codes further than 2^22 from the zero point have no float32 rounding");
      how.factor = require_vector<float>(*factor, -1, "factor");
      entries = factor->size();
      for (int64_t i = 0; i < entries; ++i) {
        require(how.factor[i] > 0 && how.factor[i] <= std::numeric_limits<float>::max(),
                "factors must be finite and positive, got ", how.factor[i], " at ", i);
      }
    } else {
      require(!factor && multiplier && shift, "rule ", rule, " takes multiplier and shift, not factor");
      how.multiplier = require_vector<int32_t>(*multiplier, -1, "multiplier");
      entries = multiplier->size();
      how.shift = require_vector<int32_t>(*shift, entries, "shift");
      const int32_t most = found == RequantizeRule::kInt16x8 ? 14 : 30;
      for (int64_t i = 0; i < entries; ++i) {
        require(how.multiplier[i] >= 0, "multipliers must not be negative, got ", how.multiplier[i], " at ", i);
        require(-31 <= how.shift[i] && how.shift[i] <= most, "shifts must be in -31..", most, ", got ", how.shift[i],
                " at ", i);
      }
    }
    require(entries == 1 || entries == channels, "there must be one factor or one for each of ", channels,
            " channels, got ", entries);
    how.per_channel = entries > 1;
    return how;
  }
};

void requantize(const py::array& acc, std::optional<int64_t> axis, const Factors& factors, py::array out) {
  const bool wide = py::isinstance<py::array_t<int64_t>>(acc);
  const DenseShape shape = wide ? require_dense<int64_t>(acc, axis, "acc") : require_dense<int32_t>(acc, axis, "acc");
  const TypeRange type = type_of(out, "out");
  switch (type.type) {
    case CodeType::kUint8:
      require_out<uint8_t>(out, acc, "out");
      break;
    case CodeType::kInt8:
      require_out<int8_t>(out, acc, "out");
      break;
    case CodeType::kUint16:
      require_out<uint16_t>(out, acc, "out");
      break;
    case CodeType::kInt16:
      require_out<int16_t>(out, acc, "out");
      break;
    case CodeType::kInt32:
      require_out<int32_t>(out, acc, "out");
      break;
  }
  require_apart(out, acc);
  const Requantization how = factors.checked(axis ? shape.channels : 1, type);
  require(!wide || how.rule == RequantizeRule::kFloat || how.rule == RequantizeRule::kInt16x8, "rule ", factors.rule,
          " takes accumulators of 32 bits");
  const RequantizeArgs args{wide ? nullptr : data_of<int32_t>(acc),
                            wide ? data_of<int64_t>(acc) : nullptr,
                            shape.outer,
                            shape.channels,
                            shape.inner,
                            how,
                            out.mutable_data(),
                            type.type};
  if (acc.size() == 0) return;
  py::gil_scoped_release release;
  requantize_table().run(args);
}

// The operands of both kinds of layers; `x` of 8 or 16 bits.
ProductArgs require_operands(const py::array& x, int64_t zero_point, const py::array& kernel, const OptionalArray& bias,
                             int64_t outputs, const Factors& factors, py::array& out) {
  const TypeRange type = type_of(x, "x");
  require(type.type != CodeType::kInt32, "x must have codes of 8 or 16 bits");
  require(type.lowest <= zero_point && zero_point <= type.highest, "the zero point ", zero_point, " is no code of x, ",
          type.lowest, "..", type.highest);
  require_c_order(x, "x");
  require_dtype<int16_t>(kernel, "kernel");
  require_c_order(kernel, "kernel");
  const TypeRange out_type = type_of(out, "out");
  require(out.writeable(), "out is read-only");
  require_c_order(out, "out");
  require_apart(out, x);
  const Requantization how = factors.checked(outputs, out_type);
  const bool wide = type.type == CodeType::kUint16 || type.type == CodeType::kInt16;
  require(!wide || how.rule == RequantizeRule::kFloat || how.rule == RequantizeRule::kInt16x8, "rule ", factors.rule,
          " takes accumulators of 32 bits, those of 16-bit codes have 64");
  return {.x = {x.data(), type.type, static_cast<int32_t>(zero_point)},
          .kernel = data_of<int16_t>(kernel),
          .bias = bias ? require_vector<int64_t>(*bias, outputs, "bias") : nullptr,
          .how = how,
          .out = out.mutable_data(),
          .type = out_type.type,
          .extremes = nullptr};
}

Two reduced(const std::vector<int64_t>& extremes) {
  Two found{0, 0};
  for (size_t i = 0; i < extremes.size(); i += 2) {
    found[0] = i == 0 ? extremes[0] : std::min(found[0], extremes[i]);
    found[1] = i == 0 ? extremes[1] : std::max(found[1], extremes[i + 1]);
  }
  return found;
}

ConvGeometry require_geometry(const py::array& x, const py::array& kernel, const py::array& out, Two stride, Two before,
                              Two dilation, int64_t groups) {
  require(x.ndim() == 4, "x must be [samples, channels, height, width], got shape ", shape_text(x));
  require(kernel.ndim() == 4, "kernel must be [outputs, inputs of a group, height, width], got shape ",
          shape_text(kernel));
  require(out.ndim() == 4, "out must be [samples, outputs, height, width], got shape ", shape_text(out));
  require(groups >= 1 && kernel.shape(0) % groups == 0 && x.shape(1) == kernel.shape(1) * groups, groups,
          " groups do not fit x of shape ", shape_text(x), " and a kernel of shape ", shape_text(kernel));
  constexpr int64_t kMost = int64_t{1} << 20;
  for (const Two& some : {stride, dilation}) {
    require(some[0] >= 1 && some[1] >= 1 && some[0] <= kMost && some[1] <= kMost,
            "strides and dilations must be in 1..2^20");
  }
  require(before[0] >= 0 && before[1] >= 0 && before[0] <= kMost && before[1] <= kMost, "padding must be in 0..2^20");
  require(kernel.size() > 0 && x.shape(1) > 0, "x and kernel must have channels and elements");
  require(out.shape(0) == x.shape(0) && out.shape(1) == kernel.shape(0), "out of shape ", shape_text(out),
          " does not fit x of shape ", shape_text(x), " and ", kernel.shape(0), " outputs");
  for (py::ssize_t d = 2; d < 4; ++d) {
    require(x.shape(d) <= kMost && kernel.shape(d) <= kMost && out.shape(d) <= kMost,
            "heights and widths of more than 2^20 are not taken");
  }
  const ConvGeometry found{.samples = x.shape(0),
                           .groups = groups,
                           .inputs = kernel.shape(1),
                           .outputs = kernel.shape(0) / groups,
                           .height = x.shape(2),
                           .width = x.shape(3),
                           .kernel_height = kernel.shape(2),
                           .kernel_width = kernel.shape(3),
                           .stride_y = stride[0],
                           .stride_x = stride[1],
                           .top = before[0],
                           .left = before[1],
                           .dilation_y = dilation[0],
                           .dilation_x = dilation[1],
                           .out_height = out.shape(2),
                           .out_width = out.shape(3)};
  constexpr double kLargestPlanes = 17179869184.0;  // 2^34
  const double rows = static_cast<double>(found.last_row() + stride[0]);
  const double columns = static_cast<double>(found.last_column() + stride[1]);
  require(rows * columns * static_cast<double>(x.shape(1)) <= kLargestPlanes, "out of shape ", shape_text(out),
          " with strides of ", stride[0], " and ", stride[1], " reaches over more than 2^34 values of a sample");
  return found;
}

Two integer_conv(const py::array& x, int64_t zero_point, const py::array& kernel, const OptionalArray& bias, Two stride,
                 Two before, Two dilation, int64_t groups, const Factors& factors, py::array out) {
  const ConvGeometry geometry = require_geometry(x, kernel, out, stride, before, dilation, groups);
  ProductArgs args = require_operands(x, zero_point, kernel, bias, kernel.shape(0), factors, out);
  if (out.size() == 0) return {0, 0};
  py::gil_scoped_release release;
  const ConvScratch scratch(geometry, args.x);
  std::vector<int32_t> weights(static_cast<size_t>(scratch.weights));
  std::vector<int32_t> planes(static_cast<size_t>(scratch.at_a_time * scratch.sample + ConvScratch::kSlack));
  std::vector<int64_t> offsets(static_cast<size_t>(scratch.taps)), extremes(static_cast<size_t>(2 * scratch.tasks));
  args.extremes = extremes.data();
  product_table().conv(args, geometry, scratch, weights.data(), planes.data(), offsets.data());
  return reduced(extremes);
}

Two integer_linear(const py::array& x, int64_t zero_point, const py::array& kernel, const OptionalArray& bias,
                   const Factors& factors, py::array out) {
  require(x.ndim() == 2, "x must be [rows, inputs], got shape ", shape_text(x));
  require(kernel.ndim() == 2 && kernel.shape(1) == x.shape(1), "kernel must be [outputs, ", x.shape(1), "], got shape ",
          shape_text(kernel));
  require(out.ndim() == 2 && out.shape(0) == x.shape(0) && out.shape(1) == kernel.shape(0), "out must be [", x.shape(0),
          ", ", kernel.shape(0), "], got shape ", shape_text(out));
  require(kernel.size() > 0, "kernel must have elements");
  ProductArgs args = require_operands(x, zero_point, kernel, bias, kernel.shape(0), factors, out);
  if (out.size() == 0) return {0, 0};
  const int64_t rows = x.shape(0), inputs = x.shape(1), outputs = kernel.shape(0);
  py::gil_scoped_release release;
  const LinearScratch scratch(rows, inputs, outputs, args.x);
  std::vector<int32_t> weights(static_cast<size_t>(scratch.weights + LinearScratch::kSlack));
  std::vector<int32_t> operands(static_cast<size_t>(scratch.rows));
  std::vector<int64_t> offsets(static_cast<size_t>(scratch.taps)), extremes(static_cast<size_t>(2 * scratch.tasks()));
  args.extremes = extremes.data();
  product_table().linear(args, rows, inputs, outputs, scratch, weights.data(), operands.data(), offsets.data());
  return reduced(extremes);
}

CodeType require_codes(const py::array& codes, const char* name) {
  const TypeRange type = type_of(codes, name);
  require(type.type != CodeType::kInt32, name, " must have codes of 8 or 16 bits");
  require_c_order(codes, name);
  return type.type;
}

void require_factor(float factor, const char* name) {
  require(factor >= 0x1p-20f && factor <= 0x1p20f, name, " must be in 2^-20..2^20, got ", factor);
}

void integer_sum(const py::array& a, const py::array& b, float factor_a, float factor_b, float rest, int64_t lowest,
                 int64_t highest, py::array out) {
  const CodeType a_type = require_codes(a, "a"), b_type = require_codes(b, "b");
  const CodeType type = require_codes(out, "out");
  const TypeRange range = type_of(out, "out");
  require(out.writeable(), "out is read-only");
  const bool same = shape_text(a) == shape_text(b) && shape_text(a) == shape_text(out);
  require(same, "a, b and out must have one shape, got ", shape_text(a), ", ", shape_text(b), " and ", shape_text(out));
  require_factor(factor_a, "factor_a");
  require_factor(factor_b, "factor_b");
  require(rest >= -0x1p24f && rest <= 0x1p24f, "rest must be within 2^24, got ", rest);
  require(range.lowest <= lowest && lowest <= highest && highest <= range.highest, "codes ", lowest, "..", highest,
          " do not fit the type of out, ", range.lowest, "..", range.highest);
  require_apart(out, a);
  require_apart(out, b);
  const SumArgs args{a.data(),
                     b.data(),
                     a_type,
                     b_type,
                     factor_a,
                     factor_b,
                     rest,
                     static_cast<int32_t>(lowest),
                     static_cast<int32_t>(highest),
                     out.mutable_data(),
                     type,
                     a.size()};
  if (a.size() == 0) return;
  py::gil_scoped_release release;
  sum_table().run(args);
}

}  // namespace

void register_integer(py::module_& module) {
  py::class_<Factors>(module, "RequantizeFactors")
      .def(py::init([](const std::string& rule, OptionalArray factor, OptionalArray multiplier, OptionalArray shift,
                       int64_t zero_point, int64_t lowest, int64_t highest) {
             return Factors{rule,   std::move(factor), std::move(multiplier), std::move(shift), zero_point, lowest,
                            highest};
           }),
           py::arg("rule"), py::arg("factor"), py::arg("multiplier"), py::arg("shift"), py::arg("zero_point"),
           py::arg("lowest"), py::arg("highest"));
  module.def("requantize", &requantize, "Accumulators to codes.", py::arg("acc"), py::arg("axis"), py::arg("factors"),
             py::arg("out"));
  module.def("integer_conv", &integer_conv, "A convolution on codes; the least and the greatest accumulator.",
             py::arg("x"), py::arg("zero_point"), py::arg("kernel"), py::arg("bias"), py::arg("stride"),
             py::arg("before"), py::arg("dilation"), py::arg("groups"), py::arg("factors"), py::arg("out"));
  module.def("integer_sum", &integer_sum, "A sum of codes.", py::arg("a"), py::arg("b"), py::arg("factor_a"),
             py::arg("factor_b"), py::arg("rest"), py::arg("lowest"), py::arg("highest"), py::arg("out"));
  module.def("integer_linear", &integer_linear, "A linear layer on codes; the least and the greatest accumulator.",
             py::arg("x"), py::arg("zero_point"), py::arg("kernel"), py::arg("bias"), py::arg("factors"),
             py::arg("out"));
}

}  // namespace detent::bindings
