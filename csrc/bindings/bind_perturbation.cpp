// SPDX-License-Identifier: Apache-2.0
// First-order effects of quantization.
#include <vector>

#include "bindings/array_args.h"
#include "kernels/affine_grid.h"
#include "kernels/perturbation.h"

namespace detent::bindings {
namespace {

using Kernel = void (*)(const PerturbationArgs&, const SlicePlan&, double*, double*);

// Samples lie one behind the other, each without gaps.
PerturbationArgs require_samples(const py::array& x, const py::array& g) {
  require_dtype<float>(x, "x");
  require(x.ndim() > 0, "x must have samples along its first axis, got a number");
  const DenseShape shape = require_dense<float>(x, 0, "x");
  require(shape.outer == 1 || x.size() == 0,
          "the first axis of x, its samples, must be the slowest in memory, got shape ", shape_text(x),
          "; pass numpy.ascontiguousarray(x)");
  require_laid_out_as<float>(g, x, "g", "x");
  const int64_t samples = x.shape(0), size = samples > 0 ? x.size() / samples : 0;
  return {static_cast<const float*>(x.data()), static_cast<const float*>(g.data()), samples, size, nullptr, 0};
}

py::array_t<double> summed(Kernel kernel, const PerturbationArgs& args, py::ssize_t rows) {
  const SlicePlan plan(1, args.samples, args.size);
  py::array_t<double> sums({rows, static_cast<py::ssize_t>(args.samples)});
  double* out = sums.mutable_data();
  std::vector<double> partial(static_cast<size_t>(PerturbationTable::kMostSums * plan.slices() * args.samples));
  py::gil_scoped_release release;
  kernel(args, plan, partial.data(), out);
  return sums;
}

py::array_t<double> perturbations(const py::array& x, const py::array& g, const py::array& scale,
                                  const py::array& zero_point, const py::array& qmin, const py::array& qmax) {
  PerturbationArgs args = require_samples(x, g);
  const float* scales = require_vector<float>(scale, -1, "scale");
  const auto* zeros = require_vector<int32_t>(zero_point, scale.size(), "zero_point");
  const auto* lowest = require_vector<int32_t>(qmin, scale.size(), "qmin");
  const auto* highest = require_vector<int32_t>(qmax, scale.size(), "qmax");
  std::vector<PerturbationGrid> grids;
  for (py::ssize_t k = 0; k < scale.size(); ++k) {
    const AffineGrid checked(1, 1, 1, scales + k, zeros + k, lowest[k], highest[k]);
    const GridView view = checked.view();
    grids.push_back({view.scale[0], view.lower[0], view.upper[0]});
  }
  args.grids = grids.data();
  args.count = scale.size();
  return summed(perturbation_table().perturbations, args, scale.size());
}

py::array_t<double> dots(const py::array& x, const py::array& g) {
  const PerturbationArgs args = require_samples(x, g);
  return summed(perturbation_table().dots, args, 1);
}

}  // namespace

void register_perturbation(py::module_& module) {
  module.def("perturbations", &perturbations, "Sum of g * (Q(x) - x) for each grid and sample.", py::arg("x"),
             py::arg("g"), py::arg("scale"), py::arg("zero_point"), py::arg("qmin"), py::arg("qmax"));
  module.def("dots", &dots, "Sum of g * x for each sample.", py::arg("x"), py::arg("g"));
}

}  // namespace detent::bindings
