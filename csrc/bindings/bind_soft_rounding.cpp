// SPDX-License-Identifier: Apache-2.0
// Learned rounding.
#include <vector>

#include "bindings/column_args.h"
#include "bindings/grid_args.h"
#include "kernels/soft_rounding.h"

namespace detent::bindings {
namespace {

// One step a row, or one for all.
AffineGrid require_rows(const py::array& base, const py::array& scale, const py::array& zero_point, int64_t qmin,
                        int64_t qmax) {
  require_matrix<float>(base, {-1, -1}, "base");
  const float* scales = require_vector<float>(scale, -1, "scale");
  const int64_t entries = scale.size();
  require(entries == 1 || entries == base.shape(0), "scale must have 1 or ", base.shape(0), " elements, got ", entries);
  const auto* zeros = require_vector<int32_t>(zero_point, entries, "zero_point");
  return AffineGrid(1, entries, 1, scales, zeros, qmin, qmax);
}

SoftView view_of(const py::array& base, const AffineGrid& grid) {
  const GridView view = grid.view();
  return {view.scale,
          view.lower,
          view.upper,
          view.entries == 1 ? 0 : 1,
          base.shape(0),
          base.shape(1),
          static_cast<const float*>(base.data())};
}

MatrixShape shape_of(const py::array& base) { return {base.shape(0), base.shape(1)}; }

float* require_mutable(py::array& x, const py::array& base, const char* name) {
  require_matrix<float>(x, shape_of(base), name);
  require(x.writeable(), name, " is read-only");
  return static_cast<float*>(x.mutable_data());
}

// What is written must not be what is read, or written as something else.
void require_all_apart(std::initializer_list<std::pair<const py::array*, const char*>> arrays) {
  for (auto a = arrays.begin(); a != arrays.end(); ++a) {
    for (auto b = arrays.begin(); b != a; ++b) {
      const auto *x = static_cast<const char*>(a->first->data()), *y = static_cast<const char*>(b->first->data());
      require(x + a->first->nbytes() <= y || y + b->first->nbytes() <= x, a->second, " overlaps ", b->second,
              "; pass an array of its own");
    }
  }
}

SoftLoss require_loss(const py::array& gradients, const py::array& base, float beta, float weight) {
  require(beta >= 1.0f && beta <= 128.0f, "beta must be in [1, 128], got ", beta);
  require(std::isfinite(weight) && weight >= 0.0f, "weight must be finite and not negative, got ", weight);
  return {require_matrix<float>(gradients, shape_of(base), "gradients"), beta, weight};
}

std::vector<double> partials(const SoftView& view) {
  return std::vector<double>(static_cast<size_t>(view.rows * SoftRoundingTable::slices(view.columns)));
}

py::array soft_round(const py::array& base, const py::array& v, const OptionalArray& out, const py::array& scale,
                     const py::array& zero_point, int64_t qmin, int64_t qmax) {
  const AffineGrid grid = require_rows(base, scale, zero_point, qmin, qmax);
  const SoftView view = view_of(base, grid);
  const float* from = require_matrix<float>(v, shape_of(base), "v");
  py::array result = out ? *out : py::array(py::array_t<float>({view.rows, view.columns}));
  float* to = require_mutable(result, base, "out");
  require_all_apart({{&base, "base"}, {&result, "out"}});
  require_all_apart({{&v, "v"}, {&result, "out"}});
  py::gil_scoped_release release;
  soft_rounding_table().values(view, from, to);
  return result;
}

py::tuple soft_gradients(const py::array& gradients, const py::array& base, const py::array& v, float beta,
                         float weight, const py::array& scale, const py::array& zero_point, int64_t qmin,
                         int64_t qmax) {
  const AffineGrid grid = require_rows(base, scale, zero_point, qmin, qmax);
  const SoftView view = view_of(base, grid);
  const SoftLoss loss = require_loss(gradients, base, beta, weight);
  const float* from = require_matrix<float>(v, shape_of(base), "v");
  py::array_t<float> out({view.rows, view.columns});
  float* to = out.mutable_data();
  std::vector<double> partial = partials(view);
  double regularizer = 0.0;
  {
    py::gil_scoped_release release;
    regularizer = soft_rounding_table().gradients(view, loss, from, partial.data(), to);
  }
  return py::make_tuple(out, regularizer);
}

struct Rates {
  double rate, first_decay, second_decay, epsilon;
  int64_t step;
};

AdamStep require_adam(const Rates& given, float* first, float* second) {
  const auto decays = [](double x) { return x >= 0.0 && x < 1.0; };
  require(std::isfinite(given.rate) && given.rate >= 0.0, "rate must be finite and not negative, got ", given.rate);
  require(decays(given.first_decay) && decays(given.second_decay), "decays must be in [0, 1), got ", given.first_decay,
          " and ", given.second_decay);
  require(std::isfinite(given.epsilon) && given.epsilon > 0.0, "epsilon must be finite and positive, got ",
          given.epsilon);
  require(given.step >= 1, "step must be at least 1, got ", given.step);
  const auto correction = [&](double decay) { return 1.0 - std::pow(decay, static_cast<double>(given.step)); };
  return {first,
          second,
          static_cast<float>(1.0 - given.first_decay),
          static_cast<float>(given.second_decay),
          static_cast<float>(1.0 - given.second_decay),
          static_cast<float>(given.rate / correction(given.first_decay)),
          static_cast<float>(1.0 / std::sqrt(correction(given.second_decay))),
          static_cast<float>(given.epsilon)};
}

double soft_step(const py::array& gradients, const py::array& base, py::array v, py::array first, py::array second,
                 float beta, float weight, double rate, double first_decay, double second_decay, double epsilon,
                 int64_t step, const py::array& scale, const py::array& zero_point, int64_t qmin, int64_t qmax) {
  const AffineGrid grid = require_rows(base, scale, zero_point, qmin, qmax);
  const SoftView view = view_of(base, grid);
  const SoftLoss loss = require_loss(gradients, base, beta, weight);
  float* at = require_mutable(v, base, "v");
  const AdamStep adam = require_adam({rate, first_decay, second_decay, epsilon, step},
                                     require_mutable(first, base, "first"), require_mutable(second, base, "second"));
  require_all_apart({{&base, "base"}, {&v, "v"}, {&first, "first"}, {&second, "second"}});
  require_all_apart({{&v, "v"}, {&gradients, "gradients"}});
  require_all_apart({{&first, "first"}, {&gradients, "gradients"}});
  require_all_apart({{&second, "second"}, {&gradients, "gradients"}});
  std::vector<double> partial = partials(view);
  py::gil_scoped_release release;
  return soft_rounding_table().step(view, loss, adam, partial.data(), at);
}

}  // namespace

void register_soft_rounding(py::module_& module) {
  module.def("soft_round", &soft_round, "Values between those below and above.", py::arg("base"), py::arg("v"),
             py::arg("out"), py::arg("scale"), py::arg("zero_point"), py::arg("qmin"), py::arg("qmax"));
  module.def("soft_gradients", &soft_gradients, "Gradients with respect to v, and the regularizer.",
             py::arg("gradients"), py::arg("base"), py::arg("v"), py::arg("beta"), py::arg("weight"), py::arg("scale"),
             py::arg("zero_point"), py::arg("qmin"), py::arg("qmax"));
  module.def("soft_step", &soft_step, "A step of Adam on v, in place.", py::arg("gradients"), py::arg("base"),
             py::arg("v"), py::arg("first"), py::arg("second"), py::arg("beta"), py::arg("weight"), py::arg("rate"),
             py::arg("first_decay"), py::arg("second_decay"), py::arg("epsilon"), py::arg("step"), py::arg("scale"),
             py::arg("zero_point"), py::arg("qmin"), py::arg("qmax"));
}

}  // namespace detent::bindings
