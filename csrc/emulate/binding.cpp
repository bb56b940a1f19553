// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "emulate/machine.h"

namespace aapt {

void register_emulate(py::module_& module) {
  module.def("set_schedule", &emulate::set_schedule, py::arg("seed"),
             "Emulation only: schedule of the next launches. 0: threads in order, copies late; others are random.");
}

}  // namespace aapt
