// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "common/tensor_binding.h"
#include "emulate/machine.h"
#include "emulate/self_test.h"

namespace py = pybind11;

namespace aapt {

void register_emulate(py::module_& module) {
  module.def("set_schedule", &emulate::set_schedule, py::arg("seed"),
             "The schedule of the next launches: 0 runs threads in order and copies late, others are random.");
  module.def("round_numbers", &emulate::round_numbers, py::arg("source"), py::arg("result"),
             "float32 to half precision, as kernels round; all of these in csrc/emulate/self_test.h.");
  module.def("widen_numbers", &emulate::widen_numbers, py::arg("source"), py::arg("result"),
             "Half precision to float32, as kernels widen.");
  module.def("run_barrier", &emulate::run_barrier, py::arg("threads"), py::arg("threads_that_arrive"),
             "A barrier that some threads may never reach.");
  module.def("run_copy", &emulate::run_copy, py::arg("source"), py::arg("result"), py::arg("wait"),
             "An asynchronous copy that is read with or without waiting.");
  module.def("run_reversal", &emulate::run_reversal, py::arg("result"), py::arg("synchronise"),
             "An exchange between threads with or without a barrier.");
}

}  // namespace aapt
