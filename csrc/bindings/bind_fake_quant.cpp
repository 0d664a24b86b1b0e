// SPDX-License-Identifier: Apache-2.0
#include "bindings/array_args.h"

namespace detent::bindings {

void register_fake_quant(py::module_& module) { (void)module; }

}  // namespace detent::bindings
