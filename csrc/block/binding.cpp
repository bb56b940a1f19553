// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "block/gate_residual_norm.h"
#include "common/tensor_binding.h"

namespace py = pybind11;

namespace aapt {

void register_block(py::module_& module) {
  module.def("gate_residual_norm_portable", &gate_residual_norm_portable, py::arg("x"), py::arg("y"), py::arg("gate"),
             py::arg("scale"), py::arg("shift"), py::arg("residual"), py::arg("normed"), py::arg("eps"),
             py::arg("stream"), py::call_guard<py::gil_scoped_release>(),
             "Gate, residual sum, RMSNorm and modulation; shapes in csrc/block/gate_residual_norm.h.");
}

}  // namespace aapt
