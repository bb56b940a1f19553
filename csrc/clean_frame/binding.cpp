// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "clean_frame/clean_frame.h"
#include "common/tensor_binding.h"

namespace py = pybind11;

namespace aapt {

void register_clean_frame(py::module_& module) {
  module.def("clean_frame_portable", &clean_frame_portable, py::arg("tokens"), py::arg("noised"), py::arg("t"),
             py::arg("patch"), py::arg("clean"), py::arg("stream"), py::call_guard<py::gil_scoped_release>(),
             "noised - t * velocity, the velocity as tokens; shapes in csrc/clean_frame/clean_frame.h.");
}

}  // namespace aapt
