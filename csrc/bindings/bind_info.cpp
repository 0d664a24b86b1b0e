// SPDX-License-Identifier: Apache-2.0
// How the library was built and what it runs on.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "support/cpu.h"
#include "support/parallel.h"

namespace detent::bindings {

namespace py = pybind11;

void register_info(py::module_& module) {
  module.attr("version") = DETENT_VERSION;
#if defined(__clang__)
  module.attr("compiler") = "clang " __clang_version__;
#else
  module.attr("compiler") = "gcc " __VERSION__;
#endif
  module.def("compiled_isas", &compiled_isas, "Instruction sets compiled in, slowest first.");
  module.def("available_isas", &available_isas, "Instruction sets compiled in that this machine runs, slowest first.");
  module.def("active_isa", [] { return isa_name(active_isa()); }, "The instruction set in use.");
  module.def("set_isa", &set_isa, py::arg("name"), "Switch the whole process to another instruction set.");
  module.def("num_threads", &num_threads, "Threads the kernels use.");
  module.def("set_num_threads", &set_num_threads, py::arg("count"), "Set the threads the kernels use.");
  module.def("limit_threads", &limit_threads, py::arg("count"), "Limit the threads of calls from this thread.");
}

}  // namespace detent::bindings
