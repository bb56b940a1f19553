// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "emulate/machine.h"

namespace py = pybind11;

namespace aapt {

void register_emulate(py::module_& module) {
  module.def("set_schedule", &emulate::set_schedule, py::arg("seed"),
             "The schedule of the next launches: 0 runs threads in order and copies late, others are random.");
}

}  // namespace aapt
