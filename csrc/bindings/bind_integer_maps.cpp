// SPDX-License-Identifier: Apache-2.0
// Integer execution: what is done to codes one by one.
#include <pybind11/stl.h>

#include <array>
#include <cmath>

#include "bindings/integer_args.h"
#include "kernels/integer_moves.h"
#include "kernels/integer_sum.h"

namespace detent::bindings {
namespace {

void require_factor(float factor, const char* name) {
  require(factor >= 0x1p-20f && factor <= 0x1p20f, name, " must be in 2^-20..2^20, got ", factor);
}

// The operands and the type of the result.
TypeRange require_sum(const py::array& a, const py::array& b, int64_t lowest, int64_t highest, const py::array& out) {
  require_codes(a, "a");
  require_codes(b, "b");
  require_codes(out, "out");
  const TypeRange range = type_of(out, "out");
  require(out.writeable(), "out is read-only");
  const bool same = shape_text(a) == shape_text(b) && shape_text(a) == shape_text(out);
  require(same, "a, b and out must have one shape, got ", shape_text(a), ", ", shape_text(b), " and ", shape_text(out));
  require(range.lowest <= lowest && lowest <= highest && highest <= range.highest, "codes ", lowest, "..", highest,
          " do not fit the type of out, ", range.lowest, "..", range.highest);
  require_apart(out, a);
  require_apart(out, b);
  return range;
}

void integer_sum(const py::array& a, const py::array& b, float factor_a, float factor_b, float rest, int64_t lowest,
                 int64_t highest, py::array out) {
  const TypeRange range = require_sum(a, b, lowest, highest, out);
  require_factor(factor_a, "factor_a");
  require_factor(factor_b, "factor_b");
  require(rest >= -0x1p24f && rest <= 0x1p24f, "rest must be within 2^24, got ", rest);
  const SumArgs args{
      a.data(),   b.data(), type_of(a, "a").type,         type_of(b, "b").type,          factor_a,
      factor_b,   rest,     static_cast<int32_t>(lowest), static_cast<int32_t>(highest), out.mutable_data(),
      range.type, a.size()};
  if (a.size() == 0) return;
  py::gil_scoped_release release;
  sum_table().run(args);
}

const int32_t* require_table(const py::array& table, const py::array& codes, const char* what) {
  return require_vector<int32_t>(table, int64_t{1} << (8 * codes.itemsize()), what);
}

void integer_table_sum(const py::array& a, const py::array& b, const py::array& table_a, const py::array& table_b,
                       py::array_t<int32_t> out) {
  require_codes(a, "a");
  require_codes(b, "b");
  const bool same = shape_text(a) == shape_text(b) && shape_text(a) == shape_text(out);
  require(same, "a, b and out must have one shape, got ", shape_text(a), ", ", shape_text(b), " and ", shape_text(out));
  require(out.writeable(), "out is read-only");
  const TableSumArgs args{a.data(),
                          b.data(),
                          type_of(a, "a").type,
                          type_of(b, "b").type,
                          require_table(table_a, a, "table_a"),
                          require_table(table_b, b, "table_b"),
                          out.mutable_data(),
                          a.size()};
  if (a.size() == 0) return;
  py::gil_scoped_release release;
  sum_table().of_tables(args);
}

void integer_value_sum(const py::array& a, const py::array& b, std::array<float, 3> scales,
                       std::array<int32_t, 3> zero_points, int64_t lowest, int64_t highest, py::array out) {
  const TypeRange range = require_sum(a, b, lowest, highest, out);
  for (const float scale : scales) require(std::isfinite(scale), "scales must be finite, got ", scale);
  require(scales[2] > 0, "the scale of out must be positive, got ", scales[2]);
  const TypeRange ranges[] = {type_of(a, "a"), type_of(b, "b"), range};
  for (int i = 0; i < 3; ++i) {
    require(ranges[i].lowest <= zero_points[i] && zero_points[i] <= ranges[i].highest, "the zero point ",
            zero_points[i], " is no code, ", ranges[i].lowest, "..", ranges[i].highest);
  }
  const ValueSumArgs args{a.data(),
                          b.data(),
                          ranges[0].type,
                          ranges[1].type,
                          scales[0],
                          scales[1],
                          scales[2],
                          zero_points[0],
                          zero_points[1],
                          zero_points[2],
                          static_cast<int32_t>(lowest),
                          static_cast<int32_t>(highest),
                          out.mutable_data(),
                          range.type,
                          a.size()};
  if (a.size() == 0) return;
  py::gil_scoped_release release;
  sum_table().of_values(args);
}

void integer_gather(const py::array& x, const py::array& places, int64_t fill, py::array out) {
  require_codes(x, "x");
  require_codes(out, "out");
  const TypeRange range = type_of(x, "x");
  require(x.ndim() == 2, "x must be [samples, codes], got shape ", shape_text(x));
  const int64_t* from = require_vector<int64_t>(places, -1, "places");
  const bool fits = out.ndim() == 2 && out.shape(0) == x.shape(0) && out.shape(1) == places.size();
  require(fits && range.type == type_of(out, "out").type, "out must be [", x.shape(0), ", ", places.size(),
          "] with the type of x, got shape ", shape_text(out));
  require(out.writeable(), "out is read-only");
  require(range.lowest <= fill && fill <= range.highest, "fill ", fill, " is no code of x, ", range.lowest, "..",
          range.highest);
  for (int64_t i = 0; i < places.size(); ++i) {
    require(from[i] < x.shape(1), "place ", from[i], " is not among the ", x.shape(1), " codes of a sample");
  }
  require_apart(out, x);
  if (out.size() == 0) return;
  const GatherArgs args{
      x.data(),          x.itemsize(), x.shape(0), x.shape(1), places.size(), from, static_cast<int32_t>(fill),
      out.mutable_data()};
  py::gil_scoped_release release;
  move_table().gather(args);
}

void integer_look_up(const py::array& x, const py::array& table, py::array out) {
  const CodeType type = require_codes(x, "x");
  const CodeType entries = require_codes(table, "table");
  const int64_t wanted = int64_t{1} << (8 * x.itemsize());
  require(table.ndim() == 1 && table.size() == wanted, "table must have ", wanted, " entries, got shape ",
          shape_text(table));
  require(require_codes(out, "out") == entries, "out must have the type of table");
  require(shape_text(x) == shape_text(out), "out must have shape ", shape_text(x), ", got ", shape_text(out));
  require(out.writeable(), "out is read-only");
  require_apart(out, x);
  if (x.size() == 0) return;
  const LookUpArgs args{x.data(), type, x.size(), table.data(), table.itemsize(), out.mutable_data()};
  py::gil_scoped_release release;
  move_table().look_up(args);
}

}  // namespace

void register_integer_maps(py::module_& module) {
  module.def("integer_sum", &integer_sum, "A sum of codes.", py::arg("a"), py::arg("b"), py::arg("factor_a"),
             py::arg("factor_b"), py::arg("rest"), py::arg("lowest"), py::arg("highest"), py::arg("out"));
  module.def("integer_table_sum", &integer_table_sum, "A sum of what tables have for codes.", py::arg("a"),
             py::arg("b"), py::arg("table_a"), py::arg("table_b"), py::arg("out").noconvert());
  module.def("integer_value_sum", &integer_value_sum, "A sum of the values of codes.", py::arg("a"), py::arg("b"),
             py::arg("scales"), py::arg("zero_points"), py::arg("lowest"), py::arg("highest"), py::arg("out"));
  module.def("integer_gather", &integer_gather, "Codes of each sample in other places.", py::arg("x"),
             py::arg("places"), py::arg("fill"), py::arg("out"));
  module.def("integer_look_up", &integer_look_up, "Codes by a table of all codes.", py::arg("x"), py::arg("table"),
             py::arg("out"));
}

}  // namespace detent::bindings
