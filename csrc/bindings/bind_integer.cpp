// SPDX-License-Identifier: Apache-2.0
// Integer execution: requantization, convolutions and linear layers on codes.
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "bindings/integer_args.h"
#include "kernels/integer_products.h"
#include "support/parallel.h"

namespace detent::bindings {
namespace {

using OptionalArray = std::optional<py::array>;
using Two = std::array<int64_t, 2>;

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
  const auto rows = static_cast<double>(found.reached_rows(found.out_height));
  const auto columns = static_cast<double>(found.reached_columns());
  require(rows * columns * static_cast<double>(x.shape(1)) <= kLargestPlanes, "out of shape ", shape_text(out),
          " with strides of ", stride[0], " and ", stride[1], " reaches over more than 2^34 values of a sample");
  return found;
}

bool fits_bytes(const int16_t* kernel, int64_t n) {
  bool fits = true;
  for (int64_t i = 0; i < n; ++i) fits &= kernel[i] >= -128 && kernel[i] <= 127;
  return fits;
}

Two run_conv(ProductArgs& args, const ConvGeometry& geometry) {
  const ProductTable& table = product_table();
  const int64_t outputs = geometry.groups * geometry.outputs;
  const bool bytes = !args.x.wide() && fits_bytes(args.kernel, outputs * geometry.inputs * geometry.window());
  const int64_t per_tap = args.x.wide() ? 1 : bytes ? table.codes_per_tap : 2;
  const ConvPlan plan(geometry, per_tap, bytes ? table.depthwise_memory(geometry) : 0, num_threads());
  constexpr size_t kAlign = 64;
  const auto memory = std::make_unique_for_overwrite<int32_t[]>(static_cast<size_t>(plan.memory(geometry)) + kAlign);
  const auto weights = std::make_unique_for_overwrite<int32_t[]>(static_cast<size_t>(plan.weights(geometry)));
  const auto starts = std::make_unique_for_overwrite<int64_t[]>(static_cast<size_t>(outputs));
  std::vector<int64_t> extremes(static_cast<size_t>(2 * plan.slots));
  args.extremes = extremes.data();
  const size_t beyond = reinterpret_cast<uintptr_t>(memory.get()) % kAlign / sizeof(int32_t);
  table.conv(args, geometry, plan, {weights.get(), starts.get(), memory.get() + (kAlign / sizeof(int32_t) - beyond)});
  return reduced(extremes);
}

Two integer_conv(const py::array& x, int64_t zero_point, const py::array& kernel, const OptionalArray& bias, Two stride,
                 Two before, Two dilation, int64_t groups, const Factors& factors, py::array out) {
  const ConvGeometry geometry = require_geometry(x, kernel, out, stride, before, dilation, groups);
  ProductArgs args = require_operands(x, zero_point, kernel, bias, kernel.shape(0), factors, out);
  if (out.size() == 0) return {0, 0};
  py::gil_scoped_release release;
  return run_conv(args, geometry);
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
  py::gil_scoped_release release;
  const ConvGeometry geometry{.samples = x.shape(0),
                              .groups = 1,
                              .inputs = x.shape(1),
                              .outputs = kernel.shape(0),
                              .height = 1,
                              .width = 1,
                              .kernel_height = 1,
                              .kernel_width = 1,
                              .stride_y = 1,
                              .stride_x = 1,
                              .top = 0,
                              .left = 0,
                              .dilation_y = 1,
                              .dilation_x = 1,
                              .out_height = 1,
                              .out_width = 1};
  return run_conv(args, geometry);
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
  module.def("integer_linear", &integer_linear, "A linear layer on codes; the least and the greatest accumulator.",
             py::arg("x"), py::arg("zero_point"), py::arg("kernel"), py::arg("bias"), py::arg("factors"),
             py::arg("out"));
}

}  // namespace detent::bindings
