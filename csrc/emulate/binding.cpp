// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "common/tensor_binding.h"
#include "emulate/machine.h"
#include "emulate/self_test.h"

namespace aapt {

void register_emulate(py::module_& module) {
  module.def("set_schedule", &emulate::set_schedule, py::arg("seed"),
             "Emulation only: schedule of the next launches. 0: threads in order, copies late; others are random.");
  module.def("round_numbers", &emulate::round_numbers, py::arg("source"), py::arg("result"),
             "Emulation only: float32 to half precision, as kernels round.");
  module.def("widen_numbers", &emulate::widen_numbers, py::arg("source"), py::arg("result"),
             "Emulation only: half precision to float32, as kernels widen.");
  module.def("run_barrier", &emulate::run_barrier, py::arg("threads"), py::arg("threads_that_arrive"),
             "Emulation only: a barrier that some threads may never reach.");
  module.def("run_copy", &emulate::run_copy, py::arg("source"), py::arg("result"), py::arg("wait"),
             "Emulation only: an asynchronous copy that is read with or without waiting.");
  module.def("run_reversal", &emulate::run_reversal, py::arg("result"), py::arg("synchronise"),
             "Emulation only: an exchange between threads with or without a barrier.");
}

}  // namespace aapt
