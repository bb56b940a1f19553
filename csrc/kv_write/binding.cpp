// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"
#include "common/tensor_binding.h"
#include "kv_write/kv_write.h"

namespace py = pybind11;

namespace aapt {

void register_kv_write(py::module_& module) {
  module.def("kv_write_portable", &kv_write_portable, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("q_weight"),
             py::arg("k_weight"), py::arg("cos"), py::arg("sin"), py::arg("k_pages"), py::arg("v_pages"),
             py::arg("page_ids"), py::arg("out"), py::arg("eps"), py::arg("stream"),
             py::call_guard<py::gil_scoped_release>(),
             "Norm, rotation and the write into pages; shapes in csrc/kv_write/kv_write.h.");
}

}  // namespace aapt
