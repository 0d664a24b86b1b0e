// SPDX-License-Identifier: Apache-2.0
// The extension module: one registration function per noun, nothing else.
#include <pybind11/pybind11.h>

namespace detent::bindings {
void register_info(pybind11::module_& module);
void register_fake_quant(pybind11::module_& module);
void register_lut(pybind11::module_& module);
void register_dropping(pybind11::module_& module);
void register_error(pybind11::module_& module);
void register_comparison(pybind11::module_& module);
void register_perturbation(pybind11::module_& module);
void register_factor(pybind11::module_& module);
void register_integer(pybind11::module_& module);
void register_integer_maps(pybind11::module_& module);
void register_products(pybind11::module_& module);
void register_rounding(pybind11::module_& module);
void register_soft_rounding(pybind11::module_& module);
void register_statistics(pybind11::module_& module);
void register_histogram_search(pybind11::module_& module);
void register_weight_search(pybind11::module_& module);
void register_codebook_search(pybind11::module_& module);
void register_assignment_search(pybind11::module_& module);
}  // namespace detent::bindings

PYBIND11_MODULE(_core, module) {
  module.doc() = "Compiled kernels of detent. Use them through detent.kernels.";
  detent::bindings::register_info(module);
  detent::bindings::register_fake_quant(module);
  detent::bindings::register_lut(module);
  detent::bindings::register_dropping(module);
  detent::bindings::register_error(module);
  detent::bindings::register_comparison(module);
  detent::bindings::register_perturbation(module);
  detent::bindings::register_factor(module);
  detent::bindings::register_integer(module);
  detent::bindings::register_integer_maps(module);
  detent::bindings::register_products(module);
  detent::bindings::register_rounding(module);
  detent::bindings::register_soft_rounding(module);
  detent::bindings::register_statistics(module);
  detent::bindings::register_histogram_search(module);
  detent::bindings::register_weight_search(module);
  detent::bindings::register_codebook_search(module);
  detent::bindings::register_assignment_search(module);
}
