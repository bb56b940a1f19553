// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "common/tensor_binding.h"
#include "linear_residual/linear_residual.h"

namespace py = pybind11;

namespace aapt {

void register_linear_residual(py::module_& module) {
  module.def("linear_residual_sm90", &linear_residual_sm90, py::arg("x"), py::arg("inputs"), py::arg("weight"),
             py::arg("bias"), py::arg("gate"), py::arg("out"), py::arg("stream"),
             py::call_guard<py::gil_scoped_release>(),
             "A linear layer and a residual sum; shapes in csrc/linear_residual/linear_residual.h.");
}

}  // namespace aapt
